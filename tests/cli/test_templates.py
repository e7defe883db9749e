"""Drives made from what other tools print of them, and from damaged output, which never becomes another drive."""

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from zonefs_emu.cli.templates import read_template
from zonefs_emu.errors import UsageError
from zonefs_emu.persist.check import check_image

TOOLS = ["blkzone", "blkzone-2.42", "zbd", "zbd-csv", "nvme", "nvme-json"]


def in_all_conditions(fresh: Path) -> Path:
    ok("write", fresh, "--zone", 2, stdin=bytes(8192))
    ok("open", fresh, "--zone", 3)
    ok("write", fresh, "--zone", 4, stdin=bytes(4096))
    ok("close", fresh, "--zone", 4)
    ok("finish", fresh, "--zone", 5)
    ok("set-cond", fresh, "--zone", 6, "ro")
    ok("set-cond", fresh, "--zone", 7, "ol")
    return fresh


@pytest.fixture
def drive(fresh: Path) -> Path:
    """An image with zones in all conditions."""
    return in_all_conditions(fresh)


@pytest.fixture
def sequential(tmp_path: Path) -> Path:
    """The same without conventional zones, which NVMe drives do not have."""
    path = tmp_path / "sequential.img"
    assert run_cli("create", path, "--size", "8M", "--zone-size", "1M", "--zone-capacity", "768K").exit_code == 0
    return in_all_conditions(path)


def shape(image: Path) -> dict[str, object]:
    info = json.loads(ok("info", image, "--json"))
    names = ("size", "nr_zones", "zone_size", "zone_capacity", "conventional", "block_size_bytes")
    return {name: info[name] for name in names}


def create(image: Path, *arguments: object) -> None:
    result = run_cli("create", image, *arguments)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("tool", TOOLS)
def test_a_report_becomes_the_same_drive(tool: str, drive: Path, sequential: Path, tmp_path: Path) -> None:
    report, same = tmp_path / "report", tmp_path / "same.img"
    is_nvme = tool.startswith("nvme")
    origin = sequential if is_nvme else drive
    report.write_text(ok("report", origin, "--format", tool))
    create(same, "--like", report, "--with-state", *(["--block-size", "4096"] if is_nvme else []))
    assert shape(same) == shape(origin)
    assert ok("report", same, "--json") == ok("report", origin, "--json")
    assert check_image(same) == []


def test_without_the_state_all_zones_are_empty(drive: Path, tmp_path: Path) -> None:
    (tmp_path / "report").write_text(ok("report", drive, "--format", "blkzone"))
    create(tmp_path / "same.img", "--like", tmp_path / "report")
    conds = [zone["cond"] for zone in json.loads(ok("report", tmp_path / "same.img", "--json"))["zones"]]
    assert conds == ["nw"] * 2 + ["em"] * 6


def test_options_go_over_the_template(drive: Path, tmp_path: Path) -> None:
    (tmp_path / "report").write_text(ok("report", drive, "--format", "blkzone"))
    create(tmp_path / "b.img", "--like", tmp_path / "report", "--max-open-zones", 2, "--zone-capacity", "512K")
    info = json.loads(ok("info", tmp_path / "b.img", "--json"))
    assert (info["max_open_zones"], info["zone_capacity"], info["nr_zones"]) == (2, 1024, 8)
    changed = ("--with-state", "--zone-capacity", "512K")
    assert "cannot be changed" in fails("create", tmp_path / "c.img", "--like", tmp_path / "report", *changed, code=2)
    few = ("--with-state", "--max-open-zones", 1)
    sentence = fails("create", tmp_path / "c.img", "--like", tmp_path / "report", *few, code=2)
    assert "2 zones are open, but at most 1 may be: raise --max-open-zones" in sentence
    assert not (tmp_path / "c.img").exists()


OTHERS = {
    "blkzone 2.36, which has no cap": """$ blkzone report -v /dev/sdb
Found 3 zones from 0x0
  start: 0x000000000, len 0x000800, wptr 0x000000 reset:0 non-seq:0, zcond: 0(nw) [type: 1(CONVENTIONAL)]
  start: 0x000000800, len 0x000800, wptr 0x000010 reset:0 non-seq:0, zcond: 4(cl) [type: 2(SEQ_WRITE_REQUIRED)]
  start: 0x000001000, len 0x000800, wptr 0x000800 reset:0 non-seq:0, zcond:14(fu) [type: 2(SEQ_WRITE_REQUIRED)]
$ uname -r
""",
    "zbd -i": """Device /dev/nullb0:
    Vendor ID: Unknown
    Zone model: host-managed
    Capacity: 0.003 GB (6144 512-bytes sectors)
    Logical blocks: 768 blocks of 4096 B
    Physical blocks: 768 blocks of 4096 B
    Zones: 3 zones of 1.0 MB
    Maximum number of open zones: 7
    Maximum number of active zones: no limit
Zone 00000: cnv, ofst 00000000000000, len 00000001048576, cap 00000001048576
Zone 00001: swr, ofst 00000001048576, len 00000001048576, cap 00000001048576, wp 00000001056768, cl, non_seq 0, reset 0
Zone 00002: swr, ofst 00000002097152, len 00000001048576, cap 00000001048576, wp 00000003145728, fu, non_seq 0, reset 0
""",
    "QEMU": """qemu-io> zrp 0 3
start: 0x0, len 0x800, cap 0x800, wptr 0x800, zcond:0, [type: 1]
start: 0x800, len 0x800, cap 0x800, wptr 0x810, zcond:4, [type: 2]
start: 0x1000, len 0x800, cap 0x800, wptr 0x1800, zcond:14, [type: 2]
""",
    "libzbc": """Device /dev/sdb:
    3 zones from 0, reporting option 0x00
Zone 00000: type 0x1 (Conventional), cond 0x0 (Not-write-pointer), sector 0, 2048 sectors
Zone 00001: type 0x2 (Sequential-write-required), cond 0x4 (Closed), reset recommended 0, non_seq 0, sector 2048, \
2048 sectors, wp 2064
Zone 00002: type 0x2 (Sequential-write-required), cond 0xe (Full), reset recommended 0, non_seq 0, sector 4096, \
2048 sectors, wp 18446744073709551615
""",
    "libzbc with gap zones": """
Zone 00000: type 0x1 (Conventional), cond 0x0 (Not-write-pointer), sector 0, 2048 sectors
Zone 00001: type 0x2 (Sequential-write-required), cond 0x4 (Closed), reset recommended 0, non_seq 0, sector 2048, \
1024 sectors, wp 2064
Zone 00002: type 0x5 (Gap), cond 0x0 (Not-write-pointer), sector 3072, 1024 sectors
Zone 00003: type 0x2 (Sequential-write-required), cond 0xe (Full), reset recommended 0, non_seq 0, sector 4096, \
1024 sectors, wp 0
Zone 00004: type 0x5 (Gap), cond 0x0 (Not-write-pointer), sector 5120, 1024 sectors
""",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_other_versions_and_tools_print(name: str, tmp_path: Path) -> None:
    (tmp_path / "report").write_text(OTHERS[name])
    create(tmp_path / "a.img", "--like", tmp_path / "report", "--with-state")
    zones = json.loads(ok("report", tmp_path / "a.img", "--json"))["zones"]
    capacity = 1024 if "gap" in name else 2048
    assert [(zone["cond"], zone["wp"], zone["capacity"]) for zone in zones] == [
        ("nw", None, 2048),
        ("cl", 2048 + 16, capacity),
        ("fu", None, capacity),
    ]
    info = json.loads(ok("info", tmp_path / "a.img", "--json"))
    assert info["block_size_bytes"] == 4096
    assert (info["max_open_zones"], info["max_active_zones"]) == (7 if name == "zbd -i" else 0, 0)


NVME = (
    "nr_zones: 2\n"
    "SLBA: 0x0        WP: 0x10       Cap: 0x100      State: {open}   Type: {type}   Attrs: 0x0\n"
    "SLBA: 0x200      WP: 0xffffffffffffffff Cap: 0x100      State: {full}   Type: {type}   Attrs: 0x0\n"
)


@pytest.mark.parametrize(
    "words",
    [
        {"open": "IMP_OPENED", "full": "FULL", "type": "SEQWRITE_REQ"},
        {"open": "0x20", "full": "0xe0", "type": "0x2"},
    ],
)
def test_nvme_in_both_ways_of_printing(words: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "report").write_text(NVME.format(**words))
    create(tmp_path / "a.img", "--like", tmp_path / "report", "--with-state", "--block-size", "512")
    zones = json.loads(ok("report", tmp_path / "a.img", "--json"))["zones"]
    assert [(zone["size"], zone["capacity"], zone["cond"]) for zone in zones] == [(512, 256, "oi"), (512, 256, "fu")]
    sentence = fails("create", tmp_path / "b.img", "--like", tmp_path / "report", code=2)
    assert "counts in logical blocks, but does not contain their size: add --block-size" in sentence


ID_NS = {"nsze": 0x400, "flbas": 1, "lbafs": [{"ms": 0, "ds": 9, "rp": 0}, {"ms": 0, "ds": 12, "rp": 0}]}
ZNS_ID_NS = {"zoc": 0, "ozcs": 0, "mar": 13, "mor": 4294967295, "lbafe": [{"zsze": 0x200, "zdes": 0}]}
ZONE_LIST: list[dict[str, object]] = [
    {"slba": 0, "wp": 16, "cap": 256, "state": "CLOSED", "type": "SEQWRITE_REQ", "attrs": 0},
    {"slba": 512, "wp": 512, "cap": 256, "state": "EMPTY", "type": "SEQWRITE_REQ", "attrs": 0},
]
ZONES: dict[str, object] = {"nr_zones": 2, "zone_list": ZONE_LIST}


def like(directory: Path, *objects: object) -> list[object]:
    """Write each object into a file of its own; returns the options that name them."""
    options: list[object] = []
    for number, each in enumerate(objects):
        path = directory / f"{number}.json"
        path.write_text(each if isinstance(each, str) else json.dumps(each))
        options += ["--like", path]
    return options


def test_nvme_with_what_it_says_of_the_namespace(tmp_path: Path) -> None:
    create(tmp_path / "a.img", *like(tmp_path, ZONES, ID_NS, ZNS_ID_NS), "--with-state")
    info = json.loads(ok("info", tmp_path / "a.img", "--json"))
    assert (info["block_size_bytes"], info["zone_size"], info["zone_capacity"]) == (4096, 4096, 2048)
    assert (info["max_open_zones"], info["max_active_zones"], info["nr_active"]) == (0, 14, 1)


@pytest.mark.parametrize("order", [1, -1])
def test_nvme_with_several_formats_has_the_zone_size_of_the_one_in_use(order: int, tmp_path: Path) -> None:
    several = {**ZNS_ID_NS, "lbafe": [{"zsze": 0x1000, "zdes": 0}, {"zsze": 0x200, "zdes": 0}]}
    create(tmp_path / "a.img", *like(tmp_path, *[ZONES, ID_NS, several][::order]))
    assert json.loads(ok("info", tmp_path / "a.img", "--json"))["zone_size"] == 4096
    # Which format is in use is not known, so the zones say how long they are.
    create(tmp_path / "b.img", *like(tmp_path, ZONES, several), "--block-size", "4K")
    assert json.loads(ok("info", tmp_path / "b.img", "--json"))["zone_size"] == 4096


def test_nvme_with_capital_letters(tmp_path: Path) -> None:
    names = {"state": "State", "type": "Type"}
    listed = [{names.get(key, key): value for key, value in zone.items()} for zone in ZONE_LIST]
    create(tmp_path / "a.img", *like(tmp_path, {**ZONES, "zone_list": listed}, ID_NS), "--with-state")
    assert json.loads(ok("info", tmp_path / "a.img", "--json"))["nr_active"] == 1


@pytest.mark.parametrize(
    ("objects", "sentence"),
    [
        ([ID_NS], "has no lists of zones"),
        ([ZONES, ZONES, ID_NS], "has 2 lists of zones"),
        ([{**ZONES, "nr_zones": 3}, ID_NS], "was cut: it says 3 zones (nr_zones), but has 2"),
        ([json.dumps(ZONES)[:90]], "is not JSON from line 1 on: it was cut"),
        ([ZONES, {**ID_NS, "nsze": 0x800}], "the device has 8388608 bytes, but its zones have 4194304"),
        ([ZONES, {**ID_NS, "flbas": 7}], "a field of the output of nvme id-ns in"),
        ([ZONES, {**ID_NS, "lbafs": [{"ds": 9}, {"ds": 10**12}]}],
          "is missing or wrong: blocks of 2^1000000000000 bytes"),
        ([ZONES, {**ID_NS, "lbafs": [{"ds": 9}, {"ds": 0}]}], "is missing or wrong: blocks of 2^0 bytes"),
        ([ZONES, {**ID_NS, "nsze": [1]}], "a field of the output of nvme id-ns in"),
        ([ZONES, {**ZNS_ID_NS, "lbafe": 5}], "a field of the output of nvme id-ns in"),
        ([{"zone_list": [{"slba": 0}]}, ID_NS], "zone 0 of"),
        ([{"zone_list": [7]}, ID_NS], "a field of zone 0"),
        ([{"zone_list": [{**ZONE_LIST[0], "type": "TAPE"}]}, ID_NS], "is of an unknown type: TAPE"),
        ([{"zone_list": [{**ZONE_LIST[0], "state": "ASLEEP"}]}, ID_NS], "unknown condition: ASLEEP"),
        ([{"zone_list": ZONE_LIST[:1]}, ID_NS], "is the only zone and has no length: add --zone-size"),
        (["[1, 2]"], "is a JSON list, but nvme -o json prints an object"),
    ],
)  # fmt: skip
def test_nvme_output_that_is_no_drive(objects: list[object], sentence: str, tmp_path: Path) -> None:
    assert sentence in fails("create", tmp_path / "a.img", *like(tmp_path, *objects), code=2)
    assert not (tmp_path / "a.img").exists()


BLKZONE = OTHERS["blkzone 2.36, which has no cap"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("Found 3", "Found 4"), "line 2 says 4 zones, but there are 3, up to line 5"),
        ((BLKZONE[-80:], "14(fu"), "line 5 of"),
        (("$ blkzone", BLKZONE + "$ blkzone"), "line 6 of"),
        (("  start: 0x000000000, ", "  start: 0x000000800, "), "line 3 of"),
        (("len 0x000800, wptr 0x000010", "len 0x000400, wptr 0x000010"), "line 4 of"),
        (("wptr 0x000010", "wptr 0x001000"), "is CLOSED with 4096 of 2048 sectors written"),
        (("2(SEQ_WRITE_REQUIRED)", "3(SEQ_WRITE_PREFERRED)"), "host-aware drive, which is not emulated"),
        (("2(SEQ_WRITE_REQUIRED)", "9(SEQ_WRITE_REQUIRED)"), "a zone of an unknown type: 9"),
        (("4(cl)", "7(xx)"), "line 4 of"),
        (("zcond: 4(cl)", "zcond: 0(nw)"), "is sequential and has no condition"),
        (("$ uname -r", OTHERS["QEMU"].partition("\n")[2]), "is a zone as zrp prints it, but the others are as"),
        (("start: 0x000000800", "a line between\n  start: 0x000000800"), "line 4 of"),
        ((BLKZONE, "nothing of the kind"), "has no zone in a form that blkzone, zrp, zbd"),
    ],
)  # fmt: skip
def test_a_damaged_report_is_refused_with_its_line(change: tuple[str, str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "report").write_text(BLKZONE.replace(*change))
    assert sentence in fails("create", tmp_path / "a.img", "--like", tmp_path / "report", code=2)
    assert not (tmp_path / "a.img").exists()


@pytest.mark.parametrize("tool", TOOLS)
def test_a_report_that_was_cut_anywhere_is_never_another_drive(tool: str, sequential: Path, tmp_path: Path) -> None:
    """Cut at each character of the last zones: a whole number of zones cannot be told from a smaller drive."""
    text = ok("report", sequential, "--format", tool)
    lines = [line.strip() for line in text.splitlines()]
    report = tmp_path / "report"
    for length in range(len(text) - 300, len(text) - 4):
        report.write_text(text[:length])
        try:
            read_template([report], block_size=4096 if tool.startswith("nvme") else None)
        except UsageError:
            continue
        assert text[:length].splitlines()[-1].strip() in lines, text[:length]


@pytest.mark.parametrize(
    ("zones", "sentence"),
    [
        ([("0x0", "0x100", "2"), ("0x200", "0x180", "2")], "has a capacity of 384 sectors, and others have 256"),
        ([("0x0", "0x300", "2"), ("0x200", "0x300", "2")], "has a capacity of 768 sectors in 512"),
        ([("0x0", "0x100", "5"), ("0x200", "0x100", "2")], "is a gap zone without a zone before it"),
    ],
)
def test_zones_that_no_image_has(zones: list[tuple[str, str, str]], sentence: str, tmp_path: Path) -> None:
    line = "start: {}, len 0x200, cap {}, wptr 0x0, zcond:1, [type: {}]\n"
    (tmp_path / "report").write_text("".join(line.format(*zone) for zone in zones))
    assert sentence in fails("create", tmp_path / "a.img", "--like", tmp_path / "report", code=2)


def zloop(directory: Path, **sizes: int) -> Path:
    directory.mkdir()
    for name, size in sizes.items():
        path = directory / name.replace("_", "-")
        path.touch()
        os.truncate(path, size)
    return directory


def test_a_directory_of_zloop(tmp_path: Path) -> None:
    mib = 1 << 20
    source = zloop(tmp_path / "0", cnv_000000=mib, seq_000001=0, seq_000002=8192, seq_000003=mib)
    create(tmp_path / "a.img", "--like", source, "--with-state")
    zones = json.loads(ok("report", tmp_path / "a.img", "--json"))["zones"]
    assert [(zone["cond"], zone["wp"]) for zone in zones] == [
        ("nw", None),
        ("em", 2048),
        ("cl", 4096 + 16),
        ("fu", None),
    ]


def test_a_directory_of_zloop_that_is_not_whole(tmp_path: Path) -> None:
    gap = zloop(tmp_path / "0", cnv_000000=1 << 20, seq_000002=0)
    assert "lacks the file of zone 1" in fails("create", tmp_path / "a.img", "--like", gap)
    sequential = zloop(tmp_path / "1", seq_000000=0)
    assert "add --zone-size" in fails("create", tmp_path / "a.img", "--like", sequential, code=2)
    create(tmp_path / "b.img", "--like", sequential, "--zone-size", "1M")
    both = zloop(tmp_path / "3", cnv_000000=1 << 20, seq_000000=0)
    assert "has two files of zone 0" in fails("create", tmp_path / "a.img", "--like", both)
    empty = zloop(tmp_path / "4", cnv_000000=0)
    assert "the zones of" in fails("create", tmp_path / "a.img", "--like", empty, code=2)
    assert "no zone of zloop" in fails("create", tmp_path / "a.img", "--like", zloop(tmp_path / "2"))


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"cnv_000001": 4096}, "cnv-000001 has 4096 bytes: it must be as long as a zone (1048576 bytes)"),
        ({"seq_000001": 2 << 20}, "seq-000001 has 2097152 bytes: it must be whole sectors, and at most a zone"),
        ({"seq_000001": 4095}, "seq-000001 has 4095 bytes: it must be whole sectors"),
    ],
)
def test_files_of_zloop_that_cannot_be(tmp_path: Path, sizes: dict[str, int], sentence: str) -> None:
    source = zloop(tmp_path / "0", cnv_000000=1 << 20, **sizes)
    assert sentence in fails("create", tmp_path / "a.img", "--like", source, code=2)


def test_sources_that_are_none(tmp_path: Path, fresh: Path) -> None:
    absent = tmp_path / "absent"
    assert "No such file" in fails("create", tmp_path / "a.img", "--like", absent)
    assert "--like and --preset exclude each other" in fails(
        "create", tmp_path / "a.img", "--like", fresh, "--preset", "small", code=2
    )
    assert "which is not given" in fails("create", tmp_path / "a.img", "--size", "8M", "--with-state", code=2)
    two = ("--like", tmp_path, "--like", fresh)
    assert "must be the only --like" in fails("create", tmp_path / "a.img", *two, code=2)
    assert "has no zone in a form" in fails("create", tmp_path / "a.img", "--like", fresh, code=2)


def test_a_byte_order_mark_hides_no_zone(tmp_path: Path) -> None:
    (tmp_path / "report").write_bytes(b"\xef\xbb\xbf" + BLKZONE[BLKZONE.index("  start:") :].encode())
    create(tmp_path / "a.img", "--like", tmp_path / "report")
    assert json.loads(ok("info", tmp_path / "a.img", "--json"))["nr_zones"] == 3
