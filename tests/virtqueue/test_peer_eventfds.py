import os
import socket
import threading
import time
from pathlib import Path

import pytest

from zonefs_emu.virtqueue.peer_eventfds import PeerEventfds, is_eventfd

FULL = (1 << 64) - 2


def test_a_write_to_a_full_counter_ends_at_the_second_look() -> None:
    fd = os.eventfd(0)
    os.eventfd_write(fd, FULL)
    eventfds = PeerEventfds()
    thread = threading.Thread(target=eventfds.signal, args=(fd,))
    thread.start()
    while eventfds._write is None:
        time.sleep(0.001)
    eventfds.free()
    assert thread.is_alive()
    eventfds.free()
    thread.join()
    assert os.eventfd_read(fd) == 1, "the peer is notified"
    # The read that ends the write does not rely on a flag that the peer can undo.
    assert os.get_blocking(fd)
    os.close(fd)


def test_an_eventfd_is_told_from_what_a_peer_alone_can_empty(tmp_path: Path) -> None:
    eventfd, (reader, writer), (one, other) = os.eventfd(0), os.pipe(), socket.socketpair()
    file = os.open(tmp_path, os.O_RDONLY)
    assert [is_eventfd(fd) for fd in (eventfd, writer, one.fileno(), file)] == [True, False, False, False]
    for fd in (eventfd, reader, writer, file):
        os.close(fd)
    one.close()
    other.close()


def test_only_the_write_that_was_under_way_at_the_last_look_is_ended() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    eventfds = PeerEventfds()
    for _ in range(3):
        eventfds.signal(fd)
        eventfds.free()
    # As if the look came in the middle of one write, and then of another one.
    for _ in range(3):
        eventfds._write = (fd,)
        eventfds.free()
    assert os.eventfd_read(fd) == 3
    eventfds._write = None
    eventfds.free()
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        eventfds.signal(fd)
    assert eventfds._write is None


def eventfd_id(fd: Path) -> str:
    """Return the kernel's name of the eventfd that *fd*, in /proc/self/fdinfo, is of; "" if it is no eventfd."""
    try:
        lines = fd.read_text().splitlines()
    except FileNotFoundError:  # closed meanwhile
        return ""
    return next((line for line in lines if line.startswith("eventfd-id:")), "")


def test_a_counter_that_another_process_has_emptied_is_not_waited_for() -> None:
    fd = os.eventfd(0)
    eventfds = PeerEventfds()
    eventfds._write = (fd,)
    eventfds.free()
    eventfds.free()
    # Other eventfds may be closed at any time, by threads and collected objects of earlier tests.
    ids = [eventfd_id(other) for other in Path("/proc/self/fdinfo").iterdir()]
    own_id = eventfd_id(Path(f"/proc/self/fdinfo/{fd}"))
    assert own_id
    assert ids.count(own_id) == 1
    os.close(fd)


def test_a_descriptor_that_is_closed_meanwhile_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.eventfd(5)
    eventfds = PeerEventfds()
    eventfds._write = (fd,)
    eventfds.free()
    dup = os.dup

    def end_the_write(number: int) -> int:
        eventfds._write = None  # and the number may be another file's
        return dup(number)

    with monkeypatch.context() as patched:
        patched.setattr("zonefs_emu.virtqueue.peer_eventfds.os.dup", end_the_write)
        eventfds.free()
    assert os.get_blocking(fd)
    assert os.eventfd_read(fd) == 5
    os.close(fd)
    eventfds._write = eventfds._seen = (fd,)
    eventfds.free()
