"""Descriptor extensions of zones, and zones that the drive finishes by itself: which get it, and when they lose it."""

from array import array

import pytest

from zonefs_emu.errors import CommandError, Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.machine import ZoneMachine, fresh_zones
from zonefs_emu.model.transitions import VIRTIO, ZNS, Operation
from zonefs_emu.model.zns_machine import ZnsMachine
from zonefs_emu.model.zone import Attribute, Condition
from zonefs_emu.model.zrwa_machine import make_machine

EXTENDED = Geometry(size=96, zone_size=16, zone_capacity=16, max_open_zones=1, max_active_zones=2, extension_bytes=64)
EXTENSION = Attribute.EXTENSION


def fresh() -> ZnsMachine:
    machine = make_machine(EXTENDED, *fresh_zones(EXTENDED), bytearray(6))
    assert isinstance(machine, ZnsMachine)
    return machine


def extend(machine: ZnsMachine, sector: int) -> None:
    machine.set_extension(machine.begin_set_extension(sector, ZNS), ZNS)


def refusal(machine: ZnsMachine, sector: int) -> tuple[Status, int | None]:
    before = bytes(machine.conds), list(machine.wps), bytes(machine.attributes)
    with pytest.raises(CommandError) as refused:
        machine.begin_set_extension(sector, ZNS)
    assert (bytes(machine.conds), list(machine.wps), bytes(machine.attributes)) == before
    return refused.value.status, refused.value.zone_no


def test_a_machine_fits_its_geometry() -> None:
    plain = Geometry(size=96, zone_size=16, zone_capacity=16)
    assert type(make_machine(plain, *fresh_zones(plain), bytearray(6))) is ZoneMachine
    assert type(fresh().loaded(*fresh_zones(EXTENDED), bytearray(6))) is ZnsMachine


def test_an_empty_zone_gets_an_extension_and_is_closed() -> None:
    machine = fresh()
    extend(machine, 16)
    assert machine.zone(1).cond is Condition.CLOSED
    assert machine.zone(1).attributes == EXTENSION
    assert (machine.nr_open, machine.nr_active) == (0, 1)


@pytest.mark.parametrize("cond", [cond for cond in Condition if cond not in (Condition.NOT_WP, Condition.EMPTY)])
def test_no_other_zone_gets_one(cond: Condition) -> None:
    conds, wps = bytearray(b"\1" * 6), array("Q", [0] * 6)
    conds[2], wps[2] = cond, 4
    machine = ZnsMachine(EXTENDED, conds, wps)
    assert refusal(machine, 32) == (Status.BAD_TRANSITION, 2)


def test_refusals() -> None:
    machine = fresh()
    assert refusal(machine, 96)[0] is Status.OUT_OF_RANGE
    assert refusal(machine, -16)[0] is Status.OUT_OF_RANGE
    assert refusal(machine, -1)[0] is Status.OUT_OF_RANGE
    assert refusal(machine, 17) == (Status.NOT_ZONE_START, 1)
    extend(machine, 0)
    extend(machine, 16)
    assert refusal(machine, 32) == (Status.ACTIVE_RESOURCE, 2)
    conventional = Geometry(size=96, zone_size=16, zone_capacity=16, conventional=((0, 1),), extension_bytes=64)
    assert refusal(ZnsMachine(conventional, *fresh_zones(conventional)), 0) == (Status.CONVENTIONAL, 0)


def test_it_lasts_until_the_zone_is_empty() -> None:
    machine = fresh()
    extend(machine, 0)
    for operation, cond in (
        (Operation.OPEN, Condition.EXP_OPEN),
        (Operation.CLOSE, Condition.CLOSED),
        (Operation.FINISH, Condition.FULL),
    ):
        machine.manage(operation, 0, 1, ZNS)
        assert (machine.zone(0).cond, machine.zone(0).attributes) == (cond, EXTENSION)
    machine.manage(Operation.RESET, 0, 1, ZNS)
    assert (machine.zone(0).cond, machine.zone(0).attributes) == (Condition.EMPTY, 0)


def test_a_zone_with_an_extension_is_not_emptied_by_closing_it_in_any_dialect_or_by_a_power_cut() -> None:
    machine = fresh()
    extend(machine, 0)
    machine.manage(Operation.OPEN, 0, 1, VIRTIO)
    machine.manage(Operation.CLOSE, 0, 1, VIRTIO)
    assert (machine.zone(0).cond, machine.zone(0).attributes) == (Condition.CLOSED, EXTENSION)
    machine.manage(Operation.OPEN, 0, 1, ZNS)
    machine.power_cycle()
    assert (machine.zone(0).cond, machine.zone(0).attributes) == (Condition.CLOSED, EXTENSION)


def test_reset_all_and_a_repair_by_hand_take_it_away() -> None:
    machine = fresh()
    extend(machine, 0)
    extend(machine, 16)
    machine.set_cond(0, Condition.READONLY)
    assert machine.zone(0).attributes == EXTENSION
    machine.set_cond(0, Condition.EMPTY)
    machine.manage_all(Operation.RESET, ZNS)
    assert not any(machine.attributes)
    assert machine.nr_active == 0


def test_attributes_are_loaded_with_the_states() -> None:
    machine = fresh()
    conds, wps, attributes = bytearray((1, 4, 1, 1, 1, 1)), array("Q", [0] * 6), bytearray((0, 1, 0, 0, 0, 0))
    machine.take_over(machine.loaded(conds, wps, attributes))
    assert machine.zone(1).attributes == EXTENSION


EXCURSIONS = Geometry(size=96, zone_size=16, zone_capacity=16, max_active_zones=2, active_excursions=True)
FINISHED = Attribute.FINISHED_BY_CONTROLLER
ACTIVE = (Condition.IMP_OPEN, Condition.EXP_OPEN, Condition.CLOSED)


def with_zone_1_in(geometry: Geometry, cond: Condition, wp: int, attributes: int = 0) -> ZnsMachine:
    conds, wps = fresh_zones(geometry)
    conds[1], wps[1] = cond, wp
    bits = bytearray(6)
    bits[1] = attributes
    machine = make_machine(geometry, conds, wps, bits)
    assert isinstance(machine, ZnsMachine)
    return machine


@pytest.mark.parametrize("cond", ACTIVE)
def test_the_drive_finishes_an_active_zone(cond: Condition) -> None:
    machine = with_zone_1_in(EXCURSIONS, cond, 4)
    assert machine.finish_by_controller(1).zones == [1]
    zone = machine.zone(1)
    assert (zone.cond, zone.wp, zone.attributes) == (Condition.FULL, 16 + 4, FINISHED)
    assert (machine.nr_open, machine.nr_active) == (0, 0)


@pytest.mark.parametrize("cond", [cond for cond in Condition if cond not in (*ACTIVE, Condition.NOT_WP)])
def test_the_drive_finishes_no_other_zone(cond: Condition) -> None:
    machine = with_zone_1_in(EXCURSIONS, cond, 0)
    with pytest.raises(CommandError) as refused:
        machine.finish_by_controller(1)
    assert (refused.value.status, refused.value.zone_no) == (Status.BAD_TRANSITION, 1)
    assert (machine.zone(1).cond, machine.zone(1).attributes) == (cond, 0)


def test_only_a_drive_that_has_excursions_finishes_zones() -> None:
    with pytest.raises(CommandError) as refused:
        with_zone_1_in(EXTENDED, Condition.CLOSED, 4).finish_by_controller(1)
    assert refused.value.status is Status.UNSUPPORTED
    with pytest.raises(CommandError) as refused:
        with_zone_1_in(EXCURSIONS, Condition.CLOSED, 4).finish_by_controller(6)
    assert refused.value.status is Status.OUT_OF_RANGE


def test_a_finished_zone_is_known_until_it_is_reset() -> None:
    """ZNS 1.1, Reset Zone: Zone Finished by Controller is cleared."""
    machine = with_zone_1_in(EXCURSIONS, Condition.CLOSED, 4)
    machine.finish_by_controller(1)
    machine.manage(Operation.FINISH, 16, 1, ZNS)
    assert machine.zone(1).attributes == FINISHED
    for lost in (Condition.READONLY, Condition.OFFLINE):
        machine.set_cond(1, lost)
        assert machine.zone(1).attributes == FINISHED
    machine.set_cond(1, Condition.FULL)
    machine.manage(Operation.RESET, 16, 1, VIRTIO)
    assert (machine.zone(1).cond, machine.zone(1).attributes) == (Condition.EMPTY, 0)


def test_a_finished_zone_that_is_repaired_is_one_like_others() -> None:
    machine = with_zone_1_in(EXCURSIONS, Condition.FULL, 4, FINISHED)
    machine.set_cond(1, Condition.CLOSED)
    assert machine.zone(1).attributes == 0


def test_an_offline_zone_has_no_extension_any_more() -> None:
    """ZNS 1.1, Zone Descriptor Extension: until the zone transitions to ZSE:Empty or ZSO:Offline."""
    machine = with_zone_1_in(EXTENDED, Condition.CLOSED, 4, EXTENSION)
    machine.set_cond(1, Condition.READONLY)
    assert machine.zone(1).attributes == EXTENSION
    machine.set_cond(1, Condition.OFFLINE)
    assert machine.zone(1).attributes == 0
