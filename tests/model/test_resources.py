"""Which resources a command needs, and the order in which the limits are looked at."""

from collections.abc import Callable

import pytest

from zonefs_emu.errors import CommandError, Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.resources import Resources
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition

EM, OI, OE, CL, FU = (Condition[name] for name in ("EMPTY", "IMP_OPEN", "EXP_OPEN", "CLOSED", "FULL"))


def resources(conds: list[Condition], max_open: int, max_active: int) -> Resources:
    geometry = Geometry(
        size=16 * len(conds), zone_size=16, zone_capacity=16, max_open_zones=max_open, max_active_zones=max_active
    )
    return Resources(geometry, bytearray(conds))


def refusal(check: Callable[[], object]) -> tuple[Status, int]:
    with pytest.raises(CommandError) as caught:
        check()
    return caught.value.status, caught.value.zone_no


def test_accounts_follow_the_conditions() -> None:
    conds = [EM, OI, OE, CL, FU, EM]
    held = resources(conds, 4, 5)
    for zone_no, target in ((0, OI), (1, OE), (2, CL), (3, EM), (1, FU), (0, EM), (5, OE), (5, OE)):
        held.move(zone_no, conds[zone_no], target)
        conds[zone_no] = target
        counted = resources(conds, 4, 5)
        assert (held.nr_open, held.nr_active) == (counted.nr_open, counted.nr_active)
        assert (held.open_zones, held.active_zones) == (counted.open_zones, counted.active_zones)
        assert set(held.recency.oldest()) == set(counted.recency.oldest())


def test_the_active_limit_is_looked_at_first() -> None:
    held = resources([OE, EM, CL], 1, 2)
    assert refusal(lambda: held.require_for(1, EM, 0)) == (Status.ACTIVE_RESOURCE, 1)
    assert refusal(lambda: held.require_for(2, CL, 0)) == (Status.OPEN_RESOURCE, 2)
    held.require_for(0, OE, 0)
    row = VIRTIO.table[Operation.OPEN]
    moving = frozenset((EM, OI, CL))
    assert refusal(lambda: held.require_for_all(moving, row, bytearray((EM,)), 1, 0)) == (Status.ACTIVE_RESOURCE, 1)
    assert refusal(lambda: held.require_for_all(moving, row, bytearray((CL,)), 2, 0)) == (Status.OPEN_RESOURCE, 2)


def test_a_zone_that_is_kept_open_makes_no_room() -> None:
    held = resources([OI, OI, EM], 2, 0)
    held.require_for(2, EM, 1)
    assert refusal(lambda: held.require_for(2, EM, 2)) == (Status.OPEN_RESOURCE, 2)
    moving = frozenset((EM,))
    assert held.require_to_finish(moving, bytearray((EM,)), 2, 1) == 1
    assert refusal(lambda: held.require_to_finish(moving, bytearray((EM,)), 2, 2)) == (Status.OPEN_RESOURCE, 2)
