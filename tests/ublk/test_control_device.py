"""The control device: what is said where the kernel has none; with one, in the guest (test_server.py)."""

import errno
from pathlib import Path
from uuid import UUID

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.ublk import ublk_device
from zonefs_emu.ublk.control_device import CONTROL_NODE, control_device
from zonefs_emu.ublk.ublk_device import UblkDevice, refusals_of

ZONE = 128


def test_geometries_that_ublk_cannot_show() -> None:
    runt = Geometry(size=8 * ZONE - 64, zone_size=ZONE, zone_capacity=ZONE)
    assert refusals_of(runt) == [
        "ublk has no way to show a last zone that is smaller than the others, and this one has 32 KiB"
    ]
    coarse = Geometry(size=8 * ZONE, zone_size=ZONE, zone_capacity=ZONE, write_granularity=16)
    assert refusals_of(coarse) == [
        "Linux wants logical blocks of at most 4096 bytes, and the write granularity is 8192"
    ]
    assert refusals_of(Geometry(size=8 * ZONE, zone_size=ZONE, zone_capacity=100)) == []


@pytest.mark.skipif(CONTROL_NODE.exists(), reason="this kernel has ublk")
def test_a_kernel_without_ublk_says_what_would_help(tmp_path: Path) -> None:
    path = tmp_path / "image"
    ZonedDevice.create(path, Geometry(size=8 * ZONE, zone_size=ZONE, zone_capacity=ZONE), uuid=UUID(int=1))
    device = ZonedDevice.open(path)
    with pytest.raises(UsageError, match="load the module with 'modprobe ublk_drv'"):
        UblkDevice(device, records=tmp_path / "records")
    with pytest.raises(UsageError, match="1 to 16 queues"):
        UblkDevice(device, records=tmp_path / "records", nr_queues=17)
    assert not (tmp_path / "records").exists()
    device.close()
    assert ublk_device.left_behind(str(UUID(int=1))) == []


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ("missing", "does not exist: load the module with 'modprobe ublk_drv'"),
        ("file", "the kernel refuses io_uring commands to .*Linux 6.6 or later helps"),
        ("directory", "cannot be opened: Is a directory"),
    ],
)
def test_what_is_no_control_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str, sentence: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    monkeypatch.setattr("zonefs_emu.ublk.control_device.CONTROL_NODE", tmp_path / node)
    before = descriptors()
    with pytest.raises(UsageError, match=sentence) as caught, control_device():
        pass
    assert caught.value.exit_code == 1
    assert descriptors() <= before, "fewer may be open, because objects of earlier tests are collected at any time"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_without_permission(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, "no")

    monkeypatch.setattr("zonefs_emu.ublk.control_device.os.open", refuse)
    with pytest.raises(UsageError, match="may not be opened by this user: attach as root"), control_device():
        pass
