"""Commands that take as long as on a drive, on a virtual clock."""

from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from uuid import uuid4

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.faulty_port import FaultyPort
from zonefs_emu.device.oplog import record
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.device.virtual_clock import VirtualClock
from zonefs_emu.errors import Status, UsageError
from zonefs_emu.model.presets import build_geometry
from zonefs_emu.model.timing.waits import Wait
from zonefs_emu.model.transitions import VIRTIO, ZNS, Operation

ZONE = 128
BLOCK = (bytes(4096),)


class World:
    """A device of 2000 zones of 64 KiB, which takes the time of a zn540 on a virtual clock."""

    def __init__(self, path: Path) -> None:
        geometry = build_geometry(size=2000 << 16, zone_size=1 << 16)
        ZonedDevice.create(path, geometry, uuid=uuid4())
        self.device = ZonedDevice.open(path)
        self.clock = VirtualClock()
        self.device.sleep_ns = self.clock.advance
        timing = self.device.start_timing("zn540", clock=self.clock.now)
        assert timing is not None
        self.timing = timing
        port = self.device.port("test", VIRTIO)
        assert isinstance(port, TimedPort)
        self.port = port
        self._looked_ns = 0

    def took(self) -> int:
        """Return how long it is since the last call."""
        before_ns, self._looked_ns = self._looked_ns, self.clock.now_ns
        return self.clock.now_ns - before_ns


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path / "z.img")
    yield found
    found.device.close()


def test_each_command_takes_its_time(world: World) -> None:
    port, start = world.port, 5 * ZONE
    assert port.write(start, 8, BLOCK) == 0
    assert 12_000 < world.took() < 16_000, "the first write of an empty zone"
    assert port.write(start + 8, 8, BLOCK) == 0
    assert 9_000 < world.took() < 13_000
    assert port.append(start, 8, BLOCK) == (0, start + 16)
    assert 12_000 < world.took() < 18_000
    assert port.read(start, 8, (bytearray(4096),)) == 0
    assert 60_000 < world.took() < 100_000
    assert port.manage(Operation.FINISH, start) == 0
    assert 2_550_000 < world.took() < 2_700_000
    assert port.manage(Operation.RESET, start) == 0
    assert 4_000_000 < world.took() < 5_000_000
    assert port.manage(Operation.OPEN, start) == 0
    assert 9_000 < world.took() < 12_000
    assert port.flush() == 0
    assert world.took() == 0


@pytest.mark.parametrize("has_faults", [False, True])
def test_what_was_not_measured_takes_the_time_of_the_nearest(tmp_path: Path, *, has_faults: bool) -> None:
    """Zone random write areas and descriptor extensions, also where faults were injected, none of which strike them."""
    geometry = build_geometry(size=2000 << 16, zone_size=1 << 16)
    shape = replace(geometry, zrwa_size=16, zrwa_granularity=8, max_zrwa=4, extension_bytes=64)
    ZonedDevice.create(tmp_path / "image", shape, uuid=uuid4())
    device = ZonedDevice.open(tmp_path / "image")
    clock = VirtualClock()
    device.sleep_ns = clock.advance
    device.start_timing("zn540", clock=clock.now)
    if has_faults:
        device.inject(Fault(operations=frozenset((Operation.READ,)), effect=Effect.FAIL, status=Status.IO_ERROR))
    port = device.port("test", ZNS)

    timing = device.timing
    assert timing is not None

    def taken_as(status: Status) -> tuple[Operation, int]:
        assert status is Status.OK
        assert clock.now_ns == timing.last()[-1].begin_ns + timing.last()[-1].latency_ns
        return timing.last()[-1].operation, timing.last()[-1].zone_no

    assert taken_as(port.allocate_zrwa(ZONE)) == (Operation.OPEN, 1)
    assert taken_as(port.write(ZONE + 8, 8, BLOCK)) == (Operation.WRITE, 1)
    assert taken_as(port.write(ZONE, 8, BLOCK)) == (Operation.WRITE, 1)
    clock.advance(10**9)
    assert taken_as(port.flush_zrwa(ZONE)) == (Operation.CLOSE, 1)
    clock.advance(10**9)
    assert taken_as(port.set_extension(2 * ZONE, bytes(64))) == (Operation.OPEN, 2)
    before_ns = clock.now_ns
    assert port.flush_zrwa(3 * ZONE) is not Status.OK
    assert port.allocate_zrwa(2000 * ZONE) is not Status.OK
    assert clock.now_ns == before_ns, "what is refused takes no time"
    device.close()


def test_what_is_refused_takes_no_time_and_reaches_no_drive(world: World) -> None:
    assert world.port.write(5 * ZONE + 8, 8, BLOCK) is Status.UNALIGNED_WP
    assert world.port.read(2000 * ZONE, 8, (bytearray(4096),)) is Status.OUT_OF_RANGE
    assert world.port.write(2000 * ZONE, 8, BLOCK) is Status.OUT_OF_RANGE
    assert world.port.manage(Operation.RESET, 2000 * ZONE) is Status.OUT_OF_RANGE
    assert world.clock.now_ns == 0
    assert not world.timing.times()


def test_commands_on_many_zones_take_the_time_of_each(world: World) -> None:
    for zone_no in range(1500):
        assert world.port.write(zone_no * ZONE, ZONE, (bytes(1 << 16),)) == 0
    world.took()
    assert world.port.manage(Operation.RESET, 0, 2) == 0
    assert 2 * 15_000_000 < world.took() < 2 * 19_500_000  # some resets are slow ones
    assert world.port.manage_all(Operation.RESET) == 0
    assert 1498 * 15_000_000 < world.took() < 1498 * 16_500_000, "those that had data"
    assert world.port.manage_all(Operation.RESET) == 0
    assert world.took() == 0


def test_what_is_submitted_at_once_shares_the_drive(world: World) -> None:
    start = 5 * ZONE
    many = [world.clock.submit(world.port.append, start, 8, BLOCK) for _ in range(16)]
    assert [submitted.result for submitted in many] == [(0, start + 8 * number) for number in range(16)]
    assert world.clock.now_ns == 0
    world.clock.run_until_idle()
    assert many[-1].end_ns == world.clock.now_ns
    assert many[-1].latency_ns > 5 * many[0].latency_ns
    assert world.timing.last()[-1].waited_for == Wait.CONTROLLER


def test_an_injected_delay_comes_on_top(world: World) -> None:
    fault = Fault(effect=Effect.DELAY, operations=frozenset((Operation.READ,)), delay_min_ns=10**9, delay_max_ns=10**9)
    world.device.inject(fault)
    assert world.port.read(0, 8, (bytearray(4096),)) == 0
    assert 10**9 + 60_000 < world.clock.now_ns < 10**9 + 100_000


def test_a_front_end_that_can_answer_later_is_told_how_much_later(world: World) -> None:
    delays_ns: list[int] = []
    world.port.defer = delays_ns.append
    assert world.port.write(0, 8, BLOCK) == 0
    assert world.clock.now_ns == 0
    (delay_ns,) = delays_ns
    assert 12_000 < delay_ns < 16_000


def test_a_recorded_port_is_timed_as_well(world: World) -> None:
    file = StringIO()
    record(world.device, file)
    port = world.device.port("noted", VIRTIO)
    assert port.write(0, 8, BLOCK) == 0
    assert world.clock.now_ns > 12_000
    assert '"op": "write"' in file.getvalue()


def test_none_is_the_plain_port(tmp_path: Path) -> None:
    ZonedDevice.create(tmp_path / "a", build_geometry(size=1 << 20), uuid=uuid4())
    device = ZonedDevice.open(tmp_path / "a")
    try:
        assert device.start_timing("none") is None
        assert type(device.port("test", VIRTIO)) is FaultyPort
        with pytest.raises(UsageError, match="there is no timing preset 'fast': there are zn540, smr-hm, none"):
            device.start_timing("fast")
    finally:
        device.close()
