import struct

import pytest
from hypothesis import given, strategies as st

from tests.scsi.disks import GAP_IN_RUNT, GAPS, GAPS_4K, MIXED, MIXED_4K, RUNT, ZONE, Initiator, from_hex, new_initiator
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition
from zonefs_emu.scsi.report_zones import NO_WRITE_POINTER, OPTIONS, ZoneReporter


def header(data: bytes) -> tuple[int, int, int, int]:
    """(zones by the list length, SAME, maximum LBA, granularity)."""
    length, same, maximum, granularity = struct.unpack_from(">IB3xQQ", data)
    assert data[24:64] == bytes(40)
    return length // 64, same, maximum, granularity


def reporter(initiator: Initiator) -> ZoneReporter:
    return ZoneReporter(initiator.port, initiator.device.geometry)


def whole(source: ZoneReporter, sector: int, option: int, max_descriptors: int, *, partial: bool) -> bytes:
    """Return a report in one piece."""
    parts: list[bytes] = []
    return source.report(sector, option, max_descriptors, parts.append, partial=partial) + b"".join(parts)


def test_golden_report() -> None:
    with new_initiator(GAPS) as disk:
        assert disk.write(ZONE, 3).code is None
        found = whole(reporter(disk), 0, 0x00, 4, partial=False)
    assert found == from_hex("""
        00 00 02 00               #  0 zone list length: 8 zones, though 4 follow
        00 00 00 00               #  4 SAME: types and lengths may differ
        00 00 00 00 00 00 21 ff   #  8 maximum LBA
        00 00 00 00 00 00 08 00   # 16 zones start at multiples of 2048 blocks
    """) + bytes(40) + from_hex("""
        01                        #  0 conventional
        00                        #  1 NOT WRITE POINTER
        00 00 00 00 00 00         #  2 reserved
        00 00 00 00 00 00 08 00   #  8 zone length
        00 00 00 00 00 00 00 00   # 16 zone start
        ff ff ff ff ff ff ff ff   # 24 no write pointer
    """) + bytes(32) + from_hex("""
        02                        #  0 sequential write required
        20                        #  1 IMPLICITLY OPENED
        00 00 00 00 00 00         #  2 reserved
        00 00 00 00 00 00 06 00   #  8 zone length: the capacity
        00 00 00 00 00 00 08 00   # 16 zone start
        00 00 00 00 00 00 08 03   # 24 write pointer: 3 blocks written
    """) + bytes(32) + from_hex("""
        05                        #  0 gap zone
        00                        #  1 NOT WRITE POINTER
        00 00 00 00 00 00         #  2 reserved
        00 00 00 00 00 00 02 00   #  8 zone length: size minus capacity
        00 00 00 00 00 00 0e 00   # 16 zone start
        ff ff ff ff ff ff ff ff   # 24 no write pointer
    """) + bytes(32) + from_hex("""
        02                        #  0 sequential write required
        10                        #  1 EMPTY
        00 00 00 00 00 00         #  2 reserved
        00 00 00 00 00 00 06 00   #  8 zone length
        00 00 00 00 00 00 10 00   # 16 zone start
        00 00 00 00 00 00 10 00   # 24 write pointer: zone start
    """) + bytes(32)


@pytest.mark.parametrize("geometry", [MIXED, MIXED_4K, GAPS, GAPS_4K, GAP_IN_RUNT, RUNT])
def test_zones_cover_every_block_once(geometry: Geometry) -> None:
    with new_initiator(geometry) as disk:
        zones = disk.report()
        expected = 0
        for zone in zones:
            assert zone.start == expected
            assert zone.length > 0
            expected += zone.length
        assert expected == geometry.size // geometry.block_sectors
        without_gaps = disk.report(option=0x3E)
        assert without_gaps == [zone for zone in zones if zone.type != 5]
        assert len(without_gaps) == geometry.nr_zones


def every_condition(disk: Initiator) -> dict[int, int]:
    """Put zones 2 to 7 into all conditions; return the start of a zone by condition."""
    zone = ZONE * 512 // disk.block_bytes
    assert disk.write(3 * zone, 1).code is None
    assert disk.open(4 * zone).code is None
    assert disk.write(5 * zone, 1).code is None
    assert disk.close(5 * zone).code is None
    assert disk.finish(6 * zone).code is None
    disk.port.set_cond(7, Condition.READONLY)
    disk.port.set_cond(1, Condition.OFFLINE)
    return {1: 2 * zone, 2: 3 * zone, 3: 4 * zone, 4: 5 * zone, 14: 6 * zone, 13: 7 * zone, 15: zone, 0: 0}


@pytest.mark.parametrize("geometry", [MIXED, MIXED_4K])
@pytest.mark.parametrize(
    ("option", "cond"),
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 14), (6, 13), (7, 15), (0x3F, 0), (8, -1), (0x10, -1), (0x11, -1)],
)
def test_reporting_options_list_one_condition(geometry: Geometry, option: int, cond: int) -> None:
    with new_initiator(geometry) as disk:
        starts = every_condition(disk)
        assert [(zone.start, zone.cond) for zone in disk.report(option=option)] == (
            [(starts[cond], cond)] if cond >= 0 else []
        )
        assert header(whole(reporter(disk), 0, option, 0, partial=False))[0] == (1 if cond >= 0 else 0)


def test_write_pointer_where_it_is_valid() -> None:
    with new_initiator(MIXED_4K) as disk:
        starts = every_condition(disk)
        found = {zone.cond: zone.wp for zone in disk.report()}
    assert found == {
        Condition.NOT_WP: NO_WRITE_POINTER,
        Condition.EMPTY: starts[1],
        Condition.IMP_OPEN: starts[2] + 1,
        Condition.EXP_OPEN: starts[3],
        Condition.CLOSED: starts[4] + 1,
        Condition.READONLY: NO_WRITE_POINTER,
        Condition.FULL: NO_WRITE_POINTER,
        Condition.OFFLINE: NO_WRITE_POINTER,
    }


def test_not_write_pointer_lists_gap_zones_too() -> None:
    with new_initiator(GAPS) as disk:
        found = [(zone.type, zone.start) for zone in disk.report(option=0x3F)]
    assert found == [(1, 0), (5, ZONE + 1536), (5, 2 * ZONE + 1536), (5, 3 * ZONE + 1536)]


@pytest.mark.parametrize(
    ("lba", "first"),
    [(0, 0), (ZONE - 1, 0), (ZONE + 1535, ZONE), (ZONE + 1536, ZONE + 1536), (2 * ZONE - 1, ZONE + 1536)],
)
def test_report_starts_at_the_zone_that_holds_the_block(lba: int, first: int) -> None:
    with new_initiator(GAPS) as disk:
        everything = disk.report()
        assert disk.report(lba) == [zone for zone in everything if zone.start >= first]


def test_filter_from_a_gap_does_not_lose_the_next_zone() -> None:
    with new_initiator(GAPS) as disk:
        disk.finish(ZONE)
        assert [zone.start for zone in disk.report(ZONE + 1536, option=1)] == [2 * ZONE, 3 * ZONE, 4 * ZONE]
        assert [zone.start for zone in disk.report(ZONE + 1536, option=5)] == []
        assert [zone.start for zone in disk.report(ZONE + 1535, option=5)] == [ZONE]


ONE_TYPE = Geometry(size=4 * ZONE, zone_size=ZONE, zone_capacity=ZONE)


@pytest.mark.parametrize(
    ("geometry", "sector", "same"),
    [
        (ONE_TYPE, 0, 1),
        (RUNT, 0, 2),
        (RUNT, 3 * ZONE, 1),
        (MIXED, 0, 3),
        (MIXED, 2 * ZONE, 1),
        (Geometry(size=3 * ZONE + 8, zone_size=ZONE, zone_capacity=ZONE, conventional=((1, 1),)), 0, 0),
        (Geometry(size=3 * ZONE + 8, zone_size=ZONE, zone_capacity=ZONE, conventional=((1, 1),)), 2 * ZONE, 2),
        (GAPS, 0, 0),
    ],
)
def test_same_field(geometry: Geometry, sector: int, same: int) -> None:
    with new_initiator(geometry) as disk:
        assert header(whole(reporter(disk), sector, 0, 1, partial=True))[1] == same
        assert header(whole(reporter(disk), sector, 1, 1, partial=True))[1] == 0


SHARED_GEOMETRIES = (MIXED, MIXED_4K, GAPS, GAPS_4K, GAP_IN_RUNT, RUNT)


@given(
    geometry=st.sampled_from(SHARED_GEOMETRIES),
    permille=st.integers(0, 999),
    option=st.sampled_from(sorted(OPTIONS)),
    nr_descriptors=st.integers(0, 20),
    finished=st.sets(st.integers(0, 7)),
)
def test_list_length_counts_all_or_what_is_returned(
    geometry: Geometry, permille: int, option: int, nr_descriptors: int, finished: set[int]
) -> None:
    with new_initiator(geometry) as disk:
        for zone_no in finished:
            disk.finish(zone_no * ZONE // geometry.block_sectors)
        sector = geometry.size * permille // 1000
        source = reporter(disk)
        everything = whole(source, sector, option, 1000, partial=False)
        nr_all = (len(everything) - 64) // 64
        assert header(everything)[0] == nr_all
        full = whole(source, sector, option, nr_descriptors, partial=False)
        part = whole(source, sector, option, nr_descriptors, partial=True)
        assert header(full)[0] == nr_all
        assert header(part)[0] == min(nr_all, nr_descriptors)
        assert full[64:] == part[64:] == everything[64 : 64 + 64 * nr_descriptors]
