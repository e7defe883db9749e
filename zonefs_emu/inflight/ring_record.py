"""The record of one virtqueue, by which a server that takes over neither loses nor repeats a request.

Requests are executed and given back in the order of the ring, so the unfinished ones are those from the used index on.
The record has the number of finished requests, which numbers all requests, and the intent of each request that changes
a zone.

The front-end (with VDUSE, a file) keeps the memory and does not read it. All fields are 8-byte words, each stored at
once.

::

    for each queue             word
    header (8 words)              0  magic, version, packed or split, queue size
                                  1  requests finished; packed: that << 16 | position of the next used descriptor
                                  2  packed: word 1 as it will be once the ring shows the next one given back
                                  3  committed: position << 16 | n: n changes of the request at position have happened
                                4-7  0
    slot (4 words)                0  position + 1, or 0: no intent
    at position % queue size    1, 2  the intent (slot.py)
                                  3  which change of the request this is, from 0

A request's *position* is how many requests of its queue were finished before it. Words 1 to 3 of a slot are stored
before its word 0.

* Split: the used index in the ring is the truth; word 1 follows it, and the difference is what was given back last.
* Packed: for each request word 2 is stored, the ring is changed by one store, word 1 is stored. If words 1 and 2
  differ, the descriptor at the old position says whether the ring was changed.
"""

from collections.abc import Sequence
from typing import Final

from zonefs_emu.device.intent_log import ALL_ZONES, Intent
from zonefs_emu.inflight.slot import COND_SHIFT, OPERATION_SHIFT, WORD_BYTES, decode
from zonefs_emu.inflight.slot_stores import store_intent
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import Sector

MAGIC: Final = 0x5A564946  # "ZVIF"
VERSION: Final = 1
HEADER_WORDS: Final = 8
SLOT_WORDS: Final = 4
_ALIGNMENT_BYTES: Final = 64
_COUNT_MASK: Final = 0xFFFF
#: Numbers of requests stay below this, so that there is room for 16 bits beside them. No queue lives to see so many: a
#: record with a greater number is corrupt and does not count.
POSITION_MAX: Final = 1 << 47
_CONDITIONS: Final = frozenset(Condition)


def record_bytes(queue_size: int) -> int:
    """Return the bytes of the record of one queue."""
    nr_bytes = (HEADER_WORDS + SLOT_WORDS * queue_size) * WORD_BYTES
    return -(-nr_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


class RingRecord:
    """The record of one queue; a :class:`zonefs_emu.device.intent_log.IntentLog`."""

    def __init__(self, memory: memoryview, queue_size: int, *, packed: bool) -> None:
        """Use *memory* (:func:`record_bytes`), which outlives this process; it counts if it is of this ring."""
        self._words = memory.cast("Q")
        self._size = queue_size
        self._stamp = MAGIC | VERSION << 32 | int(packed) << 40 | queue_size << 48
        self._position = 0
        self._spans: Sequence[tuple[int, int]] = ()
        self._count = 0
        self._recover_end = 0
        #: How many requests were finished since the record began.
        self.finished = 0

    # -- starting a ring --------------------------------------------------------------------------------------

    def _clear(self) -> None:
        words = self._words
        words[0] = 0
        for index in range(1, HEADER_WORDS + SLOT_WORDS * self._size):
            words[index] = 0

    def start_split(self, used_idx: int) -> None:
        """Begin, or go on after a restart, with a split ring whose used index is *used_idx*."""
        words = self._words
        behind = (used_idx - words[1]) & 0xFFFF
        if words[0] != self._stamp or behind > self._size or words[1] >= POSITION_MAX:
            self._clear()
            self.finished = used_idx
        else:
            self.finished = words[1] + behind
            self._recover_end = self.finished + self._size
        words[1] = self.finished
        words[0] = self._stamp

    def leave(self) -> None:
        """Store in memory of this process only from now on: a request is abandoned that may still note what it does."""
        self._words = memoryview(bytearray(self._words.nbytes)).cast("Q")

    @property
    def recorded(self) -> int:
        """How many requests were finished as an earlier process has noted it; any number if it is not of this ring."""
        return self._words[1]

    @property
    def was_begun(self) -> bool:
        """Whether an earlier process has begun to change a zone for the request that is the next one."""
        finished = self.finished
        at = HEADER_WORDS + finished % self._size * SLOT_WORDS
        return finished < self._recover_end and self._words[at] == finished + 1

    def start_packed(self, position: int) -> int | None:
        """Begin, or go on after a restart, with a packed ring.

        Returns the position of the next used descriptor as an earlier process left it, which the caller looks at and
        then calls :meth:`recover_packed`; or None if there is no record, and the ring begins at *position*.
        """
        words = self._words
        if words[0] != self._stamp or max(words[1], words[2]) >> 16 >= POSITION_MAX:
            self._clear()
            self.finished = 0
            words[1] = words[2] = position
            words[0] = self._stamp
            return None
        return words[1] & 0xFFFF

    def recover_packed(self, *, given_back: bool) -> int:
        """Return the position to go on at; *given_back*: the ring shows what was being given back."""
        words = self._words
        state = words[2] if given_back and words[1] != words[2] else words[1]
        words[2] = state
        words[1] = state
        self.finished = state >> 16
        self._recover_end = self.finished + self._size
        return state & 0xFFFF

    # -- finishing --------------------------------------------------------------------------------------------

    def finish_split(self, count: int) -> None:
        """Note that the driver has been shown *count* more requests."""
        self.finished = finished = self.finished + count
        self._words[1] = finished

    def before_packed(self, position: int) -> None:
        """Note that one more request is about to be shown to the driver, after which *position* is the next."""
        self._words[2] = (self.finished + 1) << 16 | position

    def finish_packed(self) -> None:
        """Note that the driver has been shown the request of :meth:`before_packed`."""
        self.finished += 1
        self._words[1] = self._words[2]

    # -- intent log -------------------------------------------------------------------------------------------

    def start_request(self, ahead: int, spans: Sequence[tuple[int, int]]) -> None:
        """Note that the request *ahead* of those finished is executed now; *spans*: several at once, as one write."""
        self._position = self.finished + ahead
        self._spans = spans
        self._count = 0

    def recover(self, operation: Operation, sector: Sector, nr_sectors: int) -> Intent | None:
        """Return the intent of a change of the present request; see :class:`IntentLog`."""
        position = self._position
        if position >= self._recover_end:
            return None
        words = self._words
        at = HEADER_WORDS + position % self._size * SLOT_WORDS
        has_intent = words[at] == position + 1
        ordinal = words[at + 3]
        committed = words[3]
        if committed >> 16 == position:
            is_done = self._count < committed & _COUNT_MASK
        else:
            is_done = committed >> 16 > position and has_intent and self._count <= ordinal
        if not is_done and not (has_intent and ordinal == self._count):
            return None
        where, cond = sector, Condition.NOT_WP
        if has_intent and ordinal == self._count:
            found = decode(words[at + 1], words[at + 2])
            if found.nr_sectors != nr_sectors or found.operation != operation:
                return None  # the intent of another request: the guest has changed this one
            where = found.sector
            if (where != sector and operation is not Operation.APPEND) or found.cond not in _CONDITIONS:
                return None
            cond = Condition(found.cond)
        return Intent(operation, where, nr_sectors, cond, is_done, all_zones=nr_sectors == ALL_ZONES)

    @property
    def recovering(self) -> bool:
        """Whether an earlier process may have begun the next request; such requests are executed one by one."""
        return self.finished < self._recover_end

    def begin(self, operation: Operation, sector: Sector, nr_sectors: int, cond: int) -> None:
        """Store an intent; see the protocol."""
        words = self._words
        size = self._size
        position = self._position
        kind = operation << OPERATION_SHIFT | cond << COND_SHIFT
        if self._spans:
            for sector, nr_sectors in self._spans:  # noqa: PLR1704  (the parts instead of the whole)
                at = HEADER_WORDS + position % size * SLOT_WORDS
                position += 1
                store_intent(words, at, position, sector, nr_sectors | kind, 0)
            return
        at = HEADER_WORDS + position % size * SLOT_WORDS
        store_intent(words, at, position + 1, sector, nr_sectors | kind, self._count)

    def commit(self) -> None:
        """Note that the change has happened; see the protocol."""
        if self._spans:
            word = (self._position + len(self._spans) - 1) << 16 | 1
        else:
            self._count += 1
            word = self._position << 16 | self._count
        # The word must not go down: while requests of an earlier process are recovered, later ones may have committed.
        self._words[3] = max(self._words[3], word)

    def abort(self) -> None:
        """Forget the change that was begun; see the protocol."""
        for position in range(self._position, self._position + max(len(self._spans), 1)):
            self._words[HEADER_WORDS + position % self._size * SLOT_WORDS] = 0
