"""The order in which the implicitly open zones were last written: the oldest one is closed to make room.

May not know: conditions, limits. Its caller adds a zone when it becomes implicitly open and removes it afterwards.

Invariant: the order is corrected lazily. A write only notes its tick, which is one dictionary store instead of a
removal and an insertion. An entry whose key is older than the zone's last write is moved to its place when
:meth:`oldest` meets it. A write makes at most one entry stale, so it causes at most one move.
"""

from collections.abc import Iterator

from sortedcontainers import SortedDict


class Recency:
    """The implicitly open zones, least recently written first."""

    __slots__ = ("_keys", "_last_written", "_order", "_tick")

    def __init__(self) -> None:
        """Start without a zone."""
        self._tick = 0
        self._last_written: dict[int, int] = {}
        #: Zones by the tick of a write, and the key of each zone in that order.
        self._order: SortedDict[int, int] = SortedDict()
        self._keys: dict[int, int] = {}

    def __len__(self) -> int:
        """Return the number of zones."""
        return len(self._order)

    def add(self, zone_no: int) -> None:
        """Add *zone_no* as the most recently written zone."""
        self.note(zone_no)
        self._place(zone_no, self._tick)

    def remove(self, zone_no: int) -> None:
        """Remove *zone_no*, which was added."""
        del self._order[self._keys.pop(zone_no)]
        del self._last_written[zone_no]

    def note(self, zone_no: int) -> None:
        """Note that *zone_no*, which was added, has been written."""
        self._tick += 1
        self._last_written[zone_no] = self._tick

    def oldest(self) -> Iterator[int]:
        """Yield the zones, least recently written first; the caller may remove the last one yielded."""
        index = 0
        while index < len(self._order):
            key, zone_no = self._order.peekitem(index)
            tick = self._last_written[zone_no]
            if key != tick:
                del self._order[key]
                self._place(zone_no, tick)
                continue
            yield zone_no
            if zone_no in self._keys:
                index += 1

    def _place(self, zone_no: int, key: int) -> None:
        self._order[key] = zone_no
        self._keys[zone_no] = key
