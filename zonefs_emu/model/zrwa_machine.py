"""Zone random write areas: zones that are written anywhere in a window at their write pointer.

An area is [wp, wp + zrwa_size), cut at the capacity. A host allocates it when it opens an EMPTY zone or gives it a
descriptor extension, and the zone has it as long as it is active. Writes anywhere in the area are allowed, also
repeatedly, and do not move the write pointer. A flush moves it: an explicit flush by the number that the host gives, an
implicit one as far as a write behind the area requires.

May not know: files, front-ends. Like its base class, it moves no data.

Invariants:

* ``zrwa_zones`` are the zones whose attributes have ZRWA. All of them are active.
* A zone that loses its area but no data (FULL, READONLY, OFFLINE) keeps the content of the area: wp is moved behind it.
* A dialect without areas (``Dialect.has_zrwa``) writes such a zone at wp and moves wp, as in every zone.

Source: NVMe Zoned Namespace Command Set 1.1b, "Zone Random Write Area".
"""

from array import array

from zonefs_emu.errors import CommandError, Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.machine import Changes, ZoneMachine
from zonefs_emu.model.transitions import (
    APPEND_TO_ZRWA,
    Dialect,
    Operation,
    WriteRow,
    after_write,
    flushed_by_write,
)
from zonefs_emu.model.zns_machine import ZnsMachine
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, Attribute, Condition
from zonefs_emu.units import Sector


class ZrwaMachine(ZnsMachine):
    """A zone machine that also has zone random write areas. For a zone without one it costs one look at a set."""

    __slots__ = ("zrwa_zones",)

    def __init__(
        self, geometry: Geometry, conds: bytearray, wps: "array[int]", attributes: bytearray | None = None
    ) -> None:
        """Take over the arrays, as the base class does."""
        super().__init__(geometry, conds, wps, attributes)
        #: The zones that have an area.
        self.zrwa_zones = {zone_no for zone_no, bits in enumerate(self.attributes) if bits & Attribute.ZRWA}

    # -- reading ----------------------------------------------------------------------------------------------

    def check_read(self, sector: Sector, nr_sectors: int, dialect: Dialect) -> int:
        """Do what the base class does; in a dialect with areas, the content of an area beyond wp is data as well."""
        readable = super().check_read(sector, nr_sectors, dialect)
        zone_no = sector // self._zone_size
        if 0 <= readable < nr_sectors and zone_no in self.zrwa_zones and dialect.has_zrwa:
            return min(max(self._covered(zone_no) - sector % self._zone_size, 0), nr_sectors)
        return readable

    def _covered(self, zone_no: int) -> Sector:
        """Return where the area of zone *zone_no* ends, counted from the start of the zone."""
        return min(self.wps[zone_no] + self.geometry.zrwa_size, self._zone_capacity(zone_no))

    # -- writing ----------------------------------------------------------------------------------------------

    def begin_write(self, sector: Sector, nr_sectors: int, dialect: Dialect) -> int:
        """Do what the base class does; in a zone with an area, the write may be in the area or cause an implicit flush.

        Raises:
            CommandError: as the base class, in the same order, with ZRWA_WRITE in place of UNALIGNED_WP.
        """
        zone_no = sector // self._zone_size
        if zone_no not in self.zrwa_zones or not dialect.has_zrwa:
            return super().begin_write(sector, nr_sectors, dialect)
        offset = sector - zone_no * self._zone_size
        end = offset + nr_sectors
        if nr_sectors < 0 or sector + nr_sectors > self._size:
            raise CommandError(Status.OUT_OF_RANGE)
        if end > self._zone_capacity(zone_no):
            raise CommandError(Status.ZONE_BOUNDARY, zone_no)
        geometry = self.geometry
        nr_flushed = flushed_by_write(
            offset, end, wp=self.wps[zone_no], zrwa_size=geometry.zrwa_size, granularity=geometry.zrwa_granularity
        )
        if isinstance(nr_flushed, Status):
            raise CommandError(nr_flushed, zone_no)
        if (offset | nr_sectors) % self._granularity:
            raise CommandError(Status.ZRWA_WRITE, zone_no)
        if nr_sectors:
            self.resources.require_for(zone_no, self.conds[zone_no], self._nr_writing())
        return nr_flushed

    def begin_append(self, sector: Sector, nr_sectors: int, dialect: Dialect) -> Sector:
        """Do what the base class does.

        Raises:
            CommandError: as the base class, and ZRWA_INVALID before APPEND_LIMIT if the zone has an area.
        """
        zone_no, offset = divmod(sector, self._zone_size)
        if not offset and nr_sectors >= 0 and zone_no in self.zrwa_zones and dialect.has_zrwa:
            raise CommandError(APPEND_TO_ZRWA, zone_no)
        return super().begin_append(sector, nr_sectors, dialect)

    def commit_write(self, zone_no: int, nr_sectors: int, row: WriteRow) -> Changes | None:
        """Do what the base class does; a write that stays in an area opens its zone and does not move wp."""
        if nr_sectors or zone_no not in self.zrwa_zones:
            return super().commit_write(zone_no, nr_sectors, row)
        changes = self.open_to_write(zone_no, row)
        if changes.changed:
            return changes
        if self._limited and self.conds[zone_no] == Condition.IMP_OPEN:
            self.resources.recency.note(zone_no)
        return None

    # -- areas ------------------------------------------------------------------------------------------------

    def begin_allocate_zrwa(self, sector: Sector, dialect: Dialect) -> int:
        """Check whether the zone that starts at *sector* can be opened with an area; return its number.

        The caller then makes sure that the zone holds zeros, and calls :meth:`allocate_zrwa`. Nothing is changed here.

        Raises:
            CommandError: OUT_OF_RANGE, NOT_ZONE_START, CONVENTIONAL, ZRWA_INVALID, ACTIVE_RESOURCE, OPEN_RESOURCE,
                ZRWA_UNAVAILABLE, looked for in this order.
        """
        zone_no = self._zone_at(sector, Operation.ALLOCATE_ZRWA, dialect)
        self.resources.require_for(zone_no, self.conds[zone_no], self._nr_writing())
        self._require_zrwa(zone_no)
        return zone_no

    def _require_zrwa(self, zone_no: int) -> None:
        """Raise CommandError (ZRWA_UNAVAILABLE) if as many zones have an area as may."""
        if 0 < self.geometry.max_zrwa <= len(self.zrwa_zones):
            raise CommandError(Status.ZRWA_UNAVAILABLE, zone_no)

    def allocate_zrwa(self, zone_no: int, dialect: Dialect) -> Changes:
        """Open zone *zone_no* with an area, after :meth:`begin_allocate_zrwa` has allowed it."""
        cond = Condition(self.conds[zone_no])
        outcome = dialect.table[Operation.ALLOCATE_ZRWA][cond]
        assert isinstance(outcome, Condition), "a refused area cannot be allocated"
        closed = self._make_room(zone_no, cond)
        self._give_zrwa(zone_no)
        self._set_cond(zone_no, outcome)
        return Changes(closed, (zone_no,))

    def begin_set_extension_and_zrwa(self, sector: Sector, dialect: Dialect) -> int:
        """Check whether the zone that starts at *sector* can get a descriptor extension and an area; return its number.

        The caller then stores the extension, makes sure that the zone holds zeros, and calls
        :meth:`set_extension_and_zrwa`. Nothing is changed here.

        Raises:
            CommandError: as :meth:`begin_set_extension`, and then ZRWA_UNAVAILABLE.
        """
        zone_no = self.begin_set_extension(sector, dialect)
        self._require_zrwa(zone_no)
        return zone_no

    def set_extension_and_zrwa(self, zone_no: int, dialect: Dialect) -> Changes:
        """Give zone *zone_no* both, after :meth:`begin_set_extension_and_zrwa` has allowed it."""
        self._give_zrwa(zone_no)
        return self.set_extension(zone_no, dialect)

    def _give_zrwa(self, zone_no: int) -> None:
        self.attributes[zone_no] |= Attribute.ZRWA
        self.zrwa_zones.add(zone_no)

    def begin_flush_zrwa(self, sector: Sector, dialect: Dialect) -> int:
        """Check whether a flush can end with the block at *sector*; return the number of its zone.

        The blocks that are flushed are a multiple of the granularity, or reach the capacity. The caller then calls
        :meth:`flush_zrwa`. Nothing is changed here.

        Raises:
            CommandError: OUT_OF_RANGE, UNALIGNED, CONVENTIONAL, ZRWA_INVALID, ZRWA_RANGE, OPEN_RESOURCE, looked for in
                this order.
        """
        if not 0 <= sector < self._size:
            raise CommandError(Status.OUT_OF_RANGE)
        zone_no, offset = divmod(sector, self._zone_size)
        if sector & self._block_mask:
            raise CommandError(Status.UNALIGNED, zone_no)
        cond = Condition(self.conds[zone_no])
        outcome = dialect.table[Operation.FLUSH_ZRWA][cond]
        if isinstance(outcome, Status):
            raise CommandError(outcome, zone_no)
        if zone_no not in self.zrwa_zones:
            raise CommandError(Status.ZRWA_INVALID, zone_no)
        wp, end, capacity = self.wps[zone_no], offset + self._block_mask + 1, self._zone_capacity(zone_no)
        is_whole = (end - wp) % self.geometry.zrwa_granularity == 0 or end == capacity
        if not wp < end <= self._covered(zone_no) or not is_whole:
            raise CommandError(Status.ZRWA_RANGE, zone_no)
        self.resources.require_for(zone_no, cond, self._nr_writing())
        return zone_no

    def flush_zrwa(self, sector: Sector, dialect: Dialect) -> Changes:
        """Move the write pointer behind the block at *sector*, after :meth:`begin_flush_zrwa` has allowed it."""
        zone_no, offset = divmod(sector, self._zone_size)
        cond, end = Condition(self.conds[zone_no]), offset + self._block_mask + 1
        outcome = dialect.table[Operation.FLUSH_ZRWA][cond]
        assert isinstance(outcome, Condition), "a refused flush cannot be carried out"
        closed = self._make_room(zone_no, cond)
        self.wps[zone_no] = end
        self._set_cond(zone_no, after_write(outcome, reached_capacity=end == self._zone_capacity(zone_no)))
        return Changes(closed, (zone_no,))

    def loaded(self, conds: bytearray, wps: "array[int]", attributes: bytearray) -> "ZoneMachine":
        """Do what the base class does.

        Raises:
            CommandError: as the base class; ZRWA_UNAVAILABLE if more zones have an area than allowed.
        """
        loaded = super().loaded(conds, wps, attributes)
        assert isinstance(loaded, ZrwaMachine)
        if 0 < self.geometry.max_zrwa < len(loaded.zrwa_zones):
            raise CommandError(Status.ZRWA_UNAVAILABLE)
        return loaded

    def take_over(self, other: ZoneMachine) -> None:
        """Put all zones into the states of *other*, which is not used afterwards."""
        assert isinstance(other, ZrwaMachine)
        super().take_over(other)
        self.zrwa_zones = other.zrwa_zones

    def _set_cond(self, zone_no: int, target: Condition) -> None:
        if zone_no in self.zrwa_zones and target not in ACTIVE_CONDITIONS:
            if target is not Condition.EMPTY:
                self.wps[zone_no] = self._covered(zone_no)
            self.attributes[zone_no] &= ~int(Attribute.ZRWA)
            self.zrwa_zones.discard(zone_no)
        super()._set_cond(zone_no, target)


def make_machine(geometry: Geometry, conds: bytearray, wps: "array[int]", attributes: bytearray) -> ZoneMachine:
    """Return a machine for *geometry* that takes over the arrays, one entry a zone each."""
    kind: type[ZoneMachine] = ZoneMachine
    if geometry.zrwa_size:
        kind = ZrwaMachine
    elif geometry.has_attributes:
        kind = ZnsMachine
    return kind(geometry, conds, wps, attributes)
