"""The driver's memory: files that the kernel names one by one, mapped.

A driver of this kernel (virtio-vdpa) copies all data through one buffer, and has an area for the rings. The kernel
knows the buffer from the first request on only, so it is asked again for addresses that are not known here. With a
virtual machine (vhost-vdpa), the files are the memory of the machine.
"""

import mmap
import os
from collections.abc import Callable, Iterator
from typing import Final

from zonefs_emu.vduse.protocol import ACCESS_RO, Mapping
from zonefs_emu.virtio.memory import BadAddressError, GuestMemory, Region
from zonefs_emu.virtqueue.peer_memory import PeerMap, PeerMemory

#: find(start, last) -> the first mapping in that range, with a descriptor for the caller; or None.
Find = Callable[[int, int], tuple[Mapping, int] | None]
_ADDRESS_LAST: Final = (1 << 64) - 1


class VduseMemory(GuestMemory):
    """The known part of the driver's memory.

    It grows when an unknown address is looked up. It never shrinks: when the kernel takes memory back, a new object
    replaces it.
    """

    __slots__ = ("_find", "_shared")

    def __init__(self, find: Find, shared: PeerMemory) -> None:
        """Map the files that *find* returns now.

        They become a part of the *shared* memory, because the files of a virtual machine can be cut.

        Raises:
            PeerError: the regions overlap.
            OSError, ValueError: a file cannot be mapped.
        """
        self._find = find
        self._shared = shared
        super().__init__(_regions(find, shared))

    def slices(self, address: int, length: int) -> list[memoryview]:
        """Return the memory at *address*, after asking the kernel if it is not known.

        See :meth:`GuestMemory.slices`.
        """
        try:
            return super().slices(address, length)
        except BadAddressError:
            if not self._grow():
                raise
        return super().slices(address, length)

    def at_user_address(self, address: int, length: int) -> memoryview:
        """Return the ring at *address*, after asking the kernel if it is not known.

        See :meth:`GuestMemory.at_user_address`.
        """
        try:
            return super().at_user_address(address, length)
        except BadAddressError:
            if not self._grow():
                raise
        return super().at_user_address(address, length)

    def _grow(self) -> bool:
        known = len(self.regions)
        found = {region.guest_address for region in self.regions}
        super().__init__((*self.regions, *_regions(self._find, self._shared, found)))
        return len(self.regions) > known


def _regions(find: Find, shared: PeerMemory, known: "set[int] | frozenset[int]" = frozenset()) -> Iterator[Region]:
    """Map and yield all memory that *find* returns, except regions that start at addresses in *known*."""
    start = 0
    while (found := find(start, _ADDRESS_LAST)) is not None:
        mapping, fd = found
        try:
            if mapping.start not in known:
                size = mapping.last - mapping.start + 1
                access = mmap.PROT_READ if mapping.access == ACCESS_RO else mmap.PROT_READ | mmap.PROT_WRITE
                mapped = shared.watch(PeerMap(fd, size, mmap.MAP_SHARED, access, offset=mapping.offset))
                view = memoryview(mapped)
                # The kernel gives the addresses of rings as the driver's addresses, like those in the rings.
                yield Region(mapping.start, size, mapping.start, view)
        finally:
            os.close(fd)
        if mapping.last >= _ADDRESS_LAST:
            return
        start = mapping.last + 1
