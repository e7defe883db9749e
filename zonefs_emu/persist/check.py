"""Checking an image without changing it; returns findings and prints nothing.

An image with findings may be sound; that depends on their severity. A repair does not act on findings: it looks at the
image itself (repair.py), because a finding says what is wrong and not what is right.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Final

from zonefs_emu.errors import BadMagicError, CorruptImageError, ImageError
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, OPEN_CONDITIONS, Attribute, Condition
from zonefs_emu.persist.backing import Backing, FileBacking, current_boot_id
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.faults import decode_faults
from zonefs_emu.persist.codec.header import Header, Section, SectionKind, decode_header
from zonefs_emu.persist.codec.journal import decode_record, record_bytes
from zonefs_emu.persist.codec.state import Mode, State, decode_state
from zonefs_emu.persist.codec.table import scan_table
from zonefs_emu.persist.codec.words import ZoneStates, decode_live, impossible_zones, unpack_states
from zonefs_emu.persist.extensions_section import ExtensionsSection
from zonefs_emu.persist.image import Image
from zonefs_emu.persist.metadata import read_checkpoint, read_copies, read_header, read_zones
from zonefs_emu.persist.recovery import choose_faults
from zonefs_emu.persist.space import zone_extents
from zonefs_emu.units import human_bytes, round_up, to_bytes

_COPY_NAMES: Final = ("first", "second")
#: The most findings of one kind on zones.
_NR_LISTED_MAX: Final = 20


class Severity(Enum):
    """The severity of a finding, worst first."""

    ERROR = "error"  #: the image cannot be opened
    WARNING = "warning"  #: one of two copies is damaged, and the other one is used; or a value is out of bounds
    INFO = "info"  #: no damage


_RANK: Final = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Damage, or a note.

    *offset*: the byte in the file, None if there is no single one. *section* and *copy* (0 or 1): the place, None for
    the file as a whole. *zone_no*: the zone, if it is a single one.
    """

    severity: Severity
    offset: int | None
    message: str
    section: SectionKind | None = None
    copy: int | None = None
    zone_no: int | None = None


def check_image(path: Path) -> list[Finding]:
    """Return the findings about the image *path*, worst first. Takes no lock and writes nothing.

    Raises:
        OSError: the file cannot be read.
        ImageError: it is no regular file, or the host's boot id is unknown (no /proc).
    """
    backing = FileBacking.peek(path)
    try:
        return check_backing(backing, backing.length, current_boot_id())
    finally:
        backing.close()


def check_backing(backing: Backing, length: int, boot_id: bytes) -> list[Finding]:
    """Return the findings about the image on *backing* (*length* bytes), worst first; *boot_id* is the host's.

    Raises:
        OSError: the file cannot be read.
    """
    findings: list[Finding] = []
    try:
        # Opening makes all necessary checks, so an image that it accepts can be used.
        Image.load(backing, length, boot_id, readonly=True)
    except ImageError as error:
        findings.append(_error(error))
    try:
        header = read_header(backing, length)
    except ImageError:
        return findings
    looks: tuple[Callable[[Backing, Header], Iterator[Finding]], ...] = (
        _headers, _states, _tables, _journals, _faults,
    )  # fmt: skip
    findings.extend(chain.from_iterable(look(backing, header) for look in looks))
    findings.extend(_zones(backing, header, boot_id))
    return sorted(findings, key=lambda finding: _RANK[finding.severity])


def lasting(rounds: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Return the findings that all *rounds*, checks of one image in use, have in common.

    A finding that is not in all of them is about a block that was being written.
    """
    return [finding for finding in rounds[0] if all(finding in findings for findings in rounds[1:])]


def _error(error: ImageError) -> Finding:
    offset = error.offset if isinstance(error, CorruptImageError) else None
    return Finding(severity=Severity.ERROR, offset=offset, message=str(error))


def _one_copy(kind: SectionKind, copy: int, offset: int, detail: str) -> Finding:
    message = f"the {_COPY_NAMES[copy]} copy of the {_NAMES[kind]} is damaged: {detail}"
    return Finding(severity=Severity.WARNING, offset=offset, message=message, section=kind, copy=copy)


_NAMES: Final = {
    SectionKind.HEADER: "header",
    SectionKind.STATE: "state block",
    SectionKind.TABLE: "zone table",
    SectionKind.JOURNAL: "journal",
    SectionKind.FAULTS: "fault table",
}


# -- the structures that have two copies ------------------------------------------------------------------------------


def _headers(backing: Backing, header: Header) -> Iterator[Finding]:
    if header.read_only_compatible:
        yield Finding(
            severity=Severity.WARNING,
            offset=header.metadata_offset,
            message=f"the features {header.read_only_compatible:#x} are not known here, so it can only be read",
            section=SectionKind.HEADER,
        )
    found = []
    for copy in (0, 1):
        offset = header.section(SectionKind.HEADER, copy).offset
        try:
            found.append(decode_header(backing.pread(BLOCK_BYTES, offset), offset=offset))
        except (BadMagicError, CorruptImageError) as error:
            yield _one_copy(SectionKind.HEADER, copy, offset, str(error))
    if len(found) == len(_COPY_NAMES) and found[0] != found[1]:
        yield _one_copy(SectionKind.HEADER, 0, header.metadata_offset, "it differs from the second, which counts")


def _state_copies(backing: Backing, header: Header) -> Iterator[tuple[int, State | CorruptImageError]]:
    """Yield (offset, the state or its error) of both copies."""
    for copy in (0, 1):
        offset = header.section(SectionKind.STATE, copy).offset
        try:
            yield offset, decode_state(backing.pread(BLOCK_BYTES, offset), header.seed, offset=offset)
        except CorruptImageError as error:
            yield offset, error


def _states(backing: Backing, header: Header) -> Iterator[Finding]:
    generations = []
    for copy, (offset, found) in enumerate(_state_copies(backing, header)):
        if isinstance(found, State):
            generations.append(found.generation)
        else:
            yield _one_copy(SectionKind.STATE, copy, offset, str(found))
    if len(set(generations)) == len(_COPY_NAMES):
        yield Finding(
            severity=Severity.INFO,
            offset=header.section(SectionKind.STATE).offset,
            message=f"the copies of the state block are of generations {generations[0]} and {generations[1]}: "
            "the last change of it was interrupted, and the newer one counts",
            section=SectionKind.STATE,
        )


def _tables(backing: Backing, header: Header) -> Iterator[Finding]:
    scans = []
    for copy in (0, 1):
        section = header.section(SectionKind.TABLE, copy)
        scans.append(scan_table(backing.pread(section.length, section.offset), header.seed))
        for index, generation in enumerate(scans[copy]):
            if generation < 0:
                offset = section.offset + index * BLOCK_BYTES
                yield _one_copy(SectionKind.TABLE, copy, offset, f"block {index} has a wrong CRC")
    generations = {generation for scan in scans for generation in scan if generation >= 0}
    if len(generations) > 1:
        yield Finding(
            severity=Severity.INFO,
            offset=header.section(SectionKind.TABLE).offset,
            message=f"the zone table has blocks of generations {min(generations)} to {max(generations)}: "
            "its last rewriting was interrupted, and the newest complete one counts",
            section=SectionKind.TABLE,
        )


def _journals(backing: Backing, header: Header) -> Iterator[Finding]:
    """Compare each copy with the records of both together."""
    try:
        table, journal = read_checkpoint(backing, header)
    except CorruptImageError:
        return  # an ERROR says it already
    for copy in (0, 1):
        section = header.section(SectionKind.JOURNAL, copy)
        content = backing.pread(section.length, section.offset)
        at = 0
        for record in journal.records:
            if decode_record(content, at, header.seed) != record:
                detail = f"record {record.seq} of epoch {table.generation} is not whole"
                yield _one_copy(SectionKind.JOURNAL, copy, section.offset + at, detail)
            at += record_bytes(len(record.entries))


def _faults(backing: Backing, header: Header) -> Iterator[Finding]:
    sections = [header.section(SectionKind.FAULTS, copy) for copy in (0, 1)]
    copies = read_copies(backing, header, SectionKind.FAULTS)
    try:
        choose_faults(copies, header.seed, offsets=[section.offset for section in sections])
    except CorruptImageError:
        return  # an ERROR says it already
    for copy, content in enumerate(copies):
        # All zeros: no fault was ever injected.
        if content.strip(b"\0") and decode_faults(content, header.seed) is None:
            yield _one_copy(SectionKind.FAULTS, copy, sections[copy].offset, "it has a wrong CRC")


# -- zones --------------------------------------------------------------------------------------------------------


def _zones(backing: Backing, header: Header, boot_id: bytes) -> Iterator[Finding]:
    """Check the zones of the checkpoint, and the live table if it counts."""
    try:
        states = read_zones(backing, header)
    except CorruptImageError:
        return  # an ERROR says it already
    yield from _impossible(header, SectionKind.TABLE, states)
    good = (state for _, state in _state_copies(backing, header) if isinstance(state, State))
    state = max(good, key=lambda found: found.generation, default=None)
    is_live = state is not None and state.mode is Mode.LIVE
    if state is not None and is_live and state.boot_id == boot_id:
        section = header.section(SectionKind.LIVE)
        try:
            live = decode_live(backing.pread(8 * len(states.conds), section.offset), offset=section.offset)
        except CorruptImageError:
            return  # an ERROR says it already
        flushed, states = states, unpack_states(header.geometry, live)
        yield from _impossible(header, SectionKind.LIVE, states)
        yield from _changed(section, zip(*states, strict=True), zip(*flushed, strict=True))
    elif state is not None and is_live:
        yield Finding(
            severity=Severity.INFO,
            offset=header.section(SectionKind.STATE).offset,
            message=f"the image was in use by {state.owner} when the host stopped: opening it goes back to the "
            "last completed flush",
            section=SectionKind.STATE,
        )
    yield from _limits(header, states)
    yield from _beyond_wp(backing, header, states)
    if header.geometry.extension_bytes:
        yield from _extensions(backing, header, states.attributes)


def _extensions(backing: Backing, header: Header, attributes: bytearray) -> Iterator[Finding]:
    """Check the descriptor extension of each zone that has one."""
    section = ExtensionsSection(backing, header)
    for zone_no, bits in enumerate(attributes):
        if bits & Attribute.EXTENSION and section.load(zone_no) is None:
            yield Finding(
                severity=Severity.WARNING,
                offset=section.offset(zone_no),
                message=f"the descriptor extension of zone {zone_no} has a wrong CRC: reports of it fail until the "
                "zone is reset",
                section=SectionKind.EXTENSIONS,
                zone_no=zone_no,
            )


def _changed(
    live: Section, now: Iterable[tuple[int, int, int]], flushed: Iterable[tuple[int, int, int]]
) -> Iterator[Finding]:
    """Report how many zones differ between the states *now* and those of the last flush."""
    changed = [zone_no for zone_no, (new, old) in enumerate(zip(now, flushed, strict=True)) if new != old]
    if changed:
        yield Finding(
            severity=Severity.INFO,
            offset=live.offset + 8 * changed[0],
            message=f"zones that changed since the last flush: {len(changed)}, zone {changed[0]} first",
            section=SectionKind.LIVE,
            zone_no=changed[0],
        )


def _impossible(header: Header, kind: SectionKind, states: ZoneStates) -> Iterator[Finding]:
    conds, wps, _ = states
    found = list(impossible_zones(header.geometry, *states))
    for zone_no, expected in found[:_NR_LISTED_MAX]:
        yield Finding(
            severity=Severity.ERROR,
            offset=header.section(kind).offset,
            message=f"zone {zone_no} is in condition {conds[zone_no]} with {wps[zone_no]} sectors of data; "
            f"expected {expected}",
            section=kind,
            zone_no=zone_no,
        )
    if len(found) > _NR_LISTED_MAX:
        yield Finding(
            severity=Severity.ERROR,
            offset=header.section(kind).offset,
            message=f"{len(found) - _NR_LISTED_MAX} more zones are in impossible conditions",
            section=kind,
        )


def _limits(header: Header, states: ZoneStates) -> Iterator[Finding]:
    geometry = header.geometry
    conds, _, attributes = states
    for name, limit, number in (
        ("are open", geometry.max_open_zones, sum(map(conds.count, OPEN_CONDITIONS))),
        ("are active", geometry.max_active_zones, sum(map(conds.count, ACTIVE_CONDITIONS))),
        ("have a random write area", geometry.max_zrwa, sum(bool(bits & Attribute.ZRWA) for bits in attributes)),
    ):
        if limit and number > limit:
            yield Finding(
                severity=Severity.WARNING,
                offset=None,
                message=f"{number} zones {name}, more than the limit {limit}",
            )


def _beyond_wp(backing: Backing, header: Header, states: ZoneStates) -> Iterator[Finding]:
    """Report the space of bytes beyond write pointers, which no command can read.

    They come from writes that were not answered, and from answered resets.
    """
    geometry = header.geometry
    conds, wps, attributes = states
    size = to_bytes(geometry.zone_size)
    total = 0
    zones: list[int] = []
    for zone_no, first, last in zone_extents(backing, geometry):
        if conds[zone_no] == Condition.NOT_WP or geometry.is_conventional(zone_no):
            continue
        # Hosts allocate blocks, so the whole block that contains wp counts as used.
        zone = zone_no * size
        covered = to_bytes(geometry.covered(zone_no, wps[zone_no], attributes[zone_no]))
        start = max(zone + first, round_up(zone + covered, BLOCK_BYTES))
        if start < zone + last:
            total += zone + last - start
            zones.append(zone_no)
    if total:
        yield Finding(
            severity=Severity.INFO,
            offset=zones[0] * size + to_bytes(wps[zones[0]]),
            message=f"{human_bytes(total)} of space are taken beyond write pointers; zones: {len(set(zones))}, "
            f"zone {zones[0]} first",
            zone_no=zones[0],
        )
