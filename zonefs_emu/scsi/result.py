"""The result of a command, the exceptions of refusals, and the initiator's buffers.

A refused command raises an exception, of which the disk makes a result. Refusals are rare, so an exception costs
little, and the code that raises it need not know the format of sense data or the length of the buffers.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import Status
from zonefs_emu.scsi.rules import HostRule, ScsiRule
from zonefs_emu.scsi.sense import Sense

#: Buffers whose len() is their size in bytes: those with data from the initiator, and those for data to the initiator.
DataOut: TypeAlias = Sequence[bytes | bytearray | memoryview]
DataIn: TypeAlias = Sequence[bytearray | memoryview]


class ScsiStatus(IntEnum):
    """The status byte. Source: SAM-5, "Status codes"."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02


class ScsiResult(NamedTuple):
    """The result of a command.

    *status* is a :class:`ScsiStatus`, *sense* the sense data, empty with GOOD.
    *residual*: how many bytes of the initiator's buffer (data-in or data-out, whichever the command has) were not
    transferred.
    *overrun*: the CDB asks for more than the buffers hold, so the command was not executed. *status* has no meaning
    then: the transport has a response of its own (virtio-scsi: OVERRUN).
    """

    status: int
    sense: bytes
    residual: int
    overrun: bool = False


#: The result of a command that was carried out and filled or used up its buffers.
GOOD: Final = ScsiResult(ScsiStatus.GOOD, b"", 0)


class RuleBrokenError(Exception):
    """A command breaks *rule*. The port has not noted that yet, and is to note it with *status*.

    *field*: the number of the first wrong byte of the CDB or (SCSI_PARAMETER_FIELD) of the parameter list, None if the
    mistake is not one byte. *wrong* then says for people what is wrong.
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
    """A command ends with the sense *code*; a refusal has been noted by the port already.

    *field*: the number of the first wrong byte of the CDB, None if the mistake is not one byte.
    """

    def __init__(self, code: Sense, field: int | None = None) -> None:
        super().__init__(code, field)
        self.code = code
        self.field = field


def total_bytes(buffers: DataOut) -> int:
    """Return the size of all *buffers* together, in bytes."""
    return sum(map(len, buffers))


def first_bytes(buffers: DataOut, nr_bytes: int) -> list[memoryview]:
    """Return views of the first *nr_bytes* of *buffers*, or of all bytes if there are fewer."""
    views = []
    for buffer in buffers:
        if nr_bytes <= 0:
            break
        view = memoryview(buffer)[:nr_bytes]
        views.append(view)
        nr_bytes -= len(view)
    return views


def nothing_transferred(data_out: DataOut, data_in: DataIn) -> ScsiResult:
    """Return the result of a command that moved no data, although buffers may have come with it."""
    if not data_out and not data_in:
        return GOOD
    return ScsiResult(ScsiStatus.GOOD, b"", total_bytes(data_out) + total_bytes(data_in))


def reply(data: bytes, allocation: int, data_out: DataOut, data_in: DataIn) -> ScsiResult:
    """Copy up to *allocation* bytes of *data*, as far as they fit, into *data_in*; return the result of the command."""
    left = memoryview(data)[:allocation]
    for buffer in data_in:
        if not left:
            break
        part = left[: len(buffer)]
        buffer[: len(part)] = part
        left = left[len(part) :]
    transferred = min(len(data), allocation) - len(left)
    return ScsiResult(ScsiStatus.GOOD, b"", total_bytes(data_out) + total_bytes(data_in) - transferred)
