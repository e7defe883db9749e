"""The zones of a namespace that the drive itself has changed, for events and the Changed Zone List.

The drive changes a zone when it makes it READONLY or OFFLINE, when it finishes it (zone active excursions), and when it
begins or ceases to recommend a reset or a finish. Changes by commands of a host or of other front-ends do not count.

Source: NVMe Zoned Namespace Command Set 1.1, "Asynchronous Event Request command" (Zone Descriptor Changed), "Changed
Zone List".
"""

import re
from collections.abc import Callable, Iterator
from enum import IntFlag
from typing import Final

from zonefs_emu.device.faults import Effect
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, Attribute, Condition
from zonefs_emu.nvme import logs
from zonefs_emu.nvme.namespace import Namespace

_LOST: Final = frozenset((Condition.READONLY, Condition.OFFLINE))
#: 1 for the attributes of a zone that the drive has finished, 0 for all others.
_FINISHED: Final = bytes(bool(bits & Attribute.FINISHED_BY_CONTROLLER) for bits in range(256))
_ONE: Final = re.compile(b"\1")


class Deed(IntFlag):
    """A change that a drive itself makes to a zone."""

    LOST = 1
    FINISHED = 2
    FINISH_RECOMMENDED = 4


class ChangedZones:
    """The changed zones of *namespace*, for one controller; *on_change* is called from any thread.

    All methods but :meth:`touched` are called by one thread.
    """

    def __init__(self, namespace: Namespace, on_change: Callable[[], None]) -> None:
        """Count the present states of the zones as known to the host."""
        self._namespace = namespace
        self._on_change = on_change
        # Both are replaced as a whole, never changed: another thread may be looking at them.
        self._known = self._deeds()
        self._reset_recommended = self._recommended_to_reset()
        #: Changes by the drive that were undone since, for example by a reset. The drive may make them again.
        self._undone: dict[int, int] = {}
        self._unread: set[int] = set()
        namespace.device.subscribe(self.touched, port=namespace.port)

    def close(self) -> None:
        """End the observation of the namespace."""
        self._namespace.device.unsubscribe(self.touched)

    def forget(self) -> None:
        """Count no zone as known, because it is not known what the host has read."""
        self._known = {}
        self._reset_recommended = frozenset()

    def touched(self, zone_no: int, nr_zones: int) -> None:
        """Note that others have changed zones; quick and thread safe, as a listener of the device must be."""
        known = self._known
        if known:
            # The shorter of the two sets is gone through, because a command on all zones calls this for each portion of
            # a thousand zones, with the device's lock held.
            zones = range(zone_no, zone_no + nr_zones)
            for number in zones if nr_zones <= len(known) else filter(zones.__contains__, known):
                if undone := known.get(number, 0) & ~self._lasting(number):
                    self._undone[number] = self._undone.get(number, 0) | undone
        self._on_change()

    def _lasting(self, zone_no: int) -> int:
        """Return which of the lasting changes zone *zone_no* has now."""
        machine = self._namespace.device.machine
        lost = Deed.LOST if machine.conds[zone_no] in _LOST else 0
        finished = Deed.FINISHED if machine.attributes[zone_no] & Attribute.FINISHED_BY_CONTROLLER else 0
        return lost | finished | Deed.FINISH_RECOMMENDED

    def look(self) -> bool:
        """Compare the zones with their states at the last call; True if the drive has changed some since."""
        undone, self._undone = self._undone, {}
        before = {zone_no: deeds & ~undone.get(zone_no, 0) for zone_no, deeds in self._known.items()}
        deeds, reset_recommended = self._deeds(), self._recommended_to_reset()
        news = {zone_no for zone_no, done in deeds.items() if done & ~before.get(zone_no, 0)}
        news.update(self._no_longer_recommended(before, deeds))
        everywhere = range(self._namespace.geometry.nr_zones)
        for _, first, nr_zones in reset_recommended ^ self._reset_recommended:
            # A fault may name zones that the namespace does not have.
            zones = everywhere[first : first + nr_zones] if nr_zones else everywhere
            # One more than the log can list, which then says that there are too many.
            news.update(zones[: logs.CHANGED_ZONES_MAX + 1])
        self._known, self._reset_recommended = deeds, reset_recommended
        self._unread |= news
        return bool(news)

    def page(self, *, retain: bool) -> bytes:
        """Return the Changed Zone List, and begin a new one unless *retain*."""
        geometry = self._namespace.geometry
        found = logs.changed_zones(
            [geometry.zone_start(number) // geometry.block_sectors for number in sorted(self._unread)]
        )
        if not retain:
            self._unread.clear()
        return found

    def _no_longer_recommended(self, before: dict[int, int], now: dict[int, int]) -> Iterator[int]:
        """Yield the zones that are still active and whose Finish Zone Recommended the drive has cleared."""
        conds = self._namespace.device.machine.conds
        for zone_no, deeds in before.items():
            if deeds & Deed.FINISH_RECOMMENDED & ~now.get(zone_no, 0) and conds[zone_no] in ACTIVE_CONDITIONS:
                yield zone_no

    def _deeds(self) -> dict[int, int]:
        """Return the zones that the drive has changed, with the changes."""
        namespace = self._namespace
        port, geometry, device = namespace.port, namespace.geometry, namespace.device
        found: dict[int, int] = {zone.zone_no: Deed.LOST for zone in port.report(0, geometry.nr_zones, _LOST)}
        if geometry.active_excursions:
            with device.lock:
                attributes = bytes(device.machine.attributes)
            for match in _ONE.finditer(attributes.translate(_FINISHED)):
                found[match.start()] = found.get(match.start(), 0) | Deed.FINISHED
        if any(fault.effect is Effect.RECOMMEND_FINISH for fault in device.faults.faults):
            for zone in port.report(0, geometry.nr_zones, ACTIVE_CONDITIONS):
                if zone.attributes & Attribute.FINISH_RECOMMENDED:
                    found[zone.zone_no] = Deed.FINISH_RECOMMENDED
        return found

    def _recommended_to_reset(self) -> frozenset[tuple[int, int, int]]:
        """Return (fault, first zone, number of zones; 0: all) of the zones whose reset the drive recommends."""
        return frozenset(
            (fault.id, fault.first_zone, fault.nr_zones)
            for fault in tuple(self._namespace.device.faults.faults)
            if fault.effect is Effect.RECOMMEND_RESET
        )
