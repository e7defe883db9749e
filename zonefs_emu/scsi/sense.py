"""Sense data in both formats, and the tables from refusals to sense.

May not know: commands, devices.
Invariant: ``SENSE_OF_STATUS`` has a row for every Status, ``SENSE_OF_RULE`` for every ScsiRule.

Sources: SPC-4 "Sense data" and its annex of additional sense codes; ZBC-2 for the zoned ones; the classification of
writes to FULL zones and of zone management outside the device follows what libzbc's 01_sk_ascq_check expects.
"""

import struct
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.scsi.rules import ScsiRule


class SenseKey(IntEnum):
    """The kind of an error. Source: SPC-4, "Sense key and additional sense code definitions"."""

    NO_SENSE = 0x0
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    MISCOMPARE = 0xE


class Sense(NamedTuple):
    """A sense key with its additional sense code and qualifier."""

    key: SenseKey
    asc: int
    ascq: int


NO_SENSE: Final = Sense(SenseKey.NO_SENSE, 0x00, 0x00)
WRITE_ERROR: Final = Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0x00)
UNRECOVERED_READ_ERROR: Final = Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00)
PARAMETER_LIST_LENGTH_ERROR: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x1A, 0x00)
MISCOMPARE_DURING_VERIFY: Final = Sense(SenseKey.MISCOMPARE, 0x1D, 0x00)
INVALID_OPERATION_CODE: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00)
LBA_OUT_OF_RANGE: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x21, 0x00)
UNALIGNED_WRITE: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x21, 0x04)
WRITE_BOUNDARY_VIOLATION: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x21, 0x05)
READ_BOUNDARY_VIOLATION: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x21, 0x07)
ATTEMPT_TO_ACCESS_GAP_ZONE: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x21, 0x09)
INVALID_FIELD_IN_CDB: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00)
LUN_NOT_SUPPORTED: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x25, 0x00)
INVALID_FIELD_IN_PARAMETER_LIST: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x26, 0x00)
WRITE_PROTECTED: Final = Sense(SenseKey.DATA_PROTECT, 0x27, 0x00)
SPACE_ALLOCATION_FAILED: Final = Sense(SenseKey.DATA_PROTECT, 0x27, 0x07)
ZONE_IS_READ_ONLY: Final = Sense(SenseKey.DATA_PROTECT, 0x27, 0x08)
POWER_ON: Final = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00)
BUS_DEVICE_RESET: Final = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x03)
I_T_NEXUS_LOSS: Final = Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x07)
ZONE_IS_OFFLINE: Final = Sense(SenseKey.DATA_PROTECT, 0x2C, 0x0E)
SAVING_PARAMETERS_NOT_SUPPORTED: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x39, 0x00)
INTERNAL_TARGET_FAILURE: Final = Sense(SenseKey.HARDWARE_ERROR, 0x44, 0x00)
INSUFFICIENT_ZONE_RESOURCES: Final = Sense(SenseKey.DATA_PROTECT, 0x55, 0x0E)

#: The sense of a command that a port refused. ZBC has no limit of active zones and no append, so the rows of these
#: statuses have the nearest sense.
SENSE_OF_STATUS: Final[Mapping[Status, Sense]] = MappingProxyType(
    {
        Status.OK: NO_SENSE,
        Status.OUT_OF_RANGE: LBA_OUT_OF_RANGE,
        Status.UNALIGNED: UNALIGNED_WRITE,
        Status.UNALIGNED_WP: UNALIGNED_WRITE,
        Status.ZONE_BOUNDARY: WRITE_BOUNDARY_VIOLATION,
        Status.READ_BOUNDARY: READ_BOUNDARY_VIOLATION,
        # "WRITE full zone" of libzbc expects INVALID FIELD IN CDB, as drives answer.
        Status.ZONE_FULL: INVALID_FIELD_IN_CDB,
        Status.ZONE_READONLY: ZONE_IS_READ_ONLY,
        Status.ZONE_OFFLINE: ZONE_IS_OFFLINE,
        Status.NOT_ZONE_START: INVALID_FIELD_IN_CDB,
        Status.CONVENTIONAL: INVALID_FIELD_IN_CDB,
        Status.BAD_TRANSITION: INVALID_FIELD_IN_CDB,
        Status.APPEND_LIMIT: INVALID_FIELD_IN_CDB,
        Status.OPEN_RESOURCE: INSUFFICIENT_ZONE_RESOURCES,
        Status.ACTIVE_RESOURCE: INSUFFICIENT_ZONE_RESOURCES,
        # The ZRWA statuses come from NVMe only, so these rows have the nearest sense.
        Status.ZRWA_WRITE: UNALIGNED_WRITE,
        Status.ZRWA_RANGE: INVALID_FIELD_IN_CDB,
        Status.ZRWA_INVALID: INVALID_FIELD_IN_CDB,
        Status.ZRWA_UNAVAILABLE: INVALID_FIELD_IN_CDB,
        Status.IO_ERROR: UNRECOVERED_READ_ERROR,
        # Linux turns exactly this code into ENOSPC (drivers/scsi/scsi_error.c, scsi_check_sense).
        Status.NO_SPACE: SPACE_ALLOCATION_FAILED,
        Status.POISONED: INTERNAL_TARGET_FAILURE,
        Status.UNSUPPORTED: INVALID_OPERATION_CODE,
    }
)

#: The sense of a command that broke a rule of the disk.
SENSE_OF_RULE: Final[Mapping[ScsiRule, Sense]] = MappingProxyType(
    {
        ScsiRule.SCSI_GAP: ATTEMPT_TO_ACCESS_GAP_ZONE,
        ScsiRule.SCSI_READ_TYPES: READ_BOUNDARY_VIOLATION,
        # "INVALID FIELD IN CDB" (SBC-3, Block Limits VPD page, MAXIMUM TRANSFER LENGTH)
        ScsiRule.SCSI_TRANSFER_LENGTH: INVALID_FIELD_IN_CDB,
        ScsiRule.SCSI_WRITE_PROTECTED: WRITE_PROTECTED,
        ScsiRule.SCSI_OPERATION_CODE: INVALID_OPERATION_CODE,
        ScsiRule.SCSI_CDB_FIELD: INVALID_FIELD_IN_CDB,
        ScsiRule.SCSI_PARAMETER_FIELD: INVALID_FIELD_IN_PARAMETER_LIST,
        ScsiRule.SCSI_PARAMETER_LENGTH: PARAMETER_LIST_LENGTH_ERROR,
        ScsiRule.SCSI_LUN: LUN_NOT_SUPPORTED,
        ScsiRule.SCSI_MISCOMPARE: MISCOMPARE_DURING_VERIFY,
    }
)
_WRITING: Final = frozenset((Operation.WRITE, Operation.APPEND, Operation.FLUSH))


def sense_of(status: Status, operation: Operation | None) -> Sense:
    """Return the sense of *operation*, which a port refused with *status*.

    A failure of the host (IO_ERROR) is a write error of operations that write, and a read error of all others.
    """
    if status is Status.IO_ERROR and operation in _WRITING:
        return WRITE_ERROR
    return SENSE_OF_STATUS[status]


#: Response code, -, key, information, additional length, command-specific, code, qualifier, FRU, sense-key specific.
_FIXED: Final = struct.Struct(">BBBIBIBBB3s")
_NO_SPECIFIC: Final = bytes(3)


def encode(sense: Sense, *, descriptor: bool, field: int | None = None, in_data: bool = False) -> bytes:
    """Return *sense* as bytes: 18 in fixed format (70h), 8 or 16 in descriptor format (72h).

    *field*, for the two "invalid field" codes, is the number of the first wrong byte of the CDB, or with *in_data* of
    the parameter list.

    Source: SPC-4, "Descriptor format sense data", "Fixed format sense data", "Field pointer sense key specific data".
    """
    specific = _NO_SPECIFIC
    if field is not None:
        # SKSV, and C/D, which is 1 if the field is in the CDB.
        specific = bytes((0x80 if in_data else 0xC0, field >> 8, field & 0xFF))
    if descriptor:
        tail = b""
        if field is not None:
            tail = b"\x02\x06\x00\x00" + specific + b"\x00"
        return bytes((0x72, sense.key, sense.asc, sense.ascq, 0, 0, 0, len(tail))) + tail
    return _FIXED.pack(0x70, 0, sense.key, 0, 10, 0, sense.asc, sense.ascq, 0, specific)
