import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from zonefs_emu.cli.create import parse_ranges
from zonefs_emu.errors import UsageError


def test_ranges() -> None:
    assert parse_ranges("0-3,60, 62-63") == ((0, 4), (60, 1), (62, 2))
    assert parse_ranges("4,5,6") == ((4, 3),)
    for text in ("", "a", "3-1", "1-", "-1", "1,,2", "9999999999"):
        with pytest.raises(UsageError, match="is not a range of zones: write numbers and ranges, as in"):
            parse_ranges(text)


def test_options_override_parts_of_a_preset(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    ok(
        "create",
        image,
        "--preset",
        "small",
        "--size",
        "256M",
        "--nr-conv",
        "0",
        "--max-open-zones",
        "3",
        "--label",
        "x",
    )
    info = json.loads(ok("info", image, "--json"))
    assert (info["nr_zones"], info["nr_conventional"], info["max_open_zones"], info["max_active_zones"]) == (
        16,
        0,
        3,
        12,
    )
    assert (info["label"], info["block_size_bytes"], info["zone_size"]) == ("x", 4096, 32768)


def test_a_preset_with_other_zones_has_no_leftover_capacity(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    ok("create", image, "--preset", "zn540", "--zone-size", "64M", "--size", "1G")
    info = json.loads(ok("info", image, "--json"))
    assert info["zone_size"] == info["zone_capacity"] == 131072


def test_every_option_arrives(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    result = run_cli(
        "create", image, "--size", "65M", "--zone-size", "4M", "--zone-capacity", "3M", "--conv", "0-1,5",
        "--block-size", "512", "--max-open-zones", "2", "--max-active-zones", "3", "--max-append", "64K", "--json",
    )  # fmt: skip
    assert result.exit_code == 0
    created = json.loads(result.stdout)
    assert created["nr_zones"] == 17
    assert [line.removeprefix("warning: ") for line in result.stderr.splitlines()] == created["warnings"]
    info = json.loads(ok("info", image, "--json"))
    assert info["conventional"] == [[0, 2], [5, 1]]
    assert (info["block_size_bytes"], info["max_append"], info["zone_capacity"]) == (512, 128, 6144)


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    image = tmp_path / "precious"
    image.write_text("data")
    assert "exists, and create never overwrites" in fails("create", image, "--preset", "small")
    assert image.read_text() == "data"


def test_geometry_that_linux_refuses_is_created_with_a_warning(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    result = run_cli("create", image, "--size", "60M", "--zone-size", "3M")
    assert result.exit_code == 0
    assert "warning: zone size 3 MiB is not a power of two: Linux will refuse" in result.stderr
    assert ok("report", image, "-c", "1")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "the size of the device is missing: give --size 1G, or --preset small or small-zns or zn540 or smr-hm"),
        (["--size", "0"], "more than nothing"),
        (["--size", "1000"], "not whole 512-byte sectors"),
        (["--size", "64MB"], "write MiB for 1024"),
        (["--size", "1G", "--block-size", "1024"], "block size 1024 must be 512 or 4096"),
        (["--size", "1G", "--zone-size", "4M", "--zone-capacity", "8M"], "exceeds the zone size"),
        (["--size", "1G", "--nr-conv", "2", "--conv", "0-1"], "exclude each other"),
        (["--size", "1G", "--nr-conv", "1000"], "do not exist"),
        (["--size", "1G", "--max-open-zones", "5", "--max-active-zones", "4"], "exceeds max_active_zones"),
        (["--size", "1G", "--max-append", "0"], "max_append must be more than nothing"),
        (["--size", "1G", "--max-open-zones", "-1"], "--max-open-zones"),
        (["--preset", "huge"], "'huge' is not one of 'small', 'small-zns', 'zn540', 'smr-hm'"),
        (["--size", "1G", "--label", "x" * 1000], "label"),
        (["--size", "1G", "--zone-size", "1s"], "multiple of 4096"),
        (["--size", "7E", "--zone-size", "64K"], "zones are more than"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_no_file(options: list[str], sentence: str, tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    assert sentence in fails("create", image, *options, code=2)
    assert not image.exists()


def test_a_host_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    assert "No such file or directory" in fails("create", tmp_path / "no" / "a.img", "--preset", "small")


def test_a_full_host_is_one_sentence_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    image = tmp_path / "a.img"
    assert (
        fails("create", image, "--preset", "small")
        == f"zonefs-emu: cannot reserve room for {image}: No space left on device"
    )
    assert not image.exists()


def test_zones_with_descriptor_extensions(tmp_path: Path) -> None:
    ok("create", tmp_path / "a.img", "--size", "64M", "--zone-extension", "128")
    assert json.loads(ok("info", tmp_path / "a.img", "--json"))["extension_bytes"] == 128
    assert "zone extensions:    128 B each" in ok("info", tmp_path / "a.img")
    refused = ("create", tmp_path / "b.img", "--size", "64M", "--zone-extension", "100")
    assert "must be a multiple of 64" in fails(*refused, code=2)


def test_zones_with_random_write_areas(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    ok("create", image, "--size", "64M", "--zrwa", "64K", "--zrwa-granularity", "16K", "--max-zrwa", "4")
    info = json.loads(ok("info", image, "--json"))
    assert (info["zrwa_size"], info["zrwa_granularity"], info["max_zrwa"]) == (128, 32, 4)
    assert "random write area:  64 KiB in steps of 16 KiB, at most 4 zones" in ok("info", image)
    ok("create", tmp_path / "b.img", "--size", "64M", "--zrwa", "64K")
    assert "random write area:  64 KiB in steps of 4 KiB\n" in ok("info", tmp_path / "b.img")
    refused = ("create", tmp_path / "c.img", "--size", "64M", "--zrwa", "64K", "--zrwa-granularity", "24K")
    assert "must be a multiple of its granularity" in fails(*refused, code=2)
    assert "need a size: --zrwa" in fails("create", tmp_path / "c.img", "--size", "64M", "--max-zrwa", "3", code=2)
