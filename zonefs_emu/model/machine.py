"""The zone machine: geometry + conditions + write pointers + limits, and every command on them.

May not know: files, time, front-ends. It moves no data: a read or write is asked for (``begin_write``), the caller
moves the bytes, and then the machine is told (``commit_write``).

Invariants:

* ``conds`` and ``wps`` are flat arrays, one entry a zone: a million zones are nine megabytes. ``wps`` counts sectors
  written from the zone's start; for READONLY, FULL and OFFLINE zones it still says how many sectors hold data, and
  for conventional zones it is 0.
* A command that raises CommandError has changed nothing.
* ``nr_open`` and ``nr_active`` always equal a count over ``conds``. No command costs more for more zones, but for those
  that ask for many zones.
* ``touched`` lists, in order, the zones whose condition changed since the caller last cleared it: an implicit close
  comes before the open that caused it, so that a reader that copies one change at a time meets legal states only.
  ``implicitly_closed`` lists those among them that the machine closed to make room; the caller clears it too.
* A command on many zones is checked completely, and then carried out in portions, between which the caller may let
  others look. It has to see to it that until the end no other command touches the zones that are left; for opening and
  finishing where there are limits, none at all.
"""

import re
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from sortedcontainers import SortedDict

from zonefs_emu.errors import CommandError, Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import Dialect, Operation, after_power_cycle, after_write
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, OPEN_CONDITIONS, Condition, Zone, ZoneType
from zonefs_emu.units import Sector

_NOT_WP: Final = Condition.NOT_WP
_EMPTY: Final = Condition.EMPTY
_IMP_OPEN: Final = Condition.IMP_OPEN
_EXP_OPEN: Final = Condition.EXP_OPEN
_CLOSED: Final = Condition.CLOSED
_READONLY: Final = Condition.READONLY
_FULL: Final = Condition.FULL
_OFFLINE: Final = Condition.OFFLINE
_OPEN: Final = frozenset(map(int, OPEN_CONDITIONS))
_ACTIVE: Final = frozenset(map(int, ACTIVE_CONDITIONS))
_CONDITIONS: Final = frozenset(map(int, Condition))
#: The most zones that one portion of a command changes, and the most that it looks through, at the speed of a scan.
PORTION_ZONES: Final = 1024
_SCAN_ZONES: Final = 1 << 16


#: What :meth:`ZoneMachine.take_over` takes besides the states themselves.
_ACCOUNTS: Final = ("nr_open", "nr_active", "open_zones", "active_zones", "_order", "_keys", "_last_written", "_tick")


def fresh_zones(geometry: Geometry) -> tuple[bytearray, "array[int]"]:
    """Return conditions and write pointers of a device as it leaves the factory: EMPTY, or NOT_WP if conventional."""
    conds = bytearray([_EMPTY]) * geometry.nr_zones
    for first, count in geometry.conventional:
        conds[first : first + count] = bytes(count)
    return conds, array("Q", bytes(8 * geometry.nr_zones))


def indices_of(conds: frozenset[Condition], cond_codes: bytes | bytearray) -> Iterator[int]:
    """Yield where *cond_codes* has one of *conds*, at the speed of a memory scan."""
    if conds:
        pattern = re.compile(b"[" + b"".join(re.escape(bytes((cond,))) for cond in sorted(conds)) + b"]")
        for match in pattern.finditer(cond_codes):
            yield match.start()


def _first_in(wanted: frozenset[Condition], conds: bytearray) -> int:
    """Return the place of the first of *conds* that is *wanted*; there is one."""
    return min(at for cond in wanted if (at := conds.find(cond)) >= 0)


class ZoneMachine:
    """A zoned device without its data. Not thread safe: the caller holds the device's one lock."""

    __slots__ = (
        "_active_limited",
        "_block_mask",
        "_capacity",
        "_granularity",
        "_keys",
        "_last_capacity",
        "_last_written",
        "_last_zone",
        "_limited",
        "_nr_zones",
        "_order",
        "_size",
        "_tick",
        "_zone_size",
        "active_zones",
        "conds",
        "geometry",
        "implicitly_closed",
        "nr_active",
        "nr_open",
        "open_zones",
        "touched",
        "wps",
        "writing",
    )

    def __init__(self, geometry: Geometry, conds: bytearray, wps: "array[int]") -> None:
        """Take over *conds* and *wps* (one entry a zone); they stay the caller's to read."""
        assert len(conds) == len(wps) == geometry.nr_zones
        self.geometry = geometry
        self.conds = conds
        self.wps = wps
        self.touched: list[int] = []
        self.implicitly_closed: list[int] = []
        #: Ranges [first, end) of zones to which the caller is writing after :meth:`open_to_write`: these stay open.
        self.writing: Collection[Sequence[int]] = ()
        self._size = geometry.size
        self._zone_size = geometry.zone_size
        self._capacity = geometry.zone_capacity
        self._granularity = geometry.write_granularity
        self._block_mask = geometry.block_sectors - 1
        self._nr_zones = geometry.nr_zones
        self._last_zone = geometry.nr_zones - 1
        self._last_capacity = geometry.zone_cap(self._last_zone)
        self._limited = geometry.max_open_zones != 0
        self._active_limited = geometry.max_active_zones != 0
        self._tick = 0
        self._recount()

    def _recount(self) -> None:
        conds = self.conds
        self.nr_open = sum(conds.count(cond) for cond in OPEN_CONDITIONS)
        self.nr_active = self.nr_open + conds.count(_CLOSED)
        #: The zones that hold the open and the active resources; each kept only where there is a limit to hit.
        self.open_zones = set(self.zones_in(OPEN_CONDITIONS)) if self._limited else set[int]()
        self.active_zones = set(self.zones_in(ACTIVE_CONDITIONS)) if self._active_limited else set[int]()
        # Implicitly open zones by the tick of a write, least recent first; _keys has each zone's place in it. The
        # places are put right lazily (see _oldest): a write only notes its tick in _last_written, one dictionary store
        # instead of a removal and an insertion.
        self._order: SortedDict[int, int] = SortedDict()
        self._keys: dict[int, int] = {}
        self._last_written: dict[int, int] = {}
        if self._limited:
            for zone_no in self.zones_in(frozenset((_IMP_OPEN,))):
                self._note_written(zone_no)
                self._place(zone_no, self._tick)

    # -- looking --------------------------------------------------------------------------------------------

    def zone(self, zone_no: int) -> Zone:
        """Return a snapshot of zone *zone_no*."""
        return self.snapshot(zone_no, self.conds[zone_no], self.wps[zone_no])

    def snapshot(self, zone_no: int, cond_code: int, offset: Sector) -> Zone:
        """Return zone *zone_no* as it is in condition *cond_code* with *offset* sectors written from its start.

        For long reports: what conds and wps held at one instant takes a copy of them, the snapshots take much longer.
        """
        geometry = self.geometry
        start = zone_no * self._zone_size
        cond = Condition(cond_code)
        conventional = cond == _NOT_WP or (cond in (_READONLY, _OFFLINE) and geometry.is_conventional(zone_no))
        return Zone(
            zone_no,
            start,
            geometry.zone_len(zone_no),
            geometry.zone_len(zone_no) if conventional else self._zone_capacity(zone_no),
            start + offset,
            cond,
            ZoneType.CONVENTIONAL if conventional else ZoneType.SWR,
        )

    def zones_in(self, conds: frozenset[Condition], first: int = 0, end: int | None = None) -> Iterator[int]:
        """Yield the numbers, from *first* to before *end*, of the zones in one of *conds*; at the speed of a scan."""
        # Looking at a bytes copy, so that the array may be resized or changed while the caller iterates.
        for index in indices_of(conds, bytes(self.conds[first:end])):
            yield first + index

    def _zone_capacity(self, zone_no: int) -> Sector:
        return self._capacity if zone_no != self._last_zone else self._last_capacity

    # -- reading ----------------------------------------------------------------------------------------------

    def check_read(self, sector: Sector, nr_sectors: int, dialect: Dialect) -> int:
        """Return how many of the *nr_sectors* from *sector* hold data; what follows them reads as zeros.

        Returns -1 where the read spans zones and zeros lie between data: then ask again for each zone's part.

        Raises:
            CommandError: OUT_OF_RANGE, UNALIGNED, ZONE_OFFLINE, READ_BOUNDARY.

        Source: virtio 1.4, Device Operation: reads that cross the boundary of a sequential zone are invalid; data
        beyond the write pointer is a fixed pattern (here zeros).
        """
        zone_no = sector // self._zone_size
        # The common case first: written blocks of one zone. Where wp has passed the end, the end lies in the zone.
        if (
            0 <= zone_no < self._nr_zones
            and self.wps[zone_no] >= sector - zone_no * self._zone_size + nr_sectors
            and self.conds[zone_no] != _OFFLINE
            and not (sector | nr_sectors) & self._block_mask
            and nr_sectors > 0
        ):
            return nr_sectors
        if not 0 <= sector < self._size or nr_sectors < 0 or sector + nr_sectors > self._size:
            raise CommandError(Status.OUT_OF_RANGE)
        offset = sector - zone_no * self._zone_size
        if (sector | nr_sectors) & self._block_mask:
            raise CommandError(Status.UNALIGNED, zone_no)
        if offset + nr_sectors > self._zone_size:
            return self._check_read_across(zone_no, sector, nr_sectors, dialect)
        cond = self.conds[zone_no]
        if cond == _OFFLINE:
            raise CommandError(Status.ZONE_OFFLINE, zone_no)
        if cond == _NOT_WP:
            return nr_sectors
        readable = self.wps[zone_no] - offset
        if readable >= nr_sectors:
            return nr_sectors
        if cond == _READONLY and self.geometry.is_conventional(zone_no):
            return nr_sectors
        return max(readable, 0)

    def _check_read_across(self, zone_no: int, sector: Sector, nr_sectors: int, dialect: Dialect) -> int:
        end = sector + nr_sectors
        last = (end - 1) // self._zone_size
        whole = True
        for other in range(zone_no, last + 1):
            outcome = dialect.table[Operation.READ][Condition(self.conds[other])]
            if isinstance(outcome, Status):
                raise CommandError(outcome, other)
            if not self.geometry.is_conventional(other):
                if not dialect.read_across:
                    raise CommandError(Status.READ_BOUNDARY, zone_no)
                asked = self._zone_size if other != last else end - last * self._zone_size
                whole = whole and self.wps[other] >= asked
        return nr_sectors if whole else -1

    # -- writing ----------------------------------------------------------------------------------------------

    def begin_write(self, sector: Sector, nr_sectors: int, dialect: Dialect) -> int:
        """Check a write of *nr_sectors* at *sector* and return its zone number; change nothing.

        Raises:
            CommandError: OUT_OF_RANGE; ZONE_READONLY, ZONE_OFFLINE, ZONE_FULL; UNALIGNED in a conventional zone, which
                is written in whole blocks anywhere; ZONE_BOUNDARY past the capacity; UNALIGNED_WP if *sector* is not wp
                or the end is not on the write granularity; ACTIVE_RESOURCE before OPEN_RESOURCE. They are looked for
                in this order. A write of nothing is checked like any other, but opens no zone.

        Source: virtio 1.4, block device, Device Operation; ZBC-2, unaligned write and write boundary violations. No
        standard says which comes first where several hold; most peers look for the boundary before wp.
        """
        zone_no, offset = divmod(sector, self._zone_size)
        # The common case first: at wp of a zone that is open and stays open. An open zone stays as it is in every
        # dialect (tests assert the cells), so no table is asked.
        if (
            0 <= zone_no < self._last_zone
            and self.conds[zone_no] in _OPEN
            and offset == self.wps[zone_no]
            and offset + nr_sectors <= self._capacity
            and nr_sectors > 0
            and not nr_sectors % self._granularity
        ):
            return zone_no
        self._begin_write_checked(zone_no, sector, nr_sectors, dialect)
        return zone_no

    def _begin_write_checked(self, zone_no: int, sector: Sector, nr_sectors: int, dialect: Dialect) -> None:
        if not 0 <= sector < self._size or nr_sectors < 0 or sector + nr_sectors > self._size:
            raise CommandError(Status.OUT_OF_RANGE)
        cond = Condition(self.conds[zone_no])
        target = dialect.table[Operation.WRITE][cond]
        if isinstance(target, Status):
            raise CommandError(target, zone_no)
        if target == _NOT_WP:
            if (sector | nr_sectors) & self._block_mask:
                raise CommandError(Status.UNALIGNED, zone_no)
            self._check_conventional_write(zone_no, sector + nr_sectors, dialect)
            return
        offset = sector - zone_no * self._zone_size
        if offset + nr_sectors > self._zone_capacity(zone_no):
            raise CommandError(Status.ZONE_BOUNDARY, zone_no)
        if offset != self.wps[zone_no] or nr_sectors % self._granularity:
            raise CommandError(Status.UNALIGNED_WP, zone_no)
        # "with a non-zero data size": only such a write opens the zone (virtio 1.4, Device Operation).
        if nr_sectors:
            self._check_resources(zone_no, cond)

    def _check_conventional_write(self, zone_no: int, end: Sector, dialect: Dialect) -> None:
        for other in range(zone_no + 1, (end - 1) // self._zone_size + 1):
            if not self.geometry.is_conventional(other):
                raise CommandError(Status.ZONE_BOUNDARY, zone_no)
            outcome = dialect.table[Operation.WRITE][Condition(self.conds[other])]
            if isinstance(outcome, Status):
                raise CommandError(outcome, other)

    def begin_append(self, sector: Sector, nr_sectors: int, dialect: Dialect) -> Sector:
        """Check a zone append of *nr_sectors* to the zone that starts at *sector*; return where it will land.

        The caller then writes there and calls :meth:`commit_write`. Nothing is changed here.

        Raises:
            CommandError: OUT_OF_RANGE, NOT_ZONE_START, CONVENTIONAL, ZONE_READONLY, ZONE_OFFLINE, ZONE_FULL,
                APPEND_LIMIT, ZONE_BOUNDARY, and what :meth:`begin_write` looks for after it.

        Source: virtio 1.4 ZONE_APPEND; NVMe ZNS 1.1, Zone Append command.
        """
        if not 0 <= sector < self._size or nr_sectors < 0:
            raise CommandError(Status.OUT_OF_RANGE)
        zone_no, offset = divmod(sector, self._zone_size)
        if offset:
            raise CommandError(Status.NOT_ZONE_START, zone_no)
        outcome = dialect.table[Operation.APPEND][Condition(self.conds[zone_no])]
        if isinstance(outcome, Status):
            raise CommandError(outcome, zone_no)
        if nr_sectors > self.geometry.max_append:
            raise CommandError(Status.APPEND_LIMIT, zone_no)
        # Before the write is looked at: in the last zone it would be a write beyond the device.
        if self.wps[zone_no] + nr_sectors > self._zone_capacity(zone_no):
            raise CommandError(Status.ZONE_BOUNDARY, zone_no)
        append_sector = sector + self.wps[zone_no]
        self.begin_write(append_sector, nr_sectors, dialect)
        return append_sector

    def open_to_write(self, zone_no: int) -> None:
        """Open *zone_no* now for a write that :meth:`begin_write` allowed and that takes long; then commit it.

        Until the caller takes the zone out of ``writing``, it stays open, so that the commit needs no resource.
        """
        cond = self.conds[zone_no]
        if cond != _NOT_WP and cond not in _OPEN:
            self._make_room(zone_no, cond)
            self._set_cond(zone_no, _IMP_OPEN)

    def commit_write(self, zone_no: int, nr_sectors: int) -> None:
        """Advance wp of *zone_no* by the *nr_sectors* that :meth:`begin_write` allowed and that are now written."""
        wp = self.wps[zone_no] + nr_sectors
        cond = self.conds[zone_no]
        if cond not in _OPEN or wp == self._zone_capacity(zone_no):
            if cond == _NOT_WP or not nr_sectors:
                return
            if cond not in _OPEN:
                self._make_room(zone_no, cond)
                cond = _IMP_OPEN
            # wp first: a reader that copies `touched` zones then sees the new condition with the new wp.
            self.wps[zone_no] = wp
            reached_capacity = wp == self._zone_capacity(zone_no)
            self._set_cond(zone_no, after_write(Condition(cond), reached_capacity=reached_capacity))
            return
        self.wps[zone_no] = wp
        if self._limited and cond == _IMP_OPEN and nr_sectors:
            self._note_written(zone_no)

    # -- zone management --------------------------------------------------------------------------------------

    def manage(self, operation: Operation, sector: Sector, nr_zones: int, dialect: Dialect) -> None:
        """Open, close, finish or reset the *nr_zones* zones from the one that starts at *sector*; all or nothing.

        Raises:
            CommandError: OUT_OF_RANGE, NOT_ZONE_START, CONVENTIONAL, ZONE_READONLY, ZONE_OFFLINE, BAD_TRANSITION by the
                dialect's table, ACTIVE_RESOURCE, OPEN_RESOURCE. The machine is then unchanged.
        """
        for _ in self.begin_manage(operation, sector, nr_zones, dialect):
            pass

    def begin_manage(self, operation: Operation, sector: Sector, nr_zones: int, dialect: Dialect) -> Iterator[int]:
        """Check what :meth:`manage` does, and return what does it: each step is one portion, and yields where it ends.

        The last step yields the end of the range. Nothing has changed before the first.

        Raises:
            CommandError: as :meth:`manage`.
        """
        if not 0 <= sector < self._size or nr_zones < 1:
            raise CommandError(Status.OUT_OF_RANGE)
        first, offset = divmod(sector, self._zone_size)
        if offset:
            raise CommandError(Status.NOT_ZONE_START, first)
        end = first + nr_zones
        if end > self._nr_zones:
            raise CommandError(Status.OUT_OF_RANGE)
        row = dialect.table[operation]
        conds = self.conds[first:end]  # what follows looks at a copy of the range, at the speed of a scan
        self._require_allowed(row, conds, first)
        moving = frozenset(cond for cond, target in row.items() if target != cond and not isinstance(target, Status))
        nr_closed = 0
        if operation is Operation.OPEN:
            nr_closed = self._check_opening(moving, conds, first)
        elif operation is Operation.FINISH and dialect.finish_needs_open:
            nr_closed = self._check_finishing(moving, conds, first)
        return self._in_portions(moving, row, dialect, nr_closed=nr_closed, first=first, end=end)

    @staticmethod
    def _require_allowed(row: Mapping[Condition, Condition | Status], conds: bytearray, first: int) -> None:
        """Raise CommandError for the first zone that *row* refuses; *conds* are those from zone *first* on."""
        few = len(conds) <= PORTION_ZONES
        refused = [
            (at, target)
            for cond in map(Condition, set(conds) if few else _CONDITIONS)
            if isinstance(target := row[cond], Status) and (at := conds.find(cond)) >= 0
        ]
        if refused:
            at, status = min(refused)
            raise CommandError(status, first + at)

    def manage_all(self, operation: Operation, dialect: Dialect) -> None:
        """Open, close, finish or reset all zones that the dialect's ALL form acts on.

        Raises:
            CommandError: ACTIVE_RESOURCE or OPEN_RESOURCE for OPEN; nothing is then opened (ZBC-2, OPEN ZONE with the
                ALL bit set: all of the closed zones, or none).
        """
        for _ in self.begin_manage_all(operation, dialect):
            pass

    def begin_manage_all(self, operation: Operation, dialect: Dialect) -> Iterator[int]:
        """Check what :meth:`manage_all` does, and return what does it, as :meth:`begin_manage` does.

        Raises:
            CommandError: as :meth:`manage_all`.
        """
        row = dialect.all_zones[operation]
        moving = frozenset(row)
        nr_closed = self._check_opening(moving, self.conds[:], 0) if operation is Operation.OPEN else 0
        return self._in_portions(moving, row, dialect, nr_closed=nr_closed, first=0, end=self._nr_zones)

    def set_cond(self, zone_no: int, cond: Condition) -> None:
        """Put zone *zone_no* into *cond*, as a failing or repaired medium would.

        READONLY and OFFLINE keep the data; NOT_WP brings a conventional zone back; EMPTY forgets the data, CLOSED
        and FULL keep it. A zone that is in *cond* already is not touched.

        Raises:
            CommandError: OUT_OF_RANGE; CONVENTIONAL if the zone's type has no such condition; BAD_TRANSITION for open
                conditions (open the zone instead) and for CLOSED without data or with a full capacity;
                ACTIVE_RESOURCE.
        """
        if not 0 <= zone_no < self._nr_zones:
            raise CommandError(Status.OUT_OF_RANGE)
        old = self.conds[zone_no]
        if cond not in (_READONLY, _OFFLINE) and self.geometry.is_conventional(zone_no) != (cond == _NOT_WP):
            raise CommandError(Status.CONVENTIONAL, zone_no)
        if cond in OPEN_CONDITIONS:
            raise CommandError(Status.BAD_TRANSITION, zone_no)
        if cond == old:
            return
        if cond == _CLOSED:
            if not 0 < self.wps[zone_no] < self._zone_capacity(zone_no):
                raise CommandError(Status.BAD_TRANSITION, zone_no)
            limit = self.geometry.max_active_zones
            if limit and old not in ACTIVE_CONDITIONS and self.nr_active >= limit:
                raise CommandError(Status.ACTIVE_RESOURCE, zone_no)
        if cond == _EMPTY:
            self.wps[zone_no] = 0
        self._set_cond(zone_no, cond)

    def loaded(self, conds: bytearray, wps: "array[int]") -> "ZoneMachine":
        """Return a machine of this geometry in the states given, which the caller has checked against it.

        Raises:
            CommandError: OPEN_RESOURCE or ACTIVE_RESOURCE if more zones are open or active than may be.
        """
        loaded = ZoneMachine(self.geometry, conds, wps)
        geometry = self.geometry
        if geometry.max_active_zones and loaded.nr_active > geometry.max_active_zones:
            raise CommandError(Status.ACTIVE_RESOURCE)
        if geometry.max_open_zones and loaded.nr_open > geometry.max_open_zones:
            raise CommandError(Status.OPEN_RESOURCE)
        return loaded

    def take_over(self, other: "ZoneMachine") -> None:
        """Put all zones into the states of *other*, which is not used afterwards; touches none, in one short step."""
        self.conds[:] = other.conds
        self.wps[:] = other.wps
        for name in _ACCOUNTS:
            setattr(self, name, getattr(other, name))

    def power_cycle(self) -> None:
        """Change every zone as cutting and restoring power does: open zones come back CLOSED, or EMPTY."""
        for _ in self.begin_power_cycle():
            pass

    def begin_power_cycle(self) -> Iterator[int]:
        """Return what :meth:`power_cycle` does, in portions as :meth:`begin_manage`."""
        for found, end in self._portions(ACTIVE_CONDITIONS, 0, self._nr_zones):
            for zone_no in found:
                cond = Condition(self.conds[zone_no])
                target = after_power_cycle(cond, self.wps[zone_no])
                if target != cond:
                    self._set_cond(zone_no, target)
            yield end

    # -- limits -----------------------------------------------------------------------------------------------

    def _check_resources(self, zone_no: int, cond: int) -> None:
        """Raise unless zone *zone_no* (in *cond*) is open or could be opened now.

        ACTIVE is checked first: where both limits are exceeded the answer is ACTIVE_RESOURCE (virtio 1.4).
        """
        if cond in OPEN_CONDITIONS:
            return
        geometry = self.geometry
        if cond != _CLOSED and geometry.max_active_zones and self.nr_active >= geometry.max_active_zones:
            raise CommandError(Status.ACTIVE_RESOURCE, zone_no)
        if self._limited and self.nr_open >= geometry.max_open_zones and not self._nr_closable():
            raise CommandError(Status.OPEN_RESOURCE, zone_no)

    def _nr_closable(self, nr_spared: int = 0) -> int:
        """Return how many zones could be closed to make room; *nr_spared* implicitly open ones are not."""
        return len(self._order) - nr_spared - sum(self.conds[first:end].count(_IMP_OPEN) for first, end in self.writing)

    def _check_opening(self, moving: frozenset[Condition], conds: bytearray, first: int) -> int:
        """Raise unless all zones in *moving* conditions can be explicitly open at once; return how many must close.

        *conds* are the conditions from zone *first* on.
        """
        geometry = self.geometry
        number = {cond: conds.count(cond) for cond in moving}
        if not any(number.values()):
            return 0
        nr_activated = sum(number[cond] for cond in moving - ACTIVE_CONDITIONS)
        if geometry.max_active_zones and self.nr_active + nr_activated > geometry.max_active_zones:
            raise CommandError(Status.ACTIVE_RESOURCE, first + _first_in(moving, conds))
        if not self._limited:
            return 0
        excess = self.nr_open + sum(number[cond] for cond in moving - OPEN_CONDITIONS) - geometry.max_open_zones
        if excess > 0 and self._nr_closable(number.get(_IMP_OPEN, 0)) < excess:
            raise CommandError(Status.OPEN_RESOURCE, first + _first_in(moving, conds))
        return max(excess, 0)

    def _check_finishing(self, moving: frozenset[Condition], conds: bytearray, first: int) -> int:
        """Raise unless the zones in *moving* conditions can be opened, one after the other, to be finished.

        Returns how many others must close to make room: one, or none.

        Source: ZBC-2, FINISH ZONE of an EMPTY or CLOSED zone manages open resources (libzbc's tests 140 to 145).
        """
        # A zone among them that is open gives its own resource back for the others.
        if any(cond in conds for cond in OPEN_CONDITIONS) or not any(cond in conds for cond in moving):
            return 0
        if not self._limited or self.nr_open < self.geometry.max_open_zones:
            return 0
        if not self._nr_closable():
            raise CommandError(Status.OPEN_RESOURCE, first + _first_in(moving, conds))
        return 1

    def _make_room(self, zone_no: int, cond: int) -> None:
        """Close the least recently written implicitly open zone if opening *zone_no* needs its resource."""
        self._check_resources(zone_no, cond)
        if self._limited and self.nr_open >= self.geometry.max_open_zones:
            self._close_oldest(1)

    def _close_oldest(self, count: int, first: int = 0, end: int = 0) -> list[int]:
        """Close the *count* least recently written implicitly open zones, but none from *first* to before *end*.

        Returns those that it closed.

        An entry whose key is older than the zone's last write is moved to where it belongs, so the first entry that is
        not stale is the oldest. Each write makes at most one entry stale: the cost is paid once for it.

        Source: ZBC-2 "managing implicitly open zones"; virtio 1.4: the device may close an implicitly open zone.
        """
        index = 0
        closed: list[int] = []
        while len(closed) < count:
            key, zone_no = self._order.peekitem(index)
            tick = self._last_written[zone_no]
            if first <= zone_no < end or any(start <= zone_no < stop for start, stop in self.writing):
                index += 1
            elif key == tick:
                self._set_cond(zone_no, _CLOSED)
                closed.append(zone_no)
            else:
                del self._order[key]
                self._place(zone_no, tick)
        self.implicitly_closed += closed
        return closed

    def _place(self, zone_no: int, key: int) -> None:
        self._order[key] = zone_no
        self._keys[zone_no] = key

    # -- changing zones ---------------------------------------------------------------------------------------

    def _in_portions(
        self,
        moving: frozenset[Condition],
        row: Mapping[Condition, Condition | Status],
        dialect: Dialect,
        *,
        nr_closed: int,
        first: int,
        end: int,
    ) -> Iterator[int]:
        """Close *nr_closed* zones to make room, then put those in *moving* conditions into what *row* gives them."""
        spared = (first, end) if _IMP_OPEN in moving else (0, 0)
        closed: set[int] = set()  # none of these was asked for, also where CLOSED is a moving condition
        while nr_closed > PORTION_ZONES:
            closed.update(self._close_oldest(PORTION_ZONES, *spared))
            nr_closed -= PORTION_ZONES
            yield first
        closed.update(self._close_oldest(nr_closed, *spared))
        for found, done in self._portions(moving, first, end):
            self._move_all([zone_no for zone_no in found if zone_no not in closed] if closed else found, row, dialect)
            yield done

    def _portions(self, conds: frozenset[Condition], first: int, end: int) -> Iterator[tuple[list[int], int]]:
        """Yield (zones in one of *conds*, up to which zone it was looked) until *end* is reached; see PORTION_ZONES."""
        while first < end:
            stop = min(first + _SCAN_ZONES, end)
            found = list(islice(self.zones_in(conds, first, stop), PORTION_ZONES))
            first = found[-1] + 1 if len(found) == PORTION_ZONES else stop
            yield found, first

    def _move_all(self, changes: Sequence[int], row: Mapping[Condition, Condition | Status], dialect: Dialect) -> None:
        """Put each zone of *changes* into the condition that *row* gives it."""
        conds, wps, touched = self.conds, self.wps, self.touched
        # By plain numbers, and without the accounts where neither condition is in any: there may be a million zones.
        targets = [row.get(Condition(cond)) if cond in _CONDITIONS else None for cond in range(16)]
        for zone_no in changes:
            old = conds[zone_no]
            target = targets[old]
            assert isinstance(target, Condition)
            if target == _EMPTY:
                wps[zone_no] = 0
            elif target == _CLOSED and not wps[zone_no]:
                target = dialect.closed_at_start
            if old in _ACTIVE or target in _ACTIVE:
                self._set_cond(zone_no, target)
            else:
                conds[zone_no] = target
                touched.append(zone_no)

    def _set_cond(self, zone_no: int, target: Condition) -> None:
        old = self.conds[zone_no]
        self.nr_open += (target in OPEN_CONDITIONS) - (old in OPEN_CONDITIONS)
        self.nr_active += (target in ACTIVE_CONDITIONS) - (old in ACTIVE_CONDITIONS)
        if self._limited and old != target:
            if target in OPEN_CONDITIONS:
                self.open_zones.add(zone_no)
            else:
                self.open_zones.discard(zone_no)
            if old == _IMP_OPEN:
                del self._order[self._keys.pop(zone_no)]
                del self._last_written[zone_no]
            if target == _IMP_OPEN:
                self._note_written(zone_no)
                self._place(zone_no, self._tick)
        if self._active_limited:
            if target in ACTIVE_CONDITIONS:
                self.active_zones.add(zone_no)
            else:
                self.active_zones.discard(zone_no)
        self.conds[zone_no] = target
        self.touched.append(zone_no)

    def _note_written(self, zone_no: int) -> None:
        self._tick += 1
        self._last_written[zone_no] = self._tick
