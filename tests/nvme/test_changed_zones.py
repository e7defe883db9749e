"""Which changes of zones are the drive's own, and how a host learns of each of them once."""

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.nvme.conftest import BLOCK, NR_ZONES, UUID_1, ZONE, geometry
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.port import Port
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.nvme.changed_zones import ChangedZones
from zonefs_emu.nvme.namespace import Namespace

RECOMMEND_RESET, RECOMMEND_FINISH = Effect.RECOMMEND_RESET, Effect.RECOMMEND_FINISH
ZONE_SECTORS = ZONE * BLOCK // 512


@pytest.fixture
def device(tmp_path: Path) -> Iterator[ZonedDevice]:
    ZonedDevice.create(tmp_path / "image", replace(geometry(), active_excursions=True), uuid=UUID_1)
    device = ZonedDevice.open(tmp_path / "image")
    yield device
    device.close()


@pytest.fixture
def changed(device: ZonedDevice) -> Iterator[ChangedZones]:
    changed = ChangedZones(Namespace(device, 1), lambda: None)
    yield changed
    changed.close()


@pytest.fixture
def other(device: ZonedDevice) -> Port:
    return device.port("other", VIRTIO)


def write(port: Port, zone_no: int) -> None:
    assert not port.write(zone_no * ZONE_SECTORS, BLOCK // 512, (bytes(BLOCK),))


def news(changed: ChangedZones) -> list[int]:
    """Return the zones that the drive has changed since the last time, as the log page lists them."""
    has_news = changed.look()
    page = changed.page(retain=False)
    (count,) = struct.unpack_from("<H", page)
    zones = [start // ZONE for start in struct.unpack_from(f"<{count}Q", page, 8)]
    assert has_news == bool(zones)
    return zones


def test_an_excursion_is_news_and_what_hosts_do_is_none(changed: ChangedZones, other: Port) -> None:
    write(other, 1)
    write(other, 2)
    assert not other.manage(Operation.FINISH, 2 * ZONE_SECTORS)
    assert news(changed) == []
    assert not other.finish_by_controller(1)
    assert news(changed) == [1]
    assert news(changed) == []
    other.set_cond(1, Condition.READONLY)
    assert news(changed) == [1], "another change of the same zone"
    other.set_cond(1, Condition.OFFLINE)
    assert news(changed) == [], "as a host may ask for (Offline Zone)"


def test_the_page_of_an_excursion(changed: ChangedZones, other: Port) -> None:
    write(other, 3)
    assert not other.finish_by_controller(3)
    assert changed.look()
    for retain in (True, False):
        assert changed.page(retain=retain)[:24] == bytes.fromhex(
            "0100 000000000000"  # one zone
            "0003000000000000"  # from block 3 * 256
            "0000000000000000"
        )
    assert changed.page(retain=False) == bytes(4096)


def test_a_second_excursion_of_a_zone_is_news_also_if_nobody_looked_in_between(
    changed: ChangedZones, other: Port
) -> None:
    for _ in range(2):
        write(other, 1)
        assert not other.finish_by_controller(1)
        assert news(changed) == [1]
        assert not other.manage(Operation.RESET, ZONE_SECTORS)
    write(other, 1)
    assert not other.finish_by_controller(1)
    other.manage_all(Operation.RESET)
    assert news(changed) == []
    other.set_cond(1, Condition.READONLY)
    assert news(changed) == [1]
    other.set_cond(1, Condition.EMPTY)
    other.set_cond(1, Condition.READONLY)
    assert news(changed) == [1]


def test_recommendations_are_news_when_they_come_and_when_they_go(
    changed: ChangedZones, other: Port, device: ZonedDevice
) -> None:
    reset = device.inject(Fault(effect=RECOMMEND_RESET, first_zone=2, nr_zones=2))
    assert news(changed) == [2, 3]
    write(other, 4)
    finish = device.inject(Fault(effect=RECOMMEND_FINISH, first_zone=4, nr_zones=2))
    assert news(changed) == [4], "zone 5 is not active"
    write(other, 5)
    assert news(changed) == [5]
    assert not other.manage(Operation.FINISH, 5 * ZONE_SECTORS)
    assert news(changed) == [], "the host has done so"
    device.remove_fault(finish.id)
    assert news(changed) == [4]
    device.remove_fault(reset.id)
    assert news(changed) == [2, 3]
    device.inject(Fault(effect=RECOMMEND_RESET))
    assert news(changed) == list(range(NR_ZONES))


def test_a_controller_that_takes_over_tells_all(changed: ChangedZones, other: Port, device: ZonedDevice) -> None:
    write(other, 1)
    assert not other.finish_by_controller(1)
    other.set_cond(2, Condition.OFFLINE)
    device.inject(Fault(effect=RECOMMEND_RESET, first_zone=5, nr_zones=1))
    assert news(changed) == [1, 2, 5]
    changed.forget()
    assert news(changed) == [1, 2, 5]


def test_more_zones_than_the_page_can_list(tmp_path: Path) -> None:
    shape = Geometry(size=8 * 600, zone_size=8, zone_capacity=8, block_size_bytes=4096)
    ZonedDevice.create(tmp_path / "many", shape, uuid=UUID_1)
    device = ZonedDevice.open(tmp_path / "many")
    changed = ChangedZones(Namespace(device, 1), lambda: None)
    device.inject(Fault(effect=RECOMMEND_RESET))
    assert changed.look()
    assert changed.page(retain=False) == b"\xff\xff" + bytes(4094)
    changed.close()
    device.close()


@pytest.mark.parametrize(("first", "nr_zones", "expected"), [(NR_ZONES - 1, 5, [NR_ZONES - 1]), (1 << 62, 1, [])])
def test_a_recommendation_of_zones_that_are_not_there(
    device: ZonedDevice, changed: ChangedZones, first: int, nr_zones: int, expected: list[int]
) -> None:
    device.inject(Fault(effect=RECOMMEND_RESET, first_zone=first, nr_zones=nr_zones))
    assert news(changed) == expected


class NotSearched(dict[int, int]):
    """May have a million zones: it is asked for some of them."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("all zones are looked at, with the lock of the device held")


def test_a_change_of_few_zones_costs_few_looks(changed: ChangedZones) -> None:
    changed._known = NotSearched.fromkeys(range(NR_ZONES), 1)
    changed.touched(0, 2)
    assert set(changed._undone) == {0, 1}
    changed._known = {1: 1, 3: 1}
    changed.touched(2, 1 << 20)
    assert set(changed._undone) == {0, 1, 3}
