"""The guest memory that a client maps for DMA, as one :class:`GuestMemory`.

May not know: queues, and what lies in the memory.
"""

from zonefs_emu.vfio_user.pci_function import DmaRegion
from zonefs_emu.virtio.memory import GuestMemory, Region
from zonefs_emu.virtqueue.peer_memory import PeerMemory


class GuestMemoryMap:
    """The maps of one client. The function owns the descriptors, because a mapping needs none of its own."""

    def __init__(self) -> None:
        self.shared = PeerMemory()
        self.memory = GuestMemory()
        self._regions: dict[int, Region] = {}

    def map(self, region: DmaRegion) -> None:
        """Add *region*.

        Raises:
            PeerError: its file does not have the bytes.
        """
        view = self.shared.view(region.fd, region.size, region.offset)
        self._regions[region.iova] = Region(region.iova, region.size, 0, view)
        self._replace()

    def unmap(self, region: DmaRegion) -> None:
        """Unmap *region*."""
        del self._regions[region.iova]
        self._replace()

    def close(self) -> None:
        """Unmap all memory now instead of at the next garbage collection."""
        self._regions.clear()
        self._replace()

    def _replace(self) -> None:
        self.memory = GuestMemory(self._regions.values())
