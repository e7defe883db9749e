"""Submission and completion queues in guest memory.

Invariant: the commands of a submission queue are carried out in order, so its head is the number of those that were. A
guest may reuse an entry only after a completion with a head beyond it, so the entries of commands that were not carried
out stay as they are. Unless answers are held (:mod:`held_answers`), a command is answered when it was carried out.

The position of a queue is in memory that outlives this process (:mod:`drive_record`).
"""

from typing import TYPE_CHECKING, Final

from zonefs_emu.inflight.holding_record import HoldingRecord
from zonefs_emu.nvme.command import ENTRY_BYTES
from zonefs_emu.virtio.memory import BadAddressError, GuestMemory

if TYPE_CHECKING:
    from zonefs_emu.vfio_user.held_answers import HeldAnswers
    from zonefs_emu.vfio_user.queue_walker import QueueWalker

COMPLETION_BYTES: Final = 16


def queue_view(memory: GuestMemory, base: int, nr_bytes: int) -> memoryview:
    """Return the *nr_bytes* of a queue at guest address *base*.

    Raises:
        BadAddressError: they are not memory, or not contiguous.
    """
    found = memory.slices(base, nr_bytes)
    if len(found) > 1:
        message = f"a queue of {nr_bytes} bytes at {base:#x} lies in {len(found)} pieces of memory; it must lie in one"
        raise BadAddressError(message)
    return found[0]


class CompletionQueue:
    """Completions for the guest. *vector*: the interrupt that announces them; -1: none."""

    def __init__(self, number: int, base: int, size: int, vector: int, tails: "memoryview[int]") -> None:
        """*tails* has a word for each completion queue, in which :meth:`note` stores its position."""
        self.number = number
        self.base = base
        self.size = size
        self.vector = vector
        #: The index of the next completion, and its phase tag, by which the guest recognizes it as new.
        self.tail = 0
        self.phase = 1
        #: The last value of the doorbell: the guest has read the completions before this one.
        self.head = 0
        #: Whether completions were stored since the last interrupt.
        self.is_unannounced = False
        #: The completions as words of 8 bytes, once the queue is placed.
        self.words = memoryview(b"").cast("Q")
        self.tails = tails

    def place(self, memory: GuestMemory) -> None:
        """Use *memory* from now on.

        Raises:
            BadAddressError: the queue does not lie in it.
        """
        self.words = queue_view(memory, self.base, self.size * COMPLETION_BYTES).cast("Q")

    @property
    def is_full(self) -> bool:
        """Whether the queue is full: the guest must take completions before one can be posted."""
        tail = self.tail + 1
        return (0 if tail == self.size else tail) == self.head

    def post(self, result: int, sq_head: int, sq_number: int, cid: int, status_field: int) -> None:
        """Store a completion. Its second half has the phase tag and is stored at once, after the first."""
        words, tail = self.words, self.tail
        words[2 * tail] = result
        words[2 * tail + 1] = sq_head | sq_number << 16 | cid << 32 | (status_field << 1 | self.phase) << 48
        tail += 1
        if tail == self.size:
            tail = 0
            self.phase ^= 1
        self.tail = tail
        self.is_unannounced = True

    @property
    def word(self) -> int:
        """Tail and phase as one word."""
        return self.tail << 1 | self.phase

    def note(self) -> None:
        """Note that all completions before the tail are posted."""
        self.tails[self.number] = self.tail << 1 | self.phase

    def take_posted(self) -> tuple[int, int] | None:
        """Move the tail past a completion that was posted and not noted; return its submission queue and head."""
        word = self.words[2 * self.tail + 1]
        if word >> 48 & 1 != self.phase:
            return None
        self.tail += 1
        if self.tail == self.size:
            self.tail = 0
            self.phase ^= 1
        return word >> 16 & 0xFFFF, word & 0xFFFF


class SubmissionQueue:
    """Commands of the guest."""

    def __init__(
        self, number: int, base: int, size: int, completions: CompletionQueue, ring: HoldingRecord | None
    ) -> None:
        """*ring* is the record of an I/O queue."""
        self.number = number
        self.base = base
        self.size = size
        self.completions = completions
        self.ring = ring
        #: The answers that are held, of an I/O queue of a timed drive.
        self.answers: HeldAnswers | None = None
        self.head = 0
        #: Whether the worker has the command at the head.
        self.is_busy = False
        #: Whether the queue is no longer served: the guest has broken or deleted it.
        self.is_over = False
        self.entries = memoryview(b"")
        #: Executes plain commands at the head; None where all commands are Python's.
        self.walker: QueueWalker | None = None

    def place(self, memory: GuestMemory) -> None:
        """Use *memory* from now on.

        Raises:
            BadAddressError: the queue does not lie in it.
        """
        self.entries = queue_view(memory, self.base, self.size * ENTRY_BYTES)

    @property
    def is_full(self) -> bool:
        """Whether an answer that is held must be given before the next command is carried out."""
        return self.answers is not None and not self.answers.can_take

    @property
    def is_due(self) -> bool:
        """Whether an answer that is held can be given."""
        return self.answers is not None and not self.is_over and self.answers.is_due

    def give_due(self) -> bool:
        """Give the held answers that are due; True if there was one."""
        return self.answers is not None and not self.is_over and self.answers.give_due()

    def give_all(self) -> None:
        """Give all held answers that the guest has room for."""
        if self.answers is not None and not self.is_over:
            self.answers.give_all()

    def advance(self) -> int:
        """Note that the command at the head is carried out; return the head."""
        head = self.head + 1
        self.head = head = 0 if head == self.size else head
        return head


class ShadowDoorbells:
    """The shadow doorbells in guest memory, and the event index, which says when the guest must ring a real doorbell.

    The guest stores each doorbell in the shadow, and writes the real one only if the value passes that in
    *event_index*. Source: NVM Express Base Specification 2.0, "Doorbell Buffer Config command".
    """

    def __init__(self, doorbells_base: int, event_index_base: int) -> None:
        self.doorbells_base = doorbells_base
        self.event_index_base = event_index_base
        self.doorbells = memoryview(b"").cast("I")
        self.event_index = memoryview(b"").cast("I")

    @property
    def bases(self) -> tuple[int, int]:
        """Where both lie in guest memory."""
        return self.doorbells_base, self.event_index_base

    def place(self, memory: GuestMemory, page_bytes: int) -> None:
        """Use *memory* from now on.

        Raises:
            BadAddressError: the pages do not lie in it.
        """
        self.doorbells = queue_view(memory, self.doorbells_base, page_bytes).cast("I")
        self.event_index = queue_view(memory, self.event_index_base, page_bytes).cast("I")
