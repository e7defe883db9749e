"""Memory that a kernel tells of piece by piece; here the kernel is a list of files."""

import mmap
import os
from pathlib import Path

import pytest

from zonefs_emu.vduse.driver_memory import VduseMemory
from zonefs_emu.vduse.protocol import ACCESS_RO, Mapping
from zonefs_emu.virtio.memory import BadAddressError
from zonefs_emu.virtqueue.peer_memory import PeerMemory

PAGE = mmap.PAGESIZE


class Kernel:
    """What VDUSE_IOTLB_GET_FD answers."""

    def __init__(self) -> None:
        self.mappings: list[tuple[Mapping, int]] = []
        self.asked = 0

    def add(self, start: int, pages: int, *, offset: int = 0, access: int = 3, letter: bytes = b"x") -> None:
        fd = os.memfd_create("guest")
        os.write(fd, bytes(offset) + letter * (pages * PAGE))
        self.mappings.append((Mapping(offset=offset, start=start, last=start + pages * PAGE - 1, access=access), fd))

    def find(self, start: int, last: int) -> tuple[Mapping, int] | None:
        self.asked += 1
        for mapping, fd in sorted(self.mappings, key=lambda entry: entry[0].start):
            if mapping.last >= start and mapping.start <= last:
                return mapping, os.dup(fd)
        return None


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_what_is_there_is_mapped(kernel: Kernel) -> None:
    kernel.add(0, 2, letter=b"a")
    kernel.add(8 * PAGE, 1, offset=PAGE, letter=b"b")
    memory = VduseMemory(kernel.find, PeerMemory())
    asked = kernel.asked
    assert memory.read(PAGE, 4) == b"aaaa"
    assert memory.read(8 * PAGE, PAGE) == b"b" * PAGE
    assert bytes(memory.at_user_address(8 * PAGE + 8, 4)) == b"bbbb"
    assert kernel.asked == asked
    memory.slices(0, 1)[0][:] = b"z"
    assert os.pread(kernel.mappings[0][1], 1, 0) == b"z"


def test_what_comes_later_is_asked_for(kernel: Kernel) -> None:
    kernel.add(1 << 30, 1, letter=b"r")
    memory = VduseMemory(kernel.find, PeerMemory())
    ring = memory.at_user_address(1 << 30, 16)
    with pytest.raises(BadAddressError):
        memory.slices(0, 16)
    kernel.add(0, 16, letter=b"d")
    assert bytes(memory.slices(PAGE, 4)[0]) == b"dddd"
    # The largest region is the one where rings look first.
    assert (memory.hot_start, memory.hot_end) == (0, 16 * PAGE)
    # What was handed out before stays good.
    assert bytes(ring[:4]) == b"rrrr"
    assert len(memory.regions) == 2
    with pytest.raises(BadAddressError):
        memory.at_user_address(1 << 40, 4)


def test_memory_that_may_only_be_read(kernel: Kernel) -> None:
    kernel.add(0, 1, access=ACCESS_RO)
    (view,) = VduseMemory(kernel.find, PeerMemory()).slices(0, 4)
    assert view.readonly
    assert bytes(view) == b"xxxx"


def test_descriptors_are_closed(kernel: Kernel) -> None:
    kernel.add(0, 1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    memory = VduseMemory(kernel.find, PeerMemory())
    for _ in range(5):
        with pytest.raises(BadAddressError):
            memory.slices(1 << 50, 1)
    # Python's mmap keeps a duplicate for the one region.
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_memory_to_the_end_of_all_addresses(kernel: Kernel) -> None:
    start = (1 << 64) - PAGE
    kernel.add(start, 1)
    assert VduseMemory(kernel.find, PeerMemory()).read(start, 2) == b"xx"
