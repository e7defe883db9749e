"""The blocks and zones of the disk: READ, WRITE, VERIFY, SYNCHRONIZE CACHE, zone management and REPORT ZONES.

May not know: the form of CDBs, the format of sense data, LUNs.

Invariants:

* READ and WRITE move the data straight between the given buffers and the port. One that transfers as much as its
  buffers hold returns the object GOOD, so no result is made for it. These two are fast; all other commands may be slow.
* A refused command raises and has changed nothing: RuleBrokenError if the refusal is still to be noted with its CDB,
  CheckConditionError if the port has noted it. A flush that fails raises CheckConditionError, and leaves what was
  written before it.
"""

from typing import Final, NoReturn

from zonefs_emu.device.buffers import Cursor, carve, gather
from zonefs_emu.device.port import Port
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.scsi import inquiry, report_zones, sense
from zonefs_emu.scsi.cdb import ManageZones, Read, ReportZones, SynchronizeCache, Verify, Write
from zonefs_emu.scsi.mode import ModePages
from zonefs_emu.scsi.report_zones import ZoneReporter
from zonefs_emu.scsi.result import (
    GOOD,
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
from zonefs_emu.scsi.sense import SENSE_OF_RULE, SENSE_OF_STATUS, sense_of
from zonefs_emu.units import SECTOR_SHIFT, Sector

_MAX_SECTORS: Final = inquiry.MAX_TRANSFER_BYTES >> SECTOR_SHIFT
#: The most bytes that VERIFY reads at once.
_VERIFY_BYTES: Final = 1 << 20
#: Beyond the end of any transfer, so that no boundary is checked.
_NO_BOUNDARY: Final = 1 << 64


class Medium:
    """The medium of a host-managed zoned disk, on a device port."""

    def __init__(self, port: Port, modes: ModePages) -> None:
        """Serve *port*, whose dialect is ZBC. The current *modes* say whether there is a write cache."""
        geometry = port.geometry
        self._port = port
        self._modes = modes
        self._geometry = geometry
        self._readonly = port.device.image.readonly
        self._block_shift = geometry.block_sectors.bit_length() - 1
        self._zone_size = geometry.zone_size
        self._size = geometry.size
        self._has_gaps = inquiry.has_gaps(geometry)
        # A read that ends at or before this offset into its zone stays in zones of one type.
        has_two_types = 0 < geometry.nr_conventional < geometry.nr_zones
        self._read_boundary = geometry.zone_size if has_two_types else _NO_BOUNDARY
        # A write that starts below this offset into its zone does not start in a gap.
        self._gap_offset = geometry.zone_capacity if self._has_gaps else _NO_BOUNDARY
        self._reporter = ZoneReporter(port, geometry)
        self._port_read = port.read
        self._port_write = port.write

    # -- READ -------------------------------------------------------------------------------------------------

    def read(self, command: Read, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Read into *data_in*. Without success, the content of *data_in* is undefined.

        Raises:
            RuleBrokenError: VSCSI_OVERRUN: *data_in* has too little room.
            CheckConditionError: SCSI_TRANSFER_LENGTH, SCSI_READ_TYPES, or the port refused the read, or (FUA) the flush
                before it.
        """
        lba, nr_blocks, fua = command
        if fua:
            # FUA reads from the medium, so the content of the cache is written to the medium first.
            self.flush()
        sector = lba << self._block_shift
        nr_sectors = nr_blocks << self._block_shift
        size = len(data_in[0]) if len(data_in) == 1 else total_bytes(data_in)
        residual = size - (nr_sectors << SECTOR_SHIFT)
        buffers: DataIn = data_in
        if residual or nr_sectors > _MAX_SECTORS or not nr_sectors:
            self._require_room(Operation.READ, sector, nr_sectors, size)
            # "A TRANSFER LENGTH field set to zero [...] shall not be considered an error" (SBC-3).
            if not nr_sectors and sector <= self._size:
                return nothing_transferred(data_out, data_in)
            buffers = first_bytes(data_in, max(0, size - residual))
        if sector % self._zone_size + nr_sectors > self._read_boundary:
            self._require_one_type(sector, nr_sectors)
        status = self._port_read(sector, nr_sectors, buffers)
        if status:
            raise CheckConditionError(SENSE_OF_STATUS[status])
        return GOOD if not residual else ScsiResult(ScsiStatus.GOOD, b"", residual)

    def _require_room(self, operation: Operation, sector: Sector, nr_sectors: int, nr_bytes: int) -> None:
        """Refuse a transfer beyond MAXIMUM TRANSFER LENGTH, and one for which *nr_bytes* of buffers are too few.

        A transfer that leaves the device is not checked here, because the port refuses it, whatever its length.
        """
        if sector + nr_sectors > self._size:
            return
        if nr_sectors > _MAX_SECTORS:
            self._broken(ScsiRule.SCSI_TRANSFER_LENGTH, operation, Status.UNSUPPORTED, sector, nr_sectors)
        if nr_bytes < nr_sectors << SECTOR_SHIFT:
            raise RuleBrokenError(HostRule.VSCSI_OVERRUN, wrong=f"{nr_bytes} bytes of buffers")

    def _require_one_type(self, sector: Sector, nr_sectors: int) -> None:
        """Refuse a read that leaves its zone for one of another type.

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
            return  # the port refuses it
        first = sector // self._zone_size
        conventional = geometry.is_conventional(first)
        for zone_no in range(first, (end - 1) // self._zone_size + 1):
            if geometry.is_conventional(zone_no) != conventional:
                self._port.refusals.refuse(
                    ScsiRule.SCSI_READ_TYPES, Operation.READ, Status.READ_BOUNDARY, sector, nr_sectors, zone_no=zone_no
                )
                raise CheckConditionError(SENSE_OF_RULE[ScsiRule.SCSI_READ_TYPES])

    def _broken(
        self, rule: ScsiRule, operation: Operation, status: Status, sector: Sector, nr_sectors: int
    ) -> NoReturn:
        """Note a refusal by a *rule* of the disk, in the zone of *sector*, and raise the CheckConditionError for it."""
        self._port.refusals.refuse(rule, operation, status, sector, nr_sectors, zone_no=sector // self._zone_size)
        raise CheckConditionError(SENSE_OF_RULE[rule])

    # -- WRITE ------------------------------------------------------------------------------------------------

    def write(self, command: Write, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Write *data_out*.

        Raises:
            RuleBrokenError: VSCSI_OVERRUN: *data_out* has too few bytes.
            CheckConditionError: SCSI_TRANSFER_LENGTH, SCSI_WRITE_PROTECTED, SCSI_GAP, or the port refused the write; or
                the flush after the write failed (FUA, or no write cache).
        """
        lba, nr_blocks, fua = command
        sector = lba << self._block_shift
        nr_sectors = nr_blocks << self._block_shift
        size = len(data_out[0]) if len(data_out) == 1 else total_bytes(data_out)
        residual = size - (nr_sectors << SECTOR_SHIFT)
        buffers: DataOut = data_out
        if residual or nr_sectors > _MAX_SECTORS or not nr_sectors:
            self._require_room(Operation.WRITE, sector, nr_sectors, size)
            if not nr_sectors and sector <= self._size:
                return nothing_transferred(data_out, data_in)
            buffers = first_bytes(data_out, max(0, size - residual))
        if self._readonly:
            self._broken(ScsiRule.SCSI_WRITE_PROTECTED, Operation.WRITE, Status.UNSUPPORTED, sector, nr_sectors)
        if sector % self._zone_size >= self._gap_offset and self._in_gap(sector) and sector + nr_sectors <= self._size:
            self._broken(ScsiRule.SCSI_GAP, Operation.WRITE, Status.ZONE_BOUNDARY, sector, nr_sectors)
        status = self._port_write(sector, nr_sectors, buffers)
        if status:
            raise CheckConditionError(sense_of(status, Operation.WRITE))
        if fua or not self._modes.write_cache:
            self.flush()
        return GOOD if not residual else ScsiResult(ScsiStatus.GOOD, b"", residual)

    def _in_gap(self, sector: Sector) -> bool:
        """Say whether *sector* lies in a gap zone; sectors beyond the device do not."""
        zone_no, offset = divmod(sector, self._zone_size)
        return sector < self._size and offset >= self._geometry.zone_cap(zone_no)

    # -- VERIFY, SYNCHRONIZE CACHE ----------------------------------------------------------------------------

    def verify(self, command: Verify, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Read the blocks, and with BYTCHK 01b compare them with *data_out*.

        Raises:
            RuleBrokenError: VSCSI_OVERRUN: *data_out* has too few bytes; SCSI_MISCOMPARE.
            CheckConditionError: SCSI_TRANSFER_LENGTH, SCSI_READ_TYPES, or the port refused the read.
        """
        sector = command.lba << self._block_shift
        nr_sectors = command.nr_blocks << self._block_shift
        nr_bytes = nr_sectors << SECTOR_SHIFT
        if sector + nr_sectors > self._size:
            status = self._port_read(sector, nr_sectors, [bytearray(min(_VERIFY_BYTES, nr_bytes))])
            raise CheckConditionError(SENSE_OF_STATUS[status])
        self._require_room(Operation.READ, sector, nr_sectors, total_bytes(data_out) if command.compare else nr_bytes)
        if sector % self._zone_size + nr_sectors > self._read_boundary:
            self._require_one_type(sector, nr_sectors)
        given = [memoryview(buffer) for buffer in data_out]
        done = 0
        while True:
            part = bytearray(min(_VERIFY_BYTES, nr_bytes - done))
            status = self._port_read(sector + (done >> SECTOR_SHIFT), len(part) >> SECTOR_SHIFT, [part])
            if status:
                raise CheckConditionError(SENSE_OF_STATUS[status])
            if command.compare and gather(given, done, len(part)) != part:
                raise RuleBrokenError(ScsiRule.SCSI_MISCOMPARE)
            done += len(part)
            if done == nr_bytes:
                break
        residual = total_bytes(data_out) + total_bytes(data_in) - (nr_bytes if command.compare else 0)
        return ScsiResult(ScsiStatus.GOOD, b"", residual)

    def synchronize_cache(self, command: SynchronizeCache) -> None:
        """Flush all blocks, also those outside of the command's range.

        Raises:
            CheckConditionError: the range leaves the device, or the flush failed.
        """
        sector = command.lba << self._block_shift
        nr_sectors = command.nr_blocks << self._block_shift
        if sector + nr_sectors > self._size:
            status = self._port.refusals.refuse(
                DeviceRule.OUT_OF_RANGE, Operation.FLUSH, Status.OUT_OF_RANGE, sector, nr_sectors
            )
            raise CheckConditionError(SENSE_OF_STATUS[status])
        self.flush()

    def flush(self) -> None:
        """Make the effects of all commands that were answered stable.

        Raises:
            CheckConditionError: the port failed to.
        """
        status = self._port.flush()
        if status:
            raise CheckConditionError(sense_of(status, Operation.FLUSH))

    # -- zones ------------------------------------------------------------------------------------------------

    def manage_zones(self, command: ManageZones) -> None:
        """Open, close, finish or reset zones: all zones of the command, or none. ZONE COUNT does not count gap zones.

        Raises:
            CheckConditionError: SCSI_WRITE_PROTECTED, SCSI_GAP, or the port refused.
        """
        operation = command.operation
        sector = command.lba << self._block_shift
        if self._readonly:
            self._broken(ScsiRule.SCSI_WRITE_PROTECTED, operation, Status.UNSUPPORTED, sector, 0)
        if command.everywhere:  # "the ZONE ID field shall be ignored" (ZBC-2)
            status = self._port.manage_all(operation)
            if status:
                raise CheckConditionError(SENSE_OF_STATUS[status])
            return
        zone_no, offset = divmod(sector, self._zone_size)
        if self._has_gaps and self._in_gap(sector) and offset == self._geometry.zone_cap(zone_no):
            # The ZONE ID is the start of a gap zone. libzbc (05.323, 333, 343, 353) expects another sense for that than
            # for a ZONE ID that is the start of no zone.
            self._broken(ScsiRule.SCSI_GAP, operation, Status.NOT_ZONE_START, sector, 0)
        status = self._port.manage(operation, sector, command.nr_zones)
        if status:
            code = sense_of(status, operation)
            raise CheckConditionError(code, field=2 if code is sense.INVALID_FIELD_IN_CDB else None)

    def report_zones(self, command: ReportZones, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Report the zones from the one that holds the command's LBA on, gap zones included.

        Raises:
            RuleBrokenError: OUT_OF_RANGE: the LBA is beyond the device.
        """
        sector = command.lba << self._block_shift
        if sector >= self._size:
            raise RuleBrokenError(DeviceRule.OUT_OF_RANGE, status=Status.OUT_OF_RANGE)
        room = min(command.allocation, total_bytes(data_in))
        max_descriptors = max(0, room - report_zones.HEADER_BYTES) // report_zones.DESCRIPTOR_BYTES
        views = [memoryview(buffer) for buffer in data_in]
        target = Cursor(carve(views, report_zones.HEADER_BYTES, room))
        header = self._reporter.report(sector, command.option, max_descriptors, target.store, partial=command.partial)
        result = reply(header, command.allocation, data_out, data_in)
        return result._replace(residual=result.residual - target.nr_stored)
