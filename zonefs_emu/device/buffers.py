"""The data of a request: several buffers, taken as one run of bytes.

A guest chooses the number and the lengths of the buffers of a request, and they may all be the same memory. So no
function joins all of them. A part is gathered only with a length that the caller knows to be small.
"""

from collections.abc import Sequence
from typing import Final

from zonefs_emu.units import SECTOR_SHIFT

#: An event loop gives a request with at least this many bytes of data to a thread. Copying them takes some
#: milliseconds, in which the loop would serve no other queue.
LONG_BYTES: Final = 8 << 20
#: The most sectors of a request that is not that long.
SHORT_SECTORS_MAX: Final = (LONG_BYTES - 1) >> SECTOR_SHIFT


def gather(buffers: Sequence[memoryview], offset: int, length: int) -> bytes:
    """Return *length* bytes from *offset* on of *buffers* taken as one; fewer if they end before."""
    return b"".join(carve(buffers, offset, offset + length))


def carve(buffers: Sequence[memoryview], start: int, end: int) -> list[memoryview]:
    """Return the bytes from *start* up to *end* of *buffers* taken as one, as slices of which none is empty."""
    found: list[memoryview] = []
    for buffer in buffers:
        if end <= 0:
            break
        size = len(buffer)
        first, last = max(start, 0), min(end, size)
        if first < last:
            found.append(buffer[first:last])
        start -= size
        end -= size
    return found


def scatter(buffers: Sequence[memoryview], offset: int, data: bytes | bytearray | memoryview) -> None:
    """Store *data* at *offset* of *buffers* taken as one; they must have room for it. A memoryview has format "B"."""
    done = 0
    for part in carve(buffers, offset, offset + len(data)):
        part[:] = data[done : done + len(part)]
        done += len(part)


def total_bytes(buffers: Sequence[memoryview]) -> int:
    """Return the bytes in *buffers*."""
    return len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))


class Cursor:
    """Stores one piece after the other into *buffers* taken as one; they must have room for all."""

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        """Begin at the first byte."""
        self._buffers = iter(buffers)
        self._rest = memoryview(b"")
        #: Bytes stored so far.
        self.nr_stored = 0

    def store(self, data: bytes) -> None:
        """Store *data* behind what was stored before."""
        left = memoryview(data)
        self.nr_stored += len(data)
        while left:
            if not self._rest:
                self._rest = next(self._buffers)
            count = min(len(left), len(self._rest))
            self._rest[:count] = left[:count]
            self._rest, left = self._rest[count:], left[count:]
