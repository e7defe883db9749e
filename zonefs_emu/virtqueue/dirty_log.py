"""The dirty log: one bit for each 4 KiB page of guest memory that was written while the guest is migrated.

The front-end reads and clears bits meanwhile. So a bit is set atomically (:mod:`.atomic`), and after the page was
written. A bit that seems to be set is set again, because the front-end may just have cleared it and copied the page.

Source: vhost-user.rst, "Migration": ``log[page / 8] |= 1 << page % 8``.
"""

import ctypes
import mmap
from collections.abc import Iterable
from typing import Final

from zonefs_emu.virtqueue.atomic import set_bit
from zonefs_emu.virtqueue.peer_memory import PeerMemory

PAGE_SHIFT: Final = 12


class DirtyLog:
    """A mapped log of *size* bytes, for 8 pages each, at *offset* of a file."""

    def __init__(self, shared: PeerMemory, fd: int, size: int, offset: int) -> None:
        """Map the log in the file *fd* as a part of the *shared* memory of the peer. The caller keeps *fd*.

        Raises:
            PeerError: the log cannot be mapped.
        """
        self._shared = shared
        self._map = shared.map(fd, size, offset)
        self._nr_pages = size * 8
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + offset % mmap.ALLOCATIONGRANULARITY

    def mark(self, runs: Iterable[tuple[int, int]]) -> None:
        """Mark the pages of *runs* (guest address, bytes), each page once. Pages beyond the log are left out.

        If the peer has cut the file of the log, the loss of the memory is noted.
        """
        try:
            self._mark(runs)
        except OSError:  # EFAULT: the kernel sets the bits, so no SIGBUS comes
            self._shared.note_loss()

    def _mark(self, runs: Iterable[tuple[int, int]]) -> None:
        # Sorted, because many runs may be in the same page. A set of pages could be large, as a run may be all memory.
        following = 0
        for address, length in sorted(runs):
            if length <= 0:
                continue
            end = min((address + length - 1 >> PAGE_SHIFT) + 1, self._nr_pages)
            for page in range(max(address >> PAGE_SHIFT, following), end):
                byte = self._address + (page >> 3)
                set_bit(byte & ~3, (byte & 3) * 8 + (page & 7))
            following = max(following, end)
