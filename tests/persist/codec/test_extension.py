"""The record of a descriptor extension, to the byte, and what is not taken for one."""

import pytest

from tests.persist.codec.samples import SEED
from zonefs_emu.persist.codec.extension import decode_extension, encode_extension, extension_record_bytes

DATA = bytes(range(64))


def test_it_is_read_as_it_was_written() -> None:
    record = encode_extension(5, DATA, SEED)
    assert len(record) == extension_record_bytes(64) == 72
    assert decode_extension(record, 5, SEED) == DATA


def test_a_record_of_another_zone_or_image_is_none() -> None:
    record = encode_extension(5, DATA, SEED)
    assert decode_extension(record, 6, SEED) is None
    assert decode_extension(record, 5, SEED + 1) is None
    assert decode_extension(bytes(72), 0, SEED) is None


@pytest.mark.parametrize("at", range(72))
def test_a_flipped_byte_is_found(at: int) -> None:
    record = bytearray(encode_extension(5, DATA, SEED))
    record[at] ^= 0x40
    assert decode_extension(bytes(record), 5, SEED) is None
