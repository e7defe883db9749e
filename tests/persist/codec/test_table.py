"""Table blocks both ways, and which of them are damaged."""

import hypothesis
from hypothesis import strategies as st

from tests.persist.codec.samples import SEED, packed, words_of_zones
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.table import WORDS_PER_BLOCK, encode_table, scan_table, table_words


@hypothesis.given(zones=words_of_zones, generation=st.integers(0, 2**64 - 1))
def test_tables_round_trip(zones: list[tuple[int, int]], generation: int) -> None:
    words = packed(zones)
    table = encode_table(words, generation, SEED)
    nr_blocks = -(-len(zones) // WORDS_PER_BLOCK)
    assert len(table) == nr_blocks * BLOCK_BYTES
    assert scan_table(table, SEED) == [generation] * nr_blocks
    found = b"".join(table_words(table, index) for index in range(nr_blocks))
    assert (found[: len(words)], found[len(words) :].strip(b"\0")) == (words, b"")


def test_a_block_in_the_wrong_place_or_of_another_image_is_damage() -> None:
    table = encode_table(packed([(1, 0)] * 600), 1, SEED)
    swapped = table[BLOCK_BYTES:] + table[:BLOCK_BYTES]
    assert scan_table(swapped, SEED) == [-1, -1]
    assert scan_table(table, SEED + 1) == [-1, -1]
    assert scan_table(table, SEED) == [1, 1]
