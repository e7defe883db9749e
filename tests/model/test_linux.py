"""Which shapes Linux refuses, rule by rule."""

import pytest

from zonefs_emu.model import linux
from zonefs_emu.model.geometry import Geometry

MIB = 2048


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(size=8 * MIB, zone_size=MIB, zone_capacity=MIB),
        Geometry(size=8 * MIB, zone_size=MIB, zone_capacity=1000, conventional=((0, 2), (5, 1))),
        Geometry(size=8 * MIB - 512, zone_size=MIB, zone_capacity=MIB),
        Geometry(size=8 * MIB, zone_size=MIB, zone_capacity=MIB, block_size_bytes=4096, max_append=8),
        Geometry(size=8 * MIB, zone_size=MIB, zone_capacity=MIB, max_open_zones=100, max_active_zones=200),
        Geometry(size=8, zone_size=1, zone_capacity=1),
        Geometry(size=1 << 32, zone_size=1 << 31, zone_capacity=1 << 31),
    ],
)
def test_taken(geometry: Geometry) -> None:
    assert linux.refusals(geometry) == []


@pytest.mark.parametrize(
    ("geometry", "sentence"),
    [
        (
            Geometry(size=6 * MIB, zone_size=MIB * 3 // 2, zone_capacity=MIB),
            "Linux wants zones of a power of two, and these have 1.5 MiB",
        ),
        (
            Geometry(size=1 << 33, zone_size=1 << 32, zone_capacity=1 << 32),
            "Linux wants zones below 2 TiB, and these have 2 TiB",
        ),
        (
            Geometry(size=4 * MIB, zone_size=MIB, zone_capacity=MIB, conventional=((0, 4),)),
            "Linux wants at least one sequential zone on a zoned disk, and all of these are conventional",
        ),
        (
            Geometry(size=24 * 64, zone_size=24, zone_capacity=24, write_granularity=24, max_append=24),
            "Linux wants a write granularity of a power of two, and this is 12288 bytes",
        ),
    ],
)
def test_refused(geometry: Geometry, sentence: str) -> None:
    assert sentence in linux.refusals(geometry)


def test_each_rule_is_broken_by_itself() -> None:
    """A zone length that fits into 32 bits and is no power of two breaks one rule, not both."""
    longest = (1 << 32) - 1
    assert linux.refusals(Geometry(size=longest, zone_size=longest, zone_capacity=longest)) == [
        "Linux wants zones of a power of two, and these have 2.0 TiB"
    ]


def test_blocks() -> None:
    assert linux.block_refusals(512) == linux.block_refusals(4096) == []
    assert linux.block_refusals(8192) == [
        "Linux wants logical blocks of at most 4096 bytes, and the write granularity is 8192"
    ]
