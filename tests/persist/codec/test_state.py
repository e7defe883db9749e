"""State blocks both ways, and what is refused."""

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.persist.codec.samples import SEED, sealed
from zonefs_emu.errors import CorruptImageError
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.state import Mode, State, decode_state, encode_state

states = st.builds(
    State,
    generation=st.integers(0, 2**64 - 1),
    mode=st.sampled_from(Mode),
    boot_id=st.binary(min_size=16, max_size=16),
    epoch=st.integers(0, 2**64 - 1),
    journal_seq=st.integers(0, 2**64 - 1),
    owner_pid=st.integers(0, 2**32 - 1),
    owner=st.text(st.characters(min_codepoint=1, max_codepoint=0x7F), max_size=128),
)


@hypothesis.given(state=states)
def test_state_round_trips(state: State) -> None:
    block = encode_state(state, SEED)
    assert len(block) == BLOCK_BYTES
    assert decode_state(block, SEED, offset=0) == state


def test_every_flipped_byte_of_a_state_is_refused() -> None:
    block = bytearray(encode_state(State(generation=3, mode=Mode.LIVE, boot_id=bytes(16)), SEED))
    for at in range(BLOCK_BYTES):
        block[at] ^= 0x40
        with pytest.raises(CorruptImageError, match=r"state, (magic at byte 5|CRC at byte 13)"):
            decode_state(bytes(block), SEED, offset=5)
        block[at] ^= 0x40
    block[12] = 2
    with pytest.raises(CorruptImageError, match="state, mode at byte 5: found 2, expected 0 or 1"):
        decode_state(sealed(block, seed=SEED), SEED, offset=5)
    with pytest.raises(CorruptImageError, match="CRC"):
        decode_state(bytes(block), SEED + 1, offset=0)
