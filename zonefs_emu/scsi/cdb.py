"""A CDB as a value: every command is parsed once, and the value is checked and executed.

Pure. May not know: the effect of commands, and their disk.

Invariants:

* :func:`parse` returns a value for every sequence of bytes and never raises. A CDB that is no command of this target,
  is too short or has an unsupported field is :class:`Malformed`, with the rule that it breaks.
* The sizes of a command (READ(6), (10), (12), (16)) are one value: only its CDB differs.

In the values, *lba* and *nr_blocks* count logical blocks, and *allocation* (the allocation length) counts bytes.

Sources: the clause of each command in SPC-4, SBC-3 and ZBC-2.
"""

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias, final

from zonefs_emu.model.transitions import Operation
from zonefs_emu.scsi import commands, report_zones
from zonefs_emu.scsi.commands import CDB_LENGTHS, NACA, Opcode
from zonefs_emu.scsi.mode import PageControl
from zonefs_emu.scsi.rules import ScsiRule

Cdb: TypeAlias = bytes | bytearray | memoryview

_FUA: Final = 0x08
_PROTECT: Final = 0xE0
_BYTE_CHECK: Final = 0x06
_PARTIAL: Final = 0x80
_ALL: Final = 0x01
_SERVICE_ACTION: Final = 0x1F
_SELF_TEST: Final = 0x04
_START: Final = 0x01
_LOEJ: Final = 0x02
_NO_FLUSH: Final = 0x04

#: Byte 1, logical block address and transfer length of the sizes of a command that moves data.
_TRANSFER_10: Final = struct.Struct(">xBIxH").unpack_from
_TRANSFER_12: Final = struct.Struct(">xBII").unpack_from
_TRANSFER_16: Final = struct.Struct(">xBQI").unpack_from
#: Action, ZONE ID, ZONE COUNT, flags.
_ZBC_OUT: Final = struct.Struct(">xBQ2xHB").unpack_from
#: Action, ZONE START LBA, allocation length, options.
_ZBC_IN: Final = struct.Struct(">xBQIB").unpack_from

_ZONE_OPERATIONS: Final[Mapping[int, Operation]] = MappingProxyType(
    {
        commands.CLOSE_ZONE: Operation.CLOSE,
        commands.FINISH_ZONE: Operation.FINISH,
        commands.OPEN_ZONE: Operation.OPEN,
        commands.RESET_WRITE_POINTER: Operation.RESET,
    }
)


@final
class Read(NamedTuple):
    """READ. *fua*: the blocks are read from the medium and not from the cache."""

    lba: int
    nr_blocks: int
    fua: bool


@final
class Write(NamedTuple):
    """WRITE. *fua*: the blocks are on the medium before the command is answered."""

    lba: int
    nr_blocks: int
    fua: bool


class Verify(NamedTuple):
    """VERIFY. *compare* (BYTCHK 01b): compare the blocks with the data-out buffer, instead of only reading them."""

    lba: int
    nr_blocks: int
    compare: bool


class SynchronizeCache(NamedTuple):
    """SYNCHRONIZE CACHE. IMMED, which allows an answer before the blocks are stable, is ignored."""

    lba: int
    nr_blocks: int


class ManageZones(NamedTuple):
    """OPEN, CLOSE, FINISH ZONE or RESET WRITE POINTER of *nr_zones* zones from *lba* on; *everywhere* (ALL): of all."""

    operation: Operation
    lba: int
    nr_zones: int
    everywhere: bool


class ReportZones(NamedTuple):
    """REPORT ZONES from *lba* on. *option* is one of report_zones.OPTIONS; *partial* is the bit PARTIAL."""

    lba: int
    allocation: int
    option: int
    partial: bool


class TestUnitReady(NamedTuple):
    """TEST UNIT READY."""


class RequestSense(NamedTuple):
    """REQUEST SENSE. *descriptor* (DESC) asks for the descriptor format."""

    descriptor: bool
    allocation: int


class Inquiry(NamedTuple):
    """INQUIRY for a vital product data *page*, or (None) for the standard INQUIRY data."""

    page: int | None
    allocation: int


class ReadCapacity10(NamedTuple):
    """READ CAPACITY(10)."""


class ReadCapacity16(NamedTuple):
    """READ CAPACITY(16)."""

    allocation: int


class ReportLuns(NamedTuple):
    """REPORT LUNS. *select_report* says which of them: see :func:`inquiry.report_luns`."""

    select_report: int
    allocation: int


class ReportOperationCodes(NamedTuple):
    """REPORT SUPPORTED OPERATION CODES of all commands (*option* 0), or of one (1 to 3); *timeouts* is the bit RCTD."""

    option: int
    opcode: int
    service_action: int
    timeouts: bool
    allocation: int


class ModeSense(NamedTuple):
    """MODE SENSE of *page* and *subpage*. *long*: this is MODE SENSE(10). *long_lba* is the bit LLBAA.

    *descriptors*: the answer has a block descriptor, because DBD is 0.
    """

    page: int
    subpage: int
    control: PageControl
    long: bool
    descriptors: bool
    long_lba: bool
    allocation: int


class ModeSelect(NamedTuple):
    """MODE SELECT with a parameter list of *nr_bytes*, which begins with a header of *header_bytes*."""

    nr_bytes: int
    header_bytes: int


class StartStopUnit(NamedTuple):
    """START STOP UNIT. *flush*: the unit stops (START is 0), and NO_FLUSH is 0."""

    flush: bool


class SendDiagnostic(NamedTuple):
    """SEND DIAGNOSTIC without parameters: the default self-test, or nothing (SELFTEST 0)."""


class Malformed(NamedTuple):
    """A CDB that is refused: the *rule* that it breaks, and the number of the first wrong byte (*field*), or None."""

    rule: ScsiRule
    field: int | None


#: Commands that are answered with parameter data.
Enquiry: TypeAlias = (
    RequestSense | Inquiry | ReadCapacity10 | ReadCapacity16 | ReportLuns | ReportOperationCodes | ModeSense
)
#: Every command but READ and WRITE.
OtherCommand: TypeAlias = (
    Verify
    | SynchronizeCache
    | ManageZones
    | ReportZones
    | TestUnitReady
    | ModeSelect
    | StartStopUnit
    | SendDiagnostic
    | Malformed
    | Enquiry
)
Command: TypeAlias = Read | Write | OtherCommand
_Parser: TypeAlias = Callable[[Cdb], Command]

#: The value of a CDB that ends before its last byte.
CUT_SHORT: Final = Malformed(ScsiRule.SCSI_CDB_FIELD, None)
_UNKNOWN: Final = Malformed(ScsiRule.SCSI_OPERATION_CODE, 0)


def parse(cdb: Cdb) -> Command:
    """Return the command of *cdb*, which may have bytes behind the command."""
    try:
        opcode = cdb[0]
        length = CDB_LENGTHS[opcode]
        if length and cdb[length - 1] & NACA:
            return _wrong(length - 1)
    except IndexError:
        return CUT_SHORT
    return _PARSERS[opcode](cdb)


def _wrong(field: int) -> Malformed:
    """Return the value of a CDB whose byte *field* is unsupported."""
    return Malformed(ScsiRule.SCSI_CDB_FIELD, field)


def _allocation(cdb: Cdb, start: int, end: int) -> int:
    return int.from_bytes(cdb[start:end], "big")


def _unknown(_cdb: Cdb) -> Command:
    return _UNKNOWN


# -- data -------------------------------------------------------------------------------------------------------------


def _transfer_6(cdb: Cdb) -> tuple[int, int, int]:
    # A 21-bit LBA. "A TRANSFER LENGTH field set to zero specifies that 256 logical blocks shall be read" (SBC-3).
    return 0, (cdb[1] & 0x1F) << 16 | cdb[2] << 8 | cdb[3], cdb[4] or 256


def _read_or_write(kind: type[Read | Write], fields: Callable[[Cdb], tuple[int, ...]]) -> _Parser:
    """Return the parser of one size of READ or WRITE; DPO is ignored."""
    new = tuple.__new__

    def parse_transfer(cdb: Cdb) -> Command:
        flags, lba, nr_blocks = fields(cdb)
        if flags & _PROTECT:  # RDPROTECT, WRPROTECT
            return _wrong(1)
        # One of these is made for each request: this costs half of what the __new__ of a NamedTuple does.
        return new(kind, (lba, nr_blocks, flags & _FUA != 0))

    return parse_transfer


def _verify(fields: Callable[[Cdb], tuple[int, ...]]) -> _Parser:
    def parse_verify(cdb: Cdb) -> Command:
        flags, lba, nr_blocks = fields(cdb)
        check = flags & _BYTE_CHECK
        if flags & _PROTECT or check > 0x02:  # VRPROTECT; BYTCHK 10b and 11b
            return _wrong(1)
        return Verify(lba, nr_blocks, bool(check))

    return parse_verify


def _synchronize_cache(fields: Callable[[Cdb], tuple[int, ...]]) -> _Parser:
    def parse_synchronize_cache(cdb: Cdb) -> Command:
        _, lba, nr_blocks = fields(cdb)
        return SynchronizeCache(lba, nr_blocks)

    return parse_synchronize_cache


# -- zones ------------------------------------------------------------------------------------------------------------


def _zbc_out(cdb: Cdb) -> Command:
    action, lba, zone_count, flags = _ZBC_OUT(cdb)
    operation = _ZONE_OPERATIONS.get(action & _SERVICE_ACTION)
    if operation is None:
        return _wrong(1)
    # A ZONE COUNT of 0 means 1 (ZBC-2).
    return ManageZones(operation, lba, zone_count or 1, bool(flags & _ALL))


def _zbc_in(cdb: Cdb) -> Command:
    action, lba, allocation, options = _ZBC_IN(cdb)
    if action & _SERVICE_ACTION != commands.REPORT_ZONES:
        return _wrong(1)
    option = options & 0x3F
    if option not in report_zones.OPTIONS:
        return _wrong(14)
    return ReportZones(lba, allocation, option, bool(options & _PARTIAL))


# -- identity, capacity, parameters -----------------------------------------------------------------------------------


def _request_sense(cdb: Cdb) -> Command:
    return RequestSense(bool(cdb[1] & 0x01), cdb[4])


def _inquiry(cdb: Cdb) -> Command:
    if cdb[1] & 0x02:  # CMDDT, obsolete
        return _wrong(1)
    allocation = _allocation(cdb, 3, 5)
    if cdb[1] & 0x01:  # EVPD
        return Inquiry(cdb[2], allocation)
    return _wrong(2) if cdb[2] else Inquiry(None, allocation)


def _service_action_in(cdb: Cdb) -> Command:
    if cdb[1] & _SERVICE_ACTION != commands.READ_CAPACITY_16:
        return _wrong(1)
    return ReadCapacity16(_allocation(cdb, 10, 14))


def _report_luns(cdb: Cdb) -> Command:
    return ReportLuns(cdb[2], _allocation(cdb, 6, 10))


def _maintenance_in(cdb: Cdb) -> Command:
    if cdb[1] & _SERVICE_ACTION != commands.REPORT_SUPPORTED_OPERATION_CODES:
        return _wrong(1)
    option = cdb[2] & 0x07
    if option > 3:
        return _wrong(2)
    return ReportOperationCodes(option, cdb[3], _allocation(cdb, 4, 6), bool(cdb[2] & 0x80), _allocation(cdb, 6, 10))


def _mode_sense_6(cdb: Cdb) -> Command:
    return ModeSense(
        page=cdb[2] & 0x3F,
        subpage=cdb[3],
        control=PageControl(cdb[2] >> 6),
        long=False,
        descriptors=not cdb[1] & 0x08,
        long_lba=False,
        allocation=cdb[4],
    )


def _mode_sense_10(cdb: Cdb) -> Command:
    return ModeSense(
        page=cdb[2] & 0x3F,
        subpage=cdb[3],
        control=PageControl(cdb[2] >> 6),
        long=True,
        descriptors=not cdb[1] & 0x08,
        long_lba=bool(cdb[1] & 0x10),
        allocation=_allocation(cdb, 7, 9),
    )


def _mode_select_6(cdb: Cdb) -> Command:
    return _mode_select(cdb[1], cdb[4], 4)


def _mode_select_10(cdb: Cdb) -> Command:
    return _mode_select(cdb[1], _allocation(cdb, 7, 9), 8)


def _mode_select(flags: int, nr_bytes: int, header_bytes: int) -> Command:
    # PF must be 1 (pages in the format of the standard). SP must be 0, because no page can be saved.
    if not flags & 0x10 or flags & 0x01:
        return _wrong(1)
    return ModeSelect(nr_bytes, header_bytes)


def _start_stop_unit(cdb: Cdb) -> Command:
    # POWER CONDITION must be START_VALID (0h), and LOEJ must be 0, because the medium cannot be ejected.
    if cdb[4] & (0xF0 | _LOEJ):
        return _wrong(4)
    return StartStopUnit(not cdb[4] & (_START | _NO_FLUSH))


def _send_diagnostic(cdb: Cdb) -> Command:
    if cdb[1] & ~_SELF_TEST & 0xFF:
        return _wrong(1)
    # There are no diagnostic pages, so the parameter list is empty.
    return _wrong(3) if _allocation(cdb, 3, 5) else SendDiagnostic()


_KNOWN: Final[Mapping[int, _Parser]] = MappingProxyType(
    {
        Opcode.READ_6: _read_or_write(Read, _transfer_6),
        Opcode.READ_10: _read_or_write(Read, _TRANSFER_10),
        Opcode.READ_12: _read_or_write(Read, _TRANSFER_12),
        Opcode.READ_16: _read_or_write(Read, _TRANSFER_16),
        Opcode.WRITE_6: _read_or_write(Write, _transfer_6),
        Opcode.WRITE_10: _read_or_write(Write, _TRANSFER_10),
        Opcode.WRITE_12: _read_or_write(Write, _TRANSFER_12),
        Opcode.WRITE_16: _read_or_write(Write, _TRANSFER_16),
        Opcode.VERIFY_10: _verify(_TRANSFER_10),
        Opcode.VERIFY_12: _verify(_TRANSFER_12),
        Opcode.VERIFY_16: _verify(_TRANSFER_16),
        Opcode.SYNCHRONIZE_CACHE_10: _synchronize_cache(_TRANSFER_10),
        Opcode.SYNCHRONIZE_CACHE_16: _synchronize_cache(_TRANSFER_16),
        Opcode.ZBC_OUT: _zbc_out,
        Opcode.ZBC_IN: _zbc_in,
        Opcode.TEST_UNIT_READY: lambda _cdb: TestUnitReady(),
        Opcode.REQUEST_SENSE: _request_sense,
        Opcode.INQUIRY: _inquiry,
        Opcode.READ_CAPACITY_10: lambda _cdb: ReadCapacity10(),
        Opcode.SERVICE_ACTION_IN_16: _service_action_in,
        Opcode.REPORT_LUNS: _report_luns,
        Opcode.MAINTENANCE_IN: _maintenance_in,
        Opcode.MODE_SENSE_6: _mode_sense_6,
        Opcode.MODE_SENSE_10: _mode_sense_10,
        Opcode.MODE_SELECT_6: _mode_select_6,
        Opcode.MODE_SELECT_10: _mode_select_10,
        Opcode.START_STOP_UNIT: _start_stop_unit,
        Opcode.SEND_DIAGNOSTIC: _send_diagnostic,
    }
)
#: The parser of each operation code, 0 to 255.
_PARSERS: Final = tuple(_KNOWN.get(opcode, _unknown) for opcode in range(256))
