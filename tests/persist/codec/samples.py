"""What the tests of the codec and of recovery both need."""

import zlib
from array import array
from uuid import UUID

from hypothesis import strategies as st

from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist.codec.header import (
    encode_header,
    plan_header,
)
from zonefs_emu.persist.codec.words import (
    pack_words,
)

SEED = 0x12345678
UUID_A = UUID("00112233-4455-6677-8899-aabbccddeeff")
SMALL = Geometry(size=44, zone_size=8, zone_capacity=6, conventional=((0, 1), (3, 2)))

words_of_zones = st.lists(
    st.tuples(st.sampled_from(Condition).map(int), st.integers(0, 2**44 - 1)), min_size=1, max_size=1100
)


def packed(zones: list[tuple[int, int]]) -> bytes:
    return pack_words(bytearray(cond for cond, _ in zones), array("Q", [wp for _, wp in zones]))


def sealed(block: bytearray, at: int = 8, seed: int = 0) -> bytes:
    """*block* with its CRC put right, computed here in the plainest way."""
    block[at : at + 4] = bytes(4)
    block[at : at + 4] = zlib.crc32(bytes(block), seed).to_bytes(4, "little")
    return bytes(block)


def header_block() -> tuple[bytearray, int]:
    header = plan_header(SMALL, uuid=UUID_A, label="small")
    return bytearray(encode_header(header, 0)), header.metadata_offset
