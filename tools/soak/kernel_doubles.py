"""The kernel's side of ublk and VDUSE, played in the process of the front-ends, with its users: loads of a soak.

The doubles stand for the modules that need a kernel with these drivers: a ring of io_uring whose commands are ublk's,
and the ioctls and messages of a VDUSE device. Everything else of the two front-ends is the real code.
"""

import mmap
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Self

from zonefs_emu.errors import PeerError
from zonefs_emu.testing.driver_rings import GUEST_BASE, Heap
from zonefs_emu.testing.vhost_frontend import FrontendQueue
from zonefs_emu.ublk.protocol import COMMIT_AND_FETCH_REQ, IO_CMD, IO_DESC, IO_RES_ABORT, buffer_offset
from zonefs_emu.ublk.uring import COMMAND_OFFSET, OP_POLL_ADD, POLLIN, SQE_BYTES
from zonefs_emu.vduse import protocol
from zonefs_emu.vduse.protocol import MESSAGE_BYTES, RESULT_OK, Message, encode_request
from zonefs_emu.vduse.vduse_device import QUEUE_SIZE
from zonefs_emu.virtio import features as bits

_ANSWER_SECONDS: Final = 60
#: How often the driver of a VDUSE device that waits looks whether its ring is served at all.
_LOOK_SECONDS: Final = 0.05
_MEMORY_BYTES: Final = 8 << 20
#: Where the data begins: in front of it lie the rings.
_DATA_OFFSET: Final = 1 << 20
_QUEUE_INFO: Final = struct.Struct("<IIQQQHHHHB7x")
_IOTLB_ENTRY: Final = struct.Struct("<QQQB7x")
_KICK: Final = struct.Struct("<Ii")
_RESULT: Final = struct.Struct("<II16x")
_READ_WRITE: Final = 3


class UblkQueue:
    """A queue of a ublk device, as the kernel has it: the ring of the server's thread, and the requests of the users.

    A user's thread calls :meth:`ask`. The other methods are those of :class:`zonefs_emu.ublk.uring.Ring`, and belong to
    the server's thread.
    """

    def __init__(self, node: Path, depth: int) -> None:
        self.fd = os.open(node, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        os.ftruncate(self.fd, buffer_offset(0, depth))
        self.entries = mmap.mmap(-1, (depth + 1) * SQE_BYTES)
        self.pending = 0
        self._depth = depth
        self._idle: SimpleQueue[int] = SimpleQueue()
        self._answers: list[SimpleQueue[tuple[int, int]]] = [SimpleQueue() for _ in range(depth)]
        self._commands = [0] * depth
        self._pushed: list[int] = []
        #: What users ask for, until the server's thread enters the kernel; then it is completed.
        self._arrived: deque[tuple[int, int]] = deque()
        self._completed: list[tuple[int, int]] = []
        self._wakes = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._polled = -1
        self._is_polling = False

    # -- users ------------------------------------------------------------------------------------------------

    def ask(
        self, op_flags: int, count: int, sector: int, *, data: bytes = b"", room: int = 0
    ) -> tuple[int, int, bytes]:
        """Have a request carried out; returns its result, where an append landed, and *room* bytes of data."""
        tag = self._idle.get(timeout=_ANSWER_SECONDS)
        os.pwrite(self.fd, data, buffer_offset(0, tag))
        os.pwrite(self.fd, IO_DESC.pack(op_flags, count, sector, 0), IO_DESC.size * tag)
        self._complete(tag, 0)
        result, landed = self._answers[tag].get(timeout=_ANSWER_SECONDS)
        found = os.pread(self.fd, room, buffer_offset(0, tag))
        self._idle.put(tag)
        return result, landed, found

    def abort(self) -> None:
        """Take all tags out of service, as a device that is stopped."""
        for tag in range(self._depth):
            self._complete(tag, IO_RES_ABORT)

    def _complete(self, tag: int, outcome: int) -> None:
        self._arrived.append((tag, outcome))
        os.eventfd_write(self._wakes, 1)

    # -- the server's thread ----------------------------------------------------------------------------------

    def __call__(self, nr_entries: int, *, one_thread: bool) -> Self:
        """Be the ring that is made."""
        assert one_thread
        assert nr_entries == self._depth + 1
        return self

    def place(
        self, index: int, operation: int, fd: int, user_data: int, *, command: int = 0, flags: int = 0,
        payload: bytes = b"",
    ) -> None:  # fmt: skip
        """Fill an entry: a command of a tag, or the wait for a descriptor."""
        assert user_data == index
        if operation == OP_POLL_ADD:
            assert flags == POLLIN
            self._polled = fd
            return
        self._commands[index] = command
        at = index * SQE_BYTES + COMMAND_OFFSET
        self.entries[at : at + len(payload)] = payload

    def push(self, index: int) -> None:
        """Queue an entry."""
        self._pushed.append(index)
        self.pending += 1

    def enter(self, nr_wanted: int) -> None:
        """Take what was pushed; wait for a completion if one is wanted."""
        for index in self._pushed:
            if index == self._depth:
                self._is_polling = True
            elif self._commands[index] == COMMIT_AND_FETCH_REQ:
                _, tag, result, landed = IO_CMD.unpack_from(self.entries, index * SQE_BYTES + COMMAND_OFFSET)
                assert tag == index
                self._answers[tag].put((result, landed))
            else:
                self._idle.put(index)
        self._pushed.clear()
        self.pending = 0
        while not self._collect() and nr_wanted:
            self._poll(None)  # what it finds, the next look finds again

    def _collect(self) -> bool:
        # The descriptors first: this takes the news of what has arrived.
        if self._polled in self._poll(0) and self._is_polling:
            self._is_polling = False
            self._completed.append((self._depth, POLLIN))
        while self._arrived:
            self._completed.append(self._arrived.popleft())
        return bool(self._completed)

    def _poll(self, timeout: int | None) -> list[int]:
        poller = select.poll()
        poller.register(self._wakes, select.POLLIN)
        if self._is_polling:
            poller.register(self._polled, select.POLLIN)
        ready = [fd for fd, _ in poller.poll(timeout)]
        if self._wakes in ready:
            os.eventfd_read(self._wakes)
        return ready

    def has_completions(self) -> bool:
        """Say whether there are completions."""
        return bool(self._completed)

    def spin(self, _duration_ns: int) -> bool:
        """Say whether entering would find something, without the look for it."""
        return bool(self._arrived or self._completed)

    def reap(self) -> list[tuple[int, int]]:
        """Take the completions."""
        found, self._completed = self._completed, []
        return found

    def close(self) -> None:
        """Do nothing: the users may still look at their answers."""


class VduseKernel:
    """The kernel's side of a VDUSE device: its vdpa bus, its ioctls, and the messages that it sends.

    It stands for the modules ``vdpa_bus`` and ``fcntl``, as far as :mod:`zonefs_emu.vduse.vduse_device` uses them.
    """

    def __init__(self) -> None:
        self.memory_fd = os.memfd_create("driver-memory", os.MFD_CLOEXEC)
        os.ftruncate(self.memory_fd, _MEMORY_BYTES)
        self.memory = memoryview(mmap.mmap(self.memory_fd, _MEMORY_BYTES))
        self.config = b""
        #: The driver's part: its features, its queue if that is ready, and whether its data can be found already.
        self.features = 0
        self.queue: VduseQueueDriver | None = None
        self.knows_data = False
        self._avail_index = 0
        self._kick_fd = -1
        self._exists = False
        self._asking = threading.Lock()
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(_ANSWER_SECONDS)
        self._theirs.setblocking(False)  # noqa: FBT003  (its only form)

    # -- the vdpa bus -----------------------------------------------------------------------------------------

    def check_name(self, name: str) -> None:
        """Accept every name."""

    def check_host(self, driver: object) -> None:
        """Have everything that is needed."""

    def create(self, name: str, *, device_id: int, features: int, nr_queues: int, config: bytes) -> None:  # noqa: ARG002
        """Make the device."""
        self._exists = True
        self.features = features & ~bits.RING_PACKED & ~bits.INDIRECT_DESC
        self.config = config

    def open_device(self, name: str) -> int:
        """Open the device."""
        if not self._exists:
            raise FileNotFoundError(name)
        return os.dup(self._theirs.fileno())

    def bind(self, name: str, driver: object) -> Path:  # noqa: ARG002
        """Leave the device to the driver, which sets it up by itself."""
        return Path("/dev") / name

    def node_of(self, name: str) -> None:
        """Have no node for a device that is left behind."""

    def unbind(self, name: str) -> None:  # noqa: ARG002
        """Take the driver away."""
        self.tell(Message.SET_STATUS, bytes([0]))

    def destroy(self, name: str) -> None:
        """Let the device go."""

    # -- ioctls -----------------------------------------------------------------------------------------------

    def ioctl(self, _fd: int, command: int, argument: "bytes | bytearray") -> int:
        """Do one of the ioctls of a device."""
        match command:
            case protocol.DEV_GET_FEATURES:
                argument[:] = self.features.to_bytes(8, "little")  # type: ignore[index]  # this one is to be filled in
            case protocol.VQ_GET_INFO:
                argument[:] = self._queue_info()  # type: ignore[index]  # as above
            case protocol.VQ_SETUP_KICKFD:
                _, self._kick_fd = _KICK.unpack(argument)
            case protocol.VQ_INJECT_IRQ:
                if self.queue is None:
                    raise OSError
                os.eventfd_write(self.queue.call_fd, 1)
            case protocol.IOTLB_GET_FD:
                return self._find(argument)
            case _:
                assert command == protocol.VQ_SETUP
        return 0

    def _queue_info(self) -> bytes:
        if self.queue is None:
            return _QUEUE_INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        areas = (GUEST_BASE + area.offset for area in self.queue.areas)
        return _QUEUE_INFO.pack(0, QUEUE_SIZE, *areas, self._avail_index, 0, 0, 0, 1)

    def _find(self, argument: "bytes | bytearray") -> int:
        """Answer with what lies first in a range: the rings, or the data once a request has named some."""
        _, start, last, _ = _IOTLB_ENTRY.unpack(argument)
        parts = [(0, _DATA_OFFSET)]
        if self.knows_data:
            parts.append((_DATA_OFFSET, _MEMORY_BYTES))
        for begin, end in parts:
            if GUEST_BASE + end > start and GUEST_BASE + begin <= last:
                argument[:] = _IOTLB_ENTRY.pack(begin, GUEST_BASE + begin, GUEST_BASE + end - 1, _READ_WRITE)  # type: ignore[index]  # as above
                return os.dup(self.memory_fd)
        raise OSError

    # -- messages ---------------------------------------------------------------------------------------------

    def tell(self, kind: int, payload: bytes) -> bytes | None:
        """Send a message and wait for its answer; returns what it carries, or None if it has failed."""
        with self._asking:
            self._ours.send(encode_request(kind, 1, payload))
            answer = self._ours.recv(MESSAGE_BYTES)
        number, result = _RESULT.unpack_from(answer)
        assert number == 1
        return answer[_RESULT.size :] if result == RESULT_OK else None

    def kick(self) -> None:
        """Kick the queue."""
        os.eventfd_write(self._kick_fd, 1)

    def fileno(self) -> int:
        """Return a descriptor that hangs up when the device is closed."""
        return self._ours.fileno()

    def set_avail_index(self, answer: bytes) -> None:
        """Keep where the queue goes on, as GET_VQ_STATE has said."""
        (self._avail_index,) = struct.unpack_from("<H", answer, 4)

    def begin(self) -> None:
        """Have a queue begin at its first entry."""
        self._avail_index = 0


class VduseQueueDriver(FrontendQueue):
    """The driver's side of the queue: the device says nothing of a ring that it gives up."""

    def __init__(self, frontend: "VduseDriver") -> None:
        self._driver = frontend
        super().__init__(frontend, 0)  # type: ignore[arg-type]  # it has what a queue needs of a front-end

    def kick(self, *, always: bool = False) -> None:
        """Tell the device, if it wants to be told."""
        if self.ring.needs_kick() or always:
            self._driver.kernel.kick()

    def wait(self, number: int, *, timeout: float | None = None) -> tuple[int, list[bytes]]:
        """Wait for request *number*; see :meth:`FrontendQueue.wait`."""
        deadline = time.monotonic() + (timeout or self._driver.timeout_seconds)
        while True:
            try:
                return super().wait(number, timeout=_LOOK_SECONDS)
            except TimeoutError:
                if not self._driver.is_served():
                    message = "the ring is served no more"
                    raise PeerError(message) from None
                if time.monotonic() > deadline:
                    raise


class VduseDriver:
    """A virtio driver of the kernel, from a reset of the device to the next; what a :class:`FrontendQueue` needs.

    *is_served* says whether the device serves the ring.
    """

    packed = indirect = False
    queue_size = QUEUE_SIZE

    def __init__(self, kernel: VduseKernel) -> None:
        self.kernel = kernel
        self.memory = kernel.memory
        self.features = kernel.features
        self.timeout_seconds: float = _ANSWER_SECONDS
        self.is_served: Callable[[], bool] = lambda: True
        kernel.memory[:_DATA_OFFSET] = bytes(_DATA_OFFSET)
        self.heap = Heap(0, _DATA_OFFSET)
        self.queues: Sequence[VduseQueueDriver] = (VduseQueueDriver(self),)
        self.heap = Heap(_DATA_OFFSET, _MEMORY_BYTES)

    def start(self) -> None:
        """Reset the device and set it up.

        Raises:
            PeerError: it refuses.
        """
        kernel = self.kernel
        kernel.queue, kernel.knows_data = None, False
        self._set_status(0)
        kernel.queue = self.queues[0]
        kernel.begin()
        self._set_status(bits.STATUS_DRIVER_OK)
        kernel.knows_data = True

    def suspend_and_resume(self) -> None:
        """Stop the queue and let it go on where it was."""
        answer = self.kernel.tell(Message.GET_VQ_STATE, bytes(4))
        if answer is None:
            message = "the state of a queue is refused"
            raise PeerError(message)
        self.kernel.set_avail_index(answer)
        self._set_status(bits.STATUS_DRIVER_OK)

    def move_memory(self) -> None:
        """Have the device look for all memory again."""
        if self.kernel.tell(Message.UPDATE_IOTLB, struct.pack("<QQ", 0, (1 << 64) - 1)) is None:
            message = "a move of memory is refused"
            raise PeerError(message)

    def _set_status(self, status: int) -> None:
        if self.kernel.tell(Message.SET_STATUS, bytes([status])) is None:
            message = f"the status {status} is refused"
            raise PeerError(message)

    def config(self) -> bytes:
        """Return the configuration space."""
        return self.kernel.config

    def fileno(self) -> int:
        """Return a descriptor that hangs up when the device is closed."""
        return self.kernel.fileno()

    def close(self) -> None:
        """Reset the device, also if it refuses that, and let the queue go."""
        self.kernel.queue = None
        self.kernel.tell(Message.SET_STATUS, bytes([0]))
        self.queues[0].close()
