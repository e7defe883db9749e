"""The parts that reads and writes look up are what their owners use, whatever has happened to the device."""

from dataclasses import FrozenInstanceError, fields

import pytest

from tests.device.sectors import RESET, Maker, write
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.hot_path import HotPath
from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import VIRTIO


def parts_of_the_owners(device: ZonedDevice) -> dict[str, object]:
    image, machine, counters = device.image, device.machine, device.counters
    return {
        "lock": image.lock, "access": device.access, "image": image, "held": device.holds.held,
        "old_extents": image.old_extents, "rows": counters.rows, "load_row": counters.load,
        "begin_write": machine.begin_write, "begin_append": machine.begin_append,
        "commit_write": machine.commit_write, "publish": image.publish, "zone_size": device.geometry.zone_size,
    }  # fmt: skip


def parts_are_current(device: ZonedDevice) -> None:
    owned = parts_of_the_owners(device)
    assert list(owned) == [part.name for part in fields(HotPath)]
    for name, part in owned.items():
        cached = getattr(device.hot_path, name)
        assert cached == part if callable(part) else cached is part, name
    # The arrays that the machine's methods look at are the image's own.
    assert device.machine.conds is device.image.conds
    assert device.machine.wps is device.image.wps


def test_no_part_is_left_behind(device: ZonedDevice, port: Port) -> None:
    parts_are_current(device)
    write(port, 128, 8)
    states = device.save_zones()
    assert port.manage(RESET, 128) is Status.OK
    assert port.flush() is Status.OK
    device.load_zones(states)
    port.power_cycle()
    device.remove_fault(device.inject(Fault(effect=Effect.RECOMMEND_RESET)).id)
    assert port._faults is device.faults.faults  # type: ignore[attr-defined]  # of a FaultyPort
    with device.lock:
        device.take_back()
    device.counters.save()
    device.add_write_hook(hook := lambda _offset, _nr_bytes: None, observer="a hook", failed=lambda _: None)
    write(port, 136, 8)
    device.remove_write_hook(hook)
    parts_are_current(device)


def test_a_part_cannot_be_bound_again(make_device: Maker) -> None:
    path = make_device().hot_path
    for part in fields(path):
        with pytest.raises(FrozenInstanceError):
            setattr(path, part.name, None)


def test_ports_share_what_does_change(device: ZonedDevice, port: Port) -> None:
    """A port that was made before and one that was made after see the image let go."""
    write(port, 128, 8)
    device.close()
    late = device.port("late", VIRTIO)
    for each in (port, late):
        assert each.read(128, 8, [bytearray(4096)]) is Status.IO_ERROR
