"""The image's metadata as bytes, both ways. docs/image-format.md describes it to the byte.

Pure: bytes in, values out. May not know: files, when a block is written or trusted (that is image.py).
All numbers are little endian. Every block carries a CRC-32 that is seeded with the image's UUID, so that a block of
another image, or of an earlier image in the same place, is not taken for ours.

    [ data | header A | state A | table A | journal A | live | refusals | faults A | counters (sparse)
           | table B | journal B | faults B | state B | header B ]
"""

import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final
from uuid import UUID

from zonefs_emu.errors import BadMagicError, CorruptImageError, UnsupportedVersionError, UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import round_up, to_bytes, to_sectors

BLOCK_BYTES: Final = 4096
VERSION: Final = 1
#: In PNG's manner: the high bit and the line ends catch a transfer that was not binary.
HEADER_MAGIC: Final = b"\x89ZBD\r\n\x1a\n"
STATE_MAGIC: Final = b"ZBDSTATE"
FAULTS_MAGIC: Final = b"ZBDFAULT"
JOURNAL_MAGIC: Final = b"ZJRN"
LABEL_BYTES: Final = 64
OWNER_BYTES: Final = 128
WORDS_PER_BLOCK: Final = 510
JOURNAL_ALIGN_BYTES: Final = 512
REFUSALS_BYTES: Final = 64 * 1024
FAULTS_BYTES: Final = 32 * 1024
NR_COUNTERS: Final = 16
COUNTER_ROW_BYTES: Final = 8 * NR_COUNTERS
NR_CONV_RUNS_MAX: Final = 384

_HEADER: Final = struct.Struct("<8sIIQQQ16s64sQQQQQQIIIIII")
_SECTION: Final = struct.Struct("<IIQQ")
_SECTIONS_OFFSET: Final = 256
_NR_SECTIONS_MAX: Final = 32
_RUNS_OFFSET: Final = _SECTIONS_OFFSET + _NR_SECTIONS_MAX * _SECTION.size
_RUN: Final = struct.Struct("<II")
_STATE: Final = struct.Struct("<8sIIQ16sQQI4x128s")
_TABLE_HEAD: Final = struct.Struct("<IIQ")
_RECORD_HEAD: Final = struct.Struct("<4sIQQII")
#: Where in the fault section the version of its text stands.
_FAULTS_VERSION_OFFSET: Final = 22
#: Where in a record its epoch stands.
_RECORD_EPOCH_OFFSET: Final = 8
_FAULTS_HEAD: Final = struct.Struct("<8sIQHH")
_ENTRY: Final = struct.Struct("<QQ")
_CRC: Final = struct.Struct("<I")
_OWN_OFFSET: Final = struct.Struct("<QQ")
_OWN_OFFSET_AT: Final = 120
#: The bytes of a header from which all others follow: features to label, geometry, number of runs, runs.
_TELLING: Final = (*range(24, 120), *range(136, 184), *range(188, 192), *range(_RUNS_OFFSET, BLOCK_BYTES))
#: Where many bytes differ, those so near to each other are taken from the same copy.
_RUN_GAP_BYTES: Final = 16
_NR_MERGED_RUNS_MAX: Final = 8

#: Every live word is a multiple of this prime: no change of a single byte (at most 255 · 2^8k) is one, so it is seen.
LIVE_PRIME: Final = 65521
COND_BITS: Final = 4
_COND_MASK: Final = (1 << COND_BITS) - 1
_COND_OF_BYTE: Final = bytes(byte & _COND_MASK for byte in range(256))


class SectionKind(IntEnum):
    """What a run of the metadata holds."""

    HEADER = 1
    STATE = 2
    TABLE = 3
    JOURNAL = 4
    LIVE = 5
    REFUSALS = 6
    FAULTS = 7
    COUNTERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One run of the metadata: *copy* 0 or 1; *offset* and *length* in bytes of the file."""

    kind: SectionKind
    copy: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What never changes after creation."""

    geometry: Geometry
    uuid: UUID
    label: str = ""
    sections: tuple[Section, ...] = field(default=())
    #: Feature bits that this program does not know: with any in *read_only_compatible* the image may only be read.
    compatible: int = 0
    read_only_compatible: int = 0

    def section(self, kind: SectionKind, copy: int = 0) -> Section:
        """Return the section of *kind*; every header has all of them (checked on decoding)."""
        return next(section for section in self.sections if section.kind is kind and section.copy == copy)

    @property
    def metadata_offset(self) -> int:
        """Return the byte offset where data ends and metadata begins."""
        return self.sections[0].offset

    @property
    def reserved(self) -> list[tuple[int, int]]:
        """Return the (offset, length) runs that are never sparse, in bytes: all metadata but the counters.

        What is mapped must be reserved, and what a flush writes should not be what fills the host up.
        """
        return [(s.offset, s.length) for s in self.sections if s.kind is not SectionKind.COUNTERS]

    @property
    def file_bytes(self) -> int:
        """Return the length of the whole file in bytes."""
        last = self.sections[-1]
        return last.offset + last.length

    @property
    def seed(self) -> int:
        """Return what the CRC of every other block starts from."""
        return zlib.crc32(self.uuid.bytes)


class Mode(IntEnum):
    """Which copy of the zone states is current."""

    CLEAN = 0  #: stopped in order: table and journal are complete, conditions included
    LIVE = 1  #: in use: the live table, if this host has not rebooted since; else table and journal


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The small mutable block: is the image in use, by whom, since which boot.

    *epoch* and *journal_seq* name the last journal record of a CLEAN image. *boot_id* and *owner* (pid and words)
    say who made it LIVE.
    """

    generation: int
    mode: Mode
    boot_id: bytes
    epoch: int = 0
    journal_seq: int = 0
    owner_pid: int = 0
    owner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The zone table that the two copies give together.

    *generation* is the newest that is complete, *words* its content. *newest* is the highest that any good block has: a
    compaction must number higher, or blocks of an interrupted one could complete it. *base* is a copy that is complete
    by itself and so must be the last to be overwritten; None if only both together are.
    *is_sound*: both copies are complete and equal.
    """

    generation: int
    words: bytes
    newest: int
    base: int | None
    is_sound: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One checkpoint in the journal: the zones that changed since the one before, as (zone_no, word)."""

    epoch: int
    seq: int
    entries: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """The *records* that the two copies give together, and the byte *end* where the next one goes.

    *is_sound*: both copies have all of them.
    """

    records: tuple[Record, ...]
    end: int
    is_sound: bool


# -- words: one zone's condition and data extent ------------------------------------------------------------------


def pack_word(cond: int, nr_written: int) -> int:
    """Return the 48-bit word of a zone: its sectors with data above its condition."""
    return nr_written << COND_BITS | cond


def unpack_word(word: int) -> tuple[int, int]:
    """Return (condition number, sectors with data) of *word*."""
    return word & _COND_MASK, word >> COND_BITS


def pack_words(conds: bytes | bytearray, wps: "array[int]") -> bytes:
    """Return the words of all zones, 8 bytes each, at the speed of arithmetic on one large number."""
    lanes = bytearray(8 * len(conds))
    lanes[0::8] = conds
    total = (int.from_bytes(wps.tobytes(), "little") << COND_BITS) + int.from_bytes(lanes, "little")
    return total.to_bytes(len(lanes), "little")


def unpack_words(words: bytes) -> tuple[bytearray, "array[int]"]:
    """Return (conditions, sectors with data) of all zones from their *words*, 8 bytes each."""
    conds = bytearray(words[0::8].translate(_COND_OF_BYTE))
    lanes = bytearray(len(words))
    lanes[0::8] = conds
    total = (int.from_bytes(words, "little") - int.from_bytes(lanes, "little")) >> COND_BITS
    wps = array("Q")
    wps.frombytes(total.to_bytes(len(words), "little"))
    return conds, wps


def encode_live(words: bytes) -> bytes:
    """Return the live table for *words*: every word times LIVE_PRIME. No lane overflows: 48 + 16 bits."""
    return (int.from_bytes(words, "little") * LIVE_PRIME).to_bytes(len(words), "little")


def decode_live(live: bytes, *, offset: int) -> bytes:
    """Return the words of the *live* table, which lies at byte *offset* of the file.

    Raises:
        CorruptImageError: a word is not a multiple of LIVE_PRIME; says which zone's.
    """
    total, rest = divmod(int.from_bytes(live, "little"), LIVE_PRIME)
    words = total.to_bytes(len(live), "little")
    # What is left of a word that is no multiple goes into the quotient of its lower neighbour, whose upper 16 bits are
    # then not zero, or is the rest of the whole.
    if rest or words[6::8].strip(b"\0") or words[7::8].strip(b"\0"):
        for zone_no, (value,) in enumerate(struct.iter_unpack("<Q", live)):
            if value % LIVE_PRIME:
                raise CorruptImageError(
                    f"live table, zone {zone_no}",
                    offset=offset + 8 * zone_no,
                    found=f"{value:#018x}",
                    expected=f"a multiple of {LIVE_PRIME}",
                )
    return words


def check_words(geometry: Geometry, conds: bytearray, wps: "array[int]", *, what: str, offset: int) -> None:
    """Check that every zone's condition and extent are possible in *geometry*.

    Raises:
        CorruptImageError: names the first zone that is not; *what* and *offset* say which table is being read.
    """
    for zone_no, expected in impossible_zones(geometry, conds, wps):
        found = f"condition {conds[zone_no]} with {wps[zone_no]} sectors of data"
        raise CorruptImageError(f"{what}, zone {zone_no}", offset=offset, found=found, expected=expected)


def impossible_zones(geometry: Geometry, conds: bytearray, wps: "array[int]") -> Iterator[tuple[int, str]]:
    """Yield (zone_no, what would be possible) for the zones whose condition and extent are not."""
    last = geometry.nr_zones - 1
    capacity = geometry.zone_capacity
    start = 0
    for first, count in (*geometry.conventional, (geometry.nr_zones, 0)):
        # Only what is not the ordinary case is looked at one by one.
        for zone_no in range(start, first):
            cond, nr_written = conds[zone_no], wps[zone_no]
            if cond == 1 and not nr_written:
                continue
            cap = capacity if zone_no != last else geometry.zone_cap(zone_no)
            if not _possible(cond, nr_written, cap):
                yield zone_no, f"a condition of a sequential zone that fits 0 to {cap} sectors of data"
        for zone_no in range(first, first + count):
            if conds[zone_no] not in _CONVENTIONAL_CONDS or wps[zone_no]:
                yield zone_no, "a condition of a conventional zone, and no write pointer"
        start = first + count


_CONVENTIONAL_CONDS: Final = frozenset((Condition.NOT_WP, Condition.READONLY, Condition.OFFLINE))
_WRITTEN_CONDS: Final = frozenset((Condition.FULL, Condition.READONLY, Condition.OFFLINE))
_PART_CONDS: Final = frozenset((Condition.IMP_OPEN, Condition.EXP_OPEN, Condition.CLOSED))


def _possible(cond: int, nr_written: int, capacity: int) -> bool:
    if cond in _WRITTEN_CONDS:
        return nr_written <= capacity
    return cond in _PART_CONDS and nr_written < capacity


# -- header -------------------------------------------------------------------------------------------------------


def plan_header(geometry: Geometry, *, uuid: UUID, label: str = "") -> Header:
    """Lay out the metadata of a new image: data first, so that a file offset is a device offset.

    Raises:
        UsageError: the label or the list of conventional runs does not fit into the header.
    """
    if len(label.encode()) > LABEL_BYTES or "\0" in label:
        message = f"the label {label!r} must be at most {LABEL_BYTES} bytes of UTF-8 without NUL"
        raise UsageError(message)
    if len(geometry.conventional) > NR_CONV_RUNS_MAX:
        message = (
            f"{len(geometry.conventional)} runs of conventional zones are more than the {NR_CONV_RUNS_MAX} supported"
        )
        raise UsageError(message)
    table = -(-geometry.nr_zones // WORDS_PER_BLOCK) * BLOCK_BYTES
    journal = min(max(64 * 1024, round_up(table // 8, BLOCK_BYTES)), 1024 * 1024)
    live = round_up(8 * geometry.nr_zones, BLOCK_BYTES)
    counters = round_up(COUNTER_ROW_BYTES * (geometry.nr_zones + 1), BLOCK_BYTES)
    plan = (
        (SectionKind.HEADER, 0, BLOCK_BYTES),
        (SectionKind.STATE, 0, BLOCK_BYTES),
        (SectionKind.TABLE, 0, table),
        (SectionKind.JOURNAL, 0, journal),
        (SectionKind.LIVE, 0, live),
        (SectionKind.REFUSALS, 0, REFUSALS_BYTES),
        (SectionKind.FAULTS, 0, FAULTS_BYTES),
        (SectionKind.COUNTERS, 0, counters),
        (SectionKind.TABLE, 1, table),
        (SectionKind.JOURNAL, 1, journal),
        (SectionKind.FAULTS, 1, FAULTS_BYTES),
        (SectionKind.STATE, 1, BLOCK_BYTES),
        (SectionKind.HEADER, 1, BLOCK_BYTES),
    )
    offset = round_up(to_bytes(geometry.size), BLOCK_BYTES)
    sections = []
    for kind, copy, length in plan:
        sections.append(Section(kind=kind, copy=copy, offset=offset, length=length))
        offset += length
    return Header(geometry=geometry, uuid=uuid, label=label, sections=tuple(sections))


def encode_header(header: Header, copy: int) -> bytes:
    """Return the block of *copy* (0 or 1) of the header."""
    geometry = header.geometry
    block = bytearray(BLOCK_BYTES)
    _HEADER.pack_into(
        block, 0, HEADER_MAGIC, 0, VERSION, 0, header.compatible, header.read_only_compatible,
        header.uuid.bytes, header.label.encode(),
        header.section(SectionKind.HEADER, copy).offset, header.file_bytes,
        geometry.size, geometry.zone_size, geometry.zone_capacity, geometry.max_append,
        geometry.max_open_zones, geometry.max_active_zones, geometry.block_size_bytes,
        to_bytes(geometry.write_granularity), len(header.sections), len(geometry.conventional),
    )  # fmt: skip
    for index, section in enumerate(header.sections):
        at = _SECTIONS_OFFSET + index * _SECTION.size
        _SECTION.pack_into(block, at, section.kind, section.copy, section.offset, section.length)
    for index, run in enumerate(geometry.conventional):
        _RUN.pack_into(block, _RUNS_OFFSET + index * _RUN.size, *run)
    _seal(block, 8, 0)
    return bytes(block)


def decode_header(block: bytes, *, offset: int) -> Header:
    """Return the header in *block*, which lies at byte *offset* of the file.

    Raises:
        BadMagicError: not a header at all.
        UnsupportedVersionError: a later format, or incompatible features.
        CorruptImageError: the CRC or a field is wrong.
    """
    if len(block) < BLOCK_BYTES or block[:8] != HEADER_MAGIC:
        message = f"no zonefs_emu header at byte {offset}: found {block[:8]!r}, expected {HEADER_MAGIC!r}"
        raise BadMagicError(message)
    _check_crc(block, 8, 0, what="header", offset=offset)
    _, _, version, incompatible, *_, nr_sections, nr_runs = _HEADER.unpack_from(block)
    if version != VERSION or incompatible:
        message = (
            f"image format version {version} with incompatible features {incompatible:#x} is not supported: "
            f"this program knows version {VERSION} without features"
        )
        raise UnsupportedVersionError(message)

    def corrupt(what: str, found: object, expected: object) -> CorruptImageError:
        return CorruptImageError(f"header, {what}", offset=offset, found=str(found), expected=str(expected))

    own_offset, file_bytes = _OWN_OFFSET.unpack_from(block, _OWN_OFFSET_AT)
    if own_offset != offset:
        raise corrupt("own offset", own_offset, offset)
    if nr_sections > _NR_SECTIONS_MAX or nr_runs > NR_CONV_RUNS_MAX:
        raise corrupt("counts", f"{nr_sections} sections, {nr_runs} runs", "fewer")
    try:
        header = _planned(block)
    except (UsageError, ValueError) as error:
        raise corrupt("geometry", error, "a possible one") from None
    found = [_SECTION.unpack_from(block, _SECTIONS_OFFSET + index * _SECTION.size) for index in range(nr_sections)]
    expected = [(section.kind, section.copy, section.offset, section.length) for section in header.sections]
    if found != expected or file_bytes != header.file_bytes:
        raise corrupt("sections", found, expected)
    return header


def _planned(block: bytes) -> Header:
    """Return the header that the fields of *block* lead to from which all others follow.

    Raises:
        UsageError, ValueError: they are impossible.
    """
    (
        *_, compatible, read_only_compatible, uuid, label, _own_offset, _file_bytes, size, zone_size, zone_capacity,
        max_append, max_open, max_active, block_size, granularity, _nr_sections, nr_runs,
    ) = _HEADER.unpack_from(block)  # fmt: skip
    geometry = Geometry(
        size=size, zone_size=zone_size, zone_capacity=zone_capacity, max_append=max_append,
        max_open_zones=max_open, max_active_zones=max_active, block_size_bytes=block_size,
        write_granularity=to_sectors(granularity),
        conventional=tuple(_RUN.unpack_from(block, _RUNS_OFFSET + index * _RUN.size) for index in range(nr_runs)),
    )  # fmt: skip
    header = plan_header(geometry, uuid=UUID(bytes=uuid), label=label.rstrip(b"\0").decode())
    return replace(header, compatible=compatible, read_only_compatible=read_only_compatible)


def rebuild_header(block: bytes, *, offset: int) -> Header | None:
    """Return the header that *block* was before it was damaged, or None if that cannot be told.

    Most of a header follows from a few fields. If these are whole, and so is the CRC, it bears the result out.
    """
    (nr_runs,) = struct.unpack_from("<I", block, _HEADER.size - 4)
    if nr_runs > NR_CONV_RUNS_MAX:
        return None
    try:
        header = _planned(block)
    except (UsageError, ValueError):
        return None
    copies = [copy for copy in (0, 1) if header.section(SectionKind.HEADER, copy).offset == offset]
    if not copies or encode_header(header, copies[0])[8:12] != block[8:12]:
        return None
    return header


def merged_headers(first: bytes, second: bytes) -> Iterator[bytes]:
    """Yield the blocks that two damaged copies of a header can be made into, *first* itself before all others.

    Each byte in which they differ, or each run of such bytes if they are many, is taken from one or the other; of so
    many runs that there is no end of it, only the first ones are.
    """
    differing = [at for at in _TELLING if first[at] != second[at]]
    gap = _RUN_GAP_BYTES if len(differing) > _NR_MERGED_RUNS_MAX else 0
    runs: list[tuple[int, int]] = []
    for at in differing:
        if runs and at - runs[-1][1] < gap:
            runs[-1] = runs[-1][0], at + 1
        else:
            runs.append((at, at + 1))
    del runs[_NR_MERGED_RUNS_MAX:]
    for choice in range(1 << len(runs)):
        block = bytearray(first)
        for index, (start, end) in enumerate(runs):
            if choice >> index & 1:
                block[start:end] = second[start:end]
        yield bytes(block)


# -- state --------------------------------------------------------------------------------------------------------


def encode_state(state: State, seed: int) -> bytes:
    """Return the block that holds *state*."""
    block = bytearray(BLOCK_BYTES)
    owner = state.owner.encode()[:OWNER_BYTES]
    _STATE.pack_into(
        block, 0, STATE_MAGIC, 0, state.mode, state.generation, state.boot_id, state.epoch, state.journal_seq,
        state.owner_pid, owner,
    )  # fmt: skip
    _seal(block, 8, seed)
    return bytes(block)


def decode_state(block: bytes, seed: int, *, offset: int) -> State:
    """Return the state in *block*.

    Raises:
        CorruptImageError: magic, CRC or mode is wrong.
    """
    if block[:8] != STATE_MAGIC:
        raise CorruptImageError("state, magic", offset=offset, found=repr(block[:8]), expected=repr(STATE_MAGIC))
    _check_crc(block, 8, seed, what="state", offset=offset)
    _, _, mode, generation, boot_id, epoch, journal_seq, owner_pid, owner = _STATE.unpack_from(block)
    if mode not in (Mode.CLEAN, Mode.LIVE):
        raise CorruptImageError("state, mode", offset=offset, found=str(mode), expected="0 or 1")
    return State(
        generation=generation, mode=Mode(mode), boot_id=boot_id, epoch=epoch, journal_seq=journal_seq,
        owner_pid=owner_pid, owner=owner.rstrip(b"\0").decode(errors="replace"),
    )  # fmt: skip


# -- table --------------------------------------------------------------------------------------------------------


def encode_table(words: bytes, generation: int, seed: int) -> bytes:
    """Return the table blocks that hold *words* (8 bytes a zone), each with its index, *generation* and CRC."""
    out = bytearray()
    step = 8 * WORDS_PER_BLOCK
    for index in range(-(-len(words) // step)):
        body = _TABLE_HEAD.pack(0, index, generation)[4:] + words[index * step : (index + 1) * step].ljust(step, b"\0")
        out += _CRC.pack(zlib.crc32(body, seed))
        out += body
    return bytes(out)


def scan_table(table: bytes, seed: int) -> list[int]:
    """Return, for each block of *table*, its generation, or -1 where the block is damaged."""
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


def choose_table(copies: Sequence[bytes], nr_zones: int, seed: int, *, offsets: Sequence[int]) -> Table:
    """Return the newest complete table that the two *copies* give together.

    A compaction makes one copy durable before it writes to the other, so one generation is complete at any instant.
    Blocks that are damaged in one copy are taken from the other.

    Raises:
        CorruptImageError: no generation is complete; names the first block that is damaged in both.
    """
    scans = [scan_table(copy, seed) for copy in copies]
    found = sorted({generation for scan in scans for generation in scan if generation >= 0}, reverse=True)
    for generation in found:
        words = bytearray()
        for index, generations in enumerate(zip(*scans, strict=True)):
            if generation not in generations:
                break
            words += table_words(copies[generations.index(generation)], index)
        else:
            complete = [copy for copy in (0, 1) if scans[copy].count(generation) == len(scans[copy])]
            return Table(
                generation=generation,
                words=bytes(words[: 8 * nr_zones]),
                newest=found[0],
                base=complete[0] if complete else None,
                is_sound=len(complete) == len(copies),
            )
    bad = next((i for i, gens in enumerate(zip(*scans, strict=True)) if max(gens) < 0), 0)
    raise CorruptImageError(
        f"zone table, block {bad} (zones from {bad * WORDS_PER_BLOCK})",
        offset=offsets[0] + bad * BLOCK_BYTES,
        found="no valid copy of one generation",
        expected="a block with the right CRC in either copy",
    )


# -- journal ------------------------------------------------------------------------------------------------------


def record_bytes(nr_entries: int) -> int:
    """Return the length in bytes of a journal record with *nr_entries*, padded so that none shares a sector."""
    return round_up(_RECORD_HEAD.size + nr_entries * _ENTRY.size, JOURNAL_ALIGN_BYTES)


def encode_record(record: Record, seed: int) -> bytes:
    """Return *record* as bytes, a multiple of 512."""
    body = bytearray(record_bytes(len(record.entries)))
    _RECORD_HEAD.pack_into(body, 0, JOURNAL_MAGIC, 0, record.epoch, record.seq, len(record.entries), 0)
    flat = [value for entry in record.entries for value in entry]
    struct.pack_into(f"<{len(flat)}Q", body, _RECORD_HEAD.size, *flat)
    _seal(body, 4, seed)
    return bytes(body)


def decode_record(journal: bytes, at: int, seed: int) -> Record | None:
    """Return the record at byte *at* of *journal*, or None where none is whole."""
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


def read_journal(copies: Sequence[bytes], epoch: int, seed: int, *, offsets: Sequence[int]) -> Journal:
    """Return the records of *epoch* in order.

    A record counts if either copy has it whole. One that is in neither, with none that is due behind it, was being
    written when the power went: its flush was never answered.

    Raises:
        CorruptImageError: a record is damaged in both copies although later ones exist.
    """
    records: list[Record] = []
    at = 0
    is_sound = True
    while True:
        found = [decode_record(copy, at, seed) for copy in copies]
        good = [record for record in found if record and (record.epoch, record.seq) == (epoch, len(records) + 1)]
        if not good:
            break
        is_sound = is_sound and len(good) == len(copies)
        records.append(good[0])
        at += record_bytes(len(good[0].entries))
    later = _find_later(copies, at, epoch, len(records) + 1, seed)
    if later is not None:
        raise CorruptImageError(
            f"journal, record {len(records) + 1}",
            offset=offsets[0] + at,
            found=f"damage in both copies, while record {later.seq} is whole further on",
            expected="a whole record in either copy",
        )
    return Journal(records=tuple(records), end=at, is_sound=is_sound)


def _find_later(copies: Sequence[bytes], at: int, epoch: int, seq: int, seed: int) -> Record | None:
    """Return a whole record of *epoch* from *seq* on, wherever in the *copies* it begins after byte *at*."""
    # The epoch is compared before the CRC is computed: there may be thousands of records of earlier epochs.
    mark = epoch.to_bytes(8, "little")
    for copy in copies:
        for start in range(at, len(copy), JOURNAL_ALIGN_BYTES):
            if copy.startswith(JOURNAL_MAGIC, start) and copy.startswith(mark, start + _RECORD_EPOCH_OFFSET):
                record = decode_record(copy, start, seed)
                if record is not None and record.seq >= seq:
                    return record
    return None


def apply_records(conds: bytearray, wps: "array[int]", records: Iterable[Record], *, offset: int) -> None:
    """Bring the zone states up to date with the journal's *records*, in order.

    Raises:
        CorruptImageError: a record names a zone that does not exist.
    """
    for record in records:
        for zone_no, word in record.entries:
            if zone_no >= len(conds):
                raise CorruptImageError(
                    f"journal, record {record.seq}",
                    offset=offset,
                    found=f"zone {zone_no}",
                    expected=f"a zone below {len(conds)}",
                )
            conds[zone_no], wps[zone_no] = unpack_word(word)


# -- faults ---------------------------------------------------------------------------------------------------------


def encode_faults(data: bytes, generation: int, seed: int, *, version: int = 0) -> bytes:
    """Return the fault section that holds *data*, a text of the layer above in the *version* of that layer.

    Raises:
        UsageError: *data* does not fit.
    """
    if len(data) > FAULTS_BYTES - _FAULTS_HEAD.size:
        message = f"the faults take {len(data)} bytes; the image holds {FAULTS_BYTES - _FAULTS_HEAD.size}"
        raise UsageError(message)
    block = bytearray(FAULTS_BYTES)
    _FAULTS_HEAD.pack_into(block, 0, FAULTS_MAGIC, 0, generation, len(data), version)
    block[_FAULTS_HEAD.size : _FAULTS_HEAD.size + len(data)] = data
    _seal(block, 8, seed)
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


def choose_faults(copies: Sequence[bytes], seed: int, *, offsets: Sequence[int]) -> tuple[int, bytes, int]:
    """Return (generation, data, copy) of the newest good *copy* of the fault section; (0, nothing, 0) if never written.

    The first write of all may be torn: then one copy is damaged and the other still all zeros.

    Raises:
        CorruptImageError: both copies are damaged.
    """
    found = [(*decoded, index) for index, copy in enumerate(copies) if (decoded := decode_faults(copy, seed))]
    if found:
        return max(found, key=lambda entry: entry[0])
    if all(copy.strip(b"\0") for copy in copies):
        raise CorruptImageError(
            "fault table", offset=offsets[0], found="damage in both copies", expected="a right CRC in either copy"
        )
    return 0, b"", 0


# -- CRC ----------------------------------------------------------------------------------------------------------


def _seal(block: bytearray, at: int, seed: int) -> None:
    """Put the CRC of *block*, its own four bytes at *at* taken as zeros, into it."""
    _CRC.pack_into(block, at, 0)
    _CRC.pack_into(block, at, zlib.crc32(block, seed))


def _check_crc(block: bytes, at: int, seed: int, *, what: str, offset: int) -> None:
    (found,) = _CRC.unpack_from(block, at)
    expected = zlib.crc32(block[at + 4 :], zlib.crc32(bytes(4), zlib.crc32(block[:at], seed)))
    if found != expected:
        raise CorruptImageError(
            f"{what}, CRC", offset=offset + at, found=f"{found:#010x}", expected=f"{expected:#010x}"
        )
