"""The front-end without the command line; tests/cli/test_mount.py and test_umount.py are about processes."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from zonefs_emu.daemon.session import Session
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.zonefs import ZonefsFrontEnd, unmount
from zonefs_emu.fs.mkfs import format_device, parse_features
from zonefs_emu.model.transitions import VIRTIO


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "mnt"
    directory.mkdir()
    return directory


@pytest.fixture
def device(image: Path) -> Iterator[ZonedDevice]:
    device = ZonedDevice.open(image)
    format_device(device.port("test", VIRTIO), parse_features("", uuid=uuid4()))
    yield device
    device.close()


def while_mounted(front_end: ZonefsFrontEnd, device: ZonedDevice, use: Callable[[], None]) -> None:
    """Call *use* in a thread while *front_end* serves *device*; returns when the front-end has ended by itself."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(front_end, Session(device, Path("the image")))
            await trio.to_thread.run_sync(use)

    trio.run(main)


@pytest.mark.fuse
def test_a_mount_is_served_until_it_is_unmounted(device: ZonedDevice, directory: Path) -> None:
    seen = []

    def use() -> None:
        seen.extend(sorted(path.name for path in directory.iterdir()))
        with (directory / "seq" / "0").open(), pytest.raises(UsageError, match="a file in it is open"):
            unmount(directory)
        unmount(directory)

    while_mounted(ZonefsFrontEnd(directory), device, use)
    assert seen == ["seq"]
    assert list(directory.iterdir()) == []


@pytest.mark.fuse
def test_a_link_to_a_directory_is_followed(device: ZonedDevice, directory: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(directory)
    front_end = ZonefsFrontEnd(link)
    assert front_end.place == Path(os.path.realpath(directory))
    while_mounted(front_end, device, lambda: unmount(link))


def test_what_cannot_be_mounted_on(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match="file is not a directory, so nothing can be mounted on it"):
        ZonefsFrontEnd(file)
    with pytest.raises(UsageError, match=r"nothing can be mounted on .*absent: No such file"):
        ZonefsFrontEnd(tmp_path / "absent")


def test_options(directory: Path) -> None:
    assert not ZonefsFrontEnd(directory).readonly
    assert ZonefsFrontEnd(directory, "ro,errors=zone-ro").readonly
    with pytest.raises(UsageError, match="unknown"):
        ZonefsFrontEnd(directory, "errors=zone-ro,magic")


def test_only_a_zonefs_is_unmounted(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/proc"), tmp_path / "absent"):
        with pytest.raises(UsageError, match=f"no zonefs of zonefs-emu is mounted at {path}"):
            unmount(path)
