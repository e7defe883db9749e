"""Drives from what ``lsblk -z`` prints, and what is refused of it."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from zonefs_emu.cli.lsblk_table import DiskShape, parse_lsblk
from zonefs_emu.errors import UsageError

TABLE = """\
NAME   ZONED        ZONE-SZ ZONE-NR ZONE-AMAX ZONE-OMAX ZONE-APP ZONE-WGRAN
vda    none              0B       0         0         0       0B         0B
sdb    host-managed    256M   52156         0       128     672K         4K
├─sdb1 none              0B       0         0         0       0B         0B
"""
SMR = DiskShape(
    zone_size=256 << 20, nr_zones=52156, max_open_zones=128, max_active_zones=0, max_append=672 << 10,
    write_granularity=4096,
)  # fmt: skip


def test_the_host_managed_disk_is_taken() -> None:
    assert parse_lsblk(TABLE, "t") == SMR
    assert parse_lsblk("it looks so:\n" + TABLE + "\nand fails\n", "t") == SMR
    in_bytes = TABLE.replace("256M", str(256 << 20)).replace("672K", str(672 << 10)).replace("4K", "4096")
    assert parse_lsblk(in_bytes, "t") == SMR


def test_json_is_the_same() -> None:
    disks = [
        {"name": "vda", "zoned": "none", "zone-sz": "0B", "zone-nr": 0},
        {
            "name": "sdb", "zoned": "host-managed", "zone-sz": "256M", "zone-nr": 52156, "zone-amax": 0,
            "zone-omax": 128, "zone-app": "672K", "zone-wgran": 4096,
        },
    ]  # fmt: skip
    assert parse_lsblk(json.dumps({"blockdevices": disks}), "t") == SMR


def test_columns_that_are_not_there_are_left_open() -> None:
    found = parse_lsblk("NAME ZONED ZONE-SZ ZONE-NR\nnvme0n1 host-managed 2G 904\n", "t")
    assert found is not None
    assert (found.nr_zones, found.zone_size) == (904, 2 << 30)
    assert (found.max_open_zones, found.max_active_zones, found.max_append, found.write_granularity) == (None,) * 4


@pytest.mark.parametrize("text", ["", "start: 0x0\n", "{}", "[1", '{"zone_list": []}', "NAME SIZE\nsda 1T\n"])
def test_other_text_is_none(text: str) -> None:
    assert parse_lsblk(text, "t") is None


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("256M", "1.1G", "line 3 of t has the size 1.1G, which is rounded or not a size: use lsblk -z -b"),
        ("672K         4K", "672K", "line 3 of t has 7 of 8 columns: the output was cut"),
        ("host-managed", "host-aware", "t lists no host-managed disk"),
        ("vda    none  ", "vda    host-managed ", "line 2 and line 3 of t are both host-managed disks"),
        ("52156", "many", "line 3 of t has many where a number belongs"),
    ],
)
def test_what_is_ambiguous_or_cut_is_refused_with_its_line(old: str, new: str, sentence: str) -> None:
    assert TABLE.count(old) == 1
    with pytest.raises(UsageError) as refused:
        parse_lsblk(TABLE.replace(old, new), "t")
    assert sentence in str(refused.value)


def test_an_old_lsblk_is_named() -> None:
    with pytest.raises(UsageError, match=r"line 2 of t lacks the columns ZONE-SZ, ZONE-NR"):
        parse_lsblk("NAME ZONED\nsda host-managed\n", "t")


def test_an_image_of_that_shape(tmp_path: Path) -> None:
    report, image = tmp_path / "lsblk.txt", tmp_path / "smr.img"
    report.write_text(TABLE)
    assert "lsblk does not show single zones" in fails("create", image, "--like", report, "--with-state", code=2)
    assert run_cli("create", image, "--like", report, "--nr-conv", 524).exit_code == 0
    info = json.loads(ok("info", image, "--json"))
    assert (info["nr_zones"], info["zone_size"], info["max_open_zones"]) == (52156, 256 << 11, 128)
    assert (info["conventional"], info["block_size_bytes"]) == ([[0, 524]], 4096)


def test_a_report_of_zones_beside_it_says_more(fresh: Path, tmp_path: Path) -> None:
    report, image = tmp_path / "bug.txt", tmp_path / "same.img"
    report.write_text(TABLE + "\n" + ok("report", fresh, "--format", "blkzone"))
    assert run_cli("create", image, "--like", report, "--with-state").exit_code == 0
    assert json.loads(ok("info", image, "--json"))["nr_zones"] == 8


def test_numbers_that_no_image_can_have(tmp_path: Path) -> None:
    report = tmp_path / "lsblk.txt"
    report.write_text(TABLE.replace("52156", "0"))
    assert "has 0 zones" in fails("create", tmp_path / "x.img", "--like", report, code=2)
    digits = 5000 * "9"
    start = f"start: 0x000000000, len 0x{5000 * 'f'}, wptr 0x000000 reset:0 non-seq:0, "
    for text in (
        TABLE.replace("52156", digits),
        f'{{"blockdevices": [{{"zoned": {digits}}}]}}',
        f"{start}zcond: 1(em) [type: 2(SEQ_WRITE_REQUIRED)]",
    ):
        report.write_text(text)
        assert "contains a number that no drive has" in fails("create", tmp_path / "x.img", "--like", report, code=2)
