"""CDBs as values: what each field becomes, and which CDBs are no command."""

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.model.transitions import Operation
from zonefs_emu.scsi import cdb, commands
from zonefs_emu.scsi.cdb import CUT_SHORT, Command, Malformed, parse
from zonefs_emu.scsi.mode import PageControl
from zonefs_emu.scsi.rules import ScsiRule


@pytest.mark.parametrize(
    ("text", "lba", "nr_blocks"),
    [
        ("{0:x}8 3f fffe 07 00", 0x1FFFFE, 7),
        ("{0:x}8 00 0001 00 00", 1, 256),
        ("{1:x}8 00 fffffffe 00 0102 00", 0xFFFFFFFE, 0x102),
        ("{2:x}8 00 00000003 00010002 00 00", 3, 0x10002),
        ("{3:x}8 00 0102030405060708 0a0b0c0d 00 00", 0x0102030405060708, 0x0A0B0C0D),
    ],
    ids=["6", "6, no length", "10", "12", "16"],
)
def test_all_sizes_of_a_transfer_are_one_value(text: str, lba: int, nr_blocks: int) -> None:
    read = bytearray.fromhex(text.format(0x0, 0x2, 0xA, 0x8))
    assert parse(read) == cdb.Read(lba, nr_blocks, fua=False)
    write = bytearray(read)
    write[0] += 2
    assert parse(write) == cdb.Write(lba, nr_blocks, fua=False)
    assert type(parse(write)) is cdb.Write, "tuples of equal fields are equal"
    if len(read) > 6:
        verify = bytearray(read)
        verify[0] += 7
        assert parse(verify) == cdb.Verify(lba, nr_blocks, compare=False)
        verify[1] = 0x02
        assert parse(verify) == cdb.Verify(lba, nr_blocks, compare=True)
        for transfer in (read, write):
            transfer[1] = 0x08 | 0x10  # FUA and DPO
            parsed = parse(transfer)
            assert isinstance(parsed, cdb.Read | cdb.Write)
            assert parsed.fua is True


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("35 02 01020304 00 0506 00", cdb.SynchronizeCache(0x01020304, 0x0506)),
        ("91 02 0102030405060708 090a0b0c 00 00", cdb.SynchronizeCache(0x0102030405060708, 0x090A0B0C)),
        ("94 01 0000000000001000 0000 0000 00 00", cdb.ManageZones(Operation.CLOSE, 0x1000, 1, everywhere=False)),
        ("94 02 0000000000001000 0000 0003 00 00", cdb.ManageZones(Operation.FINISH, 0x1000, 3, everywhere=False)),
        ("94 03 0000000000000000 0000 0000 01 00", cdb.ManageZones(Operation.OPEN, 0, 1, everywhere=True)),
        ("94 04 ffffffffffffffff 0000 ffff 00 00", cdb.ManageZones(Operation.RESET, (1 << 64) - 1, 65535, False)),
        ("95 00 0000000000001000 00010000 bf 00", cdb.ReportZones(0x1000, 0x10000, 0x3F, partial=True)),
        ("95 00 0000000000001000 00000040 01 00", cdb.ReportZones(0x1000, 0x40, 0x01, partial=False)),
        ("00 00 000000 00", cdb.TestUnitReady()),
        ("03 01 0000 fc 00", cdb.RequestSense(descriptor=True, allocation=0xFC)),
        ("12 00 00 0102 00", cdb.Inquiry(None, 0x0102)),
        ("12 01 00 0060 00", cdb.Inquiry(0x00, 0x60)),
        ("12 01 b6 0060 00", cdb.Inquiry(0xB6, 0x60)),
        ("25 00 00000000 0000 00 00", cdb.ReadCapacity10()),
        ("9e 10 0000000000000000 00000020 00 00", cdb.ReadCapacity16(0x20)),
        ("a0 00 02 000000 00000100 00 00", cdb.ReportLuns(2, 0x100)),
        ("a3 0c 83 95 0010 00000200 00 00", cdb.ReportOperationCodes(3, 0x95, 0x10, timeouts=True, allocation=0x200)),
        (
            "1a 08 48 ff 18 00",
            cdb.ModeSense(8, 0xFF, PageControl.CHANGEABLE, False, descriptors=False, long_lba=False, allocation=0x18),
        ),
        (
            "5a 10 3f 00 000000 0102 00",
            cdb.ModeSense(0x3F, 0, PageControl.CURRENT, True, descriptors=True, long_lba=True, allocation=0x102),
        ),
        ("15 10 0000 0c 00", cdb.ModeSelect(0x0C, 4)),
        ("55 10 0000000000 0102 00", cdb.ModeSelect(0x0102, 8)),
        ("1b 00 00 00 00 00", cdb.StartStopUnit(flush=True)),
        ("1b 01 00 00 01 00", cdb.StartStopUnit(flush=False)),
        ("1b 00 00 00 04 00", cdb.StartStopUnit(flush=False)),
        ("1d 04 00 0000 00", cdb.SendDiagnostic()),
    ],
)  # fmt: skip
def test_fields(text: str, command: Command) -> None:
    parsed = parse(bytes.fromhex(text))
    assert parsed == command
    assert type(parsed) is type(command)
    assert parse(memoryview(bytearray.fromhex(text).ljust(32, b"\xff"))) == command, "more bytes than the command has"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("28 20 00000000 00 0001 00", 1),  # RDPROTECT
        ("8a 80 0000000000000000 00000001 00 00", 1),  # WRPROTECT
        ("2f 20 00000000 00 0001 00", 1),  # VRPROTECT
        ("8f 04 0000000000000000 00000001 00 00", 1),  # BYTCHK 10b
        ("af 06 00000000 00000001 00 00", 1),  # BYTCHK 11b
        ("94 00 0000000000000000 0000 0000 00 00", 1),
        ("95 01 0000000000000000 00000040 00 00", 1),
        ("95 00 0000000000000000 00000040 09 00", 14),
        ("12 02 00 0060 00", 1),  # CMDDT
        ("12 00 b6 0060 00", 2),  # a page without EVPD
        ("9e 12 0000000000000000 00000020 00 00", 1),
        ("a3 0d 00 00 0000 00000200 00 00", 1),
        ("a3 0c 04 00 0000 00000200 00 00", 2),
        ("15 00 0000 0c 00", 1),  # no PF
        ("55 11 0000000000 000c 00", 1),  # SP
        ("1b 00 00 00 10 00", 4),  # a power condition
        ("1b 00 00 00 02 00", 4),  # LOEJ
        ("1d 10 00 0000 00", 1),  # PF
        ("1d 04 00 0001 00", 3),  # a parameter list
    ],
)
def test_fields_that_ask_for_what_is_not_there(text: str, field: int) -> None:
    assert parse(bytes.fromhex(text)) == Malformed(ScsiRule.SCSI_CDB_FIELD, field)


@pytest.mark.parametrize("command", commands.COMMANDS, ids=[command.name for command in commands.COMMANDS])
def test_every_command_of_the_table_is_parsed(command: commands.TableRow) -> None:
    whole = bytearray(len(command.usage))
    whole[:2] = command.usage[0], command.service_action or (0x10 if "SELECT" in command.name else 0)
    assert not isinstance(parse(whole), Malformed)
    for length in range(len(whole)):
        assert parse(whole[:length]) is CUT_SHORT
    whole[-1] = commands.NACA
    assert parse(whole) == Malformed(ScsiRule.SCSI_CDB_FIELD, len(whole) - 1)


def test_operation_codes_that_are_not_there() -> None:
    known = {command.opcode for command in commands.COMMANDS}
    for opcode in set(range(256)) - known:
        assert parse(bytes((opcode,))) == Malformed(ScsiRule.SCSI_OPERATION_CODE, 0)


@given(st.binary(max_size=40))
def test_anything_is_a_value(data: bytes) -> None:
    assert isinstance(parse(data), tuple)
