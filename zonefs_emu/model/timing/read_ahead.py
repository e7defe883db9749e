"""Reads in order: the drive reads ahead of a stream, and how far depends on how many streams there are.

The model is a server whose rate depends on its load (a flow-equivalent server of queueing theory). The rates are
measured ones. Between two sizes, the time for a request grows in proportion to its bytes. Between two depths, the rate
follows a curve through the measured ones that never overshoots them, and that never grows faster than the depth. If it
falls to less than half, the drive has ceased to read ahead, and the lower rate holds from the lower depth on. It does
not fall while fewer commands are in flight than the drive works on at a time. A read above the largest size counts as
several of that size, which are under way at once: the drive stores that much of a zone on one die before it continues
on the next. How the firmware decides what to read ahead is not known, and its rates jump by factors between
neighbouring depths. So a model of its parts would have had more parameters than there are measurements.
"""

from bisect import bisect_right
from collections import deque
from math import exp, log
from random import Random
from typing import Final

from zonefs_emu.model.timing.parameters import FlashParameters
from zonefs_emu.units import SECTOR_SHIFT

#: Entries of the caches; they are emptied when they have grown to this.
_CACHE_MAX: Final = 4096


class ReadAhead:
    """The sequential streams of a drive: which reads are in order, and when they are answered."""

    def __init__(self, parameters: FlashParameters, random: Random) -> None:
        p = parameters
        self._random = random
        self._table = p.read_ahead_rates
        self._sizes = [size for size, _ in p.read_ahead_rates]
        self._streams = p.read_ahead_streams
        self._depths = p.read_ahead_depths
        self._commands_max = p.commands_max
        self._gap_ns = p.read_ahead_gap_ns
        self._shape = p.read_ahead_shape
        self._next_sector: dict[int, int] = {}  # by zone: where a read would be in order
        self._in_flight: deque[tuple[int, int]] = deque()  # (when it ends, zone), in order
        self._of_zone: dict[int, int] = {}  # how many of them there are, by zone
        self._free_ns = 0
        self._cache: dict[tuple[int, int, int], float] = {}

    def read(self, zone: int, sector: int, nr_sectors: int, arrival_ns: int) -> int:
        """Return when a read that follows on the last one of its zone is answered; 0 for any other read."""
        expected = self._next_sector.get(zone)
        if expected is None and len(self._next_sector) >= _CACHE_MAX:
            self._next_sector.clear()
        self._next_sector[zone] = sector + nr_sectors
        if sector != expected:
            return 0
        flights, of_zone = self._in_flight, self._of_zone
        while flights and flights[0][0] <= arrival_ns:
            gone = flights.popleft()[1]
            if of_zone[gone] == 1:
                del of_zone[gone]
            else:
                of_zone[gone] -= 1
        of_zone[zone] = of_zone.get(zone, 0) + 1
        key = (nr_sectors, len(flights) + 1, len(of_zone))
        service_ns = self._cache.get(key)
        if service_ns is None:
            if len(self._cache) >= _CACHE_MAX:
                self._cache.clear()
            service_ns = self._cache[key] = self.service_ns(nr_sectors << SECTOR_SHIFT, key[2], key[1] / key[2])
        if len(of_zone) > 1:
            service_ns *= self._random.gammavariate(self._shape, 1 / self._shape)
        start_ns = max(self._free_ns, arrival_ns)
        end_ns = start_ns + max(int(service_ns) - self._gap_ns, 1)
        self._free_ns = end_ns + self._gap_ns
        flights.append((end_ns, zone))
        return end_ns

    def service_ns(self, nr_bytes: int, nr_streams: int, depth: float) -> float:
        """Return the time for one request of *nr_bytes*, with *depth* requests of each of *nr_streams* streams."""
        sizes = self._sizes
        if nr_bytes >= sizes[-1]:
            pieces = nr_bytes / sizes[-1]
            return self._of_size(len(sizes) - 1, nr_streams, depth * pieces) * pieces
        if nr_bytes <= sizes[0]:
            return self._of_size(0, nr_streams, depth)
        above = bisect_right(sizes, nr_bytes)
        low, high = self._of_size(above - 1, nr_streams, depth), self._of_size(above, nr_streams, depth)
        return low + (high - low) * (nr_bytes - sizes[above - 1]) / (sizes[above] - sizes[above - 1])

    def _of_size(self, index: int, nr_streams: int, depth: float) -> float:
        """Return the time for one request of the size at *index* of the table; the rest as in :meth:`service_ns`."""
        rows = self._table[index][1]
        first, share = _between(self._streams, nr_streams)
        # How deep each stream can be before the drive leaves commands in their queues.
        depth_max = self._commands_max / nr_streams
        of_rows = [_interpolate(self._depths, row, depth, depth_max) for row in rows[first : first + 2]]
        return 1e9 / exp(of_rows[0] + share * (of_rows[-1] - of_rows[0]))


def _between(grid: tuple[int, ...], value: float) -> tuple[int, float]:
    """Return the point of *grid* below *value*, and how far *value* is from it to the next by their logarithms."""
    if value <= grid[0]:
        return 0, 0.0
    if value >= grid[-1]:
        return len(grid) - 1, 0.0
    index = bisect_right(grid, value) - 1
    return index, log(value / grid[index]) / log(grid[index + 1] / grid[index])


def _interpolate(grid: tuple[int, ...], rates: tuple[int, ...], value: float, unqueued_max: float) -> float:
    """Return the logarithm of the rate at *value*: a cubic between two points of logarithms.

    Its slopes at the points are the harmonic means of those of the lines to their neighbours, and 0 at a peak, so that
    it is monotone where the rates are (Fritsch and Butland, 1984). Straight lines would be too low at the first depths,
    where the rate grows with the depth until the drive is busy. *unqueued_max*: the depth up to which the drive works
    on all commands. If it lies between the two points, a fall of the rate begins there.
    """
    index, share = _between(grid, value)
    low = log(rates[index])
    if not share:
        return low
    if rates[index + 1] < rates[index] and grid[index] <= unqueued_max < grid[index + 1]:
        fall = log(max(value / unqueued_max, 1.0)) / log(grid[index + 1] / unqueued_max)
        return low + fall * log(rates[index + 1] / rates[index])
    if rates[index + 1] < rates[index] / 2:
        return log(rates[index + 1])
    slopes = [
        log(rates[at + 1] / rates[at]) / log(grid[at + 1] / grid[at])
        for at in range(max(index - 1, 0), min(index + 2, len(grid) - 1))
    ]
    line = slopes[min(index, 1)]
    # If requests do not delay each other, the rate grows in proportion to the depth: a slope of 1.
    begin = _middle(slopes[0], line) if index else min(max((3 * line - slopes[-1]) / 2, line), 1.0)
    end = _middle(line, slopes[-1]) if index + 2 < len(grid) else 0.0
    width = log(grid[index + 1] / grid[index])
    rest = 1 - share
    curve = low + width * share * (line * share * (3 - 2 * share) + begin * rest * rest - end * share * rest)
    return min(curve, low + share * width)


def _middle(slope: float, other: float) -> float:
    """Return the harmonic mean of two slopes, 0 if they have different signs."""
    return 2 * slope * other / (slope + other) if slope * other > 0 else 0.0
