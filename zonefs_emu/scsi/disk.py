"""The disk at LUN 0: its commands of SPC, SBC and ZBC.

May not know: the form of CDBs, LUNs, tags, unit attentions, transports. It gets a command value of :mod:`cdb`, the
initiator's buffers, and a device port; :mod:`medium` has the blocks and zones.

Invariants:

* No public method raises for a request of an initiator: every command gets a result.
* A refused command has changed nothing and transferred nothing. A command whose last step is a flush (FUA, a write
  without write cache, MODE SELECT that switches the cache off) stays carried out if that flush fails.
"""

from typing import Final, assert_never

from zonefs_emu.device.buffers import SHORT_SECTORS_MAX
from zonefs_emu.device.port import Port
from zonefs_emu.device.rules import Rule
from zonefs_emu.errors import Status
from zonefs_emu.scsi import commands, inquiry, sense
from zonefs_emu.scsi.cdb import (
    Cdb,
    Command,
    Enquiry,
    Inquiry,
    Malformed,
    ManageZones,
    ModeSelect,
    ModeSense,
    OtherCommand,
    Read,
    ReadCapacity10,
    ReadCapacity16,
    ReportLuns,
    ReportOperationCodes,
    ReportZones,
    RequestSense,
    SendDiagnostic,
    StartStopUnit,
    SynchronizeCache,
    TestUnitReady,
    Verify,
    Write,
)
from zonefs_emu.scsi.commands import ENQUIRIES
from zonefs_emu.scsi.inquiry import Identity
from zonefs_emu.scsi.medium import Medium
from zonefs_emu.scsi.mode import ModePages, ModeParameterError, PageControl
from zonefs_emu.scsi.result import (
    CheckConditionError,
    DataIn,
    DataOut,
    RuleBrokenError,
    ScsiResult,
    ScsiStatus,
    first_bytes,
    nothing_transferred,
    reply,
    total_bytes,
)
from zonefs_emu.scsi.rules import HostRule, ScsiRule
from zonefs_emu.scsi.sense import SENSE_OF_RULE, SENSE_OF_STATUS, Sense

#: Commands that may wait for the host's disk whatever their fields say: they sync, punch holes, or read for long.
_SLOW: Final = frozenset((ModeSelect, StartStopUnit, SynchronizeCache, Verify, ManageZones, ReportZones))


class Disk:
    """A host-managed zoned disk on a device port."""

    def __init__(self, port: Port, identity: Identity) -> None:
        """Serve *port*, whose dialect is ZBC, as *identity*."""
        geometry = self._geometry = port.geometry
        self._port = port
        self._modes = ModePages(
            nr_blocks=geometry.size // geometry.block_sectors,
            block_bytes=geometry.block_size_bytes,
            readonly=port.device.image.readonly,
        )
        self._medium = Medium(port, self._modes)
        self._short_blocks = SHORT_SECTORS_MAX // geometry.block_sectors
        self._zone_blocks = geometry.zone_size // geometry.block_sectors
        self._has_pending_reset = port.has_pending_reset
        self._read = self._medium.read
        self._write = self._medium.write
        self._standard_inquiry = inquiry.standard_inquiry(identity)
        self._vpd_pages = inquiry.vpd_pages(identity, geometry)

    def execute(self, command: Command, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Execute *command*; the log of refusals shows *cdb*, from which the command was parsed.

        *data_out* has the initiator's data, and *data_in* receives the answer; either may be empty.
        """
        try:
            if type(command) is Read:
                return self._read(command, data_out, data_in)
            if type(command) is Write:
                return self._write(command, data_out, data_in)
            return self._execute_other(command, data_out, data_in)
        except CheckConditionError as error:
            return self._refused(error.code, data_out, data_in, field=error.field)
        except RuleBrokenError as error:
            return self._rule_broken(error, cdb, data_out, data_in)

    def may_block(self, command: Command) -> bool:
        """Say whether *command* may wait for the host's disk or copies data for milliseconds.

        An event loop gives such a command to a thread.
        """
        if type(command) is Read:
            return command.fua or command.nr_blocks > self._short_blocks
        if type(command) is Write:
            # A write to a zone that was reset waits until the reset is durable.
            return (
                command.fua
                or command.nr_blocks > self._short_blocks
                or not self._modes.write_cache
                or self._has_pending_reset(command.lba // self._zone_blocks)
            )
        return type(command) in _SLOW

    def reset(self) -> None:
        """Do what a logical unit reset does: the mode parameters return to their defaults. Zones do not change."""
        self._modes.reset()

    @property
    def has_write_cache(self) -> bool:
        """Whether writes are answered before they are stable (WCE of the caching mode page)."""
        return self._modes.write_cache

    @property
    def descriptor_sense(self) -> bool:
        """Whether sense data is in descriptor format (D_SENSE of the control mode page)."""
        return self._modes.descriptor_sense

    # -- refusals ---------------------------------------------------------------------------------------------

    def _refused(
        self, code: Sense, data_out: DataOut, data_in: DataIn, *, field: int | None = None, in_data: bool = False
    ) -> ScsiResult:
        """Return CHECK CONDITION with *code* for a command that has transferred nothing."""
        data = sense.encode(code, descriptor=self._modes.descriptor_sense, field=field, in_data=in_data)
        return ScsiResult(ScsiStatus.CHECK_CONDITION, data, total_bytes(data_out) + total_bytes(data_in))

    def _rule_broken(self, error: RuleBrokenError, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Note that the command of *cdb* broke a rule, and return its result."""
        rule, field = error.rule, error.field
        in_data = rule is ScsiRule.SCSI_PARAMETER_FIELD
        wrong = error.wrong
        if field is not None:
            wrong = f"byte {field} of the parameter list" if in_data else f"byte {field}"
        self.note(rule, cdb, wrong, status=error.status)
        if isinstance(rule, HostRule):  # VSCSI_OVERRUN
            residual = total_bytes(data_out) + total_bytes(data_in)
            return ScsiResult(ScsiStatus.GOOD, b"", residual, overrun=True)
        code = SENSE_OF_RULE[rule] if isinstance(rule, ScsiRule) else SENSE_OF_STATUS[error.status]
        return self._refused(code, data_out, data_in, field=field, in_data=in_data)

    def note(self, rule: Rule, cdb: Cdb, wrong: str = "", *, status: Status = Status.UNSUPPORTED) -> None:
        """Note that the command of *cdb* was refused by *rule*, unless it only queries features."""
        if not len(cdb) or cdb[0] not in ENQUIRIES:
            self._port.refusals.refuse(rule, None, status, request=commands.describe(cdb, wrong))

    # -- commands ---------------------------------------------------------------------------------------------

    def _execute_other(self, command: OtherCommand, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        match command:
            case Verify():
                return self._medium.verify(command, data_out, data_in)
            case ReportZones():
                return self._medium.report_zones(command, data_out, data_in)
            case ModeSelect():
                return self._mode_select(command, data_out, data_in)
            case SynchronizeCache():
                self._medium.synchronize_cache(command)
            case ManageZones():
                self._medium.manage_zones(command)
            case StartStopUnit():
                # The disk does not spin: stopping it flushes, and the unit stays ready.
                if command.flush:
                    self._medium.flush()
            case TestUnitReady() | SendDiagnostic():
                pass  # always ready, and the default self-test passes
            case Malformed():
                raise RuleBrokenError(command.rule, command.field)
            case _:
                data, allocation = self._describe(command)
                return reply(data, allocation, data_out, data_in)
        return nothing_transferred(data_out, data_in)

    def _describe(self, command: Enquiry) -> tuple[bytes, int]:
        """Return the parameter data of *command*, and its allocation length in bytes.

        Raises:
            RuleBrokenError: SCSI_CDB_FIELD, because the page, subpage, list or operation code does not exist.
            CheckConditionError: SAVING PARAMETERS NOT SUPPORTED.
        """
        data: bytes | None
        match command:
            case RequestSense():
                return sense.encode(sense.NO_SENSE, descriptor=command.descriptor), command.allocation
            case ReadCapacity10():
                return inquiry.read_capacity_10(self._geometry), 8
            case ReadCapacity16():
                return inquiry.read_capacity_16(self._geometry), command.allocation
            case Inquiry():
                data = self._standard_inquiry if command.page is None else self._vpd_pages.get(command.page)
            case ReportLuns():
                data = inquiry.report_luns(command.select_report)
            case ReportOperationCodes():
                data = _operation_codes(command)
            case ModeSense():
                data = self._mode_sense(command)
            case _:
                assert_never(command)
        if data is None:
            raise RuleBrokenError(ScsiRule.SCSI_CDB_FIELD, 2)
        return data, command.allocation

    def _mode_sense(self, command: ModeSense) -> bytes | None:
        page, subpage, control = command.page, command.subpage, command.control
        if control is PageControl.SAVED:
            raise CheckConditionError(sense.SAVING_PARAMETERS_NOT_SUPPORTED)
        if not command.long:
            return self._modes.sense_6(page, subpage, control, descriptors=command.descriptors)
        return self._modes.sense_10(page, subpage, control, descriptors=command.descriptors, long_lba=command.long_lba)

    def _mode_select(self, command: ModeSelect, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        nr_bytes = command.nr_bytes
        if not nr_bytes:
            return nothing_transferred(data_out, data_in)
        size = total_bytes(data_out)
        if size < nr_bytes:
            raise RuleBrokenError(HostRule.VSCSI_OVERRUN, wrong=f"{size} bytes of buffers")
        had_cache = self._modes.write_cache
        try:
            self._modes.select(b"".join(first_bytes(data_out, nr_bytes)), header_bytes=command.header_bytes)
        except ModeParameterError as error:
            if error.field is None:
                raise RuleBrokenError(ScsiRule.SCSI_PARAMETER_LENGTH) from None
            raise RuleBrokenError(ScsiRule.SCSI_PARAMETER_FIELD, error.field) from None
        if had_cache and not self._modes.write_cache:
            # Without a cache, all answered writes must be stable, earlier ones included.
            self._medium.flush()
        return ScsiResult(ScsiStatus.GOOD, b"", size - nr_bytes)


def _operation_codes(command: ReportOperationCodes) -> bytes | None:
    if not command.option:
        return commands.supported_commands(timeouts=command.timeouts)
    return commands.one_command(command.option, command.opcode, command.service_action, timeouts=command.timeouts)
