"""The words of zones both ways, and which of them are possible."""

import struct
from array import array
from dataclasses import replace

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.persist.codec.samples import SMALL, packed, words_of_zones
from zonefs_emu.errors import CorruptImageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist.codec.words import (
    LIVE_PRIME,
    ZoneStates,
    check_words,
    decode_live,
    encode_live,
    impossible_zones,
    pack_word,
    pack_words,
    unpack_state,
    unpack_states,
    unpack_word,
    unpack_words,
)


@hypothesis.given(zones=words_of_zones)
def test_words_and_live_words_round_trip(zones: list[tuple[int, int]]) -> None:
    words = packed(zones)
    assert list(struct.unpack(f"<{len(zones)}Q", words)) == [pack_word(*zone) for zone in zones]
    conds, wps = unpack_words(words)
    assert list(zip(conds, wps, strict=True)) == zones == [unpack_word(pack_word(*z)) for z in zones]
    assert decode_live(encode_live(words), offset=0) == words


@hypothesis.given(zones=words_of_zones.filter(lambda zones: len(zones) < 20), data=st.data(), flip=st.integers(1, 255))
def test_any_changed_byte_of_a_live_word_is_seen(zones: list[tuple[int, int]], data: st.DataObject, flip: int) -> None:
    live = bytearray(encode_live(packed(zones)))
    at = data.draw(st.integers(0, len(live) - 1))
    live[at] ^= flip
    with pytest.raises(CorruptImageError, match=f"live table, zone {at // 8} at byte {1000 + at // 8 * 8}"):
        decode_live(bytes(live), offset=1000)


def test_a_live_word_that_is_too_large_is_left_to_the_check_of_words() -> None:
    too_large = (LIVE_PRIME << 48).to_bytes(8, "little")
    words = decode_live(encode_live(bytes(8)) + too_large, offset=0)
    with pytest.raises(CorruptImageError, match="zone 1 at byte 0: found condition 0 with 17592186044416 sectors"):
        check_words(
            Geometry(size=16, zone_size=8, zone_capacity=8, conventional=((0, 1),)),
            *unpack_words(words), what="live table", offset=0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("zone_no", "cond", "nr_written", "is_possible"),
    [
        (0, Condition.NOT_WP, 0, True),
        (0, Condition.OFFLINE, 0, True),
        (0, Condition.NOT_WP, 1, False),
        (0, Condition.EMPTY, 0, False),
        (4, Condition.READONLY, 0, True),
        (1, Condition.NOT_WP, 0, False),
        (1, Condition.EMPTY, 1, False),
        (1, Condition.IMP_OPEN, 5, True),
        (1, Condition.EXP_OPEN, 0, True),
        (1, Condition.CLOSED, 6, False),
        (1, Condition.FULL, 6, True),
        (1, Condition.FULL, 7, False),
        (1, Condition.READONLY, 6, True),
        (1, 5, 0, False),
        (5, Condition.FULL, 4, True),
        (5, Condition.FULL, 5, False),
        (5, Condition.CLOSED, 3, True),
        (5, Condition.CLOSED, 4, False),
    ],
)
def test_which_words_are_possible(zone_no: int, cond: int, nr_written: int, is_possible: bool) -> None:
    conds = bytearray((0, 1, 1, 0, 0, 1))
    wps = array("Q", bytes(48))
    conds[zone_no], wps[zone_no] = cond, nr_written
    found = [number for number, _ in impossible_zones(SMALL, conds, wps)]
    assert found == ([] if is_possible else [zone_no])
    if is_possible:
        check_words(SMALL, conds, wps, what="it", offset=3)
    else:
        with pytest.raises(CorruptImageError, match=f"it, zone {zone_no} at byte 3: found condition {int(cond)} with"):
            check_words(SMALL, conds, wps, what="it", offset=3)


EXTENDED = replace(SMALL, conventional=(), extension_bytes=64)


@hypothesis.given(
    zones=st.lists(st.tuples(st.integers(0, 15), st.integers(0, (1 << 40) - 1), st.integers(0, 15)), max_size=20)
)
def test_words_with_attributes_round_trip(zones: list[tuple[int, int, int]]) -> None:
    conds, wps, attributes = ([zone[part] for zone in zones] for part in range(3))
    words = pack_words(bytearray(conds), array("Q", wps), bytearray(attributes))
    assert list(struct.unpack(f"<{len(zones)}Q", words)) == [pack_word(*zone) for zone in zones]
    assert unpack_states(EXTENDED, words) == (bytearray(conds), array("Q", wps), bytearray(attributes))
    assert [unpack_state(EXTENDED, pack_word(*zone)) for zone in zones] == zones
    assert decode_live(encode_live(words), offset=0) == words


def test_without_the_feature_the_bits_of_attributes_are_sectors() -> None:
    words = pack_word(2, 3, 1).to_bytes(8, "little")
    assert unpack_states(SMALL, words) == (bytearray((2,)), array("Q", ((1 << 40) + 3,)), bytearray(1))
    assert unpack_state(SMALL, pack_word(2, 3, 1)) == (2, (1 << 40) + 3, 0)


@pytest.mark.parametrize(
    ("cond", "attributes", "is_possible"),
    [(Condition.CLOSED, 1, True), (Condition.FULL, 1, True), (Condition.EMPTY, 1, False), (Condition.CLOSED, 8, False)],
)
def test_which_attributes_are_possible(cond: Condition, attributes: int, is_possible: bool) -> None:
    conds, wps, bits = bytearray(b"\1" * 6), array("Q", bytes(48)), bytearray(6)
    conds[2], bits[2] = cond, attributes
    assert [number for number, _ in impossible_zones(EXTENDED, conds, wps, bits)] == ([] if is_possible else [2])
    if not is_possible:
        with pytest.raises(CorruptImageError, match=f"zone 2 at byte 3: .* and attributes {attributes:#x}"):
            check_words(EXTENDED, conds, wps, bits, what="it", offset=3)


WITH_AREAS = replace(SMALL, conventional=(), zrwa_size=4, zrwa_granularity=2)
WITH_EXCURSIONS = replace(SMALL, conventional=(), active_excursions=True)


@pytest.mark.parametrize(
    ("geometry", "cond", "attributes", "is_possible"),
    [
        (WITH_AREAS, Condition.EXP_OPEN, 2, True),
        (WITH_AREAS, Condition.CLOSED, 2, True),
        (WITH_AREAS, Condition.FULL, 2, False),
        (WITH_AREAS, Condition.READONLY, 2, False),
        (WITH_AREAS, Condition.EMPTY, 2, False),
        (WITH_AREAS, Condition.CLOSED, 1, False),
        (EXTENDED, Condition.CLOSED, 2, False),
        (replace(WITH_AREAS, extension_bytes=64), Condition.CLOSED, 3, True),
        (replace(WITH_AREAS, extension_bytes=64), Condition.FULL, 1, True),
        (WITH_EXCURSIONS, Condition.FULL, 4, True),
        (WITH_EXCURSIONS, Condition.READONLY, 4, True),
        (WITH_EXCURSIONS, Condition.OFFLINE, 4, True),
        (WITH_EXCURSIONS, Condition.CLOSED, 4, False),
        (WITH_EXCURSIONS, Condition.IMP_OPEN, 4, False),
        (WITH_EXCURSIONS, Condition.EMPTY, 4, False),
        (WITH_AREAS, Condition.FULL, 4, False),
    ],
)
def test_which_zones_of_which_images_have_which_attributes(
    geometry: Geometry, cond: Condition, attributes: int, is_possible: bool
) -> None:
    conds, wps, bits = bytearray(b"\1" * 6), array("Q", bytes(48)), bytearray(6)
    conds[2], bits[2] = cond, attributes
    assert [number for number, _ in impossible_zones(geometry, conds, wps, bits)] == ([] if is_possible else [2])


def test_states_are_copied_into_arrays_of_their_own() -> None:
    states = ZoneStates(bytearray((1, 4)), array("Q", (0, 1 << 40)), bytearray((0, 3)))
    filled = ZoneStates.blank(2)
    assert filled == ZoneStates(bytearray(2), array("Q", (0, 0)), bytearray(2))
    filled.fill(states)
    copied = states.copy()
    assert filled == copied == states
    for array_of_states in states:
        array_of_states[1] = 2
    assert filled == copied == ZoneStates(bytearray((1, 4)), array("Q", (0, 1 << 40)), bytearray((0, 3)))
