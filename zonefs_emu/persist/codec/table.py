"""The zone table: the words of all zones as of one checkpoint, in blocks that are each complete or damaged."""

import struct
import zlib
from typing import Final

from zonefs_emu.persist.codec.block import BLOCK_BYTES, CRC

WORDS_PER_BLOCK: Final = 510

_TABLE_HEAD: Final = struct.Struct("<IIQ")


def encode_table(words: bytes, generation: int, seed: int) -> bytes:
    """Return the table blocks that hold *words* (8 bytes a zone), each with its index, *generation* and CRC."""
    out = bytearray()
    step = 8 * WORDS_PER_BLOCK
    for index in range(-(-len(words) // step)):
        body = _TABLE_HEAD.pack(0, index, generation)[4:] + words[index * step : (index + 1) * step].ljust(step, b"\0")
        out += CRC.pack(zlib.crc32(body, seed))
        out += body
    return bytes(out)


def scan_table(table: bytes, seed: int) -> list[int]:
    """Return, for each block of *table*, its generation, or -1 if the block is damaged."""
    generations = []
    for index in range(len(table) // BLOCK_BYTES):
        block = table[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        crc, found_index, generation = _TABLE_HEAD.unpack_from(block)
        good = crc == zlib.crc32(block[4:], seed) and found_index == index
        generations.append(generation if good else -1)
    return generations


def table_words(table: bytes, index: int) -> bytes:
    """Return the words in block *index* of *table*."""
    start = index * BLOCK_BYTES + _TABLE_HEAD.size
    return table[start : start + 8 * WORDS_PER_BLOCK]
