"""The memory that a peer shares: mapped files, which the peer can cut at any time.

An access to a page that the peer cut off raises SIGBUS, which would end the process and with it the service to all
other guests. So every mapping of a peer's file is watched (:mod:`zonefs_emu.persist.sigbus`): SIGBUS turns the whole
mapping into private memory of zeros, and the loss is noted. The transport checks for a loss after each turn of its
loop, and then stops serving this memory. Until then requests read zeros, which a guest could have written itself.

May not know: what the memory is used for.
"""

import mmap
import os
from contextlib import suppress
from typing import Final

from zonefs_emu.errors import PeerError
from zonefs_emu.persist import sigbus

#: The reason in the log for a peer that truncated a file.
LOST: Final = "a file of the memory that it shares was cut"


class PeerMap(mmap.mmap):
    """A mapping of a peer's file. The watch for its loss ends when the object is freed."""

    watch_no = 0

    def __del__(self) -> None:
        """End the watch, because the addresses may be reused for other memory."""
        sigbus.unwatch(self.watch_no)


class PeerMemory:
    """The memory of one peer, and whether the peer has truncated a file of it."""

    def __init__(self) -> None:
        """Begin without a loss."""
        self.is_lost = False

    def note_loss(self) -> None:
        """Note that memory is gone. The method takes no lock, because it may be called in the middle of an access."""
        self.is_lost = True

    def watch(self, mapping: PeerMap) -> PeerMap:
        """Note a loss when the peer cuts the file of *mapping*; return *mapping*."""
        mapping.watch_no = sigbus.watch(mapping, self.note_loss, whole=True)
        return mapping

    def view(self, fd: int, size: int, offset: int) -> memoryview:
        """Map *size* bytes at *offset* of *fd*. Neither needs to be a multiple of a page.

        Raises:
            PeerError: the file does not have these bytes, or cannot be mapped.
        """
        start = offset % mmap.ALLOCATIONGRANULARITY
        return memoryview(self.map(fd, size, offset))[start : start + size]

    def map(self, fd: int, size: int, offset: int) -> PeerMap:
        """Map the pages that hold *size* bytes at *offset* of *fd*.

        The first of these bytes is at offset % ALLOCATIONGRANULARITY of the mapping.

        Raises:
            PeerError: as :meth:`view`.
        """
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        length = offset + size - start
        try:
            status = os.fstat(fd)
            # Without this check, a file that is too short would only be noticed at the first access.
            if size <= 0 or status.st_size < offset + size:
                message = f"{size} bytes at {offset} do not lie in the shared file, which has {status.st_size} bytes"
                raise PeerError(message)
            with suppress(OSError):
                # A mapping of huge pages can be unmapped in whole huge pages only.
                huge = os.fstatvfs(fd).f_bsize
                if huge > mmap.PAGESIZE and status.st_size % huge == 0 and start % huge == 0:
                    length = min(-(-length // huge) * huge, status.st_size - start)
            return self.watch(PeerMap(fd, length, offset=start))
        except (OSError, ValueError, OverflowError) as error:
            message = f"{size} bytes at {offset} of the shared file cannot be mapped: {error}"
            raise PeerError(message) from None
