"""Which ports have compiled commands, and single ones held equal to Python; tests/virtqueue looks at runs of them."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.device.sectors import MIXED, pattern
from tests.requires import requires
from zonefs_emu.device.compiled_commands import compiled_commands
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.oplog import OpLog, RecordingPort
from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import MANAGEMENT, VIRTIO, Operation

if TYPE_CHECKING:
    from zonefs_emu.device.plain_commands import PlainCommands


@pytest.fixture
def device(tmp_path: Path) -> Iterator[ZonedDevice]:
    requires("walker")
    image = tmp_path / "image"
    ZonedDevice.create(image, Geometry(size=512, zone_size=128, zone_capacity=128), uuid=UUID(int=1))
    made = ZonedDevice.open(image)
    yield made
    made.close()


def test_a_port_has_some(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    commands = compiled_commands(port, run_sectors_max=8)
    assert commands is not None
    assert commands.port is port


def test_a_port_whose_answers_wait_has_none(device: ZonedDevice) -> None:
    device.start_timing("zn540")
    assert compiled_commands(device.port("test", VIRTIO), run_sectors_max=8) is None


def test_a_port_that_records_has_none(device: ZonedDevice, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        port = RecordingPort(device, "test", VIRTIO, log=OpLog(file, device))
        assert compiled_commands(port, run_sectors_max=8) is None


def test_an_image_that_was_let_go_has_none(device: ZonedDevice) -> None:
    device.access.let_go()
    assert compiled_commands(device.port("test", VIRTIO), run_sectors_max=8) is None


# -- single commands --------------------------------------------------------------------------------------------------


class Twins:
    """Two devices: one takes reads and writes by compiled commands, the other by its port."""

    def __init__(self, directory: Path) -> None:
        self.devices = []
        for name in ("compiled", "python"):
            ZonedDevice.create(directory / name, MIXED, uuid=UUID(int=1))
            self.devices.append(ZonedDevice.open(directory / name))
        self.ports = [device.port("test", VIRTIO) for device in self.devices]
        commands = compiled_commands(self.ports[0])
        assert commands is not None
        self._executors: list[PlainCommands | Port] = [commands, self.ports[1]]

    def write(self, sector: int, nr_sectors: int, generation: int, *, nr_buffers: int = 1) -> Status:
        data = pattern(sector, nr_sectors, generation)
        buffers = (data,) if nr_buffers == 1 else (data[:512], data[512:])
        status, other = (executor.write(sector, nr_sectors, buffers) for executor in self._executors)
        assert status is other
        return status

    def read(self, sector: int, nr_sectors: int) -> bytes:
        found = []
        for executor in self._executors:
            buffer = memoryview(bytearray(b"\xee") * (nr_sectors * 512))
            status = executor.read(sector, nr_sectors, (buffer,))
            found.append((status, b"" if status else bytes(buffer)))
        assert found[0] == found[1]
        return found[0][1]

    def manage(self, operation: Operation, sector: int) -> None:
        first, second = (port.manage(operation, sector) for port in self.ports)
        assert first is second

    def check(self) -> None:
        """Whatever can be seen of both is equal, but for the times of refusals."""
        first, second = (
            (
                port.report(0, 8),
                [device.counters.zone(zone_no) for zone_no in range(8)],
                [replace(refusal, time_ns=0) for refusal in device.refusals.last(1000)],
            )
            for device, port in zip(self.devices, self.ports, strict=True)
        )
        assert first == second

    def take_from_python(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fail when the port is asked for a read or a write."""
        for name in ("read", "write"):
            monkeypatch.setattr(self.ports[0], name, None)


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[Twins]:
    requires("walker")
    made = Twins(tmp_path)
    yield made
    made.check()
    for device in made.devices:
        device.close()


@pytest.mark.parametrize("seed", range(10))
def test_any_commands_are_answered_as_python_does(twins: Twins, seed: int) -> None:
    rng = random.Random(seed)
    nr_done = 0
    for generation in range(400):
        zone = twins.ports[0].zone(rng.randrange(8))
        nr_sectors = rng.choice((0, 1, 2, 8, 40, 60))
        if rng.random() < 0.1:
            twins.manage(rng.choice(MANAGEMENT), zone.start)
        elif rng.random() < 0.3:
            twins.read(rng.choice((zone.start, zone.wp, rng.randrange(500))), nr_sectors)
        else:
            sector = zone.wp if rng.random() < 0.8 else rng.randrange(500)
            nr_buffers = 2 if nr_sectors > 1 and rng.random() < 0.1 else 1
            nr_done += twins.write(sector, nr_sectors, generation, nr_buffers=nr_buffers) is Status.OK
    assert nr_done > 40
    twins.check()


def test_plain_commands_are_not_pythons(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    assert twins.write(128, 8, 1) is Status.OK  # opens the zone
    twins.take_from_python(monkeypatch)
    assert twins.write(136, 8, 2) is Status.OK
    assert twins.read(136, 8) == pattern(136, 8, 2)
    with pytest.raises(TypeError):  # not at the write pointer
        twins.write(150, 8, 3)
    with pytest.raises(TypeError):  # beyond it
        twins.read(140, 8)


def test_an_injected_fault_is_pythons(twins: Twins) -> None:
    assert twins.write(128, 8, 1) is Status.OK
    for device in twins.devices:
        device.faults.add(Fault(effect=Effect.FAIL, operations=frozenset((Operation.WRITE,))))
    assert twins.write(136, 8, 2) is Status.IO_ERROR
    assert twins.write(136, 8, 3) is Status.OK


def test_a_buffer_of_another_length_is_pythons(twins: Twins) -> None:
    assert twins.write(128, 8, 1) is Status.OK
    commands = compiled_commands(twins.ports[0])
    assert commands is not None
    for length in (512, 9 * 512):
        with pytest.raises(AssertionError):
            commands.write(136, 8, (bytes(length),))
    assert twins.ports[0].zone(2).wp == 136
