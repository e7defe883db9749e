"""A vhost-user front-end: plays QEMU's and libblkio's part, and the guest's driver on the rings.

For tests and benchmarks, and to try a back-end without a virtual machine::

    with Frontend(path) as frontend:
        frontend.start()
        driver = BlkDriver(frontend.queues[0])
        driver.write(0, b"x" * 4096)

Everything is done on the caller's thread. The front-end survives its back-end: :meth:`Frontend.reconnect` does what
QEMU does when the socket comes back, with the memory, the rings and the in-flight region as they were left.
"""

import array
import mmap
import os
import select
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

from zonefs_emu.errors import PeerError
from zonefs_emu.testing.driver_rings import GUEST_BASE, Buffer, Heap, PackedDriver, SplitDriver
from zonefs_emu.vhost_user.messages import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    VRING_LOG,
    ConfigSpace,
    DeviceStateTransfer,
    Inflight,
    LogBase,
    MemoryRegion,
    MemoryTable,
    Nothing,
    Number,
    Payload,
    ProtocolFeature,
    Request,
    VringAddress,
    VringState,
    decode_header,
    decode_reply,
    encode_header,
    encode_payload,
)
from zonefs_emu.virtio import blk_config, features as bits, packed, split

Style: TypeAlias = Literal["qemu", "libblkio"]

#: Where this process pretends to have the guest's memory mapped.
USER_BASE: Final = 0x7F00_0000_0000
_PAGE: Final = 4096
_TIMEOUT_SECONDS: Final = 20.0
#: The offered features that QEMU and libblkio accept.
_PROTOCOL_FEATURES: Final = sum(
    1 << feature
    for feature in (
        ProtocolFeature.MQ,
        ProtocolFeature.LOG_SHMFD,
        ProtocolFeature.REPLY_ACK,
        ProtocolFeature.BACKEND_REQ,
        ProtocolFeature.CONFIG,
        ProtocolFeature.INFLIGHT_SHMFD,
        ProtocolFeature.RESET_DEVICE,
        ProtocolFeature.CONFIGURE_MEM_SLOTS,
        ProtocolFeature.STATUS,
        ProtocolFeature.DEVICE_STATE,
    )
)
_LIBBLKIO_PROTOCOL_FEATURES: Final = (
    ProtocolFeature.MQ.mask
    | ProtocolFeature.REPLY_ACK.mask
    | ProtocolFeature.CONFIG.mask
    | ProtocolFeature.CONFIGURE_MEM_SLOTS.mask
)


class FrontendQueue:
    """One virtqueue as the driver uses it."""

    def __init__(self, frontend: "Frontend", index: int) -> None:
        """Lay the ring into the front-end's memory; :meth:`Frontend.start` tells the back-end."""
        self.frontend = frontend
        self.index = index
        size = frontend.queue_size
        if frontend.packed:
            lengths = (16 * size, packed.EVENT_BYTES, packed.EVENT_BYTES)
        else:
            lengths = split.sizes(size, event_idx=True)
        take = frontend.heap.take
        self.areas = (take(lengths[0], _PAGE), take(lengths[1], _PAGE), take(lengths[2], _PAGE))
        kind = PackedDriver if frontend.packed else SplitDriver
        self.ring: SplitDriver | PackedDriver = kind(
            size, frontend.memory, self.areas, event_idx=bool(frontend.features & bits.EVENT_IDX)
        )
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.err_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._buffers: dict[int, list[Buffer]] = {}
        self._writable: dict[int, list[Buffer]] = {}
        self._done: dict[int, int] = {}
        #: Ids in the order in which they came back.
        self.order: list[int] = []

    def submit(self, readable: Sequence[bytes], writable: Sequence[int], *, kick: bool = True) -> int:
        """Make a request available: *readable* contents, then *writable* lengths; return its id."""
        frontend = self.frontend
        heap, memory = frontend.heap, frontend.memory
        out = [heap.take(len(content)) for content in readable]
        for buffer, content in zip(out, readable, strict=True):
            memory[buffer.offset : buffer.offset + buffer.length] = content
        into = [heap.take(length) for length in writable]
        chain = [(GUEST_BASE + buffer.offset, buffer.length, False) for buffer in out]
        chain += [(GUEST_BASE + buffer.offset, buffer.length, True) for buffer in into]
        table = heap.take(16 * len(chain)) if frontend.indirect else None
        number = self.ring.add(chain, table)
        self._buffers[number] = [*out, *into, *([table] if table is not None else [])]
        self._writable[number] = into
        if kick:
            self.kick()
        return number

    def kick(self, *, always: bool = False) -> None:
        """Notify the device if it asks for a notification."""
        if self.ring.needs_kick() or always:
            os.eventfd_write(self.kick_fd, 1)

    def reap(self) -> None:
        """Take what has come back."""
        for number, written in self.ring.reap():
            self._done[number] = written
            self.order.append(number)

    def wait(self, number: int, *, timeout: float | None = None) -> tuple[int, list[bytes]]:
        """Wait for request *number*; return the bytes written and the contents of its writable buffers.

        Raises:
            TimeoutError: it does not come back within *timeout* seconds, or the front-end's own.
            PeerError: the back-end has gone.
        """
        deadline = time.monotonic() + (self.frontend.timeout_seconds if timeout is None else timeout)
        self.reap()
        while number not in self._done:
            if not self.ring.want_call():
                self.wait_call(deadline - time.monotonic())
            self.reap()
        return self._collect(number)

    def wait_call(self, timeout: float) -> None:
        """Wait for a call.

        Raises:
            TimeoutError: none comes.
            PeerError: the back-end has gone, or has given the ring up (:attr:`is_broken` says so once more).
        """
        poll = select.poll()
        poll.register(self.call_fd, select.POLLIN)
        poll.register(self.err_fd, select.POLLIN)
        poll.register(self.frontend.fileno(), 0)
        ready = dict(poll.poll(timeout * 1000)) if timeout > 0 else {}
        if self.call_fd in ready:
            os.eventfd_read(self.call_fd)
        elif self.err_fd in ready:
            message = f"queue {self.index}: the back-end has reported the ring as broken"
            raise PeerError(message)
        elif ready:
            message = f"queue {self.index}: the back-end closed the connection"
            raise PeerError(message)
        else:
            message = f"queue {self.index}: the back-end does not answer in time"
            raise TimeoutError(message)

    def _collect(self, number: int) -> tuple[int, list[bytes]]:
        memory = self.frontend.memory
        contents = [
            bytes(memory[buffer.offset : buffer.offset + buffer.length]) for buffer in self._writable.pop(number)
        ]
        for buffer in self._buffers.pop(number):
            self.frontend.heap.give_back(buffer)
        return self._done.pop(number), contents

    def request(self, readable: Sequence[bytes], writable: Sequence[int]) -> tuple[int, list[bytes]]:
        """Submit a request and wait for it."""
        return self.wait(self.submit(readable, writable))

    @property
    def is_broken(self) -> bool:
        """Whether the back-end has signalled that it gave the ring up."""
        try:
            os.eventfd_read(self.err_fd)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Close the descriptors; a second time does nothing."""
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            if fd >= 0:
                os.close(fd)
        self.kick_fd = self.call_fd = self.err_fd = -1


class Frontend:
    """A front-end with its guest's memory.

    *features*: what the driver accepts of what is offered; *style*: whose order of messages; *inflight*: track requests
    in flight. *regions*: into how many regions the memory is cut. :attr:`timeout_seconds` is how long it waits for
    an answer.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        connected: socket.socket | None = None,
        nr_queues: int = 1,
        queue_size: int = 128,
        memory_bytes: int = 16 << 20,
        regions: int = 1,
        packed: bool = False,
        event_idx: bool = True,
        indirect: bool = False,
        features: int = (1 << 64) - 1,
        style: Style = "qemu",
        inflight: bool = True,
    ) -> None:
        """Connect to *path*, or use *connected*."""
        self._path = path
        self.timeout_seconds = _TIMEOUT_SECONDS
        self.style: Style = style
        self.packed = packed
        self.indirect = indirect
        self.queue_size = queue_size
        self.nr_regions = regions
        self.features = features & ~bits.LOG_ALL & ~bits.NOTIFY_ON_EMPTY
        if not packed:
            self.features &= ~bits.RING_PACKED
        if not event_idx:
            self.features &= ~bits.EVENT_IDX
        if not indirect:
            self.features &= ~bits.INDIRECT_DESC
        self.offered = 0
        self.protocol_features = 0
        self.memory_fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC)
        os.ftruncate(self.memory_fd, memory_bytes)
        self._map = mmap.mmap(self.memory_fd, memory_bytes)
        self.memory = memoryview(self._map)
        self.heap = Heap(0, memory_bytes)
        self.queues = [FrontendQueue(self, index) for index in range(nr_queues)]
        self._wants_inflight = inflight and style == "qemu"
        self._inflight: Inflight | None = None
        self._inflight_fd = -1
        self._log: mmap.mmap | None = None
        self._log_fd = -1
        self.backend_requests: socket.socket | None = None
        self._socket = connected if connected is not None else self._connect()
        self._socket.settimeout(_TIMEOUT_SECONDS)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything."""
        self.close()

    def _connect(self) -> socket.socket:
        assert self._path is not None
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(str(self._path))
            except OSError as error:
                sock.close()
                if not isinstance(error, FileNotFoundError | ConnectionRefusedError) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return sock

    # -- messages ---------------------------------------------------------------------------------------------

    def send(self, request: int, payload: Payload, *, flags: int = 0, fds: Sequence[int] = ()) -> None:
        """Send a message."""
        data = encode_payload(payload)
        message = encode_header(request, flags, len(data)) + data
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([message], ancillary)

    def receive(self, request: int) -> tuple[Payload, list[int]]:
        """Receive the answer to *request*: payload and descriptors.

        Raises:
            PeerError: another answer came, or the connection has ended.
        """
        fds: list[int] = []
        head = self._receive_bytes(HEADER.size, fds)
        header = decode_header(head)
        data = self._receive_bytes(header.size, fds)
        if header.request != request or not header.flags & FLAG_REPLY:
            message = f"answer {header.request} with flags {header.flags:#x} to request {request}"
            raise PeerError(message)
        return decode_reply(request, data), fds

    def _receive_bytes(self, length: int, fds: list[int]) -> bytes:
        data = b""
        while len(data) < length:
            try:
                part, ancillary, _, _ = self._socket.recvmsg(length - len(data), socket.CMSG_SPACE(32))
            except ConnectionResetError:  # this is the end too: the back-end had not read everything that was sent
                part, ancillary = b"", []
            for _, _, content in ancillary:
                fds += array.array("i", content[: len(content) - len(content) % 4])
            if not part:
                message = "the back-end closed the connection"
                raise PeerError(message)
            data += part
        return data

    def ask(self, request: int, payload: Payload | None = None) -> Payload:
        """Send a request that has an answer of its own, and return that."""
        self.send(request, payload if payload is not None else Nothing())
        answer, fds = self.receive(request)
        for fd in fds:
            os.close(fd)
        return answer

    def ask_number(self, request: int, payload: Payload | None = None) -> int:
        """Return the number that answers *request*."""
        answer = self.ask(request, payload)
        assert isinstance(answer, Number)
        return answer.value

    def tell(self, request: int, payload: Payload, *, fds: Sequence[int] = (), ack: bool = True) -> None:
        """Send a request that has no answer of its own; with *ack*, wait for its acknowledgement if negotiated.

        Raises:
            PeerError: it is not acknowledged with success.
        """
        if not ack or not self.protocol_features & ProtocolFeature.REPLY_ACK.mask:
            self.send(request, payload, fds=fds)
            return
        self.send(request, payload, flags=FLAG_NEED_REPLY, fds=fds)
        answer, _ = self.receive(request)
        if answer != Number(0):
            message = f"request {request} failed: {answer}"
            raise PeerError(message)

    # -- orders of messages -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Negotiate, hand over memory and rings, and start all queues."""
        self.negotiate()
        self.start_queues()

    def negotiate(self) -> None:
        """Send the messages that come before the driver's start."""
        if self.style == "libblkio":
            self.send(Request.SET_OWNER, Nothing())
            self.offered = self.ask_number(Request.GET_FEATURES)
            self._accept()
            offered = self.ask_number(Request.GET_PROTOCOL_FEATURES)
            self._set_protocol_features(offered & _LIBBLKIO_PROTOCOL_FEATURES)
            self.ask_number(Request.GET_QUEUE_NUM)
            return
        self.offered = self.ask_number(Request.GET_FEATURES)
        offered = self.ask_number(Request.GET_PROTOCOL_FEATURES)
        self._set_protocol_features(offered & _PROTOCOL_FEATURES)
        self.ask_number(Request.GET_QUEUE_NUM)
        self.ask_number(Request.GET_MAX_MEM_SLOTS)
        ours, theirs = socket.socketpair()
        self._close_backend_requests()
        self.backend_requests = ours
        with theirs:
            self.tell(Request.SET_BACKEND_REQ_FD, Nothing(), fds=(theirs.fileno(),))
        self.send(Request.SET_OWNER, Nothing())
        self.ask_number(Request.GET_FEATURES)
        for queue in self.queues:
            self.tell(Request.SET_VRING_ERR, Number(queue.index), fds=(queue.err_fd,))

    def _set_protocol_features(self, features: int) -> None:
        self.protocol_features = features
        self.send(Request.SET_PROTOCOL_FEATURES, Number(features))

    def _accept(self) -> None:
        self.features &= self.offered
        log = bits.LOG_ALL if self._log is not None else 0
        self.tell(Request.SET_FEATURES, Number(self.features | log | bits.PROTOCOL_FEATURES), ack=False)

    def start_queues(self) -> None:
        """Send the messages that come at the driver's start."""
        if self.style == "qemu":
            self._accept()
            if self.protocol_features & ProtocolFeature.STATUS.mask:
                self.send(Request.SET_STATUS, Number(bits.STATUS_ACKNOWLEDGE | bits.STATUS_DRIVER))
                self.ask_number(Request.GET_STATUS)
            if self._wants_inflight:
                self._share_inflight()
            self._accept()
        self._share_memory()
        for queue in self.queues:
            self._set_up(queue)
        for queue in self.queues:
            self.tell(Request.SET_VRING_ENABLE, VringState(queue.index, 1))

    def _set_up(self, queue: FrontendQueue) -> None:
        number = Number(queue.index)
        self.tell(Request.SET_VRING_NUM, VringState(queue.index, self.queue_size), ack=self.style == "libblkio")
        self.tell(Request.SET_VRING_BASE, VringState(queue.index, queue.ring.base), ack=self.style == "libblkio")
        self.set_address(queue)
        self.tell(Request.SET_VRING_KICK, number, fds=(queue.kick_fd,), ack=self.style == "libblkio")
        self.tell(Request.SET_VRING_CALL, number, fds=(queue.call_fd,), ack=self.style == "libblkio")

    def set_address(self, queue: FrontendQueue) -> None:
        """Say where the ring of *queue* is."""
        desc, avail, used = (USER_BASE + area.offset for area in queue.areas)
        flags = VRING_LOG if self._log is not None else 0
        address = VringAddress(queue.index, flags, desc, used, avail, GUEST_BASE + queue.areas[2].offset)
        self.tell(Request.SET_VRING_ADDR, address, ack=self.style == "libblkio")

    def memory_regions(self) -> list[MemoryRegion]:
        """Return the memory, cut into regions; the first take whole pages."""
        total = len(self.memory)
        part = -(-total // self.nr_regions // _PAGE) * _PAGE
        return [
            MemoryRegion(GUEST_BASE + start, min(part, total - start), USER_BASE + start, start)
            for start in range(0, total, part)
        ]

    def _share_memory(self) -> None:
        regions = self.memory_regions()
        if self.style == "libblkio" or len(regions) > 8:
            for region in regions:
                self.tell(Request.ADD_MEM_REG, region, fds=(self.memory_fd,))
        else:
            fds = [self.memory_fd] * len(regions)
            self.tell(Request.SET_MEM_TABLE, MemoryTable(tuple(regions)), fds=fds)

    def _share_inflight(self) -> None:
        if not self.protocol_features & ProtocolFeature.INFLIGHT_SHMFD.mask:
            return
        if self._inflight is None:
            self.send(Request.GET_INFLIGHT_FD, Inflight(0, 0, len(self.queues), self.queue_size))
            answer, fds = self.receive(Request.GET_INFLIGHT_FD)
            assert isinstance(answer, Inflight)
            self._inflight, self._inflight_fd = answer, fds[0]
        self.tell(Request.SET_INFLIGHT_FD, self._inflight, fds=(self._inflight_fd,), ack=False)

    def reconnect(self) -> None:
        """Connect and set up all rings again, as QEMU does when its back-end has restarted; guest memory stays."""
        self._socket.close()
        self._socket = self._connect()
        self._socket.settimeout(_TIMEOUT_SECONDS)
        self.start()

    def fileno(self) -> int:
        """Return the descriptor of the connection, -1 if there is none."""
        return self._socket.fileno()

    def disconnect(self) -> None:
        """Close the socket without a message."""
        self._socket.close()

    def stop_queue(self, queue: FrontendQueue) -> int:
        """Stop *queue*; return the position at which it continues."""
        self.tell(Request.SET_VRING_ENABLE, VringState(queue.index, 0))
        answer = self.ask(Request.GET_VRING_BASE, VringState(queue.index, 0))
        assert isinstance(answer, VringState)
        return answer.number

    # -- the rest of the protocol -----------------------------------------------------------------------------

    def config(self, size: int = blk_config.CONFIG_BYTES, offset: int = 0) -> bytes:
        """Return *size* bytes of the configuration space."""
        answer = self.ask(Request.GET_CONFIG, ConfigSpace(offset, size, 0, bytes(size)))
        assert isinstance(answer, ConfigSpace)
        return answer.data

    def begin_log(self, log_bytes: int) -> memoryview:
        """Begin to log dirty pages; return the log."""
        self._log_fd = os.memfd_create("dirty-log", os.MFD_CLOEXEC)
        os.ftruncate(self._log_fd, log_bytes)
        self._log = mmap.mmap(self._log_fd, log_bytes)
        self.send(Request.SET_LOG_BASE, LogBase(log_bytes, 0), fds=(self._log_fd,))
        self.receive(Request.SET_LOG_BASE)
        features = self.features | bits.LOG_ALL | bits.PROTOCOL_FEATURES
        self.tell(Request.SET_FEATURES, Number(features))
        for queue in self.queues:
            self.set_address(queue)
        return memoryview(self._log)

    def end_log(self) -> None:
        """End logging."""
        self._log = None
        self.tell(Request.SET_FEATURES, Number(self.features | bits.PROTOCOL_FEATURES))

    def save_state(self) -> tuple[bytes, int]:
        """Take the device's state; return it and what CHECK_DEVICE_STATE says."""
        reader, writer = os.pipe()
        self.send(Request.SET_DEVICE_STATE_FD, DeviceStateTransfer(0, 0), fds=(writer,))
        os.close(writer)
        answer, _ = self.receive(Request.SET_DEVICE_STATE_FD)
        assert isinstance(answer, Number)
        with os.fdopen(reader, "rb") as pipe:
            stream = pipe.read() if not answer.value & 0xFF else b""
        return stream, self.ask_number(Request.CHECK_DEVICE_STATE)

    def load_state(self, stream: bytes) -> int:
        """Give the device a state; return what CHECK_DEVICE_STATE says."""
        reader, writer = os.pipe()
        self.send(Request.SET_DEVICE_STATE_FD, DeviceStateTransfer(1, 0), fds=(reader,))
        os.close(reader)
        self.receive(Request.SET_DEVICE_STATE_FD)
        try:
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(stream)
        except BrokenPipeError:
            pass  # refused before all of it was read; the check says so
        return self.ask_number(Request.CHECK_DEVICE_STATE)

    def _close_backend_requests(self) -> None:
        if self.backend_requests is not None:
            self.backend_requests.close()
            self.backend_requests = None

    def close(self) -> None:
        """Close everything; a second time does nothing."""
        self._socket.close()
        self._close_backend_requests()
        for queue in self.queues:
            queue.close()
        for fd in (self.memory_fd, self._inflight_fd, self._log_fd):
            if fd >= 0:
                os.close(fd)
        self.memory_fd = self._inflight_fd = self._log_fd = -1
