"""Interrupts by eventfds that come and go."""

import os

import pytest

from zonefs_emu.vfio_user.interrupts import Interrupts
from zonefs_emu.vfio_user.pci_config import NR_VECTORS


def test_an_interrupt_while_its_eventfd_is_away_comes_with_the_next_one() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    some = [-1, fd] + [-1] * (NR_VECTORS - 2)
    interrupts = Interrupts()
    interrupts.signal(1)
    interrupts.signal(1)
    interrupts.set([-1] * NR_VECTORS)
    interrupts.set(some)
    assert os.eventfd_read(fd) == 1
    interrupts.set([-1] * NR_VECTORS)
    interrupts.signal(1)
    interrupts.reset()
    interrupts.set(some)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)
    interrupts.signal(1)
    assert os.eventfd_read(fd) == 1
    os.close(fd)
    interrupts.signal(1)  # which is noted, and no more
