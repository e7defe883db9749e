"""Descriptor extensions, random write areas, zones that the drive finishes: through a port, and in a log."""

import errno
import io
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.device.sectors import Maker
from zonefs_emu.device.counters import Counter
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.dump import dump
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.oplog import record, replay
from zonefs_emu.device.port import Port
from zonefs_emu.device.rewind import rewind
from zonefs_emu.errors import Status
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, ZNS, Operation
from zonefs_emu.model.zone import Attribute, Condition
from zonefs_emu.persist.check import check_image
from zonefs_emu.persist.codec.words import ZoneStates
from zonefs_emu.persist.copy import Copy

GEOMETRY = Geometry(size=96, zone_size=16, zone_capacity=16, max_active_zones=2, extension_bytes=64)
DATA = bytes(range(64))


def test_a_port_sets_and_returns_an_extension(make_device: Maker) -> None:
    port = make_device(GEOMETRY).port("nvme", ZNS)
    assert port.set_extension(16, DATA) is Status.OK
    assert port.extension(1) == (Status.OK, DATA)
    assert port.report(0, 6)[1].attributes == Attribute.EXTENSION
    # An older record is not overwritten before the reset is durable, which the port sees to.
    assert not port.manage(Operation.RESET, 16)
    assert port.has_pending_reset(1)
    assert port.set_extension(16, DATA[::-1]) is Status.OK
    assert not port.has_pending_reset(1)
    assert port.extension(1) == (Status.OK, DATA[::-1])


def test_refusals_are_noted(make_device: Maker) -> None:
    device = make_device(GEOMETRY)
    port = device.port("nvme", ZNS)
    assert port.set_extension(0, DATA[:-1]) is Status.UNSUPPORTED
    assert port.set_extension(1, DATA) is Status.NOT_ZONE_START
    assert port.set_extension(96, DATA) is Status.OUT_OF_RANGE
    assert not port.set_extension(0, DATA)
    assert port.set_extension(0, DATA) is Status.BAD_TRANSITION
    assert not port.set_extension(16, DATA)
    assert port.set_extension(32, DATA) is Status.ACTIVE_RESOURCE
    assert device.refusals.last(1)[0].operation is Operation.SET_EXTENSION
    device.close()
    assert port.set_extension(32, DATA) is Status.POISONED


def test_a_device_without_extensions_has_none(make_device: Maker) -> None:
    port = make_device().port("test", ZNS)
    assert port.set_extension(0, DATA) is Status.UNSUPPORTED
    assert port.extension(0) == (Status.OK, b"")


def test_other_dialects_leave_the_extension(make_device: Maker) -> None:
    device = make_device(GEOMETRY)
    assert not device.port("nvme", ZNS).set_extension(0, DATA)
    other = device.port("virtio", VIRTIO)
    assert not other.manage(Operation.OPEN, 0)
    assert not other.manage(Operation.CLOSE, 0)
    assert (other.zone(0).cond, other.extension(0)) == (Condition.CLOSED, (Status.OK, DATA))


def test_a_log_replays_an_extension(make_device: Maker, tmp_path: Path) -> None:
    device = make_device(GEOMETRY)
    log = io.StringIO()
    record(device, log)
    port = device.port("nvme", ZNS)
    assert not port.set_extension(16, DATA)
    assert port.set_extension(16, DATA) is Status.BAD_TRANSITION
    other = make_device(GEOMETRY, "b.img")
    replayed = replay(log.getvalue().splitlines(), other)
    assert (replayed.nr_operations, replayed.difference) == (2, None)
    assert other.port("nvme", ZNS).extension(1) == (Status.OK, DATA)


# -- zone random write areas ------------------------------------------------------------------------------------------

#: Zones of 16 sectors with a capacity of 12, areas of 4 sectors that are flushed by 2.
AREAS = Geometry(size=96, zone_size=16, zone_capacity=12, max_open_zones=2, zrwa_size=4, zrwa_granularity=2, max_zrwa=2)


def fill(port: Port, sector: int, letter: bytes, nr_sectors: int = 1) -> Status:
    return port.write(sector, nr_sectors, (letter * 512 * nr_sectors,))


def letters(port: Port, sector: int, nr_sectors: int) -> bytes:
    data = bytearray(b"?" * 512 * nr_sectors)
    assert not port.read(sector, nr_sectors, (data,))
    return bytes(data[::512])


def test_an_area_is_written_read_and_flushed(make_device: Maker) -> None:
    device = make_device(AREAS)
    port, other = device.port("nvme", ZNS), device.port("virtio", VIRTIO)
    assert port.allocate_zrwa(16) is Status.OK
    assert (port.zone(1).cond, port.zone(1).attributes) == (Condition.EXP_OPEN, Attribute.ZRWA)
    assert not fill(port, 18, b"a", 2)
    assert not fill(port, 19, b"b")
    assert letters(port, 16, 16) == b"\0\0ab" + bytes(12)
    assert letters(other, 16, 4) == bytes(4)
    assert not fill(port, 20, b"c")
    assert port.zone(1).wp == 18
    assert letters(other, 16, 4) == bytes(4)
    assert port.flush_zrwa(19) is Status.OK
    assert letters(other, 16, 8) == b"\0\0ab" + bytes(4)
    assert letters(port, 16, 8) == b"\0\0abc" + bytes(3)
    # Another dialect goes on at the write pointer.
    assert not fill(other, 20, b"d", 3)
    assert letters(port, 16, 8) == b"\0\0abddd" + bytes(1)
    assert port.manage(Operation.FINISH, 16) is Status.OK
    assert (port.zone(1).wp, port.zone(1).attributes) == (16 + 11, 0)
    assert not port.has_pending_reset(1)
    assert device.counters.load(1)[Counter.OPENS] == 1


def test_a_long_write_into_an_area(make_device: Maker) -> None:
    geometry = Geometry(size=1 << 14, zone_size=1 << 13, zone_capacity=1 << 13, zrwa_size=4096, zrwa_granularity=8)
    port = make_device(geometry).port("nvme", ZNS)
    assert not port.allocate_zrwa(0)
    assert not fill(port, 8, b"a", 4096)
    assert port.zone(0).wp == 8
    assert not fill(port, 8, b"b", 4096)
    assert port.zone(0).wp == 8
    assert letters(port, 0, 16) == bytes(8) + b"b" * 8


def test_an_area_waits_for_the_flush_that_makes_a_reset_durable(make_device: Maker) -> None:
    port = make_device(AREAS).port("nvme", ZNS)
    assert not port.allocate_zrwa(16)
    assert not fill(port, 17, b"a")
    assert not port.manage(Operation.RESET, 16)
    assert port.has_pending_reset(1)
    assert not port.allocate_zrwa(16)
    assert not port.has_pending_reset(1)
    assert letters(port, 16, 4) == bytes(4)


def test_refusals_of_areas_are_noted(make_device: Maker) -> None:
    device = make_device(AREAS)
    port = device.port("nvme", ZNS)
    assert port.set_extension(0, b"") is Status.UNSUPPORTED
    assert port.flush_zrwa(1) is Status.ZRWA_INVALID
    assert not port.allocate_zrwa(0)
    assert port.allocate_zrwa(0) is Status.ZRWA_INVALID
    assert device.refusals.last(1)[0].operation is Operation.ALLOCATE_ZRWA
    assert fill(port, 8, b"x") is Status.ZRWA_WRITE
    assert port.append(0, 1, (bytes(512),)) == (Status.ZRWA_INVALID, 0)
    assert port.flush_zrwa(0) is Status.ZRWA_RANGE
    assert device.refusals.last(1)[0].operation is Operation.FLUSH_ZRWA
    assert "a multiple of the flush granularity" in EXPLAINER.explain(device.refusals.last(1)[0], device.geometry)
    assert not port.allocate_zrwa(16)
    assert port.allocate_zrwa(32) is Status.OPEN_RESOURCE
    assert not port.manage(Operation.CLOSE, 0)
    assert port.allocate_zrwa(32) is Status.ZRWA_UNAVAILABLE
    device.close()
    assert port.allocate_zrwa(32) is Status.POISONED
    assert port.flush_zrwa(1) is Status.POISONED


def test_a_device_without_areas_has_none(make_device: Maker) -> None:
    port = make_device(GEOMETRY).port("nvme", ZNS)
    assert port.allocate_zrwa(0) is Status.UNSUPPORTED
    assert port.flush_zrwa(0) is Status.UNSUPPORTED


@pytest.mark.parametrize("flushes", [False, True])
def test_a_command_on_an_area_waits_for_a_zone_that_is_being_written_to(make_device: Maker, *, flushes: bool) -> None:
    """It cannot be closed to make room, and after its write it can."""
    device = make_device(AREAS)
    port = device.port("nvme", ZNS)
    if flushes:
        assert not port.allocate_zrwa(0)
        assert not fill(port, 0, b"a", 2)
        assert not port.manage(Operation.CLOSE, 0)
    assert not port.manage(Operation.OPEN, 32)
    assert not fill(port, 48, b"a")
    with device.lock:
        hold = device.holds.take(3, 4, writing=True)
    with device.holds.kept(hold):
        command = partial(port.flush_zrwa, 1) if flushes else partial(port.allocate_zrwa, 0)
        thread = threading.Thread(target=lambda: answers.append(command()))
        answers: list[Status] = []
        thread.start()
        thread.join(0.1)  # where it does not wait yet, nothing is proven, and nothing fails
        assert not answers
    thread.join()
    assert (answers, port.zone(3).cond) == ([Status.OK], Condition.CLOSED)


def test_a_host_that_cannot_free_space_for_an_area(make_device: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    device = make_device(AREAS)
    port = device.port("nvme", ZNS)

    def broken(_offset: int, _length: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(device.image.backing, "punch", broken)
    assert port.allocate_zrwa(0) is Status.IO_ERROR
    assert port.zone(0).attributes == 0
    assert port.allocate_zrwa(0) is Status.POISONED


def test_a_write_that_finds_no_space_leaves_the_area(make_device: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    device = make_device(AREAS)
    port = device.port("nvme", ZNS)
    assert not port.allocate_zrwa(0)
    assert not fill(port, 0, b"a", 4)
    whole, calls = device.access.pwritev, iter((True, False))

    def full(buffers: Sequence[Any], offset: int) -> int:
        if next(calls):
            return whole([memoryview(buffers[0])[: 3 * 512]], offset)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(device.access, "pwritev", full)
    assert fill(port, 2, b"b", 6) is Status.NO_SPACE
    assert port.zone(0).wp == 0
    # Of the area each sector is old or new; what lies behind it is freed.
    assert letters(port, 0, 4) == b"aabb"
    assert device.image.backing.pread(4 * 512, 4 * 512) == bytes(4 * 512)


def test_a_fault_of_opening_strikes_allocating(make_device: Maker) -> None:
    device = make_device(AREAS)
    device.inject(Fault(effect=Effect.FAIL, operations=frozenset((Operation.OPEN,)), status=Status.OPEN_RESOURCE))
    port = device.port("nvme", ZNS)
    assert port.allocate_zrwa(0) is Status.OPEN_RESOURCE
    assert port.allocate_zrwa(0) is Status.OK


def test_a_log_replays_areas(make_device: Maker) -> None:
    device = make_device(AREAS)
    log = io.StringIO()
    record(device, log)
    port = device.port("nvme", ZNS)
    assert not port.allocate_zrwa(16)
    assert not fill(port, 18, b"a", 2)
    assert not fill(port, 20, b"a", 2)
    assert port.flush_zrwa(18) is Status.ZRWA_RANGE
    assert not port.flush_zrwa(19)
    other = make_device(AREAS, "b.img")
    replayed = replay(log.getvalue().splitlines(), other)
    assert (replayed.nr_operations, replayed.difference) == (5, None)
    assert other.port("nvme", ZNS).zone(1) == port.zone(1)


def test_a_dump_and_a_rewind_have_what_an_area_holds(make_device: Maker, tmp_path: Path) -> None:
    device = make_device(AREAS)
    port = device.port("nvme", ZNS)
    assert not port.allocate_zrwa(0)
    assert not fill(port, 1, b"a", 2)
    dumping = dump(device, tmp_path / "dump")
    for _ in dumping:
        pass
    assert not fill(port, 1, b"b", 4)
    copy = ZonedDevice.open(tmp_path / "dump").port("nvme", ZNS)
    assert letters(copy, 0, 6) == b"\0aa\0\0\0"
    assert copy.zone(0).attributes == Attribute.ZRWA
    copy.device.close()
    rewind(device, tmp_path / "dump")
    assert letters(port, 0, 6) == b"\0aa\0\0\0"
    assert (port.zone(0).wp, port.zone(0).attributes) == (0, Attribute.ZRWA)
    assert check_image(tmp_path / "dump") == []


def test_a_write_during_a_dump_saves_what_the_area_held(make_device: Maker, tmp_path: Path) -> None:
    device = make_device(AREAS)
    port = device.port("nvme", ZNS)
    assert not port.allocate_zrwa(0)
    assert not fill(port, 1, b"a", 2)
    copy = Copy(device.image.backing, device.image.header, tmp_path / "dump")
    copy.begin(ZoneStates(bytearray(device.image.conds), device.image.wps[:], bytearray(device.image.attributes)))
    copy.save(2 * 512, 3 * 512)
    assert not fill(port, 2, b"b")
    for _ in copy.run():
        pass
    copy.seal()
    after = ZonedDevice.open(tmp_path / "dump").port("nvme", ZNS)
    assert letters(after, 0, 4) == b"\0aa\0"
    after.device.close()


BOTH = Geometry(
    size=96, zone_size=16, zone_capacity=12, extension_bytes=64, zrwa_size=4, zrwa_granularity=2, max_zrwa=1
)


def test_an_extension_with_an_area(make_device: Maker) -> None:
    device = make_device(BOTH)
    log = io.StringIO()
    record(device, log)
    port = device.port("nvme", ZNS)
    device.image.backing.pwrite(b"x" * 512, 512)  # as a write that failed leaves it
    assert port.set_extension(0, DATA, zrwa=True) is Status.OK
    assert port.set_extension(16, DATA, zrwa=True) is Status.ZRWA_UNAVAILABLE
    assert port.set_extension(16, DATA) is Status.OK
    assert (port.zone(0).cond, port.zone(0).attributes) == (Condition.CLOSED, Attribute.ZRWA | Attribute.EXTENSION)
    assert port.zone(1).attributes == Attribute.EXTENSION
    assert not fill(port, 2, b"a", 2)
    assert letters(port, 0, 4) == b"\0\0aa"
    assert port.zone(0).wp == 0
    assert port.extension(0) == (Status.OK, DATA)
    other = make_device(BOTH, "b.img")
    replayed = replay(log.getvalue().splitlines(), other)
    assert (replayed.nr_operations, replayed.difference) == (5, None)
    assert other.port("nvme", ZNS).report(0, 2) == port.report(0, 2)


def test_an_area_with_an_extension_needs_images_that_have_both(
    make_device: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_device(AREAS).port("nvme", ZNS).set_extension(0, DATA, zrwa=True) is Status.UNSUPPORTED
    assert make_device(GEOMETRY, "b.img").port("nvme", ZNS).set_extension(0, DATA, zrwa=True) is Status.UNSUPPORTED
    device = make_device(BOTH, "c.img")

    def broken(_offset: int, _length: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(device.image.backing, "punch", broken)
    port = device.port("nvme", ZNS)
    assert port.set_extension(0, DATA, zrwa=True) is Status.IO_ERROR
    assert port.zone(0).attributes == 0


EXCURSIONS = Geometry(
    size=96, zone_size=16, zone_capacity=12, conventional=((5, 1),), max_active_zones=2, active_excursions=True
)


def test_the_drive_finishes_a_zone_by_itself(make_device: Maker) -> None:
    device = make_device(EXCURSIONS)
    log = io.StringIO()
    record(device, log)
    port = device.port("virtio", VIRTIO)
    assert not port.write(16, 4, (b"a" * 2048,))
    told: list[tuple[int, int]] = []
    device.subscribe(lambda zone_no, nr_zones: told.append((zone_no, nr_zones)))
    assert port.finish_by_controller(1) is Status.OK
    assert told == [(1, 1)]
    zone = port.zone(1)
    assert (zone.cond, zone.wp, zone.attributes) == (Condition.FULL, 20, Attribute.FINISHED_BY_CONTROLLER)
    assert port.write(20, 1, (bytes(512),)) is Status.ZONE_FULL
    sentence = EXPLAINER.explain(device.refusals.last(1)[0], device.geometry)
    assert "the drive has finished that zone by itself, in a zone active excursion" in sentence
    assert EXPLAINER.answers(device.refusals.last(1)[0])["nvme"] == "1B9h ZONE_IS_FULL"
    assert port.finish_by_controller(1) is Status.BAD_TRANSITION
    assert port.finish_by_controller(5) is Status.CONVENTIONAL
    assert port.finish_by_controller(6) is Status.OUT_OF_RANGE
    other = make_device(EXCURSIONS, "b.img")
    replayed = replay(log.getvalue().splitlines(), other)
    assert (replayed.nr_operations, replayed.difference) == (6, None)
    assert other.port("virtio", VIRTIO).zone(1) == zone
    device.close()
    assert port.finish_by_controller(0) is Status.POISONED


def test_a_full_zone_that_a_host_has_finished_is_no_excursion(make_device: Maker) -> None:
    device = make_device(EXCURSIONS)
    port = device.port("virtio", VIRTIO)
    assert not port.manage(Operation.FINISH, 0)
    assert port.write(0, 1, (bytes(512),)) is Status.ZONE_FULL
    assert "the drive" not in EXPLAINER.explain(device.refusals.last(1)[0], device.geometry).split(";")[0]


def test_a_drive_without_excursions_finishes_nothing(make_device: Maker) -> None:
    port = make_device(AREAS).port("virtio", VIRTIO)
    assert port.finish_by_controller(0) is Status.UNSUPPORTED
    plain = Geometry(size=96, zone_size=16, zone_capacity=12)
    assert make_device(plain, "b.img").port("virtio", VIRTIO).finish_by_controller(0) is Status.UNSUPPORTED
