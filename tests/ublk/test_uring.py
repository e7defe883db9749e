"""Rings of the running kernel; skipped where it has none or forbids them."""

import errno
import os
import select
import sys
import threading
from collections.abc import Iterator
from typing import Final

import pytest

from zonefs_emu.ublk.uring import OP_POLL_ADD, OP_URING_CMD, POLLIN, Ring

#: Does nothing and completes at once.
OP_NOP: Final = 0


@pytest.fixture(params=[False, True], ids=["any thread", "one thread"])
def ring(request: pytest.FixtureRequest) -> Iterator[Ring]:
    try:
        made = Ring(4, one_thread=request.param)
    except OSError as error:
        pytest.skip(f"this kernel gives us no ring of this kind: {error}")
    yield made
    made.close()


def test_every_entry_completes_with_its_own_user_data(ring: Ring) -> None:
    for index in range(4):
        ring.place(index, OP_NOP, -1, 100 + index)
    for _ in range(5):  # round and round: the ring has 4 entries, and 8 completions
        for index in (2, 0, 3, 1):
            ring.push(index)
        ring.enter(4)
        assert ring.pending == 0
        assert ring.has_completions()
        assert ring.reap() == [(102, 0), (100, 0), (103, 0), (101, 0)]
        assert not ring.has_completions()
        assert ring.reap() == []


def test_an_entry_placed_once_can_be_pushed_again(ring: Ring) -> None:
    ring.place(1, OP_NOP, -1, 7)
    for _ in range(20):
        ring.push(1)
        ring.enter(1)
        assert ring.reap() == [(7, 0)]


def test_a_command_to_what_takes_none_fails(ring: Ring) -> None:
    reader, writer = os.pipe()
    assert ring.call(reader, 0x1234, bytes(80)) == -errno.EOPNOTSUPP
    os.close(reader)
    os.close(writer)


def test_polling_wakes_a_sleeping_ring(ring: Ring) -> None:
    event = os.eventfd(0)
    ring.place(0, OP_POLL_ADD, event, 9, flags=POLLIN)
    ring.push(0)
    ring.enter(0)
    assert not ring.has_completions()
    timer = threading.Timer(0.05, os.eventfd_write, (event, 1))
    timer.start()
    ring.enter(1)
    assert ring.reap() == [(9, POLLIN)]
    timer.join()
    os.close(event)


def test_spinning_sees_what_enter_would_find() -> None:
    try:
        ring = Ring(4, one_thread=True)
    except OSError as error:
        pytest.skip(f"this kernel gives us no ring of this kind: {error}")
    event = os.eventfd(0)
    ring.place(0, OP_POLL_ADD, event, 9, flags=POLLIN)
    ring.push(0)
    ring.enter(0)
    assert not ring.spin(0)
    assert not ring.spin(1_000_000)
    os.eventfd_write(event, 1)
    assert ring.spin(60_000_000_000)
    ring.enter(1)
    assert ring.spin(60_000_000_000)
    assert ring.reap() == [(9, POLLIN)]
    ring.close()
    os.close(event)


def test_spinning_lets_other_threads_run() -> None:
    """The interpreter changes threads at system calls only here, so spinning without one would last to its end."""
    try:
        ring = Ring(4, one_thread=True)
    except OSError as error:
        pytest.skip(f"this kernel gives us no ring of this kind: {error}")
    event, ready = os.eventfd(0), threading.Event()
    ring.place(0, OP_POLL_ADD, event, 9, flags=POLLIN)
    ring.push(0)
    ring.enter(0)

    def write() -> None:
        ready.wait()
        os.eventfd_write(event, 1)

    thread = threading.Thread(target=write)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        ready.set()
        assert ring.spin(60_000_000_000)
    finally:
        sys.setswitchinterval(interval)
        thread.join()
        ring.close()
        os.close(event)


def test_closing_cancels_what_is_out_and_can_be_done_twice(ring: Ring) -> None:
    reader, writer = os.pipe()
    ring.place(0, OP_POLL_ADD, reader, 1, flags=POLLIN)
    ring.push(0)
    ring.enter(0)
    ring.close()
    ring.close()
    os.close(reader)
    # The request that was out would have kept the reading end open.
    poller = select.poll()
    poller.register(writer, 0)
    assert poller.poll(60_000) == [(writer, select.POLLERR)]
    os.close(writer)


def test_too_many_entries_are_refused() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        Ring(1 << 20)


def test_a_bad_file_is_the_failure_of_one_command(ring: Ring) -> None:
    ring.place(0, OP_URING_CMD, 1 << 20, 1, command=1)
    ring.place(1, OP_NOP, -1, 2)
    ring.push(0)
    ring.push(1)
    ring.enter(2)
    while ring.pending:
        ring.enter(0)
    assert sorted(ring.reap()) == [(1, -errno.EBADF), (2, 0)]
