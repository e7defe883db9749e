"""Reading the rest of a damaged image. It only reads, and reports what is lost.

Rules, best source first:

* A header follows from a few of its fields. If the undamaged parts of both copies lead to a header with the right CRC,
  that header is right.
* The zone states are in three places: the live table, and twice in the checkpoint, which are all equal after a clean
  stop. _RULES says which one counts in which situation, as docs/image-format.md does, and which source has the zones
  that it lacks.
* A zone that is in none of them is as full as its data extents are long. The state in an older source is used if the
  data ends there.

May not know: how the result is written (repair.py).
"""

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from zonefs_emu.errors import BadMagicError, CorruptImageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import after_power_cycle
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, OPEN_CONDITIONS, Attribute, Condition
from zonefs_emu.persist.backing import Backing
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.header import Header, SectionKind, decode_header
from zonefs_emu.persist.codec.journal import Record, find_records
from zonefs_emu.persist.codec.state import Mode, State, decode_state
from zonefs_emu.persist.codec.table import WORDS_PER_BLOCK, scan_table, table_words
from zonefs_emu.persist.codec.words import (
    LIVE_PRIME,
    ZoneStates,
    decode_live,
    impossible_zones,
    unpack_state,
    unpack_states,
)
from zonefs_emu.persist.metadata import find_first_header, header_blocks, read_copies, read_section
from zonefs_emu.persist.recovery import (
    choose_table,
    merged_headers,
    power_cycle,
    read_journal,
    rebuild_header,
    zone_states,
)
from zonefs_emu.persist.space import zone_extents
from zonefs_emu.units import round_up, to_bytes, to_sectors

#: The most entries of a list that can be as long as there are zones.
_NR_LISTED_MAX: Final = 20
#: The most blocks that begin like a header and are tried.
_NR_TRIED_MAX: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Zones:
    """The zone states of an image, which may be damaged.

    *is_sound*: all sources of them are whole. *source* names the source, and *lost* what could not be saved.
    *generation*: the highest of any state block; *epoch*: the highest of any table, record or state.
    *state_first*: the copy of the state block to overwrite first.
    """

    states: ZoneStates
    is_sound: bool
    source: str
    lost: tuple[str, ...]
    generation: int
    epoch: int
    state_first: int


# -- header -----------------------------------------------------------------------------------------------------------


def salvage_header(backing: Backing, length: int) -> Header:
    """Return the header of the image on *backing*, *length* bytes that may be too few or too many.

    Raises:
        BadMagicError: neither copy can be rebuilt, so the place of the metadata is unknown.
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
    """Return the header that the two damaged copies, or one of them, lead to, or None."""
    blocks = {
        offset: backing.pread(BLOCK_BYTES, offset).ljust(BLOCK_BYTES, b"\0")
        for offset in _header_places(backing, length)
    }
    for (offset, block), other in itertools.product(blocks.items(), blocks.values()):
        for merged in merged_headers(block, other):
            header = rebuild_header(merged, offset=offset)
            if header is not None:
                return header
    return None


def _header_places(backing: Backing, length: int) -> Iterator[int]:
    """Yield the offsets in the file where a damaged header may be, the likeliest first; some twice."""
    tried = itertools.islice((offset for offset, _ in header_blocks(backing, length)), _NR_TRIED_MAX)
    places = [max(length - BLOCK_BYTES, 0), *tried]
    for offset in tuple(places):
        # A copy without its magic number is at the place that the other one names.
        block = backing.pread(BLOCK_BYTES, offset)
        own, end, size = (int.from_bytes(block[at : at + 8], "little") for at in (120, 128, 136))
        places += [own, end - BLOCK_BYTES, round_up(to_bytes(size), BLOCK_BYTES)]
    for offset in places:
        # If the file was cut anywhere, its last BLOCK_BYTES bytes are no block.
        if 0 <= offset < length and offset % BLOCK_BYTES == 0:
            yield offset


# -- which source counts ----------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Words:
    """The states of all zones in one source. For the *unknown* zones it has the latest state that it knows."""

    states: ZoneStates
    unknown: set[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checkpoint:
    """Table and journal.

    *is_complete*: they are whole, and have the end that the state block names. *is_sound*: so are both copies of both.
    *is_newer*: they are newer than the clean stop in the state block. *newest*: the highest epoch in them.
    """

    words: _Words
    is_complete: bool
    is_sound: bool
    is_newer: bool
    newest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Evidence:
    """All sources of zone states.

    *state*: the newest good state block, None if there is none or the checkpoint is newer. *is_this_boot*: it was
    written since the host booted. *is_sound*: both copies of everything but the live table are. For *generation*,
    *epoch* and *state_first* see :class:`Zones`.
    """

    state: State | None
    is_this_boot: bool
    live: _Words
    checkpoint: _Checkpoint
    is_sound: bool
    generation: int
    epoch: int
    state_first: int

    @property
    def is_live(self) -> bool:
        """Whether the image was in use, or was not stopped in order."""
        return self.state is not None and self.state.mode is Mode.LIVE

    @property
    def is_clean(self) -> bool:
        """Whether the image was stopped in order."""
        return self.state is not None and self.state.mode is Mode.CLEAN

    @property
    def is_checkpoint_whole(self) -> bool:
        """Whether the checkpoint has a possible state of every zone."""
        return self.checkpoint.is_complete and not self.checkpoint.words.unknown

    @property
    def is_live_equal(self) -> bool:
        """Whether live table and checkpoint have the same state of every zone."""
        live, words = self.live, self.checkpoint.words
        return not live.unknown and live.states == words.states


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """The source of the zone states if *applies* is true: the live table, or the checkpoint.

    *lost*: what is lost in any case. *is_power_cut*: the checkpoint is used as after a power cut, so open zones are
    closed. Zones that are damaged in the live table come from the checkpoint; *lost_of_others* is what these lose, as
    the checkpoint is older.
    """

    applies: Callable[[_Evidence], bool]
    source: str
    is_from_live: bool = False
    is_power_cut: bool = False
    lost: str = ""
    lost_of_others: str = ""


#: The first rule that applies counts; one always does.
_RULES: Final = (
    _Rule(
        applies=lambda evidence: evidence.is_live and evidence.is_this_boot,
        source="the live table",
        is_from_live=True,
        lost_of_others="what changed after the last completed flush",
    ),
    _Rule(applies=lambda evidence: evidence.is_live, source="the checkpoint", is_power_cut=True),
    _Rule(applies=lambda evidence: evidence.is_clean and evidence.is_checkpoint_whole, source="the checkpoint"),
    _Rule(applies=lambda evidence: evidence.is_clean, source="the live table of the clean stop", is_from_live=True),
    # No valid state block is left.
    _Rule(applies=lambda evidence: evidence.is_live_equal, source="the checkpoint"),
    _Rule(
        applies=lambda _: True,
        source="the checkpoint",
        is_power_cut=True,
        lost="what changed after the last completed flush, if anything did",
    ),
)


def salvage_zones(backing: Backing, header: Header, boot_id: bytes) -> Zones:
    """Return the best known zone states of the image on *backing*; *boot_id* is the host's."""
    evidence = _gather(backing, header, boot_id)
    rule = next(rule for rule in _RULES if rule.applies(evidence))
    is_sound = evidence.is_sound and not (rule.is_from_live and evidence.live.unknown)
    zones, lost = _by_rule(rule, evidence, is_sound=is_sound)
    source = rule.source
    if zones.unknown:
        source += ", and from the data extents for zones that it lacks"
        lost.extend(_from_data(backing, header.geometry, zones, [evidence.checkpoint.words, evidence.live]))
    if not is_sound:
        lost.extend(_keep_limits(header.geometry, zones))
    return Zones(
        states=zones.states,
        is_sound=is_sound,
        source=source,
        lost=tuple(lost),
        generation=evidence.generation,
        epoch=evidence.epoch,
        state_first=evidence.state_first,
    )


def _by_rule(rule: _Rule, evidence: _Evidence, *, is_sound: bool) -> tuple[_Words, list[str]]:
    """Return (the zone states that *rule* takes from *evidence*, what is lost)."""
    others = evidence.checkpoint.words
    first = evidence.live if rule.is_from_live else others
    conds, wps, attributes = first.states
    states = ZoneStates(bytearray(conds), array("Q", wps), bytearray(attributes))
    zones = _Words(states=states, unknown=set(first.unknown))
    lost = [rule.lost] if rule.lost else []
    if rule.is_power_cut and not is_sound:
        power_cycle(states, range(len(conds)))
    taken = zones.unknown - others.unknown
    for zone_no in taken:
        for own, other in zip(states, others.states, strict=True):
            own[zone_no] = other[zone_no]
    if taken and rule.lost_of_others:
        power_cycle(states, taken)
        lost.append(f"{rule.lost_of_others} in {_zone_list(taken)}")
    zones.unknown -= taken
    return zones, lost


# -- reading the sources ----------------------------------------------------------------------------------------------


def _gather(backing: Backing, header: Header, boot_id: bytes) -> _Evidence:
    states = _states(backing, header)
    good = [(state, copy) for copy, state in enumerate(states) if state is not None]
    newest, counting = max(good, key=lambda entry: entry[0].generation, default=(None, 1))
    checkpoint = _checkpoint(backing, header, newest)
    state = None if checkpoint.is_newer else newest
    return _Evidence(
        state=state,
        is_this_boot=state is not None and state.boot_id == boot_id,
        live=_live(backing, header),
        checkpoint=checkpoint,
        is_sound=len(good) == len(states) and checkpoint.is_sound and not checkpoint.words.unknown,
        generation=newest.generation if newest is not None else 0,
        epoch=max(checkpoint.newest, newest.epoch if newest is not None else 0),
        state_first=1 - counting,
    )


def _states(backing: Backing, header: Header) -> list[State | None]:
    states: list[State | None] = []
    for block in read_copies(backing, header, SectionKind.STATE):
        try:
            states.append(decode_state(block, header.seed, offset=0))
        except CorruptImageError:
            states.append(None)
    return states


def _live(backing: Backing, header: Header) -> _Words:
    """Return the live table; zones whose word is impossible or no multiple of the prime are unknown."""
    live = read_section(backing, header.section(SectionKind.LIVE))[: 8 * header.geometry.nr_zones]
    unknown: set[int] = set()
    try:
        words = decode_live(live, offset=0)
    except CorruptImageError:
        values = array("Q", live)
        unknown = {zone_no for zone_no, value in enumerate(values) if value % LIVE_PRIME}
        words = array("Q", (0 if value % LIVE_PRIME else value // LIVE_PRIME for value in values)).tobytes()
    states = unpack_states(header.geometry, words)
    unknown.update(zone_no for zone_no, _ in impossible_zones(header.geometry, *states))
    return _Words(states=states, unknown=unknown)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """The readable parts of table and journal.

    *scans*: the generation of each block of each table, -1 if it is damaged. *records*: all whole records of either
    copy and any epoch, each once, oldest first.
    """

    tables: Sequence[bytes]
    journals: Sequence[bytes]
    scans: Sequence[Sequence[int]]
    records: Sequence[Record]

    @property
    def steps(self) -> list[tuple[int, int]]:
        """The (epoch, record) of every table block and record; 0 stands for the table."""
        blocks = [(generation, 0) for scan in self.scans for generation in scan if generation >= 0]
        return blocks + [(record.epoch, record.seq) for record in self.records]


def _read_pieces(backing: Backing, header: Header) -> _Pieces:
    tables, journals = (read_copies(backing, header, kind) for kind in (SectionKind.TABLE, SectionKind.JOURNAL))
    found = {(record.epoch, record.seq): record for copy in journals for record in find_records(copy, header.seed)}
    return _Pieces(
        tables=tables,
        journals=journals,
        scans=[scan_table(copy, header.seed) for copy in tables],
        records=[found[key] for key in sorted(found)],
    )


def _checkpoint(backing: Backing, header: Header, state: State | None) -> _Checkpoint:
    """Return the readable parts of the checkpoint; *state* is the newest good state block."""
    pieces = _read_pieces(backing, header)
    steps = pieces.steps
    stop = (state.epoch, state.journal_seq) if state is not None and state.mode is Mode.CLEAN else None
    is_newer = stop is not None and max(steps, default=stop) > stop
    if is_newer:
        stop = None
    words, is_sound = _whole_checkpoint(header, pieces, stop)
    is_complete = words is not None
    if words is None:
        words = _checkpoint_of_pieces(header.geometry, pieces, stop)
    words.unknown.update(zone_no for zone_no, _ in impossible_zones(header.geometry, *words.states))
    return _Checkpoint(
        words=words,
        is_complete=is_complete,
        is_sound=is_sound and not is_newer,
        is_newer=is_newer,
        newest=max((epoch for epoch, _ in steps), default=0),
    )


def _whole_checkpoint(header: Header, pieces: _Pieces, stop: tuple[int, int] | None) -> tuple[_Words | None, bool]:
    """Return (the zone states that opening the image would find, whether both copies are sound).

    The states are None if opening would find damage, or if the last record is not that of *stop*, the (epoch, record)
    of a clean stop.
    """
    try:
        table = choose_table(pieces.tables, header.geometry.nr_zones, header.seed, offsets=(0, 0))
        journal = read_journal(pieces.journals, table.generation, header.seed, offsets=(0, 0))
        states = zone_states(header.geometry, table, journal, offset=0)
    except CorruptImageError:
        return None, False
    if stop not in (None, (table.generation, len(journal.records))):
        return None, False
    first, second = (copy[: journal.end] for copy in pieces.journals)
    is_sound = first == second and all(generation >= 0 for scan in pieces.scans for generation in scan)
    return _Words(states=states, unknown=set()), is_sound


def _checkpoint_of_pieces(geometry: Geometry, pieces: _Pieces, stop: tuple[int, int] | None) -> _Words:
    """Return the zone states in the readable parts of table and journal.

    *stop*: the (epoch, record) where they end, if that is known. A zone is known if its table block is as new as the
    journal's epoch and no record is missing, or if a record after the last missing one names it.
    """
    words, generations = _newest_blocks(pieces)
    states = unpack_states(geometry, words[: 8 * geometry.nr_zones])
    epoch = stop[0] if stop else max((record.epoch for record in pieces.records), default=-1)
    current = [record for record in pieces.records if record.epoch == epoch]
    for zone_no, word in (entry for record in current for entry in record.entries):
        if zone_no < geometry.nr_zones and generations[zone_no // WORDS_PER_BLOCK] <= epoch:
            for array_of, value in zip(states, unpack_state(geometry, word), strict=True):
                array_of[zone_no] = value
    missing = _last_missing(current, stop)
    unknown = _unknown_zones(geometry, generations, epoch, missing)
    # Without a table block of their epoch, the records may be from before the last compaction.
    if stop or max(generations) == epoch:
        later = (record for record in current if record.seq > missing)
        unknown.difference_update(zone_no for record in later for zone_no, _ in record.entries)
    return _Words(states=states, unknown=unknown)


def _unknown_zones(geometry: Geometry, generations: Sequence[int], epoch: int, missing: int) -> set[int]:
    """Return the zones whose table block does not give their state at the end of the journal of *epoch*.

    *generations*: that of each block. *missing*: the last record that is missing, 0 if none is.
    """
    unknown: set[int] = set()
    for index, generation in enumerate(generations):
        if generation < epoch or generation < 0 or (generation == epoch and missing):
            first = index * WORDS_PER_BLOCK
            unknown.update(range(first, min(first + WORDS_PER_BLOCK, geometry.nr_zones)))
    return unknown


def _newest_blocks(pieces: _Pieces) -> tuple[bytes, list[int]]:
    """Return (the words, the generations) of the newer copy of each table block: zeros and -1 if both are damaged."""
    words = bytearray()
    generations = []
    for index, found in enumerate(zip(*pieces.scans, strict=True)):
        newest = max(found)
        generations.append(newest)
        words += table_words(pieces.tables[found.index(newest)], index) if newest >= 0 else bytes(8 * WORDS_PER_BLOCK)
    return bytes(words), generations


def _last_missing(records: Sequence[Record], stop: tuple[int, int] | None) -> int:
    """Return the number of the last record that is not among the *records* of its epoch; 0 if none is missing."""
    numbers = {record.seq for record in records}
    missing = stop[1] if stop else max(numbers, default=0)
    while missing in numbers:
        missing -= 1
    return missing


# -- zones that no source knows ---------------------------------------------------------------------------------------


def _from_data(backing: Backing, geometry: Geometry, zones: _Words, hints: Sequence[_Words]) -> Iterator[str]:
    """Set the unknown *zones* to the states that follow from their data extents, and yield what is lost of each.

    A zone counts as written up to the end of its last extent, rounded up to a block. It may get more zeros than it had,
    but no data is left beyond wp. The first of *hints* that agrees with the extent and is more exact is used.
    """
    ends = {zone_no: end for zone_no, _, end in zone_extents(backing, geometry) if zone_no in zones.unknown}
    impossible = [{zone_no for zone_no, _ in impossible_zones(geometry, *hint.states)} for hint in hints]
    losses: list[str] = []
    for zone_no in sorted(zones.unknown):
        end = ends.get(zone_no, 0)
        cond, nr_written = _by_extents(geometry, zone_no, end)
        what, reason = "its condition and write pointer", "as its data extents say"
        attributes = 0
        for hint, bad in zip(hints, impossible, strict=True):
            nr_hinted, bits = hint.states.wps[zone_no], hint.states.attributes[zone_no]
            if zone_no not in bad and _bears_out(backing, geometry, zone_no, nr_hinted, bits, end):
                nr_written, attributes = nr_hinted, bits
                cond = after_power_cycle(Condition(hint.states.conds[zone_no]), nr_written, attributes)
                what, reason = "its latest changes", "as an older source says, with which its data extents agree"
                break
        zones.states.conds[zone_no], zones.states.wps[zone_no] = cond, nr_written
        zones.states.attributes[zone_no] = attributes
        if cond is not Condition.NOT_WP:
            losses.append(f"zone {zone_no}: {what}; it is now {cond.name} with {nr_written} sectors, {reason}")
    yield from losses[:_NR_LISTED_MAX]
    if len(losses) > _NR_LISTED_MAX:
        yield f"the same of {len(losses) - _NR_LISTED_MAX} more zones"


def _by_extents(geometry: Geometry, zone_no: int, end: int) -> tuple[Condition, int]:
    """Return (condition, sectors with data) of a zone whose data extents end *end* bytes from its start."""
    if geometry.is_conventional(zone_no):
        return Condition.NOT_WP, 0
    nr_written = round_up(to_sectors(round_up(end, BLOCK_BYTES)), geometry.write_granularity)
    if nr_written >= geometry.zone_cap(zone_no):
        return Condition.FULL, geometry.zone_cap(zone_no)
    return (Condition.CLOSED if nr_written else Condition.EMPTY), nr_written


def _bears_out(  # noqa: PLR0917  (all of one zone)
    backing: Backing, geometry: Geometry, zone_no: int, nr_written: int, attributes: int, end: int
) -> bool:
    """Return whether data that ends *end* bytes from the zone's start can be *nr_written* sectors and no more.

    A zone random write area may hold data up to its end.
    """
    if geometry.is_conventional(zone_no):
        return True
    wp = to_bytes(nr_written)
    if attributes & Attribute.ZRWA:
        covered = to_bytes(geometry.covered(zone_no, nr_written, attributes))
        return wp <= end <= round_up(covered, BLOCK_BYTES)
    if end != min(round_up(wp, BLOCK_BYTES), to_bytes(geometry.zone_len(zone_no))):
        return False
    rest = backing.pread(end - wp, to_bytes(geometry.zone_start(zone_no)) + wp)
    return not rest.strip(b"\0")


def _keep_limits(geometry: Geometry, zones: _Words) -> Iterator[str]:
    """Close and finish zones until the limits of open and active zones hold, and yield what is lost."""
    conds = zones.states.conds
    nr_open = sum(conds.count(cond) for cond in OPEN_CONDITIONS)
    nr_active = sum(conds.count(cond) for cond in ACTIVE_CONDITIONS)
    if not (0 < geometry.max_open_zones < nr_open or 0 < geometry.max_active_zones < nr_active):
        return
    power_cycle(zones.states, range(geometry.nr_zones))
    yield "which zones were open: there were more than the limits allow"
    active = [zone_no for zone_no, cond in enumerate(conds) if cond in ACTIVE_CONDITIONS]
    if 0 < geometry.max_active_zones < len(active):
        # The fullest zones lose the least room.
        active.sort(key=lambda zone_no: -zones.states.wps[zone_no])
        finished = active[: len(active) - geometry.max_active_zones]
        for zone_no in finished:
            conds[zone_no] = Condition.FULL
            _, wps, attributes = zones.states
            wps[zone_no] = geometry.covered(zone_no, wps[zone_no], attributes[zone_no])
            attributes[zone_no] &= ~int(Attribute.ZRWA)
        yield f"the room left in {_zone_list(finished)}: finished, as more were active than the limit allows"


def _zone_list(zone_numbers: Iterable[int]) -> str:
    numbers = sorted(zone_numbers)
    listed = ", ".join(str(zone_no) for zone_no in numbers[:_NR_LISTED_MAX])
    more = f" and {len(numbers) - _NR_LISTED_MAX} more" if len(numbers) > _NR_LISTED_MAX else ""
    return f"zone{'s' if len(numbers) > 1 else ''} {listed}{more}"
