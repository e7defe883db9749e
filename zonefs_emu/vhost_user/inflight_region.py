"""The in-flight region: memory of the front-end that holds the record of each queue and outlives this process.

May not know: what a record says (:mod:`zonefs_emu.inflight.ring_record`).
"""

import mmap
import os
from collections.abc import Callable, Mapping
from typing import Final

from zonefs_emu.errors import PeerError
from zonefs_emu.inflight.ring_record import record_bytes
from zonefs_emu.vhost_user.connection import Handler, Reply
from zonefs_emu.vhost_user.messages import Inflight, Request
from zonefs_emu.virtio.ring import QUEUE_SIZE_MAX
from zonefs_emu.virtqueue.peer_memory import PeerMap, PeerMemory

_QUEUES_MAX: Final = 1024


class InflightRegion:
    """The region of one connection, if the front-end gives one."""

    def __init__(self, shared: PeerMemory, any_ring_runs: Callable[[], bool]) -> None:
        """Begin without a region. It is mapped as a part of *shared* memory, and not replaced while *any_ring_runs*."""
        self._shared = shared
        self._any_ring_runs = any_ring_runs
        self._map: PeerMap | None = None
        self._shape = Inflight(0, 0, 0, 0)
        self.handlers: Mapping[int, Handler] = {
            Request.GET_INFLIGHT_FD: self._get_fd,
            Request.SET_INFLIGHT_FD: self._set_fd,
        }

    def close(self) -> None:
        """Release the mapping of the region."""
        self._map = None

    def record(self, queue_no: int, queue_size: int) -> memoryview | None:
        """Return the memory for the record of queue *queue_no*, which has *queue_size* entries.

        Returns None if there is no region, or if it has no room for a queue of this number.

        Raises:
            PeerError: the queue has more entries than the region has room for.
        """
        shape = self._shape
        if self._map is None or queue_no >= shape.nr_queues:
            return None
        if queue_size > shape.queue_size:
            message = (
                f"queue {queue_no} has {queue_size} entries, but the in-flight region has room for {shape.queue_size}"
            )
            raise PeerError(message)
        start = shape.mmap_offset % mmap.ALLOCATIONGRANULARITY + queue_no * record_bytes(shape.queue_size)
        return memoryview(self._map)[start : start + record_bytes(queue_size)]

    def _get_fd(self, payload: Inflight, _fds: list[int]) -> Reply:
        if not 0 < payload.nr_queues <= _QUEUES_MAX or not 0 < payload.queue_size <= QUEUE_SIZE_MAX:
            message = (
                f"an in-flight region for {payload.nr_queues} queues of {payload.queue_size} entries is not possible"
            )
            raise PeerError(message)
        size = payload.nr_queues * record_bytes(payload.queue_size)
        fd = os.memfd_create("zonefs-emu-inflight", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return Reply(Inflight(size, 0, payload.nr_queues, payload.queue_size), fds=(fd,))

    def _set_fd(self, payload: Inflight, fds: list[int]) -> None:
        if len(fds) != 1:
            message = f"an in-flight region came with {len(fds)} descriptors instead of one"
            raise PeerError(message)
        needed = payload.nr_queues * record_bytes(payload.queue_size)
        if payload.mmap_size < needed:
            message = (
                f"an in-flight region of {payload.mmap_size} bytes is too small: {payload.nr_queues} queues of "
                f"{payload.queue_size} entries take {needed}"
            )
            raise PeerError(message)
        if self._any_ring_runs():
            message = "the in-flight region cannot be changed while rings run"
            raise PeerError(message)
        self._map = self._shared.map(fds[0], payload.mmap_size, payload.mmap_offset)
        self._shape = payload
