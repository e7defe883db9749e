"""ublk's structures as bytes, both ways.

Pure: bytes in, values out. Source: include/uapi/linux/ublk_cmd.h and blkzoned.h (Linux 6.12).
"""

import errno
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import Final

from zonefs_emu.device.rules import FrontEndAnswers
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition, Zone
from zonefs_emu.ublk.rules import UblkRule
from zonefs_emu.units import to_bytes, to_sectors

MAX_QUEUE_DEPTH: Final = 4096
IO_DESC: Final = struct.Struct("<IIQQ")
IO_CMD: Final = struct.Struct("<HHiQ")
IO_RES_ABORT: Final = -19  # -ENODEV: the device is being stopped
_CTRL_CMD: Final = struct.Struct("<IHHQQHHI")
_DEV_INFO: Final = struct.Struct("<HHHHIIiIQQIIQQ")
DEV_INFO_BYTES: Final = _DEV_INFO.size
_PARAMS: Final = struct.Struct("<II" + "IBBBBIIQQ" + "IIIIHH" + "IIII" + "III20x" + "4x")
_BLK_ZONE: Final = struct.Struct("<QQQBBBBIQ24x")
BLK_ZONE_BYTES: Final = _BLK_ZONE.size
_TYPE_BASIC: Final = 1 << 0
_TYPE_ZONED: Final = 1 << 3
_ATTR_READ_ONLY: Final = 1 << 0
_ATTR_VOLATILE_CACHE: Final = 1 << 2
_ATTR_FUA: Final = 1 << 3
_BUF_OFFSET: Final = 0x80000000
_QID_SHIFT: Final = 41
_TAG_SHIFT: Final = 25


class Flag(IntFlag):
    """Features of a device (UBLK_F_*)."""

    USER_RECOVERY = 1 << 3
    USER_RECOVERY_REISSUE = 1 << 4
    CMD_IOCTL_ENCODE = 1 << 6
    USER_COPY = 1 << 7
    ZONED = 1 << 8


class DeviceState(IntEnum):
    """States of a device (UBLK_S_DEV_*); UNKNOWN is any that this module does not know."""

    DEAD = 0
    LIVE = 1
    QUIESCED = 2
    FAIL_IO = 3
    UNKNOWN = 255

    @classmethod
    def _missing_(cls, value: object) -> "DeviceState":  # noqa: ARG003  (a state of a later kernel)
        return cls.UNKNOWN


class Control(IntEnum):
    """Control commands (UBLK_U_CMD_*): their numbers within the ioctl encoding."""

    GET_DEV_INFO = 0x02
    ADD_DEV = 0x04
    DEL_DEV = 0x05
    START_DEV = 0x06
    STOP_DEV = 0x07
    SET_PARAMS = 0x08
    START_USER_RECOVERY = 0x10
    END_USER_RECOVERY = 0x11
    GET_FEATURES = 0x13


_READ_ONLY: Final = frozenset((Control.GET_DEV_INFO, Control.GET_FEATURES))


class Request(IntEnum):
    """Operations of requests (UBLK_IO_OP_*)."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3
    WRITE_SAME = 4
    WRITE_ZEROES = 5
    ZONE_OPEN = 10
    ZONE_CLOSE = 11
    ZONE_FINISH = 12
    ZONE_APPEND = 13
    ZONE_RESET_ALL = 14
    ZONE_RESET = 15
    REPORT_ZONES = 18


def _ioctl(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("u") << 8 | number


def control_opcode(command: Control) -> int:
    """Return the encoded opcode of a control command: _IOR or _IOWR of struct ublksrv_ctrl_cmd."""
    return _ioctl(2 if command in _READ_ONLY else 3, command, _CTRL_CMD.size)


FETCH_REQ: Final = _ioctl(3, 0x20, IO_CMD.size)
COMMIT_AND_FETCH_REQ: Final = _ioctl(3, 0x21, IO_CMD.size)


def encode_control(device_id: int, *, address: int = 0, length: int = 0, data: int = 0) -> bytes:
    """Return struct ublksrv_ctrl_cmd, 32 bytes; *address* and *length* are those of a buffer of this process."""
    return _CTRL_CMD.pack(device_id, 0xFFFF, length, address, data, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """The fields of struct ublksrv_ctrl_dev_info. *tag* is ublksrv_flags: 64 bits that the kernel keeps for the server.

    A *device_id* of FFFFFFFFh asks for any free number.
    """

    nr_queues: int
    queue_depth: int
    flags: Flag
    max_io_bytes: int
    device_id: int = 0xFFFFFFFF
    state: DeviceState = DeviceState.DEAD
    server_pid: int = -1
    tag: int = 0

    def encode(self) -> bytes:
        """Return the structure, 64 bytes."""
        return _DEV_INFO.pack(
            self.nr_queues, self.queue_depth, self.state, 0, self.max_io_bytes, self.device_id, self.server_pid, 0,
            self.flags, self.tag, 0, 0, 0, 0,
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes) -> "DeviceInfo":
        """Return the values of *data* (64 bytes)."""
        nr_queues, depth, state, _, max_io, device_id, pid, _, flags, tag, *_ = _DEV_INFO.unpack(data)
        return cls(
            nr_queues=nr_queues, queue_depth=depth, flags=Flag(flags), max_io_bytes=max_io, device_id=device_id,
            state=DeviceState(state), server_pid=pid, tag=tag,
        )  # fmt: skip


def encode_params(geometry: Geometry, *, max_io_bytes: int, readonly: bool) -> bytes:
    """Return struct ublk_params for *geometry*: a zoned device with a volatile write cache and FUA.

    The structure has no write granularity; the kernel takes the logical block size for it. So the write granularity of
    *geometry* is given as the logical block size.
    """
    shift = to_bytes(geometry.write_granularity).bit_length() - 1
    attributes = _ATTR_VOLATILE_CACHE | _ATTR_FUA | (_ATTR_READ_ONLY if readonly else 0)
    # A limit above the number of whole zones has no effect, but the kernel refuses it.
    zones = geometry.size // geometry.zone_size
    max_io = to_sectors(max_io_bytes)
    return _PARAMS.pack(
        _PARAMS.size, _TYPE_BASIC | _TYPE_ZONED,
        attributes, shift, shift, shift, shift, max_io, geometry.zone_size, geometry.size, 0,
        0, 0, 0, 0, 0, 0,  # discard: type not given
        0, 0, 0, 0,  # devt: filled in by the kernel
        min(geometry.max_open_zones, zones), min(geometry.max_active_zones, zones),
        min(geometry.max_append, max_io, geometry.zone_size),
    )  # fmt: skip


def encode_zones(zones: Iterable[Zone]) -> bytes:
    """Return struct blk_zone, 64 bytes, for each of *zones*.

    The block layer expects the write pointer of a FULL zone at its end, and all ones for zones without one.
    """
    out = bytearray()
    for zone in zones:
        match zone.cond:
            case Condition.FULL:
                wp = zone.start + zone.size
            case Condition.NOT_WP | Condition.READONLY | Condition.OFFLINE:
                wp = (1 << 64) - 1
            case _:
                wp = zone.wp
        out += _BLK_ZONE.pack(
            zone.start, zone.size, wp, zone.type, zone.cond, 0, int(zone.reset_recommended), 0, zone.capacity
        )
    return bytes(out)


def buffer_offset(queue: int, tag: int) -> int:
    """Return the byte offset on the character device at which the data of request *tag* of *queue* are."""
    return _BUF_OFFSET + (queue << _QID_SHIFT) + (tag << _TAG_SHIFT)


_EIO: Final = -5
#: The result of a request, a negative errno, for each status. A status for which the block layer has no errno is an I/O
#: error; the log of refusals has the rule that was broken. Source: Linux block/blk-core.c, blk_errors.
RESULTS: Final[Mapping[Status, int]] = MappingProxyType(
    {
        Status.OK: 0,
        Status.OUT_OF_RANGE: _EIO,
        Status.UNALIGNED: _EIO,
        Status.UNALIGNED_WP: _EIO,
        Status.ZONE_BOUNDARY: _EIO,
        Status.READ_BOUNDARY: _EIO,
        Status.ZONE_FULL: _EIO,
        Status.ZONE_READONLY: _EIO,
        Status.ZONE_OFFLINE: _EIO,
        Status.NOT_ZONE_START: _EIO,
        Status.CONVENTIONAL: _EIO,
        Status.BAD_TRANSITION: _EIO,
        Status.APPEND_LIMIT: _EIO,
        Status.OPEN_RESOURCE: -109,  # ETOOMANYREFS, BLK_STS_ZONE_OPEN_RESOURCE
        Status.ACTIVE_RESOURCE: -75,  # EOVERFLOW, BLK_STS_ZONE_ACTIVE_RESOURCE
        # The ZRWA statuses come from NVMe only, so these rows are not used.
        Status.ZRWA_WRITE: _EIO,
        Status.ZRWA_RANGE: _EIO,
        Status.ZRWA_INVALID: _EIO,
        Status.ZRWA_UNAVAILABLE: _EIO,
        Status.IO_ERROR: _EIO,
        Status.NO_SPACE: -28,  # ENOSPC
        Status.POISONED: _EIO,
        Status.UNSUPPORTED: -95,  # EOPNOTSUPP
    }
)
#: The result of a request that breaks a rule of this front-end.
RESULT_OF_RULE: Final[Mapping[UblkRule, int]] = MappingProxyType(
    {UblkRule.UBLK_OPERATION: RESULTS[Status.UNSUPPORTED], UblkRule.UBLK_DATA: _EIO}
)
#: The answers for the explanation of refusals: the names of the errors that a user of the block device gets.
ANSWERS: Final = FrontEndAnswers(
    name="ublk",
    of_status=lambda status, _operation: errno.errorcode[-RESULTS[status]],
    of_rule={rule: errno.errorcode[-result] for rule, result in RESULT_OF_RULE.items()},
)
