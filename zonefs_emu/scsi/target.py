"""The target: selecting the logical unit of a command, unit attentions, task management.

May not know: the encoding of LUNs and tags in a transport.

A target has one disk at LUN 0 and the REPORT LUNS well-known logical unit. This module also answers commands to all
other LUNs. Use::

    target = Target(device.port("vhost-user-scsi", ZBC), serial="...")
    result = target.execute(lun, cdb, data_out, data_in)     # blocks; see may_block()

*lun* is a number: 0 is the disk, REPORT_LUNS_WLUN the well-known logical unit; :func:`decode_lun` makes it from the
8-byte structure of SAM-5. A command is done when ``execute`` returns. A target keeps no list of tasks, so a task
management function aborts no task and waits for none. A transport that executes commands on several threads, or holds
answers, calls :meth:`Target.manage_task` after all earlier commands, and answers these first.

Several threads may call ``execute`` at the same time: the device has its own lock, the queue of unit attentions is
atomic, and mode pages are replaced as a whole.

Sources: SAM-5 (logical unit numbers, task management), SPC-4 (unit attention conditions, INQUIRY to unsupported LUNs).
"""

from collections import deque
from enum import Enum, IntEnum, auto
from typing import Final

from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status
from zonefs_emu.scsi import inquiry, sense
from zonefs_emu.scsi.cdb import (
    CUT_SHORT,
    Cdb,
    Command,
    Inquiry,
    ReportLuns,
    RequestSense,
    TestUnitReady,
    parse,
)
from zonefs_emu.scsi.commands import Opcode
from zonefs_emu.scsi.disk import Disk
from zonefs_emu.scsi.inquiry import Identity
from zonefs_emu.scsi.result import (
    DataIn,
    DataOut,
    ScsiResult,
    ScsiStatus,
    nothing_transferred,
    reply,
    total_bytes,
)
from zonefs_emu.scsi.rules import HostRule, ScsiRule
from zonefs_emu.scsi.sense import SENSE_OF_RULE, Sense

#: The REPORT LUNS well-known logical unit, numbered by its first two bytes on the wire (C1h 01h).
REPORT_LUNS_WLUN: Final = 0xC101
#: The result of decode_lun for a structure that addresses no logical unit that a target of this kind can have.
NO_LUN: Final = -1

#: Commands that unit attentions do not stop, even if they are malformed. Source: SPC-4 and SAM-5, "Unit attention
#: conditions".
_UNSTOPPED: Final = frozenset({Opcode.INQUIRY, Opcode.REPORT_LUNS})
#: The commands that are answered for every LUN, also for one without a logical unit; and those of the well-known
#: logical unit.
_OF_ANY: Final = frozenset({Opcode.INQUIRY, Opcode.REQUEST_SENSE})
_OF_WELL_KNOWN: Final = _OF_ANY | {Opcode.REPORT_LUNS, Opcode.TEST_UNIT_READY}


class TaskFunction(IntEnum):
    """Task management functions of SAM-5, numbered as virtio-scsi numbers them."""

    ABORT_TASK = 0
    ABORT_TASK_SET = 1
    CLEAR_ACA = 2
    CLEAR_TASK_SET = 3
    I_T_NEXUS_RESET = 4
    LOGICAL_UNIT_RESET = 5
    QUERY_TASK = 6
    QUERY_TASK_SET = 7


_TASK_FUNCTIONS: Final = frozenset(TaskFunction)


class TaskResponse(Enum):
    """Answers to task management. Source: SAM-5, "Task management functions"."""

    COMPLETE = auto()
    REJECTED = auto()
    INCORRECT_LUN = auto()


def decode_lun(structure: bytes | bytearray | memoryview) -> int:
    """Return the number that an 8-byte LUN structure addresses: LUN, REPORT_LUNS_WLUN or NO_LUN.

    Peripheral (00b, bus 0) and flat (01b) addressing are known, and C1h 01h.

    Source: SAM-5, "Logical unit numbers".
    """
    if len(structure) != 8 or any(structure[2:]):
        return NO_LUN
    first, second = structure[0], structure[1]
    match first >> 6:
        case 0:
            return second if first == 0 else NO_LUN
        case 1:
            return (first & 0x3F) << 8 | second
        case _:
            return REPORT_LUNS_WLUN if (first, second) == (0xC1, 0x01) else NO_LUN


class Target:
    """A SCSI target with one zoned disk."""

    def __init__(
        self,
        port: Port,
        *,
        serial: str,
        vendor: str = inquiry.VENDOR,
        product: str = inquiry.PRODUCT,
        power_on: bool = True,
    ) -> None:
        """Serve *port*, whose dialect is ZBC, as the disk with *serial* (printable ASCII).

        *power_on*: the first command gets the unit attention POWER ON, RESET. It is False if this process takes over
        from one that died, because the initiator must not notice that.

        Raises:
            ValueError: *serial* is no SCSI serial number.
        """
        self._identity = Identity(serial=serial, vendor=vendor, product=product)
        self._port = port
        self.disk = Disk(port, self._identity)
        self._attentions: deque[Sense] = deque()
        self._execute = self.disk.execute
        if power_on:
            self.attend(sense.POWER_ON)

    def execute(self, lun: int, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Execute the command in *cdb*, which may have bytes behind the command, at *lun*; return when it is done.

        *data_out* has the initiator's data, and *data_in* receives the answer; either may be empty. If a READ fails,
        the content of *data_in* is undefined. No CDB and no buffers of an initiator make this method raise.
        """
        return self.execute_parsed(lun, parse(cdb), cdb, data_out, data_in)

    def execute_parsed(self, lun: int, command: Command, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Execute *command* at *lun* as :meth:`execute` does; *cdb*, from which it was parsed, is for the log."""
        if lun:
            return self._execute_elsewhere(lun, command, cdb, data_out, data_in)
        if self._attentions and len(cdb):
            stopped = self._meet_attention(command, cdb[0], data_out, data_in)
            if stopped is not None:
                return stopped
        return self._execute(command, cdb, data_out, data_in)

    def may_block(self, lun: int, command: Command) -> bool:
        """Say whether executing *command* at *lun* may wait for the host's disk, or copies data for milliseconds."""
        return lun == 0 and self.disk.may_block(command)

    def may_read_now(self) -> bool:
        """Say whether a READ without FUA may be executed as a read of the port, because no unit attention stops it."""
        return not self._attentions

    def may_write_now(self) -> bool:
        """Say the same of a WRITE without FUA, which also needs a write cache: otherwise a flush follows it."""
        return not self._attentions and self.disk.has_write_cache

    # -- unit attentions --------------------------------------------------------------------------------------

    def attend(self, condition: Sense) -> None:
        """Give the next command the unit attention *condition*.

        A power-on, reset or nexus loss (29h) replaces the conditions before it, except one of these with a lower ASCQ,
        which has precedence.

        Source: SAM-5, "Unit attention condition precedence".
        """
        if condition.asc == sense.POWER_ON.asc:
            if any(known.asc == condition.asc and known.ascq < condition.ascq for known in tuple(self._attentions)):
                return
            self._attentions.clear()
        if condition not in self._attentions:
            self._attentions.append(condition)

    def _meet_attention(self, command: Command, opcode: int, data_out: DataOut, data_in: DataIn) -> ScsiResult | None:
        """Return the result that the oldest unit attention gives *command*, or None if it does not stop *command*."""
        is_malformed_query = opcode == Opcode.REQUEST_SENSE and not isinstance(command, RequestSense)
        if opcode in _UNSTOPPED or is_malformed_query:
            return None
        try:
            condition = self._attentions.popleft()
        except IndexError:  # another queue took it
            return None
        if isinstance(command, RequestSense):
            data = sense.encode(condition, descriptor=command.descriptor)
            return reply(data, command.allocation, data_out, data_in)
        return _refused(condition, data_out, data_in, descriptor=self.disk.descriptor_sense)

    # -- other logical units ----------------------------------------------------------------------------------

    def _execute_elsewhere(
        self, lun: int, command: Command, cdb: Cdb, data_out: DataOut, data_in: DataIn
    ) -> ScsiResult:
        """Execute *command* at the well-known logical unit, or at a LUN without a logical unit."""
        well_known = lun == REPORT_LUNS_WLUN
        match command:
            case Inquiry(page=None):
                # PERIPHERAL QUALIFIER 011b: no device is possible at this LUN (SPC-4).
                device_type = inquiry.WELL_KNOWN_TYPE if well_known else inquiry.NO_DEVICE
                data = inquiry.standard_inquiry(self._identity, device_type)
                return reply(data, command.allocation, data_out, data_in)
            case RequestSense():
                code = sense.NO_SENSE if well_known else sense.LUN_NOT_SUPPORTED
                data = sense.encode(code, descriptor=command.descriptor)
                return reply(data, command.allocation, data_out, data_in)
            case ReportLuns() if well_known:
                return self._execute(command, cdb, data_out, data_in)
            case TestUnitReady() if well_known:
                return nothing_transferred(data_out, data_in)
            case _ if command is CUT_SHORT or cdb[0] in (_OF_WELL_KNOWN if well_known else _OF_ANY):
                # Such a command is malformed, or asks for vital product data, which only the disk has.
                self.disk.note(ScsiRule.SCSI_CDB_FIELD, cdb)
                return _refused(sense.INVALID_FIELD_IN_CDB, data_out, data_in)
            case _:
                rule = ScsiRule.SCSI_OPERATION_CODE if well_known else ScsiRule.SCSI_LUN
                self.disk.note(rule, cdb, "to the REPORT LUNS unit" if well_known else _name_of_lun(lun))
                return _refused(SENSE_OF_RULE[rule], data_out, data_in)

    def no_target(self, cdb: Cdb | None) -> None:
        """Note a request to a target that does not exist: the command of *cdb*, or (None) task management."""
        if cdb is None:
            self._refuse_task(HostRule.VSCSI_TARGET, "task management")
        else:
            self.disk.note(HostRule.VSCSI_TARGET, cdb)

    def refuse_oversized(self, nr_bytes: int) -> None:
        """Note a request whose buffers hold *nr_bytes*, more than any request may have."""
        self._port.refusals.refuse(
            HostRule.VSCSI_OVERSIZED, None, Status.UNSUPPORTED, request=f"a request with {nr_bytes} bytes of buffers"
        )

    # -- task management --------------------------------------------------------------------------------------

    def manage_task(self, function: int, lun: int) -> TaskResponse:
        """Carry out a task management function at *lun*; reject a number that is no TaskFunction, and CLEAR ACA.

        Aborting and querying find no task, because all earlier commands have been executed.

        Source: SAM-5, "Task management functions".
        """
        name = f"task management function {function}"
        if function not in _TASK_FUNCTIONS:
            self._refuse_task(HostRule.VSCSI_TASK, name)
            return TaskResponse.REJECTED
        if function == TaskFunction.I_T_NEXUS_RESET:
            self.attend(sense.I_T_NEXUS_LOSS)
            return TaskResponse.COMPLETE
        if lun not in (0, REPORT_LUNS_WLUN):
            self._refuse_task(HostRule.VSCSI_TASK_LUN, f"{name} at {_name_of_lun(lun)}")
            return TaskResponse.INCORRECT_LUN
        match function:
            case TaskFunction.LOGICAL_UNIT_RESET:
                if lun == 0:
                    self.disk.reset()
                    self.attend(sense.BUS_DEVICE_RESET)
                return TaskResponse.COMPLETE
            case TaskFunction.CLEAR_ACA:  # NORMACA is 0
                self._refuse_task(HostRule.VSCSI_TASK, name)
                return TaskResponse.REJECTED
            case _:
                return TaskResponse.COMPLETE

    def _refuse_task(self, rule: HostRule, request: str) -> None:
        self._port.refusals.refuse(rule, None, Status.UNSUPPORTED, request=request)


def _name_of_lun(lun: int) -> str:
    return f"LUN {lun}" if lun >= 0 else "a LUN that addresses nothing"


def _refused(code: Sense, data_out: DataOut, data_in: DataIn, *, descriptor: bool = False) -> ScsiResult:
    data = sense.encode(code, descriptor=descriptor)
    return ScsiResult(ScsiStatus.CHECK_CONDITION, data, total_bytes(data_out) + total_bytes(data_in))
