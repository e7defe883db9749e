"""The space of zones: where data lie, and which calls give it back."""

from array import array
from collections.abc import Iterator
from dataclasses import replace

import pytest

from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Attribute, Condition
from zonefs_emu.persist.codec.words import ZoneStates
from zonefs_emu.persist.space import punch_leftovers, punch_unwritten, punch_zones, zone_extents
from zonefs_emu.testing.backings import MemoryBacking

#: Four zones of a block and a half, and a runt of four sectors.
GEOMETRY = Geometry(size=52, zone_size=12, zone_capacity=12)


class Extents(MemoryBacking):
    """Data lie where the test says."""

    def __init__(self, *runs: tuple[int, int]) -> None:
        super().__init__(bytearray(52 * 512))
        self.runs = runs
        self.punched: list[tuple[int, int]] = []

    def extents(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        assert (start, end) == (0, 52 * 512)
        return iter(self.runs)

    def punch(self, offset: int, length: int) -> None:
        self.punched.append((offset, length))


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], []),
        ([(0, 512)], [(0, 0, 512)]),
        ([(512, 12 * 512)], [(0, 512, 12 * 512), (1, 0, 512)]),
        ([(0, 12 * 512)], [(0, 0, 12 * 512)]),
        ([(0, 512), (1024, 512)], [(0, 0, 512), (0, 1024, 1536)]),
        ([(36 * 512, 16 * 512)], [(3, 0, 12 * 512), (4, 0, 4 * 512)]),
    ],
)
def test_data_are_told_zone_by_zone(runs: list[tuple[int, int]], expected: list[tuple[int, int, int]]) -> None:
    assert list(zone_extents(Extents(*runs), GEOMETRY)) == expected


@pytest.mark.parametrize(
    ("zone_numbers", "sectors"),
    [
        ([], []),
        ([0], [(0, 12)]),
        ([4], [(48, 4)]),
        ([0, 1, 3, 4], [(0, 24), (36, 16)]),
        ([1, 3], [(12, 12), (36, 12)]),
    ],
)
def test_neighbours_are_given_back_in_one_call(zone_numbers: list[int], sectors: list[tuple[int, int]]) -> None:
    backing = Extents()
    punch_zones(backing, GEOMETRY, zone_numbers)
    assert backing.punched == [(start * 512, length * 512) for start, length in sectors]


class Extending(Extents):
    """Data lie in all zones."""

    def __init__(self) -> None:
        super().__init__((0, 52 * 512))


def test_what_a_crash_left_in_empty_zones_and_behind_areas() -> None:
    geometry = replace(GEOMETRY, zrwa_size=4, zrwa_granularity=2)
    backing = Extending()
    conds = bytearray((Condition.EMPTY, Condition.EMPTY, Condition.CLOSED, Condition.EXP_OPEN, Condition.FULL))
    wps, attributes = array("Q", (0, 0, 3, 10, 4)), bytearray((0, 0, Attribute.ZRWA, Attribute.ZRWA, 0))
    punch_leftovers(backing, geometry, conds, wps, attributes)
    # Behind the area of zone 2: from sector 7 of it on. That of zone 3 reaches its end.
    assert backing.punched == [(0, 24 * 512), ((24 + 7) * 512, 5 * 512)]


class Unread(bytearray):
    """Attributes that nothing looks at."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError


def test_zones_without_areas_are_not_looked_at_one_by_one() -> None:
    """An image may have 16 million, and each would cost a microsecond at each start after a crash."""
    backing = Extents((0, 12 * 512))
    punch_leftovers(backing, GEOMETRY, bytearray((Condition.EMPTY,) * 5), array("Q", [0] * 5), Unread(5))
    assert backing.punched == [(0, 12 * 512)]


def test_what_lies_beyond_the_data_is_given_back_in_the_zones_that_are_named() -> None:
    backing = Extents()
    wps = array("Q", (0, 3, 12, 5, 0))
    punch_unwritten(backing, GEOMETRY, (1, 2, 4), ZoneStates(bytearray(5), wps, bytearray(5)))
    assert backing.punched == [((12 + 3) * 512, 9 * 512), (48 * 512, 4 * 512)]
