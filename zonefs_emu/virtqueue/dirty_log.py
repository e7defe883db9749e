"""The dirty log: one bit for each 4 KiB page of guest memory that we wrote while the guest is being moved.

The front-end reads and clears the bits while we set them, so a bit is set atomically (:mod:`.atomic`), and after the
page was written. A bit that is already set is set again all the same: seeing it does not prove that the front-end has
not cleared it and copied the page since.

Source: vhost-user.rst, "Migration": "bit 0 of byte 0 is page 0".
"""

import ctypes
import mmap
import os
from collections.abc import Iterable
from typing import Final

from zonefs_emu.errors import PeerError
from zonefs_emu.virtqueue.atomic import set_bit

PAGE_SHIFT: Final = 12


class DirtyLog:
    """A mapped log of *size* bytes at *offset* of a file."""

    def __init__(self, fd: int, size: int, offset: int) -> None:
        """Map it; *fd* stays the caller's.

        Raises:
            PeerError: it cannot be mapped.
        """
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        try:
            if size <= 0 or offset < 0 or os.fstat(fd).st_size < offset + size:
                raise ValueError("the file is too short")
            self._map = mmap.mmap(fd, offset + size - start, offset=start)
        except (OSError, ValueError, OverflowError) as error:
            msg = f"a dirty log of {size} bytes at {offset} cannot be mapped: {error}"
            raise PeerError(msg) from None
        self._nr_pages = size * 8
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + offset - start

    def mark(self, runs: Iterable[tuple[int, int]]) -> None:
        """Mark the pages of *runs* (guest address, bytes), each page once."""
        # In order, and without a set of the pages: runs may be the whole of the memory, and many may be the same page.
        following = 0
        for address, length in sorted(runs):
            if length <= 0:
                continue
            end = min((address + length - 1 >> PAGE_SHIFT) + 1, self._nr_pages)
            for page in range(max(address >> PAGE_SHIFT, following), end):
                byte = self._address + (page >> 3)
                set_bit(byte & ~3, (byte & 3) * 8 + (page & 7))
            following = max(following, end)
