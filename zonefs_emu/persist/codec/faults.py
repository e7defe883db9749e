"""The fault section: the injected faults as a text of the layer above."""

import struct
import zlib
from typing import Final

from zonefs_emu.errors import UsageError
from zonefs_emu.persist.codec.block import seal

FAULTS_MAGIC: Final = b"ZBDFAULT"
FAULTS_BYTES: Final = 32 * 1024

#: The place of the version of the text in the fault section.
_FAULTS_VERSION_OFFSET: Final = 22
_FAULTS_HEAD: Final = struct.Struct("<8sIQHH")


def encode_faults(data: bytes, generation: int, seed: int, *, version: int = 0) -> bytes:
    """Return the fault section that holds *data*, a text of the layer above in the *version* of that layer.

    Raises:
        UsageError: *data* does not fit.
    """
    if len(data) > FAULTS_BYTES - _FAULTS_HEAD.size:
        message = f"the faults take {len(data)} bytes, but the image has room for {FAULTS_BYTES - _FAULTS_HEAD.size}"
        raise UsageError(message)
    block = bytearray(FAULTS_BYTES)
    _FAULTS_HEAD.pack_into(block, 0, FAULTS_MAGIC, 0, generation, len(data), version)
    block[_FAULTS_HEAD.size : _FAULTS_HEAD.size + len(data)] = data
    seal(block, 8, seed)
    return bytes(block)


def decode_faults(copy: bytes, seed: int) -> tuple[int, bytes] | None:
    """Return (generation, data) of one *copy* of the fault section, or None if it is not whole."""
    magic, crc, generation, length, _version = _FAULTS_HEAD.unpack_from(copy)
    block = bytearray(copy)
    block[8:12] = bytes(4)
    if magic != FAULTS_MAGIC or length > len(copy) - _FAULTS_HEAD.size or zlib.crc32(block, seed) != crc:
        return None
    return generation, copy[_FAULTS_HEAD.size : _FAULTS_HEAD.size + length]


def faults_version(copy: bytes) -> int:
    """Return the version of the text in a whole *copy* of the fault section; 0 if it was never written."""
    return int.from_bytes(copy[_FAULTS_VERSION_OFFSET : _FAULTS_HEAD.size], "little")
