"""The front-end's own parts; its messages and rings are used by all tests of vhost_user."""

import os
import socket
from pathlib import Path

import pytest

from tests.vhost_user.serving import blk_device, create, serving
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import PeerError
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.driver_rings import GUEST_BASE, Heap
from zonefs_emu.testing.vhost_frontend import USER_BASE, Frontend
from zonefs_emu.vhost_user.messages import Nothing, Request


def test_heap() -> None:
    heap = Heap(10, 100)
    first = heap.take(20, 16)
    assert first == (16, 20)
    second = heap.take(20)
    assert second.offset >= 36
    heap.give_back(first)
    assert heap.take(20) == first
    with pytest.raises(MemoryError):
        heap.take(60)


@pytest.mark.parametrize("regions", [1, 3, 12])
def test_memory_is_cut_without_gaps(regions: int, tmp_path: Path) -> None:
    device = ZonedDevice.open(create(tmp_path / "image"))
    with (
        serving(device, blk_device(device), tmp_path / "socket"),
        Frontend(tmp_path / "socket", regions=regions, memory_bytes=(1 << 20) + 100) as frontend,
    ):
        found = frontend.memory_regions()
        assert len(found) <= regions
        at = 0
        for region in found:
            assert region.guest_address - GUEST_BASE == region.user_address - USER_BASE == region.mmap_offset == at
            at += region.size
        assert at == (1 << 20) + 100
        frontend.start()
        assert BlkDriver(frontend.queues[0]).read(0, 65536)[0] == 0
    device.close()


def test_an_answer_that_does_not_come(tmp_path: Path) -> None:
    device = ZonedDevice.open(create(tmp_path / "image"))
    with serving(device, blk_device(device), tmp_path / "socket"), Frontend(tmp_path / "socket") as frontend:
        frontend.negotiate()  # but the queues are not started
        number = frontend.queues[0].submit([BlkDriver.header(0, 0)], [512, 1])
        with pytest.raises(TimeoutError, match="does not answer in time"):
            frontend.queues[0].wait(number, timeout=0.05)
        assert frontend.ask_number(Request.GET_QUEUE_NUM) == 1
    device.close()


def test_a_back_end_that_goes_before_it_has_read_everything_has_gone() -> None:
    """The kernel then says so in another way than at the end of a stream."""
    ours, theirs = socket.socketpair()
    with Frontend(connected=ours) as frontend:
        frontend.send(Request.SET_OWNER, Nothing())
        theirs.close()
        with pytest.raises(PeerError, match="closed the connection"):
            frontend.receive(Request.GET_FEATURES)


def test_a_back_end_that_goes_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with Frontend(connected=ours) as frontend:
        number = frontend.queues[0].submit([BlkDriver.header(0, 0)], [512, 1])
        theirs.close()
        with pytest.raises(PeerError, match="closed the connection"):
            frontend.queues[0].wait(number)
        frontend.close()  # and once more at the end of the block: the numbers may be other files' by then
        others = [os.eventfd(0) for _ in range(8)]
    for fd in others:
        os.close(fd)
