"""The data structures of the Identify command: 4096 bytes each.

Source: NVM Express Base Specification 2.0, "Identify command"; NVM Command Set 1.0 and Zoned Namespace Command Set 1.1,
"Identify command". Fields that are not written are zero, which means "not supported" in all of them.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final
from uuid import UUID

from zonefs_emu.model.geometry import EXTENSION_UNIT_BYTES, Geometry

IDENTIFY_BYTES: Final = 4096
#: Version 2.0.0 of the Base Specification.
VERSION: Final = 0x00020000
MODEL: Final = "zonefs_emu ZNS drive"
VENDOR_ID: Final = 0x1B36
#: Pages of 4 KiB (CAP.MPSMIN), the unit of the limits below.
PAGE_SHIFT: Final = 12
#: The longest transfer of one command is 2^7 pages: 512 KiB.
MDTS: Final = 7
MDTS_BYTES: Final = 1 << (PAGE_SHIFT + MDTS)
#: Asynchronous Event Requests that may be under way, less one; Abort commands, less one; entries of the error log, less
#: one.
AERL: Final = 3
ACL: Final = 3
ELPE: Final = 62
#: Optional commands: Compare, Write Zeroes, Copy; and the feature Timestamp.
ONCS: Final = 1 << 0 | 1 << 3 | 1 << 6 | 1 << 8
#: The most source ranges of a copy. Together they have at most as many bytes as a transfer.
COPY_RANGES_MAX: Final = 128
#: The endurance group that all namespaces are in.
ENDURANCE_GROUP: Final = 1
#: Volatile write cache; a flush of all namespaces is supported.
VWC: Final = 0b111
#: Events: namespace attributes, and descriptors of zones, have changed.
OAES_NAMESPACES: Final = 1 << 8
OAES_ZONES: Final = 1 << 27


class Cns(IntEnum):
    """What Identify returns ("Controller or Namespace Structure")."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    DESCRIPTORS = 0x03
    SET_NAMESPACE = 0x05
    SET_CONTROLLER = 0x06
    SET_ACTIVE_NAMESPACES = 0x07
    INDEPENDENT_NAMESPACE = 0x08
    ALLOCATED_NAMESPACES = 0x10
    NAMESPACE_CONTROLLERS = 0x12
    CONTROLLERS = 0x13
    ENDURANCE_GROUPS = 0x19
    COMMAND_SETS = 0x1C


class CommandSet(IntEnum):
    """Command Set Identifier."""

    NVM = 0
    ZNS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabrics:
    """The part of Identify Controller for a network transport. *capsule_bytes*: of data in an I/O command capsule."""

    capsule_bytes: int
    max_commands: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerIdentity:
    """The values that differ between controllers. *fabrics* is None for a PCI function."""

    serial: str
    firmware: str
    nqn: str
    cntlid: int
    max_nsid: int
    is_discovery: bool = False
    fabrics: Fabrics | None = None


def controller(identity: ControllerIdentity) -> bytes:
    """Return the structure of CNS 01h."""
    data = bytearray(IDENTIFY_BYTES)
    struct.pack_into("<HH20s40s8s", data, 0, VENDOR_ID, VENDOR_ID, _padded(identity.serial, 20), _padded(MODEL, 40),
                     _padded(identity.firmware, 8))  # fmt: skip
    # CMIC: the subsystem may have several controllers.
    struct.pack_into("<BBHI", data, 76, 0b10, MDTS, identity.cntlid, VERSION)
    oaes = 0 if identity.is_discovery else OAES_NAMESPACES | OAES_ZONES
    # CTRATT: host identifiers of 128 bits, endurance groups.
    struct.pack_into("<II", data, 92, oaes, 1 if identity.is_discovery else 1 | 1 << 4)
    data[111] = 2 if identity.is_discovery else 1  # CNTRLTYPE
    doorbell_buffer = 0 if identity.fabrics else 1 << 8
    # FRMW: one firmware slot, read-only. LPA: log pages of effects, and parts of log pages.
    struct.pack_into("<HBBBBB", data, 256, doorbell_buffer, ACL, AERL, 0b11, 0b110, ELPE)
    struct.pack_into("<HH", data, 266, 343, 353)  # warning and critical temperature in kelvins
    struct.pack_into("<H", data, 320, 1)  # keep alive in units of 100 ms
    data[512], data[513] = 0x66, 0x44  # SQES, CQES: entries of 2^6 and of 2^4 bytes, and of no other size
    struct.pack_into("<I", data, 516, identity.max_nsid)
    struct.pack_into("<H", data, 340, 0 if identity.is_discovery else ENDURANCE_GROUP)  # ENDGIDMAX
    struct.pack_into("<H", data, 520, ONCS)
    struct.pack_into("<H", data, 534, 1)  # OCFS: source ranges of copies in format 0
    data[525] = 0 if identity.is_discovery else VWC
    struct.pack_into("<I", data, 540, identity.max_nsid)
    nqn = identity.nqn.encode()
    data[768 : 768 + len(nqn)] = nqn
    if identity.fabrics:
        struct.pack_into("<H", data, 514, identity.fabrics.max_commands)
        struct.pack_into("<I", data, 536, 1 << 20 | 1)  # SGLs, with the offset address of data in the capsule
        struct.pack_into("<IIHBB", data, 1792, (64 + identity.fabrics.capsule_bytes) // 16, 1, 0, 0, 1)
    struct.pack_into("<H", data, 2048, 2500)  # power state 0: 25 W, in units of 10 mW
    return bytes(data)


def set_controller(command_set: int, geometries: Iterable[Geometry]) -> bytes:
    """Return the structure of CNS 06h: limits of the NVM or the Zoned Namespace Command Set."""
    data = bytearray(IDENTIFY_BYTES)
    if command_set == CommandSet.NVM:
        data[1] = MDTS  # WZSL, of Write Zeroes
    elif command_set == CommandSet.ZNS:
        data[0] = min((append_shift(geometry) for geometry in geometries), default=MDTS)
    return bytes(data)


def append_shift(geometry: Geometry) -> int:
    """Return ZASL: one zone append writes at most 2^ZASL pages. 0 means MDTS, so a limit of one page is impossible."""
    pages = (geometry.max_append << 9) >> PAGE_SHIFT
    return max(min(pages.bit_length() - 1, MDTS), 0)


def namespace(geometry: Geometry, uuid: UUID, *, readonly: bool) -> bytes:
    """Return the structure of CNS 00h."""
    data = bytearray(IDENTIFY_BYTES)
    nr_blocks = geometry.size // geometry.block_sectors
    nr_usable = geometry.zone_capacity * geometry.nr_zones // geometry.block_sectors
    struct.pack_into("<QQQ", data, 0, nr_blocks, nr_usable, nr_usable)
    data[30] = 1  # NMIC: several controllers may have it
    data[33] = 1  # DLFEAT: blocks that were never written read as zeros
    copy_blocks = MDTS_BYTES // geometry.block_size_bytes
    struct.pack_into("<HIB", data, 74, copy_blocks, copy_blocks, COPY_RANGES_MAX - 1)  # MSSRL, MCL, MSRC
    data[99] = readonly  # NSATTR: write protected
    struct.pack_into("<H", data, 102, ENDURANCE_GROUP)
    data[104:120] = uuid.bytes
    struct.pack_into("<HBB", data, 128, 0, geometry.block_size_bytes.bit_length() - 1, 0)
    return bytes(data)


def independent_namespace(*, readonly: bool) -> bytes:
    """Return the structure of CNS 08h. Linux ignores a namespace that is not ready, without a message."""
    data = bytearray(IDENTIFY_BYTES)
    data[1] = 1  # NMIC
    data[8] = readonly  # NSATTR
    data[14] = 1  # NSTAT: ready
    return bytes(data)


def zoned_namespace(geometry: Geometry) -> bytes:
    """Return the structure of CNS 05h for the Zoned Namespace Command Set."""
    data = bytearray(IDENTIFY_BYTES)
    # OZCS: reads may cross zones; random write areas. A limit is stored less one, so 0, "no limit", becomes all ones.
    limits = (geometry.max_active_zones - 1) & 0xFFFFFFFF, (geometry.max_open_zones - 1) & 0xFFFFFFFF
    # ZOC: zone active excursions.
    zoc = 0b10 if geometry.active_excursions else 0
    struct.pack_into("<HHII", data, 0, zoc, 0b11 if geometry.zrwa_size else 0b01, *limits)
    if geometry.zrwa_size:
        # NUMZRWA, ZRWAFG, ZRWASZ, ZRWACAP: explicit flushes. No limit is one area for each zone, as in QEMU's device.
        block = geometry.block_sectors
        number = geometry.max_zrwa or geometry.nr_zones
        sizes = geometry.zrwa_granularity // block, geometry.zrwa_size // block
        struct.pack_into("<IHHB", data, 44, number, *sizes, 0b1)
    zdes = geometry.extension_bytes // EXTENSION_UNIT_BYTES
    struct.pack_into("<QB", data, 2816, geometry.zone_size // geometry.block_sectors, zdes)
    return bytes(data)


def descriptors(uuid: UUID) -> bytes:
    """Return the structure of CNS 03h: the identifiers of a namespace, and its command set."""
    entries = ((2, uuid.bytes), (3, uuid.bytes), (4, bytes((CommandSet.ZNS,))))
    data = b"".join(struct.pack("<BBH", kind, len(value), 0) + value for kind, value in entries)
    return data.ljust(IDENTIFY_BYTES, b"\0")


def namespace_list(nsids: Iterable[int], after: int) -> bytes:
    """Return the structure of CNS 02h, 07h and 10h: up to 1024 of the *nsids* above *after*, ascending, then zeros."""
    found = sorted(nsid for nsid in nsids if nsid > after)[: IDENTIFY_BYTES // 4]
    return struct.pack(f"<{len(found)}I", *found).ljust(IDENTIFY_BYTES, b"\0")


def controller_list(cntlids: Iterable[int], first: int) -> bytes:
    """Return the structure of CNS 12h and 13h: the *cntlids* from *first* on, ascending, behind their number."""
    found = sorted(cntlid for cntlid in cntlids if cntlid >= first)[: IDENTIFY_BYTES // 2 - 1]
    return struct.pack(f"<H{len(found)}H", len(found), *found).ljust(IDENTIFY_BYTES, b"\0")


def endurance_groups(after: int) -> bytes:
    """Return the structure of CNS 19h: a list of the endurance groups above *after*, behind their number."""
    found = [ENDURANCE_GROUP] if after < ENDURANCE_GROUP else []
    return struct.pack(f"<H{len(found)}H", len(found), *found).ljust(IDENTIFY_BYTES, b"\0")


def command_sets() -> bytes:
    """Return the structure of CNS 1Ch: the only combination of command sets."""
    return struct.pack("<Q", 1 << CommandSet.NVM | 1 << CommandSet.ZNS).ljust(IDENTIFY_BYTES, b"\0")


def _padded(text: str, length: int) -> bytes:
    """Return *text* as an ASCII string of the standard, padded with blanks."""
    return text.encode("ascii", "replace")[:length].ljust(length)
