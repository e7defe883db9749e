"""REPORT ZONES: the zones in ZBC, with gap zones.

May not know: CDBs, sense.
Invariant: a report of all zones (option 00h) covers every LBA once, in ascending order. A sequential zone whose
capacity is below its size appears as a zone of that capacity, and a gap zone for the rest (ZBC-2, zone alignment
method 8).

Source: ZBC-2, "REPORT ZONES command"; the LBA fields count logical blocks.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Final, Protocol

from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition, Zone
from zonefs_emu.scsi.inquiry import has_gaps

HEADER_BYTES: Final = 64
DESCRIPTOR_BYTES: Final = 64
GAP_ZONE: Final = 0x5
#: "The content of the WRITE POINTER LBA field is invalid": conventional, FULL, READONLY, OFFLINE and gap zones.
NO_WRITE_POINTER: Final = (1 << 64) - 1

ALL_ZONES: Final = 0x00
ALL_BUT_GAPS: Final = 0x3E
NOT_WRITE_POINTER: Final = 0x3F
#: Reporting option -> the conditions that it lists. 08h (INACTIVE), 10h (reset recommended) and 11h (non-sequential
#: resources) are known and list no zone: no zone here is ever in these states.
_CONDITIONS: Final[Mapping[int, frozenset[Condition]]] = MappingProxyType(
    {
        0x01: frozenset((Condition.EMPTY,)),
        0x02: frozenset((Condition.IMP_OPEN,)),
        0x03: frozenset((Condition.EXP_OPEN,)),
        0x04: frozenset((Condition.CLOSED,)),
        0x05: frozenset((Condition.FULL,)),
        0x06: frozenset((Condition.READONLY,)),
        0x07: frozenset((Condition.OFFLINE,)),
        0x08: frozenset(),
        0x10: frozenset(),
        0x11: frozenset(),
        NOT_WRITE_POINTER: frozenset((Condition.NOT_WP,)),
    }
)
OPTIONS: Final = frozenset((ALL_ZONES, ALL_BUT_GAPS, *_CONDITIONS))
_ANY: Final = frozenset(Condition)
#: The options that list gap zones: those are not write pointer zones.
_WITH_GAPS: Final = frozenset((ALL_ZONES, NOT_WRITE_POINTER))

_WP_VALID: Final = frozenset((Condition.EMPTY, Condition.IMP_OPEN, Condition.EXP_OPEN, Condition.CLOSED))
#: Zone list length, SAME, maximum LBA, zone starting LBA granularity.
_HEADER: Final = struct.Struct(">IB3xQQ40x")
#: Type, condition, length, start, write pointer.
_DESCRIPTOR: Final = struct.Struct(">BB6xQQQ32x")
#: The most zones that are read from the device, and descriptors that are passed on, at once.
_PORTION: Final = 1024


class ZoneSource(Protocol):
    """The part of a device port that reports need."""

    def report(self, zone_no: int, max_zones: int, conds: frozenset[Condition] | None = None) -> list[Zone]:
        """Return up to *max_zones* zones from *zone_no* on; if *conds* is given, only zones in these conditions."""
        ...

    def count(self, zone_no: int, conds: frozenset[Condition]) -> int:
        """Count the zones from *zone_no* on whose condition is in *conds*."""
        ...


class ZoneReporter:
    """Makes REPORT ZONES parameter data of one device."""

    def __init__(self, source: ZoneSource, geometry: Geometry) -> None:
        """Report the zones of *source*, which has *geometry*."""
        self._source = source
        self._geometry = geometry
        self._block_sectors = geometry.block_sectors
        self._has_gaps = has_gaps(geometry)

    def report(
        self, sector: int, option: int, max_descriptors: int, store: Callable[[bytes], object], *, partial: bool
    ) -> bytes:
        """Pass up to *max_descriptors* descriptors from the zone that holds *sector* on to *store*; return the header.

        *store* gets the descriptors in portions, because a list of a million zones is 64 MB. The header (64 bytes)
        precedes the descriptors in the parameter data, but is known last. *option* is one of OPTIONS. The zone list
        length counts the descriptors that were stored (*partial*), or all zones that match (otherwise).
        """
        descriptors = islice(self._descriptors(sector, option, min(max_descriptors, _PORTION)), max_descriptors)
        total = 0
        while portion := list(islice(descriptors, _PORTION)):
            store(b"".join(portion))
            total += len(portion)
        if not partial and total == max_descriptors:
            total = self._count(sector, option)
        granularity = self._geometry.zone_size // self._block_sectors if self._has_gaps else 0
        return _HEADER.pack(
            total * DESCRIPTOR_BYTES,
            self._same(sector, option),
            self._geometry.size // self._block_sectors - 1,
            granularity,
        )

    def _gap(self, zone_no: int) -> int:
        """Return the sectors of the gap zone after zone *zone_no*."""
        return self._geometry.zone_len(zone_no) - self._geometry.zone_cap(zone_no)

    def _starts_in_gap(self, sector: int) -> bool:
        zone_no = sector // self._geometry.zone_size
        return self._has_gaps and sector % self._geometry.zone_size >= self._geometry.zone_cap(zone_no)

    def _descriptors(self, sector: int, option: int, portion: int) -> Iterator[bytes]:
        """Yield the descriptors of all matching zones from the one that holds *sector* on, *portion* zones at once."""
        zone_no = sector // self._geometry.zone_size
        skipped = zone_no if self._starts_in_gap(sector) else -1
        with_gaps = self._has_gaps and option in _WITH_GAPS
        conds = _CONDITIONS.get(option, _ANY)
        if not conds:
            return
        # Every zone is read if gap zones are listed, because the gap zone belongs to the zone before it.
        asked = None if with_gaps or conds is _ANY else conds
        unit = self._block_sectors
        while zone_no < self._geometry.nr_zones:
            zones = self._source.report(zone_no, max(portion, 1), asked)
            if not zones:
                return
            for zone in zones:
                if zone.zone_no != skipped and zone.cond in conds:
                    yield self._describe(zone)
                if with_gaps and zone.capacity < zone.size:
                    yield _DESCRIPTOR.pack(
                        GAP_ZONE,
                        Condition.NOT_WP << 4,
                        (zone.size - zone.capacity) // unit,
                        (zone.start + zone.capacity) // unit,
                        NO_WRITE_POINTER,
                    )
            zone_no = zones[-1].zone_no + 1

    def _describe(self, zone: Zone) -> bytes:
        unit = self._block_sectors
        return _DESCRIPTOR.pack(
            zone.type,
            zone.cond << 4,
            zone.capacity // unit,
            zone.start // unit,
            zone.wp // unit if zone.cond in _WP_VALID else NO_WRITE_POINTER,
        )

    def _count(self, sector: int, option: int) -> int:
        """Count the matching zones from the one that holds *sector* on, without a snapshot of each."""
        geometry = self._geometry
        first = sector // geometry.zone_size
        last = geometry.nr_zones - 1
        conds = _CONDITIONS.get(option, _ANY)
        count = self._source.count(first, conds)
        if self._starts_in_gap(sector):
            count -= self._source.report(first, 1)[0].cond in conds
        if self._has_gaps and option in _WITH_GAPS:
            # Every sequential zone has a gap, except a last one that is no longer than the capacity.
            count += geometry.nr_zones - first - self._nr_conventional_from(first)
            count -= not geometry.is_conventional(last) and not self._gap(last)
        return count

    def _nr_conventional_from(self, zone_no: int) -> int:
        """Return the number of conventional zones from *zone_no* on."""
        runs = self._geometry.conventional
        return sum(max(0, first + count - max(first, zone_no)) for first, count in runs)

    def _same(self, sector: int, option: int) -> int:
        """Return the SAME field of the list that starts at *sector*.

        0: types and lengths may differ, which is always true; 1: all types and lengths are equal; 2: the same except
        for the length of the last zone; 3: all lengths are equal. A list of the zones in some conditions, and one of a
        device with gap zones, has 0.
        """
        geometry = self._geometry
        if option not in (ALL_ZONES, ALL_BUT_GAPS) or self._has_gaps:
            return 0
        first = sector // geometry.zone_size
        last = geometry.nr_zones - 1
        one_type = self._nr_conventional_from(first) in (0, geometry.nr_zones - first)
        runt = geometry.zone_len(last) != geometry.zone_size and last != first
        if one_type:
            return 2 if runt else 1
        return 0 if runt else 3
