import struct

import pytest
from hypothesis import given, strategies as st

from tests.scsi.disks import (
    GAP_IN_RUNT,
    GAPS,
    GAPS_4K,
    MIXED,
    MIXED_4K,
    RUNT,
    ZONE,
    Initiator,
    from_hex,
    new_initiator,
)
from zonefs_emu.daemon.answers import EXPLAINER
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition
from zonefs_emu.scsi import commands
from zonefs_emu.scsi.commands import COMMANDS, ENQUIRIES
from zonefs_emu.scsi.disk import GOOD, ScsiStatus, first_bytes, nothing_transferred, reply
from zonefs_emu.scsi.rules import ScsiRule

LBA_OUT_OF_RANGE = (0x5, 0x21, 0x00)
UNALIGNED_WRITE = (0x5, 0x21, 0x04)
WRITE_BOUNDARY = (0x5, 0x21, 0x05)
READ_BOUNDARY = (0x5, 0x21, 0x07)
GAP = (0x5, 0x21, 0x09)
INVALID_OPCODE = (0x5, 0x20, 0x00)
INVALID_FIELD = (0x5, 0x24, 0x00)
INVALID_PARAMETER = (0x5, 0x26, 0x00)
WRITE_PROTECTED = (0x7, 0x27, 0x00)
ZONE_READ_ONLY = (0x7, 0x27, 0x08)
ZONE_OFFLINE = (0x7, 0x2C, 0x0E)
NO_ZONE_RESOURCES = (0x7, 0x55, 0x0E)

READ_16 = """
    88                        #  0 READ(16)
    00                        #  1 no protection, DPO 0, FUA 0
    00 00 00 00 00 00 00 01   #  2 LBA 1
    00 00 00 02               # 10 2 blocks
    00                        # 14 group number
    00                        # 15 control
"""
READ_12 = """
    a8            #  0 READ(12)
    00            #  1 flags
    00 00 00 01   #  2 LBA
    00 00 00 02   #  6 blocks
    00            # 10 group number
    00            # 11 control
"""
READ_10 = """
    28            # 0 READ(10)
    00            # 1 flags
    00 00 00 01   # 2 LBA
    00            # 6 group number
    00 02         # 7 blocks
    00            # 9 control
"""
READ_6 = """
    08         # 0 READ(6)
    00 00 01   # 1 LBA, 21 bits
    02         # 4 blocks
    00         # 5 control
"""
WRITE_16 = """
    8a                        #  0 WRITE(16)
    00                        #  1 flags
    00 00 00 00 00 00 00 01   #  2 LBA
    00 00 00 02               # 10 blocks
    00                        # 14 group number
    00                        # 15 control
"""
WRITE_12 = """
    aa            #  0 WRITE(12)
    00            #  1 flags
    00 00 00 01   #  2 LBA
    00 00 00 02   #  6 blocks
    00            # 10 group number
    00            # 11 control
"""
WRITE_10 = """
    2a            # 0 WRITE(10)
    00            # 1 flags
    00 00 00 01   # 2 LBA
    00            # 6 group number
    00 02         # 7 blocks
    00            # 9 control
"""
WRITE_6 = """
    0a         # 0 WRITE(6)
    00 00 01   # 1 LBA, 21 bits
    02         # 4 blocks
    00         # 5 control
"""
REPORT_ZONES_AS_SD_DOES = """
    95                        #  0 ZBC IN
    00                        #  1 REPORT ZONES
    00 00 00 00 00 00 00 00   #  2 zone start LBA
    00 00 02 00               # 10 allocation length 512
    00                        # 14 PARTIAL 0, all zones
    00                        # 15 control
"""


# -- data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [MIXED, MIXED_4K], ids=["512", "4096"])
@pytest.mark.parametrize(
    ("write", "read"),
    [(WRITE_6, READ_6), (WRITE_10, READ_10), (WRITE_12, READ_12), (WRITE_16, READ_16)],
    ids=["6", "10", "12", "16"],
)
def test_every_length_of_cdb_reads_what_it_wrote(geometry: Geometry, write: str, read: str) -> None:
    data = bytes(range(256)) * (2 * geometry.block_size_bytes // 256)
    with new_initiator(geometry) as disk:
        assert disk.send(from_hex(write), out=data).result is GOOD
        assert disk.read(0, 4).data == bytes(disk.block_bytes) + data + bytes(disk.block_bytes)
        reply = disk.send(from_hex(read), room=len(data))
        assert reply.result is GOOD
        assert reply.data == data


def test_six_byte_commands_take_zero_for_256_blocks() -> None:
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes.fromhex("0a 000000 00 00"), out=b"x" * (256 * 512)).result is GOOD
        assert disk.send(bytes.fromhex("08 000000 00 00"), room=256 * 512).data == b"x" * (256 * 512)


@pytest.mark.parametrize("cdb", ["88 00 0000000000000800 00000000 00 00", "8a 00 0000000000001001 00000000 00 00"])
def test_no_blocks_is_no_error_and_opens_no_zone(cdb: str) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes.fromhex(cdb)).result is GOOD
        assert disk.cond(2 * ZONE) == Condition.EMPTY


def test_cdb_may_be_longer_than_the_command() -> None:
    """virtio-scsi always sends 32 bytes."""
    with new_initiator(MIXED) as disk:
        assert disk.target.execute(0, memoryview(from_hex(READ_10).ljust(32, b"\0")), [], [bytearray(1024)]) is GOOD


def test_data_is_scattered_and_gathered_without_copies_in_between() -> None:
    with new_initiator(MIXED) as disk:
        pieces: list[bytes | bytearray | memoryview] = [b"a" * 512, bytearray(b"b" * 500), memoryview(b"c" * 12)]
        assert disk.target.execute(0, from_hex(WRITE_16), pieces, []) is GOOD
        buffers = [bytearray(1), bytearray(1000), bytearray(23)]
        assert disk.target.execute(0, from_hex(READ_16), [], buffers) is GOOD
        assert b"".join(buffers) == b"a" * 512 + b"b" * 500 + b"c" * 12


def test_residual_of_larger_buffers() -> None:
    with new_initiator(MIXED) as disk:
        result = disk.send(from_hex(WRITE_16), out=b"w" * 1500).result
        assert (result.status, result.residual) == (ScsiStatus.GOOD, 1500 - 1024)
        assert disk.read(0, 4).data == bytes(512) + b"w" * 1024 + bytes(512)
        buffers = [bytearray(b"-" * 700), bytearray(b"-" * 700), bytearray(b"-" * 100)]
        result = disk.target.execute(0, from_hex(READ_16), [], buffers)
        assert (result.status, result.residual) == (ScsiStatus.GOOD, 1500 - 1024)
        assert b"".join(buffers) == b"w" * 1024 + b"-" * 476


def test_smaller_buffers_overrun_and_nothing_is_done() -> None:
    with new_initiator(MIXED) as disk:
        cdb = struct.pack(">BBQIBB", 0x8A, 0, 2 * ZONE, 2, 0, 0)
        assert disk.send(cdb, out=b"w" * 1023).result == (ScsiStatus.GOOD, b"", 1023, True)
        assert disk.cond(2 * ZONE) == Condition.EMPTY
        assert disk.send(from_hex(READ_16), room=1023).result == (ScsiStatus.GOOD, b"", 1023, True)
        assert disk.send(from_hex(READ_16)).result.overrun


@pytest.mark.parametrize("cdb", [READ_16, WRITE_16])
@pytest.mark.parametrize("flags", ["20", "e0"])
def test_protection_information_is_not_there(cdb: str, flags: str) -> None:
    with new_initiator(MIXED) as disk:
        broken = from_hex(cdb)[:1] + bytes.fromhex(flags) + from_hex(cdb)[2:]
        assert disk.send(broken, out=bytes(1024), room=1024).code == INVALID_FIELD


@pytest.mark.parametrize("lba", [8 * ZONE - 1, 8 * ZONE, 1 << 40, (1 << 64) - 1])
def test_beyond_the_last_block(lba: int) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.read(lba, 2).code == LBA_OUT_OF_RANGE
        assert disk.write(lba, 2).code == LBA_OUT_OF_RANGE
        for opcode in (0x8F, 0x91):
            assert disk.send(struct.pack(">BBQIBB", opcode, 0, lba, 2, 0, 0)).code == LBA_OUT_OF_RANGE
        # The address is what is wrong, whatever buffers came with it.
        assert disk.send(struct.pack(">BBQIBB", 0x88, 0, lba, 2, 0, 0), room=2000).code == LBA_OUT_OF_RANGE
        assert disk.send(struct.pack(">BBQIBB", 0x8A, 0, lba, 2, 0, 0)).code == LBA_OUT_OF_RANGE


def test_maximum_transfer_length() -> None:
    large = Geometry(size=1 << 20, zone_size=1 << 18, zone_capacity=1 << 18, conventional=((0, 1),))
    with new_initiator(large) as disk:
        for opcode in (0x88, 0x8A, 0x8F):
            cdb = struct.pack(">BBQIBB", opcode, 0, 0, 65537, 0, 0)
            assert disk.send(cdb).code == INVALID_FIELD
            assert disk.port.last_refusal is not None
            assert disk.port.last_refusal.rule == ScsiRule.SCSI_TRANSFER_LENGTH
        assert disk.read(0, 65536).code is None


@pytest.mark.parametrize(("opcode", "flags"), [(0x88, 0x08), (0x8A, 0x08)])
def test_force_unit_access_flushes(opcode: int, flags: int) -> None:
    with new_initiator(MIXED) as disk:
        before = disk.device.statistics()["flushes"]
        cdb = struct.pack(">BBQIBB", opcode, flags, 0, 1, 0, 0)
        out, room = (b"x" * 512, 0) if opcode == 0x8A else (b"", 512)
        assert disk.send(cdb, out=out, room=room).result is GOOD
        assert disk.device.statistics()["flushes"] == before + 1


# -- zones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [MIXED, MIXED_4K], ids=["512", "4096"])
def test_reads_and_zones(geometry: Geometry) -> None:
    zone = ZONE // geometry.block_sectors
    with new_initiator(geometry) as disk:
        assert disk.write(2 * zone, 1).code is None
        assert disk.read(2 * zone, 2).data == b"\x5a" * disk.block_bytes + bytes(disk.block_bytes)
        # URSWRZ: across sequential zones and across conventional ones, but not from one kind to the other.
        assert disk.finish(2 * zone).code is None
        assert disk.read(3 * zone - 1, 2).code is None
        assert disk.read(zone - 1, 2).code is None
        assert disk.read(2 * zone - 1, 2).code == READ_BOUNDARY
        assert disk.port.last_refusal is not None
        assert disk.port.last_refusal.rule == ScsiRule.SCSI_READ_TYPES
        disk.port.set_cond(3, Condition.OFFLINE)
        assert disk.read(3 * zone, 1).code == ZONE_OFFLINE
        assert disk.read(3 * zone - 1, 2).code == ZONE_OFFLINE
        disk.port.set_cond(2, Condition.READONLY)
        assert disk.read(2 * zone, 1).data == b"\x5a" * disk.block_bytes


@pytest.mark.parametrize("geometry", [MIXED, MIXED_4K], ids=["512", "4096"])
def test_writes_and_zones(geometry: Geometry) -> None:
    zone = ZONE // geometry.block_sectors
    with new_initiator(geometry) as disk:
        assert disk.write(2 * zone + 1, 1).code == UNALIGNED_WRITE
        assert disk.write(2 * zone, 2).code is None
        assert disk.write(2 * zone, 2).code == UNALIGNED_WRITE
        assert disk.write(2 * zone + 1, 4).code == UNALIGNED_WRITE
        assert disk.write(2 * zone + 2, zone - 2).result is GOOD
        assert disk.cond(2 * zone) == Condition.FULL
        assert disk.write(2 * zone, 1).code == INVALID_FIELD
        assert disk.write(3 * zone, zone - 1).code is None
        assert disk.write(4 * zone - 1, 2).code == WRITE_BOUNDARY
        assert disk.write(2 * zone - 1, 2).code == WRITE_BOUNDARY
        assert disk.write(zone - 1, 2).code is None
        disk.port.set_cond(3, Condition.READONLY)
        assert disk.write(4 * zone - 1, 1).code == ZONE_READ_ONLY
        disk.port.set_cond(3, Condition.OFFLINE)
        assert disk.write(4 * zone - 1, 1).code == ZONE_OFFLINE


def test_write_granularity() -> None:
    with new_initiator(RUNT) as disk:
        assert disk.write(0, 4).code == UNALIGNED_WRITE
        assert disk.write(0, 8).code is None
        assert disk.write(8, 12).code == UNALIGNED_WRITE
        runt = 3 * ZONE
        assert disk.write(runt, 1024).code is None
        assert disk.cond(runt) == Condition.FULL


GAP_ZONES = pytest.mark.parametrize(
    ("geometry", "zone_no"),
    [(GAPS, 1), (GAPS, 3), (GAP_IN_RUNT, 0), (GAP_IN_RUNT, 2), (GAPS_4K, 1)],
    ids=["first", "last", "0", "runt", "4096"],
)


@GAP_ZONES
def test_gap_zones_are_read_as_zeros_and_never_written(geometry: Geometry, zone_no: int) -> None:
    unit = geometry.block_sectors
    start, gap = zone_no * ZONE // unit, (zone_no * ZONE + 1536) // unit
    last = (zone_no * ZONE + geometry.zone_len(zone_no)) // unit - 1
    with new_initiator(geometry) as disk:
        zeros = bytes(disk.block_bytes)
        for fill_first in (False, True):
            if fill_first:
                assert disk.write(start, gap - start).code is None
                assert disk.cond(start) == Condition.FULL
            before = b"\x5a" * disk.block_bytes if fill_first else zeros
            assert disk.read(gap - 1, 1).data == before
            assert disk.read(gap - 1, 2).data == before + zeros
            assert disk.read(gap, 1).data == disk.read(last, 1).data == zeros
            assert disk.read(start, last - start + 1).data == before * (gap - start) + zeros * (last - gap + 1)
            assert disk.device.refusals.last_seq == (3 if fill_first else 0)
            for lba in (gap, last):
                assert disk.write(lba, 1).code == GAP
                assert disk.port.last_refusal is not None
                assert disk.port.last_refusal.rule == ScsiRule.SCSI_GAP
                assert "gap zone" in EXPLAINER.explain(disk.port.last_refusal, disk.device.geometry)
            assert disk.write(gap - 1, 2).code == (INVALID_FIELD if fill_first else WRITE_BOUNDARY)
        assert disk.read(gap, 1).data == zeros


READ_GAP = """
    88                        #  0 READ(16)
    00                        #  1 no protection, DPO 0, FUA 0
    00 00 00 00 00 00 0d ff   #  2 LBA: the last block of zone 1, at 2048 + 1536 - 1
    00 00 02 02               # 10 514 blocks: that one, all of the gap zone, the first of zone 2
    00                        # 14 group number
    00                        # 15 control
"""
VERIFY_GAP = """
    8f                        #  0 VERIFY(16)
    02                        #  1 BYTCHK 01b: compare
    00 00 00 00 00 00 0d ff   #  2 LBA
    00 00 02 02               # 10 blocks
    00                        # 14 group number
    00                        # 15 control
"""


def test_a_read_crosses_a_gap_zone_into_the_next_zone() -> None:
    with new_initiator(GAPS) as disk:
        assert disk.write(ZONE, 1536, fill=1).code is None
        assert disk.write(2 * ZONE, 8, fill=2).code is None
        data = b"\1" * 512 + bytes(512 * 512) + b"\2" * 512
        assert disk.send(from_hex(READ_GAP), room=len(data)).data == data
        assert disk.send(from_hex(VERIFY_GAP), out=data).result == GOOD
        assert disk.send(from_hex(VERIFY_GAP), out=data[:1024] + b"!" + data[1025:]).code == (0xE, 0x1D, 0x00)
        # From a gap zone on; what the zones behind it are in still counts.
        assert disk.read(ZONE + 2047, 2).data == bytes(512) + b"\2" * 512
        disk.port.set_cond(2, Condition.OFFLINE)
        assert disk.read(ZONE + 2047, 2).code == ZONE_OFFLINE


def test_a_gap_zone_before_a_conventional_zone_is_of_another_type() -> None:
    geometry = Geometry(size=3 * ZONE, zone_size=ZONE, zone_capacity=1536, conventional=((1, 1),))
    with new_initiator(geometry) as disk:
        assert disk.read(ZONE - 1, 1).data == bytes(512)
        assert disk.read(ZONE - 1, 2).code == READ_BOUNDARY
        assert disk.send(struct.pack(">BBQIBB", 0x8F, 0, ZONE - 1, 2, 0, 0)).code == READ_BOUNDARY
        assert disk.read(2 * ZONE - 1, 2).code == READ_BOUNDARY


OPEN_GAP = """
    94                        #  0 ZBC OUT
    03                        #  1 OPEN ZONE
    00 00 00 00 00 00 0e 00   #  2 ZONE ID: the gap zone behind zone 1, at 2048 + 1536
    00 00                     # 10 reserved
    00 00                     # 12 ZONE COUNT
    00                        # 14 ALL 0
    00                        # 15 control
"""


def test_a_gap_zone_cannot_be_opened() -> None:
    with new_initiator(GAPS) as disk:
        reply = disk.send(from_hex(OPEN_GAP))
        assert reply.result.sense == from_hex("""
            70            #  0 fixed format
            00            #  1
            05            #  2 ILLEGAL REQUEST
            00 00 00 00   #  3 information
            0a            #  7 10 more bytes
            00 00 00 00   #  8 command specific
            21 09         # 12 ATTEMPT TO ACCESS GAP ZONE
            00            # 14 FRU
            00 00 00      # 15 no field pointer
        """)
        (refusal,) = disk.device.refusals.last(10)
        assert EXPLAINER.explain(refusal, disk.device.geometry).startswith(
            "scsi: open at sector 3584 was refused (NOT_ZONE_START): between a zone's capacity and the next zone lies a"
            " gap zone, which can only be read, as zeros; zone 1 is EMPTY"
        )


@GAP_ZONES
def test_zone_commands_to_gap_zones(geometry: Geometry, zone_no: int) -> None:
    gap = (zone_no * ZONE + 1536) // geometry.block_sectors
    with new_initiator(geometry) as disk:
        zones = disk.report()
        for action in (1, 2, 3, 4):
            for count in (0, 1, 2):
                assert disk.zone_command(action, gap, count=count).code == GAP
                assert disk.port.last_refusal is not None
                assert disk.port.last_refusal.rule == ScsiRule.SCSI_GAP
            # No zone starts there, not even a gap zone.
            assert disk.zone_command(action, gap + 1).code == INVALID_FIELD
            assert disk.port.last_refusal is not None
            assert disk.port.last_refusal.rule == DeviceRule.NOT_ZONE_START
        assert disk.report() == zones
        # The ZONE ID is ignored, even if it is a gap zone's.
        assert disk.finish(gap, everywhere=True).code is None


@pytest.mark.parametrize(
    ("cdb", "expected"),
    [
        ("41 00 00000e00 00 0001 00", INVALID_OPCODE),  # WRITE SAME(10)
        ("93 00 0000000000000e00 00000001 00 00", INVALID_OPCODE),  # WRITE SAME(16)
        ("89 00 0000000000000e00 000000 01 00 00", INVALID_OPCODE),  # COMPARE AND WRITE
        ("34 00 00000e00 00 0001 00", INVALID_OPCODE),  # PRE-FETCH(10)
        ("42 00 00000000 00 0018 00", INVALID_OPCODE),  # UNMAP
        ("9e 12 0000000000000e00 00000020 00 00", INVALID_FIELD),  # GET LBA STATUS
        ("2f 00 00000e00 00 0001 00", None),  # VERIFY(10)
        ("35 00 00000e00 00 0200 00", None),  # SYNCHRONIZE CACHE(10)
        ("28 08 00000e00 00 0001 00", None),  # READ(10) with FUA
        ("2a 00 00000e00 00 0000 00", None),  # WRITE(10) of no blocks
        ("2a 08 00000e00 00 0001 00", GAP),  # WRITE(10) with FUA
    ],
)
def test_whatever_else_may_be_sent_to_a_gap_zone(cdb: str, expected: tuple[int, int, int] | None) -> None:
    with new_initiator(GAPS) as disk:
        out, room = (bytes(512), 0) if cdb[:2] in {"41", "93", "89", "42", "2a"} else (b"", 512)
        assert disk.send(bytes.fromhex(cdb), out=out, room=room).code == expected


def test_the_last_block_of_a_disk_that_ends_in_a_gap_zone() -> None:
    with new_initiator(GAP_IN_RUNT) as disk:
        last = GAP_IN_RUNT.size - 1
        capacity = disk.send(bytes.fromhex("9e 10 0000000000000000 00000020 00 00"), room=32).data
        assert int.from_bytes(capacity[:8], "big") == last
        assert disk.read(last, 1).data == bytes(512)
        assert disk.read(last, 2).code == LBA_OUT_OF_RANGE
        assert disk.write(last, 1).code == GAP
        assert disk.write(last, 2).code == LBA_OUT_OF_RANGE


def test_runt_shorter_than_the_capacity_has_no_gap() -> None:
    with new_initiator(GAPS) as disk:
        assert disk.read(4 * ZONE + 511, 1).code is None
        assert disk.read(4 * ZONE - 1, 2).code is None
        assert disk.read(4 * ZONE + 511, 2).code == LBA_OUT_OF_RANGE
        assert disk.write(4 * ZONE, 512).code is None
        assert disk.cond(4 * ZONE) == Condition.FULL


def test_conventional_zones_beside_gaps_are_whole() -> None:
    with new_initiator(GAPS) as disk:
        assert disk.write(1536, 512).code is None
        assert disk.read(1536, 512).code is None
        assert disk.read(2047, 2).code == READ_BOUNDARY


# What one command makes of a zone in each condition, as libzbc's 02_state_machine_check expects it; codes are for
# refusals.
SCENARIOS = [
    ("open", Condition.EMPTY, Condition.EXP_OPEN),
    ("open", Condition.IMP_OPEN, Condition.EXP_OPEN),
    ("open", Condition.EXP_OPEN, Condition.EXP_OPEN),
    ("open", Condition.CLOSED, Condition.EXP_OPEN),
    ("open", Condition.FULL, Condition.FULL),
    ("close", Condition.EMPTY, Condition.EMPTY),
    ("close", Condition.IMP_OPEN, Condition.CLOSED),
    ("close", Condition.EXP_OPEN, Condition.EMPTY),  # nothing was written
    ("close", Condition.CLOSED, Condition.CLOSED),
    ("close", Condition.FULL, Condition.FULL),
    *[("finish", Condition(cond), Condition.FULL) for cond in (1, 2, 3, 4, 14)],
    *[("reset", Condition(cond), Condition.EMPTY) for cond in (1, 2, 3, 4, 14)],
    *[(name, Condition.READONLY, ZONE_READ_ONLY) for name in ("open", "close", "finish", "reset")],
    *[(name, Condition.OFFLINE, ZONE_OFFLINE) for name in ("open", "close", "finish", "reset")],
    *[(name, Condition.NOT_WP, INVALID_FIELD) for name in ("open", "close", "finish", "reset")],
]


def put_into(disk: Initiator, lba: int, cond: Condition) -> None:
    match cond:
        case Condition.IMP_OPEN:
            disk.write(lba, 1)
        case Condition.EXP_OPEN:
            disk.open(lba)
        case Condition.CLOSED:
            disk.write(lba, 1)
            disk.close(lba)
        case Condition.FULL:
            disk.finish(lba)
        case Condition.READONLY | Condition.OFFLINE:
            disk.port.set_cond(disk.port.geometry.zone_no(lba * disk.block_bytes // 512), cond)
        case _:
            pass
    assert disk.cond(lba) == cond


@pytest.mark.parametrize("geometry", [MIXED, MIXED_4K], ids=["512", "4096"])
@pytest.mark.parametrize(("name", "before", "outcome"), SCENARIOS)
def test_zone_commands(
    geometry: Geometry, name: str, before: Condition, outcome: Condition | tuple[int, int, int]
) -> None:
    lba = 0 if before is Condition.NOT_WP else 5 * ZONE // geometry.block_sectors
    with new_initiator(geometry) as disk:
        put_into(disk, lba, before)
        code = getattr(disk, name)(lba).code
        if isinstance(outcome, Condition):
            assert code is None
            assert disk.cond(lba) == outcome
        else:
            assert code == outcome
            assert disk.cond(lba) == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # conditions of zones 2 to 7 after: EMPTY, IMP_OPEN, EXP_OPEN, CLOSED, FULL, READONLY
        ("open", [1, 2, 3, 3, 14, 13]),
        ("close", [1, 4, 1, 4, 14, 13]),
        ("finish", [1, 14, 14, 14, 14, 13]),
        ("reset", [1, 1, 1, 1, 1, 13]),
    ],
)
def test_zone_commands_for_all_zones(name: str, expected: list[int]) -> None:
    with new_initiator(MIXED) as disk:
        before = [Condition(cond) for cond in (1, 2, 3, 4, 14, 13)]
        for zone_no, cond in enumerate(before, start=2):
            put_into(disk, zone_no * ZONE, cond)
        # The ZONE ID is ignored, even one beyond the device.
        assert getattr(disk, name)((1 << 64) - 1, everywhere=True).code is None
        assert [zone.cond for zone in disk.report(2 * ZONE)] == expected
        assert [zone.cond for zone in disk.report(room=192)] == [0, 0]


def test_zone_command_addresses() -> None:
    with new_initiator(MIXED) as disk:
        for command in (disk.open, disk.close, disk.finish, disk.reset):
            assert command(2 * ZONE + 1).code == INVALID_FIELD
            assert command(8 * ZONE).code == LBA_OUT_OF_RANGE
        assert disk.zone_command(0x05, 2 * ZONE).code == INVALID_FIELD
        reply = disk.open(2 * ZONE + 1)
        assert reply.result.sense[15:18] == bytes.fromhex("c0 00 02")  # byte 2 of the CDB: ZONE ID


def test_zone_count() -> None:
    with new_initiator(GAPS) as disk:
        assert disk.zone_command(2, ZONE, count=2).code is None
        assert [zone.cond for zone in disk.report(option=0x3E)] == [0, 14, 14, 1, 1]
        assert disk.zone_command(4, ZONE, count=5).code == LBA_OUT_OF_RANGE
        assert disk.zone_command(4, 0, count=3).code == INVALID_FIELD  # the first is conventional
        assert [zone.cond for zone in disk.report(option=0x3E)] == [0, 14, 14, 1, 1]
        assert disk.zone_command(4, ZONE, count=4).code is None
        assert [zone.cond for zone in disk.report(option=0x3E)] == [0, 1, 1, 1, 1]


def test_open_zone_resources() -> None:
    with new_initiator(MIXED) as disk:
        for zone_no in (2, 3, 4):
            assert disk.open(zone_no * ZONE).code is None
        assert disk.open(5 * ZONE).code == NO_ZONE_RESOURCES
        assert disk.write(5 * ZONE, 1).code == NO_ZONE_RESOURCES
        assert disk.close(4 * ZONE).code is None
        assert disk.write(5 * ZONE, 1).code is None
        assert disk.write(6 * ZONE, 1).code is None  # the implicitly open zone is closed for it
        assert [zone.cond for zone in disk.report(2 * ZONE)] == [3, 3, 1, 4, 2, 1]
        assert disk.write(7 * ZONE, 1).code is None
        assert disk.open(everywhere=True).code == NO_ZONE_RESOURCES
        assert [zone.cond for zone in disk.report(2 * ZONE)] == [3, 3, 1, 4, 4, 2]


def test_report_zones_as_linux_asks_at_first() -> None:
    with new_initiator(MIXED) as disk:
        reply = disk.send(from_hex(REPORT_ZONES_AS_SD_DOES), room=512)
        assert reply.code is None
        assert len(reply.data) == 512
        assert reply.data[:5] == (8 * 64).to_bytes(4, "big") + b"\x03"


@pytest.mark.parametrize("room", [0, 1, 63, 64, 127, 128, 191, 4096])
def test_report_zones_never_exceeds_allocation_length_or_buffer(room: int) -> None:
    with new_initiator(MIXED) as disk:
        for allocation, size in ((room, 4096), (4096, room)):
            cdb = struct.pack(">BBQIBB", 0x95, 0, 0, allocation, 0x80, 0)
            reply = disk.send(cdb, room=size)
            assert reply.code is None
            whole = max(0, min(room, 64 + 8 * 64) - 64) // 64
            assert len(reply.data) == min(room, 64 + 64 * whole)
            if room >= 4:
                assert reply.data[:4] == (64 * whole).to_bytes(4, "big")


@pytest.mark.parametrize("option", [0x09, 0x0A, 0x12, 0x3D])
def test_report_zones_with_a_reporting_option_that_is_not_there(option: int) -> None:
    with new_initiator(MIXED) as disk:
        reply = disk.send(struct.pack(">BBQIBB", 0x95, 0, 0, 512, option, 0), room=512)
        assert reply.code == INVALID_FIELD
        assert reply.result.sense[15:18] == bytes.fromhex("c0 00 0e")


def test_report_zones_beyond_the_device_and_other_service_actions() -> None:
    with new_initiator(MIXED) as disk:
        assert disk.send(struct.pack(">BBQIBB", 0x95, 0, 8 * ZONE, 512, 0, 0), room=512).code == LBA_OUT_OF_RANGE
        assert disk.send(struct.pack(">BBQIBB", 0x95, 6, 0, 512, 0, 0), room=512).code == INVALID_FIELD


def test_read_only_image() -> None:
    with new_initiator(MIXED, readonly=True) as disk:
        assert disk.read(0, 1).code is None
        assert disk.write(0, 1).code == WRITE_PROTECTED
        assert disk.port.last_refusal is not None
        assert disk.port.last_refusal.rule == ScsiRule.SCSI_WRITE_PROTECTED
        for command in (disk.open, disk.close, disk.finish, disk.reset):
            assert command(2 * ZONE).code == WRITE_PROTECTED
        assert disk.send(bytes.fromhex("1a 08 3f 00 ff 00"), room=255).data[2] == 0x90
        assert disk.send(bytes.fromhex("35 00 00000000 00 0000 00")).result is GOOD


# -- everything else ----------------------------------------------------------------------------------------------


def test_commands_of_a_linux_boot() -> None:
    """The CDBs that Linux 6.12 sends to bind the disk, in its order; None means done, else what it is refused with."""
    trace: list[tuple[str, int, tuple[int, int, int] | None]] = [
        ("a0 00 00 000000 00001000 00 00", 4096, None),  # REPORT LUNS
        ("12 00 00 0024 00", 36, None),  # INQUIRY
        ("12 01 00 00ff 00", 255, None),  # supported VPD pages
        ("12 01 80 0004 00", 4, None),  # serial number: length first, then all
        ("12 01 80 00ff 00", 255, None),
        ("12 01 83 00ff 00", 255, None),
        ("12 01 b0 00ff 00", 255, None),
        ("12 01 b1 00ff 00", 255, None),
        ("12 01 b2 00ff 00", 255, None),
        ("a3 0c 01 88 0000 00000200 00 00", 512, None),  # command duration limits?
        ("a3 0c 01 8a 0000 00000200 00 00", 512, None),
        ("a3 0c 02 7f 0009 00000200 00 00", 512, None),
        ("a3 0c 02 7f 000b 00000200 00 00", 512, None),
        ("00 00 0000 00 00", 0, None),  # TEST UNIT READY
        ("9e 10 0000000000000000 00000020 00 00", 32, None),  # READ CAPACITY(16)
        ("12 01 b6 0040 00", 64, None),
        ("95 00 0000000000000000 00000200 00 00", 512, None),  # REPORT ZONES
        ("1a 00 3f 00 04 00", 4, None),  # MODE SENSE(6)
        ("1a 00 08 00 04 00", 4, None),
        ("1a 00 08 00 18 00", 24, None),
        ("5a 00 0a 05 000000 0040 00", 64, INVALID_FIELD),  # MODE SENSE(10), a subpage we do not have
        ("a3 0c 01 12 0000 00000014 00 00", 20, None),
        ("a3 0c 01 93 0000 00000014 00 00", 20, None),  # WRITE SAME?
        ("a3 0c 01 41 0000 00000014 00 00", 20, None),
        ("95 00 0000000000000000 00000400 80 00", 1024, None),  # REPORT ZONES, partial
        ("88 00 0000000000000000 00000008 00 00", 4096, None),
        ("91 00 0000000000000000 00000000 00 00", 0, None),  # SYNCHRONIZE CACHE(16)
        ("94 04 0000000000000000 0000 0000 01 00", 0, None),  # RESET ALL
    ]
    with new_initiator(MIXED) as disk:
        for cdb, room, code in trace:
            assert disk.send(bytes.fromhex(cdb), room=room).code == code, cdb


@pytest.mark.parametrize("opcode", sorted(set(range(256)) - {command.opcode for command in COMMANDS}))
def test_operation_codes_that_are_not_there(opcode: int) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes((opcode,)).ljust(32, b"\0")).code == INVALID_OPCODE


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_short_cdbs_and_naca_are_refused(command: commands.Command) -> None:
    cdb = bytearray(len(command.usage))
    cdb[0], cdb[1] = command.opcode, command.service_action or 0
    with new_initiator(MIXED) as disk:
        for length in range(len(cdb)):
            assert disk.send(bytes(cdb[:length])).code == INVALID_FIELD
        cdb[-1] = commands.NACA
        reply = disk.send(bytes(cdb))
        assert reply.code == INVALID_FIELD
        assert reply.result.sense[15:18] == bytes((0xC0, 0, len(cdb) - 1))


@pytest.mark.parametrize(
    "cdb",
    [
        "12 02 00 0024 00",  # CMDDT
        "12 00 80 0024 00",  # a page without EVPD
        "12 01 89 0024 00",  # a page we do not have
        "9e 12 0000000000000000 00000020 00 00",  # GET LBA STATUS
        "a0 00 10 000000 00001000 00 00",
        "a3 0a 00 00 0000 00001000 00 00",  # REPORT TARGET PORT GROUPS
        "a3 0c 04 88 0000 00001000 00 00",
        "a3 0c 01 94 0000 00001000 00 00",  # has service actions
        "1b 00 00 00 02 00",  # eject
        "1b 00 00 00 30 00",  # standby
        "1d 24 00 0000 00",  # background self-test
        "1d 00 00 0001 00",  # diagnostic page
        "8f 04 0000000000000000 00000001 00 00",  # BYTCHK 10b
        "15 00 00 00 04 00",  # MODE SELECT without PF
        "15 11 00 00 04 00",  # ... with SP
    ],
)  # fmt: skip
def test_fields_that_are_refused(cdb: str) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes.fromhex(cdb), out=bytes(4), room=4096).code == INVALID_FIELD


@pytest.mark.parametrize("cdb", ["1a 00 c8 00 ff 00", "5a 00 c8 00 000000 00ff 00"])
def test_saved_mode_pages_are_not_there(cdb: str) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes.fromhex(cdb), room=255).code == (0x5, 0x39, 0x00)


@pytest.mark.parametrize(
    "cdb", ["1b 00 00 00 01 00", "1b 00 00 00 04 00", "1d 04 00 0000 00", "1d 00 00 0000 00", "15 10 00 00 00 00"]
)
def test_commands_that_do_nothing(cdb: str) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes.fromhex(cdb)).result is GOOD


@pytest.mark.parametrize(
    "cdb", ["35 00 00000000 00 0000 00", "91 02 0000000000000000 00000008 00 00", "1b 00 00 00 00 00"]
)
def test_commands_that_flush(cdb: str) -> None:
    with new_initiator(MIXED) as disk:
        before = disk.device.statistics()["flushes"]
        assert disk.send(bytes.fromhex(cdb)).result is GOOD
        assert disk.device.statistics()["flushes"] == before + 1


def test_request_sense_has_nothing_to_say() -> None:
    with new_initiator(MIXED) as disk:
        reply = disk.send(bytes.fromhex("03 00 0000 ff 00"), room=255)
        assert reply.data == bytes.fromhex("70 00 00 00000000 0a 00000000 00 00 00 000000")
        assert disk.send(bytes.fromhex("03 01 0000 ff 00"), room=255).data == bytes.fromhex("72 00 00 00 000000 00")


def test_descriptor_sense_is_chosen_by_the_control_mode_page() -> None:
    page = bytes(4) + bytes.fromhex("0a 0a 06 10 00 00 0000 ffff 0000")
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes.fromhex("15 10 00 00 10 00"), out=page).result == GOOD
        reply = disk.write(2 * ZONE + 1, 1)
        assert reply.result.sense == bytes.fromhex("72 05 21 04 000000 00")
        disk.target.disk.reset()
        assert disk.write(2 * ZONE + 1, 1).result.sense[0] == 0x70


def test_without_write_cache_every_write_is_flushed() -> None:
    page = bytes(8) + bytes.fromhex("08 12 00 00 0000 0000 0000 0000 00 00 0000 00 000000")
    with new_initiator(MIXED) as disk:
        before = disk.device.statistics()["flushes"]
        assert not disk.target.may_block(0, from_hex(WRITE_16))
        assert disk.send(bytes.fromhex("55 10 0000000000 001c 00"), out=page).result == GOOD
        assert disk.device.statistics()["flushes"] == before + 1  # what was written before becomes stable too
        assert disk.target.may_block(0, from_hex(WRITE_16))
        assert disk.write(0, 1).result is GOOD
        assert disk.device.statistics()["flushes"] == before + 2


def test_mode_select_that_is_refused() -> None:
    with new_initiator(MIXED) as disk:
        reply = disk.send(bytes.fromhex("15 10 00 00 06 00"), out=bytes(4) + b"\x02\x0e")
        assert reply.code == INVALID_PARAMETER
        assert reply.result.sense[15:18] == bytes.fromhex("80 00 04")
        assert disk.send(bytes.fromhex("15 10 00 00 03 00"), out=bytes(3)).code == (0x5, 0x1A, 0x00)
        assert disk.send(bytes.fromhex("15 10 00 00 10 00"), out=bytes(15)).result.overrun


@pytest.mark.parametrize("opcode", ["2f", "8f", "af"])
def test_verify_compares(opcode: str) -> None:
    tails = {
        "2f": "{} 00000000 00 0002 00",
        "8f": "{} 0000000000000000 00000002 00 00",
        "af": "{} 00000000 00000002 00 00",
    }
    compare = bytes.fromhex(opcode + tails[opcode].format("02"))
    only_read = bytes.fromhex(opcode + tails[opcode].format("00"))
    with new_initiator(MIXED) as disk:
        disk.write(0, 2, fill=7)
        assert disk.send(only_read).code is None
        assert disk.send(compare, out=b"\7" * 1024).result == GOOD
        assert disk.send(compare, out=b"\7" * 1030).result.residual == 6
        assert disk.send(compare, out=b"\7" * 1023 + b"\6").code == (0xE, 0x1D, 0x00)
        assert disk.send(compare, out=b"\7" * 1023).result.overrun


def test_verify_reads_more_than_one_portion() -> None:
    large = Geometry(size=1 << 16, zone_size=1 << 15, zone_capacity=1 << 15, conventional=((0, 1),))
    with new_initiator(large) as disk:
        data = bytes(range(256)) * (3 * 4096 + 2)
        nr_blocks = len(data) // 512
        assert disk.send(struct.pack(">BBQIBB", 0x8A, 0, 0, nr_blocks, 0, 0), out=data).result is GOOD
        compare = struct.pack(">BBQIBB", 0x8F, 2, 0, nr_blocks, 0, 0)
        assert disk.send(compare, out=data).result == GOOD
        assert disk.send(compare, out=data[:-1] + b"!").code == (0xE, 0x1D, 0x00)


@pytest.mark.parametrize(
    ("cdb", "expected"),
    [
        (b"", False),
        (b"\x8a", False),
        (from_hex(WRITE_16), False),
        (from_hex(READ_16), False),
        (bytes.fromhex("8a 08 0000000000000000 00000001 00 00"), True),
        (bytes.fromhex("0a 08 0000 01 00"), False),  # in WRITE(6) these bits are the LBA's
        (bytes.fromhex("35 00 00000000 00 0000 00"), True),
        (bytes.fromhex("94 04 0000000000000000 0000 0000 01 00"), True),
        (bytes.fromhex("12 00 00 0024 00"), False),
    ],
)
def test_may_block(cdb: bytes, expected: bool) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.target.may_block(0, cdb) is expected


@pytest.mark.parametrize(
    ("status", "on_read", "on_write"),
    [
        (Status.IO_ERROR, (0x3, 0x11, 0x00), (0x3, 0x0C, 0x00)),
        (Status.NO_SPACE, (0x7, 0x27, 0x07), (0x7, 0x27, 0x07)),
        (Status.POISONED, (0x4, 0x44, 0x00), (0x4, 0x44, 0x00)),
    ],
)
def test_trouble_of_the_host(
    status: Status, on_read: tuple[int, int, int], on_write: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_initiator(MIXED) as disk:
        monkeypatch.setattr(disk.target.disk, "_port_read", lambda *_: status)
        monkeypatch.setattr(disk.target.disk, "_port_write", lambda *_: status)
        monkeypatch.setattr(disk.port, "flush", lambda: status)
        assert disk.read(0, 1).code == on_read
        assert disk.write(0, 1).code == on_write
        assert disk.send(bytes.fromhex("35 00 00000000 00 0000 00")).code == on_write


def test_a_flush_that_fails_fails_the_command_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    page = bytes(4) + bytes.fromhex("08 12 00 00 0000 0000 0000 0000 00 00 0000 00 000000")
    with new_initiator(MIXED) as disk:
        monkeypatch.setattr(disk.port, "flush", lambda: Status.POISONED)
        assert disk.write(0, 1).code is None
        assert disk.write(0, 1, flags=0x08).code == (0x4, 0x44, 0x00)
        assert disk.read(0, 1, flags=0x08).code == (0x4, 0x44, 0x00)
        assert disk.send(bytes.fromhex("15 10 00 00 18 00"), out=page).code == (0x4, 0x44, 0x00)


def test_report_supported_operation_codes() -> None:
    with new_initiator(MIXED) as disk:
        reply = disk.send(bytes.fromhex("a3 0c 80 00 0000 00001000 00 00"), room=4096)
        assert reply.data == commands.supported_commands(timeouts=True)


def test_mode_sense_10() -> None:
    with new_initiator(MIXED_4K) as disk:
        reply = disk.send(bytes.fromhex("5a 00 08 00 000000 00ff 00"), room=255)
        assert reply.data[:18] == from_hex("""
            00 22         #  0 mode data length
            00 10         #  2 medium type; DPO and FUA supported
            00 00 00 08   #  4 block descriptor length
            00 00 08 00   #  8 2048 blocks
            00 00 10 00   # 12 of 4096 bytes
            08 12         # 16 caching page
        """)


MODE_SELECT = bytes.fromhex("15 10 00 00 06 00")


@pytest.mark.parametrize(
    ("cdb", "out", "sentence", "clause"),
    [
        (
            bytes.fromhex("42 00 00000000 00 0018 00"),  # UNMAP
            bytes(24),
            "command 42h (CDB 42 00 00 00 00 00 00 00 18 00, byte 0) was refused (UNSUPPORTED): a command must be one",
            "SPC-4 INVALID COMMAND OPERATION CODE",
        ),
        (
            bytes.fromhex("28 20 00000001 00 0001 00"),
            b"",
            "READ(10) (CDB 28 20 00 00 00 01 00 00 01 00, byte 1) was refused (UNSUPPORTED): a CDB must be whole, and",
            "SPC-4 INVALID FIELD IN CDB",
        ),
        (b"\x8a\0", b"", "WRITE(16) (CDB 8a 00) was refused (UNSUPPORTED): a CDB", "SPC-4 INVALID FIELD IN CDB"),
        (b"", b"", "a CDB of no bytes was refused (UNSUPPORTED): a CDB must", "SPC-4 INVALID FIELD IN CDB"),
        (
            MODE_SELECT,
            bytes(4) + b"\x02\x0e",
            "MODE SELECT(6) (CDB 15 10 00 00 06 00, byte 4 of the parameter list) was refused (UNSUPPORTED): a para",
            "SPC-4 INVALID FIELD IN PARAMETER LIST",
        ),
        (
            bytes.fromhex("15 10 00 00 03 00"),
            bytes(3),
            "MODE SELECT(6) (CDB 15 10 00 00 03 00) was refused (UNSUPPORTED): a parameter list must hold",
            "SPC-4 PARAMETER LIST LENGTH ERROR",
        ),
        (
            MODE_SELECT,
            bytes(5),
            "MODE SELECT(6) (CDB 15 10 00 00 06 00, 5 bytes of buffers) was refused (UNSUPPORTED): the buffers",
            "virtio 1.4 SCSI host, VIRTIO_SCSI_S_OVERRUN",
        ),
        (
            bytes.fromhex("2f 02 00000000 00 0001 00"),
            b"\1" * 512,
            "VERIFY(10) (CDB 2f 02 00 00 00 00 00 00 01 00) was refused (UNSUPPORTED): the bytes to be verified are",
            "SBC-3 VERIFY, BYTCHK; MISCOMPARE DURING VERIFY OPERATION",
        ),
        (
            bytes.fromhex("95 00 00000000ffffffff 00000040 00 00"),
            b"",
            "REPORT ZONES (CDB 95 00 00 00 00 00 ff ff ff ff 00 00 00 40 00 00) was refused (OUT_OF_RANGE): a request",
            "ZBC-2 LOGICAL BLOCK ADDRESS OUT OF RANGE; virtio 1.4 blk, VIRTIO_BLK_S_ZONE_INVALID_CMD",
        ),
    ],
)  # fmt: skip
def test_malformed_commands_are_explained(cdb: bytes, out: bytes, sentence: str, clause: str) -> None:
    with new_initiator(MIXED) as disk:
        disk.send(cdb, out=out)
        (refusal,) = disk.device.refusals.last(10)
        text = EXPLAINER.explain(refusal, disk.device.geometry)
        assert text.startswith(f"scsi: {sentence}")
        assert text.endswith(f" [{clause}]")
        assert (refusal.zone_no, refusal.operation) == (-1, None)


@pytest.mark.parametrize(
    "cdb",
    [
        "12 01 c0 00ff 00",  # INQUIRY, a VPD page that is not there
        "1a 00 19 00 ff 00",  # MODE SENSE(6), a page that is not there
        "1a 00 c8 00 ff 00",  # saved values
        "5a 00 0a 05 000000 00ff 00",  # MODE SENSE(10), a subpage that is not there
        "4d 00 40 000000 00 00ff 00",  # LOG SENSE
        "a3 0d 00 0000000000000000 00 00",  # MAINTENANCE IN, REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
        "a3 0c 01 94 0000 00000200 00 00",  # a command with service actions, asked for as one without
        "9e 12 0000000000000000 00000020 00 00",  # GET LBA STATUS
        "85 08 0e 00 00 00 01 00 00 00 00 00 00 40 ec 00",  # ATA PASS-THROUGH(16), IDENTIFY DEVICE
        "a1 08 0e 00 01 00 00 00 00 ec 00 00",  # ATA PASS-THROUGH(12)
    ],
)
def test_asking_what_is_there_is_no_refusal(cdb: str) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes.fromhex(cdb), room=512).code is not None
        assert disk.device.refusals.last_seq == 0


# -- helpers ------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=9), max_size=5), st.integers(0, 60))
def test_first_bytes(buffers: list[bytes], nr_bytes: int) -> None:
    assert b"".join(first_bytes(buffers, nr_bytes)) == b"".join(buffers)[:nr_bytes]


@given(st.binary(max_size=40), st.integers(0, 50), st.lists(st.integers(0, 20), max_size=4))
def test_reply_fills_buffers_in_order(data: bytes, allocation: int, sizes: list[int]) -> None:
    buffers = [bytearray(b"-" * size) for size in sizes]
    result = reply(data, allocation, [], buffers)
    moved = min(len(data), allocation, sum(sizes))
    assert result == (ScsiStatus.GOOD, b"", sum(sizes) - moved, False)
    assert b"".join(buffers) == data[:moved] + b"-" * (sum(sizes) - moved)


def test_nothing_transferred() -> None:
    assert nothing_transferred([], []) is GOOD
    assert nothing_transferred([b"12"], []).residual == 2


# -- fuzzing ------------------------------------------------------------------------------------------------------

SMALL = st.sampled_from([0, 1, 2, 7, 8, 63, 64, 511, 512, 1535, 1536, ZONE - 1, ZONE, ZONE + 1, 3 * ZONE, 4 * ZONE])
LBAS = SMALL | st.integers(0, 9 * ZONE) | st.integers(0, (1 << 64) - 1)


@st.composite
def cdbs(draw: st.DrawFn) -> bytes:
    """Half noise, half commands that are nearly right."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=40))
    command = draw(st.sampled_from(COMMANDS))
    cdb = bytearray(draw(st.binary(min_size=len(command.usage), max_size=len(command.usage))))
    for index, bits in enumerate(command.usage):
        cdb[index] &= bits
    cdb[0] = command.opcode
    if command.service_action is not None:
        cdb[1] = command.service_action
    elif draw(st.booleans()):
        cdb[1] &= 0x0A
    cdb[-1] = 0
    if len(cdb) == 16:
        cdb[2:10] = draw(LBAS).to_bytes(8, "big")
        if cdb[0] not in (0x94, 0x95):
            cdb[10:14] = draw(SMALL).to_bytes(4, "big")
    return bytes(cdb)


@given(
    geometry=st.sampled_from([MIXED, MIXED_4K, GAPS, GAP_IN_RUNT, RUNT]),
    requests=st.lists(
        st.tuples(cdbs(), st.lists(SMALL, max_size=3), st.lists(SMALL, max_size=3)), min_size=1, max_size=20
    ),
)
def test_any_cdb_gets_a_result_within_bounds(
    geometry: Geometry, requests: list[tuple[bytes, list[int], list[int]]]
) -> None:
    with new_initiator(geometry) as disk:
        guard = b"\xa5" * 16
        for cdb, out_sizes, in_sizes in requests:
            out = [bytes(size) for size in out_sizes]
            memory = [bytearray(guard + bytes(size) + guard) for size in in_sizes]
            data_in = [memoryview(piece)[16 : 16 + size] for piece, size in zip(memory, in_sizes, strict=True)]
            disk.target.may_block(0, cdb)
            before = disk.device.refusals.last_seq
            result = disk.target.execute(0, cdb, out, data_in)
            assert result.status in (ScsiStatus.GOOD, ScsiStatus.CHECK_CONDITION)
            refused = (result.status or result.overrun) and (not cdb or cdb[0] not in ENQUIRIES)
            assert (disk.device.refusals.last_seq > before) == bool(refused)
            assert (result.status == ScsiStatus.CHECK_CONDITION) == bool(result.sense)
            assert len(result.sense) in (0, 8, 16, 18)
            assert 0 <= result.residual <= sum(out_sizes) + sum(in_sizes)
            assert all(piece.startswith(guard) and piece.endswith(guard) for piece in memory)
        # Whatever was sent, the zones still cover the disk and the open limit holds.
        zones = disk.report()
        assert sum(zone.length for zone in zones) == geometry.size // geometry.block_sectors
        nr_open = sum(zone.cond in (2, 3) for zone in zones)
        assert not geometry.max_open_zones or nr_open <= geometry.max_open_zones
