import os

from tests.readable import is_readable
from zonefs_emu.device.waker import Waker


def test_a_sleeping_loop_is_woken() -> None:
    waker = Waker()
    assert not is_readable(waker.fd)
    waker.wake()
    waker.wake()
    assert is_readable(waker.fd)
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
        assert not is_readable(other)
    finally:
        os.close(other)
