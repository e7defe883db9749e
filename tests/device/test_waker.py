import os
import select

from zonefs_emu.device.waker import Waker


def test_a_sleeping_loop_is_woken() -> None:
    waker = Waker()
    assert select.select([waker.fd], [], [], 0)[0] == []
    waker.wake()
    waker.wake()
    assert select.select([waker.fd], [], [], 0)[0] == [waker.fd]
    assert os.eventfd_read(waker.fd) == 2
    waker.close()


def test_one_that_is_closed_writes_to_no_other_file() -> None:
    """The number of a closed descriptor is that of the next file that is opened."""
    waker = Waker()
    waker.close()
    other = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        assert other == waker.fd
        waker.wake()
        assert select.select([other], [], [], 0)[0] == []
    finally:
        os.close(other)
