"""Plans for images of power cuts, and the thread that carries them out."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.device.small_zones import CAPACITY, GEOMETRY, ZONE, content, opened, put
from zonefs_emu.device.cut_images import Moment, Plan
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.powercut import PowerCutLab
from zonefs_emu.errors import Status, UsageError
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.check import check_image
from zonefs_emu.persist.copy import Copy

ExpectWarning: TypeAlias = Callable[[str], None]
device = pytest.fixture(opened)


def wait(lab: PowerCutLab) -> None:
    """Wait until the plan is done."""
    assert lab._cuts is not None
    lab._cuts._thread.join()
    assert lab.is_done


def names(lab: PowerCutLab) -> list[str]:
    assert all(image.path.exists() for image in lab.images)
    return [image.path.name for image in lab.images]


def test_a_plan_for_now_is_carried_out_at_once(device: ZonedDevice, tmp_path: Path) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    put(port, 2 * ZONE, b"a")
    put(port, 3 * ZONE, b"b", 32)
    directory = tmp_path / "one" / "two"
    lab.begin(Plan(directory=directory, at=Moment.NOW, count=3, every=True))
    wait(lab)
    assert lab.is_done
    assert names(lab) == ["cut-0000.img", "cut-0001.img", "cut-0002.img"]
    assert (directory.stat().st_mode & 0o777, directory.parent.stat().st_mode & 0o777) == (0o755, 0o755)
    assert [(image.nr_writes, image.nr_kept, image.torn_sectors) for image in lab.images] == [
        (2, 0, 0),
        (2, 1, 0),
        (2, 2, 0),
    ]
    lab.begin(Plan(directory=tmp_path / "more", at=Moment.NOW, count=100, every=True, torn=True))
    wait(lab)
    counted = {(image.nr_writes, image.nr_kept, image.torn_sectors) for image in lab.images}
    assert counted == {(2, 0, 0), (2, 0, 8), (2, 1, 0), (2, 1, 8), (2, 1, 16), (2, 1, 24), (2, 2, 0)}


def test_a_plan_draws_from_one_seed_after_the_other(device: ZonedDevice, tmp_path: Path) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    for zone_no in (2, 3, 4, 5):
        put(port, zone_no * ZONE, b"a", 64)
    lab.begin(Plan(directory=tmp_path / "cuts", at=Moment.NOW, count=8, seed=40, torn=True, reorder=True))
    wait(lab)
    drawn = [lab.history().draw(seed, torn=True, reorder=True).kept for seed in range(40, 48)]
    assert len(set(drawn)) > 4
    kept = [(sum(part == 64 for part in cut), sum(part for part in cut if part < 64)) for cut in drawn]
    assert [(image.nr_kept, image.torn_sectors) for image in lab.images] == kept


def test_a_plan_waits_for_its_writes(device: ZonedDevice, tmp_path: Path) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    put(port, 2 * ZONE, b"a")
    lab.begin(Plan(directory=tmp_path / "cuts", at=Moment.AFTER_WRITES, nr_writes=2, count=2))
    put(port, 2 * ZONE + 16, b"a")
    assert port.flush() is Status.OK
    assert (lab.is_done, lab.nr_seen, names(lab)) == (False, 1, [])
    put(port, 2 * ZONE + 32, b"a")
    wait(lab)
    assert lab.nr_seen == 2
    assert names(lab) == ["cut-0000.img", "cut-0001.img"]
    assert [image.nr_writes for image in lab.images] == [1, 1], "of those since the last flush"
    put(port, 2 * ZONE + 48, b"a")
    assert len(lab.images) == 2


def test_a_plan_for_every_flush_writes_one_image_at_each(device: ZonedDevice, tmp_path: Path) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    lab.begin(Plan(directory=tmp_path / "cuts", at=Moment.EVERY_FLUSH, count=2, seed=3))
    for number in range(3):
        put(port, (2 + number) * ZONE, b"a")
        assert not port.flush()
        assert len(lab.images) == min(number + 1, 2), "a flush waits for its image"
    wait(lab)
    assert names(lab) == ["cut-0000.img", "cut-0001.img"]
    assert [image.nr_writes for image in lab.images] == [1, 1]
    lab.begin(Plan(directory=tmp_path / "more", at=Moment.NOW, count=0))
    wait(lab)
    assert (lab.images, lab.is_done) == ([], True)


def test_a_plan_that_is_given_up_writes_nothing_and_the_lab_goes_on(device: ZonedDevice, tmp_path: Path) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    assert (lab.failure, lab.is_done, lab.nr_seen) == ("", True, 0)
    lab.begin(Plan(directory=tmp_path / "cuts", at=Moment.AFTER_WRITES))
    lab.give_up()
    assert lab.is_done
    put(port, 2 * ZONE, b"a")
    assert lab.images == []
    assert lab.history().draw(0).kept in {(0,), (16,)}


def test_a_directory_that_is_gone_ends_the_plan_and_not_the_lab(device: ZonedDevice, tmp_path: Path) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    lab.begin(Plan(directory=tmp_path / "cuts", at=Moment.AFTER_WRITES))
    (tmp_path / "cuts").rmdir()
    put(port, 2 * ZONE, b"a")
    wait(lab)
    assert lab.failure == f"cannot create {tmp_path}/cuts/cut-0000.img: No such file or directory"
    lab.begin(Plan(directory=tmp_path / "again", at=Moment.NOW))
    wait(lab)
    assert (lab.failure, names(lab)) == ("", ["cut-0000.img"])


def test_a_lost_image_has_no_images(device: ZonedDevice, tmp_path: Path, expect_warning: ExpectWarning) -> None:
    expect_warning("cut or overwritten")
    put(device.port("test", VIRTIO), 2 * ZONE, b"a")
    lab = PowerCutLab(device)
    os.truncate(tmp_path / "z.img", 100_000)
    lab.begin(Plan(directory=tmp_path / "cuts", at=Moment.NOW))
    wait(lab)
    assert lab.failure.startswith("the image's file was cut or overwritten by another program")
    assert names(lab) == []
    assert list((tmp_path / "cuts").iterdir()) == []


class Gate:
    """Holds the copying of a device in the thread of the lab, before the first byte, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        run = Copy.run

        def held(copy: Copy) -> Iterator[int]:
            if threading.current_thread().name == "power cuts":
                self.reached.set()
                self.opened.wait()
            return run(copy)

        monkeypatch.setattr(Copy, "run", held)


def test_commands_go_on_while_images_are_written_of_an_earlier_instant(
    device: ZonedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images are those that a device at rest gives, whatever commands change meanwhile."""
    port = device.port("test", VIRTIO)
    for zone_no in range(2, 8):
        put(port, zone_no * ZONE, b"f")
    assert not port.flush()
    lab = PowerCutLab(device)
    for zone_no in range(2, 5):
        put(port, zone_no * ZONE + 16, b"u")
    put(port, 0, b"c")
    assert not port.manage(Operation.RESET, 5 * ZONE)
    expected = []
    for seed in range(8):
        path = tmp_path / f"{seed}.img"
        lab.write(lab.history().draw(seed, torn=True, reorder=True), path)
        expected.append(held(path))
    gate = Gate(monkeypatch)
    lab.begin(Plan(directory=tmp_path / "cuts", at=Moment.NOW, count=8, torn=True, reorder=True))
    assert gate.reached.wait(60)
    for zone_no in range(2, 8):
        assert not port.manage(Operation.RESET, zone_no * ZONE)
    assert not port.flush()
    for zone_no in range(2, 8):
        put(port, zone_no * ZONE, b"n", CAPACITY)
    put(port, 0, b"n")
    put(port, 8 * ZONE, b"n")
    assert not port.flush()
    assert not lab.is_done
    gate.opened.set()
    wait(lab)
    assert lab.failure == ""
    assert [held(image.path) for image in lab.images] == expected
    assert len({*expected}) > 4
    assert sorted(path.name for path in (tmp_path / "cuts").iterdir()) == names(lab), "and nothing else is left"


def held(path: Path) -> tuple[bytes, ...]:
    """Return the conditions, write pointers and data of the image *path*, for comparison."""
    assert check_image(path) == []
    device = ZonedDevice.open(path)
    port = device.port("after", VIRTIO)
    zones = [port.zone(zone_no) for zone_no in range(GEOMETRY.nr_zones)]
    data = [content(port, zone.start, ZONE if zone_no < 2 else CAPACITY) for zone_no, zone in enumerate(zones)]
    device.close()
    return (repr([(zone.cond, zone.wp) for zone in zones]).encode(), *data)


@pytest.mark.parametrize("ending", ["the plan", "the lab", "the device"])
def test_the_end_interrupts_the_images_and_the_flush_that_waits_for_them(
    device: ZonedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    put(port, 2 * ZONE, b"a")
    gate = Gate(monkeypatch)
    lab.begin(Plan(directory=tmp_path / "cuts", at=Moment.EVERY_FLUSH, count=3))
    answers: list[Status] = []
    flush = threading.Thread(target=lambda: answers.append(port.flush()))
    flush.start()
    assert gate.reached.wait(60)
    put(port, 3 * ZONE, b"b")  # goes on beside the flush
    assert (lab.is_done, answers) == (False, [])
    monkeypatch.setattr("zonefs_emu.device.cut_images._END_S", 0.01)
    {"the plan": lab.give_up, "the lab": lab.close, "the device": device.stop_waiting}[ending]()
    flush.join(60)
    assert answers == [Status.OK]
    gate.opened.set()
    wait(lab)
    assert (list(lab.images), list((tmp_path / "cuts").iterdir())) == ([], [])
    assert not port.flush(), "it is not waited for any more"


def test_a_full_host_ends_the_plan_and_no_command(
    device: ZonedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that a write is about to change find no room."""
    port = device.port("test", VIRTIO)
    put(port, 0, b"c")
    lab = PowerCutLab(device)
    gate = Gate(monkeypatch)
    lab.begin(Plan(directory=tmp_path / "cuts", at=Moment.NOW))
    assert gate.reached.wait(60)
    copy_from = FileBacking.copy_from

    def full(backing: FileBacking, *arguments: object) -> None:
        if threading.current_thread().name != "power cuts":
            raise OSError(errno.ENOSPC, "No space left on device")
        copy_from(backing, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(FileBacking, "copy_from", full)
        put(port, 0, b"d")
    gate.opened.set()
    wait(lab)
    assert lab.failure.endswith(".part: No space left on device")
    assert list((tmp_path / "cuts").iterdir()) == []
    lab.begin(Plan(directory=tmp_path / "cuts", at=Moment.NOW))
    wait(lab)
    assert names(lab) == ["cut-0000.img"], "the lab is not off"


def test_a_bug_in_the_thread_switches_the_lab_off(
    device: ZonedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_warning: ExpectWarning
) -> None:
    expect_warning(r"the power-cut lab failed \(RuntimeError: a bug\): switched off")
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)

    def bug(*_: object) -> None:
        message = "a bug"
        raise RuntimeError(message)

    monkeypatch.setattr("zonefs_emu.device.cut_images.copy_image", bug)
    lab.begin(Plan(directory=tmp_path / "cuts", at=Moment.NOW))
    wait(lab)
    assert lab.failure == "the power-cut lab failed: RuntimeError: a bug"
    put(port, 2 * ZONE, b"a")
    assert not port.flush()
    with pytest.raises(UsageError, match="a bug"):
        lab.begin(Plan(directory=tmp_path / "more", at=Moment.NOW))
