"""The shape of a device: what is derived from it, and what is impossible and says so."""

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.errors import UsageError
from zonefs_emu.model.geometry import LIMIT_MAX, NR_ZONES_MAX, ZONE_SIZE_MAX, Geometry, merge_runs
from zonefs_emu.model.zone import Attribute

#: Ten zones of 64 sectors, 48 of them writable; the last has 24; zones 0, 1, 4 and 9 are conventional.
MIXED = Geometry(size=600, zone_size=64, zone_capacity=48, conventional=((0, 2), (4, 1), (9, 1)), max_append=8)


def test_defaults() -> None:
    geometry = Geometry(size=128, zone_size=64, zone_capacity=64)
    assert geometry.block_size_bytes == 512
    assert geometry.write_granularity == geometry.block_sectors == 1
    assert geometry.max_open_zones == geometry.max_active_zones == 0
    assert geometry.max_append == 1024
    assert geometry.conventional == ()
    assert geometry.nr_conventional == 0


def test_granularity_is_the_block_unless_given() -> None:
    assert Geometry(size=128, zone_size=64, zone_capacity=64, block_size_bytes=4096).write_granularity == 8
    coarse = Geometry(size=128, zone_size=64, zone_capacity=64, block_size_bytes=4096, write_granularity=16)
    assert (coarse.write_granularity, coarse.block_sectors) == (16, 8)


def test_zones_of_a_mixed_device() -> None:
    assert MIXED.nr_zones == 10
    assert MIXED.nr_conventional == 4
    assert [n for n in range(10) if MIXED.is_conventional(n)] == [0, 1, 4, 9]
    assert list(MIXED.sequential_zones()) == [2, 3, 5, 6, 7, 8]
    assert [MIXED.zone_start(n) for n in (0, 1, 9)] == [0, 64, 576]
    assert [MIXED.zone_no(sector) for sector in (0, 63, 64, 599)] == [0, 0, 1, 9]
    assert [MIXED.zone_len(n) for n in range(10)] == [64] * 9 + [24]
    assert [MIXED.zone_cap(n) for n in range(10)] == [64, 64, 48, 48, 64, 48, 48, 48, 48, 24]


@pytest.mark.parametrize(("runt", "capacity"), [(40, 40), (48, 48), (56, 48), (64, 48)])
def test_a_runt_has_the_smaller_of_its_size_and_the_capacity(runt: int, capacity: int) -> None:
    geometry = Geometry(size=128 + runt, zone_size=64, zone_capacity=48)
    assert geometry.nr_zones == 3
    assert geometry.zone_len(2) == runt
    assert geometry.zone_cap(2) == capacity


def test_a_device_may_be_smaller_than_one_zone() -> None:
    geometry = Geometry(size=8, zone_size=64, zone_capacity=64)
    assert (geometry.nr_zones, geometry.zone_len(0), geometry.zone_cap(0)) == (1, 8, 8)
    assert list(geometry.sequential_zones()) == [0]


def test_only_conventional_zones() -> None:
    geometry = Geometry(size=128, zone_size=64, zone_capacity=64, conventional=((0, 2),))
    assert list(geometry.sequential_zones()) == []


def test_is_conventional_beyond_the_runs() -> None:
    geometry = Geometry(size=640, zone_size=64, zone_capacity=64, conventional=((3, 2),))
    assert [geometry.is_conventional(n) for n in (0, 2, 3, 4, 5, 9)] == [False, False, True, True, False, False]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": 0}, "size must be more than nothing, not 0 B"),
        ({"zone_size": 0}, "zone_size must be more than nothing, not 0 B"),
        ({"zone_capacity": 0}, "zone_capacity must be more than nothing, not 0 B"),
        ({"max_append": 0}, "max_append must be more than nothing, not 0 B"),
        ({"size": -64}, "size must be more than nothing, not -32 KiB"),
        ({"zone_capacity": 65}, "zone capacity of 32.5 KiB exceeds the zone size of 32 KiB"),
        ({"block_size_bytes": 1024}, "block size 1024 must be 512 or 4096 bytes"),
        (
            {"block_size_bytes": 4096, "write_granularity": 4},
            "write granularity of 2048 bytes must be a multiple of the block size of 4096 bytes",
        ),
        (
            {"write_granularity": -1},
            "write granularity of -512 bytes must be a multiple of the block size of 512 bytes",
        ),
        ({"write_granularity": 3}, "zone_size of 32768 bytes must be a multiple of 1536 bytes"),
        ({"size": 604, "block_size_bytes": 4096}, "size of 309248 bytes must be a multiple of 4096 bytes"),
        (
            {"block_size_bytes": 4096, "zone_size": 60, "size": 600},
            "zone_size of 30720 bytes must be a multiple of 4096 bytes",
        ),
        (
            {"zone_capacity": 20, "write_granularity": 8},
            "zone_capacity of 10240 bytes must be a multiple of 4096 bytes",
        ),
        ({"max_append": 20, "write_granularity": 8}, "max_append of 10240 bytes must be a multiple of 4096 bytes"),
        (
            {"zone_size": ZONE_SIZE_MAX + 1, "zone_capacity": ZONE_SIZE_MAX + 1, "size": ZONE_SIZE_MAX + 1},
            "zone size must not exceed 4 PiB",
        ),
        (
            {"zone_size": 8, "zone_capacity": 8, "size": 8 * (NR_ZONES_MAX + 1)},
            f"{NR_ZONES_MAX + 1} zones are more than the {NR_ZONES_MAX} supported",
        ),
        (
            {"conventional": ((0, 2), (2, 1))},
            "conventional zones 2+1 must ascend without touching",
        ),
        ({"conventional": ((4, 1), (0, 2))}, "conventional zones 0+2 must ascend without touching"),
        ({"conventional": ((0, 0),)}, "conventional zones 0+0 must ascend without touching"),
        ({"conventional": ((-1, 1),)}, "conventional zones -1+1 must ascend without touching"),
        (
            {"conventional": ((8, 3),)},
            "conventional zones up to number 10 do not exist: the device has 10 zones",
        ),
        ({"max_open_zones": -1}, f"max_open_zones -1 must lie between 0 (no limit) and {LIMIT_MAX}"),
        (
            {"max_active_zones": LIMIT_MAX + 1},
            f"max_active_zones {LIMIT_MAX + 1} must lie between 0 (no limit) and {LIMIT_MAX}",
        ),
        (
            {"max_open_zones": 3, "max_active_zones": 2},
            "max_open_zones 3 exceeds max_active_zones 2: an open zone is active, so it must not",
        ),
    ],
)
def test_an_impossible_shape_is_refused_in_one_sentence(change: dict[str, Any], sentence: str) -> None:
    good: dict[str, Any] = {"size": 600, "zone_size": 64, "zone_capacity": 48}
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        Geometry(**{**good, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"conventional": ((0, 10),)},
        {"conventional": ((9, 1),)},
        {"max_open_zones": 3},
        {"max_open_zones": 3, "max_active_zones": 3},
        {"max_active_zones": 1},
        {"max_open_zones": LIMIT_MAX, "max_active_zones": LIMIT_MAX},
        {"zone_capacity": 64},
        {"zone_capacity": 1},
    ],
)
def test_extreme_shapes_that_are_possible(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"size": 600, "zone_size": 64, "zone_capacity": 48}
    assert Geometry(**{**good, **change}).nr_zones == 10


def test_the_largest_numbers_are_written_down_once_more() -> None:
    """Users meet them in messages, and the fields of images and protocols have room for them: 32 bits for limits."""
    assert NR_ZONES_MAX == 16_777_216
    assert LIMIT_MAX == 0xFFFFFFFF


def test_the_largest_shapes_are_possible() -> None:
    assert Geometry(size=8 * NR_ZONES_MAX, zone_size=8, zone_capacity=8).nr_zones == NR_ZONES_MAX
    assert Geometry(size=ZONE_SIZE_MAX, zone_size=ZONE_SIZE_MAX, zone_capacity=ZONE_SIZE_MAX).nr_zones == 1


@given(st.sets(st.integers(0, 40)))
def test_every_zone_is_conventional_or_sequential(numbers: set[int]) -> None:
    runs = merge_runs([(number, 1) for number in numbers])
    geometry = Geometry(size=41, zone_size=1, zone_capacity=1, conventional=runs)
    assert {n for n in range(41) if geometry.is_conventional(n)} == numbers
    assert set(geometry.sequential_zones()) == set(range(41)) - numbers
    assert geometry.nr_conventional == len(numbers)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8))))
def test_merged_runs_cover_the_same_and_neither_touch_nor_overlap(runs: list[tuple[int, int]]) -> None:
    merged = merge_runs(runs)
    covered = [n for first, count in merged for n in range(first, first + count)]
    assert covered == sorted({n for first, count in runs for n in range(first, first + count)})
    assert all(first + count < following for (first, count), (following, _) in itertools.pairwise(merged))


def test_descriptor_extensions() -> None:
    assert not Geometry(size=16, zone_size=16, zone_capacity=16).has_attributes
    assert Geometry(size=16, zone_size=16, zone_capacity=16, extension_bytes=64 * 255).has_attributes
    for length in (-64, 1, 63, 65, 64 * 256):
        with pytest.raises(UsageError, match="must be a multiple of 64 up to 16320"):
            Geometry(size=16, zone_size=16, zone_capacity=16, extension_bytes=length)
    largest = 1 << 39
    Geometry(size=largest, zone_size=largest, zone_capacity=16, extension_bytes=64)
    with pytest.raises(UsageError, match="must not exceed 256 TiB with a zone descriptor extension, a zone random"):
        Geometry(size=4 * largest, zone_size=2 * largest, zone_capacity=16, extension_bytes=64)


def test_random_write_areas() -> None:
    plain = Geometry(size=64, zone_size=32, zone_capacity=24)
    assert plain.possible_attributes == 0
    areas = replace(plain, zrwa_size=8, zrwa_granularity=4, max_zrwa=3)
    assert areas.has_attributes
    assert areas.possible_attributes == Attribute.ZRWA
    assert replace(areas, extension_bytes=64).possible_attributes == Attribute.ZRWA | Attribute.EXTENSION
    assert [areas.covered(0, wp, Attribute.ZRWA) for wp in (0, 15, 16, 20)] == [8, 23, 24, 24]
    assert areas.covered(0, 15, Attribute.EXTENSION) == 15
    finished = replace(plain, active_excursions=True)
    assert finished.has_attributes
    assert finished.possible_attributes == Attribute.FINISHED_BY_CONTROLLER


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"zrwa_granularity": 4}, "need a size"),
        ({"max_zrwa": 1}, "need a size"),
        ({"zrwa_size": 8}, "must be a multiple of its granularity"),
        ({"zrwa_size": 8, "zrwa_granularity": 3}, "must be a multiple of its granularity"),
        ({"zrwa_size": 8, "zrwa_granularity": 16}, "must be a multiple of its granularity"),
        ({"zrwa_size": 8, "zrwa_granularity": 4, "write_granularity": 8}, "which must be a multiple of 4096 bytes"),
        ({"zrwa_size": 32, "zrwa_granularity": 8}, "at least as long as the zone random write area of 16384"),
        ({"zrwa_size": 20, "zrwa_granularity": 20}, "must be a multiple of 10240 bytes"),
        ({"zrwa_size": 8, "zrwa_granularity": 4, "max_zrwa": 1 << 32}, "max_zrwa 4294967296 must lie between 0"),
        (
            {"size": 1 << 17, "zone_size": 1 << 17, "zone_capacity": 1 << 17, "zrwa_size": 1 << 16,
             "zrwa_granularity": 1},
            "at most 65535 blocks",
        ),
    ],
)  # fmt: skip
def test_impossible_random_write_areas(parts: dict[str, int], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        replace(Geometry(size=64, zone_size=32, zone_capacity=24), **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sector", "nr_sectors", "end"), [(0, 0, 1), (0, 1, 1), (15, 1, 1), (15, 2, 2), (16, 0, 2), (16, 16, 2), (0, 96, 6)]
)
def test_the_zone_behind_a_request(sector: int, nr_sectors: int, end: int) -> None:
    assert Geometry(size=96, zone_size=16, zone_capacity=16).end_zone_no(sector, nr_sectors) == end
