"""The queues of one controller: the commands that create and delete them, doorbells, and recovery after a kill.

May not know: the effect of commands in the queues.
"""

import select
import time
from collections.abc import Callable
from typing import Final

from zonefs_emu.nvme.answer import SUCCESS, Answer, RefusedError
from zonefs_emu.nvme.command import Command
from zonefs_emu.nvme.controller import QUEUE_ENTRIES_MAX
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.polling import AdaptivePolling, Gathering
from zonefs_emu.vfio_user.drive_memory import DriveMemory
from zonefs_emu.vfio_user.drive_queues import CompletionQueue, ShadowDoorbells, SubmissionQueue
from zonefs_emu.vfio_user.drive_record import DriveRecord, QueuesState
from zonefs_emu.vfio_user.guest_memory_map import GuestMemoryMap
from zonefs_emu.vfio_user.interrupts import Interrupts
from zonefs_emu.vfio_user.page_list import PAGE_BYTES
from zonefs_emu.vfio_user.pci_config import NR_VECTORS
from zonefs_emu.virtio.memory import BadAddressError

_CONTIGUOUS: Final = 1
_INTERRUPTS: Final = 2
#: The event index of a completion queue's head, with which the guest rings only when the head passes the queue's end.
_NEVER: Final = 0xFFFF
#: How often the doorbells are looked at between two system calls.
_LOOKS_AT_ONCE: Final = 16


class QueueSet:
    """The queues by their numbers; number 0 is the admin queue."""

    def __init__(
        self, bar: DriveMemory, record: DriveRecord, guest: GuestMemoryMap, hold: Callable[[SubmissionQueue], None]
    ) -> None:
        """Begin without queues. *hold* is called with each submission queue before a command of it is carried out."""
        self.sqs: dict[int, SubmissionQueue] = {}
        self.cqs: dict[int, CompletionQueue] = {}
        self.shadow: ShadowDoorbells | None = None
        self._gathering = Gathering()
        self._bar = bar
        self._record = record
        self._guest = guest
        self._hold = hold

    def clear(self) -> None:
        """Drop all queues."""
        self.sqs.clear()
        self.cqs.clear()
        self.shadow = None

    def place(self) -> None:
        """Find all queues in the present guest memory.

        Raises:
            BadAddressError: a queue is not in it.
        """
        memory = self._guest.memory
        for completions in self.cqs.values():
            completions.place(memory)
        for queue in self.sqs.values():
            queue.place(memory)
        if self.shadow is not None:
            self.shadow.place(memory, PAGE_BYTES)

    def give_all(self, interrupts: Interrupts) -> None:
        """Give all answers that are held."""
        for queue in self.sqs.values():
            queue.give_all()
        self.announce(interrupts)

    def announce(self, interrupts: Interrupts) -> None:
        """Signal the interrupts of the stored completions, one for each queue, and those that were masked before."""
        interrupts.signal_latched()
        for queue in self.cqs.values():
            if queue.is_unannounced:
                queue.is_unannounced = False
                if queue.vector >= 0:
                    interrupts.signal(queue.vector)

    # -- doorbells ------------------------------------------------------------------------------------------------

    def tail(self, queue: SubmissionQueue) -> int:
        """Return the guest's tail of *queue*, which may be any number."""
        if self.shadow is not None and queue.number:
            return self.shadow.doorbells[2 * queue.number]
        return self._bar.doorbells[2 * queue.number]

    def head(self, queue: CompletionQueue) -> int:
        """Return the guest's head of *queue*, which may be any number."""
        at = 2 * queue.number + 1
        shadow = self.shadow if queue.number else None
        return self._bar.doorbells[at] if shadow is None else shadow.doorbells[at]

    def look(self, can_take: Callable[[SubmissionQueue], bool], polling: AdaptivePolling) -> bool:
        """Poll the shadow doorbells as *polling* says; True as soon as there is a command that *can_take* allows.

        Returns at once while the worker has a command, because polling would keep the interpreter from the worker, and
        where answers are held, because the time that they are due ends a sleep and not a look.

        A guest that sends a command before it has taken the last completions has several under way, which are then
        left to gather.
        """
        queues = [queue for queue in self.sqs.values() if queue.number]
        gathering = self._gathering
        if (
            not (polling.look_ns or gathering.pause_ns)
            or self.shadow is None
            or any(queue.is_busy or queue.answers is not None for queue in queues)
        ):
            return False
        waiting = [queue for queue in queues if can_take(queue)]
        doorbells, clock, give_way = self.shadow.doorbells, time.monotonic_ns, select.poll().poll
        if gathering.pause_ns:
            return self._pause(waiting)
        places = [(2 * queue.number, queue.head, queue.completions) for queue in waiting] * _LOOKS_AT_ONCE
        end_ns = clock() + polling.look_ns
        while places and clock() < end_ns:
            # Other threads of the daemon, such as that of a mount, get the interpreter during this system call only.
            give_way(0)
            for place, head, completions in places:
                if doorbells[place] != head:
                    if self.head(completions) != completions.tail:
                        gathering.begin()
                    return True
        return False

    def _pause(self, queues: list[SubmissionQueue]) -> bool:
        """Sleep while commands of *queues* gather; return whether there are some."""
        assert self.shadow is not None, "a guest with real doorbells wakes the drive by each"
        doorbells = self.shadow.doorbells

        def count() -> int:
            return sum((doorbells[2 * queue.number] - queue.head) % queue.size for queue in queues)

        return self._gathering.gather(time.sleep, count) > 0

    def ask_for_doorbells(self) -> None:
        """Make the guest ring real doorbells again, if it uses shadow doorbells."""
        shadow = self.shadow
        if shadow is None:
            return
        for queue in self.sqs.values():
            if queue.number and not queue.is_busy:
                shadow.event_index[2 * queue.number] = queue.head
                completions = queue.completions
                if completions.is_full:
                    shadow.event_index[2 * completions.number + 1] = completions.head

    def _start_doorbell(self, index: int, event_index: int) -> None:
        self._bar.doorbells[index] = 0
        if self.shadow is not None:
            self.shadow.doorbells[index] = 0
            self.shadow.event_index[index] = event_index

    # -- creating and deleting ------------------------------------------------------------------------------------

    def create_admin(self, asq: int, sq_size: int, acq: int, cq_size: int) -> None:
        """Create the admin queues, of these addresses and sizes in entries.

        Raises:
            BadAddressError: they are not memory.
        """
        completions = CompletionQueue(0, acq, cq_size, 0, self._record.tails)
        submissions = SubmissionQueue(0, asq, sq_size, completions, None)
        completions.place(self._guest.memory)
        submissions.place(self._guest.memory)
        self._start_doorbell(0, 0)
        self._start_doorbell(1, 0)
        completions.note()
        self.cqs[0], self.sqs[0] = completions, submissions

    def create_cq(self, command: Command, granted: int) -> Answer:
        """Carry out Create I/O Completion Queue; *granted* is how many queues there may be.

        Raises:
            RefusedError: the number is in use or above *granted* (NVME_QUEUE_ID), the size (NVME_QUEUE_SIZE) or the
                interrupt vector (NVME_VECTOR) is wrong, or the queue is not contiguous (NVME_FIELD), not at the
                beginning of a page (NVME_PRP) or not in one piece of memory (NVME_MEMORY).

        Source: NVM Express Base Specification 2.0, "Create I/O Completion Queue command".
        """
        number, size = _checked_queue(command, self.cqs, granted)
        vector = command.cdw11 >> 16 if command.cdw11 & _INTERRUPTS else -1
        if vector >= NR_VECTORS:
            raise RefusedError(NvmeRule.NVME_VECTOR, f"interrupt vector {vector}")
        queue = CompletionQueue(number, command.prp1, size, vector, self._record.tails)
        self._place(queue)
        queue.note()
        self.cqs[number] = queue
        self._start_doorbell(2 * number + 1, _NEVER)
        return SUCCESS

    def create_sq(self, command: Command, granted: int) -> SubmissionQueue:
        """Carry out Create I/O Submission Queue, and return the queue; *granted* is how many queues there may be.

        Raises:
            RefusedError: as :meth:`create_cq`, without the vector; or the completion queue that it names does not exist
                or is that of the admin queue (NVME_COMPLETION_QUEUE).

        Source: NVM Express Base Specification 2.0, "Create I/O Submission Queue command".
        """
        number, size = _checked_queue(command, self.sqs, granted)
        completions = self.cqs.get(command.cdw11 >> 16)
        if completions is None or not completions.number:
            raise RefusedError(NvmeRule.NVME_COMPLETION_QUEUE, f"completion queue {command.cdw11 >> 16}")
        queue = SubmissionQueue(number, command.prp1, size, completions, self._record.new_ring(number, size))
        self._place(queue)
        self._hold(queue)
        self.sqs[number] = queue
        self._start_doorbell(2 * number, 0)
        return queue

    def _place(self, queue: CompletionQueue | SubmissionQueue) -> None:
        try:
            queue.place(self._guest.memory)
        except BadAddressError as error:
            raise RefusedError(NvmeRule.NVME_MEMORY, str(error)) from None

    def deletable_sq(self, command: Command) -> SubmissionQueue:
        """Return the queue that Delete I/O Submission Queue names.

        Raises:
            RefusedError: there is none.
        """
        number = command.cdw10 & 0xFFFF
        queue = self.sqs.get(number) if number else None
        if queue is None:
            raise RefusedError(NvmeRule.NVME_QUEUE_ID, f"submission queue {number}")
        return queue

    def delete_cq(self, command: Command) -> Answer:
        """Carry out Delete I/O Completion Queue.

        Raises:
            RefusedError: there is none, or it is used.
        """
        number = command.cdw10 & 0xFFFF
        queue = self.cqs.get(number) if number else None
        if queue is None:
            raise RefusedError(NvmeRule.NVME_QUEUE_ID, f"completion queue {number}")
        if any(user.completions is queue for user in self.sqs.values()):
            raise RefusedError(NvmeRule.NVME_QUEUE_DELETION, f"completion queue {number}, which is used")
        del self.cqs[number]
        return SUCCESS

    def set_shadow(self, command: Command) -> Answer:
        """Use shadow doorbells for I/O queues from now on; they begin with the values of the real ones.

        Raises:
            RefusedError: they are not in pages, or not in memory.
        """
        if (command.prp1 | command.prp2) & (PAGE_BYTES - 1):
            raise RefusedError(NvmeRule.NVME_PRP, f"shadow doorbells at {command.prp1:#x} and {command.prp2:#x}")
        shadow = ShadowDoorbells(command.prp1, command.prp2)
        try:
            shadow.place(self._guest.memory, PAGE_BYTES)
        except BadAddressError as error:
            raise RefusedError(NvmeRule.NVME_MEMORY, str(error)) from None
        for number in self.sqs.keys() - {0}:
            shadow.doorbells[2 * number] = self._bar.doorbells[2 * number]
            shadow.event_index[2 * number] = self._bar.doorbells[2 * number]
        for number in self.cqs.keys() - {0}:
            shadow.doorbells[2 * number + 1] = self._bar.doorbells[2 * number + 1]
            shadow.event_index[2 * number + 1] = _NEVER
        self.shadow = shadow
        return SUCCESS

    # -- going on in another process ------------------------------------------------------------------------------

    def state(self) -> QueuesState:
        """Return what :meth:`load` takes over."""
        return {
            "cqs": [(queue.number, queue.base, queue.size, queue.vector) for queue in self.cqs.values()],
            "sqs": [(queue.number, queue.base, queue.size, queue.completions.number) for queue in self.sqs.values()],
            "shadow": self.shadow.bases if self.shadow is not None else None,
            "admin_head": self.sqs[0].head if 0 in self.sqs else 0,
        }

    def load(self, state: QueuesState) -> None:
        """Take over the queues of an earlier process; :meth:`recover` determines their positions."""
        tails = self._record.tails
        for number, base, size, vector in state["cqs"]:
            completions = self.cqs[number] = CompletionQueue(number, base, size, vector, tails)
            completions.tail, completions.phase = tails[number] >> 1, tails[number] & 1
        for number, base, size, cq in state["sqs"]:
            ring = self._record.ring(number, size) if number else None
            self.sqs[number] = SubmissionQueue(number, base, size, self.cqs[cq], ring)
        if state["shadow"] is not None:
            self.shadow = ShadowDoorbells(*state["shadow"])

    def recover(self, admin_head: int) -> None:
        """Determine which commands were answered: those that the record counts, and perhaps one more.

        A completion is stored first, then the head of its submission queue is noted, then the tail of its completion
        queue. So a completion at the noted tail was the last one. The head in it says whether its command was noted.
        A queue that held answers has noted that it was giving one, because their order says nothing of the head.
        """
        posted = [found for queue in self.cqs.values() if (found := queue.take_posted()) is not None]
        for number, queue in self.sqs.items():
            if queue.ring is None:
                queue.head = admin_head
                continue
            finished = queue.ring.recorded
            if queue.ring.was_holding:
                finished += queue.ring.was_giving and any(each[0] == number for each in posted)
            else:
                following = (finished + 1) % queue.size
                finished += any(each == (number, following) for each in posted)
            queue.ring.start_split(finished & 0xFFFF)
            queue.head = queue.ring.finished % queue.size
            self._hold(queue)
        for completions in self.cqs.values():
            completions.note()


def _checked_queue(
    command: Command, queues: dict[int, SubmissionQueue] | dict[int, CompletionQueue], granted: int
) -> tuple[int, int]:
    """Return number and size of the queue that *command* creates; raise RefusedError as the two callers say."""
    number, size = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
    if not 0 < number <= granted or number in queues:
        raise RefusedError(NvmeRule.NVME_QUEUE_ID, f"queue {number}")
    if not 1 < size <= QUEUE_ENTRIES_MAX + 1:
        raise RefusedError(NvmeRule.NVME_QUEUE_SIZE, f"queue {number} of {size} entries")
    if not command.cdw11 & _CONTIGUOUS:
        raise RefusedError(NvmeRule.NVME_FIELD, f"queue {number}, which is not contiguous")
    if command.prp1 & (PAGE_BYTES - 1):
        raise RefusedError(NvmeRule.NVME_PRP, f"queue {number} at {command.prp1:#x}")
    return number, size
