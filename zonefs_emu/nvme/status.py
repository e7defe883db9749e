"""The status of each answer: status code type and status code, as a completion carries them.

A refusal has "Do Not Retry" set: the same command would fail again, and without it Linux sends it five more times. The
only exception is data that came damaged, which the host may send again.

Every status is in one of the tables here, but for 006h, the answer to a command that meets a bug of this program. So
``why`` explains each, and the error log has it.
Source: NVM Express Base Specification 2.0, "Status Field"; Zoned Namespace Command Set 1.1, "Completion".
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from zonefs_emu.device.rules import FrontEndAnswers, Rule
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.nvme.rules import NvmeRule

#: "Do Not Retry", a bit of the status field, counted without the phase tag.
_DO_NOT_RETRY: Final = 0x4000


class NvmeStatus(IntEnum):
    """Status code type << 8 | status code."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    DATA_TRANSFER_ERROR = 0x004
    INTERNAL_ERROR = 0x006
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    DATA_SGL_LENGTH_INVALID = 0x00F
    SGL_DESCRIPTOR_TYPE_INVALID = 0x011
    PRP_OFFSET_INVALID = 0x013
    SGL_OFFSET_INVALID = 0x016
    WRITE_PROTECTED = 0x020
    TRANSIENT_TRANSPORT_ERROR = 0x022
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    COMPLETION_QUEUE_INVALID = 0x100
    INVALID_QUEUE_ID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    EVENT_LIMIT_EXCEEDED = 0x105
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    COMMAND_SET_REJECTED = 0x12B
    CONNECT_INCOMPATIBLE_FORMAT = 0x180
    CONTROLLER_BUSY = 0x181
    CONNECT_INVALID_PARAMETERS = 0x182
    COMMAND_SIZE_LIMIT_EXCEEDED = 0x183
    CONNECT_INVALID_HOST = 0x184
    AUTHENTICATION_REQUIRED = 0x191
    INVALID_ZONE_OPERATION = 0x1B6
    ZRWA_UNAVAILABLE = 0x1B7
    ZONE_BOUNDARY_ERROR = 0x1B8
    ZONE_IS_FULL = 0x1B9
    ZONE_IS_READ_ONLY = 0x1BA
    ZONE_IS_OFFLINE = 0x1BB
    ZONE_INVALID_WRITE = 0x1BC
    TOO_MANY_ACTIVE_ZONES = 0x1BD
    TOO_MANY_OPEN_ZONES = 0x1BE
    INVALID_ZONE_TRANSITION = 0x1BF
    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    COMPARE_FAILURE = 0x285


#: The answer to each status of the device; :func:`status_of` has another one for a failed read.
STATUS_OF: Final[Mapping[Status, NvmeStatus]] = MappingProxyType(
    {
        Status.OK: NvmeStatus.SUCCESS,
        Status.OUT_OF_RANGE: NvmeStatus.LBA_OUT_OF_RANGE,
        Status.UNALIGNED: NvmeStatus.INVALID_FIELD,
        Status.UNALIGNED_WP: NvmeStatus.ZONE_INVALID_WRITE,
        Status.ZONE_BOUNDARY: NvmeStatus.ZONE_BOUNDARY_ERROR,
        Status.READ_BOUNDARY: NvmeStatus.ZONE_BOUNDARY_ERROR,
        Status.ZONE_FULL: NvmeStatus.ZONE_IS_FULL,
        Status.ZONE_READONLY: NvmeStatus.ZONE_IS_READ_ONLY,
        Status.ZONE_OFFLINE: NvmeStatus.ZONE_IS_OFFLINE,
        Status.NOT_ZONE_START: NvmeStatus.INVALID_FIELD,
        Status.CONVENTIONAL: NvmeStatus.INVALID_FIELD,
        Status.BAD_TRANSITION: NvmeStatus.INVALID_ZONE_TRANSITION,
        Status.APPEND_LIMIT: NvmeStatus.INVALID_FIELD,
        Status.OPEN_RESOURCE: NvmeStatus.TOO_MANY_OPEN_ZONES,
        Status.ACTIVE_RESOURCE: NvmeStatus.TOO_MANY_ACTIVE_ZONES,
        Status.ZRWA_WRITE: NvmeStatus.ZONE_INVALID_WRITE,
        Status.ZRWA_RANGE: NvmeStatus.INVALID_ZONE_OPERATION,
        Status.ZRWA_INVALID: NvmeStatus.INVALID_ZONE_OPERATION,
        Status.ZRWA_UNAVAILABLE: NvmeStatus.ZRWA_UNAVAILABLE,
        Status.IO_ERROR: NvmeStatus.WRITE_FAULT,
        Status.NO_SPACE: NvmeStatus.CAPACITY_EXCEEDED,
        Status.POISONED: NvmeStatus.WRITE_FAULT,
        Status.UNSUPPORTED: NvmeStatus.INVALID_OPCODE,
    }
)
#: The status and the device's own status of each rule of the drive.
STATUS_OF_RULE: Final[Mapping[Rule, tuple[NvmeStatus, Status]]] = MappingProxyType(
    {
        NvmeRule.NVME_OPCODE: (NvmeStatus.INVALID_OPCODE, Status.UNSUPPORTED),
        NvmeRule.NVME_FIELD: (NvmeStatus.INVALID_FIELD, Status.UNSUPPORTED),
        NvmeRule.NVME_NAMESPACE: (NvmeStatus.INVALID_NAMESPACE, Status.UNSUPPORTED),
        NvmeRule.NVME_TRANSFER: (NvmeStatus.INVALID_FIELD, Status.UNSUPPORTED),
        NvmeRule.NVME_LOG_PAGE: (NvmeStatus.INVALID_LOG_PAGE, Status.UNSUPPORTED),
        NvmeRule.NVME_EVENTS: (NvmeStatus.EVENT_LIMIT_EXCEEDED, Status.UNSUPPORTED),
        NvmeRule.NVME_COMMAND_SETS: (NvmeStatus.COMMAND_SET_REJECTED, Status.UNSUPPORTED),
        NvmeRule.NVME_READ_ONLY: (NvmeStatus.WRITE_PROTECTED, Status.ZONE_READONLY),
        NvmeRule.NVME_COMPARE: (NvmeStatus.COMPARE_FAILURE, Status.IO_ERROR),
        NvmeRule.NVME_PRP: (NvmeStatus.PRP_OFFSET_INVALID, Status.UNSUPPORTED),
        NvmeRule.NVME_MEMORY: (NvmeStatus.DATA_TRANSFER_ERROR, Status.UNSUPPORTED),
        NvmeRule.NVME_QUEUE_ID: (NvmeStatus.INVALID_QUEUE_ID, Status.UNSUPPORTED),
        NvmeRule.NVME_QUEUE_SIZE: (NvmeStatus.INVALID_QUEUE_SIZE, Status.UNSUPPORTED),
        NvmeRule.NVME_COMPLETION_QUEUE: (NvmeStatus.COMPLETION_QUEUE_INVALID, Status.UNSUPPORTED),
        NvmeRule.NVME_VECTOR: (NvmeStatus.INVALID_INTERRUPT_VECTOR, Status.UNSUPPORTED),
        NvmeRule.NVME_COPY: (NvmeStatus.COMMAND_SIZE_LIMIT_EXCEEDED, Status.UNSUPPORTED),
        NvmeRule.NVME_QUEUE_DELETION: (NvmeStatus.INVALID_QUEUE_DELETION, Status.UNSUPPORTED),
        NvmeRule.NVME_DATA_LENGTH: (NvmeStatus.DATA_SGL_LENGTH_INVALID, Status.UNSUPPORTED),
        NvmeRule.NVME_SGL_TYPE: (NvmeStatus.SGL_DESCRIPTOR_TYPE_INVALID, Status.UNSUPPORTED),
        NvmeRule.NVME_SGL_OFFSET: (NvmeStatus.SGL_OFFSET_INVALID, Status.UNSUPPORTED),
        NvmeRule.NVME_FEATURE_SAVE: (NvmeStatus.FEATURE_NOT_SAVEABLE, Status.UNSUPPORTED),
        NvmeRule.NVME_SEQUENCE: (NvmeStatus.COMMAND_SEQUENCE_ERROR, Status.UNSUPPORTED),
        NvmeRule.NVME_AUTHENTICATION: (NvmeStatus.AUTHENTICATION_REQUIRED, Status.UNSUPPORTED),
        NvmeRule.NVME_DIGEST: (NvmeStatus.TRANSIENT_TRANSPORT_ERROR, Status.IO_ERROR),
        NvmeRule.NVME_CONNECT_FORMAT: (NvmeStatus.CONNECT_INCOMPATIBLE_FORMAT, Status.UNSUPPORTED),
        NvmeRule.NVME_CONNECT_BUSY: (NvmeStatus.CONTROLLER_BUSY, Status.UNSUPPORTED),
        NvmeRule.NVME_CONNECT_FIELD: (NvmeStatus.CONNECT_INVALID_PARAMETERS, Status.UNSUPPORTED),
        NvmeRule.NVME_CONNECT_HOST: (NvmeStatus.CONNECT_INVALID_HOST, Status.UNSUPPORTED),
    }
)


def status_of(status: Status, operation: Operation | None) -> NvmeStatus:
    """Return the answer to *status* of *operation*; a failed read has a status of its own."""
    if operation is Operation.READ and status in {Status.IO_ERROR, Status.POISONED}:
        return NvmeStatus.UNRECOVERED_READ_ERROR
    return STATUS_OF[status]


def status_field(status: NvmeStatus) -> int:
    """Return the status field of a completion with *status*, without the phase tag."""
    if status in {NvmeStatus.SUCCESS, NvmeStatus.TRANSIENT_TRANSPORT_ERROR}:
        return status
    return status | _DO_NOT_RETRY


def name_of(status: NvmeStatus) -> str:
    """Return *status* for people: "1BCh ZONE_INVALID_WRITE"."""
    return f"{status:03X}h {status.name}"


ANSWERS: Final = FrontEndAnswers(
    name="nvme",
    of_status=lambda status, operation: name_of(status_of(status, operation)),
    of_rule={rule: name_of(code) for rule, (code, _) in STATUS_OF_RULE.items()},
)
