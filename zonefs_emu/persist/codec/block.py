"""Blocks and their CRCs, which are the same in all sections."""

import struct
import zlib
from typing import Final

from zonefs_emu.errors import CorruptImageError

BLOCK_BYTES: Final = 4096
CRC: Final = struct.Struct("<I")


def seal(block: bytearray, at: int, seed: int) -> None:
    """Write the CRC of *block* into its bytes from *at*; these four bytes count as zeros."""
    CRC.pack_into(block, at, 0)
    CRC.pack_into(block, at, zlib.crc32(block, seed))


def check_crc(block: bytes, at: int, seed: int, *, what: str, offset: int) -> None:
    """Check the CRC at byte *at* of *block*; *what* and *offset* (byte of the file) are for the error.

    Raises:
        CorruptImageError: the CRC does not fit.
    """
    (found,) = CRC.unpack_from(block, at)
    expected = zlib.crc32(block[at + 4 :], zlib.crc32(bytes(4), zlib.crc32(block[:at], seed)))
    if found != expected:
        raise CorruptImageError(
            f"{what}, CRC", offset=offset + at, found=f"{found:#010x}", expected=f"{expected:#010x}"
        )
