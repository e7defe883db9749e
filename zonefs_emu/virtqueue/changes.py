"""Changes of zones through other ports: kept for recovery, and passed to the guest at a limited rate."""

import time
from collections.abc import Callable
from typing import Final

#: If more zones than these have changed, all zones count as changed.
_ZONES_MAX: Final = 1 << 16
#: The shortest time between two notifications of the guest. Other ports may write thousands of times a second.
INTERVAL_NS: Final = 1_000_000_000


class ZoneChanges:
    """A listener of the device (:meth:`zonefs_emu.device.device.ZonedDevice.subscribe`) for one port."""

    def __init__(self) -> None:
        """Begin without changes. The transport sets *wake*, which is called when there is something to notify."""
        self.wake: Callable[[], None] = lambda: None
        self._zones: set[int] = set()
        self._all = False
        self._pending = False
        self._notified_ns = -INTERVAL_NS

    def __call__(self, zone_no: int, nr_zones: int) -> None:
        """Note that another port changed *nr_zones* zones from *zone_no* on, with the device's lock held."""
        if not self._all:
            if len(self._zones) + nr_zones > _ZONES_MAX:
                self._all = True
            elif nr_zones == 1:
                self._zones.add(zone_no)
            else:
                self._zones.update(range(zone_no, zone_no + nr_zones))
        if not self._pending:
            self._pending = True
            self.wake()

    def contested(self, zone_no: int) -> bool:
        """Say whether another port changed zone *zone_no* (-1: any zone) since this object was made."""
        return self._all or (bool(self._zones) if zone_no < 0 else zone_no in self._zones)

    def due_ns(self) -> int | None:
        """Return in how many nanoseconds the front-end may be notified of changes; None if there are no changes."""
        if not self._pending:
            return None
        return max(0, self._notified_ns + INTERVAL_NS - time.monotonic_ns())

    def take(self) -> bool:
        """Say whether a notification is due now, and count it as sent."""
        if not self._pending or self.due_ns() != 0:
            return False
        self._pending = False
        self._notified_ns = time.monotonic_ns()
        return True
