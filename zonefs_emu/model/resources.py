"""The open and active resources of a device: the zones that hold them, and whether enough are free for a command.

May not know: write pointers, commands. It changes no condition: the machine notes each change here (:meth:`move`).

Invariants: ``nr_open`` and ``nr_active`` always equal a count over the conditions. The active limit is checked first,
so the error is ACTIVE_RESOURCE if both limits are exceeded (virtio 1.4).
"""

from collections.abc import Mapping

from zonefs_emu.errors import CommandError, Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.recency import Recency
from zonefs_emu.model.scan import first_index, indices_of
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, OPEN_CONDITIONS, Condition


class Resources:
    """The accounts of one device.

    A ``require`` method checks, changes nothing, and raises CommandError: ACTIVE_RESOURCE or OPEN_RESOURCE. Its
    argument *nr_kept* is the number of implicitly open zones that cannot be closed to make room.
    """

    __slots__ = ("_max_active", "_max_open", "active_zones", "nr_active", "nr_open", "open_zones", "recency")

    def __init__(self, geometry: Geometry, conds: bytearray) -> None:
        """Count over *conds*, the condition of each zone."""
        self._max_open = geometry.max_open_zones
        self._max_active = geometry.max_active_zones
        self.nr_open = sum(conds.count(cond) for cond in OPEN_CONDITIONS)
        self.nr_active = self.nr_open + conds.count(Condition.CLOSED)
        #: The zones that hold the open and the active resources; each is kept only if there is that limit.
        self.open_zones = set(indices_of(OPEN_CONDITIONS, conds)) if self._max_open else set[int]()
        self.active_zones = set(indices_of(ACTIVE_CONDITIONS, conds)) if self._max_active else set[int]()
        #: The implicitly open zones; kept only if there is a limit on open zones.
        self.recency = Recency()
        if self._max_open:
            for zone_no in indices_of(frozenset((Condition.IMP_OPEN,)), conds):
                self.recency.add(zone_no)

    def move(self, zone_no: int, old: int, target: Condition) -> None:
        """Note that *zone_no* goes from *old* to *target*."""
        is_open = target in OPEN_CONDITIONS
        is_active = target in ACTIVE_CONDITIONS
        self.nr_open += is_open - (old in OPEN_CONDITIONS)
        self.nr_active += is_active - (old in ACTIVE_CONDITIONS)
        if self._max_open and old != target:
            if is_open:
                self.open_zones.add(zone_no)
            else:
                self.open_zones.discard(zone_no)
            if old == Condition.IMP_OPEN:
                self.recency.remove(zone_no)
            if target is Condition.IMP_OPEN:
                self.recency.add(zone_no)
        if self._max_active:
            if is_active:
                self.active_zones.add(zone_no)
            else:
                self.active_zones.discard(zone_no)

    def is_open_full(self) -> bool:
        """Return whether the limit of open zones is reached."""
        return bool(self._max_open) and self.nr_open >= self._max_open

    def require_active(self, zone_no: int, cond: int) -> None:
        """Raise ACTIVE_RESOURCE unless zone *zone_no* (in *cond*) is active or could become active now."""
        if cond not in ACTIVE_CONDITIONS and self._max_active and self.nr_active >= self._max_active:
            raise CommandError(Status.ACTIVE_RESOURCE, zone_no)

    def require_for(self, zone_no: int, cond: int, nr_kept: int) -> None:
        """Raise unless zone *zone_no* (in *cond*) is open or could be opened now."""
        if cond in OPEN_CONDITIONS:
            return
        self.require_active(zone_no, cond)
        if self.is_open_full() and len(self.recency) <= nr_kept:
            raise CommandError(Status.OPEN_RESOURCE, zone_no)

    def require_for_all(
        self,
        moving: frozenset[Condition],
        row: Mapping[Condition, Condition | Status],
        conds: bytearray,
        first: int,
        nr_kept: int,
    ) -> int:
        """Raise unless all zones in *moving* conditions can change at once to the targets of *row*.

        *conds* are the conditions from zone *first* on. Returns how many other zones must close to make room.
        """
        opened = [cond for cond in moving - OPEN_CONDITIONS if row[cond] in OPEN_CONDITIONS]
        activated = [cond for cond in moving - ACTIVE_CONDITIONS if row[cond] in ACTIVE_CONDITIONS]
        nr_activated = sum(map(conds.count, activated))
        if nr_activated and self._max_active and self.nr_active + nr_activated > self._max_active:
            raise CommandError(Status.ACTIVE_RESOURCE, first + first_index(moving, conds))
        nr_opened = sum(map(conds.count, opened))
        if not nr_opened or not self._max_open:
            return 0
        excess = self.nr_open + nr_opened - self._max_open
        if Condition.IMP_OPEN in moving:  # open zones among them are requested, so they are not closed
            nr_kept += conds.count(Condition.IMP_OPEN)
        if excess > 0 and len(self.recency) - nr_kept < excess:
            raise CommandError(Status.OPEN_RESOURCE, first + first_index(moving, conds))
        return max(excess, 0)

    def require_to_finish(self, moving: frozenset[Condition], conds: bytearray, first: int, nr_kept: int) -> int:
        """Raise OPEN_RESOURCE unless the zones in *moving* conditions can be opened one by one, to be finished.

        *conds* are the conditions from zone *first* on. Returns how many other zones must close to make room: 1 or 0.

        Source: ZBC-2, FINISH ZONE of an EMPTY or CLOSED zone manages open resources (libzbc's tests 140 to 145).
        """
        # A zone among them that is open releases its resource for the others.
        if any(cond in conds for cond in OPEN_CONDITIONS) or not any(cond in conds for cond in moving):
            return 0
        if not self.is_open_full():
            return 0
        if len(self.recency) <= nr_kept:
            raise CommandError(Status.OPEN_RESOURCE, first + first_index(moving, conds))
        return 1
