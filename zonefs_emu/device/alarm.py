"""Answers that are held until they are due on the host's clock.

May not know: commands, front-ends. A front-end that can defer its answers has one :class:`Alarm`, which notifies it
when an answer is due. The alarm has a thread of its own, because event loops wait in milliseconds.

A wait ends later than asked for, because an idle processor takes its time to wake up: 50 us after a wait of 0.1 ms, 85
after one of 1 ms and 240 after one of 7 ms were measured in a virtual machine, with little variation. So the alarm
waits for less, by what it has learnt from earlier waits of about the same length, and looks at the clock for the rest.
"""

import ctypes
import heapq
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

#: prctl(2), timer slack: how much later than requested the kernel may wake a thread. The default is 50 us.
_PR_SET_TIMERSLACK: Final = 29
_SLACK_NS: Final = 1
#: How much earlier a wait ends at most, so that a busy host does not make the alarm look at the clock for long.
_LEAD_NS_MAX: Final = 300_000
#: Waits whose lengths have the same number of bits share what is learnt. No wait has more than this.
_LENGTHS: Final = 64
#: The share by which a later end of a wait, and an earlier one, changes what is learnt: so most waits end in time.
_LATER_SHIFT: Final = 2
_EARLIER_SHIFT: Final = 4
#: The longest single wait. An answer of a slowed drive may be due later than a wait can last.
_WAIT_S: Final = 3600.0

log = logging.getLogger(__name__)


class HeldAnswer(threading.local):
    """For each thread: when its last command is to be answered, if that answer is held; in nanoseconds of a clock.

    *due_ns* is 0 if nothing is held. *arrival_ns*: when the command arrived. *delay_ns*: the injected delays that were
    noted and not taken yet.
    """

    due_ns = 0
    arrival_ns = 0
    delay_ns = 0

    def hold(self, due_ns: int, arrival_ns: int) -> None:
        """Note the times, for :attr:`TimedPort.hold`. Of several commands of one request the last one counts."""
        self.due_ns = max(self.due_ns, due_ns)
        self.arrival_ns = arrival_ns

    def take(self) -> tuple[int, int]:
        """Return (due, arrival) and forget them; due is 0 if nothing is held."""
        found = self.due_ns, self.arrival_ns
        self.due_ns = 0
        return found

    def delay(self, duration_ns: int) -> None:
        """Note an injected delay; this is for :attr:`Port.defer`."""
        self.delay_ns += duration_ns

    def take_delayed(self, now_ns: int) -> tuple[int, int]:
        """Return (due, arrival) as :meth:`take`, and forget the delays, by which due is later.

        If no answer is held, due is *now_ns* plus the delays, and arrival is -1.
        """
        due_ns, arrival_ns = self.take()
        delay_ns, self.delay_ns = self.delay_ns, 0
        return max(due_ns, now_ns) + delay_ns, arrival_ns if due_ns else -1


class Alarm:
    """Calls functions when they are due, in nanoseconds of ``time.monotonic_ns``.

    The functions only wake a loop: they are quick and do not raise. They are called by the alarm's thread, or, after
    :meth:`cut`, by the caller.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: list[tuple[int, int, Callable[[], object]]] = []
        self._number = 0
        self._is_cut = False
        self._thread: threading.Thread | None = None
        #: By the number of bits of a wait's length: by how much such waits end late, in nanoseconds.
        self._leads_ns = [0] * (_LENGTHS + 1)

    @property
    def is_cut(self) -> bool:
        """Whether :meth:`cut` was called, so that functions are called at once."""
        return self._is_cut

    def at(self, due_ns: int, function: Callable[[], object]) -> None:
        """Call *function* at *due_ns*."""
        with self._changed:
            if not self._is_cut:
                self._number += 1
                heapq.heappush(self._queue, (due_ns, self._number, function))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="alarm", daemon=True)
                    self._thread.start()
                elif self._queue[0][1] == self._number:
                    self._changed.notify()
                return
        self._call(function)

    def cut(self) -> None:
        """Call all waiting functions now and later ones at once, because the process is about to end."""
        with self._changed:
            self._is_cut = True
            functions = [function for _, _, function in sorted(self._queue)]
            self._queue.clear()
            self._changed.notify()
        for function in functions:
            self._call(function)

    def _run(self) -> None:
        # For this thread only. If it fails, answers are later.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _SLACK_NS, 0, 0, 0)
        while True:
            due: list[Callable[[], object]] = []
            has_waited = False
            with self._changed:
                if self._is_cut:
                    return
                now_ns = time.monotonic_ns()
                while self._queue and self._queue[0][0] <= now_ns:
                    due.append(heapq.heappop(self._queue)[2])
                if not due:
                    has_waited = self._wait(now_ns)
            for function in due:
                self._call(function)
            if not due and not has_waited:
                time.sleep(0)  # others have a turn of the interpreter while this thread looks at the clock

    def _wait(self, now_ns: int) -> bool:
        """Wait until a change, or until shortly before the first function is due. False if that is too soon to wait."""
        if not self._queue:
            self._changed.wait()
            return True
        left_ns = self._queue[0][0] - now_ns
        length = min(left_ns.bit_length(), _LENGTHS)
        lead_ns = self._leads_ns[length]
        if left_ns <= lead_ns:
            return False
        wait_ns = left_ns - lead_ns
        if self._changed.wait(min(wait_ns / 1e9, _WAIT_S)):
            return True
        # Less than 0 after a wait of an hour for something that is due in years.
        late_ns = max(time.monotonic_ns() - now_ns - wait_ns, 0)
        more_ns = min(late_ns, _LEAD_NS_MAX) - lead_ns
        self._leads_ns[length] = lead_ns + (more_ns >> (_LATER_SHIFT if more_ns > 0 else _EARLIER_SHIFT))
        return True

    def _call(self, function: Callable[[], object]) -> None:
        try:  # the boundary of a wake-up: a failure does not stop the others
            function()
        except Exception:
            log.exception("an answer that was held is not given")
