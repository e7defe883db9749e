"""An exception in the middle of a change is like a kill there: the device goes on with what the image has."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Final
from uuid import UUID

import pytest

import zonefs_emu
from zonefs_emu.device.core import DeviceCore
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.device.zone_states import load_zones, save_zones
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.machine import ZoneMachine
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition

PACKAGE: Final = str(Path(zonefs_emu.__file__).parent)
ZONE: Final = 2048
#: More zones than a portion has, limits that are reached, and room for a write that is long.
NR_ZONES: Final = 1100
SHAPE: Final = Geometry(
    size=NR_ZONES * ZONE * 2, zone_size=ZONE * 2, zone_capacity=ZONE * 2, conventional=((0, 1),), max_append=ZONE * 2,
    max_open_zones=2, max_active_zones=4,
)  # fmt: skip
START: Final = SHAPE.zone_size
LONG: Final = ZONE + 8
#: An exception in what reports an exception, or gives back what another one has interrupted, is a lost cause.
SPARED: Final = frozenset(("take_back", "published", "loaded", "take_over", "give_back", "kept", "changing"))


class PlantedError(Exception):
    """What no code foresees."""


def commands(port: Port) -> list[Callable[[], object]]:
    """All kinds of change, each of which makes room, fills a zone, or has portions."""
    data, long = [bytes(512 * 8)], [bytes(512 * LONG)]
    return [
        lambda: port.write(1 * START, 8, data),
        lambda: port.append(2 * START, 8, data),
        lambda: port.write(3 * START, 8, data),  # closes the oldest
        lambda: port.write(3 * START + 8, 8, data),
        lambda: port.write(4 * START, LONG, long),  # without the lock
        lambda: port.append(4 * START, START - LONG, [bytes(512 * (START - LONG))]),  # fills it
        lambda: port.manage(Operation.CLOSE, 3 * START),
        lambda: port.manage(Operation.OPEN, 1 * START),
        lambda: port.manage(Operation.FINISH, 2 * START, 2),
        lambda: port.manage(Operation.RESET, 2 * START, 1050),  # in portions
        lambda: port.write(3 * START, 8, data),  # applies pending resets first
        lambda: port.set_cond(7, Condition.READONLY),
        port.flush,
        port.power_cycle,
        lambda: load_zones(port.device, save_zones(port.device)),
        lambda: port.manage_all(Operation.RESET),
    ]


@contextmanager
def raising(target: CodeType | None, called: dict[CodeType, None]) -> Iterator[None]:
    """Raise at the first call of *target*; note what is called."""
    left = [target]

    def hook(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE):
            return
        called[code] = None
        if code is left[0]:
            left[0] = None
            raise PlantedError(code.co_qualname)

    sys.setprofile(hook)
    try:
        yield
    finally:
        sys.setprofile(None)


def consistent(device: DeviceCore) -> None:
    """The machine has what a kill would leave, counts it right, and nothing is held."""
    machine = device.machine
    with device.lock:
        conds, wps, attributes = device.image.published()
    assert (machine.conds, machine.wps, machine.attributes) == (conds, wps, attributes)
    counted = ZoneMachine(SHAPE, bytearray(conds), wps[:])
    assert (machine.nr_open, machine.nr_active) == (counted.nr_open, counted.nr_active)
    resources, expected = machine.resources, counted.resources
    assert (resources.open_zones, resources.active_zones) == (expected.open_zones, expected.active_zones)
    assert machine.nr_open <= SHAPE.max_open_zones
    assert machine.nr_active <= SHAPE.max_active_zones
    assert not device.holds.held


def goes_on(port: Port) -> None:
    """Every zone that was in use can be used by others, as many at once as may be active."""
    assert port.manage(Operation.RESET, START, 6) is Status.OK
    for zone_no in range(1, 5):
        assert port.write(zone_no * START, 8, [b"y" * 4096]) is Status.OK
    consistent(port.device)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_exception_in_any_function_leaves_a_state_that_a_kill_leaves(
    tmp_path: Path, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("PlantedError: .*: switched off")  # observers are among the functions

    def opened(name: str) -> ZonedDevice:
        path = tmp_path / name
        ZonedDevice.create(path, SHAPE, uuid=UUID(int=1))
        return ZonedDevice.open(path)

    device = opened("found")
    called: dict[CodeType, None] = {}
    for command in commands(device.port("a", VIRTIO)):
        with raising(None, called):
            command()
    device.close()
    targets = [code for code in called if code.co_name not in SPARED]
    assert len(targets) > 60
    for number, target in enumerate(targets):
        device = opened(str(number))
        port = device.port("a", VIRTIO)
        nr_raised = 0
        for command in commands(port):
            try:
                with raising(target if not nr_raised else None, {}):
                    command()
            except PlantedError:
                nr_raised += 1
                consistent(device)
        goes_on(device.port("b", VIRTIO))
        device.close()
        again = ZonedDevice.open(tmp_path / str(number))
        assert again.image.recovery == device.image.recovery
        again.close()
        (tmp_path / str(number)).unlink()
