"""The guest memory that a front-end shares: its mapped regions as one :class:`GuestMemory`.

May not know: rings, and the content of the memory.
"""

from collections.abc import Callable, Mapping
from typing import Final

from zonefs_emu.errors import PeerError
from zonefs_emu.vhost_user.connection import Handler, Reply
from zonefs_emu.vhost_user.messages import MemoryRegion, MemoryTable, Nothing, Number, Request
from zonefs_emu.virtio.memory import GuestMemory, Region
from zonefs_emu.virtqueue.peer_memory import PeerMemory

#: The most regions, as many as the kernel's vhost has. The number must never shrink between connections.
MEM_SLOTS_MAX: Final = 509


class MemoryMap:
    """The memory regions of one connection. The caller closes their descriptors, which a mapping does not need."""

    def __init__(self, shared: PeerMemory) -> None:
        """Begin without regions; they are mapped as a part of the *shared* memory."""
        self._shared = shared
        #: The regions as they are now.
        self.memory = GuestMemory()
        #: Called after *memory* was replaced. The regions of the old object are unmapped with its last reference.
        self.changed: Callable[[], None] = lambda: None
        self.handlers: Mapping[int, Handler] = {
            Request.SET_MEM_TABLE: self._set_table,
            Request.GET_MAX_MEM_SLOTS: self._get_max_slots,
            Request.ADD_MEM_REG: self._add,
            Request.REM_MEM_REG: self._remove,
        }

    def close(self) -> None:
        """Unmap the memory now instead of at the next garbage collection."""
        self.memory = GuestMemory()

    def _map(self, region: MemoryRegion, fd: int) -> Region:
        view = self._shared.view(fd, region.size, region.mmap_offset)
        return Region(region.guest_address, region.size, region.user_address, view)

    def _replace(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.changed()

    def _set_table(self, payload: MemoryTable, fds: list[int]) -> None:
        if len(fds) != len(payload.regions):
            message = f"a memory table of {len(payload.regions)} regions came with {len(fds)} descriptors"
            raise PeerError(message)
        self._replace(GuestMemory([self._map(region, fd) for region, fd in zip(payload.regions, fds, strict=True)]))

    def _add(self, payload: MemoryRegion, fds: list[int]) -> None:
        if len(fds) != 1:
            message = f"a memory region came with {len(fds)} descriptors instead of one"
            raise PeerError(message)
        if len(self.memory.regions) >= MEM_SLOTS_MAX:
            message = f"a memory region cannot be added: there are {MEM_SLOTS_MAX} already, which is the limit"
            raise PeerError(message)
        self._replace(GuestMemory((*self.memory.regions, self._map(payload, fds[0]))))

    def _remove(self, payload: MemoryRegion, _fds: list[int]) -> None:
        kept = [
            region
            for region in self.memory.regions
            if (region.guest_address, region.size, region.user_address)
            != (payload.guest_address, payload.size, payload.user_address)
        ]
        if len(kept) == len(self.memory.regions):
            message = (
                f"a memory region of {payload.size} bytes at {payload.guest_address:#x} cannot be removed: "
                "there is no such region"
            )
            raise PeerError(message)
        self._replace(GuestMemory(kept))

    def _get_max_slots(self, _payload: Nothing, _fds: list[int]) -> Reply:
        return Reply(Number(MEM_SLOTS_MAX))
