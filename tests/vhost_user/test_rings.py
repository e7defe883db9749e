"""Rings that are set up, stopped, disabled and broken."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.readable import is_readable
from tests.vhost_user.serving import ZONE
from zonefs_emu.errors import PeerError
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.vhost_frontend import USER_BASE, Frontend
from zonefs_emu.vhost_user.messages import (
    Number,
    Request,
    VringAddress,
    VringState,
)
from zonefs_emu.virtio import blk_codec


def test_stop_and_go_on(frontend: Frontend) -> None:
    frontend.start()
    queue = frontend.queues[0]
    for round_no in range(4):
        assert BlkDriver(queue).write(2 * ZONE + round_no, bytes(512)) == 0
        assert frontend.stop_queue(queue) == queue.ring.base
        # A request that is made available while no process serves is served later.
        number = queue.submit([BlkDriver.header(blk_codec.T_IN, 0)], [512, 1])
        frontend.start_queues()
        assert queue.wait(number)[1][1] == b"\0"


def test_a_disabled_queue_rests(frontend: Frontend) -> None:
    frontend.start()
    queue = frontend.queues[0]
    frontend.tell(Request.SET_VRING_ENABLE, VringState(0, 0))
    number = queue.submit([BlkDriver.header(blk_codec.T_IN, 0)], [512, 1])
    with pytest.raises(TimeoutError):
        queue.wait(number, timeout=0.2)
    frontend.tell(Request.SET_VRING_ENABLE, VringState(0, 1))
    assert queue.wait(number)[1][1] == b"\0"


def test_a_broken_ring_is_the_only_one(path: Path, expect_warning: object) -> None:
    assert callable(expect_warning)
    expect_warning("queue 1 is broken: a request has 3 bytes of header")
    with Frontend(path, nr_queues=2) as frontend:
        frontend.start()
        first, second = frontend.queues
        second.submit([b"abc"], [1])
        assert is_readable(second.err_fd, 10)
        assert second.is_broken
        assert not first.is_broken
        assert BlkDriver(first).read(0, 512)[0] == 0
        frontend.stop_queue(second)


def test_a_back_end_that_took_over_calls_once_more(frontend: Frontend) -> None:
    """The one before it may have given requests back and died before it told the driver."""
    frontend.start()
    for queue in frontend.queues:
        BlkDriver(queue).read(0, 512)
        with suppress(BlockingIOError):
            os.eventfd_read(queue.call_fd)
        frontend.send(Request.SET_VRING_CALL, Number(queue.index), fds=(queue.call_fd,))
    frontend.ask_number(Request.GET_QUEUE_NUM)
    for queue in frontend.queues:
        assert os.eventfd_read(queue.call_fd) == 1


@pytest.mark.parametrize("request_no", [Request.SET_VRING_CALL, Request.SET_VRING_ERR])
def test_a_pipe_which_the_front_end_alone_can_empty_is_not_taken(frontend: Frontend, request_no: Request) -> None:
    frontend.start()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    frontend.send(request_no, Number(0), fds=(writer,))
    os.close(writer)
    with pytest.raises((PeerError, ConnectionError)):
        frontend.ask(Request.GET_FEATURES)
    os.close(reader)


def test_a_running_ring_is_not_moved(frontend: Frontend) -> None:
    frontend.start()
    frontend.send(Request.SET_VRING_ADDR, VringAddress(0, 0, USER_BASE, USER_BASE, USER_BASE, 0))
    with pytest.raises((PeerError, ConnectionError)):
        frontend.ask(Request.GET_FEATURES)
