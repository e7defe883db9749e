"""Golden lines. Where a line stands in a tool's own source or documentation, the zone is built to match."""

import json
from collections.abc import Iterator

import pytest

from zonefs_emu.cli.formats import FORMATS, ReportContext
from zonefs_emu.model.zone import Attribute, Condition, Zone, ZoneType

C = Condition
SIZE = 0x20000
CAPACITY = 0x1F800


def swr(zone_no: int, cond: Condition, nr_written: int) -> Zone:
    start = zone_no * SIZE
    return Zone(zone_no, start, SIZE, CAPACITY, start + nr_written, cond, ZoneType.SWR)


CNV = Zone(0, 0, SIZE, SIZE, 0, C.NOT_WP, ZoneType.CONVENTIONAL)
ZONES = [
    CNV,
    swr(1, C.EMPTY, 0),
    swr(2, C.IMP_OPEN, 0x10),
    swr(3, C.EXP_OPEN, 0),
    swr(4, C.CLOSED, 0x18),
    swr(5, C.FULL, CAPACITY),
    swr(6, C.READONLY, 0x20),
    swr(7, C.OFFLINE, 0x20),
]


def lines(name: str, zones: list[Zone], block_size_bytes: int = 4096) -> list[str]:
    text = "".join(FORMATS[name](zones, ReportContext(nr_zones=len(zones), block_size_bytes=block_size_bytes)))
    assert text.endswith("\n")
    return text[:-1].split("\n")


def test_blkzone_of_util_linux_2_38() -> None:
    seq = "non-seq:0, zcond:{:>2}({}) [type: 2(SEQ_WRITE_REQUIRED)]"
    assert lines("blkzone", ZONES) == [
        (
            "  start: 0x000000000, len 0x020000, cap 0x020000, wptr 0x000000 reset:0 non-seq:0, zcond: 0(nw) "
            "[type: 1(CONVENTIONAL)]"
        ),
        "  start: 0x000020000, len 0x020000, cap 0x01f800, wptr 0x000000 reset:0 " + seq.format(1, "em"),
        "  start: 0x000040000, len 0x020000, cap 0x01f800, wptr 0x000010 reset:0 " + seq.format(2, "oi"),
        "  start: 0x000060000, len 0x020000, cap 0x01f800, wptr 0x000000 reset:0 " + seq.format(3, "oe"),
        "  start: 0x000080000, len 0x020000, cap 0x01f800, wptr 0x000018 reset:0 " + seq.format(4, "cl"),
        # Linux says start + len for FULL, all ones in blocks for READONLY and OFFLINE; blkzone subtracts in 64 bits.
        "  start: 0x0000a0000, len 0x020000, cap 0x01f800, wptr 0x020000 reset:0 " + seq.format(14, "fu"),
        "  start: 0x0000c0000, len 0x020000, cap 0x01f800, wptr 0xfffffffffff3fff8 reset:0 " + seq.format(13, "ro"),
        "  start: 0x0000e0000, len 0x020000, cap 0x01f800, wptr 0xfffffffffff1fff8 reset:0 " + seq.format(15, "of"),
    ]


def test_blkzone_agrees_with_the_line_in_its_documentation() -> None:
    zone = Zone(8, 0x100000, 0x20000, 0x1F800, 0x100000, C.EMPTY, ZoneType.SWR)
    assert lines("blkzone", [zone]) == [
        (
            "  start: 0x000100000, len 0x020000, cap 0x01f800, wptr 0x000000 reset:0 non-seq:0, zcond: 1(em) "
            "[type: 2(SEQ_WRITE_REQUIRED)]"
        )
    ]


def test_blkzone_of_util_linux_2_42_has_no_wp_where_none_is_valid() -> None:
    def wptr(line: str) -> str:
        return line.split("wptr ")[1].split(" reset:", maxsplit=1)[0]

    assert [wptr(line) for line in lines("blkzone-2.42", ZONES)] == [
        "N/A", "0x000000", "0x000010", "0x000000", "0x000018", "N/A", "N/A", "N/A",
    ]  # fmt: skip
    # The line in util-linux pull request 4034.
    full = Zone(70, 0x22F80000, 0x80000, 0x80000, 0x23000000, C.FULL, ZoneType.SWR)
    assert lines("blkzone-2.42", [full]) == [
        (
            "  start: 0x022f80000, len 0x080000, cap 0x080000, wptr N/A reset:0 non-seq:0, zcond:14(fu) "
            "[type: 2(SEQ_WRITE_REQUIRED)]"
        )
    ]


def test_zbd() -> None:
    zone_4 = Zone(4, 0x40000, 0x10000, 0x10000, 0x40000, C.EMPTY, ZoneType.SWR)
    cnv = Zone(0, 0, 0x10000, 0x10000, 0, C.NOT_WP, ZoneType.CONVENTIONAL)
    assert lines("zbd", [cnv, zone_4]) == [
        "Zone 00000: cnv, ofst 00000000000000, len 00000033554432, cap 00000033554432",
        (
            "Zone 00004: swr, ofst 00000134217728, len 00000033554432, cap 00000033554432, wp 00000134217728, em, "
            "non_seq 0, reset 0"
        ),
    ]
    tails = [line.split(", wp ")[1] for line in lines("zbd", ZONES[1:])]
    assert tails == [
        "00000067108864, em, non_seq 0, reset 0",
        "00000134225920, oi, non_seq 0, reset 0",
        "00000201326592, oe, non_seq 0, reset 0",
        "00000268447744, cl, non_seq 0, reset 0",
        "00000402653184, fu, non_seq 0, reset 0",
        "18446744073709547520, ro, non_seq 0, reset 0",
        "18446744073709547520, ol, non_seq 0, reset 0",
    ]


def test_zbd_csv() -> None:
    zone_4 = Zone(4, 0x40000, 0x10000, 0x10000, 0x40000, C.EMPTY, ZoneType.SWR)
    assert lines("zbd-csv", [zone_4, swr(5, C.FULL, CAPACITY), CNV]) == [
        "zone num, type, ofst, len, cap, wp, cond, non_seq, reset",
        "00004, 2, 00000134217728, 00000033554432, 00000033554432, 00000134217728, 0x1, 0, 0",
        "00005, 2, 00000335544320, 00000067108864, 00000066060288, 00000402653184, 0xe, 0, 0",
        "00000, 1, 00000000000000, 00000067108864, 00000067108864, 00000067108864, 0x0, 0, 0",
    ]


def test_nvme_text() -> None:
    zone = Zone(0, 0, 0x800000, 0x800000, 0x10000, C.IMP_OPEN, ZoneType.SWR)
    assert lines("nvme", [zone]) == [
        "nr_zones: 1",
        "SLBA: 0x0        WP: 0x2000     Cap: 0x100000   State: IMP_OPENED   Type: SEQWRITE_REQ   Attrs: 0x0",
    ]
    assert lines("nvme", [swr(5, C.FULL, CAPACITY)], block_size_bytes=512)[1] == (
        "SLBA: 0xa0000    WP: 0xffffffffffffffff Cap: 0x1f800    State: FULL         Type: SEQWRITE_REQ   Attrs: 0x0"
    )
    states = [line.split("State: ")[1].split(" Type")[0].strip() for line in lines("nvme", ZONES)[1:]]
    assert states == [
        "Unknown State", "EMPTY", "IMP_OPENED", "EXP_OPENED", "CLOSED", "FULL", "READONLY", "OFFLINE",
    ]  # fmt: skip


def test_nvme_json() -> None:
    zone = Zone(0, 0, 0x800000, 0x800000, 0x10000, C.IMP_OPEN, ZoneType.SWR)
    assert lines("nvme-json", [zone]) == [
        (
            '{"nr_zones":1,"zone_list":[{"slba":0,"wp":8192,"cap":1048576,"state":"IMP_OPENED","type":"SEQWRITE_REQ",'
            '"attrs":0,"attrs_info":0}]}'
        )
    ]
    report = json.loads(lines("nvme-json", ZONES)[0])
    assert [zone["wp"] for zone in report["zone_list"][4:6]] == [(4 * SIZE + 0x18) // 8, (1 << 64) - 1]


def test_our_json() -> None:
    report = json.loads("\n".join(lines("json", ZONES)))
    assert {key: report[key] for key in ("sector_bytes", "block_size_bytes", "nr_zones")} == {
        "sector_bytes": 512,
        "block_size_bytes": 4096,
        "nr_zones": 8,
    }
    assert report["zones"][2] == {
        "zone_no": 2,
        "start": 2 * SIZE,
        "size": SIZE,
        "capacity": CAPACITY,
        "wp": 2 * SIZE + 0x10,
        "written": 0x10,
        "cond": "oi",
        "type": "swr",
        "reset_recommended": False,
    }
    assert [zone["wp"] for zone in report["zones"]].count(None) == 4
    assert report["zones"][0]["written"] is None


def test_a_zone_that_wants_to_be_reset() -> None:
    zone = swr(2, C.FULL, CAPACITY)._replace(reset_recommended=True)
    assert " reset:1 non-seq:0, " in lines("blkzone", [zone])[0]
    assert lines("zbd", [zone])[0].endswith(", fu, non_seq 0, reset 1")
    assert lines("zbd-csv", [zone])[1].endswith(", 0xe, 0, 1")
    assert lines("nvme", [zone])[1].endswith(" Attrs: 0x4")
    assert json.loads(lines("nvme-json", [zone])[0])["zone_list"][0]["attrs"] == 4
    assert json.loads("\n".join(lines("json", [zone])))["zones"][0]["reset_recommended"] is True


def test_table() -> None:
    assert lines("table", [CNV, swr(2, C.IMP_OPEN, 0x10), swr(7, C.OFFLINE, 0x20)]) == [
        "   ZONE  TYPE  COND   START SECTOR       SIZE   CAPACITY    WRITTEN   FILL",
        "      0  cnv   nw                0     64 MiB     64 MiB          -      -",
        "      2  swr   oi           262144     64 MiB     63 MiB      8 KiB     0%",
        "      7  swr   ol           917504     64 MiB     63 MiB          -      -",
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_report_is_well_formed(name: str) -> None:
    text = "".join(FORMATS[name]([], ReportContext(nr_zones=0, block_size_bytes=512)))
    if "json" in name:
        assert json.loads(text)["nr_zones"] == 0
    else:
        assert text.count("\n") <= 1


@pytest.mark.parametrize("name", FORMATS)
def test_zones_are_taken_one_at_a_time(name: str) -> None:
    taken = 0

    def endless() -> Iterator[Zone]:
        nonlocal taken
        while True:
            taken += 1
            yield ZONES[2]

    report = FORMATS[name](endless(), ReportContext(nr_zones=1, block_size_bytes=512))
    for _ in range(20):
        next(report)
    assert taken <= 20


def test_a_zone_with_a_descriptor_extension() -> None:
    zone = swr(2, C.FULL, CAPACITY)._replace(attributes=Attribute.EXTENSION)
    assert lines("nvme", [zone])[1].endswith(" Attrs: 0x80")


def test_a_zone_with_a_random_write_area() -> None:
    zone = swr(2, C.EXP_OPEN, 8)._replace(attributes=Attribute.ZRWA | Attribute.EXTENSION)
    assert lines("nvme", [zone])[1].endswith(" Attrs: 0x88")
    assert lines("table", [zone])[1].endswith("  zrwa")
    assert "zrwa" not in lines("table", [swr(2, C.EXP_OPEN, 8)])[1]
