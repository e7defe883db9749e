"""The rings of a connection: the messages that set them up, start, stop and enable them.

May not know: requests, and the origin of the memory.

Invariant: a ring runs from SET_VRING_KICK to GET_VRING_BASE or a reset. Meanwhile its size, base and addresses do not
change; its memory, its log and its descriptors may.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from zonefs_emu.errors import PeerError
from zonefs_emu.vhost_user.accepted_features import AcceptedFeatures
from zonefs_emu.vhost_user.connection import Handler, Reply
from zonefs_emu.vhost_user.inflight_region import InflightRegion
from zonefs_emu.vhost_user.memory_map import MemoryMap
from zonefs_emu.vhost_user.messages import (
    VRING_INDEX_MASK,
    VRING_LOG,
    VRING_NO_FD,
    Number,
    Request,
    VringAddress,
    VringState,
)
from zonefs_emu.vhost_user.migration import Migration
from zonefs_emu.virtio import features as bits
from zonefs_emu.virtio.ring import QUEUE_SIZE_MAX
from zonefs_emu.virtqueue.peer_eventfds import is_eventfd
from zonefs_emu.virtqueue.queue_server import QueueServer
from zonefs_emu.virtqueue.virtqueue import RingAddresses, Virtqueue


class Rings:
    """The queues of one connection, as its front-end sets them up."""

    def __init__(
        self,
        queues: Sequence[Virtqueue],
        server: QueueServer,
        *,
        features: AcceptedFeatures,
        memory: MemoryMap,
        inflight: InflightRegion,
        migration: Migration,
    ) -> None:
        """Set up *queues*, which *server* serves, and apply changes of features, memory and dirty log to them."""
        self._queues = queues
        self._server = server
        self._features = features
        self._memory = memory
        self._inflight = inflight
        self._migration = migration
        features.changed = self._features_changed
        memory.changed = self._restart
        migration.log_changed = self._apply_log
        self.handlers: Mapping[int, Handler] = {
            Request.SET_VRING_NUM: self._set_num,
            Request.SET_VRING_ADDR: self._set_addr,
            Request.SET_VRING_BASE: self._set_base,
            Request.GET_VRING_BASE: self._get_base,
            Request.SET_VRING_KICK: self._set_kick,
            Request.SET_VRING_CALL: self._set_call,
            Request.SET_VRING_ERR: self._set_err,
            Request.SET_VRING_ENABLE: self._set_enable,
        }

    # -- all rings --------------------------------------------------------------------------------------------

    def disable(self) -> None:
        """Serve no ring until it is enabled again."""
        for queue in self._queues:
            queue.enabled = False

    def reset(self) -> None:
        """Stop all rings and set them back to their start, as a virtio reset does.

        Raises:
            PeerError: a ring cannot be stopped, because the host's disk blocks one of its requests.
        """
        for queue in self._queues:
            self._stop(queue)
            queue.enabled = self._features.rings_begin_enabled
            queue.base = 0
            self._take_kick(queue, -1)

    def close(self) -> None:
        """Stop all rings and close their descriptors."""
        with ExitStack() as ending:  # each step is done, whatever the others raise
            for queue in self._queues:
                ending.callback(self._let_go, queue)

    def _let_go(self, queue: Virtqueue) -> None:
        old, queue.kick_fd = queue.kick_fd, -1
        with ExitStack() as ending:
            ending.callback(queue.close)
            if old >= 0:
                ending.callback(os.close, old)
            ending.callback(self._server.watch_kicks, queue, old)
            ending.callback(queue.stop)
            ending.callback(self._server.abandon, queue)
            self._server.wait_idle(queue)

    def _features_changed(self, before: int) -> None:
        if self._features.rings_begin_enabled:
            for queue in self._queues:
                queue.enabled = True
        if (before ^ self._features.virtio) & bits.LOG_ALL:
            self._apply_log()

    def _apply_log(self) -> None:
        for queue in self._queues:
            queue.set_log(self._migration.active_log)

    def _restart(self) -> None:
        """Move running rings to the memory that replaced theirs."""
        for queue in self._queues:
            if queue.ring is not None:
                self._stop(queue)
                self._start(queue)

    # -- one ring ---------------------------------------------------------------------------------------------

    def _start(self, queue: Virtqueue) -> None:
        if not self._server.wait_abandoned():
            message = f"queue {queue.index} cannot be started: an earlier request still waits for the host's disk"
            raise PeerError(message)
        record = self._inflight.record(queue.index, queue.size)
        queue.start(self._memory.memory, self._features.virtio, record, self._migration.active_log)
        # The ring may hold requests whose kicks came before it was started.
        self._server.watch_kicks(queue, queue.kick_fd)

    def _stop(self, queue: Virtqueue) -> int:
        """Stop *queue*; return the answer to GET_VRING_BASE.

        Raises:
            PeerError: the host's disk blocks a request of the queue. It is unknown whether that request takes effect,
                so no other back-end may continue with the ring.
        """
        if not self._server.wait_idle(queue):
            message = f"queue {queue.index} cannot be stopped: one of its requests still waits for the host's disk"
            raise PeerError(message)
        return queue.stop()

    def _take_kick(self, queue: Virtqueue, fd: int) -> None:
        old, queue.kick_fd = queue.kick_fd, fd
        self._server.watch_kicks(queue, old)
        if old >= 0:
            os.close(old)

    # -- messages ---------------------------------------------------------------------------------------------

    def _queue(self, index: int) -> Virtqueue:
        if not 0 <= index < len(self._queues):
            message = f"there is no queue {index}: the device has {len(self._queues)}"
            raise PeerError(message)
        return self._queues[index]

    def _stopped_queue(self, index: int) -> Virtqueue:
        queue = self._queue(index)
        if queue.ring is not None:
            message = f"queue {index} cannot be changed while it runs"
            raise PeerError(message)
        return queue

    def _queue_and_fd(self, payload: Number, fds: list[int]) -> tuple[Virtqueue, int]:
        queue = self._queue(payload.value & VRING_INDEX_MASK)
        if payload.value & VRING_NO_FD:
            return queue, -1
        if len(fds) != 1:
            message = f"a descriptor for queue {queue.index} was announced, but {len(fds)} came"
            raise PeerError(message)
        return queue, fds.pop()

    def _queue_and_eventfd(self, payload: Number, fds: list[int]) -> tuple[Virtqueue, int]:
        if fds and not is_eventfd(fds[0]):
            message = f"queue {payload.value & VRING_INDEX_MASK} is to notify by a descriptor that is not an eventfd"
            raise PeerError(message)
        return self._queue_and_fd(payload, fds)

    def _set_num(self, payload: VringState, _fds: list[int]) -> None:
        if not 0 < payload.number <= QUEUE_SIZE_MAX:
            message = f"queue {payload.queue_no} cannot have {payload.number} entries"
            raise PeerError(message)
        self._stopped_queue(payload.queue_no).size = payload.number

    def _set_addr(self, payload: VringAddress, _fds: list[int]) -> None:
        queue = self._queue(payload.queue_no)
        old, queue.address = queue.address, RingAddresses(payload.desc, payload.avail, payload.used, payload.log)
        if queue.ring is not None and old is not None:
            # While a ring runs, a front-end sends the same addresses with another flag to switch logging on or off.
            if old[:3] != queue.address[:3]:
                message = f"queue {payload.queue_no} cannot be moved while it runs"
                raise PeerError(message)
            queue.set_used_log_address(payload.log if payload.flags & VRING_LOG else -1)

    def _set_base(self, payload: VringState, _fds: list[int]) -> None:
        self._stopped_queue(payload.queue_no).base = payload.number

    def _get_base(self, payload: VringState, _fds: list[int]) -> Reply:
        queue = self._queue(payload.queue_no)
        # A request that was taken and not given back is at or after this base, so the next back-end executes it again.
        base = self._stop(queue)
        self._take_kick(queue, -1)
        return Reply(VringState(payload.queue_no, base))

    def _set_kick(self, payload: Number, fds: list[int]) -> None:
        queue, fd = self._queue_and_fd(payload, fds)
        if fd < 0:
            message = f"queue {queue.index} has no kick descriptor, and this back-end does not poll for requests"
            raise PeerError(message)
        self._take_kick(queue, fd)
        if queue.ring is None:
            self._start(queue)

    def _set_call(self, payload: Number, fds: list[int]) -> None:
        queue, fd = self._queue_and_eventfd(payload, fds)
        if queue.call_fd >= 0:
            os.close(queue.call_fd)
        queue.call_fd = fd
        # A back-end that was killed may have given requests back without a notification, so send one more.
        queue.call()

    def _set_err(self, payload: Number, fds: list[int]) -> None:
        queue, fd = self._queue_and_eventfd(payload, fds)
        if queue.err_fd >= 0:
            os.close(queue.err_fd)
        queue.err_fd = fd

    def _set_enable(self, payload: VringState, _fds: list[int]) -> None:
        if payload.number not in (0, 1):
            message = f"queue {payload.queue_no} cannot be enabled with {payload.number}: it must be 0 or 1"
            raise PeerError(message)
        queue = self._queue(payload.queue_no)
        queue.enabled = bool(payload.number)
        # The ring may hold requests whose kicks came while it was disabled.
        self._server.watch_kicks(queue, queue.kick_fd)
