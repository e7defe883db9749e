"""A zone machine for geometries whose zones can have attributes, which only the ZNS dialect knows.

A host gives an EMPTY zone a descriptor extension. The drive finishes an active zone by itself, and notes that in an
attribute: a zone active excursion.

May not know: files, front-ends. Like its base class, it moves no data.

Invariants:

* A zone that becomes OFFLINE loses its descriptor extension.
* A zone that the drive has finished is known as such as long as it is FULL, READONLY or OFFLINE.

Source: NVMe Zoned Namespace Command Set 1.1, "Zone Management Send command", "Zone Descriptor Extension" and "Zone
Active Excursions".
"""

from zonefs_emu.errors import CommandError, Status
from zonefs_emu.model.machine import Changes, ZoneMachine
from zonefs_emu.model.transitions import EXCURSION, Dialect, Operation
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, Attribute, Condition
from zonefs_emu.units import Sector


class ZnsMachine(ZoneMachine):
    """A zone machine that also gives zones their descriptor extensions, and finishes zones as the drive itself does."""

    __slots__ = ()

    def begin_set_extension(self, sector: Sector, dialect: Dialect) -> int:
        """Check whether the zone that starts at *sector* can get a descriptor extension; return its number.

        The caller then stores the extension and calls :meth:`set_extension`. Nothing is changed here.

        Raises:
            CommandError: OUT_OF_RANGE, NOT_ZONE_START, CONVENTIONAL, BAD_TRANSITION, ACTIVE_RESOURCE, looked for in
                this order.
        """
        zone_no = self._zone_at(sector, Operation.SET_EXTENSION, dialect)
        self.resources.require_active(zone_no, self.conds[zone_no])
        return zone_no

    def set_extension(self, zone_no: int, dialect: Dialect) -> Changes:
        """Note that zone *zone_no* has a descriptor extension, after :meth:`begin_set_extension` has allowed it."""
        outcome = dialect.table[Operation.SET_EXTENSION][Condition(self.conds[zone_no])]
        assert isinstance(outcome, Condition), "a refused extension cannot be set"
        self.attributes[zone_no] |= Attribute.EXTENSION
        self._set_cond(zone_no, outcome)
        return Changes((), (zone_no,))

    def finish_by_controller(self, zone_no: int) -> Changes:
        """Finish the active zone *zone_no* as the drive does by itself.

        Raises:
            CommandError: OUT_OF_RANGE; UNSUPPORTED where the drive does not do so; CONVENTIONAL; BAD_TRANSITION for a
                zone that is not active. They are looked for in this order.
        """
        if not 0 <= zone_no < self._nr_zones:
            raise CommandError(Status.OUT_OF_RANGE)
        if not self.geometry.active_excursions:
            raise CommandError(Status.UNSUPPORTED, zone_no)
        outcome = EXCURSION[Condition(self.conds[zone_no])]
        if isinstance(outcome, Status):
            raise CommandError(outcome, zone_no)
        self._set_cond(zone_no, outcome)
        self.attributes[zone_no] |= Attribute.FINISHED_BY_CONTROLLER
        return Changes((), (zone_no,))

    def _set_cond(self, zone_no: int, target: Condition) -> None:
        if target is Condition.OFFLINE:
            self.attributes[zone_no] &= ~int(Attribute.EXTENSION)
        elif target in ACTIVE_CONDITIONS:
            self.attributes[zone_no] &= ~int(Attribute.FINISHED_BY_CONTROLLER)
        super()._set_cond(zone_no, target)

    def _zone_at(self, sector: Sector, operation: Operation, dialect: Dialect) -> int:
        """Return the number of the zone that starts at *sector*.

        Raises:
            CommandError: OUT_OF_RANGE, NOT_ZONE_START, or the *dialect* refuses *operation* there.
        """
        if not 0 <= sector < self._size:
            raise CommandError(Status.OUT_OF_RANGE)
        zone_no, offset = divmod(sector, self._zone_size)
        if offset:
            raise CommandError(Status.NOT_ZONE_START, zone_no)
        outcome = dialect.table[operation][Condition(self.conds[zone_no])]
        if isinstance(outcome, Status):
            raise CommandError(outcome, zone_no)
        return zone_no
