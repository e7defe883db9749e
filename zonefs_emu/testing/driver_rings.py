"""The driver's side of split and packed rings, and the guest memory that it hands out."""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from zonefs_emu.virtio import packed
from zonefs_emu.virtio.ring import DESC_INDIRECT, DESC_NEXT, DESC_WRITE

#: Where the guest has its memory.
GUEST_BASE: Final = 1 << 32
_DESC: Final = struct.Struct("<QIHH")


class Buffer(NamedTuple):
    """A run of guest memory."""

    offset: int
    length: int


class Completion(NamedTuple):
    """A request that came back: its id, and the bytes that the device says it has written."""

    request_id: int
    written: int


class Heap:
    """Guest memory that is handed out; a bump allocator with lists of what was given back, by size."""

    def __init__(self, start: int, end: int) -> None:
        """Hand out the bytes from *start* to *end*."""
        self._at = start
        self._end = end
        self._free: dict[int, list[int]] = {}

    def take(self, length: int, alignment: int = 16) -> Buffer:
        """Return *length* bytes."""
        free = self._free.get(length)
        if free:
            return Buffer(free.pop(), length)
        self._at = -(-self._at // alignment) * alignment
        if self._at + length > self._end:
            raise MemoryError(length)
        self._at += length
        return Buffer(self._at - length, length)

    def give_back(self, buffer: Buffer) -> None:
        """Take *buffer* back."""
        self._free.setdefault(buffer.length, []).append(buffer.offset)


class SplitDriver:
    """The driver's side of a split ring. Source: virtio 1.4, "Split Virtqueues"."""

    def __init__(self, size: int, memory: memoryview, areas: tuple[Buffer, Buffer, Buffer], *, event_idx: bool) -> None:
        """Use descriptor table, available and used ring at *areas* of *memory*."""
        desc, avail, used = (memory[area.offset : area.offset + area.length] for area in areas)
        self.size = size
        self.nr_free = size
        self._memory = memory
        self._table = desc
        self._desc = desc.cast("Q")
        self._avail = avail.cast("H")
        self._used = used.cast("H")
        self._elements = used[4 : 4 + 8 * size].cast("Q")
        self._event_idx = event_idx
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, list[int]] = {}
        self._next_avail = 0
        self._kicked = 0
        self._next_used = 0

    def add(self, buffers: Sequence[tuple[int, int, bool]], indirect: Buffer | None) -> int:
        """Make a chain available; its id is its head."""
        if indirect is not None:
            last = len(buffers) - 1
            for index, (address, length, writable) in enumerate(buffers):
                flags = (DESC_WRITE if writable else 0) | (DESC_NEXT if index < last else 0)
                _DESC.pack_into(self._memory, indirect.offset + 16 * index, address, length, flags, index + 1)
            buffers = [(GUEST_BASE + indirect.offset, 16 * len(buffers), False)]
        slots = [self._free.pop() for _ in buffers]
        self.nr_free -= len(slots)
        last = len(slots) - 1
        for index, (slot, (address, length, writable)) in enumerate(zip(slots, buffers, strict=True)):
            flags = (DESC_WRITE if writable else 0) | (DESC_NEXT if index < last else 0)
            if indirect is not None:
                flags |= DESC_INDIRECT
            following = slots[index + 1] if index < last else 0
            self._desc[2 * slot] = address
            self._desc[2 * slot + 1] = length | flags << 32 | following << 48
        self._chains[slots[0]] = slots
        self.publish(slots[0])
        return slots[0]

    def publish(self, head: int) -> None:
        """Put *head* into the available ring and show it."""
        self._avail[2 + self._next_avail % self.size] = head
        self._next_avail = self._next_avail + 1 & 0xFFFF
        self._avail[1] = self._next_avail

    def needs_kick(self) -> bool:
        """Return whether the device asks for a notification; see the protocol."""
        old, self._kicked = self._kicked, self._next_avail
        if not self._event_idx:
            return old != self._next_avail and not self._used[0] & 1
        event = self._used[2 + 4 * self.size]
        return (self._next_avail - event - 1) & 0xFFFF < (self._next_avail - old) & 0xFFFF

    def reap(self) -> list[Completion]:
        """Take what the device has given back; see the protocol."""
        done: list[Completion] = []
        while self._next_used != self._used[1]:
            word = self._elements[self._next_used % self.size]
            head = word & 0xFFFFFFFF
            slots = self._chains.pop(head)
            self._free += reversed(slots)
            self.nr_free += len(slots)
            done.append(Completion(head, word >> 32))
            self._next_used = self._next_used + 1 & 0xFFFF
        return done

    def want_call(self) -> bool:
        """Ask for a call; see the protocol."""
        if self._event_idx:
            self._avail[2 + self.size] = self._next_used
        else:
            self._avail[0] = 0
        return self._used[1] != self._next_used

    @property
    def base(self) -> int:
        """The value for SET_VRING_BASE, which QEMU restores after the back-end has ended."""
        return self._used[1]


class PackedDriver:
    """The driver's side of a packed ring. Source: virtio 1.4, "Packed Virtqueues"."""

    def __init__(self, size: int, memory: memoryview, areas: tuple[Buffer, Buffer, Buffer], *, event_idx: bool) -> None:
        """Use descriptor ring, driver event and device event area at *areas* of *memory*."""
        desc, driver, device = (memory[area.offset : area.offset + area.length] for area in areas)
        self.size = size
        self.nr_free = size
        self._memory = memory
        self._desc = desc.cast("Q")
        self._driver_event = driver.cast("H")
        self._device_event = device.cast("H")
        self._event_idx = event_idx
        self._free_ids = list(range(size - 1, -1, -1))
        self._chains: dict[int, int] = {}
        self._next = 0
        self._kicked = 0
        self._used = 0

    def add(self, buffers: Sequence[tuple[int, int, bool]], indirect: Buffer | None) -> int:
        """Make a chain available; its id is the buffer id."""
        if indirect is not None:
            for index, (address, length, writable) in enumerate(buffers):
                flags = DESC_WRITE if writable else 0
                _DESC.pack_into(self._memory, indirect.offset + 16 * index, address, length, 0, flags)
            buffers = [(GUEST_BASE + indirect.offset, 16 * len(buffers), False)]
        number = self._free_ids.pop()
        count = len(buffers)
        words: list[tuple[int, int]] = []
        for index, (address, length, writable) in enumerate(buffers):
            place = self._next + index
            flags = packed.DESC_USED if place // self.size & 1 else packed.DESC_AVAIL
            flags |= (DESC_WRITE if writable else 0) | (DESC_NEXT if index < count - 1 else 0)
            if indirect is not None:
                flags |= DESC_INDIRECT
            slot = place % self.size
            self._desc[2 * slot] = address
            words.append((2 * slot + 1, length | number << 32 | flags << 48))
        # The first descriptor is shown last, and the whole chain with it.
        for at, word in reversed(words):
            self._desc[at] = word
        self._next += count
        self.nr_free -= count
        self._chains[number] = count
        return number

    def needs_kick(self) -> bool:
        """Return whether the device asks for a notification; see the protocol."""
        old, self._kicked = self._kicked, self._next
        flags = self._device_event[1] & 3
        if old == self._next or flags == packed.EVENT_DISABLE:
            return False
        if flags != packed.EVENT_DESC:
            return True
        event = self._device_event[0]
        turn = (self._next - 1) // self.size
        if (not turn & 1) != bool(event & 0x8000):
            turn -= 1
        return old <= turn * self.size + (event & 0x7FFF) < self._next

    def reap(self) -> list[Completion]:
        """Take what the device has given back; see the protocol."""
        done: list[Completion] = []
        while self._is_used():
            word = self._desc[2 * (self._used % self.size) + 1]
            number = word >> 32 & 0xFFFF
            count = self._chains.pop(number)
            self._free_ids.append(number)
            self._used += count
            self.nr_free += count
            done.append(Completion(number, word & 0xFFFFFFFF))
        return done

    def _is_used(self) -> bool:
        flags = self._desc[2 * (self._used % self.size) + 1] >> 48
        wrap = not self._used // self.size & 1
        return bool(self._chains) and bool(flags & packed.DESC_AVAIL) == bool(flags & packed.DESC_USED) == wrap

    def want_call(self) -> bool:
        """Ask for a call; see the protocol."""
        if self._event_idx:
            self._driver_event[0] = packed.position_of(self._used, self.size)
            self._driver_event[1] = packed.EVENT_DESC
        else:
            self._driver_event[1] = packed.EVENT_ENABLE
        return self._is_used()

    @property
    def base(self) -> int:
        """The value for SET_VRING_BASE: next available and next used position."""
        position = packed.position_of(self._used, self.size)
        return position | position << 16
