"""The extensions section: a record for each zone, with its descriptor extension.

An attribute in the word of a zone says whether it has an extension. Without that, its record is outdated or zeros.
"""

import struct
import zlib
from typing import Final

_HEAD: Final = struct.Struct("<II")


def extension_record_bytes(extension_bytes: int) -> int:
    """Return the length of the record of an extension of *extension_bytes*."""
    return _HEAD.size + extension_bytes


def encode_extension(zone_no: int, data: bytes, seed: int) -> bytes:
    """Return the record of zone *zone_no* with *data*."""
    content = zone_no.to_bytes(4, "little") + data
    return zlib.crc32(content, seed).to_bytes(4, "little") + content


def decode_extension(record: bytes, zone_no: int, seed: int) -> bytes | None:
    """Return the data of *record* if it is whole and of zone *zone_no*, None otherwise."""
    crc, number = _HEAD.unpack_from(record)
    if number != zone_no or zlib.crc32(record[4:], seed) != crc:
        return None
    return record[_HEAD.size :]
