"""The log pages. Source: NVM Express Base Specification 2.0, "Get Log Page"; Zoned Namespace Command Set 1.1."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from zonefs_emu.nvme.command import ALL_NAMESPACES, AdminOpcode, IoOpcode

SMART_BYTES: Final = 512
#: In place of the number of changed zones, if they are too many for the list.
_TOO_MANY: Final = 0xFFFF
_CHANGED_NAMESPACES_MAX: Final = 1024
#: The most zones in the list of changed zones.
CHANGED_ZONES_MAX: Final = 511
_SUPPORTED: Final = 1 << 0
_CHANGES_CONTENT: Final = 1 << 1
_KELVINS: Final = 313
#: Of a discovery record: whether a secure channel is required (TREQ), and its kind (SECTYPE of TSAS for TCP).
_TLS_REQUIRED: Final = 1
_TLS_NOT_REQUIRED: Final = 2
_TLS_1_3: Final = 2


class Log(IntEnum):
    """Log page identifiers."""

    SUPPORTED = 0x00
    ERROR = 0x01
    SMART = 0x02
    FIRMWARE = 0x03
    CHANGED_NAMESPACES = 0x04
    EFFECTS = 0x05
    ENDURANCE_GROUP = 0x09
    DISCOVERY = 0x70
    CHANGED_ZONES = 0xBF


class ErrorEntry(NamedTuple):
    """One command that was refused. *status*: the status field of the completion, without the phase tag."""

    number: int
    sqid: int
    cid: int
    status: int
    lba: int
    nsid: int


class DiscoveryRecord(NamedTuple):
    """A listening address: IPv4 or IPv6 *address* and *port*; *is_discovery*: of the discovery service.

    *needs_tls*: hosts must encrypt by TLS 1.3.
    """

    nqn: str
    address: str
    port: int
    is_discovery: bool
    needs_tls: bool


def supported(logs: Iterable[int]) -> bytes:
    """Return log 00h: the supported *logs*."""
    data = bytearray(1024)
    for log in logs:
        struct.pack_into("<I", data, 4 * log, 1)
    return bytes(data)


def errors(entries: Sequence[ErrorEntry]) -> bytes:
    """Return log 01h; the newest entry is first. Entries that were never used are zero."""
    data = bytearray()
    for entry in reversed(entries):
        # The location of the error in the command is not given.
        data += struct.pack("<QHHHHQI", entry.number, entry.sqid, entry.cid, entry.status << 1, 0xFFFF, entry.lba,
                            entry.nsid).ljust(64, b"\0")  # fmt: skip
    return bytes(data)


def smart(counted: Mapping[str, int], nr_errors: int, warning: int) -> bytes:
    """Return log 02h from the device's counters by name.

    *nr_errors*: of all entries of the error log so far. *warning*: the bits of the critical warning.
    """
    data = bytearray(SMART_BYTES)
    struct.pack_into("<BHBBB", data, 0, warning, _KELVINS, 100, 10, 0)
    # Units of 1000 times 512 bytes, rounded up.
    units = [-(-counted.get(name, 0) // 1000) for name in ("read_sectors", "written_sectors")]
    commands = [counted.get("reads", 0), counted.get("writes", 0) + counted.get("appends", 0)]
    numbers = (*units, *commands, 0, counted.get("power_cycles", 0), 0, 0, counted.get("internal_errors", 0), nr_errors)
    for index, number in enumerate(numbers):
        data[32 + 16 * index : 48 + 16 * index] = number.to_bytes(16, "little")
    return bytes(data)


def endurance_group(counted: Mapping[str, int], nr_errors: int, warning: int, capacity_bytes: int) -> bytes:
    """Return log 09h from the same numbers as :func:`smart`, of a group of *capacity_bytes*.

    Data that were read and written are counted in units of 10^9 bytes, rounded up.
    """
    data = bytearray(512)
    data[0] = warning
    data[3], data[4] = 100, 10  # available spare and its threshold, in percent
    read, written = (-(-512 * counted.get(name, 0) // 1_000_000_000) for name in ("read_sectors", "written_sectors"))
    commands = counted.get("reads", 0), counted.get("writes", 0) + counted.get("appends", 0)
    numbers = (read, written, written, *commands, counted.get("internal_errors", 0), nr_errors, capacity_bytes)
    for index, number in enumerate(numbers):
        data[48 + 16 * index : 64 + 16 * index] = number.to_bytes(16, "little")
    return bytes(data)


def firmware(revision: str) -> bytes:
    """Return log 03h: one slot, which is active."""
    data = bytearray(512)
    data[0] = 1
    data[8:16] = revision.encode("ascii", "replace")[:8].ljust(8)
    return bytes(data)


def effects(admin: Iterable[AdminOpcode], io: Iterable[IoOpcode]) -> bytes:
    """Return log 05h. For Linux, a command that is not in it does not exist."""
    changing = {IoOpcode.WRITE, IoOpcode.WRITE_ZEROES, IoOpcode.COPY, IoOpcode.ZONE_APPEND, IoOpcode.ZONE_SEND}
    data = bytearray(4096)
    for opcode in admin:
        struct.pack_into("<I", data, 4 * opcode, _SUPPORTED)
    for command in io:
        struct.pack_into("<I", data, 1024 + 4 * command, _SUPPORTED | (_CHANGES_CONTENT if command in changing else 0))
    return bytes(data)


def changed_namespaces(nsids: Iterable[int]) -> bytes:
    """Return log 04h: *nsids*, or one entry of all ones if they are too many for the list."""
    found = sorted(nsids)
    if len(found) > _CHANGED_NAMESPACES_MAX:
        found = [ALL_NAMESPACES]
    return struct.pack(f"<{len(found)}I", *found).ljust(4096, b"\0")


def changed_zones(starts_lba: Sequence[int]) -> bytes:
    """Return log BFh: the first blocks of zones that the drive itself has changed."""
    if len(starts_lba) > CHANGED_ZONES_MAX:
        return struct.pack("<H", _TOO_MANY).ljust(4096, b"\0")
    return struct.pack(f"<H6x{len(starts_lba)}Q", len(starts_lba), *starts_lba).ljust(4096, b"\0")


def discovery(generation: int, records: Sequence[DiscoveryRecord]) -> bytes:
    """Return log 70h. Source: Base Specification, "Discovery Log Page"; transport TCP."""
    data = bytearray(1024 * (1 + len(records)))
    struct.pack_into("<QQH", data, 0, generation, len(records), 0)
    for number, record in enumerate(records, 1):
        family = 2 if ":" in record.address else 1
        kind = 1 if record.is_discovery else 2
        struct.pack_into(
            "<BBBBHHHH20x32s192x256s256sB", data, 1024 * number, 3, family, kind,
            _TLS_REQUIRED if record.needs_tls else _TLS_NOT_REQUIRED, 1, 0xFFFF, 32, 0,
            str(record.port).encode().ljust(32), record.nqn.encode(), record.address.encode().ljust(256),
            _TLS_1_3 if record.needs_tls else 0,
        )  # fmt: skip
    return bytes(data)
