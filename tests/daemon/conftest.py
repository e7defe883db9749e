"""A runtime directory of the test's own, and a small image."""

from pathlib import Path
from uuid import uuid4

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.geometry import Geometry

MIB = 2048  # sectors


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    return directory


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """8 zones of 1 MiB, the first conventional; at most 3 open."""
    path = tmp_path / "a.img"
    geometry = Geometry(
        size=8 * MIB, zone_size=MIB, zone_capacity=MIB, conventional=((0, 1),), block_size_bytes=4096, max_open_zones=3
    )
    ZonedDevice.create(path, geometry, uuid=uuid4(), label="test")
    return path
