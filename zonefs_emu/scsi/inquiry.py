"""The target's description of itself: INQUIRY data, vital product data pages, capacity, list of logical units.

May not know: zone conditions, commands.
Invariant: pure functions of the geometry and the identity; all integers are big endian.

Sources: SPC-4 (INQUIRY, VPD 00h 80h 83h, REPORT LUNS), SBC-3 (VPD B0h B1h B2h, READ CAPACITY), ZBC-2 (VPD B6h).
"""

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from zonefs_emu.model.geometry import Geometry

VENDOR: Final = "ZNFSEMU"
PRODUCT: Final = "ZONED DISK"
REVISION: Final = "0001"

#: First byte of INQUIRY data: host-managed zoned block device; well-known logical unit; no device is possible at this
#: LUN (PERIPHERAL QUALIFIER 011b, type 1Fh).
DEVICE_TYPE: Final = 0x14
WELL_KNOWN_TYPE: Final = 0x1E
NO_DEVICE: Final = 0x7F

#: The longest data transfer of one command. It bounds the work of one request; Linux splits its requests by it.
MAX_TRANSFER_BYTES: Final = 32 << 20

#: "No limit" in the zoned block device characteristics.
NO_LIMIT: Final = 0xFFFFFFFF
#: Values of ZONE ALIGNMENT METHOD: all zones have the same length; zones start at multiples of a granularity, with gap
#: zones between them. Source: ZBC-2, "Zoned Block Device Characteristics VPD page".
CONSTANT_ZONE_LENGTH: Final = 0x1
CONSTANT_ZONE_START_OFFSET: Final = 0x8

_SPC_4: Final = 0x06
#: SAM-5, SPC-4, SBC-3, ZBC, each with "no version claimed".
_VERSION_DESCRIPTORS: Final = (0x00A0, 0x0460, 0x04C0, 0x0620)
_CMDQUE: Final = 0x02
_HISUP: Final = 0x10
_RESPONSE_FORMAT: Final = 0x02


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The names of the logical unit.

    *serial* has 1 to 252 printable ASCII characters. In INQUIRY data, *vendor*, *product* and *revision* are cut to
    8, 16 and 4 characters.

    Raises:
        ValueError: *serial* is not such a text.
    """

    serial: str
    vendor: str = VENDOR
    product: str = PRODUCT
    revision: str = REVISION

    def __post_init__(self) -> None:
        """Check the serial number."""
        if not (1 <= len(self.serial) <= 252 and all(" " <= char <= "~" for char in self.serial)):
            raise ValueError(f"a SCSI serial number is 1 to 252 printable ASCII characters, not {self.serial!r}")

    @property
    def naa(self) -> bytes:
        """A locally assigned NAA identifier, 8 bytes. It follows from the serial number, so udev links are stable."""
        digest = hashlib.sha256(self.serial.encode()).digest()
        return bytes((0x30 | digest[0] & 0x0F,)) + digest[1:8]


def has_gaps(geometry: Geometry) -> bool:
    """Return whether there are gap zones, because a sequential zone is longer than its capacity."""
    if geometry.zone_capacity == geometry.zone_size:
        return False
    return any(geometry.zone_cap(zone_no) < geometry.zone_len(zone_no) for zone_no in geometry.sequential_zones())


def standard_inquiry(identity: Identity, device_type: int = DEVICE_TYPE) -> bytes:
    """Return the standard INQUIRY data, 96 bytes. *device_type* is its first byte."""
    data = bytearray(96)
    data[0] = device_type
    data[2] = _SPC_4
    data[3] = _HISUP | _RESPONSE_FORMAT
    data[4] = len(data) - 5
    data[7] = _CMDQUE
    data[8:16] = _text(identity.vendor, 8)
    data[16:32] = _text(identity.product, 16)
    data[32:36] = _text(identity.revision, 4)
    struct.pack_into(">4H", data, 58, *_VERSION_DESCRIPTORS)
    return bytes(data)


def vpd_pages(identity: Identity, geometry: Geometry) -> Mapping[int, bytes]:
    """Return all vital product data pages of the disk, by page code."""
    bodies: dict[int, Callable[[], bytes]] = {
        0x80: lambda: identity.serial.encode("ascii"),
        0x83: lambda: _device_identification(identity),
        0xB0: lambda: _block_limits(geometry),
        0xB1: _block_device_characteristics,
        # No thresholds, no provisioning: LBPME is 0, so a zone is freed by resetting it.
        0xB2: lambda: bytes(4),
        0xB6: lambda: _zoned_characteristics(geometry),
    }
    pages = {0x00: bytes((0x00, *bodies))} | {code: body() for code, body in bodies.items()}
    return MappingProxyType(
        {code: bytes((DEVICE_TYPE, code)) + len(body).to_bytes(2, "big") + body for code, body in pages.items()}
    )


def _device_identification(identity: Identity) -> bytes:
    """Return the designators of the logical unit: T10 vendor identification (ASCII) and NAA (binary)."""
    vendor = _text(identity.vendor, 8) + _text(identity.product, 16) + identity.serial.encode("ascii")
    vendor = vendor[:255]
    naa = identity.naa
    return bytes((0x02, 0x01, 0, len(vendor))) + vendor + bytes((0x01, 0x03, 0, len(naa))) + naa


def _block_limits(geometry: Geometry) -> bytes:
    body = bytearray(0x3C)
    granularity = geometry.write_granularity // geometry.block_sectors
    # Offsets are those of the page minus its 4-byte header.
    struct.pack_into(">H", body, 2, min(granularity, 0xFFFF))
    struct.pack_into(">I", body, 4, MAX_TRANSFER_BYTES // geometry.block_size_bytes)
    return bytes(body)


def _block_device_characteristics() -> bytes:
    body = bytearray(0x3C)
    # Medium rotation rate 1: non-rotating. ZONED stays 0: the device type already says host-managed.
    struct.pack_into(">H", body, 0, 1)
    # FUAB: SYNCHRONIZE CACHE and FUA mean the medium, not some non-volatile cache (SBC-3).
    body[4] = 0x02
    return bytes(body)


def _zoned_characteristics(geometry: Geometry) -> bytes:
    body = bytearray(0x3C)
    # URSWRZ: reads beyond write pointers and across sequential zones are allowed (ZBC-2); Linux requires it.
    body[0] = 0x01
    # The optimal numbers concern sequential write preferred zones, which the disk does not have: not reported.
    struct.pack_into(">III", body, 4, NO_LIMIT, NO_LIMIT, geometry.max_open_zones or NO_LIMIT)
    if has_gaps(geometry):
        body[19] = CONSTANT_ZONE_START_OFFSET
        struct.pack_into(">Q", body, 20, geometry.zone_size // geometry.block_sectors)
    else:
        body[19] = CONSTANT_ZONE_LENGTH
    return bytes(body)


def read_capacity_10(geometry: Geometry) -> bytes:
    """Return the READ CAPACITY(10) parameter data: the last LBA, or FFFFFFFFh where READ CAPACITY(16) is needed."""
    last = geometry.size // geometry.block_sectors - 1
    return struct.pack(">II", min(last, 0xFFFFFFFF), geometry.block_size_bytes)


def read_capacity_16(geometry: Geometry) -> bytes:
    """Return the READ CAPACITY(16) parameter data.

    RC_BASIS is 01b: the last LBA is the device's. The physical block is the write granularity, rounded up to a power
    of two: Linux takes zone_write_granularity from it.
    """
    data = bytearray(32)
    struct.pack_into(">QI", data, 0, geometry.size // geometry.block_sectors - 1, geometry.block_size_bytes)
    data[12] = 0x10
    data[13] = min((geometry.write_granularity // geometry.block_sectors - 1).bit_length(), 0xF)
    return bytes(data)


def report_luns(select_report: int) -> bytes | None:
    """Return the REPORT LUNS parameter data, or None if *select_report* is unknown.

    00h lists LUN 0, the disk; 01h lists C101h, the REPORT LUNS well-known logical unit; 02h lists both.

    Source: SPC-4, "REPORT LUNS command".
    """
    luns = {0x00: (0x0000,), 0x01: (0xC101,), 0x02: (0x0000, 0xC101)}.get(select_report)
    if luns is None:
        return None
    return struct.pack(">I4x", 8 * len(luns)) + b"".join(struct.pack(">H6x", lun) for lun in luns)


def _text(text: str, length: int) -> bytes:
    return text.encode("ascii", errors="replace")[:length].ljust(length)
