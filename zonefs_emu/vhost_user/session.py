"""One connection of a front-end: what each message does.

May not know: event loops; the back-end calls :meth:`Session.handle` for each message and serves the queues, all on one
thread. Whatever the front-end does wrong raises PeerError, which costs it the connection and the
device nothing.

Source: vhost-user.rst, and the order of messages that QEMU and libblkio send.
"""

import mmap
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Final

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import PeerError, ZonedError
from zonefs_emu.vhost_user import state_transfer
from zonefs_emu.vhost_user.connection import Connection, Message
from zonefs_emu.vhost_user.messages import (
    FLAG_NEED_REPLY,
    VRING_INDEX_MASK,
    VRING_LOG,
    VRING_NO_FD,
    BackendRequest,
    ConfigSpace,
    DeviceStateTransfer,
    Inflight,
    LogBase,
    MemoryRegion,
    MemoryTable,
    Nothing,
    Number,
    ProtocolFeature,
    Request,
    VringAddress,
    VringState,
    decode_payload,
)
from zonefs_emu.vhost_user.state_transfer import Transfer
from zonefs_emu.virtio import features as bits
from zonefs_emu.virtio.memory import GuestMemory, Region
from zonefs_emu.virtio.ring import QUEUE_SIZE_MAX
from zonefs_emu.virtqueue.atomic import HAS_ATOMIC_OR
from zonefs_emu.virtqueue.dirty_log import DirtyLog
from zonefs_emu.virtqueue.inflight import record_bytes
from zonefs_emu.virtqueue.peer_memory import PeerMap, PeerMemory
from zonefs_emu.virtqueue.virtio_device import VirtioDevice
from zonefs_emu.virtqueue.virtqueue import RingAddresses, Service, Virtqueue

MEM_SLOTS_MAX: Final = 509  #: what the kernel's vhost has; must never shrink between connections
_IN_FLIGHT_QUEUES_MAX: Final = 1024
_FAILED: Final = 1
_STATE_FAILED: Final = 1
_STATE_NO_FD: Final = 1 << 8
_SAVE: Final = 0
_LOAD: Final = 1
#: How long CHECK_DEVICE_STATE waits for a transfer to end, and how often it looks whether it need not.
_STATE_S_MAX: Final = 60.0
_LOOK_S: Final = 0.1

_PROTOCOL_FEATURES: Final = (
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.INFLIGHT_SHMFD,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ProtocolFeature.STATUS,
    ProtocolFeature.DEVICE_STATE,
    *((ProtocolFeature.LOG_SHMFD,) if HAS_ATOMIC_OR else ()),
)


def protocol_features(virtio_device: VirtioDevice) -> int:
    """Return the protocol features that we offer with *virtio_device*."""
    mask = ProtocolFeature.CONFIG.mask if virtio_device.config() is not None else 0
    for feature in _PROTOCOL_FEATURES:
        mask |= feature.mask
    return mask


class Session:
    """A connected front-end."""

    def __init__(
        self, connection: Connection, device: ZonedDevice, virtio_device: VirtioDevice, service: Service
    ) -> None:
        """Serve *virtio_device* on *connection*."""
        self._connection = connection
        self._device = device
        self._virtio_device = virtio_device
        #: All that the front-end shares; once some of it is lost, the connection is to end.
        self.shared = PeerMemory()
        self.queues = [
            Virtqueue(
                index,
                virtio_device.intents,
                virtio_device.handler(index),
                service,
                events=virtio_device.events(index),
                faults=device.faults.faults,
                shared=self.shared,
            )
            for index in range(virtio_device.nr_queues)
        ]
        #: Told when the set of kick descriptors changed: (queue, old descriptor or -1).
        self.kick_changed: Callable[[Virtqueue, int], None] = lambda _queue, _fd: None
        #: Waits until the worker has nothing of a queue; False if it had to be left behind.
        self.wait_idle: Callable[[Virtqueue], bool] = lambda _queue: True
        #: Says whether the server is about to end, so that nothing may wait any more.
        self.is_ending: Callable[[], bool] = lambda: False
        self._service = service
        self._features = 0
        self._protocol_features = 0
        self._memory = GuestMemory()
        self._log: DirtyLog | None = None
        self._inflight: PeerMap | None = None
        self._inflight_shape = Inflight(0, 0, 0, 0)
        self._backend_requests: Connection | None = None
        self._status = 0
        self._transfer: Transfer | None = None
        self._handlers: Mapping[int, Callable[..., bool]] = self._table()

    def _table(self) -> Mapping[int, Callable[..., bool]]:
        """Return what does each request; it returns True if it has answered."""
        return {
            Request.GET_FEATURES: self._get_features,
            Request.SET_FEATURES: self._set_features,
            Request.SET_OWNER: self._set_owner,
            Request.RESET_OWNER: self._reset_owner,
            Request.SET_MEM_TABLE: self._set_mem_table,
            Request.SET_LOG_BASE: self._set_log_base,
            Request.SET_LOG_FD: self._set_log_fd,
            Request.SET_VRING_NUM: self._set_vring_num,
            Request.SET_VRING_ADDR: self._set_vring_addr,
            Request.SET_VRING_BASE: self._set_vring_base,
            Request.GET_VRING_BASE: self._get_vring_base,
            Request.SET_VRING_KICK: self._set_vring_kick,
            Request.SET_VRING_CALL: self._set_vring_call,
            Request.SET_VRING_ERR: self._set_vring_err,
            Request.GET_PROTOCOL_FEATURES: self._get_protocol_features,
            Request.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Request.GET_QUEUE_NUM: self._get_queue_num,
            Request.SET_VRING_ENABLE: self._set_vring_enable,
            Request.SET_BACKEND_REQ_FD: self._set_backend_req_fd,
            Request.GET_CONFIG: self._get_config,
            Request.SET_CONFIG: self._set_config,
            Request.GET_INFLIGHT_FD: self._get_inflight_fd,
            Request.SET_INFLIGHT_FD: self._set_inflight_fd,
            Request.RESET_DEVICE: self._reset_device,
            Request.GET_MAX_MEM_SLOTS: self._get_max_mem_slots,
            Request.ADD_MEM_REG: self._add_mem_reg,
            Request.REM_MEM_REG: self._rem_mem_reg,
            Request.SET_STATUS: self._set_status,
            Request.GET_STATUS: self._get_status,
            Request.SET_DEVICE_STATE_FD: self._set_device_state_fd,
            Request.CHECK_DEVICE_STATE: self._check_device_state,
        }

    # -- messages ---------------------------------------------------------------------------------------------

    def handle(self, message: Message) -> None:
        """Do what *message* asks and answer it.

        Raises:
            PeerError: the front-end broke the protocol.
        """
        fds = message.fds
        try:
            payload = decode_payload(message.request, message.data)
            handler = self._handlers.get(message.request)
            if handler is None:
                self._unknown(message)
                return
            answered = handler(payload, fds)
            needs_reply = message.flags & FLAG_NEED_REPLY and self._has(ProtocolFeature.REPLY_ACK)
            if not answered and needs_reply:
                self._connection.reply(message.request, Number(0))
        finally:
            # Handlers take the descriptors that they keep out of the list.
            for fd in fds:
                os.close(fd)

    def _unknown(self, message: Message) -> None:
        if message.flags & FLAG_NEED_REPLY and self._has(ProtocolFeature.REPLY_ACK):
            self._connection.reply(message.request, Number(_FAILED))
            return
        msg = f"message {message.request}, which was not negotiated"
        raise PeerError(msg)

    def _has(self, feature: ProtocolFeature) -> bool:
        return bool(self._protocol_features & feature.mask)

    def _get_features(self, _payload: Nothing, _fds: list[int]) -> bool:
        offered = self._virtio_device.offered | bits.PROTOCOL_FEATURES
        if HAS_ATOMIC_OR:
            offered |= bits.LOG_ALL
        self._connection.reply(Request.GET_FEATURES, Number(offered))
        return True

    def _set_features(self, payload: Number, _fds: list[int]) -> bool:
        features = payload.value
        offered = self._virtio_device.offered | bits.PROTOCOL_FEATURES | bits.LOG_ALL
        if features & ~offered:
            msg = f"features {features & ~offered:#x} were accepted that are not offered"
            raise PeerError(msg)
        logged_before = self._features & bits.LOG_ALL
        self._features = features
        reason = self._virtio_device.accept(features)
        if reason is not None:
            raise PeerError(reason)
        if not features & bits.PROTOCOL_FEATURES:
            for queue in self.queues:
                queue.enabled = True
        if logged_before != features & bits.LOG_ALL:
            for queue in self.queues:
                self._log_queue(queue)
        return False

    def _set_owner(self, _payload: Nothing, _fds: list[int]) -> bool:
        return False

    def _reset_owner(self, _payload: Nothing, _fds: list[int]) -> bool:
        for queue in self.queues:
            queue.enabled = False
        return False

    def _get_protocol_features(self, _payload: Nothing, _fds: list[int]) -> bool:
        self._connection.reply(Request.GET_PROTOCOL_FEATURES, Number(protocol_features(self._virtio_device)))
        return True

    def _set_protocol_features(self, payload: Number, _fds: list[int]) -> bool:
        unknown = payload.value & ~protocol_features(self._virtio_device)
        if unknown:
            msg = f"protocol features {unknown:#x} were accepted that are not offered"
            raise PeerError(msg)
        self._protocol_features = payload.value
        return False

    def _get_queue_num(self, _payload: Nothing, _fds: list[int]) -> bool:
        self._connection.reply(Request.GET_QUEUE_NUM, Number(self._virtio_device.nr_queues))
        return True

    # -- memory -----------------------------------------------------------------------------------------------

    def _map(self, region: MemoryRegion, fd: int) -> Region:
        return Region(
            region.guest_address,
            region.size,
            region.user_address,
            self.shared.view(fd, region.size, region.mmap_offset),
        )

    def _set_mem_table(self, payload: MemoryTable, fds: list[int]) -> bool:
        if len(fds) != len(payload.regions):
            msg = f"a memory table of {len(payload.regions)} regions with {len(fds)} descriptors"
            raise PeerError(msg)
        regions = [self._map(region, fd) for region, fd in zip(payload.regions, fds, strict=True)]
        self._take_memory(GuestMemory(regions))
        return False

    def _add_mem_reg(self, payload: MemoryRegion, fds: list[int]) -> bool:
        if len(fds) != 1 or len(self._memory.regions) >= MEM_SLOTS_MAX:
            msg = f"a memory region with {len(fds)} descriptors, after {len(self._memory.regions)} others"
            raise PeerError(msg)
        self._take_memory(GuestMemory((*self._memory.regions, self._map(payload, fds[0]))))
        return False

    def _rem_mem_reg(self, payload: MemoryRegion, _fds: list[int]) -> bool:
        kept = [
            region
            for region in self._memory.regions
            if (region.guest_address, region.size, region.user_address)
            != (payload.guest_address, payload.size, payload.user_address)
        ]
        if len(kept) == len(self._memory.regions):
            msg = f"no memory region of {payload.size} bytes at {payload.guest_address:#x} is there to be removed"
            raise PeerError(msg)
        self._take_memory(GuestMemory(kept))
        return False

    def _take_memory(self, memory: GuestMemory) -> None:
        """Use *memory* from now on; rings that run go on in it. The old mapping ends with its last user."""
        self._memory = memory
        for queue in self.queues:
            if queue.ring is not None:
                self._stop(queue)
                self._start_queue(queue)

    def _get_max_mem_slots(self, _payload: Nothing, _fds: list[int]) -> bool:
        self._connection.reply(Request.GET_MAX_MEM_SLOTS, Number(MEM_SLOTS_MAX))
        return True

    # -- dirty log --------------------------------------------------------------------------------------------

    def _set_log_base(self, payload: LogBase, fds: list[int]) -> bool:
        if len(fds) != 1:
            msg = f"a dirty log with {len(fds)} descriptors"
            raise PeerError(msg)
        self._log = DirtyLog(self.shared, fds[0], payload.size, payload.offset)
        for queue in self.queues:
            self._log_queue(queue)
        if self._has(ProtocolFeature.LOG_SHMFD):
            self._connection.reply(Request.SET_LOG_BASE, Number(0))
        return True

    def _set_log_fd(self, _payload: object, _fds: list[int]) -> bool:
        # The eventfd tells a front-end that pages were logged. QEMU, which is the only one that migrates, reads the log
        # at its own pace and never sends one, so it is accepted and closed.
        return False

    def _log_queue(self, queue: Virtqueue) -> None:
        """Log what *queue* writes if the front-end wants it.

        The flag of SET_VRING_ADDR is about the used ring alone, and front-ends set both together.
        """
        queue.set_log(self._log if self._features & bits.LOG_ALL else None)

    # -- rings ------------------------------------------------------------------------------------------------

    def _queue(self, index: int) -> Virtqueue:
        if not 0 <= index < len(self.queues):
            msg = f"queue {index} of {len(self.queues)}"
            raise PeerError(msg)
        return self.queues[index]

    def _stopped_queue(self, index: int) -> Virtqueue:
        queue = self._queue(index)
        if queue.ring is not None:
            msg = f"queue {index} is changed while it runs"
            raise PeerError(msg)
        return queue

    def _set_vring_num(self, payload: VringState, _fds: list[int]) -> bool:
        if not 0 < payload.number <= QUEUE_SIZE_MAX:
            msg = f"queue {payload.queue_no} of {payload.number} entries"
            raise PeerError(msg)
        self._stopped_queue(payload.queue_no).size = payload.number
        return False

    def _set_vring_addr(self, payload: VringAddress, _fds: list[int]) -> bool:
        queue = self._queue(payload.queue_no)
        old, queue.address = queue.address, RingAddresses(payload.desc, payload.avail, payload.used, payload.log)
        if queue.ring is not None and old is not None:
            # Logging is switched on and off by the same addresses with another flag, while the ring runs.
            if old[:3] != queue.address[:3]:
                msg = f"queue {payload.queue_no} is moved while it runs"
                raise PeerError(msg)
            queue.set_used_log_address(payload.log if payload.flags & VRING_LOG else -1)
        return False

    def _set_vring_base(self, payload: VringState, _fds: list[int]) -> bool:
        self._stopped_queue(payload.queue_no).base = payload.number
        return False

    def _get_vring_base(self, payload: VringState, _fds: list[int]) -> bool:
        queue = self._queue(payload.queue_no)
        # What was taken is executed and given back, or taken again by whoever goes on from the answer.
        base = self._stop(queue)
        self._take_kick(queue, -1)
        self._connection.reply(Request.GET_VRING_BASE, VringState(payload.queue_no, base))
        return True

    def _stop(self, queue: Virtqueue) -> int:
        """Stop *queue*; return what GET_VRING_BASE answers.

        Raises:
            PeerError: what becomes of one of its requests is unknown, so nobody may go on with it.
        """
        if not self.wait_idle(queue):
            msg = f"queue {queue.index} cannot be stopped: the host's disk keeps one of its requests"
            raise PeerError(msg)
        return queue.stop()

    def _vring_fd(self, payload: Number, fds: list[int]) -> tuple[Virtqueue, int]:
        queue = self._queue(payload.value & VRING_INDEX_MASK)
        if payload.value & VRING_NO_FD:
            return queue, -1
        if len(fds) != 1:
            msg = f"a descriptor for queue {queue.index} was announced and {len(fds)} came"
            raise PeerError(msg)
        return queue, fds.pop()

    def _set_vring_kick(self, payload: Number, fds: list[int]) -> bool:
        queue, fd = self._vring_fd(payload, fds)
        if fd < 0:
            msg = f"queue {queue.index} without a kick descriptor: polling was not negotiated"
            raise PeerError(msg)
        self._take_kick(queue, fd)
        if queue.ring is None:
            self._start_queue(queue)
        return False

    def _take_kick(self, queue: Virtqueue, fd: int) -> None:
        old, queue.kick_fd = queue.kick_fd, fd
        self.kick_changed(queue, old)
        if old >= 0:
            os.close(old)

    def _set_vring_call(self, payload: Number, fds: list[int]) -> bool:
        queue, fd = self._vring_fd(payload, fds)
        if queue.call_fd >= 0:
            os.close(queue.call_fd)
        queue.call_fd = fd
        # What was given back before a restart may never have been told: say it once more.
        queue.call()
        return False

    def _set_vring_err(self, payload: Number, fds: list[int]) -> bool:
        queue, fd = self._vring_fd(payload, fds)
        if queue.err_fd >= 0:
            os.close(queue.err_fd)
        queue.err_fd = fd
        return False

    def _set_vring_enable(self, payload: VringState, _fds: list[int]) -> bool:
        if payload.number not in (0, 1):
            msg = f"queue {payload.queue_no} is enabled with {payload.number}"
            raise PeerError(msg)
        queue = self._queue(payload.queue_no)
        queue.enabled = bool(payload.number)
        # Work may lie there whose kick nobody saw.
        self.kick_changed(queue, queue.kick_fd)
        return False

    def _start_queue(self, queue: Virtqueue) -> None:
        record: memoryview | None = None
        shape = self._inflight_shape
        if self._inflight is not None and queue.index < shape.nr_queues:
            if queue.size > shape.queue_size:
                msg = f"queue {queue.index} of {queue.size} entries with an in-flight region for {shape.queue_size}"
                raise PeerError(msg)
            stride = record_bytes(shape.queue_size)
            start = shape.mmap_offset % mmap.ALLOCATIONGRANULARITY + queue.index * stride
            record = memoryview(self._inflight)[start : start + record_bytes(queue.size)]
        queue.start(self._memory, self._features, record, self._log if self._features & bits.LOG_ALL else None)
        # Requests may lie there, and their kicks have gone by.
        self.kick_changed(queue, queue.kick_fd)

    # -- in flight --------------------------------------------------------------------------------------------

    def _get_inflight_fd(self, payload: Inflight, _fds: list[int]) -> bool:
        if not 0 < payload.nr_queues <= _IN_FLIGHT_QUEUES_MAX or not 0 < payload.queue_size <= QUEUE_SIZE_MAX:
            msg = f"an in-flight region for {payload.nr_queues} queues of {payload.queue_size}"
            raise PeerError(msg)
        size = payload.nr_queues * record_bytes(payload.queue_size)
        fd = os.memfd_create("zonefs-emu-inflight", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            answer = Inflight(size, 0, payload.nr_queues, payload.queue_size)
            self._connection.reply(Request.GET_INFLIGHT_FD, answer, fds=(fd,))
        finally:
            os.close(fd)
        return True

    def _set_inflight_fd(self, payload: Inflight, fds: list[int]) -> bool:
        if len(fds) != 1 or payload.mmap_size < payload.nr_queues * record_bytes(payload.queue_size):
            msg = f"an in-flight region of {payload.mmap_size} bytes with {len(fds)} descriptors"
            raise PeerError(msg)
        if any(queue.ring is not None for queue in self.queues):
            msg = "the in-flight region is changed while rings run"
            raise PeerError(msg)
        self._inflight = self.shared.map(fds[0], payload.mmap_size, payload.mmap_offset)
        self._inflight_shape = payload
        return False

    # -- configuration ----------------------------------------------------------------------------------------

    def _get_config(self, payload: ConfigSpace, _fds: list[int]) -> bool:
        config = self._virtio_device.config()
        if config is None:
            # "an empty payload indicates an error to the front-end"
            self._connection.reply(Request.GET_CONFIG, ConfigSpace(payload.offset, 0, payload.flags, b""))
            return True
        data = config[payload.offset : payload.offset + payload.size].ljust(payload.size, b"\0")
        self._connection.reply(Request.GET_CONFIG, ConfigSpace(payload.offset, payload.size, payload.flags, data))
        return True

    def _set_config(self, payload: ConfigSpace, _fds: list[int]) -> bool:
        self._virtio_device.set_config(payload.offset, payload.data)
        return False

    def _set_backend_req_fd(self, _payload: Nothing, fds: list[int]) -> bool:
        if len(fds) != 1:
            msg = f"the socket for our requests came as {len(fds)} descriptors"
            raise PeerError(msg)
        if self._backend_requests is not None:
            self._backend_requests.close()
            self._backend_requests = None
        try:
            requests = socket.socket(fileno=fds[0])
        except OSError as error:
            msg = f"the socket for our requests is none: {error.strerror}"
            raise PeerError(msg) from None
        fds.clear()
        self._backend_requests = Connection(requests)
        return False

    def zones_changed(self) -> None:
        """Tell the driver that others changed zones."""
        if (
            not self._virtio_device.zones_changed()
            or self._backend_requests is None
            or not self._has(ProtocolFeature.CONFIG)
        ):
            return
        try:
            self._backend_requests.send(BackendRequest.CONFIG_CHANGE_MSG, Nothing())
        except PeerError as error:
            self._service.log.info("the front-end cannot be told of changed zones: %s", error)
            self._backend_requests.close()
            self._backend_requests = None

    # -- status, reset ----------------------------------------------------------------------------------------

    def _set_status(self, payload: Number, _fds: list[int]) -> bool:
        self._status = payload.value & 0xFF
        if not self._status:
            self._reset_queues()
        return False

    def _get_status(self, _payload: Nothing, _fds: list[int]) -> bool:
        self._connection.reply(Request.GET_STATUS, Number(self._status))
        return True

    def _reset_device(self, _payload: Nothing, _fds: list[int]) -> bool:
        self._reset_queues()
        self._status = 0
        return False

    def _reset_queues(self) -> None:
        """Do what a virtio reset does. Zones stay as they are: a reset is no power cycle."""
        for queue in self.queues:
            self._stop(queue)
            queue.enabled = not self._features & bits.PROTOCOL_FEATURES
            queue.base = 0
            self._take_kick(queue, -1)
        self._virtio_device.reset()

    # -- state transfer ---------------------------------------------------------------------------------------

    def _set_device_state_fd(self, payload: DeviceStateTransfer, fds: list[int]) -> bool:
        """Begin to send or take the zone states through a pipe; what arrives counts from CHECK_DEVICE_STATE on."""
        if len(fds) != 1 or payload.direction not in (_SAVE, _LOAD) or payload.phase != 0:
            self._connection.reply(Request.SET_DEVICE_STATE_FD, Number(_STATE_FAILED | _STATE_NO_FD))
            return True
        if any(queue.ring is not None for queue in self.queues) or self._transfer is not None:
            # "the device must be suspended"
            self._connection.reply(Request.SET_DEVICE_STATE_FD, Number(_STATE_FAILED | _STATE_NO_FD))
            return True
        # What is saved is the state at this moment, not at the one in which the reader gets around to it.
        outgoing = state_transfer.encode(self._device) if payload.direction == _SAVE else None
        nr_bytes_max = state_transfer.stream_bytes(self._device.geometry)
        self._transfer = Transfer(fds.pop(), outgoing=outgoing, nr_bytes_max=nr_bytes_max)
        self._connection.reply(Request.SET_DEVICE_STATE_FD, Number(_STATE_NO_FD))
        return True

    def _check_device_state(self, _payload: Nothing, _fds: list[int]) -> bool:
        transfer, self._transfer = self._transfer, None
        failed = transfer is None
        if transfer is not None:
            deadline = time.monotonic() + _STATE_S_MAX
            while not transfer.done.wait(_LOOK_S) and not self._must_not_wait() and time.monotonic() < deadline:
                pass
            transfer.end()
            try:
                self._finish_transfer(transfer)
            except ZonedError as error:
                self._service.log.warning("the device state was not moved: %s", error)
                failed = True
        self._connection.reply(Request.CHECK_DEVICE_STATE, Number(_STATE_FAILED if failed else 0))
        return True

    def _must_not_wait(self) -> bool:
        return self.is_ending() or self._connection.is_gone()

    def _finish_transfer(self, transfer: Transfer) -> None:
        """Take over what has arrived.

        Raises:
            ZonedError: it did not arrive, cannot be taken over, or belongs to a connection that is gone.
        """
        if transfer.error is not None:
            raise transfer.error
        if transfer.outgoing is None:
            if self._must_not_wait():
                msg = "the connection that it belongs to has ended"
                raise PeerError(msg)
            if any(queue.ring is not None for queue in self.queues):
                msg = "rings were started before it was checked"
                raise PeerError(msg)
            state_transfer.load(self._device, transfer.arrived)

    # -- end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop all rings and let everything go; the device stays as it is."""
        with ExitStack() as ending:  # each step is done, whatever the others raise
            ending.callback(self._connection.close)
            if self._backend_requests is not None:
                ending.callback(self._backend_requests.close)
            if self._transfer is not None:
                ending.callback(self._transfer.end)
            ending.callback(self._forget)
            for queue in self.queues:
                ending.callback(self._let_go, queue)

    def _let_go(self, queue: Virtqueue) -> None:
        """Stop *queue* and close its descriptors."""
        old, queue.kick_fd = queue.kick_fd, -1
        with ExitStack() as ending:
            ending.callback(queue.close)
            if old >= 0:
                ending.callback(os.close, old)
            ending.callback(self.kick_changed, queue, old)
            ending.callback(queue.stop)
            ending.callback(queue.abandon)
            self.wait_idle(queue)

    def _forget(self) -> None:
        # The guest's memory goes now, not when the garbage collector comes round.
        self._memory = GuestMemory()
        self._inflight = None
        self._handlers = {}
