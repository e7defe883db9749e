"""Descriptor extensions through a port: what it does beside the machine, and how a log records them."""

import io
from pathlib import Path

from tests.device.sectors import Maker
from zonefs_emu.device.oplog import record, replay
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, ZNS, Operation
from zonefs_emu.model.zone import Attribute, Condition

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
