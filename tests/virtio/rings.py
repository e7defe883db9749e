"""A ring with both of its sides in one process."""

import mmap
from collections.abc import Sequence
from typing import Final

from zonefs_emu.testing.driver_rings import GUEST_BASE, Buffer, Heap, PackedDriver, SplitDriver
from zonefs_emu.virtio import packed, split
from zonefs_emu.virtio.memory import GuestMemory, Region
from zonefs_emu.virtio.packed import PackedRing
from zonefs_emu.virtio.split import SplitRing

MEMORY_BYTES: Final = 1 << 18


class Pair:
    """Driver and device of one ring."""

    def __init__(self, *, is_packed: bool, size: int = 8, event_idx: bool = True, ordered: bool = True) -> None:
        self.size = size
        self.bytes = memoryview(mmap.mmap(-1, MEMORY_BYTES))
        self.memory = GuestMemory([Region(GUEST_BASE, MEMORY_BYTES, 0, self.bytes)])
        self.heap = Heap(0, MEMORY_BYTES)
        lengths = (
            (16 * size, packed.EVENT_BYTES, packed.EVENT_BYTES) if is_packed else split.sizes(size, event_idx=True)
        )
        take = self.heap.take
        self.areas = (take(lengths[0]), take(lengths[1]), take(lengths[2]))
        views = self.views()
        self.nr_fences = 0
        self.driver: SplitDriver | PackedDriver
        self.ring: SplitRing | PackedRing
        if is_packed:
            self.driver = PackedDriver(size, self.bytes, self.areas, event_idx=event_idx)
            self.ring = PackedRing(
                size, *views, self.memory, event_idx=event_idx, base=0x8000_8000, fence=self.fence, ordered=ordered
            )
        else:
            self.driver = SplitDriver(size, self.bytes, self.areas, event_idx=event_idx)
            self.ring = SplitRing(
                size, *views, self.memory, event_idx=event_idx, base=0, fence=self.fence, ordered=ordered
            )

    def views(self) -> tuple[memoryview, memoryview, memoryview]:
        desc, avail, used = (self.bytes[area.offset : area.offset + area.length] for area in self.areas)
        return desc, avail, used

    def fence(self) -> None:
        self.nr_fences += 1

    def add(
        self, readable: Sequence[bytes] = (b"request",), writable: Sequence[int] = (4,), *, indirect: bool = False
    ) -> int:
        buffers: list[tuple[int, int, bool]] = []
        for content in readable:
            place = self.heap.take(len(content))
            self.bytes[place.offset : place.offset + place.length] = content
            buffers.append((GUEST_BASE + place.offset, place.length, False))
        buffers.extend((GUEST_BASE + self.heap.take(length).offset, length, True) for length in writable)
        table: Buffer | None = self.heap.take(16 * len(buffers)) if indirect else None
        return self.driver.add(buffers, table)
