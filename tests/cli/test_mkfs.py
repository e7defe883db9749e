import json
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from tests.requires import requires, which

#: A partition table with one partition of 32 sectors from sector 8.
MBR = (bytes(446) + struct.pack("<B3xB3xII", 0, 0x83, 8, 32) + bytes(48) + b"\x55\xaa").ljust(4096, b"\0")
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def test_output_is_mkzonefs_own(image: Path) -> None:
    assert re.fullmatch(
        f"""{re.escape(str(image))}: 16384 512-byte sectors \\(0 GiB\\)
  Host-managed device
  8 zones of 2048 512-byte sectors \\(1 MiB\\)
  2 conventional zones, 6 sequential zones
  0 read-only zones, 0 offline zones
Format:
  7 usable zones
  Aggregate conventional zones: disabled
  File UID: 0
  File GID: 0
  File access permissions: 640
  FS UUID: {UUID}
Resetting sequential zones
Writing super block
""",
        ok("mkfs", image),
    )


def test_every_option_is_shown(image: Path) -> None:
    ok("mkfs", image)
    out = ok("mkfs", image, "-f", "-L", "scratch", "-o", "aggr_cnv,uid=1000", "-o", "gid=100,perm=0444")
    assert "  Aggregate conventional zones: enabled\n  File UID: 1000\n  File GID: 100\n" in out
    assert "  File access permissions: 444\n  FS label: scratch\n  FS UUID: " in out


def test_verbose_lists_the_zones_first(image: Path) -> None:
    ok("write", image, "--zone", 2, stdin=bytes(4096))
    ok("set-cond", image, "--zone", 3, "readonly")
    ok("set-cond", image, "--zone", 4, "offline")
    lines = ok("mkfs", image, "-v").splitlines()
    swr = "type 0x2 (Sequential-write-required)"
    assert lines[:6] == [
        "Zone 00000: Conventional, sector 0, 2048 sectors",
        "Zone 00001: Conventional, sector 2048, 2048 sectors",
        f"Zone 00002: {swr}, cond 0x2 (Implicit-open), sector 4096, 2048 sectors, wp sector 4104",
        "Zone 00003: readonly Sequential-write-required zone",
        "Zone 00004: offline Sequential-write-required zone",
        f"Zone 00005: {swr}, cond 0x1 (Empty), sector 10240, 2048 sectors, wp sector 10240",
    ]
    assert lines[8].endswith("16384 512-byte sectors (0 GiB)")
    assert "  1 read-only zones, 1 offline zones" in lines
    assert "  6 usable zones" in lines


def test_sequential_zones_are_reset_and_a_sequential_zone_0_is_finished(tmp_path: Path) -> None:
    image = tmp_path / "b.img"
    ok("create", image, "--size", "8M", "--zone-size", "1M")
    ok("write", image, "--zone", 3, stdin=bytes(8192))
    ok("mkfs", image)
    conds = [zone["cond"] for zone in json.loads(ok("report", image, "--json"))["zones"]]
    assert conds == ["fu", *["em"] * 7]


def test_an_existing_file_system_is_kept_without_force(image: Path) -> None:
    ok("mkfs", image)
    ok("write", image, "--zone", 2, stdin=b"x" * 4096)
    assert fails("mkfs", image) == (
        f"zonefs-emu: {image} appears to contain an existing filesystem (zonefs): use the option '-f' to overwrite"
    )
    assert run_cli("read", image, "--zone", 2).stdout_bytes == b"x" * 4096


def test_whatever_blkid_knows_is_kept_without_force(image: Path) -> None:
    ok("write", image, "--zone", 0, stdin=MBR)
    assert f"{image} appears to contain a partition table (dos): use the option '-f'" in fails("mkfs", image)
    ok("mkfs", image, "-f")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["-o", "aggr_cnvX"], "unknown feature aggr_cnvX"),
        (["-o", "uid=me"], "feature uid needs a decimal number, not 'me'"),
        (["-o", "perm=999"], "feature perm needs an octal number"),
        (["-L", "x" * 65], "label of 65 bytes is longer than 64"),
        (["--bogus"], "No such option '--bogus'"),
        (["-o"], "Option '-o' requires an argument"),
    ],
)
def test_every_failure_is_1(options: list[str], sentence: str, image: Path) -> None:
    before = ok("report", image, "--json"), image.read_bytes()[:4096]
    assert sentence in fails("mkfs", image, *options)
    assert (ok("report", image, "--json"), image.read_bytes()[:4096]) == before


def test_nothing_usable(image: Path) -> None:
    for zone_no in range(1, 8):
        ok("set-cond", image, "--zone", zone_no, "offline")
    assert "no usable zones" in fails("mkfs", image)


def test_blkid_finds_it(fresh: Path) -> None:
    requires("blkid")
    ok("mkfs", fresh, "-L", "scratch")
    blkid = which("blkid")
    assert blkid is not None
    done = subprocess.run([blkid, "-p", str(fresh)], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert 'LABEL="scratch"' in done.stdout
    assert 'TYPE="zonefs"' in done.stdout
