"""The journal: a sequence of records, each with the words of the zones that changed between two checkpoints."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from zonefs_emu.persist.codec.block import seal
from zonefs_emu.units import round_up

JOURNAL_MAGIC: Final = b"ZJRN"
JOURNAL_ALIGN_BYTES: Final = 512

_RECORD_HEAD: Final = struct.Struct("<4sIQQII")
#: The place of the epoch in a record.
_RECORD_EPOCH_OFFSET: Final = 8
_ENTRY: Final = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One checkpoint in the journal: the zones that changed since the one before, as (zone_no, word)."""

    epoch: int
    seq: int
    entries: tuple[tuple[int, int], ...]


def record_bytes(nr_entries: int) -> int:
    """Return the length in bytes of a journal record with *nr_entries*, padded to whole sectors."""
    return round_up(_RECORD_HEAD.size + nr_entries * _ENTRY.size, JOURNAL_ALIGN_BYTES)


def encode_record(record: Record, seed: int) -> bytes:
    """Return *record* as bytes, a multiple of 512."""
    body = bytearray(record_bytes(len(record.entries)))
    _RECORD_HEAD.pack_into(body, 0, JOURNAL_MAGIC, 0, record.epoch, record.seq, len(record.entries), 0)
    flat = [value for entry in record.entries for value in entry]
    struct.pack_into(f"<{len(flat)}Q", body, _RECORD_HEAD.size, *flat)
    seal(body, 4, seed)
    return bytes(body)


def decode_record(journal: bytes, at: int, seed: int) -> Record | None:
    """Return the record at byte *at* of *journal*, or None if no whole record begins there."""
    if at + _RECORD_HEAD.size > len(journal):
        return None
    magic, crc, epoch, seq, nr_entries, _ = _RECORD_HEAD.unpack_from(journal, at)
    length = record_bytes(nr_entries)
    if magic != JOURNAL_MAGIC or at + length > len(journal):
        return None
    body = bytearray(journal[at : at + length])
    body[4:8] = bytes(4)
    if zlib.crc32(body, seed) != crc:
        return None
    flat = struct.unpack_from(f"<{2 * nr_entries}Q", body, _RECORD_HEAD.size)
    return Record(epoch=epoch, seq=seq, entries=tuple(zip(flat[0::2], flat[1::2], strict=True)))


def find_records(journal: bytes, seed: int, *, start: int = 0, epoch: int | None = None) -> Iterator[Record]:
    """Yield the whole records, of *epoch* if it is given, wherever they begin in *journal* from byte *start*."""
    # The epoch is compared before the CRC is computed: there may be thousands of records of earlier epochs.
    mark = b"" if epoch is None else epoch.to_bytes(8, "little")
    for at in range(start, len(journal), JOURNAL_ALIGN_BYTES):
        if journal.startswith(JOURNAL_MAGIC, at) and journal.startswith(mark, at + _RECORD_EPOCH_OFFSET):
            record = decode_record(journal, at, seed)
            if record is not None:
                yield record
