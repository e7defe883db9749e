"""Merging: writes of one batch that continue one another become one write of the device.

A guest that writes a zone sequentially has several writes in flight. Merged into one ``pwritev``, they cost one command
of the device. Merging depends on the requests only, so the device may refuse the merged write. Such a write has changed
nothing, and its parts are executed one by one.

May not know: the device's state, statuses, how a request is answered.
"""

from collections.abc import Sequence
from typing import Final

from zonefs_emu.model.geometry import Geometry
from zonefs_emu.units import SECTOR_SHIFT
from zonefs_emu.virtio.blk_codec import HEADER, T_OUT
from zonefs_emu.virtio.ring import Chain

#: The most buffers of a merged write, which is the limit of one pwritev (IOV_MAX).
_BUFFERS_MAX: Final = 1024
#: The most sectors of a merged write. A longer one is not faster, and its first part would be answered later.
SECTORS_MAX: Final = 512
_UNPACK_HEADER: Final = HEADER.unpack_from


class Merger:
    """Finds the writes that may be merged on a device of one geometry."""

    def __init__(self, geometry: Geometry) -> None:
        self._zone_size = geometry.zone_size
        self._capacity = geometry.zone_capacity
        self._granularity = geometry.write_granularity
        self._last_zone = geometry.nr_zones - 1
        self._last_capacity = geometry.zone_cap(self._last_zone)

    def collect(
        self, chains: Sequence[Chain], index: int, sector: int, nr_sectors: int, data: list[memoryview]
    ) -> list[tuple[int, int]]:
        """Return (sector, nr_sectors) of the write at ``chains[index]``, and of each write that may be merged with it.

        The first one writes *nr_sectors* of *data* at *sector*. Each further one has one buffer, which is appended to
        *data*. All stay in one zone, and each is a multiple of the write granularity. The headers are read here, and
        not again: the returned sectors and lengths are to be executed.
        """
        spans = [(sector, nr_sectors)]
        limit = self._limit(sector, nr_sectors)
        granularity = self._granularity
        end = sector + nr_sectors
        for following in range(index + 1, len(chains)):
            _, readable, writable = chains[following]
            if len(writable) != 1 or len(writable[0]) != 1 or len(readable) != 2 or len(readable[0]) != 16:
                break
            kind, _, at = _UNPACK_HEADER(readable[0])
            buffer = readable[1]
            size = len(buffer)
            more = size >> SECTOR_SHIFT
            if (
                kind != T_OUT
                or at != end
                or size & 511
                or more % granularity
                or end + more > limit
                or len(data) >= _BUFFERS_MAX
            ):
                break
            spans.append((at, more))
            data.append(buffer)
            end += more
        return spans

    def _limit(self, sector: int, nr_sectors: int) -> int:
        """Return the sector at which writes merged with one of *nr_sectors* at *sector* must end; 0 if none may be."""
        zone_no = sector // self._zone_size
        if nr_sectors % self._granularity or zone_no > self._last_zone:
            return 0
        capacity = self._capacity if zone_no != self._last_zone else self._last_capacity
        return min(zone_no * self._zone_size + capacity, sector + SECTORS_MAX)
