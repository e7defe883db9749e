"""The words of zones both ways, and which of them are possible."""

import struct
from array import array

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.persist.codec.samples import SMALL, packed, words_of_zones
from zonefs_emu.errors import CorruptImageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist.codec.words import (
    LIVE_PRIME,
    check_words,
    decode_live,
    encode_live,
    impossible_zones,
    pack_word,
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
