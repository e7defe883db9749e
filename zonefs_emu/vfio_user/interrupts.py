"""The interrupts of a drive, by eventfds of its client."""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress

from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.vfio_user.drive_memory import INTMS_WORD, DriveMemory
from zonefs_emu.vfio_user.pci_config import NR_VECTORS
from zonefs_emu.virtqueue.peer_eventfds import PeerEventfds


class Interrupts:
    """One eventfd for each vector; the descriptors belong to the caller of :meth:`set`.

    *memory* has the mask of the guest.
    """

    def __init__(self, memory: DriveMemory) -> None:
        self._words = memory.words
        self.eventfds = PeerEventfds()
        self._log = LimitedLog(logging.getLogger(__name__))
        self._fds: Sequence[int] = [-1] * NR_VECTORS
        #: Vectors with a pending interrupt, because they had no eventfd or were masked.
        self._latched: set[int] = set()

    def set(self, fds: Sequence[int]) -> None:
        """Signal by *fds* from now on, one for each vector; -1: none."""
        self._fds = fds
        for fd in fds:
            if fd >= 0:
                # Otherwise a client that leaves its eventfd full would stop the thread of the drive for some seconds.
                with suppress(OSError):  # of a descriptor that nothing can be written to
                    os.set_blocking(fd, False)
        self.signal_latched()

    def reset(self) -> None:
        """Drop pending interrupts."""
        self._latched.clear()

    def signal(self, vector: int) -> None:
        """Signal *vector*, now or as soon as it has an eventfd and is not masked.

        The client sets vectors one by one, and takes all of them away before it sets each. An interrupt between the two
        waits for its eventfd, and is not lost.
        """
        fd = self._fds[vector]
        if fd < 0 or self._words[INTMS_WORD] >> vector & 1:
            self._latched.add(vector)
            return
        try:
            self.eventfds.signal(fd)
        except OSError as error:
            self._log.info("interrupt %d cannot be signalled: %s", vector, error)

    def signal_latched(self) -> None:
        """Signal the pending interrupts that have an eventfd now and are no longer masked."""
        if self._latched:
            latched, self._latched = self._latched, set()
            for vector in latched:
                self.signal(vector)
