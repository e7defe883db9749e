"""CRCs inside of blocks."""

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.persist.codec.samples import sealed
from zonefs_emu.errors import CorruptImageError
from zonefs_emu.persist.codec.block import check_crc, seal


@hypothesis.given(
    block=st.binary(min_size=24, max_size=64), at=st.sampled_from((0, 4, 8)), seed=st.integers(0, 2**32 - 1)
)
def test_a_sealed_block_passes_and_any_changed_byte_does_not(block: bytes, at: int, seed: int) -> None:
    changed = bytearray(block)
    seal(changed, at, seed)
    assert bytes(changed) == sealed(bytearray(block), at, seed)
    check_crc(bytes(changed), at, seed, what="it", offset=100)
    for place in range(len(changed)):
        changed[place] ^= 0x10
        with pytest.raises(CorruptImageError, match=f"it, CRC at byte {100 + at}: found 0x"):
            check_crc(bytes(changed), at, seed, what="it", offset=100)
        changed[place] ^= 0x10
