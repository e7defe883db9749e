"""A device that goes back to a snapshot: what waits, what is refused, and what a rewind that fails leaves."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.dump import dump
from zonefs_emu.device.powercut import PowerCutLab
from zonefs_emu.device.rewind import rewind
from zonefs_emu.errors import UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist.backing import Backing, FileBacking
from zonefs_emu.persist.check import check_image

SHAPE = Geometry(size=2048, zone_size=256, zone_capacity=192, conventional=((0, 1),), max_open_zones=3)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[ZonedDevice]:
    ZonedDevice.create(tmp_path / "origin", SHAPE, uuid=uuid4())
    device = ZonedDevice.open(tmp_path / "origin")
    yield device
    device.close()


def test_a_snapshot_that_others_read_can_be_gone_back_to(device: ZonedDevice, snapshot: Path) -> None:
    reading = ZonedDevice.open(snapshot, readonly=True)
    rewind(device, snapshot)
    assert reading.image.states == device.image.states
    reading.close()


@pytest.fixture
def snapshot(device: ZonedDevice, tmp_path: Path) -> Path:
    """Of a device with 8 sectors in zone 2 and 8 in zone 0, which are other ones and more now."""
    port = device.port("test", VIRTIO)
    assert not port.write(0, 8, [b"c" * 4096])
    assert not port.write(512, 8, [b"d" * 4096])
    for _ in dump(device, tmp_path / "snapshot"):
        pass
    assert not port.write(0, 16, [b"x" * 8192])
    assert not port.write(520, 8, [b"x" * 4096])
    assert not port.write(768, 8, [b"x" * 4096])
    return tmp_path / "snapshot"


def read(device: ZonedDevice, sector: int) -> bytes:
    data = bytearray(4096)
    assert not device.port("test", VIRTIO).read(sector, 8, [data])
    return bytes(data)


def test_states_and_data_are_those_of_the_snapshot_after_a_kill_too(device: ZonedDevice, snapshot: Path) -> None:
    rewind(device, snapshot)
    zones = device.port("test", VIRTIO).report(0, 8)
    assert [zone.wp - zone.start for zone in zones] == [0, 0, 8, 0, 0, 0, 0, 0]
    assert [read(device, sector)[:1] for sector in (0, 8, 512, 520, 768)] == [b"c", b"\0", b"d", b"\0", b"\0"]
    # What a power cut leaves now: the last checkpoint alone.
    copy = snapshot.with_name("cut")
    copy.write_bytes(snapshot.with_name("origin").read_bytes())
    assert [finding for finding in check_image(copy) if finding.severity.value == "error"] == []


def test_listeners_hear_of_all_zones(device: ZonedDevice, snapshot: Path) -> None:
    heard: list[tuple[int, int]] = []
    device.subscribe(lambda first, count: heard.append((first, count)))
    rewind(device, snapshot)
    assert set(heard) == {(0, 8)}


def test_commands_wait_until_it_is_over(device: ZonedDevice, snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[int] = []
    copy_from = FileBacking.copy_from
    writers: list[threading.Thread] = []

    def slow(backing: FileBacking, source: Backing, offset: int, length: int) -> None:
        if not writers:
            # At the write pointer that zone 3 has while all zones are empty, and after the rewind.
            port = device.port("another", VIRTIO)
            writers.append(threading.Thread(target=lambda: answers.append(port.write(768, 8, [b"w" * 4096]))))
            writers[0].start()
            writers[0].join(0.2)
            assert writers[0].is_alive()
        copy_from(backing, source, offset, length)

    monkeypatch.setattr(FileBacking, "copy_from", slow)
    rewind(device, snapshot)
    writers[0].join(20)
    assert answers == [0]
    assert read(device, 768) == b"w" * 4096


def test_a_rewind_that_fails_leaves_empty_zones_and_can_be_done_again(
    device: ZonedDevice, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_backing: FileBacking, _source: Backing, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(FileBacking, "copy_from", full)
        with pytest.raises(OSError, match="No space left"):
            rewind(device, snapshot)
    assert {zone.cond for zone in device.port("test", VIRTIO).report(1, 7)} == {Condition.EMPTY}
    rewind(device, snapshot)
    assert read(device, 512) == b"d" * 4096


def test_what_observes_writes_stands_against_it(device: ZonedDevice, snapshot: Path) -> None:
    lab = PowerCutLab(device)
    with pytest.raises(UsageError, match="a power-cut lab is running on this image") as refused:
        rewind(device, snapshot)
    assert refused.value.exit_code == 1
    lab.close()
    rewind(device, snapshot)
