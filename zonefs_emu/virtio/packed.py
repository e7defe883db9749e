"""The packed ring.

Source: virtio 1.4, "Packed Virtqueues". Driver and device overwrite the descriptors of one ring in turn. The AVAIL and
USED flags of a descriptor, compared with the wrap counter, say which of the two owns it. This module counts places in
the ring from the start and without wrapping: the lowest bit of place // size gives the wrap counter (even: 1), and
place % size is the slot.
"""

import struct
from collections.abc import Sequence
from typing import Final

from zonefs_emu.virtio.memory import GuestMemory
from zonefs_emu.virtio.ring import (
    CHAIN_BYTES_MAX,
    CHAIN_DESCRIPTORS_MAX,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    BrokenRingError,
    Chain,
    Fence,
    OversizedChainError,
    Ring,
    check_bytes,
    check_size,
    read_table,
)
from zonefs_emu.virtio.split import translate

DESC_AVAIL: Final = 1 << 7
DESC_USED: Final = 1 << 15
EVENT_ENABLE: Final = 0
EVENT_DISABLE: Final = 1
EVENT_DESC: Final = 2
#: Bytes of each of the two event suppression areas.
EVENT_BYTES: Final = 4

_NONE: Final[tuple[Chain, ...]] = ()
#: The most descriptors of a usual chain. None of its descriptors is indirect, and each is so short that all together
#: cannot exceed CHAIN_BYTES_MAX: it has none of the bits of _UNUSUAL.
_USUAL_DESCRIPTORS: Final = 8
_UNUSUAL: Final = DESC_INDIRECT << 48 | -(1 << (CHAIN_BYTES_MAX // _USUAL_DESCRIPTORS).bit_length() - 1) & 0xFFFFFFFF
_TABLE_ENTRY: Final = struct.Struct("<QIHH")


def place_of(position: int, size: int) -> int:
    """Return the first place at *position* (slot in bits 0 to 14, wrap counter in bit 15)."""
    return (position & 0x7FFF) + (0 if position & 0x8000 else size)


def position_of(place: int, size: int) -> int:
    """Return slot (bits 0 to 14) and wrap counter (bit 15) of *place*: the form of VRING_BASE and the event areas."""
    turn, slot = divmod(place, size)
    return slot | (0 if turn & 1 else 0x8000)


class PackedRing(Ring):
    """A packed ring of *size* descriptors."""

    __slots__ = (
        "_called",
        "_desc",
        "_device_event",
        "_driver_event",
        "_event_idx",
        "_fence",
        "_ordered",
        "logged",
        "memory",
        "next_place",
        "size",
        "used_place",
    )

    def __init__(
        self,
        size: int,
        desc: memoryview,
        driver_event: memoryview,
        device_event: memoryview,
        memory: GuestMemory,
        *,
        event_idx: bool,
        base: int,
        fence: Fence,
        ordered: bool,
    ) -> None:
        """Continue at *base*: next available position in bits 0 to 15, next used position in bits 16 to 31.

        Raises:
            BrokenRingError: *size* is no queue size, or *base* lies beyond it.
        """
        check_size(size, power_of_two=False)
        self.size = size
        self.memory = memory
        self.logged: dict[int, list[tuple[int, int]]] | None = None
        self._desc = desc.cast("Q")
        self._driver_event = driver_event.cast("H")
        self._device_event = device_event.cast("H")
        self._event_idx = event_idx
        self._fence = fence
        self._ordered = ordered
        if base & 0x7FFF >= size or base >> 16 & 0x7FFF >= size:
            message = f"a ring of {size} entries cannot continue at {base:#x}"
            raise BrokenRingError(message)
        #: The places of the next chain to be given back and of the next chain to be taken. The compiled walker moves
        #: both.
        self.used_place = place_of(base >> 16, size)
        self.next_place = place_of(base & 0xFFFF, size)
        if self.next_place < self.used_place:  # the available position has wrapped once more than the used one
            self.next_place += 2 * size
        self._called = self.used_place

    @property
    def base(self) -> int:
        """The next available and used positions, in the form of GET_VRING_BASE."""
        return position_of(self.next_place, self.size) | position_of(self.used_place, self.size) << 16

    def _is_available(self, meta: int, place: int) -> bool:
        avail, used = bool(meta & DESC_AVAIL << 48), bool(meta & DESC_USED << 48)
        wrap = not place // self.size & 1
        return avail == wrap and used != wrap

    def has_work(self) -> bool:
        """Say whether the driver has made a chain available."""
        place = self.next_place
        return self._is_available(self._desc[2 * (place % self.size) + 1], place)

    @property
    def nr_available(self) -> int:
        """The descriptors that the driver has made available."""
        place, size = self.next_place, self.size
        end = self.used_place + size
        while place < end and self._is_available(self._desc[2 * (place % size) + 1], place):
            place += 1
        return place - self.next_place

    def pop(self, limit: int) -> Sequence[Chain]:
        """Take up to *limit* chains; see :meth:`Ring.pop`.

        A token has the buffer id in bits 0 to 15, and above it the number of slots that the chain takes in the ring.
        """
        place = self.next_place
        size = self.size
        desc = self._desc
        # Slots that were taken belong to the device until they are given back. So from used_place on, the driver can
        # have filled one ring of slots at most.
        end = self.used_place + size
        if not self._is_available(desc[2 * (place % size) + 1], place):
            return _NONE
        chains: list[Chain] = []
        memory = self.memory
        hot_start, hot_end, hot_view = memory.hot_start, memory.hot_end, memory.hot_view
        while len(chains) < limit and place < end:
            first = place
            slot = first % size
            if not self._is_available(desc[2 * slot + 1], first):
                break
            if not self._ordered:
                self._fence()
            readable: list[memoryview] = []
            writable: list[memoryview] = []
            # The usual chain of disk drivers: a few direct descriptors in the largest region. All other chains are left
            # to _walk.
            for _ in range(_USUAL_DESCRIPTORS):
                meta = desc[2 * slot + 1]
                address = desc[2 * slot]
                stop = address + (meta & 0xFFFFFFFF)
                place += 1
                if (
                    address < hot_start
                    or stop > hot_end
                    or stop == address
                    or meta & _UNUSUAL
                    or self.logged is not None
                    or place > end
                ):
                    place = self._take(first, end, chains)
                    break
                if meta & (DESC_WRITE << 48):
                    writable.append(hot_view[address - hot_start : stop - hot_start])
                elif writable:
                    message = "a chain has a readable buffer after a writable one"
                    raise BrokenRingError(message)
                else:
                    readable.append(hot_view[address - hot_start : stop - hot_start])
                if not meta & (DESC_NEXT << 48):
                    chains.append(((meta >> 32 & 0xFFFF) | (place - first) << 16, readable, writable))
                    break
                slot = place % size
            else:
                place = self._take(first, end, chains)
            if place < 0:
                place = first
                break
        self.next_place = place
        return chains

    def _take(self, first: int, end: int, chains: list[Chain]) -> int:
        """Add the chain at place *first*, in any of its forms, to *chains*; return the place after it.

        Returns -1 if the chain is too long and *chains* has others. These are returned first, and the next call raises.

        Raises:
            OversizedChainError: the chain is too long, and *chains* is empty.
            BrokenRingError: the chain breaks the standard.
        """
        try:
            chain, place = self._walk(first, end)
        except OversizedChainError as error:
            if chains:
                return -1
            self.next_place = first + (error.chain[0] >> 16)
            raise
        chains.append(chain)
        return place

    def _walk(self, first: int, end: int) -> tuple[Chain, int]:
        """Follow the chain at place *first*, in any of its forms; return it and the place after it.

        Raises:
            OversizedChainError: it has too many bytes.
            BrokenRingError: it breaks the standard, or has too many descriptors.
        """
        descriptors: list[tuple[int, int, int]] = []
        desc = self._desc
        place = first
        while True:
            if place >= end or len(descriptors) >= CHAIN_DESCRIPTORS_MAX:
                message = (
                    f"a chain has more descriptors than the ring ({self.size}), or more than {CHAIN_DESCRIPTORS_MAX}"
                )
                raise BrokenRingError(message)
            slot = place % self.size
            address, meta = desc[2 * slot], desc[2 * slot + 1]
            length, flags = meta & 0xFFFFFFFF, meta >> 48
            place += 1
            if flags & DESC_INDIRECT:
                if flags & DESC_NEXT or descriptors:
                    message = "an indirect descriptor is not the only one of its chain"
                    raise BrokenRingError(message)
                descriptors = self._table(address, length)
                break
            descriptors.append((address, length, flags))
            if not flags & DESC_NEXT:
                break
        # The last descriptor of a chain has the buffer id.
        token = (meta >> 32 & 0xFFFF) | (place - first) << 16
        readable, writable = translate(descriptors, self.memory)
        if self.logged is not None:
            self.logged[token] = [(address, length) for address, length, flags in descriptors if flags & DESC_WRITE]
        chain = token, readable, writable
        check_bytes(chain, descriptors)
        return chain, place

    def _table(self, address: int, length: int) -> list[tuple[int, int, int]]:
        """Return the descriptors (guest address, bytes, flags) of an indirect table.

        They are in the order of the table, and only the flag WRITE is valid in them.

        Raises:
            BrokenRingError: as :func:`read_table`, or the table has an indirect descriptor.
        """
        table = read_table(self.memory, address, length)
        descriptors = [(at, size, flags) for at, size, _, flags in _TABLE_ENTRY.iter_unpack(table)]
        if any(flags & DESC_INDIRECT for _, _, flags in descriptors):
            message = "an indirect table contains an indirect descriptor"
            raise BrokenRingError(message)
        return descriptors

    def push(self, chains: Sequence[Chain], lengths: Sequence[int]) -> None:
        """Give chains back; see :meth:`Ring.push`. The first one is stored last, so the driver sees all at once."""
        size = self.size
        place = self.used_place
        words: list[tuple[int, int]] = []
        for (token, _, _), length in zip(chains, lengths, strict=True):
            flags = 0 if place // size & 1 else DESC_AVAIL | DESC_USED
            if length:
                flags |= DESC_WRITE
            words.append((2 * (place % size) + 1, length | (token & 0xFFFF) << 32 | flags << 48))
            place += token >> 16
        desc = self._desc
        for index, word in reversed(words):
            if not self._ordered:
                self._fence()
            desc[index] = word
        self.used_place = place

    def needs_call(self) -> bool:
        """Say whether the driver wants a notification; see :meth:`Ring.needs_call`.

        Source: virtio 1.4, "Driver and Device Event Suppression".
        """
        self._fence()
        called, used = self._called, self.used_place
        self._called = used
        flags = self._driver_event[1] & 3
        if called == used or flags == EVENT_DISABLE:
            return False
        if flags != EVENT_DESC or not self._event_idx:
            return True
        position = self._driver_event[0]
        size = self.size
        turn = (used - 1) // size
        # The event's wrap counter says to which of the last two rounds it belongs.
        if (not turn & 1) != bool(position & 0x8000):
            turn -= 1
        return called <= turn * size + (position & 0x7FFF) < used

    def sleep(self) -> bool:
        """Ask for a kick; see :meth:`Ring.sleep`."""
        if self._event_idx:
            self._device_event[0] = position_of(self.next_place, self.size)
            if not self._ordered:
                self._fence()
            self._device_event[1] = EVENT_DESC
        else:
            self._device_event[1] = EVENT_ENABLE
        self._fence()
        return self.has_work()

    def wake(self) -> None:
        """Ask for no kicks."""
        self._device_event[1] = EVENT_DISABLE


def position_after(ring: Ring, token: int) -> int:
    """Return the position of the next used descriptor after the request of *token* is given back; 0 in a split ring."""
    return position_of(ring.used_place + (token >> 16), ring.size) if isinstance(ring, PackedRing) else 0


def is_given_back(meta: int, place: int, size: int) -> bool:
    """Return whether the chain at *place* was given back, from *meta*, the second word of its descriptor.

    It was given back unless the descriptor is still marked available for the round of *place*. The driver may have made
    the descriptor available again since, for the next round.
    """
    avail, used = bool(meta & DESC_AVAIL << 48), bool(meta & DESC_USED << 48)
    wrap = not place // size & 1
    return not (avail == wrap and used != wrap)
