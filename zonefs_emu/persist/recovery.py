"""Combining two copies of a section: the choice of the copy that counts, and the rebuilding of damaged ones.

Pure: bytes in, values out. May not know: files; the layout of sections (codec/).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from zonefs_emu.errors import CorruptImageError, UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import after_power_cycle
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, Condition
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.faults import decode_faults
from zonefs_emu.persist.codec.header import (
    RARE_BYTES,
    TELLING_BYTES,
    Header,
    SectionKind,
    encode_header,
    planned_header,
)
from zonefs_emu.persist.codec.journal import Record, decode_record, find_records, record_bytes
from zonefs_emu.persist.codec.state import Mode, State, decode_state
from zonefs_emu.persist.codec.table import WORDS_PER_BLOCK, scan_table, table_words
from zonefs_emu.persist.codec.words import ZoneStates, unpack_state, unpack_states

#: If many bytes differ, bytes that are closer together than this are taken from the same copy.
_RUN_GAP_BYTES: Final = 16
_NR_MERGED_RUNS_MAX: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The zone table, from two copies.

    *generation* is the newest complete one, and *words* its content. *newest* is the highest generation of any good
    block; a compaction must use a higher one, or blocks of an interrupted one could complete it. *base* is a copy that
    is complete by itself, and must be overwritten last; None if only both together are complete. *is_sound*: both
    copies are complete and equal.
    """

    generation: int
    words: bytes
    newest: int
    base: int | None
    is_sound: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """The *records* from two copies, and the byte *end* where the next one goes.

    *is_sound*: both copies have all of them.
    """

    records: tuple[Record, ...]
    end: int
    is_sound: bool


def rebuild_header(block: bytes, *, offset: int) -> Header | None:
    """Return the header that *block* had before it was damaged, or None if it cannot be rebuilt.

    Most of a header follows from a few fields. If these and the CRC are undamaged, the CRC fits the rebuilt header.
    """
    try:
        header = planned_header(block)
    except (UsageError, ValueError):
        return None
    copies = [copy for copy in (0, 1) if header.section(SectionKind.HEADER, copy).offset == offset]
    if not copies or encode_header(header, copies[0])[8:12] != block[8:12]:
        return None
    return header


def merged_headers(first: bytes, second: bytes) -> Iterator[bytes]:
    """Yield the combinations of two damaged copies of a header, beginning with *first* itself.

    Each byte in which they differ, or each run of such bytes if they are many, is taken from one or the other. The
    number of results doubles with each run, so only the first _NR_MERGED_RUNS_MAX runs are tried. The fields that are
    zero in most images (RARE_BYTES) are tried as zeros as well.
    """
    differing = [at for at in TELLING_BYTES if first[at] != second[at]]
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
        if any(block[RARE_BYTES]):
            block[RARE_BYTES] = bytes(RARE_BYTES.stop - RARE_BYTES.start)
            yield bytes(block)


def choose_state(copies: Sequence[bytes], seed: int, *, offsets: Sequence[int]) -> tuple[State, int]:
    """Return (the newest good state block of the *copies*, the copy to overwrite first: not that one).

    Raises:
        CorruptImageError: both copies are damaged; the message is about the first.
    """
    states: list[tuple[State, int]] = []
    errors: list[CorruptImageError] = []
    for copy, (block, offset) in enumerate(zip(copies, offsets, strict=True)):
        try:
            states.append((decode_state(block, seed, offset=offset), 1 - copy))
        except CorruptImageError as error:
            errors.append(error)
    if not states:
        raise errors[0]
    return max(states, key=lambda entry: entry[0].generation)


def check_clean_stop(state: State, table: Table, journal: Journal, *, offset: int) -> None:
    """Check that *table* and *journal*, at byte *offset* of the file, end as the *state* of a clean stop says.

    Raises:
        CorruptImageError: they have another end, so something was lost.
    """
    last = (table.generation, len(journal.records))
    if state.mode is Mode.CLEAN and (state.epoch, state.journal_seq) != last:
        raise CorruptImageError(
            "journal",
            offset=offset + journal.end,
            found=f"record {last[1]} of epoch {last[0]} as the last one",
            expected=f"record {state.journal_seq} of epoch {state.epoch}, as the state block of a clean stop says",
        )


def choose_table(copies: Sequence[bytes], nr_zones: int, seed: int, *, offsets: Sequence[int]) -> Table:
    """Return the newest complete table from the two *copies*.

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


def read_journal(copies: Sequence[bytes], epoch: int, seed: int, *, offsets: Sequence[int]) -> Journal:
    """Return the records of *epoch* in order.

    A record counts if it is whole in either copy. The first record that is whole in neither is the end of the journal
    if no later one exists: it was being written at a power cut, and its flush was not answered.

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
    later = next(
        (
            record
            for copy in copies
            for record in find_records(copy, seed, start=at, epoch=epoch)
            if record.seq > len(records)
        ),
        None,
    )
    if later is not None:
        raise CorruptImageError(
            f"journal, record {len(records) + 1}",
            offset=offsets[0] + at,
            found=f"damage in both copies, while record {later.seq} is whole further on",
            expected="a whole record in either copy",
        )
    return Journal(records=tuple(records), end=at, is_sound=is_sound)


def zone_states(geometry: Geometry, table: Table, journal: Journal, *, offset: int) -> ZoneStates:
    """Return the states of all zones in *table* and *journal* (at byte *offset*).

    Raises:
        CorruptImageError: a record names a zone that does not exist.
    """
    states = unpack_states(geometry, table.words)
    apply_records(geometry, states, journal.records, offset=offset)
    return states


def power_cycle(states: ZoneStates, zone_numbers: Iterable[int]) -> None:
    """Bring open and closed zones among *zone_numbers* to the condition in which a power cut leaves them."""
    conds, wps, attributes = states
    for zone_no in zone_numbers:
        if conds[zone_no] in ACTIVE_CONDITIONS:
            conds[zone_no] = after_power_cycle(Condition(conds[zone_no]), wps[zone_no], attributes[zone_no])


def apply_records(geometry: Geometry, states: ZoneStates, records: Iterable[Record], *, offset: int) -> None:
    """Bring the zone *states* up to date with the journal's *records*, in order.

    Raises:
        CorruptImageError: a record names a zone that does not exist.
    """
    conds, wps, attributes = states
    for record in records:
        for zone_no, word in record.entries:
            if zone_no >= len(conds):
                raise CorruptImageError(
                    f"journal, record {record.seq}",
                    offset=offset,
                    found=f"zone {zone_no}",
                    expected=f"a zone below {len(conds)}",
                )
            conds[zone_no], wps[zone_no], attributes[zone_no] = unpack_state(geometry, word)


def choose_faults(copies: Sequence[bytes], seed: int, *, offsets: Sequence[int]) -> tuple[int, bytes, int]:
    """Return (generation, data, copy) of the newest good *copy* of the fault section; (0, b"", 0) if never written.

    If the very first write was torn, one copy is damaged and the other still all zeros.

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
