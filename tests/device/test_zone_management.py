"""Commands on zones: one, a range, all; and which zones a long one keeps other commands off."""

import threading
from pathlib import Path

import pytest

from tests.device.sectors import CLOSE, FINISH, OPEN, RESET, UUID_HERE, cond, read, write
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.machine import PORTION_ZONES
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.model.zone import Condition


def test_management_of_one_zone_a_range_and_all(port: Port) -> None:
    for operation, after in ((OPEN, "EXP_OPEN"), (FINISH, "FULL"), (RESET, "EMPTY")):
        assert port.manage(operation, 128) == Status.OK
        assert cond(port, 2).name == after
    assert port.manage(OPEN, 128, 2) == Status.OK
    assert write(port, 128, 1) == Status.OK
    assert port.manage(CLOSE, 128, 2) == Status.OK
    assert (cond(port, 2).name, cond(port, 3).name) == ("CLOSED", "EMPTY")
    assert port.manage_all(OPEN) == Status.OK
    assert cond(port, 2) == Condition.EXP_OPEN
    assert port.manage_all(FINISH) == Status.OK
    assert cond(port, 2) == Condition.FULL
    assert port.manage_all(RESET) == Status.OK
    assert cond(port, 2) == Condition.EMPTY
    assert read(port, 128, 1) == bytes(512)


@pytest.mark.parametrize("limit", [0, 1])
def test_a_long_command_that_needs_resources_holds_all_zones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Where there are limits, no other command takes the resources that were checked: it waits for the end."""
    nr_zones = 2 * PORTION_ZONES + 1
    geometry = Geometry(size=nr_zones * 8, zone_size=8, zone_capacity=8, max_open_zones=limit)
    ZonedDevice.create(tmp_path / "image", geometry, uuid=UUID_HERE)
    device = ZonedDevice.open(tmp_path / "image")
    port, other = device.port("test", VIRTIO), device.port("other", VIRTIO)
    last = 8 * (nr_zones - 1)
    threads: list[threading.Thread] = []
    answers: list[Status] = []

    def between_portions() -> None:
        thread = threading.Thread(target=lambda: answers.append(other.manage(OPEN, last)))
        threads.append(thread)
        thread.start()
        thread.join(0.1 if limit else None)
        assert len(answers) == (0 if limit else 1)

    monkeypatch.setattr(device.image, "let_others_in", between_portions)
    assert port.manage(FINISH, 0, nr_zones - 1) is Status.OK
    threads[0].join()
    assert (len(threads), answers) == (1, [Status.OK])
    assert (port.zone(0).cond, port.zone(nr_zones - 1).cond) == (Condition.FULL, Condition.EXP_OPEN)
    device.close()
