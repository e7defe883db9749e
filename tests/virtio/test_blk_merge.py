"""Which writes are merged. What becomes of them is tested in test_blk.py."""

import struct
from dataclasses import replace
from typing import Final

import pytest

from zonefs_emu.model.geometry import Geometry
from zonefs_emu.virtio import blk_codec as codec
from zonefs_emu.virtio.blk_merge import Merger
from zonefs_emu.virtio.ring import Chain

ZONE: Final = 2048
GEOMETRY: Final = Geometry(size=4 * ZONE - 1024, zone_size=ZONE, zone_capacity=ZONE - 512)


def chain(kind: int, sector: int, nr_bytes: int) -> Chain:
    memory = memoryview(bytearray(struct.pack("<IIQ", kind, 0, sector) + bytes(nr_bytes)))
    return 0, [memory[:16], memory[16:]], [memoryview(bytearray(1))]


def collect(*requests: Chain, geometry: Geometry = GEOMETRY) -> list[tuple[int, int]]:
    data = requests[0][1][1:]
    sector = codec.HEADER.unpack(requests[0][1][0])[2]
    spans = Merger(geometry).collect(requests, 0, sector, len(data[0]) >> 9, data)
    assert data == [part for _, readable, _ in requests[: len(spans)] for part in readable[1:]]
    return spans


def write(sector: int, nr_sectors: int = 8) -> Chain:
    return chain(codec.T_OUT, sector, nr_sectors << 9)


def test_writes_that_continue_one_another() -> None:
    assert collect(write(0), write(8, 16), write(24)) == [(0, 8), (8, 16), (24, 8)]
    assert collect(write(0)) == [(0, 8)]


@pytest.mark.parametrize(
    "other",
    [
        write(16),
        write(0),
        chain(codec.T_IN, 8, 4096),
        chain(codec.T_OUT, 8, 4095),
        (0, write(8)[1][:1], [memoryview(bytearray(1))]),
        (0, [*write(8)[1], memoryview(bytes(512))], [memoryview(bytearray(1))]),
        (0, write(8)[1], []),
        (0, write(8)[1], [memoryview(bytearray(2))]),
        (0, [write(8)[1][0][:15], *write(8)[1][1:]], [memoryview(bytearray(1))]),
    ],
    ids=["gap", "again", "read", "half a sector", "no data", "two buffers", "no status", "long status", "short header"],
)
def test_what_ends_a_run(other: Chain) -> None:
    assert collect(write(0), other, write(16)) == [(0, 8)]


def test_a_merged_write_ends_at_the_capacity() -> None:
    end = ZONE - 512
    assert collect(write(end - 16), write(end - 8), write(end)) == [(end - 16, 8), (end - 8, 8)]
    end = 4 * ZONE - 1024  # the last zone is shorter than its capacity would be
    assert collect(write(end - 16), write(end - 8), write(end)) == [(end - 16, 8), (end - 8, 8)]
    assert collect(write(4 * ZONE), write(4 * ZONE + 8)) == [(4 * ZONE, 8)], "beyond the device"


def test_a_merged_write_has_a_length_that_it_gains_from() -> None:
    assert len(collect(*(write(8 * index) for index in range(100)))) == 64
    assert len(collect(*(write(index, 1) for index in range(1000)))) == 512


def test_each_part_has_whole_units_of_the_write_granularity() -> None:
    coarse = replace(GEOMETRY, write_granularity=8)
    assert collect(write(0), write(8, 4), write(12, 4), geometry=coarse) == [(0, 8)]
    assert collect(write(0, 4), write(4, 8), geometry=coarse) == [(0, 4)]
