import random
from pathlib import Path
from uuid import UUID

import pytest

from tests.device.small_zones import CAPACITY, ZONE, content, opened, put
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.outcomes import Cut
from zonefs_emu.device.port import Port
from zonefs_emu.device.powercut import PowerCutLab
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, ZNS, Operation
from zonefs_emu.model.zone import Attribute, Condition

device = pytest.fixture(opened)


def after(lab: PowerCutLab, cut: Cut, path: Path) -> Port:
    """The image that *cut* leaves, opened; it is closed when the test's process ends."""
    lab.write(cut, path)
    return ZonedDevice.open(path).port("after", VIRTIO)


def test_what_was_flushed_is_there_and_nothing_else_changes_it(device: ZonedDevice, tmp_path: Path) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    put(port, 2 * ZONE, b"a")
    put(port, 0, b"c")
    assert port.flush() is Status.OK
    put(port, 2 * ZONE + 16, b"b")
    put(port, 0, b"d")
    cuts = list(lab.history().every())
    assert [cut.kept for cut in cuts] == [(0, 0), (16, 0), (16, 16)]
    for number, cut in enumerate(cuts):
        left = after(lab, cut, tmp_path / f"{number}.img")
        zone = left.zone(2)
        assert zone.cond is Condition.CLOSED
        assert zone.wp == 2 * ZONE + 16 + cut.kept[0]
        assert content(left, 2 * ZONE, 32) == b"a" * 8192 + (b"b" if cut.kept[0] else b"\0") * 8192
        assert content(left, 0, 16) == (b"d" if cut.kept[1] else b"c") * 8192
        left.device.close()


def test_a_reset_is_there_or_not_and_never_a_mixture(device: ZonedDevice, tmp_path: Path) -> None:
    port = device.port("test", VIRTIO)
    put(port, 2 * ZONE, b"a")
    lab = PowerCutLab(device)
    assert port.manage(Operation.RESET, 2 * ZONE) is Status.OK
    found = set()
    for number, cut in enumerate(lab.history().every()):
        left = after(lab, cut, tmp_path / f"{number}.img")
        found.add((left.zone(2).cond, content(left, 2 * ZONE, 16)[:1]))
        left.device.close()
    assert found == {(Condition.CLOSED, b"a"), (Condition.EMPTY, b"\0")}


def test_a_finish_comes_after_the_data_that_it_finished(device: ZonedDevice, tmp_path: Path) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    put(port, 2 * ZONE, b"a")
    assert port.manage(Operation.FINISH, 2 * ZONE) is Status.OK
    found = set()
    for number, cut in enumerate(lab.history().every()):
        left = after(lab, cut, tmp_path / f"{number}.img")
        found.add((left.zone(2).cond, content(left, 2 * ZONE, 16)[:1]))
        left.device.close()
    assert found == {(Condition.EMPTY, b"\0"), (Condition.CLOSED, b"a"), (Condition.FULL, b"a")}


def test_a_zone_written_to_its_capacity_is_full_if_all_of_it_is_there(device: ZonedDevice, tmp_path: Path) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    put(port, 2 * ZONE, b"a", CAPACITY)
    lab.write(Cut(kept=(CAPACITY,), changed=(False,)), tmp_path / "whole.img")
    lab.write(Cut(kept=(CAPACITY - 8,), changed=(True,)), tmp_path / "torn.img")
    for name, cond in (("whole", Condition.FULL), ("torn", Condition.CLOSED)):
        left = ZonedDevice.open(tmp_path / f"{name}.img")
        assert left.port("test", VIRTIO).zone(2).cond is cond
        left.close()


def test_lost_and_kept_conventional_writes_on_each_other(device: ZonedDevice, tmp_path: Path) -> None:
    port = device.port("test", VIRTIO)
    put(port, 0, b"x")
    lab = PowerCutLab(device)
    for letter in (b"a", b"b", b"c"):
        put(port, 0, letter)
    expected = {
        (0, 0, 0): b"x", (16, 0, 0): b"a", (0, 16, 0): b"b", (0, 0, 16): b"c",
        (16, 16, 0): b"b", (16, 0, 16): b"c", (0, 16, 16): b"c", (16, 16, 16): b"c",
    }  # fmt: skip
    for number, (kept, letter) in enumerate(expected.items()):
        left = after(lab, Cut(kept=kept, changed=()), tmp_path / f"{number}.img")
        assert content(left, 0, 16) == letter * 8192
        left.device.close()


def test_a_random_history_always_leaves_a_beginning_of_each_zone(device: ZonedDevice, tmp_path: Path) -> None:
    generator = random.Random(5)
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    written: dict[int, bytes] = {}
    for step in range(200):
        zone_no = generator.randrange(2, 8)
        zone = port.zone(zone_no)
        if zone.cond is Condition.FULL or generator.random() < 0.1:
            assert port.manage(Operation.RESET, zone.start) is Status.OK
            assert port.flush() is Status.OK
            written[zone_no] = b""
        else:
            data = bytes([step]) * 4096
            assert port.write(zone.wp, 8, (data,)) is Status.OK
            written[zone_no] = written.get(zone_no, b"") + data
        if generator.random() < 0.1:
            assert port.flush() is Status.OK
        if step % 10 == 9:
            path = tmp_path / f"{step}.img"
            left = after(lab, lab.history().draw(step, torn=True, reorder=True), path)
            for number, whole in written.items():
                end = left.zone(number).wp - number * ZONE
                assert content(left, number * ZONE, CAPACITY)[: end * 512] == whole[: end * 512]
                assert not content(left, number * ZONE, CAPACITY)[end * 512 :].strip(b"\0")
            left.device.close()
            path.unlink()


def test_writing_never_overwrites_and_closing_stops_the_watch(device: ZonedDevice, tmp_path: Path) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    (tmp_path / "there").touch()
    with pytest.raises(FileExistsError):
        lab.write(lab.history().draw(0), tmp_path / "there")
    lab.close()
    put(port, 2 * ZONE, b"a")
    assert lab.history().draw(0).kept == ()


def test_an_image_that_was_replaced_under_its_name_is_cut_all_the_same(device: ZonedDevice, tmp_path: Path) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    put(port, 2 * ZONE, b"a")
    (tmp_path / "z.img").rename(tmp_path / "renamed.img")
    (tmp_path / "z.img").write_bytes(b"another file")
    left = after(lab, lab.history().draw(0, reorder=False), tmp_path / "cut.img")
    assert left.device.uuid == UUID(int=1)  # type: ignore[attr-defined]  # the port's device has all of ZonedDevice


def test_what_was_written_before_the_lab_is_one_write_of_each_zone(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    put(port, 2 * ZONE, b"a")
    assert not port.flush()
    for part in (1, 2):
        put(port, 2 * ZONE + 16 * part, b"a")
    put(port, 3 * ZONE, b"a")
    put(port, 0, b"c")
    lab = PowerCutLab(device)
    assert {lab.history().draw(seed).kept for seed in range(50)} == {(0, 0), (32, 0), (32, 16)}


def test_writes_in_a_random_write_area_are_kept_or_lost_and_undone(tmp_path: Path) -> None:
    geometry = Geometry(size=512, zone_size=128, zone_capacity=96, zrwa_size=32, zrwa_granularity=16)
    ZonedDevice.create(tmp_path / "a.img", geometry, uuid=UUID(int=1))
    device = ZonedDevice.open(tmp_path / "a.img")
    port = device.port("test", ZNS)
    assert not port.allocate_zrwa(0)
    put(port, 0, b"a")
    put(port, 16, b"b")
    assert not port.flush()
    lab = PowerCutLab(device)
    put(port, 16, b"c")
    put(port, 32, b"d")  # moves the write pointer to 16
    cuts = list(lab.history().every())
    assert {cut.kept for cut in cuts} == {(0, 0), (16, 0), (16, 16)}
    found = set()
    for number, cut in enumerate(cuts):
        path = tmp_path / f"{number}.img"
        lab.write(cut, path)
        left = ZonedDevice.open(path).port("after", ZNS)
        zone = left.zone(0)
        assert (zone.cond, zone.attributes) == (Condition.CLOSED, Attribute.ZRWA)
        found.add((cut.kept, zone.wp, content(left, 0, 128)[:: 16 * 512]))
        left.device.close()
    assert found == {
        ((0, 0), 0, b"ab" + bytes(6)),
        ((16, 0), 0, b"ac" + bytes(6)),
        ((16, 16), 0, b"ac" + bytes(6)),  # the write pointer is where it was, and so the write is behind the area
        ((16, 16), 16, b"acd" + bytes(5)),
    }
    lab.close()
    device.close()
