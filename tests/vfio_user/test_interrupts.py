"""Interrupts by eventfds that come and go."""

import os
import threading
from pathlib import Path

import pytest

from zonefs_emu.vfio_user.drive_memory import INTMS_WORD, MEMORY_BYTES, DriveMemory
from zonefs_emu.vfio_user.interrupts import Interrupts
from zonefs_emu.vfio_user.pci_config import NR_VECTORS


def test_an_interrupt_while_its_eventfd_is_away_comes_with_the_next_one() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    some = [-1, fd] + [-1] * (NR_VECTORS - 2)
    interrupts = Interrupts(DriveMemory(bytearray(MEMORY_BYTES)))
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


def test_a_masked_interrupt_comes_when_it_is_unmasked() -> None:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    memory = DriveMemory(bytearray(MEMORY_BYTES))
    interrupts = Interrupts(memory)
    interrupts.set([*fds] + [-1] * (NR_VECTORS - 2))
    memory.words[INTMS_WORD] = 1 << 1
    interrupts.signal(0)
    interrupts.signal(1)
    interrupts.signal_latched()
    assert os.eventfd_read(fds[0]) == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fds[1])
    memory.words[INTMS_WORD] = 0
    interrupts.signal_latched()
    assert os.eventfd_read(fds[1]) == 1
    interrupts.signal_latched()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fds[1])
    for fd in fds:
        os.close(fd)


def test_an_interrupt_that_nobody_takes_holds_nothing_up() -> None:
    """An eventfd that is full would block the thread of the drive until the client reads it."""
    fd = os.eventfd(0)
    os.eventfd_write(fd, (1 << 64) - 2)
    interrupts = Interrupts(DriveMemory(bytearray(MEMORY_BYTES)))
    interrupts.set([fd] * NR_VECTORS)
    thread = threading.Thread(target=interrupts.signal, args=(0,), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    os.close(fd)


def test_a_client_that_makes_its_eventfd_block_again_holds_it_up_for_a_while_only() -> None:
    fd = os.eventfd(0)
    os.eventfd_write(fd, (1 << 64) - 2)
    interrupts = Interrupts(DriveMemory(bytearray(MEMORY_BYTES)))
    interrupts.set([fd] * NR_VECTORS)
    os.set_blocking(fd, True)
    thread = threading.Thread(target=interrupts.signal, args=(0,), daemon=True)
    thread.start()
    while thread.is_alive():
        interrupts.eventfds.free()
        thread.join(0.01)
    assert os.eventfd_read(fd) == 1
    os.close(fd)


def test_a_descriptor_that_nothing_can_be_written_to(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    interrupts = Interrupts(DriveMemory(bytearray(MEMORY_BYTES)))
    interrupts.set([fd] * NR_VECTORS)
    interrupts.signal(0)
    os.close(fd)
