"""The requests of the virtio block device as bytes and as values, and the statuses that answer them.

Pure: bytes to values and back.

A guest can change a header in its memory at any time. So a header is copied once, by :func:`decode_header` or by the
same unpacking on the fast paths of :mod:`blk`. :func:`decode` makes a :class:`Request` of that copy, and that value is
checked and executed, on any thread.

Source: virtio 1.4, "Block Device", "Device Operation".
"""

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from zonefs_emu.device.buffers import carve, gather, total_bytes
from zonefs_emu.errors import Status
from zonefs_emu.model.zone import Condition, Zone
from zonefs_emu.virtio.ring import BrokenRingError, Chain
from zonefs_emu.virtio.rules import BlkRule

T_IN: Final = 0
T_OUT: Final = 1
T_SCSI_CMD: Final = 2
T_SCSI_CMD_OUT: Final = 3
T_FLUSH: Final = 4
T_FLUSH_OUT: Final = 5
T_GET_ID: Final = 8
T_GET_LIFETIME: Final = 10
T_DISCARD: Final = 11
T_WRITE_ZEROES: Final = 13
T_SECURE_ERASE: Final = 14
T_ZONE_APPEND: Final = 15
T_ZONE_REPORT: Final = 16
T_ZONE_OPEN: Final = 18
T_ZONE_CLOSE: Final = 20
T_ZONE_FINISH: Final = 22
T_ZONE_RESET: Final = 24
T_ZONE_RESET_ALL: Final = 26
#: Legacy: the high bit of the type. Source: virtio 1.4, block device, legacy interface: VIRTIO_BLK_T_BARRIER.
T_BARRIER: Final = 1 << 31

S_OK: Final = 0
S_IOERR: Final = 1
S_UNSUPP: Final = 2
S_ZONE_INVALID_CMD: Final = 3
S_ZONE_UNALIGNED_WP: Final = 4
S_ZONE_OPEN_RESOURCE: Final = 5
S_ZONE_ACTIVE_RESOURCE: Final = 6

#: The status byte of a zone request, by status of the port. Source: virtio 1.4, block device, "Device Operation".
ZONE_STATUS: Final[Mapping[Status, int]] = MappingProxyType(
    {
        Status.OK: S_OK,
        Status.OUT_OF_RANGE: S_ZONE_INVALID_CMD,
        Status.UNALIGNED: S_ZONE_UNALIGNED_WP,
        Status.UNALIGNED_WP: S_ZONE_UNALIGNED_WP,
        Status.ZONE_BOUNDARY: S_ZONE_INVALID_CMD,
        Status.READ_BOUNDARY: S_ZONE_INVALID_CMD,
        Status.ZONE_FULL: S_ZONE_INVALID_CMD,
        Status.ZONE_READONLY: S_ZONE_INVALID_CMD,
        Status.ZONE_OFFLINE: S_ZONE_INVALID_CMD,
        Status.NOT_ZONE_START: S_ZONE_INVALID_CMD,
        Status.CONVENTIONAL: S_ZONE_INVALID_CMD,
        Status.BAD_TRANSITION: S_ZONE_INVALID_CMD,
        Status.APPEND_LIMIT: S_ZONE_INVALID_CMD,
        Status.OPEN_RESOURCE: S_ZONE_OPEN_RESOURCE,
        Status.ACTIVE_RESOURCE: S_ZONE_ACTIVE_RESOURCE,
        # The ZRWA statuses come from NVMe only, so these rows have the nearest answer.
        Status.ZRWA_WRITE: S_ZONE_UNALIGNED_WP,
        Status.ZRWA_RANGE: S_ZONE_INVALID_CMD,
        Status.ZRWA_INVALID: S_ZONE_INVALID_CMD,
        Status.ZRWA_UNAVAILABLE: S_ZONE_INVALID_CMD,
        Status.IO_ERROR: S_IOERR,
        Status.NO_SPACE: S_IOERR,
        Status.POISONED: S_IOERR,
        Status.UNSUPPORTED: S_UNSUPP,
    }
)
#: The status byte of a read, a write or a flush. Its range and alignment do not concern zones, so these are I/O errors.
DATA_STATUS: Final[Mapping[Status, int]] = MappingProxyType(
    {**ZONE_STATUS, Status.OUT_OF_RANGE: S_IOERR, Status.UNALIGNED: S_IOERR}
)
#: The status byte of a read, a write or a flush for a driver that did not accept ZONED: it knows three of them only.
PLAIN_STATUS: Final[Mapping[Status, int]] = MappingProxyType(
    {status: code if code <= S_UNSUPP else S_IOERR for status, code in DATA_STATUS.items()}
)
#: The status byte of a request that breaks a rule of the virtio block device.
STATUS_OF_RULE: Final[Mapping[BlkRule, int]] = MappingProxyType(
    {
        BlkRule.BLK_TYPE: S_UNSUPP,
        BlkRule.BLK_NOT_ZONED: S_UNSUPP,
        BlkRule.BLK_SEGMENT: S_IOERR,
        # "The device MUST set the status byte to VIRTIO_BLK_S_UNSUPP for discard, secure erase and write zeroes
        # commands if any unknown flag is set."
        BlkRule.BLK_SEGMENT_FLAGS: S_UNSUPP,
        BlkRule.BLK_APPEND_ROOM: S_IOERR,
        BlkRule.BLK_REPORT_ROOM: S_ZONE_INVALID_CMD,
        BlkRule.BLK_OVERSIZED: S_IOERR,
    }
)

TYPE_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {
        T_SCSI_CMD: "SCSI_CMD",
        T_SCSI_CMD_OUT: "SCSI_CMD_OUT",
        T_GET_LIFETIME: "GET_LIFETIME",
        T_DISCARD: "DISCARD",
        T_WRITE_ZEROES: "WRITE_ZEROES",
        T_SECURE_ERASE: "SECURE_ERASE",
        T_ZONE_APPEND: "ZONE_APPEND",
        T_ZONE_REPORT: "ZONE_REPORT",
        T_ZONE_OPEN: "ZONE_OPEN",
        T_ZONE_CLOSE: "ZONE_CLOSE",
        T_ZONE_FINISH: "ZONE_FINISH",
        T_ZONE_RESET: "ZONE_RESET",
        T_ZONE_RESET_ALL: "ZONE_RESET_ALL",
    }
)
HEADER: Final = struct.Struct("<IIQ")
ID_BYTES: Final = 20
REPORT_HEADER: Final = struct.Struct("<Q56x")
REPORT_ZONE: Final = struct.Struct("<QQQBB38x")
APPEND_SECTOR: Final = struct.Struct("<Q")
SEGMENT: Final = struct.Struct("<QII")
#: The flag of a segment of WRITE_ZEROES.
UNMAP: Final = 1
#: errors, data_len, sense_len, residual at the end of a legacy SCSI request, before the status.
SCSI_ERRORS: Final = struct.pack("<IIII", 255, 0, 0, 0)
_NO_WP: Final = (1 << 64) - 1


class Request(NamedTuple):
    """A decoded request of *kind* (T_*) at *sector*.

    *data_out* has the guest's readable buffers without the header, *nr_out_bytes* in total; *data_in* the writable ones
    without the status, *nr_in_bytes* in total. *status* is the byte for the status.
    """

    kind: int
    sector: int
    data_out: list[memoryview]
    nr_out_bytes: int
    data_in: list[memoryview]
    nr_in_bytes: int
    status: memoryview


def decode_header(chain: Chain) -> tuple[int, int]:
    """Return type and sector of the request of *chain*, from its header at this moment.

    Raises:
        BrokenRingError: the chain has no whole header, or no room for a status.
    """
    header = gather(chain[1], 0, HEADER.size)
    if len(header) < HEADER.size or not chain[2]:
        message = (
            f"a request has {len(header)} bytes of header and {total_bytes(chain[2])} bytes for the answer, "
            "which is too little"
        )
        raise BrokenRingError(message)
    kind, _, sector = HEADER.unpack(header)
    return kind, sector


def decode(chain: Chain, kind: int, sector: int, *, legacy: bool) -> Request:
    """Return the request of *chain* whose *kind* and *sector* :func:`decode_header` has returned.

    *legacy*: the driver did not accept VERSION_1. The high bit of the type then asks for a barrier: "all preceding
    requests SHOULD be complete before this one, and all following requests SHOULD NOT be started until this is
    complete". The bit is dropped, because the requests of a queue are executed one after the other anyway.
    """
    _, readable, writable = chain
    nr_readable, room = total_bytes(readable), total_bytes(writable)
    return Request(
        kind & ~T_BARRIER if legacy else kind,
        sector,
        carve(readable, HEADER.size, nr_readable),
        nr_readable - HEADER.size,
        carve(writable, 0, room - 1),
        room - 1,
        writable[-1][-1:],
    )


def encode_zone(zone: Zone) -> bytes:
    """Return *zone* as struct virtio_blk_zone_descriptor: capacity, start and wp in sectors, type, state."""
    # z_wp "is undefined for conventional zones and for zones in VIRTIO_BLK_ZS_RDONLY, VIRTIO_BLK_ZS_FULL and
    # VIRTIO_BLK_ZS_OFFLINE state". It gets the value that Linux shows for these: all ones for READONLY and OFFLINE, the
    # end of the zone for FULL. Conventional zones have the end of the zone, too.
    match zone.cond:
        case Condition.READONLY | Condition.OFFLINE:
            wp = _NO_WP
        case Condition.NOT_WP | Condition.FULL:
            wp = zone.start + zone.size
        case _:
            wp = zone.wp
    return REPORT_ZONE.pack(zone.capacity, zone.start, wp, zone.type, zone.cond)
