import os
from pathlib import Path
from uuid import uuid4

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.check import check_image
from zonefs_emu.persist.codec.words import ZoneStates
from zonefs_emu.persist.copy import copy_image
from zonefs_emu.persist.image import Image
from zonefs_emu.persist.metadata import read_header

MIB = 2048  # sectors


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """Zones 0 and 5 conventional, a runt last zone; data in zones 0, 2 and 8."""
    path = tmp_path / "origin"
    geometry = Geometry(
        size=8 * MIB + 8, zone_size=MIB, zone_capacity=MIB, conventional=((0, 1), (5, 1)), block_size_bytes=4096
    )
    ZonedDevice.create(path, geometry, uuid=uuid4(), label="origin")
    device = ZonedDevice.open(path)
    port = device.port("test", VIRTIO)
    for sector, letter in ((MIB - 8, b"a"), (2 * MIB, b"b"), (8 * MIB, b"c")):
        assert not port.write(sector, 8, [letter * 4096])
    device.close()
    return path


def states(path: Path) -> ZoneStates:
    image = Image.open(path, readonly=True)
    image.close()
    return image.states


def copy(origin: Path, target: Path, found: ZoneStates) -> None:
    source = FileBacking.peek(origin)
    try:
        for _ in copy_image(source, read_header(source, source.length), target, found):
            pass
    finally:
        source.close()


def test_states_data_and_identity_are_copied(origin: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    copy(origin, target, states(origin))
    assert states(target) == states(origin)
    assert check_image(target) == []
    copied = ZonedDevice.open(target)
    with pytest.raises(FileExistsError):
        copy(origin, target, states(origin))
    assert (copied.uuid, copied.label) == (ZonedDevice.open(origin, readonly=True).uuid, "origin")
    data = bytearray(4096)
    port = copied.port("test", VIRTIO)
    for sector, letter in ((MIB - 8, b"a"), (2 * MIB, b"b"), (8 * MIB, b"c")):
        assert not port.read(sector, 8, [data])
        assert data == letter * 4096
    copied.close()


def test_what_lies_beyond_wp_is_left_behind(origin: Path, tmp_path: Path) -> None:
    with origin.open("r+b") as file:
        file.seek(3 << 20)
        file.write(b"never acknowledged")
    copy(origin, tmp_path / "target", states(origin))
    assert b"never acknowledged" not in (tmp_path / "target").read_bytes()


def test_holes_stay_holes(tmp_path: Path) -> None:
    path = tmp_path / "large"
    ZonedDevice.create(path, Geometry(size=1 << 28, zone_size=1 << 18, zone_capacity=1 << 18), uuid=uuid4())
    copy(path, tmp_path / "copy", states(path))
    status = (tmp_path / "copy").stat()
    assert status.st_size == path.stat().st_size
    assert status.st_blocks * 512 < 2 << 20


def test_a_failure_leaves_nothing(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    found = states(origin)
    monkeypatch.setattr("zonefs_emu.persist.backing.FileBacking.pwrite", full)
    with pytest.raises(OSError, match="No space"):
        copy(origin, tmp_path / "target", found)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o644])
def test_a_copy_is_open_to_no_more_users(permissions: int, origin: Path, tmp_path: Path) -> None:
    """Even where the umask takes nothing away, as in a daemon."""
    origin.chmod(permissions)
    target = tmp_path / "target"
    umask = os.umask(0)
    try:
        copy(origin, target, states(origin))
    finally:
        os.umask(umask)
    assert target.stat().st_mode & 0o777 == permissions
