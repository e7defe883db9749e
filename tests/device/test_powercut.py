import random
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from zonefs_emu.device.device import Port, ZonedDevice
from zonefs_emu.device.powercut import Cut, PowerCutLab
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition

ZONE = 128
CAPACITY = 96
GEOMETRY = Geometry(
    size=ZONE * 12, zone_size=ZONE, zone_capacity=CAPACITY, conventional=((0, 2),), block_size_bytes=4096
)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[ZonedDevice]:
    ZonedDevice.create(tmp_path / "z.img", GEOMETRY, uuid=UUID(int=1))
    device = ZonedDevice.open(tmp_path / "z.img")
    yield device
    device.close()


def put(port: Port, sector: int, letter: bytes, nr_sectors: int = 16) -> None:
    assert port.write(sector, nr_sectors, (letter * (nr_sectors * 512),)) is Status.OK


def content(port: Port, sector: int, nr_sectors: int) -> bytes:
    data = bytearray(nr_sectors * 512)
    assert port.read(sector, nr_sectors, (data,)) is Status.OK
    return bytes(data)


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
    cuts = list(lab.every())
    assert [cut.kept for cut in cuts] == [(0, 0), (0, 0), (16, 0), (16, 0), (16, 16), (16, 16)]
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
    for number, cut in enumerate(lab.every()):
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
    for number, cut in enumerate(lab.every()):
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


def test_torn_writes_are_there_in_whole_blocks(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    put(port, 2 * ZONE, b"a", 32)
    kept = {cut.kept for cut in lab.every(torn=True)}
    assert kept == {(0,), (8,), (16,), (24,), (32,)}
    drawn = {lab.draw(seed, torn=True).kept for seed in range(100)}
    assert drawn == kept


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


def test_the_same_seed_gives_the_same_cut(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    for zone_no in (2, 3, 4):
        put(port, zone_no * ZONE, b"a")
        put(port, 0, b"b")
    for reorder in (False, True):
        cuts = [lab.draw(seed, torn=True, reorder=reorder) for seed in range(50)]
        assert cuts == [lab.draw(seed, torn=True, reorder=reorder) for seed in range(50)]
        assert len({cut.kept for cut in cuts}) > 5


def test_in_order_means_none_after_the_first_lost_write(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    for zone_no in (2, 3, 4, 2, 3):
        zone = port.zone(zone_no)
        put(port, zone.wp, b"a")
    for seed in range(100):
        kept = lab.draw(seed, torn=True).kept
        lost = next((index for index, part in enumerate(kept) if part < 16), len(kept))
        assert not any(kept[lost + 1 :])
    reordered = [lab.draw(seed, reorder=True).kept for seed in range(100)]
    assert any(kept[0] == 0 and kept[1] == 16 for kept in reordered)
    assert not any(kept[0] == 0 and kept[3] == 16 for kept in reordered), "a zone keeps a beginning"


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
            left = after(lab, lab.draw(step, torn=True, reorder=True), path)
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
        lab.write(lab.draw(0), tmp_path / "there")
    lab.close()
    put(port, 2 * ZONE, b"a")
    assert lab.draw(0).kept == ()
