import os
import tracemalloc
from collections.abc import Iterator

import pytest

from zonefs_emu.errors import PeerError
from zonefs_emu.virtqueue.dirty_log import DirtyLog
from zonefs_emu.virtqueue.peer_memory import PeerMemory


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("log")
    os.ftruncate(fd, 8192)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("offset", [0, 5, 4096])
def test_each_page_has_a_bit(fd: int, offset: int) -> None:
    log = DirtyLog(PeerMemory(), fd, 64, offset)
    log.mark([(0, 1), (9 * 4096, 4097), (70 * 4096 + 4095, 1), (3 * 4096, 0), (20 * 4096 + 7, 0)])
    data = os.pread(fd, 64, offset)
    bits = [index for index in range(512) if data[index // 8] >> index % 8 & 1]
    assert bits == [0, 9, 10, 70]
    assert os.pread(fd, 8192, 0).replace(data, b"").strip(b"\0") == b""


def test_runs_that_overlap_and_the_whole_of_a_memory(fd: int) -> None:
    log = DirtyLog(PeerMemory(), fd, 2, 0)
    tracemalloc.start()
    log.mark([(3 * 4096, 3 * 4096), (4 * 4096, 100), (2 * 4096, 2 * 4096), (8 * 4096, 1 << 40), (0, 1 << 10)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert os.pread(fd, 2, 0) == b"\x3d\xff"
    assert peak < 1 << 16


def test_pages_beyond_the_log_are_left_out(fd: int) -> None:
    DirtyLog(PeerMemory(), fd, 2, 0).mark([(14 * 4096, 100 * 4096), (1 << 63, 1)])
    assert os.pread(fd, 8, 0) == b"\0\xc0" + bytes(6)


@pytest.mark.parametrize(("size", "offset"), [(0, 0), (8193, 0), (1, 8192), (1 << 62, 0)])
def test_a_log_that_the_file_does_not_have(fd: int, size: int, offset: int) -> None:
    with pytest.raises(PeerError, match="bytes at"):
        DirtyLog(PeerMemory(), fd, size, offset)
