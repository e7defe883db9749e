"""A dump of a device at work: it has what the device held when it began, whatever happens meanwhile."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.dump import dump
from zonefs_emu.device.port import Port
from zonefs_emu.device.powercut import PowerCutLab
from zonefs_emu.errors import PoisonedError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist import copy as persist_copy
from zonefs_emu.persist.backing import Backing, FileBacking
from zonefs_emu.persist.check import check_image

#: Eight zones of 256 sectors, 192 of them writable; zones 0 and 4 are conventional, the last one has half the size.
SHAPE = Geometry(
    size=1920, zone_size=256, zone_capacity=192, conventional=((0, 1), (4, 1)), block_size_bytes=512, max_open_zones=3
)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[ZonedDevice]:
    path = tmp_path / "origin"
    ZonedDevice.create(path, SHAPE, uuid=uuid4())
    device = ZonedDevice.open(path)
    yield device
    device.close()


@pytest.fixture
def port(device: ZonedDevice) -> Port:
    return device.port("test", VIRTIO)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a dump say after each block how far it is."""
    monkeypatch.setattr(persist_copy, "_CHUNK_BYTES", 4096)
    monkeypatch.setattr(persist_copy, "_REPORT_BYTES", 1)


def held(device: ZonedDevice) -> tuple[bytes, list[bytes]]:
    """Return the states of all zones, and what each holds below its capacity; lost zones are looked into as well."""
    backing, geometry = device.image.backing, device.geometry
    data = []
    for zone_no in range(geometry.nr_zones):
        sectors = geometry.zone_len(zone_no) if geometry.is_conventional(zone_no) else device.image.wps[zone_no]
        data.append(backing.pread(sectors * 512, geometry.zone_start(zone_no) * 512))
    return device.save_zones(), data


def contents(path: Path) -> tuple[bytes, list[bytes]]:
    assert check_image(path) == []
    copy = ZonedDevice.open(path, readonly=True)
    try:
        return held(copy)
    finally:
        copy.close()


class Storm:
    """Random commands, the same for the same seed."""

    def __init__(self, port: Port, seed: int) -> None:
        self.random = random.Random(seed)
        self.port = port

    def strike(self) -> None:
        draw, port = self.random, self.port
        zone_no = draw.randrange(SHAPE.nr_zones)
        start = SHAPE.zone_start(zone_no)
        match draw.choice(("write",) * 12 + ("reset", "reset", "flush", "flush", "finish", "empty", "lose")):
            case "write":
                zone = port.zone(zone_no)
                at = start + draw.randrange(100) if SHAPE.is_conventional(zone_no) else zone.wp
                length = draw.randint(1, 28)
                port.write(at, length, [draw.randbytes(512 * length)])
            case "reset":
                port.manage(Operation.RESET, start)
            case "finish":
                port.manage(Operation.FINISH, start)
            case "flush":
                assert not port.flush()
            case "empty":
                port.set_cond(zone_no, Condition.EMPTY)
            case "lose":
                port.set_cond(zone_no, draw.choice((Condition.OFFLINE, Condition.READONLY)))


@pytest.mark.parametrize("seed", range(20))
def test_a_dump_has_what_was_there_when_it_began(device: ZonedDevice, port: Port, tmp_path: Path, seed: int) -> None:
    storm = Storm(port, seed)
    for _ in range(120):
        storm.strike()
    target = tmp_path / "dump"
    before = held(device)
    nr_steps = 0
    for _ in dump(device, target):
        nr_steps += 1
        for _ in range(storm.random.randrange(8)):
            storm.strike()
    assert nr_steps > 3
    assert held(device) != before
    assert contents(target) == before


def test_what_is_reset_and_written_anew_is_copied_before(device: ZonedDevice, port: Port, tmp_path: Path) -> None:
    for zone_no in (1, 2, 3):
        assert not port.write(SHAPE.zone_start(zone_no), 192, [b"old!" * 128 * 192])
    before = held(device)
    progress = dump(device, tmp_path / "dump")
    next(progress)
    for zone_no in (1, 2, 3):
        assert not port.manage(Operation.RESET, SHAPE.zone_start(zone_no))
    assert not port.write(SHAPE.zone_start(3), 8, [b"new!" * 1024])
    list(progress)
    assert contents(tmp_path / "dump") == before


def test_who_stops_early_leaves_nothing(device: ZonedDevice, port: Port, tmp_path: Path) -> None:
    assert not port.write(256, 64, [bytes(64 * 512)])
    progress = dump(device, tmp_path / "dump")
    next(progress)
    assert (tmp_path / "dump").exists()
    progress.close()
    assert not (tmp_path / "dump").exists()
    assert device.access.pwritev == device.image.backing.pwritev
    assert device.image.erase_listeners == []


def test_two_at_once_are_each_of_its_own_instant(device: ZonedDevice, port: Port, tmp_path: Path) -> None:
    for zone_no in (1, 2, 3):
        assert not port.write(SHAPE.zone_start(zone_no), 64, [b"old!" * 128 * 64])
    states, dumps = [], []
    for name in ("first", "second"):
        states.append(held(device))
        dumps.append(dump(device, tmp_path / name))
        next(dumps[-1])
        assert not port.manage(Operation.RESET, SHAPE.zone_start(2))
        assert not port.write(SHAPE.zone_start(2), 8, [name.encode().ljust(4096)])
    for progress in dumps:
        list(progress)
    assert [contents(tmp_path / name) for name in ("first", "second")] == states
    assert states[0] != states[1]


def test_beside_a_power_cut_lab(device: ZonedDevice, port: Port, tmp_path: Path) -> None:
    lab = PowerCutLab(device)
    assert not port.write(256, 64, [b"x" * 64 * 512])
    progress = dump(device, tmp_path / "dump")
    next(progress)
    assert not port.write(512, 8, [b"y" * 4096])
    list(progress)
    assert not port.write(520, 8, [b"z" * 4096])
    assert len(lab.history().draw(0).kept) == 3
    lab.close()
    again = ZonedDevice.open(tmp_path / "dump")
    assert again.machine.wps[1:3].tolist() == [64, 0]
    again.close()


def test_what_is_there_is_not_overwritten(device: ZonedDevice, tmp_path: Path) -> None:
    (tmp_path / "dump").write_text("precious")
    with pytest.raises(FileExistsError):
        list(dump(device, tmp_path / "dump"))
    assert (tmp_path / "dump").read_text() == "precious"


@pytest.mark.parametrize("length", [0, 100_000])
def test_a_lost_image_has_no_dump(
    device: ZonedDevice, port: Port, tmp_path: Path, expect_warning: Callable[[str], None], length: int
) -> None:
    """Its holes would be read as data, and the dump would be taken for a good one."""
    expect_warning("cut or overwritten")
    assert not port.write(256, 64, [b"x" * 64 * 512])
    os.truncate(tmp_path / "origin", length)
    with pytest.raises(PoisonedError, match="cut or overwritten by another program"):
        list(dump(device, tmp_path / "dump"))
    assert not (tmp_path / "dump").exists()


@pytest.mark.parametrize("where", ["on the way", "in a hurry"])
def test_a_full_disk_hurts_the_dump_alone(
    device: ZonedDevice, port: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    assert not port.write(256, 64, [b"x" * 64 * 512])
    assert not port.write(0, 64, [b"c" * 64 * 512])
    progress = dump(device, tmp_path / "dump")
    next(progress)
    copy_from: Callable[[FileBacking, Backing, int, int], None] = FileBacking.copy_from

    def full(_backing: FileBacking, _source: Backing, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileBacking, "copy_from", full)
    if where == "in a hurry":
        assert not port.write(32, 8, [b"d" * 8 * 512])
        assert not port.write(48, 8, [b"d" * 8 * 512])
        monkeypatch.setattr(FileBacking, "copy_from", copy_from)
    with pytest.raises(OSError, match="No space left") as caught:
        list(progress)
    assert caught.value.filename == str(tmp_path / "dump")
    assert not (tmp_path / "dump").exists()
    assert not port.write(320, 8, [b"y" * 8 * 512])
    assert not port.flush()
