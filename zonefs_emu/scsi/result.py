"""The result of a command, the exceptions of refusals, and the initiator's buffers.

A refusal is raised, and the disk makes a result of it. Refusals are rare, so that an exception costs little, and the
code that raises it need not know the format of sense data or the length of the buffers.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import Status
from zonefs_emu.scsi.rules import HostRule, ScsiRule
from zonefs_emu.scsi.sense import Sense

#: Buffers whose len() is their size in bytes: readable ones from the initiator, writable ones for it.
DataOut: TypeAlias = Sequence[bytes | bytearray | memoryview]
DataIn: TypeAlias = Sequence[bytearray | memoryview]


class ScsiStatus(IntEnum):
    """The status byte. Source: SAM-5, "Status codes"."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02


class ScsiResult(NamedTuple):
    """The result of a command.

    *residual*: how many bytes of the initiator's buffer (data-in or data-out, whichever the command has) were not
    transferred.
    *overrun*: the CDB asks for more than the buffers hold, so the command was not executed. *status* has no meaning
    then: the transport has a response of its own (virtio-scsi: OVERRUN).
    """

    status: int
    sense: bytes
    residual: int
    overrun: bool = False


#: Done, everything transferred.
GOOD: Final = ScsiResult(ScsiStatus.GOOD, b"", 0)


class RuleBrokenError(Exception):
    """A command breaks *rule* before anything is asked of the port, which is to note it with *status*.

    *field*: the first wrong byte, of the CDB or (SCSI_PARAMETER_FIELD) of the parameter list. *wrong*: what is wrong,
    for people, where it is not one byte.
    """

    def __init__(
        self,
        rule: ScsiRule | HostRule | DeviceRule,
        field: int | None = None,
        *,
        status: Status = Status.UNSUPPORTED,
        wrong: str = "",
    ) -> None:
        super().__init__(rule, field)
        self.rule = rule
        self.field = field
        self.status = status
        self.wrong = wrong


class CheckConditionError(Exception):
    """A command ends with the sense *code*, and the port has noted why if that is a refusal; *field* as above."""

    def __init__(self, code: Sense, field: int | None = None) -> None:
        super().__init__(code, field)
        self.code = code
        self.field = field


def total_bytes(buffers: DataOut) -> int:
    """Return how many bytes *buffers* hold together."""
    return sum(map(len, buffers))


def first_bytes(buffers: DataOut, nr_bytes: int) -> list[memoryview]:
    """Return views of the first *nr_bytes* of *buffers* (or of all, if that is less)."""
    views = []
    for buffer in buffers:
        if nr_bytes <= 0:
            break
        view = memoryview(buffer)[:nr_bytes]
        views.append(view)
        nr_bytes -= len(view)
    return views


def nothing_transferred(data_out: DataOut, data_in: DataIn) -> ScsiResult:
    """Return GOOD for a command that moved no data, although buffers may have come with it."""
    if not data_out and not data_in:
        return GOOD
    return ScsiResult(ScsiStatus.GOOD, b"", total_bytes(data_out) + total_bytes(data_in))


def reply(data: bytes, allocation: int, data_out: DataOut, data_in: DataIn) -> ScsiResult:
    """Copy *data*, up to *allocation* bytes and what fits, into *data_in*."""
    left = memoryview(data)[:allocation]
    for buffer in data_in:
        if not left:
            break
        part = left[: len(buffer)]
        buffer[: len(part)] = part
        left = left[len(part) :]
    transferred = min(len(data), allocation) - len(left)
    return ScsiResult(ScsiStatus.GOOD, b"", total_bytes(data_out) + total_bytes(data_in) - transferred)
