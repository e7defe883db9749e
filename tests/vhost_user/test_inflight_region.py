"""The region that a front-end keeps: its size, its parts, and when it may be replaced."""

import os
from collections.abc import Iterator

import pytest

from zonefs_emu.errors import PeerError
from zonefs_emu.inflight.ring_record import record_bytes
from zonefs_emu.vhost_user.inflight_region import InflightRegion
from zonefs_emu.vhost_user.messages import Inflight, Request
from zonefs_emu.virtqueue.peer_memory import PeerMemory


class Region(InflightRegion):
    """A region whose messages are sent by calling it."""

    runs = False

    def __init__(self) -> None:
        super().__init__(PeerMemory(), lambda: self.runs)

    def get(self, *, nr_queues: int, queue_size: int) -> tuple[Inflight, int]:
        reply = self.handlers[Request.GET_INFLIGHT_FD](Inflight(0, 0, nr_queues, queue_size), [])
        assert reply is not None
        assert isinstance(reply.payload, Inflight)
        return reply.payload, reply.fds[0]

    def set(self, shape: Inflight, *fds: int) -> None:
        assert self.handlers[Request.SET_INFLIGHT_FD](shape, list(fds)) is None

    def content(self, queue_no: int, queue_size: int) -> bytes:
        record = self.record(queue_no, queue_size)
        assert record is not None
        return bytes(record)


@pytest.fixture
def region() -> Iterator[Region]:
    region = Region()
    yield region
    region.close()


def test_what_one_process_records_is_there_for_the_next(region: Region) -> None:
    shape, fd = region.get(nr_queues=3, queue_size=128)
    assert shape.mmap_size == os.fstat(fd).st_size == 3 * record_bytes(128)
    region.set(shape, fd)
    for number in range(3):
        record = region.record(number, 128)
        assert record is not None
        record[:] = bytes([number + 1]) * record_bytes(128)
    following = Region()
    following.set(shape, fd)
    for number in range(3):
        assert following.content(number, 128) == bytes([number + 1]) * record_bytes(128)
    following.close()
    os.close(fd)


def test_a_small_queue_uses_the_first_part_of_its_share(region: Region) -> None:
    shape, fd = region.get(nr_queues=2, queue_size=128)
    region.set(shape, fd)
    os.pwrite(fd, b"x" * record_bytes(16), record_bytes(128))
    assert region.content(1, 16) == b"x" * record_bytes(16)
    assert region.content(0, 16) == bytes(record_bytes(16))
    os.close(fd)


def test_queues_without_a_share(region: Region) -> None:
    assert region.record(0, 128) is None
    shape, fd = region.get(nr_queues=1, queue_size=128)
    region.set(shape, fd)
    os.close(fd)
    assert region.record(1, 128) is None
    with pytest.raises(PeerError, match="queue 0 has 256 entries, but the in-flight region has room for 128"):
        region.record(0, 256)
    region.close()
    assert region.record(0, 128) is None


def test_a_region_is_not_replaced_under_a_ring(region: Region) -> None:
    shape, fd = region.get(nr_queues=1, queue_size=128)
    region.runs = True
    with pytest.raises(PeerError, match="while rings run"):
        region.set(shape, fd)
    region.runs = False
    with pytest.raises(PeerError, match="came with 0 descriptors"):
        region.set(shape)
    with pytest.raises(PeerError, match=f"region of {record_bytes(128)} bytes"):
        region.set(shape._replace(nr_queues=2), fd)
    os.close(fd)
