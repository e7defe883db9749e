"""READ, WRITE, VERIFY and zones, through whole commands on real images."""

import struct

import pytest

from tests.refused import last_refusal
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
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition
from zonefs_emu.scsi.result import GOOD, ScsiStatus
from zonefs_emu.scsi.rules import ScsiRule

LBA_OUT_OF_RANGE = (0x5, 0x21, 0x00)
UNALIGNED_WRITE = (0x5, 0x21, 0x04)
WRITE_BOUNDARY = (0x5, 0x21, 0x05)
READ_BOUNDARY = (0x5, 0x21, 0x07)
GAP = (0x5, 0x21, 0x09)
INVALID_OPCODE = (0x5, 0x20, 0x00)
INVALID_FIELD = (0x5, 0x24, 0x00)
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
            assert last_refusal(disk.port).rule == ScsiRule.SCSI_TRANSFER_LENGTH
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
        assert last_refusal(disk.port).rule == ScsiRule.SCSI_READ_TYPES
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
                assert last_refusal(disk.port).rule == ScsiRule.SCSI_GAP
                assert "gap zone" in EXPLAINER.explain(last_refusal(disk.port), disk.device.geometry)
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
                assert last_refusal(disk.port).rule == ScsiRule.SCSI_GAP
            # No zone starts there, not even a gap zone.
            assert disk.zone_command(action, gap + 1).code == INVALID_FIELD
            assert last_refusal(disk.port).rule == DeviceRule.NOT_ZONE_START
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
        with disk.port.refusals.collect() as refused:
            assert disk.write(0, 1).code == WRITE_PROTECTED
        assert refused[-1].rule == ScsiRule.SCSI_WRITE_PROTECTED
        for command in (disk.open, disk.close, disk.finish, disk.reset):
            assert command(2 * ZONE).code == WRITE_PROTECTED
        assert disk.send(bytes.fromhex("1a 08 3f 00 ff 00"), room=255).data[2] == 0x90
        assert disk.send(bytes.fromhex("35 00 00000000 00 0000 00")).result is GOOD


# -- VERIFY ---------------------------------------------------------------------------------------------------------


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
