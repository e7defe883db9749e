"""The fault section both ways, and which copies are damaged."""

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.persist.codec.samples import SEED, sealed
from zonefs_emu.errors import UsageError
from zonefs_emu.persist.codec.faults import FAULTS_BYTES, decode_faults, encode_faults, faults_version


@hypothesis.given(data=st.binary(max_size=300), generation=st.integers(1, 2**64 - 1))
def test_faults_round_trip(data: bytes, generation: int) -> None:
    block = encode_faults(data, generation, SEED)
    assert len(block) == FAULTS_BYTES
    assert decode_faults(block, SEED) == (generation, data)


def test_the_version_of_the_faults() -> None:
    assert faults_version(bytes(FAULTS_BYTES)) == 0
    newer = encode_faults(b"[]", 1, SEED, version=7)
    assert faults_version(newer) == 7
    assert decode_faults(newer, SEED) == (1, b"[]")


def test_damaged_faults() -> None:
    good = encode_faults(b"[]", 1, SEED)
    assert decode_faults(encode_faults(b"[]", 1, SEED + 1), SEED) is None
    huge = bytearray(good)
    huge[20:24] = (FAULTS_BYTES).to_bytes(4, "little")
    assert decode_faults(sealed(huge, seed=SEED), SEED) is None
    with pytest.raises(UsageError, match="the faults take 32745 bytes, but the image has room for 32744"):
        encode_faults(bytes(32745), 1, SEED)
    encode_faults(bytes(32744), 1, SEED)
