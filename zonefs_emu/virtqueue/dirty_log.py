"""The dirty log: one bit for each 4 KiB page of guest memory that was written while the guest is migrated.

The front-end reads and clears bits meanwhile. So a bit is set atomically (:mod:`.atomic`), and after the page was
written. A bit that seems to be set is set again, because the front-end may just have cleared it and copied the page.

Source: vhost-user.rst, "Migration": ``log[page / 8] |= 1 << page % 8``.
"""

import ctypes
import mmap
from collections.abc import Iterable, Sequence
from typing import Final

from zonefs_emu.virtio.packed import PackedRing
from zonefs_emu.virtio.ring import Chain
from zonefs_emu.virtio.split import SplitRing
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

    def mark_buffers(self, ring: SplitRing | PackedRing, chains: Sequence[Chain]) -> None:
        """Mark all writable buffers of the requests, although fewer bytes may have been written."""
        logged = ring.logged
        if logged is None:
            return
        runs: list[tuple[int, int]] = []
        for token, _, writable in chains:
            # The addresses of a chain that was taken before logging began are not known. So all memory is marked.
            memory = [(region.guest_address, region.size) for region in ring.memory.regions] if writable else []
            runs += logged.pop(token, memory)
        self.mark(runs)

    def mark_used(self, ring: SplitRing | PackedRing, start: int, count: int) -> None:
        """Mark the pages that were written to give *count* requests back: index and elements, or descriptors.

        *start*: the guest address of the used ring, or of the packed ring.
        """
        if isinstance(ring, SplitRing):
            mask = ring.size - 1
            places = {(ring.used_idx - 1 - back) & mask for back in range(min(count, ring.size))}
            self.mark([(start, 4), *((start + 4 + 8 * place, 8) for place in places)])
        else:
            self.mark([(start, 16 * ring.size)])
