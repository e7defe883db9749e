"""The zonefs super block: 4096 bytes at byte 0 of the device, little endian.

Pure: bytes in, values out. The kernel accepts a super block if, and only if, :func:`decode` accepts it.

    off  size  field       value
      0     4  magic       0x5a4f4653
      4     4  crc         CRC-32 (polynomial 0xedb88320, seed all ones, not inverted at the end) of all
                           4096 bytes with this field zero
      8    64  label       padded with NUL
     72    16  uuid
     88     8  features    bit 0 aggr_cnv, 1 uid, 2 gid, 3 perm; no other bit may be set
     96     4  uid         valid only with its feature bit, like gid and perm
    100     4  gid
    104     4  perm
    108  3988  reserved    zero

Source: Linux include/linux/magic.h and fs/zonefs/zonefs.h; verified by mounting with the kernel.
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntFlag
from typing import Final
from uuid import UUID

from zonefs_emu.errors import BadMagicError, CorruptImageError, UsageError

SUPER_BLOCK_BYTES: Final = 4096
MAGIC: Final = 0x5A4F4653
LABEL_BYTES: Final = 64
DEFAULT_PERM: Final = 0o640
#: The value of (uid_t)-1 and (gid_t)-1, which chown(2) and its relatives take for "leave as it is". So it is no owner.
INVALID_ID: Final = 0xFFFFFFFF

_FIELDS: Final = struct.Struct("<II64s16sQIII")
_CRC_OFFSET: Final = 4
_FEATURES_OFFSET: Final = 88
_UID_OFFSET: Final = 96
_GID_OFFSET: Final = 100


class Feature(IntFlag):
    """The bits of the field *features*."""

    AGGR_CNV = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    PERM = 1 << 3


# An int, because the inverse of an IntFlag only has bits that have names.
_ALL_FEATURES: Final = int(Feature.AGGR_CNV | Feature.UID | Feature.GID | Feature.PERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperBlock:
    """The content of a super block. *uid*, *gid* and *perm* count only where *features* has their bit.

    *label* holds at most 64 bytes and no NUL. *perm* is taken as it is: 0o4777 gives set-user-id files.

    Raises:
        UsageError: the label is too long or has a NUL, or an owner or the permissions are out of range.
    """

    uuid: UUID
    label: bytes = b""
    features: Feature = Feature(0)  # noqa: RUF009  (an int flag is immutable)
    uid: int = 0
    gid: int = 0
    perm: int = DEFAULT_PERM

    def __post_init__(self) -> None:
        """Refuse values that :func:`encode` could not write."""
        if len(self.label) > LABEL_BYTES:
            message = f"label of {len(self.label)} bytes is longer than {LABEL_BYTES}"
            raise UsageError(message)
        if b"\0" in self.label:
            message = "a label cannot contain a NUL byte"
            raise UsageError(message)
        for name in ("uid", "gid"):
            value = getattr(self, name)
            if not 0 <= value < INVALID_ID:
                message = f"{name} {value} must lie between 0 and {INVALID_ID - 1}"
                raise UsageError(message)
        if not 0 <= self.perm <= 0o7777:
            message = f"permissions {self.perm:o} must lie between 0 and 7777 (octal)"
            raise UsageError(message)

    @property
    def aggregates(self) -> bool:
        """Whether contiguous conventional zones make one file."""
        return Feature.AGGR_CNV in self.features


def encode(super_block: SuperBlock) -> bytes:
    """Return the 4096 bytes of *super_block*."""
    block = bytearray(SUPER_BLOCK_BYTES)
    _FIELDS.pack_into(
        block,
        0,
        MAGIC,
        0,
        super_block.label,
        super_block.uuid.bytes,
        super_block.features,
        super_block.uid,
        super_block.gid,
        super_block.perm,
    )
    struct.pack_into("<I", block, _CRC_OFFSET, _checksum(block))
    return bytes(block)


def decode(block: bytes) -> SuperBlock:
    """Return the super block in the 4096 bytes of *block*.

    Raises:
        BadMagicError: *block* is no zonefs super block.
        CorruptImageError: the kernel would refuse the super block for its checksum, an unknown feature, an invalid
            owner, or reserved bytes that are not zero.
    """
    assert len(block) == SUPER_BLOCK_BYTES
    magic, crc, label, uuid, features, uid, gid, perm = _FIELDS.unpack_from(block)
    if magic != MAGIC:
        message = f"no zonefs super block: the magic number is {magic:#010x}, not {MAGIC:#010x}; mkfs writes one"
        raise BadMagicError(message)
    expected = _checksum(block)
    if crc != expected:
        raise _corrupt("checksum", _CRC_OFFSET, f"{crc:#010x}", f"{expected:#010x}")
    if features & ~_ALL_FEATURES:
        raise _corrupt("features", _FEATURES_OFFSET, f"{features:#x}", f"no bit outside {_ALL_FEATURES:#x}")
    features = Feature(features)
    if Feature.UID in features and uid == INVALID_ID:
        raise _corrupt("uid", _UID_OFFSET, str(uid), "a user")
    if Feature.GID in features and gid == INVALID_ID:
        raise _corrupt("gid", _GID_OFFSET, str(gid), "a group")
    reserved = block[_FIELDS.size :]
    if any(reserved):
        index = next(index for index, byte in enumerate(reserved) if byte)
        raise _corrupt("reserved bytes", _FIELDS.size + index, f"{reserved[index]:#04x}", "zero")
    # A field whose feature bit is clear may hold anything and is not read.
    return SuperBlock(
        uuid=UUID(bytes=uuid),
        label=label.partition(b"\0")[0],
        features=features,
        uid=uid if Feature.UID in features else 0,
        gid=gid if Feature.GID in features else 0,
        perm=perm & 0o7777 if Feature.PERM in features else DEFAULT_PERM,
    )


def has_magic(block: bytes) -> bool:
    """Return whether *block* begins like a zonefs super block; it may be damaged."""
    return block[:4] == MAGIC.to_bytes(4, "little")


def _checksum(block: bytes | bytearray) -> int:
    crc = zlib.crc32(block[:_CRC_OFFSET])
    crc = zlib.crc32(bytes(4), crc)
    crc = zlib.crc32(block[_CRC_OFFSET + 4 :], crc)
    # zlib inverts the register at the end, and the kernel's crc32() does not.
    return crc ^ 0xFFFFFFFF


def _corrupt(what: str, offset: int, found: str, expected: str) -> CorruptImageError:
    return CorruptImageError(f"zonefs super block: {what}", offset=offset, found=found, expected=expected)
