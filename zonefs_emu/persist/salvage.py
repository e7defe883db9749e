"""What can still be read of a damaged image. Reads only, and says what is lost.

Rules, best source first:

* A header follows from a few of its fields; its CRC bears out what the rest of both copies lead to.
* The zone states are in three places: the live table, and twice in the checkpoint. Which one counts is what
  docs/image-format.md says; a zone that it lacks comes from the others where these are as new. A clean stop makes all
  three equal.
* A zone that is in none of them is as full as its data extents are long. What an older source says of it is believed
  where its data end there.

May not know: how the result is written, that is repair.py.
"""

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from zonefs_emu.errors import BadMagicError, CorruptImageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import after_power_cycle
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, OPEN_CONDITIONS, Condition
from zonefs_emu.persist.backing import Backing
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.header import Header, Section, SectionKind, decode_header
from zonefs_emu.persist.codec.journal import JOURNAL_ALIGN_BYTES, JOURNAL_MAGIC, Record, decode_record
from zonefs_emu.persist.codec.state import Mode, State, decode_state
from zonefs_emu.persist.codec.table import WORDS_PER_BLOCK, scan_table, table_words
from zonefs_emu.persist.codec.words import LIVE_PRIME, decode_live, impossible_zones, unpack_word, unpack_words
from zonefs_emu.persist.metadata import find_first_header, header_blocks
from zonefs_emu.persist.recovery import apply_records, choose_table, merged_headers, read_journal, rebuild_header
from zonefs_emu.units import round_up, to_bytes, to_sectors

#: Of things that may be as many as there are zones, so many are listed.
_NR_LISTED_MAX: Final = 20
#: So many blocks that begin like a header are tried.
_NR_TRIED_MAX: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Zones:
    """The zone states that an image has or, damaged, had.

    *is_sound*: everything that says so is whole. *source* says where they come from, *lost* what could not be had.
    *generation*: the highest that any state block has; *epoch*: the highest that any table, record or state names.
    *state_first*: the copy of the state block that counts least.
    """

    conds: bytearray
    wps: "array[int]"
    is_sound: bool
    source: str
    lost: tuple[str, ...]
    generation: int
    epoch: int
    state_first: int


@dataclass(slots=True, kw_only=True)
class _Words:
    """The states of all zones but the *unknown* ones as one source has them; of these the latest it knows, if any."""

    conds: bytearray
    wps: "array[int]"
    unknown: set[int]


def read_padded(backing: Backing, section: Section) -> bytes:
    """Return the content of *section*; what is beyond the end of a file that was cut is zeros."""
    return backing.pread(section.length, section.offset).ljust(section.length, b"\0")


# -- header -----------------------------------------------------------------------------------------------------------


def salvage_header(backing: Backing, length: int) -> Header:
    """Return the header of the image on *backing*, *length* bytes that may be too few or too many.

    Raises:
        BadMagicError: neither copy can be made whole; nothing says then where the metadata are.
        UnsupportedVersionError: the image was made by a later version.
    """
    last = max(length - BLOCK_BYTES, 0)
    header: Header | None
    try:
        header = decode_header(backing.pread(BLOCK_BYTES, last), offset=last)
    except (BadMagicError, CorruptImageError):
        header = find_first_header(backing, length) or _rebuilt_header(backing, length)
    if header is None:
        message = (
            "no copy of a zonefs_emu header can be read, and without one neither the geometry nor the place of the "
            "metadata is known: the image cannot be repaired; its data are where they were, byte n of the device at "
            "byte n of the file"
        )
        raise BadMagicError(message)
    return header


def _rebuilt_header(backing: Backing, length: int) -> Header | None:
    """Return what the two damaged copies of the header, or one of them, together lead to, or None."""
    tried = itertools.islice((offset for offset, _ in header_blocks(backing, length)), _NR_TRIED_MAX)
    offsets = [max(length - BLOCK_BYTES, 0), *tried]
    for offset in tuple(offsets):
        # A copy without its magic is where the other one says.
        block = backing.pread(BLOCK_BYTES, offset)
        own, end, size = (int.from_bytes(block[at : at + 8], "little") for at in (120, 128, 136))
        offsets += [own, end - BLOCK_BYTES, round_up(to_bytes(size), BLOCK_BYTES)]
    # Of a file that was cut anywhere the last bytes of a block's length are no block.
    blocks = {offset: b"" for offset in offsets if 0 <= offset < length and offset % BLOCK_BYTES == 0}
    for offset in blocks:
        blocks[offset] = backing.pread(BLOCK_BYTES, offset).ljust(BLOCK_BYTES, b"\0")
    for offset, block in blocks.items():
        for other in blocks.values():
            for merged in merged_headers(block, other):
                header = rebuild_header(merged, offset=offset)
                if header is not None:
                    return header
    return None


# -- zones ------------------------------------------------------------------------------------------------------------


def salvage_zones(backing: Backing, header: Header, boot_id: bytes) -> Zones:
    """Return the best that can be said of the zones of the image on *backing*; *boot_id* is the host's."""
    states = _states(backing, header)
    # The newest good one; the copy that is damaged or older is the one to write first.
    state, state_first = max(
        ((found, 1 - copy) for copy, found in enumerate(states) if found),
        key=lambda entry: entry[0].generation,
        default=(None, 0),
    )
    checkpoint = _Checkpoint.read(backing, header, state)
    if checkpoint.is_newer:
        state = None
    live = _live(backing, header)
    is_live = state is not None and state.mode is Mode.LIVE
    lost: list[str] = []
    second: _Words | None = None
    chosen: _Words = checkpoint
    source = "the checkpoint"
    if state is not None and state.boot_id == boot_id and is_live:
        chosen, second, source = live, checkpoint, "the live table"
    elif state is not None and not is_live and not (checkpoint.is_whole and not checkpoint.unknown):
        chosen, second, source = live, checkpoint, "the live table of the clean stop"
    is_sound = all(states) and checkpoint.is_sound and not chosen.unknown and not checkpoint.unknown
    zones = _Words(conds=bytearray(chosen.conds), wps=array("Q", chosen.wps), unknown=set(chosen.unknown))
    if chosen is checkpoint and (is_live or (state is None and _differ(live, checkpoint))):
        if state is None:
            lost.append("what changed after the last completed flush, if anything did")
        if not is_sound:
            _power_cycle(zones, range(header.geometry.nr_zones))
    if second is not None:
        taken = zones.unknown - second.unknown
        for zone_no in taken:
            zones.conds[zone_no], zones.wps[zone_no] = second.conds[zone_no], second.wps[zone_no]
        if is_live and taken:
            _power_cycle(zones, taken)
            lost.append(f"what changed after the last completed flush in {_zone_list(taken)}")
        zones.unknown -= taken
    if zones.unknown:
        source += ", and where that says nothing from the data extents"
        lost.extend(_from_data(backing, header.geometry, zones, [checkpoint, live]))
    if not is_sound:
        lost.extend(_keep_limits(header.geometry, zones))
    return Zones(
        conds=zones.conds,
        wps=zones.wps,
        is_sound=is_sound,
        source=source,
        lost=tuple(lost),
        generation=max((found.generation for found in states if found), default=0),
        epoch=checkpoint.newest,
        state_first=state_first,
    )


def _states(backing: Backing, header: Header) -> list[State | None]:
    states: list[State | None] = []
    for copy in (0, 1):
        section = header.section(SectionKind.STATE, copy)
        try:
            states.append(decode_state(read_padded(backing, section), header.seed, offset=section.offset))
        except CorruptImageError:
            states.append(None)
    return states


def _live(backing: Backing, header: Header) -> _Words:
    """Return the live table; unknown are the zones whose word is no multiple of the prime or impossible."""
    live = read_padded(backing, header.section(SectionKind.LIVE))[: 8 * header.geometry.nr_zones]
    unknown: set[int] = set()
    try:
        words = decode_live(live, offset=0)
    except CorruptImageError:
        values = array("Q", live)
        unknown = {zone_no for zone_no, value in enumerate(values) if value % LIVE_PRIME}
        words = array("Q", (0 if value % LIVE_PRIME else value // LIVE_PRIME for value in values)).tobytes()
    conds, wps = unpack_words(words)
    unknown.update(zone_no for zone_no, _ in impossible_zones(header.geometry, conds, wps))
    return _Words(conds=conds, wps=wps, unknown=unknown)


def _differ(live: _Words, checkpoint: _Words) -> bool:
    return bool(live.unknown) or (live.conds, live.wps) != (checkpoint.conds, checkpoint.wps)


@dataclass(slots=True, kw_only=True)
class _Checkpoint(_Words):
    """Table and journal.

    *is_whole*: they are complete, and end where the state block says. *is_sound*: both copies of both are.
    *is_newer*: they are newer than the clean stop of which the state block tells. *newest*: see :class:`Zones`.
    """

    is_whole: bool
    is_sound: bool
    is_newer: bool
    newest: int

    @classmethod
    def read(cls, backing: Backing, header: Header, state: State | None) -> "_Checkpoint":
        """Read what there is; *state* is the newest good state block."""
        tables, journals = (
            [read_padded(backing, header.section(kind, copy)) for copy in (0, 1)]
            for kind in (SectionKind.TABLE, SectionKind.JOURNAL)
        )
        scans = [scan_table(copy, header.seed) for copy in tables]
        records = _records(journals, header.seed)
        steps = [(record.epoch, record.seq) for record in records]
        steps += [(generation, 0) for scan in scans for generation in scan if generation >= 0]
        stop = (state.epoch, state.journal_seq) if state is not None and state.mode is Mode.CLEAN else None
        is_newer = stop is not None and max(steps, default=stop) > stop
        if is_newer:
            stop = None
        is_whole = is_sound = False
        conds, wps = bytearray(), array("Q")
        try:
            table = choose_table(tables, header.geometry.nr_zones, header.seed, offsets=(0, 0))
            journal = read_journal(journals, table.generation, header.seed, offsets=(0, 0))
            conds, wps = unpack_words(table.words)
            apply_records(conds, wps, journal.records, offset=0)
            is_whole = stop in (None, (table.generation, len(journal.records)))
            is_sound = (
                is_whole
                and not is_newer
                and all(generation >= 0 for scan in scans for generation in scan)
                and journals[0][: journal.end] == journals[1][: journal.end]
            )
        except CorruptImageError:
            pass
        unknown: set[int] = set()
        if not is_whole:
            conds, wps, unknown = _pieces(header.geometry, tables, scans, records, stop)
        unknown.update(zone_no for zone_no, _ in impossible_zones(header.geometry, conds, wps))
        return cls(
            conds=conds,
            wps=wps,
            unknown=unknown,
            is_whole=is_whole,
            is_sound=is_sound,
            is_newer=is_newer,
            newest=max([epoch for epoch, _ in steps] + [state.epoch if state is not None else 0]),
        )


def _records(journals: Sequence[bytes], seed: int) -> list[Record]:
    """Return all whole records of both copies of the journal, of whatever epoch, each once, oldest first."""
    found: dict[tuple[int, int], Record] = {}
    for journal in journals:
        for at in range(0, len(journal), JOURNAL_ALIGN_BYTES):
            if journal.startswith(JOURNAL_MAGIC, at):
                record = decode_record(journal, at, seed)
                if record is not None:
                    found[record.epoch, record.seq] = record
    return [found[key] for key in sorted(found)]


def _pieces(
    geometry: Geometry,
    tables: Sequence[bytes],
    scans: Sequence[Sequence[int]],
    records: Sequence[Record],
    stop: tuple[int, int] | None,
) -> tuple[bytearray, "array[int]", set[int]]:
    """Return (conditions, extents, zones that are unknown) from the pieces of table and journal.

    *stop*: the (epoch, record) where they end, if that is known. A zone is known if its table block is as new as the
    journal's epoch and no record is missing, or if a record names it that follows on the last missing one.
    """
    words = bytearray()
    generations = []
    for index, found in enumerate(zip(*scans, strict=True)):
        generations.append(max(found))
        words += table_words(tables[found.index(max(found))], index) if max(found) >= 0 else bytes(8 * WORDS_PER_BLOCK)
    conds, wps = unpack_words(bytes(words[: 8 * geometry.nr_zones]))
    epoch = stop[0] if stop else max((record.epoch for record in records), default=-1)
    current = [record for record in records if record.epoch == epoch]
    numbers = {record.seq for record in current}
    missing = stop[1] if stop else max(numbers, default=0)
    while missing in numbers:
        missing -= 1
    newest = max(generations)
    for record in current:
        for zone_no, word in record.entries:
            if zone_no < geometry.nr_zones and generations[zone_no // WORDS_PER_BLOCK] <= epoch:
                conds[zone_no], wps[zone_no] = unpack_word(word)
    unknown: set[int] = set()
    for index, generation in enumerate(generations):
        if generation < epoch or generation < 0 or (generation == epoch and missing):
            first = index * WORDS_PER_BLOCK
            unknown.update(range(first, min(first + WORDS_PER_BLOCK, geometry.nr_zones)))
    # Without a table block beside them nobody knows whether the records are not from before the last compaction.
    if stop or newest == epoch:
        unknown.difference_update(
            zone_no for record in current if record.seq > missing for zone_no, _ in record.entries
        )
    return conds, wps, unknown


def _power_cycle(zones: _Words, zone_numbers: Iterable[int]) -> None:
    for zone_no in zone_numbers:
        if zones.conds[zone_no] in ACTIVE_CONDITIONS:
            zones.conds[zone_no] = after_power_cycle(Condition(zones.conds[zone_no]), zones.wps[zone_no])


def _from_data(backing: Backing, geometry: Geometry, zones: _Words, hints: Sequence[_Words]) -> Iterator[str]:
    """Give the unknown *zones* the states that their data extents suggest, and yield what is lost of each.

    A zone is written up to the end of its last extent, rounded up to a block: it may get some zeros more than it had,
    but no data are left beyond wp. The first of *hints* that says so more exactly is taken.
    """
    ends = _data_ends(backing, geometry, zones.unknown)
    impossible = [{zone_no for zone_no, _ in impossible_zones(geometry, hint.conds, hint.wps)} for hint in hints]
    told: list[str] = []
    for zone_no in sorted(zones.unknown):
        end = ends.get(zone_no, 0)
        cond, nr_written = _by_extents(geometry, zone_no, end)
        what = "its condition and write pointer; by its data"
        for hint, bad in zip(hints, impossible, strict=True):
            if zone_no not in bad and _bears_out(backing, geometry, zone_no, hint.wps[zone_no], end):
                nr_written = hint.wps[zone_no]
                cond = after_power_cycle(Condition(hint.conds[zone_no]), nr_written)
                what = "what happened to it last; by what else is said of it, which its data bear out,"
                break
        zones.conds[zone_no], zones.wps[zone_no] = cond, nr_written
        if cond is not Condition.NOT_WP:
            told.append(f"zone {zone_no}: {what} it is {cond.name} with {nr_written} sectors")
    yield from told[:_NR_LISTED_MAX]
    if len(told) > _NR_LISTED_MAX:
        yield f"the same of {len(told) - _NR_LISTED_MAX} more zones"


def _data_ends(backing: Backing, geometry: Geometry, zone_numbers: set[int]) -> dict[int, int]:
    """Return, for each of the zones that has data, where they end, in bytes from its start."""
    size = to_bytes(geometry.zone_size)
    ends: dict[int, int] = {}
    for offset, length in backing.extents(0, to_bytes(geometry.size)):
        for zone_no in range(offset // size, (offset + length - 1) // size + 1):
            if zone_no in zone_numbers:
                ends[zone_no] = min(offset + length - zone_no * size, size)
    return ends


def _by_extents(geometry: Geometry, zone_no: int, end: int) -> tuple[Condition, int]:
    """Return (condition, sectors with data) of a zone whose data extents end *end* bytes from its start."""
    if geometry.is_conventional(zone_no):
        return Condition.NOT_WP, 0
    nr_written = round_up(to_sectors(round_up(end, BLOCK_BYTES)), geometry.write_granularity)
    if nr_written >= geometry.zone_cap(zone_no):
        return Condition.FULL, geometry.zone_cap(zone_no)
    return (Condition.CLOSED if nr_written else Condition.EMPTY), nr_written


def _bears_out(backing: Backing, geometry: Geometry, zone_no: int, nr_written: int, end: int) -> bool:
    """Say whether data that end *end* bytes from the zone's start can be *nr_written* sectors and no more."""
    if geometry.is_conventional(zone_no):
        return True
    wp = to_bytes(nr_written)
    if end != min(round_up(wp, BLOCK_BYTES), to_bytes(geometry.zone_len(zone_no))):
        return False
    rest = backing.pread(end - wp, to_bytes(geometry.zone_start(zone_no)) + wp)
    return not rest.strip(b"\0")


def _keep_limits(geometry: Geometry, zones: _Words) -> Iterator[str]:
    """See to it that no more zones are open and active than may be, and yield what is lost by it."""
    nr_open = sum(zones.conds.count(cond) for cond in OPEN_CONDITIONS)
    nr_active = sum(zones.conds.count(cond) for cond in ACTIVE_CONDITIONS)
    if not (0 < geometry.max_open_zones < nr_open or 0 < geometry.max_active_zones < nr_active):
        return
    _power_cycle(zones, range(geometry.nr_zones))
    yield "which zones were open: there were more than the limits allow"
    active = [zone_no for zone_no, cond in enumerate(zones.conds) if cond in ACTIVE_CONDITIONS]
    if 0 < geometry.max_active_zones < len(active):
        # The fullest ones have the least room to lose.
        active.sort(key=lambda zone_no: -zones.wps[zone_no])
        finished = active[: len(active) - geometry.max_active_zones]
        for zone_no in finished:
            zones.conds[zone_no] = Condition.FULL
        yield f"the room left in {_zone_list(finished)}: finished, as more were active than the limit allows"


def _zone_list(zone_numbers: Iterable[int]) -> str:
    numbers = sorted(zone_numbers)
    listed = ", ".join(str(zone_no) for zone_no in numbers[:_NR_LISTED_MAX])
    more = f" and {len(numbers) - _NR_LISTED_MAX} more" if len(numbers) > _NR_LISTED_MAX else ""
    return f"zone{'s' if len(numbers) > 1 else ''} {listed}{more}"
