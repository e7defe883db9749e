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
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NamedTuple, Protocol, Self, TypeAlias

from zonefs_emu.errors import PeerError
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
from zonefs_emu.virtio import blk_codec, blk_config, features as bits, packed, split
from zonefs_emu.virtio.ring import DESC_INDIRECT, DESC_NEXT, DESC_WRITE

Style: TypeAlias = Literal["qemu", "libblkio"]

#: Where the guest has its memory, and where this process pretends to have it mapped.
GUEST_BASE: Final = 1 << 32
USER_BASE: Final = 0x7F00_0000_0000
_PAGE: Final = 4096
_TIMEOUT_SECONDS: Final = 20.0
_DESC: Final = struct.Struct("<QIHH")
#: What QEMU and libblkio take of what is offered.
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


class Buffer(NamedTuple):
    """A run of guest memory."""

    offset: int
    length: int


class Completion(NamedTuple):
    """A request that came back: its id, and the bytes that the device says it has written."""

    request_id: int
    written: int


class Heap:
    """Guest memory that is handed out; a bump allocator with lists of what was given back, by size."""

    def __init__(self, start: int, end: int) -> None:
        """Hand out the bytes from *start* to *end*."""
        self._at = start
        self._end = end
        self._free: dict[int, list[int]] = {}

    def take(self, length: int, alignment: int = 16) -> Buffer:
        """Return *length* bytes."""
        free = self._free.get(length)
        if free:
            return Buffer(free.pop(), length)
        self._at = -(-self._at // alignment) * alignment
        if self._at + length > self._end:
            raise MemoryError(length)
        self._at += length
        return Buffer(self._at - length, length)

    def give_back(self, buffer: Buffer) -> None:
        """Take *buffer* back."""
        self._free.setdefault(buffer.length, []).append(buffer.offset)


class DriverRing(Protocol):
    """The driver's side of a ring. Addresses are guest addresses; ids are the driver's own."""

    nr_free: int

    def add(self, buffers: Sequence[tuple[int, int, bool]], indirect: Buffer | None) -> int:
        """Make a chain of (address, bytes, device-writable) available; return its id."""
        ...

    def needs_kick(self) -> bool:
        """Say whether the device wants to be told."""
        ...

    def reap(self) -> list[Completion]:
        """Take what the device has given back."""
        ...

    def want_call(self) -> bool:
        """Ask for a call at the next completion; True if there is one already."""
        ...


class SplitDriver:
    """The driver's side of a split ring. Source: virtio 1.4, "Split Virtqueues"."""

    def __init__(self, size: int, memory: memoryview, areas: tuple[Buffer, Buffer, Buffer], *, event_idx: bool) -> None:
        """Use descriptor table, available and used ring at *areas* of *memory*."""
        desc, avail, used = (memory[area.offset : area.offset + area.length] for area in areas)
        self.size = size
        self.nr_free = size
        self._memory = memory
        self._table = desc
        self._desc = desc.cast("Q")
        self._avail = avail.cast("H")
        self._used = used.cast("H")
        self._elements = used[4 : 4 + 8 * size].cast("Q")
        self._event_idx = event_idx
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, list[int]] = {}
        self._next_avail = 0
        self._kicked = 0
        self._next_used = 0

    def add(self, buffers: Sequence[tuple[int, int, bool]], indirect: Buffer | None) -> int:
        """Make a chain available; its id is its head."""
        if indirect is not None:
            last = len(buffers) - 1
            for index, (address, length, writable) in enumerate(buffers):
                flags = (DESC_WRITE if writable else 0) | (DESC_NEXT if index < last else 0)
                _DESC.pack_into(self._memory, indirect.offset + 16 * index, address, length, flags, index + 1)
            buffers = [(GUEST_BASE + indirect.offset, 16 * len(buffers), False)]
        slots = [self._free.pop() for _ in buffers]
        self.nr_free -= len(slots)
        last = len(slots) - 1
        for index, (slot, (address, length, writable)) in enumerate(zip(slots, buffers, strict=True)):
            flags = (DESC_WRITE if writable else 0) | (DESC_NEXT if index < last else 0)
            if indirect is not None:
                flags |= DESC_INDIRECT
            following = slots[index + 1] if index < last else 0
            self._desc[2 * slot] = address
            self._desc[2 * slot + 1] = length | flags << 32 | following << 48
        self._chains[slots[0]] = slots
        self.publish(slots[0])
        return slots[0]

    def publish(self, head: int) -> None:
        """Put *head* into the available ring and show it."""
        self._avail[2 + self._next_avail % self.size] = head
        self._next_avail = self._next_avail + 1 & 0xFFFF
        self._avail[1] = self._next_avail

    def needs_kick(self) -> bool:
        """Say whether the device wants to be told; see the protocol."""
        old, self._kicked = self._kicked, self._next_avail
        if not self._event_idx:
            return old != self._next_avail and not self._used[0] & 1
        event = self._used[2 + 4 * self.size]
        return (self._next_avail - event - 1) & 0xFFFF < (self._next_avail - old) & 0xFFFF

    def reap(self) -> list[Completion]:
        """Take what the device has given back; see the protocol."""
        done: list[Completion] = []
        while self._next_used != self._used[1]:
            word = self._elements[self._next_used % self.size]
            head = word & 0xFFFFFFFF
            slots = self._chains.pop(head)
            self._free += reversed(slots)
            self.nr_free += len(slots)
            done.append(Completion(head, word >> 32))
            self._next_used = self._next_used + 1 & 0xFFFF
        return done

    def want_call(self) -> bool:
        """Ask for a call; see the protocol."""
        if self._event_idx:
            self._avail[2 + self.size] = self._next_used
        else:
            self._avail[0] = 0
        return self._used[1] != self._next_used

    @property
    def base(self) -> int:
        """What SET_VRING_BASE says: what QEMU restores when the back-end is gone."""
        return self._used[1]


class PackedDriver:
    """The driver's side of a packed ring. Source: virtio 1.4, "Packed Virtqueues"."""

    def __init__(self, size: int, memory: memoryview, areas: tuple[Buffer, Buffer, Buffer], *, event_idx: bool) -> None:
        """Use descriptor ring, driver event and device event area at *areas* of *memory*."""
        desc, driver, device = (memory[area.offset : area.offset + area.length] for area in areas)
        self.size = size
        self.nr_free = size
        self._memory = memory
        self._desc = desc.cast("Q")
        self._driver_event = driver.cast("H")
        self._device_event = device.cast("H")
        self._event_idx = event_idx
        self._free_ids = list(range(size - 1, -1, -1))
        self._chains: dict[int, int] = {}
        self._next = 0
        self._kicked = 0
        self._used = 0

    def add(self, buffers: Sequence[tuple[int, int, bool]], indirect: Buffer | None) -> int:
        """Make a chain available; its id is the buffer id."""
        if indirect is not None:
            for index, (address, length, writable) in enumerate(buffers):
                flags = DESC_WRITE if writable else 0
                _DESC.pack_into(self._memory, indirect.offset + 16 * index, address, length, 0, flags)
            buffers = [(GUEST_BASE + indirect.offset, 16 * len(buffers), False)]
        number = self._free_ids.pop()
        count = len(buffers)
        words: list[tuple[int, int]] = []
        for index, (address, length, writable) in enumerate(buffers):
            place = self._next + index
            flags = packed.DESC_USED if place // self.size & 1 else packed.DESC_AVAIL
            flags |= (DESC_WRITE if writable else 0) | (DESC_NEXT if index < count - 1 else 0)
            if indirect is not None:
                flags |= DESC_INDIRECT
            slot = place % self.size
            self._desc[2 * slot] = address
            words.append((2 * slot + 1, length | number << 32 | flags << 48))
        # The first descriptor is shown last, and the whole chain with it.
        for at, word in reversed(words):
            self._desc[at] = word
        self._next += count
        self.nr_free -= count
        self._chains[number] = count
        return number

    def needs_kick(self) -> bool:
        """Say whether the device wants to be told; see the protocol."""
        old, self._kicked = self._kicked, self._next
        flags = self._device_event[1] & 3
        if old == self._next or flags == packed.EVENT_DISABLE:
            return False
        if flags != packed.EVENT_DESC:
            return True
        event = self._device_event[0]
        turn = (self._next - 1) // self.size
        if (not turn & 1) != bool(event & 0x8000):
            turn -= 1
        return old <= turn * self.size + (event & 0x7FFF) < self._next

    def reap(self) -> list[Completion]:
        """Take what the device has given back; see the protocol."""
        done: list[Completion] = []
        while self._is_used():
            word = self._desc[2 * (self._used % self.size) + 1]
            number = word >> 32 & 0xFFFF
            count = self._chains.pop(number)
            self._free_ids.append(number)
            self._used += count
            self.nr_free += count
            done.append(Completion(number, word & 0xFFFFFFFF))
        return done

    def _is_used(self) -> bool:
        flags = self._desc[2 * (self._used % self.size) + 1] >> 48
        wrap = not self._used // self.size & 1
        return bool(self._chains) and bool(flags & packed.DESC_AVAIL) == bool(flags & packed.DESC_USED) == wrap

    def want_call(self) -> bool:
        """Ask for a call; see the protocol."""
        if self._event_idx:
            self._driver_event[0] = packed.position_of(self._used, self.size)
            self._driver_event[1] = packed.EVENT_DESC
        else:
            self._driver_event[1] = packed.EVENT_ENABLE
        return self._is_used()

    @property
    def base(self) -> int:
        """What SET_VRING_BASE says: next available and next used position."""
        position = packed.position_of(self._used, self.size)
        return position | position << 16


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
        self.nr_kicks = 0
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
        """Tell the device, if it wants to be told."""
        if self.ring.needs_kick() or always:
            self.nr_kicks += 1
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
            message = f"queue {self.index}: the back-end has given the ring up"
            raise PeerError(message)
        elif ready:
            message = f"queue {self.index}: the back-end closed the connection"
            raise PeerError(message)
        else:
            message = f"queue {self.index}: no answer"
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
            part, ancillary, _, _ = self._socket.recvmsg(length - len(data), socket.CMSG_SPACE(32))
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
        """Do what happens before the driver is there."""
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
        """Do what happens when the driver is there."""
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
        """Do what QEMU does when a back-end is there again: everything anew, with what the guest left as it is."""
        self._socket.close()
        self._socket = self._connect()
        self._socket.settimeout(_TIMEOUT_SECONDS)
        self.start()

    def fileno(self) -> int:
        """Return the descriptor of the connection, -1 if there is none."""
        return self._socket.fileno()

    def disconnect(self) -> None:
        """Close the socket without a word."""
        self._socket.close()

    def stop_queue(self, queue: FrontendQueue) -> int:
        """Stop *queue*; return where to go on."""
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
