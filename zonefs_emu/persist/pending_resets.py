"""Pending resets: zones whose write pointer moved back over bytes that the last checkpoint may still point at.

Such bytes are neither overwritten nor freed before the new write pointer is durable. Then they are freed, except in a
zone that a write waits for: it overwrites them, which costs the host less than freeing the space and taking it again.

May not know: how it becomes durable (image.py).
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Final

from zonefs_emu.model.zone import Condition

#: The most zones that are handled one by one while the lock is held. More zones are copied as whole arrays, or handled
#: in portions.
PORTION_ZONES: Final = 1024


class PendingResets:
    """The resets that no checkpoint covers yet; guarded by the lock of the zone states."""

    def __init__(self, nr_zones: int) -> None:
        """No zone has a pending reset."""
        #: By zone: how many sectors from the zone's start hold old bytes; 0 if the write pointer did not move back.
        #: The rejected alternative, the durable write pointers, misses data that were never flushed and take space.
        self.old_extents = array("Q", bytes(8 * nr_zones))
        #: By zone, as old_extents: old bytes that are being overwritten, since the reset is durable. At most
        #: PORTION_ZONES zones. Guarded by the caller's lock of checkpoints.
        self.overwritten: dict[int, int] = {}
        # The runs of PORTION_ZONES zones that have some, so that finding them does not read all zones.
        self._runs: set[int] = set()

    def note(self, zone_no: int, nr_written: int) -> None:
        """Note that the write pointer of *zone_no* moved back from *nr_written* sectors."""
        self.old_extents[zone_no] = max(nr_written, self.old_extents[zone_no])
        self._runs.add(zone_no // PORTION_ZONES)

    def overwrite(self, zone_no: int) -> bool:
        """Note that the old bytes of *zone_no* are about to be overwritten; False if there are too many such zones."""
        if len(self.overwritten) >= PORTION_ZONES:
            return False
        self.overwritten[zone_no] = max(self.old_extents[zone_no], self.overwritten.get(zone_no, 0))
        return True

    def note_unwritten(self, conds: bytearray, wps: "array[int]") -> None:
        """Note again the zones that were to be overwritten and are empty; forget those without old bytes."""
        for zone_no, extent in tuple(self.overwritten.items()):
            if conds[zone_no] == Condition.EMPTY:
                self.note(zone_no, extent)
            if conds[zone_no] == Condition.EMPTY or wps[zone_no] >= extent:
                del self.overwritten[zone_no]

    def zone_numbers(self) -> list[int]:
        """Return the zones that have an old extent, ascending."""
        return [
            zone_no
            for run in sorted(self._runs)
            for zone_no, extent in enumerate(self._extents_of(run), run * PORTION_ZONES)
            if extent
        ]

    def clear(
        self,
        zone_numbers: Sequence[int],
        wps: "array[int]",
        durable_wps: Mapping[int, int] | Sequence[int],
        *,
        lock: Lock,
        let_others_in: Callable[[], None],
    ) -> None:
        """Forget the old extents of *zone_numbers*, which a checkpoint with the write pointers *durable_wps* covers.

        A zone whose write pointer in *wps* is lower was reset during the checkpoint, and keeps its old extent. Takes
        *lock* for one portion at a time, and calls *let_others_in* between two.
        """
        for first in range(0, len(zone_numbers), PORTION_ZONES):
            if first:
                let_others_in()
            with lock:
                for zone_no in zone_numbers[first : first + PORTION_ZONES]:
                    if wps[zone_no] >= durable_wps[zone_no]:
                        self.old_extents[zone_no] = 0
        for run in {zone_no // PORTION_ZONES for zone_no in zone_numbers}:
            with lock:
                if not any(self._extents_of(run)):
                    self._runs.discard(run)

    def _extents_of(self, run: int) -> "array[int]":
        return self.old_extents[run * PORTION_ZONES : (run + 1) * PORTION_ZONES]
