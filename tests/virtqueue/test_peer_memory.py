"""Files of a peer, mapped and cut; with two daemons and their guests: tests/vhost_user/test_lost_memory.py."""

import gc
import mmap
import os
from collections.abc import Iterator

import pytest

from zonefs_emu.errors import PeerError
from zonefs_emu.persist import sigbus
from zonefs_emu.virtqueue.dirty_log import DirtyLog
from zonefs_emu.virtqueue.peer_memory import PeerMap, PeerMemory

PAGE = mmap.PAGESIZE


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 8 * PAGE)
    yield fd
    os.close(fd)


def test_regions_that_are_no_whole_pages() -> None:
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 0x3B10 + 100)
    os.pwrite(fd, b"abc", 0x1001)
    shared = PeerMemory()
    view = shared.view(fd, 0x3B10, 100)
    assert len(view) == 0x3B10
    assert bytes(shared.view(fd, 1, 0x1002)) == b"b"
    with pytest.raises(PeerError, match="15121 bytes at 100 do not lie in the shared file"):
        shared.view(fd, 0x3B10 + 1, 100)
    assert bytes(view[0x1001 - 100 : 0x1004 - 100]) == b"abc"
    for size, offset in ((0x3B10 + 1, 100), (0, 0), (1 << 62, 1 << 62), (1, 1 << 63)):
        with pytest.raises(PeerError):
            shared.view(fd, size, offset)
    os.close(fd)


@pytest.mark.parametrize(
    ("nr_pages", "part", "mapped"),
    [
        (8, (PAGE, 0), 4 * PAGE), (8, (4 * PAGE, 0), 4 * PAGE), (8, (4 * PAGE + 1, 0), 8 * PAGE),
        (8, (PAGE, 4 * PAGE), 4 * PAGE), (8, (1, 5 * PAGE), 1), (8, (2 * PAGE, 5 * PAGE), 2 * PAGE),
        (6, (PAGE, 0), PAGE),
    ],
)  # fmt: skip
def test_huge_pages_are_mapped_as_wholes(
    nr_pages: int, part: tuple[int, int], mapped: int, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that says that its pages have four times their size; a file or a beginning that is odd has usual ones."""
    os.ftruncate(fd, nr_pages * PAGE)

    class Statistics:
        f_bsize = 4 * PAGE

    monkeypatch.setattr(os, "fstatvfs", lambda _fd: Statistics)
    assert len(PeerMemory().map(fd, *part)) == mapped


def test_usual_pages_and_a_host_that_does_not_tell(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(PeerMemory().map(fd, PAGE + 1, 0)) == PAGE + 1

    def refuse(_fd: int) -> None:
        raise OSError

    monkeypatch.setattr(os, "fstatvfs", refuse)
    assert len(PeerMemory().map(fd, PAGE + 1, PAGE)) == PAGE + 1


def test_the_first_access_to_what_was_cut_replaces_the_whole_mapping(fd: int) -> None:
    shared, other = PeerMemory(), PeerMemory()
    view, untouched = shared.view(fd, 8 * PAGE, 0), other.view(fd, PAGE, 0)
    os.ftruncate(fd, 2 * PAGE)
    view[0] = 2
    losses = [shared.is_lost]
    view[5 * PAGE - 3 : 6 * PAGE] = bytes([7]) * (PAGE + 3)
    losses += [shared.is_lost, other.is_lost]
    assert losses == [False, True, False]
    assert bytes(view[5 * PAGE - 4 : 5 * PAGE]) == b"\0\7\7\7"
    # What was left of the file is not reached through it any more.
    view[0] = 3
    assert (view[0], untouched[0]) == (3, 2)


def test_a_mapping_that_may_only_be_read(fd: int) -> None:
    shared = PeerMemory()
    mapping = shared.watch(PeerMap(fd, 8 * PAGE, mmap.MAP_SHARED, mmap.PROT_READ))
    os.ftruncate(fd, 0)
    assert mapping[3 * PAGE] == 0
    assert shared.is_lost


def test_a_mapping_that_is_gone_is_watched_no_more(fd: int) -> None:
    gc.collect()
    before = dict(sigbus._watched)
    views = [PeerMemory().view(fd, PAGE, offset) for offset in (0, PAGE)]
    assert len(sigbus._watched) == len(before) + 2
    del views
    assert sigbus._watched == before


def test_a_dirty_log_that_is_cut(fd: int) -> None:
    shared = PeerMemory()
    log = DirtyLog(shared, fd, 64, PAGE)
    losses = []
    for length in (8 * PAGE, PAGE):
        os.ftruncate(fd, length)
        log.mark([(0, 1)])
        losses.append(shared.is_lost)
    assert losses == [False, True]
