"""The PCI function that a client sees: regions, interrupts, memory, reset. It knows no NVMe.

Writes of the guest to registers and doorbells are stored in the memory of the drive, and the drive is kicked. So a
write is cheap, and the drive may be in another process.

Errors of a client are of two kinds. Bytes that are no message of the protocol raise PeerError, which ends the
connection. A message that cannot be carried out is answered with an error number.
"""

import errno
import logging
import os
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.errors import PeerError
from zonefs_emu.vfio_user import pci_config, vfio_messages as messages
from zonefs_emu.vfio_user.client_connection import ClientMessage
from zonefs_emu.vfio_user.drive_memory import CC_WORD, DOORBELLS_OFFSET, INTMC_WORD, INTMS_WORD, DriveMemory
from zonefs_emu.vfio_user.pci_config import NR_VECTORS, InterruptKind, PciConfig
from zonefs_emu.vfio_user.vfio_messages import (
    DMA_MAPS_MAX,
    IrqSetFlag,
    IrqSetRequest,
    RegionAccess,
    RegionFlag,
    VfioCommand,
)
from zonefs_emu.virtqueue.peer_eventfds import is_eventfd

_CONFIG_REGION: Final = 7
_NR_REGIONS: Final = 9
_NR_IRQS: Final = 5
_ADDRESS_END: Final = 1 << 64
_READ_WRITE: Final = RegionFlag.READ | RegionFlag.WRITE
_REGION_BYTES: Final[Mapping[int, int]] = {
    0: pci_config.BAR0_BYTES,
    _CONFIG_REGION: pci_config.CONFIG_BYTES,
}
#: Registers that a guest may write besides CC, INTMS and INTMC: AQA, ASQ and ACQ; by offsets of 4 bytes.
_WRITABLE: Final = frozenset((0x24, 0x28, 0x2C, 0x30, 0x34))
#: The end of the registers, long before the doorbells; reads beyond it return zeros.
_REGISTERS_END: Final = 0x100


class DmaRegion(NamedTuple):
    """Memory of the guest: *size* bytes at *iova* are those at *offset* of *fd*, which belongs to the function."""

    iova: int
    size: int
    fd: int
    offset: int


class Drive(Protocol):
    """The drive behind the function."""

    def map_memory(self, region: DmaRegion) -> None:
        """Use *region* from now on.

        Raises:
            PeerError: it cannot be mapped.
        """
        ...

    def unmap_memory(self, region: DmaRegion) -> None:
        """Stop using *region*; no byte of it is accessed after the return."""
        ...

    def set_interrupts(self, fds: list[int]) -> None:
        """Signal interrupts by these eventfds from now on, one for each vector; -1: none."""
        ...

    def reset(self) -> None:
        """Clear the memory of the drive, and drop all queues and settings of the guest."""
        ...

    def kick(self) -> None:
        """Check registers and doorbells."""
        ...


class RefusedMessageError(Exception):
    """A message is refused with *number*, of errno. *what*: the request that is refused, for the log."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.number = number


class PciFunction:
    """One function with one client."""

    def __init__(self, drive: Drive, memory: DriveMemory, interrupt_kind: InterruptKind = InterruptKind.MSIX) -> None:
        self._drive = drive
        self._memory = memory
        self._interrupt_kind = interrupt_kind
        self._config = PciConfig(interrupt_kind)
        self._region_bytes = dict(_REGION_BYTES)
        if interrupt_kind is InterruptKind.MSIX:
            self._region_bytes[pci_config.MSIX_BAR] = pci_config.MSIX_BAR_BYTES
        self._log = LimitedLog(logging.getLogger(__name__))
        #: The maps of the client; maps without a descriptor (firmware) have fd -1 and are not passed to the drive.
        self.regions: dict[int, DmaRegion] = {}
        self.interrupts = [-1] * NR_VECTORS
        self._has_version = False
        self._handlers: Mapping[int, Callable[[bytes, list[int]], bytes]] = {
            VfioCommand.VERSION: self._version,
            VfioCommand.DMA_MAP: self._dma_map,
            VfioCommand.DMA_UNMAP: self._dma_unmap,
            VfioCommand.DEVICE_GET_INFO: self._device_info,
            VfioCommand.DEVICE_GET_REGION_INFO: self._region_info,
            VfioCommand.DEVICE_GET_IRQ_INFO: self._irq_info,
            VfioCommand.DEVICE_SET_IRQS: self._set_irqs,
            VfioCommand.REGION_READ: self._region_read,
            VfioCommand.REGION_WRITE: self._region_write,
            VfioCommand.DEVICE_RESET: self._reset_message,
        }

    def handle(self, message: ClientMessage) -> bytes | None:
        """Carry out *message*; return the answer, or None if none is wanted. Its descriptors are closed or kept.

        Raises:
            PeerError: it is no message of the protocol.
        """
        header = message.header
        try:
            if not self._has_version and header.command != VfioCommand.VERSION:
                raise PeerError(f"command {header.command} came before the version")
            handler = self._handlers.get(header.command)
            if handler is None:
                raise RefusedMessageError(errno.ENOSYS, f"command {header.command}, which is not known")
            payload = handler(message.payload, message.fds)
        except RefusedMessageError as refused:
            self._log.info("a message of the client is refused: %s", refused)
            return messages.encode_error(header, refused.number) if header.wants_reply else None
        finally:
            for fd in message.fds:
                os.close(fd)
        return messages.encode_reply(header, payload) if header.wants_reply else None

    def close(self) -> None:
        """Unmap all memory and interrupts of the drive, and close all descriptors."""
        self._set_interrupts([-1] * NR_VECTORS)
        self.reset()
        for region in list(self.regions.values()):
            self._forget(region)

    def reset(self) -> None:
        """Reset the function to its state after power-on; memory and interrupts stay."""
        self._config.reset()
        self._drive.reset()

    # -- what the function is -------------------------------------------------------------------------------------

    def _version(self, payload: bytes, _fds: list[int]) -> bytes:
        major, minor = messages.decode_version(payload)
        if major:
            raise PeerError(f"version {major}.{minor} of vfio-user is not supported: only 0.x is")
        self._has_version = True
        return messages.encode_version()

    def _device_info(self, _payload: bytes, _fds: list[int]) -> bytes:
        return messages.encode_device_info(_NR_REGIONS, _NR_IRQS)

    def _region_info(self, payload: bytes, _fds: list[int]) -> bytes:
        index = messages.decode_index(payload)
        if index >= _NR_REGIONS:
            raise RefusedMessageError(errno.EINVAL, f"region {index}: there are regions 0 to {_NR_REGIONS - 1}")
        size = self._region_bytes.get(index, 0)
        return messages.encode_region_info(index, _READ_WRITE if size else RegionFlag(0), size)

    def _irq_info(self, payload: bytes, _fds: list[int]) -> bytes:
        index = messages.decode_index(payload)
        if index > InterruptKind.MSIX:
            # QEMU warns of an answer that says "none".
            raise RefusedMessageError(errno.EINVAL, f"interrupts of kind {index}, which are not there")
        return messages.encode_irq_info(index, NR_VECTORS if index == self._interrupt_kind else 0)

    def _reset_message(self, _payload: bytes, _fds: list[int]) -> bytes:
        self.reset()
        return b""

    # -- memory ---------------------------------------------------------------------------------------------------

    def _dma_map(self, payload: bytes, fds: list[int]) -> bytes:
        request = messages.decode_dma_map(payload)
        iova, size = request.iova, request.size
        if size <= 0 or iova + size > _ADDRESS_END or len(fds) > 1:
            raise RefusedMessageError(errno.EINVAL, f"a map of {size} bytes at {iova:#x}, with {len(fds)} descriptors")
        if any(iova < known.iova + known.size and known.iova < iova + size for known in self.regions.values()):
            raise RefusedMessageError(errno.EEXIST, f"a map of {size} bytes at {iova:#x}, some of which are mapped")
        if len(self.regions) >= DMA_MAPS_MAX:
            raise RefusedMessageError(errno.ENOSPC, f"more than {DMA_MAPS_MAX} maps")
        fd = fds[0] if fds else -1
        region = DmaRegion(iova, size, fd, request.offset)
        if fds:
            try:
                self._drive.map_memory(region)
            except PeerError as error:
                raise RefusedMessageError(errno.EINVAL, str(error)) from None
            fds.clear()
        self.regions[iova] = region
        return b""

    def _dma_unmap(self, payload: bytes, _fds: list[int]) -> bytes:
        request = messages.decode_dma_unmap(payload)
        if request.flags & messages.UNMAP_ALL:
            for region in list(self.regions.values()):
                self._forget(region)
            return messages.encode_dma_unmap(request)
        found = self.regions.get(request.iova)
        if found is None or found.size != request.size:
            raise RefusedMessageError(
                errno.ENOENT, f"no map of {request.size} bytes at {request.iova:#x} is there to be taken away"
            )
        self._forget(found)
        return messages.encode_dma_unmap(request)

    def _forget(self, region: DmaRegion) -> None:
        del self.regions[region.iova]
        if region.fd >= 0:
            try:
                self._drive.unmap_memory(region)
            finally:
                os.close(region.fd)

    # -- interrupts -----------------------------------------------------------------------------------------------

    def _set_irqs(self, payload: bytes, fds: list[int]) -> bytes:
        request = messages.decode_irq_set(payload)
        if request.kind >= _NR_IRQS:
            raise RefusedMessageError(errno.EINVAL, f"interrupts of kind {request.kind}: there are 0 to {_NR_IRQS - 1}")
        if request.kind != self._interrupt_kind:
            if request.nr_vectors:
                raise RefusedMessageError(errno.EINVAL, f"interrupts of kind {request.kind}, which are not there")
            return b""
        if request.start + request.nr_vectors > NR_VECTORS:
            what = f"{request.nr_vectors} vectors from {request.start} on: there are {NR_VECTORS}"
            raise RefusedMessageError(errno.EINVAL, what)
        if request.flags & IrqSetFlag.ACTION_TRIGGER:
            self._set_triggers(request, fds)
        return b""

    def _set_triggers(self, request: IrqSetRequest, fds: list[int]) -> None:
        changed = self.interrupts.copy()
        if request.flags & IrqSetFlag.DATA_EVENTFD:
            if len(fds) not in (0, request.nr_vectors):
                raise RefusedMessageError(errno.EINVAL, f"{len(fds)} descriptors for {request.nr_vectors} vectors")
            if not all(map(is_eventfd, fds)):
                raise RefusedMessageError(errno.EINVAL, "an interrupt by a descriptor that is no eventfd")
            changed[request.start : request.start + request.nr_vectors] = fds or [-1] * request.nr_vectors
            fds.clear()
        elif request.flags & IrqSetFlag.DATA_NONE and not request.nr_vectors:
            changed = [-1] * NR_VECTORS
        else:
            return  # the client signals the guest by itself
        self._set_interrupts(changed)

    def _set_interrupts(self, fds: list[int]) -> None:
        old, self.interrupts = self.interrupts, fds
        self._drive.set_interrupts(fds)
        for fd in set(old) - set(fds) - {-1}:
            os.close(fd)

    # -- regions --------------------------------------------------------------------------------------------------

    def _region_read(self, payload: bytes, _fds: list[int]) -> bytes:
        access, _ = messages.decode_region_access(payload)
        self._require_in_region(access)
        data = bytes(access.nr_bytes)
        if access.region == _CONFIG_REGION:
            data = self._config.read(access.offset, access.nr_bytes)
        elif access.region == 0 and access.offset + access.nr_bytes <= _REGISTERS_END:
            data = self._memory.registers(access.offset, access.nr_bytes)
        return messages.encode_region_access(access, data)

    def _region_write(self, payload: bytes, _fds: list[int]) -> bytes:
        access, data = messages.decode_region_access(payload)
        if len(data) < access.nr_bytes:
            raise PeerError(f"{access.nr_bytes} bytes for a region were announced, but {len(data)} came")
        self._require_in_region(access)
        data = data[: access.nr_bytes]
        if access.region == 0:
            self._write_bar(access.offset, data)
        elif access.region == _CONFIG_REGION and self._config.write(access.offset, data):
            self.reset()
        return messages.encode_region_access(access)

    def _write_bar(self, offset: int, data: bytes) -> None:
        """Store a guest's writes to registers and doorbells: whole words of 4 bytes; other writes are ignored."""
        if offset & 3 or len(data) not in (4, 8):
            return
        memory = self._memory
        for at in range(0, len(data), 4):
            value = int.from_bytes(data[at : at + 4], "little")
            if offset + at >= DOORBELLS_OFFSET:
                memory.doorbells[(offset + at - DOORBELLS_OFFSET) >> 2] = value
            elif (offset + at) >> 2 == CC_WORD:
                memory.configure(value)
            elif (offset + at) >> 2 in (INTMS_WORD, INTMC_WORD):
                self._mask_interrupts((offset + at) >> 2, value)
            elif offset + at in _WRITABLE:
                memory.words[(offset + at) >> 2] = value
        self._drive.kick()

    def _mask_interrupts(self, word: int, bits: int) -> None:
        """Mask or unmask the vectors *bits*; with MSI-X, its table does that, and the registers mean nothing.

        Source: NVM Express over PCIe Transport Specification 1.0, "Interrupts".
        """
        if self._interrupt_kind is InterruptKind.MSI:
            words = self._memory.words
            mask = words[INTMS_WORD] | bits if word == INTMS_WORD else words[INTMS_WORD] & ~bits
            words[INTMS_WORD] = words[INTMC_WORD] = mask

    def _require_in_region(self, access: RegionAccess) -> None:
        size = self._region_bytes.get(access.region, 0)
        if access.offset + access.nr_bytes > size:
            what = f"{access.nr_bytes} bytes at {access.offset:#x} of region {access.region}, which has {size}"
            raise RefusedMessageError(errno.EINVAL, what)
