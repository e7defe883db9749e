"""The disk at LUN 0: every command of SPC, SBC and ZBC that it has.

May not know: LUNs, tags, unit attentions, transports. It sees a CDB, the initiator's buffers, and a device port.

Invariants:

* READ and WRITE move the data straight between the given buffers and the port; a command that was done in full answers
  the one object GOOD. Everything else may be slow.
* Nothing here raises for what an initiator sends: every CDB of any length gets a result.
* A refused command has changed nothing and transferred nothing.

Buffers are bytes-like objects whose len() is their size in bytes.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from zonefs_emu.device.buffers import Cursor, carve, gather
from zonefs_emu.device.device import Port
from zonefs_emu.device.rules import DeviceRule, Rule
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.scsi import commands, inquiry, report, sense
from zonefs_emu.scsi.commands import CDB_LENGTHS, ENQUIRIES, NACA, Opcode
from zonefs_emu.scsi.inquiry import Identity
from zonefs_emu.scsi.mode import ModePages, ModeParameterError, PageControl
from zonefs_emu.scsi.report import ZoneReporter
from zonefs_emu.scsi.rules import HostRule, ScsiRule
from zonefs_emu.scsi.sense import SENSE_OF_RULE, SENSE_OF_STATUS, Sense, sense_of
from zonefs_emu.units import SECTOR_SHIFT, Sector

Cdb: TypeAlias = bytes | bytearray | memoryview
DataOut: TypeAlias = Sequence[bytes | bytearray | memoryview]
DataIn: TypeAlias = Sequence[bytearray | memoryview]
Handler: TypeAlias = "Callable[[Cdb, DataOut, DataIn], ScsiResult]"


class ScsiStatus(IntEnum):
    """The status byte. Source: SAM-5, "Status codes"."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02


class CommandRefusedError(Exception):
    """A command is malformed or unknown: the *rule* that it breaks, and what is *wrong* with it, for people.

    *field*: the first wrong byte, of the CDB or (SCSI_PARAMETER_FIELD) of the parameter list.
    """

    def __init__(self, rule: ScsiRule | HostRule, field: int | None = None, *, wrong: str = "") -> None:
        super().__init__(rule, field)
        self.rule = rule
        self.field = field
        self.wrong = wrong


class ScsiResult(NamedTuple):
    """What became of a command.

    *residual*: how many bytes of the initiator's buffer (data-in or data-out, whichever the command has) were not
    transferred.
    *overrun*: the CDB asks for more than the buffers hold; nothing was done, and *status* means nothing: the
    transport has a response of its own for it (virtio-scsi: OVERRUN).
    """

    status: int
    sense: bytes
    residual: int
    overrun: bool = False


#: Done, everything transferred.
GOOD: Final = ScsiResult(ScsiStatus.GOOD, b"", 0)

_FUA: Final = 0x08
_PROTECT: Final = 0xE0
_BYTE_CHECK: Final = 0x06
_PARTIAL: Final = 0x80
_ALL: Final = 0x01
_SELF_TEST: Final = 0x04
_START: Final = 0x01
_LOEJ: Final = 0x02
_NO_FLUSH: Final = 0x04
#: Read by VERIFY at once.
_VERIFY_BYTES: Final = 1 << 20
#: More than any transfer: "no boundary to look after".
_NO_BOUNDARY: Final = 1 << 64

_CDB_10: Final = struct.Struct(">BBIBHB")
_CDB_12: Final = struct.Struct(">BBIIBB")
_CDB_16: Final = struct.Struct(">BBQIBB")
#: Byte 1, LBA and transfer length of a 16-byte read or write.
_TRANSFER_16: Final = struct.Struct(">xBQI").unpack_from
_ZONE_CDB: Final = struct.Struct(">BBQ2xHBB")

_ZONE_OPERATIONS: Final[Mapping[int, Operation]] = MappingProxyType(
    {
        commands.CLOSE_ZONE: Operation.CLOSE,
        commands.FINISH_ZONE: Operation.FINISH,
        commands.OPEN_ZONE: Operation.OPEN,
        commands.RESET_WRITE_POINTER: Operation.RESET,
    }
)
#: Commands during which the host may make us wait: sync, hole punching, long reads.
_SLOW: Final = frozenset({
    Opcode.MODE_SELECT_6, Opcode.MODE_SELECT_10, Opcode.START_STOP_UNIT, Opcode.SYNCHRONIZE_CACHE_10,
    Opcode.SYNCHRONIZE_CACHE_16, Opcode.VERIFY_10, Opcode.VERIFY_12, Opcode.VERIFY_16, Opcode.ZBC_OUT, Opcode.ZBC_IN,
})  # fmt: skip
_WRITES: Final = frozenset({Opcode.WRITE_6, Opcode.WRITE_10, Opcode.WRITE_12, Opcode.WRITE_16})
#: Those that have FUA in byte 1.
_LONG_READS_AND_WRITES: Final = frozenset({
    Opcode.READ_10, Opcode.READ_12, Opcode.READ_16, Opcode.WRITE_10, Opcode.WRITE_12, Opcode.WRITE_16,
})  # fmt: skip


class Disk:
    """A host-managed zoned disk on a device port."""

    def __init__(self, port: Port, identity: Identity) -> None:
        """Serve *port*, whose dialect is ZBC, as *identity*."""
        geometry = port.geometry
        self._port = port
        self._geometry = geometry
        self._readonly = port.device.image.readonly
        self._block_shift = geometry.block_sectors.bit_length() - 1
        self._zone_size = geometry.zone_size
        self._size = geometry.size
        self._has_gaps = inquiry.has_gaps(geometry)
        self._max_sectors = inquiry.MAX_TRANSFER_BYTES >> SECTOR_SHIFT
        # A read that ends at or before this offset into its zone needs no look at the zones: it stays in one type.
        has_two_types = 0 < geometry.nr_conventional < geometry.nr_zones
        self._read_boundary = geometry.zone_size if has_two_types else _NO_BOUNDARY
        # A write that starts below this offset into its zone does not start in a gap.
        self._gap_offset = geometry.zone_capacity if self._has_gaps else _NO_BOUNDARY
        self._modes = ModePages(
            nr_blocks=geometry.size >> self._block_shift,
            block_bytes=geometry.block_size_bytes,
            readonly=self._readonly,
        )
        self._standard_inquiry = inquiry.standard_inquiry(identity)
        self._vpd_pages = inquiry.vpd_pages(identity, geometry)
        self._reporter = ZoneReporter(port, geometry)
        self._port_read = port.read
        self._port_write = port.write
        self._handlers: list[Handler] = [self._unknown] * 256
        for opcode, handler in self._table().items():
            self._handlers[opcode] = handler

    def _table(self) -> Mapping[Opcode, Handler]:
        return {
            Opcode.TEST_UNIT_READY: self._nothing,
            Opcode.REQUEST_SENSE: self._request_sense,
            Opcode.READ_6: self._read_6,
            Opcode.WRITE_6: self._write_6,
            Opcode.INQUIRY: self._inquiry,
            Opcode.MODE_SELECT_6: self._mode_select_6,
            Opcode.MODE_SENSE_6: self._mode_sense_6,
            Opcode.START_STOP_UNIT: self._start_stop_unit,
            Opcode.SEND_DIAGNOSTIC: self._send_diagnostic,
            Opcode.READ_CAPACITY_10: self._read_capacity_10,
            Opcode.READ_10: self._read_10,
            Opcode.WRITE_10: self._write_10,
            Opcode.VERIFY_10: self._verify_10,
            Opcode.SYNCHRONIZE_CACHE_10: self._synchronize_cache_10,
            Opcode.MODE_SELECT_10: self._mode_select_10,
            Opcode.MODE_SENSE_10: self._mode_sense_10,
            Opcode.READ_16: self._read_16,
            Opcode.WRITE_16: self._write_16,
            Opcode.VERIFY_16: self._verify_16,
            Opcode.SYNCHRONIZE_CACHE_16: self._synchronize_cache_16,
            Opcode.ZBC_OUT: self._zbc_out,
            Opcode.ZBC_IN: self._report_zones,
            Opcode.SERVICE_ACTION_IN_16: self._read_capacity_16,
            Opcode.REPORT_LUNS: self._report_luns,
            Opcode.MAINTENANCE_IN: self._report_supported_operation_codes,
            Opcode.READ_12: self._read_12,
            Opcode.WRITE_12: self._write_12,
            Opcode.VERIFY_12: self._verify_12,
        }

    def execute(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Do the command of *cdb*, which may be longer than the command; a shorter one is refused."""
        try:
            if not len(cdb):
                raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD)
            opcode = cdb[0]
            length = CDB_LENGTHS[opcode]
            if length > len(cdb):
                raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD)
            if length and cdb[length - 1] & NACA:
                raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, length - 1)
            return self._handlers[opcode](cdb, data_out, data_in)
        except CommandRefusedError as error:
            return self._not_understood(error, cdb, data_out, data_in)

    def may_block(self, cdb: Cdb) -> bool:
        """Say whether *cdb* may wait for the host's disk, so that an event loop gives it to a thread."""
        if not len(cdb):
            return False
        opcode = cdb[0]
        if opcode in _SLOW or (opcode in _WRITES and not self._modes.write_cache):
            return True
        return opcode in _LONG_READS_AND_WRITES and len(cdb) > 1 and bool(cdb[1] & _FUA)

    def reset(self) -> None:
        """Do what a logical unit reset does here: mode parameters go back to their defaults. Zones stay as they are."""
        self._modes.reset()

    @property
    def descriptor_sense(self) -> bool:
        """Whether sense data is in descriptor format (D_SENSE of the control mode page)."""
        return self._modes.descriptor_sense

    # -- results ----------------------------------------------------------------------------------------------

    def _refused(
        self, code: Sense, data_out: DataOut, data_in: DataIn, *, field: int | None = None, in_data: bool = False
    ) -> ScsiResult:
        """CHECK CONDITION with *code*; nothing was transferred."""
        data = sense.encode(code, descriptor=self._modes.descriptor_sense, field=field, in_data=in_data)
        return ScsiResult(ScsiStatus.CHECK_CONDITION, data, total_bytes(data_out) + total_bytes(data_in))

    def _not_understood(self, error: CommandRefusedError, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Note *error* and return the result of *cdb*."""
        rule, field = error.rule, error.field
        in_data = rule is ScsiRule.SCSI_PARAMETER_FIELD
        wrong = error.wrong
        if field is not None:
            wrong = f"byte {field} of the parameter list" if in_data else f"byte {field}"
        self.note(rule, cdb, wrong)
        if isinstance(rule, HostRule):  # VSCSI_OVERRUN
            residual = total_bytes(data_out) + total_bytes(data_in)
            return ScsiResult(ScsiStatus.GOOD, b"", residual, overrun=True)
        return self._refused(SENSE_OF_RULE[rule], data_out, data_in, field=field, in_data=in_data)

    def note(self, rule: Rule, cdb: Cdb, wrong: str = "") -> None:
        """Note that the command of *cdb* was refused by *rule*, if it is none that only asks what there is."""
        if not len(cdb) or cdb[0] not in ENQUIRIES:
            self._port.refuse(rule, None, Status.UNSUPPORTED, request=commands.describe(cdb, wrong))

    def _status(self, status: Status, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Turn what the port answered into a result, for commands that transfer nothing."""
        if status:
            return self._refused(SENSE_OF_STATUS[status], data_out, data_in)
        return nothing_transferred(data_out, data_in)

    def _broken(
        self, rule: ScsiRule, operation: Operation, status: Status, sector: Sector, nr_sectors: int, *, zone_no: int
    ) -> Sense:
        """Note a refusal by a *rule* of the disk's own, and return its sense."""
        self._port.refuse(rule, operation, status, sector, nr_sectors, zone_no=zone_no)
        return SENSE_OF_RULE[rule]

    def _unknown(self, _cdb: Cdb, _data_out: DataOut, _data_in: DataIn) -> ScsiResult:
        raise CommandRefusedError(ScsiRule.SCSI_OPERATION_CODE, 0)

    # -- READ -------------------------------------------------------------------------------------------------

    def _read_16(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        flags, lba, nr_blocks = _TRANSFER_16(cdb)
        return self._read(lba, nr_blocks, flags, data_out, data_in)

    def _read_12(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        _, flags, lba, nr_blocks, _, _ = _CDB_12.unpack_from(cdb)
        return self._read(lba, nr_blocks, flags, data_out, data_in)

    def _read_10(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        _, flags, lba, _, nr_blocks, _ = _CDB_10.unpack_from(cdb)
        return self._read(lba, nr_blocks, flags, data_out, data_in)

    def _read_6(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        # "A TRANSFER LENGTH field set to zero specifies that 256 logical blocks shall be read" (SBC-3).
        return self._read(_lba_6(cdb), cdb[4] or 256, 0, data_out, data_in)

    def _read(self, lba: int, nr_blocks: int, flags: int, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Read *nr_blocks* at *lba*; *flags* is byte 1 of the CDB: RDPROTECT, DPO (ignored), FUA."""
        if flags & (_PROTECT | _FUA):
            if flags & _PROTECT:
                raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 1)
            # FUA: from the medium, so what is only in the cache has to get there first.
            status = self._port.flush()
            if status:
                return self._refused(sense_of(status, Operation.FLUSH), data_out, data_in)
        sector = lba << self._block_shift
        nr_sectors = nr_blocks << self._block_shift
        size = len(data_in[0]) if len(data_in) == 1 else total_bytes(data_in)
        residual = size - (nr_sectors << SECTOR_SHIFT)
        buffers: DataIn = data_in
        if residual or nr_sectors > self._max_sectors or not nr_sectors:
            if sector + nr_sectors <= self._size:
                if nr_sectors > self._max_sectors:
                    return self._too_long(Operation.READ, sector, nr_sectors, data_out, data_in)
                if residual < 0:
                    raise CommandRefusedError(HostRule.VSCSI_OVERRUN, wrong=f"{size} bytes of buffers")
                if not nr_sectors:
                    return nothing_transferred(data_out, data_in)
            buffers = first_bytes(data_in, max(0, size - residual))
        if sector % self._zone_size + nr_sectors > self._read_boundary:
            code = self._crossed(sector, nr_sectors)
            if code:
                return self._refused(code, data_out, data_in)
        status = self._port_read(sector, nr_sectors, buffers)
        if status:
            return self._refused(SENSE_OF_STATUS[status], data_out, data_in)
        return GOOD if not residual else ScsiResult(ScsiStatus.GOOD, b"", residual)

    def _crossed(self, sector: Sector, nr_sectors: int) -> Sense | None:
        """Return why a read that leaves its zone is refused, or None: a read stays in zones of one type.

        With URSWRZ it may cross sequential zones (ZBC-2, URSWRZ: "reads across zone boundaries in sequential write
        required zones"), and gap zones read as zeros: libzbc's 05.363 expects success, and so answer Linux's scsi_debug
        and the emulator that libzbc is developed with. Those two refuse a read that begins before a gap zone and ends
        in it. Here a gap zone counts as part of the zone before it: Linux hides gap zones, cuts requests at zone starts
        only and merges adjacent reads, so a refusal would fail reads that succeed one by one (and fio's zbd test 54,
        which reads up to a whole zone at once).
        """
        geometry = self._geometry
        end = sector + nr_sectors
        if end > self._size:
            return None  # the port says so
        first = sector // self._zone_size
        last = (end - 1) // self._zone_size
        conventional = geometry.is_conventional(first)
        for zone_no in range(first, last + 1):
            if geometry.is_conventional(zone_no) != conventional:
                return self._broken(
                    ScsiRule.SCSI_READ_TYPES, Operation.READ, Status.READ_BOUNDARY, sector, nr_sectors, zone_no=zone_no
                )
        return None

    def _too_long(
        self, operation: Operation, sector: Sector, nr_sectors: int, data_out: DataOut, data_in: DataIn
    ) -> ScsiResult:
        """Refuse a transfer beyond MAXIMUM TRANSFER LENGTH."""
        zone_no = sector // self._zone_size
        code = self._broken(
            ScsiRule.SCSI_TRANSFER_LENGTH, operation, Status.UNSUPPORTED, sector, nr_sectors, zone_no=zone_no
        )
        return self._refused(code, data_out, data_in)

    # -- WRITE ------------------------------------------------------------------------------------------------

    def _write_16(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        flags, lba, nr_blocks = _TRANSFER_16(cdb)
        return self._write(lba, nr_blocks, flags, data_out, data_in)

    def _write_12(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        _, flags, lba, nr_blocks, _, _ = _CDB_12.unpack_from(cdb)
        return self._write(lba, nr_blocks, flags, data_out, data_in)

    def _write_10(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        _, flags, lba, _, nr_blocks, _ = _CDB_10.unpack_from(cdb)
        return self._write(lba, nr_blocks, flags, data_out, data_in)

    def _write_6(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        return self._write(_lba_6(cdb), cdb[4] or 256, 0, data_out, data_in)

    def _write(self, lba: int, nr_blocks: int, flags: int, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Write *nr_blocks* at *lba*; *flags* is byte 1 of the CDB: WRPROTECT, DPO (ignored), FUA."""
        if flags & _PROTECT:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 1)
        sector = lba << self._block_shift
        nr_sectors = nr_blocks << self._block_shift
        size = len(data_out[0]) if len(data_out) == 1 else total_bytes(data_out)
        residual = size - (nr_sectors << SECTOR_SHIFT)
        buffers: DataOut = data_out
        if residual or nr_sectors > self._max_sectors or not nr_sectors:
            if sector + nr_sectors <= self._size:
                if nr_sectors > self._max_sectors:
                    return self._too_long(Operation.WRITE, sector, nr_sectors, data_out, data_in)
                if residual < 0:
                    raise CommandRefusedError(HostRule.VSCSI_OVERRUN, wrong=f"{size} bytes of buffers")
                if not nr_sectors:
                    # "A TRANSFER LENGTH field set to zero [...] shall not be considered an error" (SBC-3).
                    return nothing_transferred(data_out, data_in)
            buffers = first_bytes(data_out, max(0, size - residual))
        if self._readonly:
            return self._write_protected(Operation.WRITE, sector, nr_sectors, data_out, data_in)
        if sector % self._zone_size >= self._gap_offset and self._in_gap(sector) and sector + nr_sectors <= self._size:
            zone_no = sector // self._zone_size
            code = self._broken(
                ScsiRule.SCSI_GAP, Operation.WRITE, Status.ZONE_BOUNDARY, sector, nr_sectors, zone_no=zone_no
            )
            return self._refused(code, data_out, data_in)
        status = self._port_write(sector, nr_sectors, buffers)
        if status:
            return self._refused(sense_of(status, Operation.WRITE), data_out, data_in)
        if flags & _FUA or not self._modes.write_cache:
            status = self._port.flush()
            if status:
                return self._refused(sense_of(status, Operation.FLUSH), data_out, data_in)
        return GOOD if not residual else ScsiResult(ScsiStatus.GOOD, b"", residual)

    def _in_gap(self, sector: Sector) -> bool:
        """Say whether *sector* lies in a gap zone; sectors beyond the device do not."""
        zone_no, offset = divmod(sector, self._zone_size)
        return sector < self._size and offset >= self._geometry.zone_cap(zone_no)

    def _write_protected(
        self, operation: Operation, sector: Sector, nr_sectors: int, data_out: DataOut, data_in: DataIn
    ) -> ScsiResult:
        zone_no = sector // self._zone_size
        code = self._broken(
            ScsiRule.SCSI_WRITE_PROTECTED, operation, Status.UNSUPPORTED, sector, nr_sectors, zone_no=zone_no
        )
        return self._refused(code, data_out, data_in)

    # -- VERIFY, SYNCHRONIZE CACHE ----------------------------------------------------------------------------

    def _verify_16(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        _, flags, lba, nr_blocks, _, _ = _CDB_16.unpack_from(cdb)
        return self._verify(lba, nr_blocks, flags, data_out, data_in)

    def _verify_12(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        _, flags, lba, nr_blocks, _, _ = _CDB_12.unpack_from(cdb)
        return self._verify(lba, nr_blocks, flags, data_out, data_in)

    def _verify_10(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        _, flags, lba, _, nr_blocks, _ = _CDB_10.unpack_from(cdb)
        return self._verify(lba, nr_blocks, flags, data_out, data_in)

    def _verify(self, lba: int, nr_blocks: int, flags: int, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Read *nr_blocks* at *lba* and, with BYTCHK 01b, compare them with *data_out*."""
        check = flags & _BYTE_CHECK
        if flags & _PROTECT or check > 0x02:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 1)
        sector = lba << self._block_shift
        nr_sectors = nr_blocks << self._block_shift
        nr_bytes = nr_sectors << SECTOR_SHIFT
        if sector + nr_sectors <= self._size:
            if nr_sectors > self._max_sectors:
                return self._too_long(Operation.READ, sector, nr_sectors, data_out, data_in)
            if check and total_bytes(data_out) < nr_bytes:
                raise CommandRefusedError(HostRule.VSCSI_OVERRUN, wrong=f"{total_bytes(data_out)} bytes of buffers")
        if sector % self._zone_size + nr_sectors > self._read_boundary:
            code = self._crossed(sector, nr_sectors)
            if code:
                return self._refused(code, data_out, data_in)
        given = [memoryview(buffer) for buffer in data_out]
        done = 0
        while True:
            part = bytearray(min(_VERIFY_BYTES, max(0, min(nr_bytes, inquiry.MAX_TRANSFER_BYTES) - done)))
            at = sector + (done >> SECTOR_SHIFT)
            # The whole range in the first request's place where it lies beyond the device, so that the port refuses it.
            part_sectors = len(part) >> SECTOR_SHIFT if sector + nr_sectors <= self._size else nr_sectors
            status = self._port_read(at, part_sectors, [part])
            if status:
                return self._refused(SENSE_OF_STATUS[status], data_out, data_in)
            if check and gather(given, done, len(part)) != part:
                raise CommandRefusedError(ScsiRule.SCSI_MISCOMPARE)
            done += len(part)
            if done >= nr_bytes:
                residual = total_bytes(data_out) + total_bytes(data_in) - (nr_bytes if check else 0)
                return ScsiResult(ScsiStatus.GOOD, b"", residual)

    def _synchronize_cache_16(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        _, _, lba, nr_blocks, _, _ = _CDB_16.unpack_from(cdb)
        return self._synchronize_cache(lba, nr_blocks, data_out, data_in)

    def _synchronize_cache_10(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        _, _, lba, _, nr_blocks, _ = _CDB_10.unpack_from(cdb)
        return self._synchronize_cache(lba, nr_blocks, data_out, data_in)

    def _synchronize_cache(self, lba: int, nr_blocks: int, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Flush everything, whatever the range; IMMED would allow to answer earlier, which helps nobody."""
        if (lba + nr_blocks) << self._block_shift > self._size:
            status = self._port.refuse(
                DeviceRule.OUT_OF_RANGE, Operation.FLUSH, Status.OUT_OF_RANGE, lba << self._block_shift,
                nr_blocks << self._block_shift,
            )  # fmt: skip
            return self._refused(SENSE_OF_STATUS[status], data_out, data_in)
        return self._flush(data_out, data_in)

    def _flush(self, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        status = self._port.flush()
        if status:
            return self._refused(sense_of(status, Operation.FLUSH), data_out, data_in)
        return nothing_transferred(data_out, data_in)

    # -- zones ------------------------------------------------------------------------------------------------

    def _report_zones(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        if cdb[1] & 0x1F != commands.REPORT_ZONES:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 1)
        _, _, lba, allocation, options, _ = _CDB_16.unpack_from(cdb)
        option = options & 0x3F
        if option not in report.OPTIONS:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 14)
        sector = lba << self._block_shift
        if sector >= self._size:
            self._port.refuse(DeviceRule.OUT_OF_RANGE, None, Status.OUT_OF_RANGE, request=commands.describe(cdb))
            return self._refused(sense.LBA_OUT_OF_RANGE, data_out, data_in)
        room = min(allocation, total_bytes(data_in))
        max_descriptors = max(0, room - report.HEADER_BYTES) // report.DESCRIPTOR_BYTES
        views = [memoryview(buffer) for buffer in data_in]
        target = Cursor(carve(views, report.HEADER_BYTES, room))
        header = self._reporter.report(sector, option, max_descriptors, target.store, partial=bool(options & _PARTIAL))
        result = reply(header, allocation, data_out, data_in)
        return result._replace(residual=result.residual - target.nr_stored)

    def _zbc_out(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Open, close, finish or reset: all zones, or ZONE COUNT (0 means 1) sequential zones from ZONE ID on.

        The zones of one command are changed together or not at all; gap zones between them are not counted.
        """
        _, action, lba, zone_count, flags, _ = _ZONE_CDB.unpack_from(cdb)
        operation = _ZONE_OPERATIONS.get(action & 0x1F)
        if operation is None:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 1)
        sector = lba << self._block_shift
        if self._readonly:
            return self._write_protected(operation, sector, 0, data_out, data_in)
        if flags & _ALL:  # "the ZONE ID field shall be ignored" (ZBC-2)
            return self._status(self._port.manage_all(operation), data_out, data_in)
        zone_no, offset = divmod(sector, self._zone_size)
        if self._has_gaps and self._in_gap(sector) and offset == self._geometry.zone_cap(zone_no):
            # The ZONE ID is the start of a gap zone, which libzbc (05.323, 333, 343, 353) tells from one that is the
            # start of no zone.
            code = self._broken(ScsiRule.SCSI_GAP, operation, Status.NOT_ZONE_START, sector, 0, zone_no=zone_no)
            return self._refused(code, data_out, data_in)
        status = self._port.manage(operation, sector, zone_count or 1)
        if status:
            code = sense_of(status, operation)
            return self._refused(code, data_out, data_in, field=2 if code is sense.INVALID_FIELD_IN_CDB else None)
        return nothing_transferred(data_out, data_in)

    # -- who, how large, how --------------------------------------------------------------------------------------

    def _nothing(self, _cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """TEST UNIT READY: always ready."""
        return nothing_transferred(data_out, data_in)

    def _request_sense(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        data = sense.encode(sense.NO_SENSE, descriptor=bool(cdb[1] & 0x01))
        return reply(data, cdb[4], data_out, data_in)

    def _inquiry(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        allocation = int.from_bytes(cdb[3:5], "big")
        if cdb[1] & 0x02:  # CMDDT, obsolete
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 1)
        if not cdb[1] & 0x01:
            if cdb[2]:
                raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 2)
            return reply(self._standard_inquiry, allocation, data_out, data_in)
        page = self._vpd_pages.get(cdb[2])
        if page is None:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 2)
        return reply(page, allocation, data_out, data_in)

    def _read_capacity_10(self, _cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        return reply(inquiry.read_capacity_10(self._geometry), 8, data_out, data_in)

    def _read_capacity_16(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        if cdb[1] & 0x1F != commands.READ_CAPACITY_16:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 1)
        allocation = int.from_bytes(cdb[10:14], "big")
        return reply(inquiry.read_capacity_16(self._geometry), allocation, data_out, data_in)

    def _report_luns(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        data = inquiry.report_luns(cdb[2])
        if data is None:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 2)
        return reply(data, int.from_bytes(cdb[6:10], "big"), data_out, data_in)

    def _report_supported_operation_codes(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        if cdb[1] & 0x1F != commands.REPORT_SUPPORTED_OPERATION_CODES:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 1)
        option = cdb[2] & 0x07
        timeouts = bool(cdb[2] & 0x80)
        data: bytes | None
        if option == 0:
            data = commands.supported_commands(timeouts=timeouts)
        elif option <= 3:
            data = commands.one_command(option, cdb[3], int.from_bytes(cdb[4:6], "big"), timeouts=timeouts)
        else:
            data = None
        if data is None:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 2)
        return reply(data, int.from_bytes(cdb[6:10], "big"), data_out, data_in)

    def _mode_sense_6(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        control = PageControl(cdb[2] >> 6)
        if control is PageControl.SAVED:
            return self._refused(sense.SAVING_PARAMETERS_NOT_SUPPORTED, data_out, data_in)
        data = self._modes.sense_6(cdb[2] & 0x3F, cdb[3], control, descriptors=not cdb[1] & 0x08)
        if data is None:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 2)
        return reply(data, cdb[4], data_out, data_in)

    def _mode_sense_10(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        control = PageControl(cdb[2] >> 6)
        if control is PageControl.SAVED:
            return self._refused(sense.SAVING_PARAMETERS_NOT_SUPPORTED, data_out, data_in)
        data = self._modes.sense_10(
            cdb[2] & 0x3F, cdb[3], control, descriptors=not cdb[1] & 0x08, long_lba=bool(cdb[1] & 0x10)
        )
        if data is None:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 2)
        return reply(data, int.from_bytes(cdb[7:9], "big"), data_out, data_in)

    def _mode_select_6(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        return self._mode_select(cdb[1], cdb[4], 4, data_out, data_in)

    def _mode_select_10(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        return self._mode_select(cdb[1], int.from_bytes(cdb[7:9], "big"), 8, data_out, data_in)

    def _mode_select(
        self, flags: int, length: int, header_bytes: int, data_out: DataOut, data_in: DataIn
    ) -> ScsiResult:
        """Change mode parameters; PF (standard pages) is required, SP (save them) is not possible."""
        if not flags & 0x10 or flags & 0x01:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 1)
        if not length:
            return nothing_transferred(data_out, data_in)
        size = total_bytes(data_out)
        if size < length:
            raise CommandRefusedError(HostRule.VSCSI_OVERRUN, wrong=f"{size} bytes of buffers")
        had_cache = self._modes.write_cache
        try:
            self._modes.select(b"".join(first_bytes(data_out, length)), header_bytes=header_bytes)
        except ModeParameterError as error:
            if error.field is None:
                raise CommandRefusedError(ScsiRule.SCSI_PARAMETER_LENGTH) from None
            raise CommandRefusedError(ScsiRule.SCSI_PARAMETER_FIELD, error.field) from None
        if had_cache and not self._modes.write_cache:
            # From now on what is answered is stable; that includes what was answered before.
            status = self._port.flush()
            if status:
                return self._refused(sense_of(status, Operation.FLUSH), data_out, data_in)
        return ScsiResult(ScsiStatus.GOOD, b"", size - length)

    def _start_stop_unit(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """There is nothing to spin: stopping flushes, and the unit stays ready."""
        if cdb[4] & 0xF0:  # power conditions other than START_VALID
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 4)
        if cdb[4] & _LOEJ:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 4)
        if not cdb[4] & (_START | _NO_FLUSH):
            return self._flush(data_out, data_in)
        return nothing_transferred(data_out, data_in)

    def _send_diagnostic(self, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """The default self-test passes; there are no diagnostic pages."""
        if cdb[1] & ~_SELF_TEST & 0xFF:
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 1)
        if int.from_bytes(cdb[3:5], "big"):
            raise CommandRefusedError(ScsiRule.SCSI_CDB_FIELD, 3)
        return nothing_transferred(data_out, data_in)


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
    """Return GOOD for a command that moved no data, whatever buffers came with it."""
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


def _lba_6(cdb: Cdb) -> int:
    """Return the 21-bit LBA of READ(6) and WRITE(6)."""
    return (cdb[1] & 0x1F) << 16 | cdb[2] << 8 | cdb[3]
