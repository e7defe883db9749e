"""``attach`` where the kernel cannot; and in the guest, which way it takes by itself."""

import json
import re
from pathlib import Path

import pytest

from tests.attaching import Place
from tests.cli.conftest import fails, ok
from zonefs_emu.ublk.control_device import CONTROL_NODE


@pytest.mark.skipif(CONTROL_NODE.exists(), reason="this kernel has ublk")
def test_a_kernel_that_cannot_says_what_would_help(fresh: Path) -> None:
    before = fresh.read_bytes()
    assert "modprobe ublk_drv" in fails("attach", fresh, "--via", "ublk")
    assert "modprobe vduse" in fails("attach", fresh, "--via", "vduse")
    assert "which NVMe does not have" in fails("attach", fresh, "--via", "nvme-tcp")
    sentence = fails("attach", fresh)
    assert "modprobe ublk_drv" in sentence
    assert "modprobe vduse" in sentence
    assert fresh.read_bytes() == before


def test_wrong_usage(fresh: Path) -> None:
    assert "name the image to attach" in fails("attach", code=2)
    assert "give its node to QEMU" in fails("attach", fresh, "--via", "ublk", "--for", "vm", code=2)
    assert "give its node to QEMU" in fails("attach", fresh, "--via", "nvme-tcp", "--for", "vm", code=2)


def test_geometry_comes_first(tmp_path: Path) -> None:
    ok_or_warned = tmp_path / "odd.img"
    from tests.cli.conftest import run_cli

    assert run_cli("create", ok_or_warned, "--size", "24M", "--zone-size", "3M").exit_code == 0
    assert "Linux wants zones of a power of two, and these have 3 MiB" in fails("attach", ok_or_warned)


def test_nothing_is_attached() -> None:
    assert ok("attach", "--list") == ""
    assert json.loads(ok("attach", "--list", "--json")) == []


@pytest.mark.qemu
@pytest.mark.timeout(1800)
def test_auto_takes_the_way_that_can(place: Place) -> None:
    place.create("f.img", "--size 30M --zone-size 4M")
    place.create("g.img", "--size 32M --zone-size 4M")
    for module in ("ublk_drv", "vduse"):
        place.guest.load(module)
    place.guest.run("modprobe -r virtio_vdpa; modprobe -r vhost_vdpa")
    assert "ublk has no way to show a last zone that is smaller" in place.refusal("attach f.img --via ublk")
    assert "load it with 'modprobe virtio_vdpa'" in place.refusal("attach f.img")
    for module in ("virtio_vdpa", "virtio_blk"):
        place.guest.load(module)
    first = place.sh("Z attach f.img").stdout.strip()
    second = place.sh("Z attach g.img").stdout.strip()
    assert first.startswith("/dev/vd")
    assert second.startswith("/dev/ublkb")
    assert re.search("f.img is held by process [0-9]+ already", place.refusal("attach f.img"))
    rows = place.sh("Z attach --list").stdout.splitlines()
    assert {(row.split()[0], row.split()[1]) for row in rows} == {(first, "vduse"), (second, "ublk")}
    place.sh("Z detach f.img; Z detach g.img")


@pytest.mark.qemu
@pytest.mark.timeout(1800)
def test_in_the_foreground_until_a_signal(place: Place) -> None:
    place.create("f.img", "--size 32M --zone-size 4M")
    place.guest.load("ublk_drv")
    place.sh(
        """(Z attach f.img --foreground 2>said; echo over >ended) &
        until Z attach --list | grep -q f.img; do sleep 0.1; done
        [ -b /dev/ublkb0 ]; Z detach f.img
        until [ -e ended ]; do sleep 0.1; done
        grep 'f.img is attached as /dev/ublkb0' said"""
    )
