"""A virtio block driver on one queue of a front-end."""

from collections.abc import Sequence
from typing import NamedTuple

from zonefs_emu.testing.vhost_frontend import FrontendQueue
from zonefs_emu.virtio import blk_codec


class BlkZone(NamedTuple):
    """A zone as a driver sees it; sectors."""

    capacity: int
    start: int
    wp: int
    type: int
    cond: int


class BlkDriver:
    """A virtio block driver on one queue. Methods return the status byte, and data where there is some."""

    def __init__(self, queue: FrontendQueue) -> None:
        """Use *queue*."""
        self.queue = queue

    @staticmethod
    def header(kind: int, sector: int) -> bytes:
        """Return the 16 bytes in front of a request."""
        return blk_codec.HEADER.pack(kind, 0, sector)

    def _run(self, kind: int, sector: int, out: Sequence[bytes] = (), into: Sequence[int] = ()) -> tuple[int, bytes]:
        _, contents = self.queue.request([self.header(kind, sector), *out], [*into, 1])
        data = b"".join(contents)
        return data[-1], data[:-1]

    def read(self, sector: int, nr_bytes: int) -> tuple[int, bytes]:
        """Read *nr_bytes*."""
        return self._run(blk_codec.T_IN, sector, into=[nr_bytes])

    def write(self, sector: int, data: bytes) -> int:
        """Write *data*."""
        return self._run(blk_codec.T_OUT, sector, [data])[0]

    def append(self, sector: int, data: bytes) -> tuple[int, int]:
        """Append *data* to the zone at *sector*; return status and where it landed."""
        status, where = self._run(blk_codec.T_ZONE_APPEND, sector, [data], [8])
        return status, int.from_bytes(where, "little")

    def flush(self) -> int:
        """Flush."""
        return self._run(blk_codec.T_FLUSH, 0)[0]

    def identity(self) -> bytes:
        """Return the serial number."""
        return self._run(blk_codec.T_GET_ID, 0, into=[blk_codec.ID_BYTES])[1]

    def manage(self, kind: int, sector: int) -> int:
        """Do a zone management request."""
        return self._run(kind, sector)[0]

    def report(self, sector: int = 0, max_zones: int = 64) -> tuple[int, list[BlkZone]]:
        """Report zones from the one that holds *sector* on."""
        status, data = self._run(blk_codec.T_ZONE_REPORT, sector, into=[64 + 64 * max_zones])
        if status:
            return status, []
        count = int.from_bytes(data[:8], "little")
        return status, [BlkZone(*blk_codec.REPORT_ZONE.unpack_from(data, 64 + 64 * index)) for index in range(count)]

    def submit_write(self, sector: int, data: bytes) -> int:
        """Make a write available; return its id."""
        return self.queue.submit([self.header(blk_codec.T_OUT, sector), data], [1])

    def status(self, number: int) -> int:
        """Wait for request *number*; return its status."""
        return self.queue.wait(number)[1][-1][-1]
