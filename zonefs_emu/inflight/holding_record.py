"""The record of a virtqueue whose answers may be held: given later than the next ones, in any order.

While answers are held, the header says version 2, and its words and those of a slot have these meanings besides
(:mod:`ring_record`):

::

    header, word 1   requests carried out; packed: that << 16 | position of the next request
                 4   answers given << 16 | packed: position of the next used descriptor
                 5   word 4 as it will be once the driver is shown the next answer
                 6   the number of that answer
    slot,   word 0   HELD | number: the answer to the request of this number, from 1; it may lie in any slot
              1, 2   the answer
                 3   packed: position of the request after it

A slot thus has an intent, an answer, or nothing that counts. Requests are carried out in the order of the ring, one at
a time. A kill may come between any two of these steps:

1. A request is carried out with its intent, in its own slot.
2. Its answer is stored in another slot, word 0 last. From then on it counts as carried out.
3. Word 1 follows.

To give an answer, words 6 and 5 are stored, the driver is shown it, its slot is emptied, and word 4 follows. If words 4
and 5 differ after a kill, the ring says whether the answer was given.

The answer lies in a slot of its own, because until it counts the intent must count, and a store into the intent's slot
would make that another one. So two slots are kept free, and one request of a full ring is carried out when others have
been answered. Rejected: a table of answers behind the slots, which would make records longer than those that guests
have which were started before.
"""

from typing import Final

from zonefs_emu.inflight.ring_record import HEADER_WORDS, POSITION_MAX, SLOT_WORDS, VERSION, RingRecord

_HOLDING_VERSION: Final = 2
HELD: Final = 1 << 63
_COUNT_SHIFT: Final = 16
_POSITION_MASK: Final = 0xFFFF
#: Slots that must be free where a request is carried out: one for its answer, one for an answer that lies in its own.
_FREE_MIN: Final = 2


class HoldingRecord(RingRecord):
    """A record that answers in order, as :class:`RingRecord`, or holds them, from :meth:`begin_holding` on.

    It goes on with one that held answers in either case: :attr:`held` are then to be given first.
    """

    def __init__(self, memory: memoryview, queue_size: int, *, packed: bool) -> None:
        """See :class:`RingRecord`."""
        super().__init__(memory, queue_size, packed=packed)
        self._holding_stamp = self._stamp ^ (VERSION ^ _HOLDING_VERSION) << 32
        self._shift = _COUNT_SHIFT if packed else 0
        #: The places of held answers, and of the intents of later requests, by the numbers of the requests; and free
        #: places.
        self._held: dict[int, int] = {}
        self._free: list[int] = []
        self._intents: dict[int, int] = {}

    # -- starting a ring --------------------------------------------------------------------------------------

    @property
    def held(self) -> list[tuple[int, int, int]]:
        """The answers that are held: (number, and the two words of :meth:`hold`), the oldest first."""
        words = self._words
        return [(number, words[at + 1], words[at + 2]) for number, at in sorted(self._held.items())]

    @property
    def was_holding(self) -> bool:
        """Whether an earlier process held answers."""
        return self._words[0] == self._holding_stamp

    @property
    def was_giving(self) -> bool:
        """Whether an earlier process that held answers was giving one: the driver may have been shown it."""
        return self._words[4] != self._words[5]

    @property
    def recorded(self) -> int:
        """How many answers were given as an earlier process has noted it; any number if it is not of this ring."""
        return self._words[4] >> _COUNT_SHIFT if self.was_holding else super().recorded

    def start_split(self, used_idx: int) -> None:
        """See :meth:`RingRecord.start_split`."""
        words = self._words
        if words[0] != self._holding_stamp:
            super().start_split(used_idx)
            return
        is_given = words[4] != words[5] and words[5] >> _COUNT_SHIFT & 0xFFFF == used_idx
        if not self._find_held() or words[5 if is_given else 4] >> _COUNT_SHIFT & 0xFFFF != used_idx:
            self._held.clear()
            self._clear()
            super().start_split(used_idx)
            return
        self._settle(is_given=is_given)

    def start_packed(self, position: int) -> int | None:
        """See :meth:`RingRecord.start_packed`."""
        if self._words[0] == self._holding_stamp and self._find_held():
            return self._words[4] & _POSITION_MASK
        self._held.clear()
        return super().start_packed(position)

    def recover_packed(self, *, given_back: bool) -> int:
        """Return the position of the next request; see :meth:`RingRecord.recover_packed`."""
        words = self._words
        if words[0] != self._holding_stamp:
            return super().recover_packed(given_back=given_back)
        self._settle(is_given=given_back and words[4] != words[5])
        return words[1] & _POSITION_MASK

    @property
    def used_position(self) -> int:
        """The position of the next used descriptor of a packed ring, after :meth:`recover_packed`."""
        return self._words[4 if self._words[0] == self._holding_stamp else 1] & _POSITION_MASK

    def _find_held(self) -> bool:
        """Find the answers that an earlier process held; False if the record contradicts itself, and does not count."""
        words, held = self._words, self._held
        if max(words[1] >> self._shift, words[4] >> _COUNT_SHIFT) >= POSITION_MAX:
            return False
        for at in range(HEADER_WORDS, HEADER_WORDS + SLOT_WORDS * self._size, SLOT_WORDS):
            number = words[at] ^ HELD
            if number < HELD:
                if number in held:
                    words[at] = 0  # it was being moved
                else:
                    held[number] = at
        executed = words[1] >> self._shift
        at = held.get(executed + 1, 0)
        if at:
            executed += 1
            words[1] = executed << _COUNT_SHIFT | words[at + 3] & _POSITION_MASK if self._shift else executed
        given, following = words[4] >> _COUNT_SHIFT, words[5] >> _COUNT_SHIFT
        nr_held = len(held)
        if words[4] != words[5]:
            if following != given + 1:
                return False
            given, nr_held = following, nr_held - (words[6] in held)
        return nr_held == executed - given and all(0 < number <= executed for number in held)

    def _settle(self, *, is_given: bool) -> None:
        """Go on, where the driver has been shown what was being given, or (not *is_given*) has not."""
        words = self._words
        if is_given:
            at = self._held.pop(words[6], 0)
            if at:
                words[at] = 0
            words[4] = words[5]
        else:
            words[5] = words[4]
        self.finished = words[1] >> self._shift
        self._recover_end = self.finished + self._size

    # -- holding ----------------------------------------------------------------------------------------------

    def begin_holding(self, position: int) -> None:
        """Have answers held from now on. Nothing is; *position*: of the next used descriptor of a packed ring."""
        words, size = self._words, self._size
        words[4] = words[5] = self.finished << _COUNT_SHIFT | position
        words[0] = self._holding_stamp
        self._intents.clear()
        self._free.clear()
        for slot in range(size):
            at = HEADER_WORDS + SLOT_WORDS * slot
            number = words[at]
            if self.finished < number <= self.finished + size and (number - 1) % size == slot:
                self._intents[number] = at
            else:
                self._free.append(at)

    def end_holding(self) -> None:
        """Answer in order from now on; nothing is held."""
        assert not self._held
        self._words[2] = self._words[1]
        self._words[0] = self._stamp

    @property
    def can_hold(self) -> bool:
        """Whether there is room for the answer to one more request."""
        return len(self._free) >= _FREE_MIN

    def make_way(self) -> None:
        """Make the slot of the next request free for its intent."""
        words = self._words
        own = self._own_slot
        number = words[own] ^ HELD
        if number < HELD:
            at = self._free.pop()
            for word in (1, 2, 3, 0):
                words[at + word] = words[own + word]
            words[own] = 0
            self._held[number] = at
            self._free.append(own)

    @property
    def _own_slot(self) -> int:
        return HEADER_WORDS + self.finished % self._size * SLOT_WORDS

    def hold(self, first: int, second: int, position: int) -> int:
        """Note that the next request is carried out, with its answer *first*, *second*; returns the answer's number.

        *position*: of the request after it, in a packed ring.
        """
        words, free = self._words, self._free
        own = self._own_slot
        at = free.pop()
        if at == own:
            at = free.pop()
            free.append(own)
        number = self.finished + 1
        words[at + 1] = first
        words[at + 2] = second
        words[at + 3] = position
        words[at] = HELD | number
        self._held[number] = at
        self.finished = number
        words[1] = number << _COUNT_SHIFT | position if self._shift else number
        done = self._intents.pop(number, 0)
        if done:
            free.append(done)
        return number

    def before_giving(self, number: int, position: int) -> None:
        """Note that an answer is about to be shown to the driver, after which *position* is that of the next."""
        words = self._words
        words[6] = number
        words[5] = (words[4] >> _COUNT_SHIFT) + 1 << _COUNT_SHIFT | position

    def note_given(self, number: int) -> None:
        """Note that the driver has been shown the answer of :meth:`before_giving`."""
        words = self._words
        at = self._held.pop(number)
        words[at] = 0
        words[4] = words[5]
        self._free.append(at)
