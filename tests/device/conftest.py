"""A device of eight zones, and a port on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.device.sectors import MIXED, UUID_HERE, Maker
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO


@pytest.fixture
def make_device(tmp_path: Path) -> Iterator[Maker]:
    """Create and open a device; opened again under the same name it is the same image."""
    devices: list[ZonedDevice] = []

    def make(geometry: Geometry = MIXED, name: str = "a.img", **how: Any) -> ZonedDevice:
        path = tmp_path / name
        if not path.exists():
            ZonedDevice.create(path, geometry, uuid=UUID_HERE, label="test")
        devices.append(ZonedDevice.open(path, **how))
        return devices[-1]

    yield make
    for device in devices:
        device.image.poison = device.image.poison or "the test is over"
        device.close()


@pytest.fixture
def device(make_device: Maker) -> ZonedDevice:
    return make_device()


@pytest.fixture
def port(device: ZonedDevice) -> Port:
    return device.port("test", VIRTIO)
