"""The zone machine: geometry, conditions, write pointers and limits, and every command on them.

May not know: files, time, front-ends. It moves no data: ``begin_write`` checks a write, the caller moves the bytes, and
``commit_write`` advances the write pointer. It decides no condition: targets come from :mod:`transitions`.

Invariants:

* ``conds`` and ``wps`` are flat arrays with one entry for each zone: a million zones are nine megabytes. ``wps`` counts
  the sectors that are written from the zone's start. For READONLY, FULL and OFFLINE zones it is the number of sectors
  that hold data, and for conventional zones it is 0. ``attributes`` has the bits of Attribute; none for EMPTY zones.
* A command that raises CommandError has changed nothing.
* ``nr_open`` and ``nr_active`` always equal a count over ``conds``. The cost of a command depends on the number of
  zones that it names, and not on the number of zones of the device.
* A command returns what it changed (:class:`Changes`). Zones that were closed to make room come before the zones that
  needed the room, so a reader that copies one change at a time meets legal states only.
* A command on many zones is checked completely, and then carried out in portions. Between two portions the caller may
  let other commands run, but none that changes the remaining zones; and none at all while zones are opened or finished
  under limits.
"""

from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from zonefs_emu.errors import CommandError, Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.plain_rules import is_plain_read, is_plain_write
from zonefs_emu.model.resources import Resources
from zonefs_emu.model.scan import first_refused, indices_of
from zonefs_emu.model.transitions import (
    CLOSED_FOR_ROOM,
    SET_COND,
    Dialect,
    Operation,
    WriteRow,
    after_close,
    after_power_cycle,
    after_set_cond,
    after_write,
)
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
#: The most zones that one portion of a command changes, in 2 to 5 ms, and the most that it scans.
PORTION_ZONES: Final = 4096
_SCAN_ZONES: Final = 1 << 16


class Changes(NamedTuple):
    """The changes of a command or a portion of it: zones *closed* to make room, then zones *changed* as requested.

    Each list has its zones in the order of the changes. A zone has changed if its condition, its attributes or, by a
    flush of its random write area, its write pointer has.
    """

    closed: Sequence[int] = ()
    changed: Sequence[int] = ()

    @property
    def zones(self) -> list[int]:
        """All zones that have changed, in order."""
        return [*self.closed, *self.changed]


_NOTHING: Final = Changes()


def fresh_zones(geometry: Geometry) -> tuple[bytearray, "array[int]"]:
    """Return conditions and write pointers of a device as it leaves the factory: EMPTY, or NOT_WP if conventional."""
    conds = bytearray([_EMPTY]) * geometry.nr_zones
    for first, count in geometry.conventional:
        conds[first : first + count] = bytes(count)
    return conds, array("Q", bytes(8 * geometry.nr_zones))


def _target(row: WriteRow, cond: int) -> Condition:
    """Return the target of *row* from *cond*, which it does not refuse."""
    target = row.outcomes[cond]
    assert isinstance(target, Condition), "a refused write cannot be committed"
    return target


def _all_of(portions: Iterator[tuple[int, Changes]]) -> Changes:
    """Carry out *portions*; return all their changes."""
    done = [changes for _, changes in portions]
    return Changes(
        [zone_no for changes in done for zone_no in changes.closed],
        [zone_no for changes in done for zone_no in changes.changed],
    )


class ZoneMachine:
    """A zoned device without its data. Not thread safe: the caller holds the device's one lock."""

    __slots__ = (
        "_block_mask",
        "_capacity",
        "_granularity",
        "_last_capacity",
        "_last_zone",
        "_limited",
        "_nr_zones",
        "_size",
        "_zone_size",
        "attributes",
        "conds",
        "geometry",
        "resources",
        "wps",
        "writing",
    )

    def __init__(
        self, geometry: Geometry, conds: bytearray, wps: "array[int]", attributes: bytearray | None = None
    ) -> None:
        """Take over *conds*, *wps* and *attributes*, which have one entry a zone and stay readable.

        Without *attributes*, no zone has any.
        """
        assert len(conds) == len(wps) == geometry.nr_zones
        self.geometry = geometry
        self.conds: Final = conds
        self.wps: Final = wps
        self.attributes: Final = bytearray(geometry.nr_zones) if attributes is None else attributes
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
        self.resources = Resources(geometry, conds)

    @property
    def nr_open(self) -> int:
        """Number of open zones."""
        return self.resources.nr_open

    @property
    def nr_active(self) -> int:
        """Number of active zones: open or CLOSED."""
        return self.resources.nr_active

    # -- looking --------------------------------------------------------------------------------------------

    def zone(self, zone_no: int) -> Zone:
        """Return a snapshot of zone *zone_no*."""
        return self.snapshot(zone_no, self.conds[zone_no], self.wps[zone_no], self.attributes[zone_no])

    def snapshot(self, zone_no: int, cond_code: int, offset: Sector, attributes: int) -> Zone:
        """Return a snapshot of zone *zone_no* in condition *cond_code* with *offset* sectors written from its start.

        For long reports: copying the arrays at one instant is quick, and making snapshots takes much longer.
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
            attributes=attributes,
        )

    def zones_in(self, conds: frozenset[Condition], first: int = 0, end: int | None = None) -> Iterator[int]:
        """Yield the numbers, from *first* to before *end*, of the zones in one of *conds*; by a fast scan."""
        # A copy is scanned, so that the array may change while the caller iterates.
        return indices_of(conds, self.conds[first:end], first)

    def _zone_capacity(self, zone_no: int) -> Sector:
        return self._capacity if zone_no != self._last_zone else self._last_capacity

    # -- reading ----------------------------------------------------------------------------------------------

    def check_read(self, sector: Sector, nr_sectors: int, dialect: Dialect) -> int:
        """Return how many of the *nr_sectors* from *sector* hold data; the following ones read as zeros.

        Returns -1 if the read spans zones and a part of it holds no data; the caller then checks the part of each zone.

        Raises:
            CommandError: OUT_OF_RANGE, UNALIGNED, ZONE_OFFLINE, READ_BOUNDARY.

        Source: virtio 1.4, Device Operation: reads that cross the boundary of a sequential zone are invalid; data
        beyond the write pointer is a fixed pattern (here zeros).
        """
        zone_no = sector // self._zone_size
        # The common case first.
        if 0 <= zone_no < self._nr_zones and is_plain_read(
            self.conds[zone_no] in dialect.readable, self.wps[zone_no], sector, sector - zone_no * self._zone_size,
            nr_sectors, self._block_mask,
        ):  # fmt: skip
            return nr_sectors
        if not 0 <= sector < self._size or nr_sectors < 0 or sector + nr_sectors > self._size:
            raise CommandError(Status.OUT_OF_RANGE)
        offset = sector - zone_no * self._zone_size
        if (sector | nr_sectors) & self._block_mask:
            raise CommandError(Status.UNALIGNED, zone_no)
        if offset + nr_sectors > self._zone_size:
            return self._check_read_across(zone_no, sector, nr_sectors, dialect)
        cond = self.conds[zone_no]
        self._require_readable(zone_no, dialect)
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
            self._require_readable(other, dialect)
            if not self.geometry.is_conventional(other):
                if not dialect.read_across:
                    raise CommandError(Status.READ_BOUNDARY, zone_no)
                asked = self._zone_size if other != last else end - last * self._zone_size
                whole = whole and self.wps[other] >= asked
        return nr_sectors if whole else -1

    def _require_readable(self, zone_no: int, dialect: Dialect) -> None:
        outcome = dialect.table[Operation.READ][Condition(self.conds[zone_no])]
        if isinstance(outcome, Status):
            raise CommandError(outcome, zone_no)

    # -- writing ----------------------------------------------------------------------------------------------

    def begin_write(self, sector: Sector, nr_sectors: int, dialect: Dialect) -> int:
        """Check a write of *nr_sectors* at *sector*, without a change; return by how many sectors it moves wp.

        That is *nr_sectors*, except in a zone with a zone random write area (:mod:`zrwa_machine`). A conventional zone
        has no wp, and its result means nothing.

        Raises:
            CommandError: OUT_OF_RANGE; ZONE_READONLY, ZONE_OFFLINE, ZONE_FULL; UNALIGNED in a conventional zone, which
                is written in whole blocks anywhere; ZONE_BOUNDARY past the capacity, or from conventional zones into a
                sequential one; UNALIGNED_WP if *sector* is not wp or the end is not on the write granularity;
                ACTIVE_RESOURCE before OPEN_RESOURCE. They are checked in this order. An empty write is checked like any
                other, but opens no zone.

        Source: virtio 1.4, block device, Device Operation; ZBC-2, unaligned write and write boundary violations. No
        standard defines the order of the errors; most implementations check the boundary before wp.
        """
        zone_no, offset = divmod(sector, self._zone_size)
        # The common case first. The last zone may have another capacity.
        if 0 <= zone_no < self._last_zone and is_plain_write(
            self.conds[zone_no] in dialect.on_write.keeps_open, self.wps[zone_no], offset, nr_sectors, self._capacity,
            self._granularity,
        ):  # fmt: skip
            return nr_sectors
        self._begin_write_checked(zone_no, sector, nr_sectors, dialect)
        return nr_sectors

    def _begin_write_checked(self, zone_no: int, sector: Sector, nr_sectors: int, dialect: Dialect) -> None:
        if not 0 <= sector < self._size or nr_sectors < 0 or sector + nr_sectors > self._size:
            raise CommandError(Status.OUT_OF_RANGE)
        cond = self.conds[zone_no]
        outcome = dialect.on_write.outcomes[cond]
        if isinstance(outcome, Status):
            raise CommandError(outcome, zone_no)
        if outcome is _NOT_WP:
            if (sector | nr_sectors) & self._block_mask:
                raise CommandError(Status.UNALIGNED, zone_no)
            self._check_conventional_write(zone_no, sector + nr_sectors, dialect)
            return
        self._check_sequential_write(zone_no, sector - zone_no * self._zone_size, nr_sectors)

    def _check_sequential_write(self, zone_no: int, offset: Sector, nr_sectors: int) -> None:
        if offset + nr_sectors > self._zone_capacity(zone_no):
            raise CommandError(Status.ZONE_BOUNDARY, zone_no)
        if offset != self.wps[zone_no] or nr_sectors % self._granularity:
            raise CommandError(Status.UNALIGNED_WP, zone_no)
        # "with a non-zero data size": only such a write opens the zone (virtio 1.4, Device Operation).
        # Most writes are to open zones, which need no resource: for them, the zones being written to are not counted.
        if nr_sectors and (cond := self.conds[zone_no]) not in _OPEN:
            self.resources.require_for(zone_no, cond, self._nr_writing())

    def _check_conventional_write(self, zone_no: int, end: Sector, dialect: Dialect) -> None:
        for other in range(zone_no + 1, (end - 1) // self._zone_size + 1):
            if not self.geometry.is_conventional(other):
                raise CommandError(Status.ZONE_BOUNDARY, zone_no)
            outcome = dialect.on_write.outcomes[self.conds[other]]
            if isinstance(outcome, Status):
                raise CommandError(outcome, other)

    def begin_append(self, sector: Sector, nr_sectors: int, dialect: Dialect) -> Sector:
        """Check a zone append of *nr_sectors* to the zone that starts at *sector*; return the sector of its data.

        The caller then writes there and calls :meth:`commit_write`. Nothing is changed here.

        Raises:
            CommandError: OUT_OF_RANGE, NOT_ZONE_START, CONVENTIONAL, ZONE_READONLY, ZONE_OFFLINE, ZONE_FULL,
                APPEND_LIMIT, ZONE_BOUNDARY, UNALIGNED_WP if the end is not on the write granularity, ACTIVE_RESOURCE
                before OPEN_RESOURCE. They are looked for in this order.

        Source: virtio 1.4 ZONE_APPEND; NVMe ZNS 1.1, Zone Append command.
        """
        zone_no, offset = divmod(sector, self._zone_size)
        # The common case first: what is plain as a write at wp is a plain append.
        if not offset and 0 <= zone_no < self._last_zone and nr_sectors <= self.geometry.max_append:
            wp, keeps_open = self.wps[zone_no], self.conds[zone_no] in dialect.on_append.keeps_open
            if is_plain_write(keeps_open, wp, wp, nr_sectors, self._capacity, self._granularity):
                return sector + wp
        if not 0 <= sector < self._size or nr_sectors < 0:
            raise CommandError(Status.OUT_OF_RANGE)
        if offset:
            raise CommandError(Status.NOT_ZONE_START, zone_no)
        outcome = dialect.on_append.outcomes[self.conds[zone_no]]
        if isinstance(outcome, Status):
            raise CommandError(outcome, zone_no)
        if nr_sectors > self.geometry.max_append:
            raise CommandError(Status.APPEND_LIMIT, zone_no)
        wp = self.wps[zone_no]
        self._check_sequential_write(zone_no, wp, nr_sectors)
        return sector + wp

    def open_to_write(self, zone_no: int, row: WriteRow) -> Changes:
        """Open *zone_no* for a long write or append that was allowed; it is committed later.

        *row* is the dialect's for that command. The zone stays open while the caller has it in :attr:`writing`, so that
        the commit needs no resource.
        """
        cond = self.conds[zone_no]
        if cond == _NOT_WP or cond in row.keeps_open:
            return _NOTHING
        closed = self._make_room(zone_no, cond)
        self._set_cond(zone_no, _target(row, cond))
        return Changes(closed, (zone_no,))

    def commit_write(self, zone_no: int, nr_sectors: int, row: WriteRow) -> Changes | None:
        """Advance wp of *zone_no* by *nr_sectors*, the result of :meth:`begin_write`, after the write has happened.

        An append advances it by its length. *row* is the dialect's for the command that was allowed: a write or an
        append. Returns None if no condition has changed.
        """
        wp = self.wps[zone_no] + nr_sectors
        cond = self.conds[zone_no]
        capacity = self._capacity if zone_no != self._last_zone else self._last_capacity
        if cond in row.keeps_open and wp != capacity:
            self.wps[zone_no] = wp
            if self._limited and cond == _IMP_OPEN and nr_sectors:
                self.resources.recency.note(zone_no)
            return None
        if cond == _NOT_WP or not nr_sectors:
            return None
        closed = self._make_room(zone_no, cond)
        # wp first: a reader that copies the changed zones then sees the new condition with the new wp.
        self.wps[zone_no] = wp
        self._set_cond(zone_no, after_write(_target(row, cond), reached_capacity=wp == capacity))
        return Changes(closed, (zone_no,))

    # -- zone management --------------------------------------------------------------------------------------

    def manage(self, operation: Operation, sector: Sector, nr_zones: int, dialect: Dialect) -> Changes:
        """Open, close, finish or reset the *nr_zones* zones from the one that starts at *sector*; all or nothing.

        Raises:
            CommandError: OUT_OF_RANGE, NOT_ZONE_START, CONVENTIONAL, ZONE_READONLY, ZONE_OFFLINE, BAD_TRANSITION by the
                dialect's table, ACTIVE_RESOURCE, OPEN_RESOURCE. The machine is then unchanged.
        """
        return _all_of(self.begin_manage(operation, sector, nr_zones, dialect))

    def begin_manage(
        self, operation: Operation, sector: Sector, nr_zones: int, dialect: Dialect
    ) -> Iterator[tuple[int, Changes]]:
        """Check the command of :meth:`manage`, and return an iterator of which each step carries out one portion.

        A step yields (the zone before which the portion ends, its changes). The last step yields the end of the range.
        Nothing changes before the first step.

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
        conds = self.conds[first:end]  # the following checks scan a copy of the range
        if refused := first_refused(row, conds):
            raise CommandError(refused[1], first + refused[0])
        moving = frozenset(cond for cond, target in row.items() if target != cond and not isinstance(target, Status))
        nr_writing = self._nr_writing()
        nr_closed = self.resources.require_for_all(moving, row, conds, first, nr_writing)
        if operation is Operation.FINISH and dialect.finish_needs_open:
            nr_closed = max(nr_closed, self.resources.require_to_finish(moving, conds, first, nr_writing))
        return self._in_portions(moving, row, dialect, nr_closed=nr_closed, first=first, end=end)

    def manage_all(self, operation: Operation, dialect: Dialect) -> Changes:
        """Open, close, finish or reset all zones that the dialect's ALL form acts on.

        Raises:
            CommandError: OPEN_RESOURCE for OPEN; nothing is then opened (ZBC-2, OPEN ZONE with the ALL bit set: all of
                the closed zones, or none).
        """
        return _all_of(self.begin_manage_all(operation, dialect))

    def begin_manage_all(self, operation: Operation, dialect: Dialect) -> Iterator[tuple[int, Changes]]:
        """Check the command of :meth:`manage_all`, and return an iterator of portions as :meth:`begin_manage` does.

        Raises:
            CommandError: as :meth:`manage_all`.
        """
        row = dialect.all_zones[operation]
        moving = frozenset(row)
        nr_closed = self.resources.require_for_all(moving, row, self.conds, 0, self._nr_writing())
        return self._in_portions(moving, row, dialect, nr_closed=nr_closed, first=0, end=self._nr_zones)

    def set_cond(self, zone_no: int, cond: Condition) -> Changes:
        """Put zone *zone_no* into *cond*, like a failing or repaired medium.

        READONLY, OFFLINE, CLOSED and FULL keep the data, and EMPTY drops it. NOT_WP restores a conventional zone. A
        zone that is in *cond* already is not changed.

        Raises:
            CommandError: OUT_OF_RANGE; CONVENTIONAL if the zone's type has no such condition; BAD_TRANSITION for open
                conditions (open the zone instead) and for CLOSED without data or with a full capacity;
                ACTIVE_RESOURCE.
        """
        if not 0 <= zone_no < self._nr_zones:
            raise CommandError(Status.OUT_OF_RANGE)
        old = self.conds[zone_no]
        zone_type = ZoneType.CONVENTIONAL if self.geometry.is_conventional(zone_no) else ZoneType.SWR
        outcome = SET_COND[zone_type][cond][Condition(old)]
        if isinstance(outcome, Condition) and outcome != old:
            outcome = after_set_cond(outcome, nr_written=self.wps[zone_no], capacity=self._zone_capacity(zone_no))
        if isinstance(outcome, Status):
            raise CommandError(outcome, zone_no)
        if outcome == old:
            return _NOTHING
        if outcome in ACTIVE_CONDITIONS:
            self.resources.require_active(zone_no, old)
        if outcome == _EMPTY:
            self.wps[zone_no] = self.attributes[zone_no] = 0
        self._set_cond(zone_no, outcome)
        return Changes((), (zone_no,))

    def loaded(self, conds: bytearray, wps: "array[int]", attributes: bytearray) -> "ZoneMachine":
        """Return a machine of this geometry in the given states, which the caller has checked against the geometry.

        Raises:
            CommandError: OPEN_RESOURCE or ACTIVE_RESOURCE if more zones are open or active than allowed.
        """
        loaded = type(self)(self.geometry, conds, wps, attributes)
        geometry = self.geometry
        if geometry.max_active_zones and loaded.nr_active > geometry.max_active_zones:
            raise CommandError(Status.ACTIVE_RESOURCE)
        if geometry.max_open_zones and loaded.nr_open > geometry.max_open_zones:
            raise CommandError(Status.OPEN_RESOURCE)
        return loaded

    def take_over(self, other: "ZoneMachine") -> None:
        """Put all zones into the states of *other*, which is not used afterwards; one short step, without a loop."""
        self.conds[:] = other.conds
        self.wps[:] = other.wps
        self.attributes[:] = other.attributes
        self.resources = other.resources

    def power_cycle(self) -> Changes:
        """Cut and restore the power: active zones come back as :func:`transitions.after_power_cycle` says."""
        return _all_of(self.begin_power_cycle())

    def begin_power_cycle(self) -> Iterator[tuple[int, Changes]]:
        """Return an iterator of the portions of :meth:`power_cycle`, as :meth:`begin_manage` does."""
        for found, end in self._portions(ACTIVE_CONDITIONS, 0, self._nr_zones):
            changed = []
            for zone_no in found:
                cond = Condition(self.conds[zone_no])
                target = after_power_cycle(cond, self.wps[zone_no], self.attributes[zone_no])
                if target != cond:
                    self._set_cond(zone_no, target)
                    changed.append(zone_no)
            yield end, Changes((), changed)

    # -- making room -----------------------------------------------------------------------------------------------

    def _nr_writing(self) -> int:
        """Return how many implicitly open zones are being written to and must stay open."""
        return sum(self.conds[first:end].count(_IMP_OPEN) for first, end in self.writing)

    def _make_room(self, zone_no: int, cond: int) -> Sequence[int]:
        """Close the least recently written implicitly open zone if opening *zone_no* needs it; return it, if any.

        *zone_no* is in *cond*. A zone that is open already needs no resource.
        """
        if cond in _OPEN:
            return ()
        self.resources.require_for(zone_no, cond, self._nr_writing())
        return self._close_oldest(1) if self.resources.is_open_full() else ()

    def _close_oldest(self, count: int, first: int = 0, end: int = 0) -> list[int]:
        """Close the *count* least recently written implicitly open zones outside [*first*, *end*), and return them.

        At least *count* of them are not kept open by :attr:`writing`; the caller has checked that.
        """
        closed: list[int] = []
        zones = self.resources.recency.oldest()
        while len(closed) < count:
            zone_no = next(zones)
            if not first <= zone_no < end and not any(start <= zone_no < stop for start, stop in self.writing):
                self._set_cond(zone_no, CLOSED_FOR_ROOM)
                closed.append(zone_no)
        return closed

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
    ) -> Iterator[tuple[int, Changes]]:
        """Close *nr_closed* zones to make room, then put those in *moving* conditions into the targets of *row*."""
        spared = (first, end) if _IMP_OPEN in moving else (0, 0)
        # Zones that are closed here were not requested, even if CLOSED is a moving condition.
        spared_too: set[int] = set()
        while nr_closed > PORTION_ZONES:
            closed = self._close_oldest(PORTION_ZONES, *spared)
            spared_too.update(closed)
            nr_closed -= PORTION_ZONES
            yield first, Changes(closed)
        closed = self._close_oldest(nr_closed, *spared)
        spared_too.update(closed)
        for found, done in self._portions(moving, first, end):
            changed = [zone_no for zone_no in found if zone_no not in spared_too] if spared_too else found
            self._move_all(changed, row, dialect)
            yield done, Changes(closed, changed)
            closed = []

    def _portions(self, conds: frozenset[Condition], first: int, end: int) -> Iterator[tuple[list[int], int]]:
        """Yield (zones in one of *conds*, the end of the scan so far) until *end* is reached; see PORTION_ZONES."""
        while first < end:
            stop = min(first + _SCAN_ZONES, end)
            found = list(islice(self.zones_in(conds, first, stop), PORTION_ZONES))
            first = found[-1] + 1 if len(found) == PORTION_ZONES else stop
            yield found, first

    def _move_all(self, changes: Sequence[int], row: Mapping[Condition, Condition | Status], dialect: Dialect) -> None:
        """Put each zone of *changes* into its target of *row*."""
        conds, wps, attributes = self.conds, self.wps, self.attributes
        # There may be a million zones. So conditions are looked up as plain numbers, and conditions that hold no
        # resource skip the accounts.
        targets = {int(cond): target for cond, target in row.items()}
        for zone_no in changes:
            old = conds[zone_no]
            target = targets[old]
            assert isinstance(target, Condition)
            if target == _EMPTY:
                wps[zone_no] = attributes[zone_no] = 0
            elif target == _CLOSED and not wps[zone_no]:
                target = after_close(dialect, attributes[zone_no])
            if old in _ACTIVE or target in _ACTIVE:
                self._set_cond(zone_no, target)
            else:
                conds[zone_no] = target

    def _set_cond(self, zone_no: int, target: Condition) -> None:
        self.resources.move(zone_no, self.conds[zone_no], target)
        self.conds[zone_no] = target
