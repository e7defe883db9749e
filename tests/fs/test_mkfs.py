"""Formatting, as mkzonefs does it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fs.conftest import SHAPES, UUID_1, Bench, geometry
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.errors import UsageError
from zonefs_emu.fs import mkfs
from zonefs_emu.fs.superblock import Feature, SuperBlock, decode, encode
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition


def test_0001_format_and_format_again(bench: Bench) -> None:
    bench.write_raw(3, 8192)
    assert mkfs.is_formatted(bench.raw)
    super_block = mkfs.parse_features("", uuid=UUID_1, label="again")
    mkfs.format_device(bench.raw, super_block)
    assert bench.cond(3) is Condition.EMPTY
    block = bytearray(4096)
    assert not bench.raw.read(0, 8, (block,))
    assert decode(bytes(block)) == super_block


def test_a_new_device_is_not_formatted(tmp_path: Path) -> None:
    ZonedDevice.create(tmp_path / "image", geometry(), uuid=UUID_1)
    device = ZonedDevice.open(tmp_path / "image")
    port = device.port("mkfs", VIRTIO)
    assert not mkfs.is_formatted(port)
    port.set_cond(0, Condition.OFFLINE)
    assert not mkfs.is_formatted(port)
    device.close()


@pytest.mark.parametrize("shape", SHAPES)
def test_0002_zone_0_of_every_shape(make_bench: Callable[..., Bench], shape: str) -> None:
    bench = make_bench(shape)
    conventional = SHAPES[shape].is_conventional(0)
    assert bench.cond(0) is (Condition.NOT_WP if conventional else Condition.FULL)
    block = bytearray(4096)
    assert not bench.raw.read(0, 8, (block,))
    assert bytes(block) == encode(SuperBlock(uuid=UUID_1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", SuperBlock(uuid=UUID_1)),
        ("aggr_cnv", SuperBlock(uuid=UUID_1, features=Feature.AGGR_CNV)),
        ("uid=1000", SuperBlock(uuid=UUID_1, features=Feature.UID, uid=1000)),
        ("perm=0600", SuperBlock(uuid=UUID_1, features=Feature.PERM, perm=0o600)),
        (
            "gid=5,aggr_cnv,perm=4777",
            SuperBlock(uuid=UUID_1, features=Feature.GID | Feature.AGGR_CNV | Feature.PERM, gid=5, perm=0o4777),
        ),
    ],
)
def test_0003_features(text: str, expected: SuperBlock) -> None:
    assert mkfs.parse_features(text, uuid=UUID_1) == expected


@pytest.mark.parametrize(
    "text",
    ["aggr", "aggr_cnvX", "aggr_cnv=1", "uid", "uid=", "uid=-1", "uid=0x1", "gid=a", "perm=8", "perm=77777", "mode=1"],
)
def test_0004_wrong_features_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text.split("=", maxsplit=1)[0][:4])):
        mkfs.parse_features(text, uuid=UUID_1)


def test_0005_what_is_printed(make_bench: Callable[..., Bench]) -> None:
    big = geometry(size=(5 << 21) - 4096, zone_size=1 << 18, zone_capacity=1 << 18, conventional=((0, 3),))
    bench = make_bench(big)
    bench.set_cond(2, Condition.READONLY)
    bench.set_cond(7, Condition.OFFLINE)
    bench.set_cond(8, Condition.OFFLINE)
    super_block = mkfs.parse_features("aggr_cnv,uid=7", uuid=UUID_1, label="blue")
    assert list(mkfs.report_lines(mkfs.examine(bench.raw), super_block, "disk.img")) == [
        "disk.img: 10481664 512-byte sectors (4 GiB)",
        "  Host-managed device",
        "  39 zones of 262144 512-byte sectors (128 MiB)",
        "  1 runt zone of 258048 512-byte sectors (126 MiB)",
        "  3 conventional zones, 37 sequential zones",
        "  1 read-only zones, 2 offline zones",
        "Format:",
        "  37 usable zones",
        "  Aggregate conventional zones: enabled",
        "  File UID: 7",
        "  File GID: 0",
        "  File access permissions: 640",
        "  FS label: blue",
        "  FS UUID: 01234567-89ab-cdef-0123-456789abcdef",
        "Resetting sequential zones",
        "Writing super block",
    ]


def test_lines_that_are_not_always_there(bench: Bench) -> None:
    lines = list(mkfs.report_lines(mkfs.examine(bench.raw), mkfs.parse_features("", uuid=UUID_1), "d"))
    assert not [line for line in lines if "runt" in line or "label" in line]
    assert "  Aggregate conventional zones: disabled" in lines


def test_0006_lost_zones_are_tolerated(bench: Bench) -> None:
    bench.set_cond(4, Condition.OFFLINE)
    bench.set_cond(5, Condition.READONLY)
    mkfs.examine(bench.raw)
    mkfs.format_device(bench.raw, SuperBlock(uuid=UUID_1))
    assert (bench.cond(4), bench.cond(5)) == (Condition.OFFLINE, Condition.READONLY)


@pytest.mark.parametrize(
    ("offline", "sentence"),
    [(range(1, 8), "no usable zones"), ((0,), "zone 0, which is to hold the super block, is read-only or offline")],
)
def test_0007_hopeless_devices_are_refused(bench: Bench, offline: range, sentence: str) -> None:
    for zone_no in offline:
        bench.set_cond(zone_no, Condition.OFFLINE)
    with pytest.raises(UsageError, match=sentence):
        mkfs.examine(bench.raw)


def test_a_device_with_one_zone_or_a_tiny_one_is_refused(tmp_path: Path) -> None:
    for name, shape, sentence in (
        ("one", geometry(size=128, conventional=()), "no usable zones"),
        ("tiny", geometry(size=32, zone_size=4, zone_capacity=4, conventional=(), block_size_bytes=512), "too small"),
    ):
        ZonedDevice.create(tmp_path / name, shape, uuid=UUID_1)
        device = ZonedDevice.open(tmp_path / name)
        with pytest.raises(UsageError, match=sentence):
            mkfs.examine(device.port("mkfs", VIRTIO))
        device.close()


def test_a_refusal_of_the_device_is_told(bench: Bench) -> None:
    bench.set_cond(0, Condition.READONLY)
    with pytest.raises(UsageError, match=r"write of the super block was refused \(ZONE_READONLY\)"):
        mkfs.format_device(bench.raw, SuperBlock(uuid=UUID_1))


def test_facts_count_all_zones_in_portions(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mkfs, "_REPORT_ZONES", 2)
    port: Port = bench.raw
    for zone_no in (3, 4, 5, 7):
        bench.set_cond(zone_no, Condition.READONLY if zone_no % 2 else Condition.OFFLINE)
    facts = mkfs.examine(port)
    assert (facts.nr_readonly, facts.nr_offline, facts.nr_usable) == (3, 1, 6)
    assert replace(facts, nr_offline=0).nr_usable == 7
    assert not port.manage(Operation.RESET, port.geometry.zone_start(2))
