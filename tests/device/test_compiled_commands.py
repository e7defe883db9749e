"""Which ports have compiled commands. What the commands do, tests/virtqueue and tests/ublk look at."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.requires import requires
from zonefs_emu.device.compiled_commands import compiled_commands
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.oplog import OpLog, RecordingPort
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO


@pytest.fixture
def device(tmp_path: Path) -> Iterator[ZonedDevice]:
    requires("walker")
    image = tmp_path / "image"
    ZonedDevice.create(image, Geometry(size=512, zone_size=128, zone_capacity=128), uuid=UUID(int=1))
    made = ZonedDevice.open(image)
    yield made
    made.close()


def test_a_port_has_some(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    commands = compiled_commands(port, run_sectors_max=8)
    assert commands is not None
    assert commands.port is port


def test_a_port_whose_answers_wait_has_none(device: ZonedDevice) -> None:
    device.start_timing("zn540")
    assert compiled_commands(device.port("test", VIRTIO), run_sectors_max=8) is None


def test_a_port_that_records_has_none(device: ZonedDevice, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        port = RecordingPort(device, "test", VIRTIO, log=OpLog(file, device))
        assert compiled_commands(port, run_sectors_max=8) is None


def test_an_image_that_was_let_go_has_none(device: ZonedDevice) -> None:
    device.access.let_go()
    assert compiled_commands(device.port("test", VIRTIO), run_sectors_max=8) is None
