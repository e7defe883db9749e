"""Packed rings: positions, and damage by hand."""

import struct

import pytest
from hypothesis import given, strategies as st

from tests.virtio.rings import Pair
from zonefs_emu.testing.driver_rings import GUEST_BASE
from zonefs_emu.virtio.packed import (
    DESC_AVAIL,
    DESC_USED,
    PackedRing,
    is_given_back,
    place_of,
    position_of,
)
from zonefs_emu.virtio.ring import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, BrokenRingError

A = GUEST_BASE + 0x8000


@given(size=st.integers(1, 32768), place=st.integers(0, 1 << 20))
def test_positions_and_places(size: int, place: int) -> None:
    position = position_of(place, size)
    assert position & 0x7FFF == place % size
    assert place_of(position, size) == place % (2 * size)


@pytest.mark.parametrize(
    ("descriptors", "sentence"),
    [
        ([(A, 0, 0)], "a buffer has 0 bytes"),
        ([(1, 5, 0)], "is not in the guest's memory"),
        ([(A, 1, DESC_NEXT)] * 8, "more descriptors than the ring"),
        ([(A, 1, DESC_NEXT | DESC_WRITE), (A, 1, 0)], "a readable buffer after a writable one"),
        ([(A, 16, DESC_INDIRECT | DESC_NEXT), (A, 1, 0)], "indirect descriptor is not the only one of its chain"),
        ([(A, 1, DESC_NEXT), (A, 16, DESC_INDIRECT)], "indirect descriptor is not the only one of its chain"),
        ([(A, 17, DESC_INDIRECT)], "an indirect table of 17 bytes"),
        ([(A, 16 * 1025, DESC_INDIRECT)], "an indirect table of 16400 bytes"),
        ([(1, 16, DESC_INDIRECT)], "is not in the guest's memory"),
    ],
)
def test_a_broken_chain(descriptors: list[tuple[int, int, int]], sentence: str) -> None:
    pair = Pair(is_packed=True)
    for index, (address, length, flags) in enumerate(descriptors):
        struct.pack_into("<QIHH", pair.bytes, 16 * index, address, length, 0, flags | DESC_AVAIL)
    with pytest.raises(BrokenRingError, match=sentence):
        pair.ring.pop(1)


def test_an_indirect_descriptor_inside_a_table() -> None:
    pair = Pair(is_packed=True)
    struct.pack_into("<QIHH", pair.bytes, 0x9000, A, 1, 0, DESC_INDIRECT)
    struct.pack_into("<QIHH", pair.bytes, 0, GUEST_BASE + 0x9000, 16, 0, DESC_INDIRECT | DESC_AVAIL)
    with pytest.raises(BrokenRingError, match="an indirect table contains an indirect descriptor"):
        pair.ring.pop(1)


def test_a_base_beyond_the_ring() -> None:
    pair = Pair(is_packed=True)
    views = pair.views()
    with pytest.raises(BrokenRingError, match="continue at 0x8"):
        PackedRing(8, *views, pair.memory, event_idx=True, base=8, fence=pair.fence, ordered=True)


@pytest.mark.parametrize(
    ("flags", "place", "given_back"),
    [
        (DESC_AVAIL, 3, False),  # available in the first turn
        (DESC_AVAIL | DESC_USED, 3, True),  # given back in it
        (DESC_USED, 3, True),  # and available again, in the second
        (DESC_USED, 11, False),
        (0, 11, True),
        (DESC_AVAIL, 11, True),
    ],
)
def test_is_given_back(flags: int, place: int, given_back: bool) -> None:
    assert is_given_back(flags << 48, place, 8) is given_back


def test_several_given_back_appear_at_once() -> None:
    """The first entry is stored last, so that a driver that looks before sees none of them."""
    pair = Pair(is_packed=True)
    numbers = [pair.add(), pair.add(), pair.add()]
    chains = pair.ring.pop(3)
    seen: list[int] = []
    desc = pair.ring._desc

    class Spy:
        def __getitem__(self, index: int) -> int:
            return desc[index]

        def __setitem__(self, index: int, value: int) -> None:
            seen.append(len(pair.driver._chains) if pair.driver._is_used() else -1)  # type: ignore[union-attr]
            desc[index] = value

    pair.ring._desc = Spy()  # type: ignore[assignment]
    pair.ring.push(chains, [1, 2, 3])
    assert seen == [-1, -1, -1]
    assert [tuple(done) for done in pair.driver.reap()] == list(zip(numbers, [1, 2, 3], strict=True))
