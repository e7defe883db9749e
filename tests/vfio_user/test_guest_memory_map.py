"""Memory that comes and goes, and that the client cuts."""

import os
from collections.abc import Iterator

import pytest

from zonefs_emu.errors import PeerError
from zonefs_emu.vfio_user.guest_memory_map import GuestMemoryMap
from zonefs_emu.vfio_user.pci_function import DmaRegion
from zonefs_emu.virtio.memory import BadAddressError


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 0x8000)
    yield fd
    os.close(fd)


def test_regions_come_and_go(fd: int) -> None:
    mapped = GuestMemoryMap()
    low, high = DmaRegion(0x1000, 0x2000, fd, 0), DmaRegion(0x3000, 0x1000, fd, 0x5000)
    mapped.map(low)
    mapped.map(high)
    old = mapped.memory
    for part in mapped.memory.slices(0x2FFE, 4):
        part[:] = b"ab"
    assert os.pread(fd, 2, 0x1FFE) + os.pread(fd, 2, 0x5000) == b"abab"
    mapped.unmap(high)
    with pytest.raises(BadAddressError):
        mapped.memory.slices(0x2FFE, 4)
    assert old.read(0x3000, 2) == b"ab", "what is under way keeps its memory"
    mapped.close()
    with pytest.raises(BadAddressError):
        mapped.memory.slices(0x1000, 1)


def test_a_file_without_the_bytes(fd: int) -> None:
    with pytest.raises(PeerError, match="the shared file, which has 32768 bytes"):
        GuestMemoryMap().map(DmaRegion(0, 0x8000, fd, 0x1000))


def test_memory_that_is_cut_reads_zeros_and_is_noted(fd: int) -> None:
    mapped = GuestMemoryMap()
    os.pwrite(fd, b"x", 0)
    mapped.map(DmaRegion(0, 0x8000, fd, 0))
    os.ftruncate(fd, 0)
    assert mapped.memory.read(0, 1) == b"\0"
    assert mapped.shared.is_lost
