"""All zones at once: power cycles."""

from pathlib import Path

import pytest

from tests.device.sectors import OPEN, cond, write
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.device.powercut import PowerCutLab
from zonefs_emu.errors import NoSpaceError, Status
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.model.zone import Condition


def test_power_cycle(device: ZonedDevice, port: Port) -> None:
    notified: list[tuple[int, int]] = []
    device.subscribe(lambda first, count: notified.append((first, count)), port=port)
    write(port, 128, 4)
    port.manage(OPEN, 192)
    device.power_cycle()
    assert (cond(port, 2).name, cond(port, 3).name) == ("CLOSED", "EMPTY")
    assert (device.nr_open, device.nr_active) == (0, 1)
    assert notified == [(0, 8)]
    assert device.statistics()["power_cycles"] == 1
    assert write(port, 192, 4) == Status.OK


def test_a_power_cycle_that_a_full_host_refuses_changes_nothing(
    device: ZonedDevice, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(port, 128, 4)

    def full() -> None:
        raise NoSpaceError

    monkeypatch.setattr(device.image, "flush", full)
    with pytest.raises(NoSpaceError):
        device.power_cycle()
    assert cond(port, 2) is Condition.IMP_OPEN
    assert device.statistics()["power_cycles"] == 0


def test_a_power_cycle_lasts(device: ZonedDevice, port: Port, tmp_path: Path) -> None:
    """A copy of the file without its live state is what a power cut leaves."""
    write(port, 128, 4)
    lab = PowerCutLab(device)
    device.power_cycle()
    lab.write(next(iter(lab.history().every())), tmp_path / "after.img")
    after = ZonedDevice.open(tmp_path / "after.img")
    assert after.port("after", VIRTIO).zone(2).cond is Condition.CLOSED
    after.close()
