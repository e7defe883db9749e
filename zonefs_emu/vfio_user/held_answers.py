"""The answers of a submission queue that are held for as long as a real drive takes.

A command is carried out when it is fetched, and its completion is posted when a real drive would post it. Answers that
are due sooner overtake it. The record of the queue has the answers that are held
(:mod:`zonefs_emu.inflight.holding_record`), so a drive that takes over posts them, at once, and carries nothing out
again. In the record, the first word of an answer is the result of the command, and the second one has its identifier
and, from bit 16 on, its status field.

A controller that is reset drops what is held: its queues are gone, and a command of before gets no completion.
"""

import heapq
from collections.abc import Callable
from typing import Final

from zonefs_emu.device.port import Port
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.inflight.holding_record import HoldingRecord
from zonefs_emu.nvme.answer import Answer
from zonefs_emu.vfio_user.drive_queues import CompletionQueue, SubmissionQueue

_CID_MASK: Final = 0xFFFF
_STATUS_SHIFT: Final = 16


def hold_answers(
    queue: SubmissionQueue,
    *,
    is_timed: bool,
    has_room: Callable[[CompletionQueue], bool],
    wake: Callable[[], object],
) -> None:
    """Have *queue* hold answers if the drive *is_timed*, and until those of an earlier process are given."""
    ring = queue.ring
    if ring is not None and (is_timed or ring.was_holding):
        queue.answers = answers = HeldAnswers(queue, ring, is_timed=is_timed, has_room=has_room, wake=wake)
        answers.begin()


class HeldAnswers:
    """What one queue holds, the first due first; begins with what an earlier process held."""

    def __init__(
        self,
        queue: SubmissionQueue,
        ring: HoldingRecord,
        *,
        is_timed: bool,
        has_room: Callable[[CompletionQueue], bool],
        wake: Callable[[], object],
    ) -> None:
        """*is_timed*: hold the answers of further commands, too. *wake*: has them given when due, from any thread."""
        self._queue = queue
        self._ring = ring
        self._is_timed = is_timed
        self._has_room = has_room
        self._wake = wake
        # A heap: when it is due, its number, when the command arrived (-1: that is not timed), its port, and its words.
        self._held: list[tuple[int, int, int, TimedPort | None, int, int]] = [
            (0, number, -1, None, result, rest) for number, result, rest in ring.held
        ]
        #: Whether answers of an earlier process are held. The queue rests until the guest has room for them.
        self._is_recovering = True
        #: When alarms come, the soonest last. Each has :meth:`give_due` called.
        self._alarms_ns: list[int] = []
        #: Of the command that was carried out last: when its answer is due, when it arrived, and its port.
        self._carried_out: tuple[int, int, TimedPort | None] = 0, -1, None

    def begin(self) -> None:
        """Begin; the queue has this object."""
        self._end_recovery()

    def _end_recovery(self) -> None:
        if not self._is_recovering or self._held:
            return
        self._is_recovering = False
        if self._is_timed:
            self._ring.begin_holding(0)
        else:
            self._ring.end_holding()
            self._queue.answers = None

    @property
    def can_take(self) -> bool:
        """Whether there is room for the answer to one more command."""
        return not self._is_recovering and (self._ring.can_hold or not self._held)

    @property
    def is_due(self) -> bool:
        """Whether an answer can be given now."""
        return bool(self._held) and self._waits_ns() <= 0 and self._has_room(self._queue.completions)

    def carry_out(self, port: Port, command: Callable[[], Answer]) -> Answer:
        """Carry *command* out, on any thread, and note when the drive of *port* would have done so."""
        if not isinstance(port, TimedPort):
            return command()
        try:
            return command()
        finally:
            self._carried_out = *port.held.take_delayed(port.clock()), port

    def hold(self, cid: int, answer: Answer) -> None:
        """Hold the answer to the command that was carried out last."""
        ring, queue = self._ring, self._queue
        due_ns, arrival_ns, port = self._carried_out
        self._carried_out = 0, -1, None
        if not ring.can_hold:
            # Nothing is held: a queue of two entries, one of which an earlier process had begun.
            ring.end_holding()
            queue.completions.post(answer.result, queue.head, queue.number, cid, answer.status_field)
            ring.finish_split(1)
            queue.completions.note()
            ring.begin_holding(0)
            return
        rest = cid | answer.status_field << _STATUS_SHIFT
        number = ring.hold(answer.result, rest, 0)
        heapq.heappush(self._held, (due_ns, number, arrival_ns, port, answer.result, rest))

    def give_due(self) -> bool:
        """Post the completions that are due and that the guest has room for; True if there was one."""
        found = False
        while self.is_due:
            self._give()
            found = True
        self._end_recovery()
        held = self._held
        if not held or (port := held[0][3]) is None:
            return found
        due_ns, now_ns, alarms_ns = held[0][0], port.clock(), self._alarms_ns
        while alarms_ns and alarms_ns[-1] <= now_ns:
            alarms_ns.pop()
        # An answer that is due and waits for room needs no alarm: the guest rings a doorbell when it has made room.
        if now_ns < due_ns and (not alarms_ns or due_ns < alarms_ns[-1]):
            alarms_ns.append(due_ns)
            port.alarm.at(due_ns, self._wake)
        return found

    def give_all(self) -> None:
        """Post all completions that the guest has room for, due or not."""
        while self._held and self._has_room(self._queue.completions):
            self._give()

    def _waits_ns(self) -> int:
        """Return for how long the first answer is held; not above 0 if it is due, or at the daemon's end."""
        due_ns, _, _, port, _, _ = self._held[0]
        return 0 if port is None or port.alarm.is_cut else due_ns - port.clock()

    def _give(self) -> None:
        queue, ring = self._queue, self._ring
        completions = queue.completions
        due_ns, number, arrival_ns, port, result, rest = heapq.heappop(self._held)
        if port is not None and arrival_ns >= 0:
            port.answered(due_ns, arrival_ns)
        ring.before_giving(number, 0)
        completions.post(result, queue.head, queue.number, rest & _CID_MASK, rest >> _STATUS_SHIFT)
        ring.note_given(number)
        completions.note()
