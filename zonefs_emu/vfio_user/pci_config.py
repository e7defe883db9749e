"""The configuration space of the PCI function: an NVMe controller with MSI-X or MSI.

QEMU keeps base addresses, the MSI-X table and the registers of MSI itself and passes other accesses on. So the words of
base addresses and of the expansion ROM are zero here. A writable ROM word would make QEMU look for a ROM.

Source: PCI Local Bus Specification 3.0, "Configuration Space"; PCI Express Base Specification, "PCI Express
Capability"; NVM Express over PCIe Transport Specification 1.0, "PCI Header".
"""

import struct
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final

CONFIG_BYTES: Final = 4096
#: Interrupt vectors: enough for the admin queue and each I/O queue. It is a power of two, as MSI needs.
NR_VECTORS: Final = 32
#: The registers and the doorbells.
BAR0_BYTES: Final = 0x2000
#: The table and the pending bits of MSI-X.
MSIX_BAR: Final = 4
MSIX_BAR_BYTES: Final = 0x1000
_PENDING_BITS: Final = 0x800

_VENDOR: Final = 0x1B36
_DEVICE: Final = 0x0010
#: Mass storage, non-volatile memory controller, NVM Express.
_CLASS: Final = 0x010802
_STATUS_CAPABILITIES: Final = 1 << 4
_CAPABILITIES_POINTER: Final = 0x34
_EXPRESS: Final = 0x40
_POWER: Final = 0x80
#: MSI-X or MSI.
_INTERRUPTS: Final = 0x90
_FUNCTION_RESET_CAPABLE: Final = 1 << 28
_INITIATE_RESET: Final = 1 << 15
_MSI_WIDE_ADDRESS: Final = 1 << 7

#: The bits that a guest may write, by byte.
_WRITABLE: Final[Mapping[int, int]] = MappingProxyType(
    {
        0x04: 0x06,  # memory space, bus master
        0x05: 0x04,  # interrupt disable
        0x0C: 0xFF,  # cache line size
        0x3C: 0xFF,  # interrupt line
        _EXPRESS + 0x08: 0xFF,  # device control
        _EXPRESS + 0x09: 0x7F,
        _EXPRESS + 0x10: 0x43,  # link control
        _POWER + 0x04: 0x03,  # power state
    }
)
_WRITABLE_MSIX: Final[Mapping[int, int]] = MappingProxyType({_INTERRUPTS + 0x03: 0xC0})  # enable, mask all
_WRITABLE_MSI: Final[Mapping[int, int]] = MappingProxyType(
    {
        _INTERRUPTS + 0x02: 0x71,  # enable, number of vectors
        _INTERRUPTS + 0x04: 0xFC,  # address
        **dict.fromkeys(range(_INTERRUPTS + 0x05, _INTERRUPTS + 0x0E), 0xFF),  # address, data
    }
)


class InterruptKind(IntEnum):
    """The interrupts that a function has, by their numbers in messages.

    A guest prefers MSI-X, and uses a queue for each of its processors with it. With MSI, most guests use one queue.
    QEMU 11.1 aborts when a device that has MSI-X is unplugged, so a drive that is to be unplugged needs MSI.

    Source: linux/vfio.h, "VFIO_PCI_MSI_IRQ_INDEX".
    """

    MSI = 1
    MSIX = 2


class PciConfig:
    """The configuration space of one function."""

    def __init__(self, interrupts: InterruptKind) -> None:
        self._interrupts = interrupts
        self._writable = {**_WRITABLE, **(_WRITABLE_MSIX if interrupts is InterruptKind.MSIX else _WRITABLE_MSI)}
        self._data = bytearray(CONFIG_BYTES)
        self.reset()

    def reset(self) -> None:
        """Set the values that the space has after power-on."""
        data = self._data = bytearray(CONFIG_BYTES)
        struct.pack_into("<HHHH", data, 0x00, _VENDOR, _DEVICE, 0, _STATUS_CAPABILITIES)
        data[0x08] = 2
        data[0x09:0x0C] = _CLASS.to_bytes(3, "little")
        struct.pack_into("<HH", data, 0x2C, _VENDOR, _DEVICE)
        # No interrupt pin: a driver without MSI-X or MSI polls, as firmware does.
        data[_CAPABILITIES_POINTER] = _EXPRESS
        # An endpoint, version 2; payloads of 128 bytes; a link of one lane at 2.5 GT/s.
        struct.pack_into("<BBHIHH", data, _EXPRESS, 0x10, _POWER, 0x0002, _FUNCTION_RESET_CAPABLE | 1 << 15, 0, 0)
        struct.pack_into("<IHH", data, _EXPRESS + 0x0C, 0x11, 0, 0x11)
        struct.pack_into("<BBHHH", data, _POWER, 0x01, _INTERRUPTS, 0x0003, 0x0008, 0)
        if self._interrupts is InterruptKind.MSIX:
            struct.pack_into("<BBHII", data, _INTERRUPTS, 0x11, 0, NR_VECTORS - 1, MSIX_BAR, _PENDING_BITS | MSIX_BAR)
        else:
            nr_vectors_log2 = NR_VECTORS.bit_length() - 1
            struct.pack_into("<BBH", data, _INTERRUPTS, 0x05, 0, _MSI_WIDE_ADDRESS | nr_vectors_log2 << 1)

    def read(self, offset: int, count: int) -> bytes:
        """Return *count* bytes at *offset*, which must be in the space."""
        return bytes(self._data[offset : offset + count])

    def write(self, offset: int, data: bytes) -> bool:
        """Store the writable bits of *data* at *offset*; return whether the guest requests a reset of the function."""
        for at, value in enumerate(data, offset):
            mask = self._writable.get(at, 0)
            self._data[at] = self._data[at] & ~mask | value & mask
        at = _EXPRESS + 0x09 - offset
        return 0 <= at < len(data) and bool(data[at] & _INITIATE_RESET >> 8)
