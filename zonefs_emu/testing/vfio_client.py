"""A client of vfio-user with an NVMe driver, in Python: it plays the part of QEMU and of a guest's kernel.

    with VfioClient(path) as client:
        guest = NvmeGuest(client)
        queue = guest.queue(1)
        assert queue.write(1, slba=0, data=bytes(4096), block_bytes=4096).status == 0

It trusts the server: a violation of the protocol raises an exception.
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
from typing import Final, Self

from zonefs_emu.nvme.command import AdminOpcode, Command, encode
from zonefs_emu.nvme.controller import Feature, Register
from zonefs_emu.testing.nvme_initiator import AdminCommands, IoCommands, Reply
from zonefs_emu.vfio_user import vfio_messages as messages
from zonefs_emu.vfio_user.pci_config import NR_VECTORS, InterruptKind
from zonefs_emu.vfio_user.vfio_messages import (
    FDS_MAX,
    HEADER,
    DmaMapRequest,
    DmaUnmapRequest,
    IrqSetFlag,
    IrqSetRequest,
    MessageFlag,
    RegionAccess,
    VfioCommand,
)

MEMORY_BYTES: Final = 16 << 20
#: Where the memory of the guest begins, and behind it a gap.
MEMORY_START: Final = 0x10000
_PAGE: Final = 4096
_DOORBELLS: Final = 0x1000
_ENABLE: Final = 0x460061
_AQA: Final = 0x24
_ASQ: Final = 0x28
_ACQ: Final = 0x30
_CONFIG: Final = 7
_TIMEOUT_S: Final = 30


class VfioError(Exception):
    """The server has answered with an error number."""


class VfioClient:
    """One connection: messages, memory, registers."""

    def __init__(
        self, path: Path | socket.socket, *, handshake: bool = True, interrupts: InterruptKind = InterruptKind.MSIX
    ) -> None:
        """Connect to *path*, or take over a connection; with *handshake*, do what QEMU does at its start."""
        self._kind = interrupts
        self.sock = path if isinstance(path, socket.socket) else socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._next_id = 0
        self._fd = os.memfd_create("guest")
        os.ftruncate(self._fd, MEMORY_BYTES)
        self._mmap = mmap.mmap(self._fd, MEMORY_BYTES)
        self.memory = memoryview(self._mmap)
        self._free = 0
        self.interrupts = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(NR_VECTORS)]
        try:
            if self.sock is not path:
                # Blocking, as QEMU does it: with a timeout, a queue that is full just now would be an error.
                self.sock.connect(str(path))
            self.sock.settimeout(_TIMEOUT_S)
            if handshake:
                self.call(VfioCommand.VERSION, struct.pack("<HH", 0, 0) + b'{"capabilities":{}}\0')
                self.map()
                self.set_interrupts()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection without a message, as a killed QEMU does."""
        self.sock.close()
        for fd in (self._fd, *self.interrupts):
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- messages -------------------------------------------------------------------------------------------------

    def send(self, command: int, payload: bytes = b"", *, fds: Sequence[int] = (), flags: MessageFlag | int = 0) -> int:
        """Send a message with *fds* beside it; returns its number."""
        self._next_id = (self._next_id + 1) & 0xFFFF
        data = HEADER.pack(self._next_id, command, HEADER.size + len(payload), flags, 0) + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], ancillary)
        return self._next_id

    def receive(self) -> tuple[int, int, bytes]:
        """Return number, error number and payload of the next answer.

        Raises:
            ConnectionError: the server has ended the connection.
        """
        number, _, size, flags, error = HEADER.unpack(self._read(HEADER.size))
        assert flags & MessageFlag.REPLY
        return number, error if flags & MessageFlag.ERROR else 0, self._read(size - HEADER.size)

    def is_ended(self) -> bool:
        """Wait until the server ends the connection; False if it sends something instead."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True  # it had not read all that was sent

    def is_left(self) -> bool:
        """Say whether the server has ended the connection."""
        poll = select.poll()
        poll.register(self.sock, select.POLLHUP)
        return bool(poll.poll(0))

    def _read(self, nr_bytes: int) -> bytes:
        data = b""
        while len(data) < nr_bytes:
            part = self.sock.recv(nr_bytes - len(data))
            if not part:
                raise ConnectionError("the server has closed the connection")
            data += part
        return data

    def call(self, command: int, payload: bytes = b"", *, fds: Sequence[int] = ()) -> bytes:
        """Send a message and return the payload of its answer.

        Raises:
            VfioError: the server refuses it.
        """
        number = self.send(command, payload, fds=fds)
        answered, error, answer = self.receive()
        assert answered == number
        if error:
            raise VfioError(os.strerror(error))
        return answer

    # -- memory and interrupts ------------------------------------------------------------------------------------

    def map(self, *, iova: int = MEMORY_START, size: int = MEMORY_BYTES, offset: int = 0) -> None:
        """Let the server use *size* bytes of the guest's memory at *iova*."""
        request = DmaMapRequest(3, offset, iova, size)
        self.call(VfioCommand.DMA_MAP, messages.encode_dma_map(request), fds=[self._fd])

    def unmap(self, *, iova: int = MEMORY_START, size: int = MEMORY_BYTES) -> None:
        """Take memory away from the server."""
        request = DmaUnmapRequest(24, 0, iova, size)
        self.call(VfioCommand.DMA_UNMAP, messages.encode_dma_unmap(request))

    def set_interrupts(self, *, enabled: bool = True) -> None:
        """Have interrupts signalled, or not."""
        if enabled:
            flags = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER
            for start in range(0, len(self.interrupts), FDS_MAX):
                fds = self.interrupts[start : start + FDS_MAX]
                request = IrqSetRequest(flags, self._kind, start, len(fds))
                self.call(VfioCommand.DEVICE_SET_IRQS, messages.encode_irq_set(request), fds=fds)
        else:
            request = IrqSetRequest(IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER, self._kind, 0, 0)
            self.call(VfioCommand.DEVICE_SET_IRQS, messages.encode_irq_set(request))

    def take_interrupt(self, vector: int, timeout_s: float = _TIMEOUT_S) -> bool:
        """Wait for an interrupt; False if there was none in time."""
        poller = select.poll()
        poller.register(self.interrupts[vector], select.POLLIN)
        if not poller.poll(int(timeout_s * 1000)):
            return False
        os.eventfd_read(self.interrupts[vector])
        return True

    def allocate(self, nr_pages: int) -> int:
        """Return the guest address of *nr_pages* pages of memory, zero."""
        at = self._free
        self._free += nr_pages * _PAGE
        if self._free > MEMORY_BYTES:
            raise MemoryError
        return MEMORY_START + at

    def view(self, address: int, nr_bytes: int) -> memoryview:
        """Return the memory at guest *address*."""
        return self.memory[address - MEMORY_START : address - MEMORY_START + nr_bytes]

    # -- regions --------------------------------------------------------------------------------------------------

    def read_region(self, region: int, offset: int, count: int) -> bytes:
        """Read *count* bytes of *region*."""
        answer = self.call(VfioCommand.REGION_READ, messages.encode_region_access(RegionAccess(offset, region, count)))
        return answer[16:]

    def write_region(self, region: int, offset: int, data: bytes, *, posted: bool = True) -> None:
        """Write *data*; *posted*, as QEMU does it: without an answer."""
        payload = messages.encode_region_access(RegionAccess(offset, region, len(data)), data)
        if posted:
            self.send(VfioCommand.REGION_WRITE, payload, flags=MessageFlag.NO_REPLY)
        else:
            self.call(VfioCommand.REGION_WRITE, payload)

    def register(self, offset: int, nr_bytes: int = 4) -> int:
        """Read a register."""
        return int.from_bytes(self.read_region(0, offset, nr_bytes), "little")

    def set_register(self, offset: int, value: int, nr_bytes: int = 4) -> None:
        """Write a register."""
        self.write_region(0, offset, value.to_bytes(nr_bytes, "little"))

    def config(self, offset: int, nr_bytes: int) -> int:
        """Read configuration space."""
        return int.from_bytes(self.read_region(_CONFIG, offset, nr_bytes), "little")

    def reset(self) -> None:
        """Reset the device."""
        self.call(VfioCommand.DEVICE_RESET)


class PciQueue(IoCommands):
    """A submission and a completion queue of one number."""

    def __init__(self, client: VfioClient, number: int, size: int) -> None:
        self.client = client
        self.number = number
        self.size = size
        self.sq = client.allocate(-(-size * 64 // _PAGE))
        self.cq = client.allocate(-(-size * 16 // _PAGE))
        #: Room for the data of a command, and for the list of its pages.
        self.data = client.allocate(130)
        self.pages = client.allocate(1)
        self.tail = self.head = 0
        self.phase = 1
        self.cid = 0
        #: Doorbells in memory, and where the server says whether they are to be rung; None: always.
        self.shadow: tuple[memoryview, memoryview] | None = None
        self.nr_rings = 0

    def entry(
        self, opcode: int, *, nsid: int = 0, cdws: Sequence[int] = (), nr_bytes: int = 0, offset: int = 0
    ) -> Command:
        """Return a command whose data are *nr_bytes* at *offset* of the queue's room."""
        self.cid = (self.cid + 1) & 0xFFFF
        prp1, prp2 = self.data + offset, 0
        pages = range(self.data + _PAGE, self.data + offset + nr_bytes, _PAGE)
        if len(pages) == 1:
            prp2 = pages[0]
        elif pages:
            prp2 = self.pages
            self.client.view(prp2, 8 * len(pages))[:] = struct.pack(f"<{len(pages)}Q", *pages)
        return Command(opcode, 0, self.cid, nsid, 0, prp1, prp2, *[*cdws, 0, 0, 0, 0, 0, 0][:6])

    def push(self, command: Command, *, ring: bool = True) -> None:
        """Store *command*, and ring the doorbell."""
        self.client.view(self.sq + 64 * self.tail, 64)[:] = encode(command)
        self.tail = (self.tail + 1) % self.size
        if ring:
            self.ring(2 * self.number, self.tail)

    def ring(self, index: int, value: int) -> None:
        """Ring doorbell *index* with *value*, unless the server looks into memory by itself."""
        if self.shadow is not None:
            doorbells, event_index = self.shadow
            old, doorbells[index] = doorbells[index], value
            if (value - event_index[index] - 1) & 0xFFFF >= (value - old) & 0xFFFF:
                return
        self.nr_rings += 1
        self.client.set_register(_DOORBELLS + 4 * index, value)

    def take(self) -> Reply | None:
        """Return the next completion, or None if there is none."""
        result, sq_head, number, cid, status = struct.unpack("<QHHHH", self.client.view(self.cq + 16 * self.head, 16))
        if status & 1 != self.phase:
            return None
        assert number == self.number
        self.head += 1
        if self.head == self.size:
            self.head, self.phase = 0, self.phase ^ 1
        self.ring(2 * self.number + 1, self.head)
        return Reply(cid, status >> 1 & 0x7FF, result, b"", bool(status >> 15), sq_head)

    def wait(self) -> Reply:
        """Wait for the next completion.

        Raises:
            TimeoutError: there is none. ConnectionError: the server has ended the connection, and there is none.
        """
        deadline = time.monotonic() + _TIMEOUT_S
        while (reply := self.take()) is None:
            if self.client.take_interrupt(self.number, 0.1):
                continue
            if self.client.is_left():
                raise ConnectionResetError
            if time.monotonic() > deadline:
                raise TimeoutError
        return reply

    def call(
        self, opcode: int, *, nsid: int = 0, cdws: Sequence[int] = (), data: bytes = b"", room: int = 0, offset: int = 0
    ) -> Reply:
        """Send a command with *data*, or with *room* for its answer, and return its completion."""
        room = max(room, len(data))
        view = self.client.view(self.data + offset, room)
        view[: len(data)] = data
        command = self.entry(opcode, nsid=nsid, cdws=cdws, nr_bytes=room, offset=offset)
        self.push(command)
        reply = self.wait()
        assert reply.cid == command.cid
        return reply._replace(data=bytes(view) if room and not data and not reply.status else b"")


class NvmeGuest(AdminCommands):
    """A guest's driver: it enables the controller, as Linux does it, and creates queues."""

    def __init__(self, client: VfioClient, *, size: int = 32) -> None:
        self.client = client
        self.admin = PciQueue(client, 0, size)
        self._shadow: tuple[memoryview, memoryview] | None = None
        self.enable()

    def enable(self, cc: int = _ENABLE) -> None:
        """Set up the admin queues and wait until the controller is ready."""
        client, admin = self.client, self.admin
        client.set_register(_AQA, (admin.size - 1) << 16 | admin.size - 1)
        client.set_register(_ASQ, admin.sq, 8)
        client.set_register(_ACQ, admin.cq, 8)
        client.set_register(Register.CC, cc)
        self.wait_for(Register.CSTS, 1, 1)

    def disable(self) -> None:
        """Reset the controller, and forget what was in its admin queues."""
        self.client.set_register(Register.CC, 0)
        self.wait_for(Register.CSTS, 1, 0)
        admin = self.admin
        admin.tail = admin.head = 0
        admin.phase = 1
        admin.client.view(admin.cq, 16 * admin.size)[:] = bytes(16 * admin.size)

    def wait_for(self, register: int, mask: int, value: int) -> int:
        """Wait until *register* is *value* where *mask* is; returns all of it."""
        deadline = time.monotonic() + _TIMEOUT_S
        while (found := self.client.register(register)) & mask != value:
            if time.monotonic() > deadline:
                message = f"register {register:#x} is {found:#x}"
                raise TimeoutError(message)
        return found

    def ask(self, opcode: int, *, nsid: int = 0, cdws: Sequence[int] = (), data: bytes = b"", room: int = 0) -> Reply:
        """Send an admin command and return its completion."""
        return self.admin.call(opcode, nsid=nsid, cdws=cdws, data=data, room=room)

    def create(self, opcode: AdminOpcode, number: int, size: int, address: int, cdw11: int) -> Reply:
        """Create a queue of *size* entries at *address*."""
        admin = self.admin
        admin.push(admin.entry(opcode, cdws=(number | (size - 1) << 16, cdw11))._replace(prp1=address))
        return admin.wait()

    def queue(self, number: int, size: int = 64) -> PciQueue:
        """Create I/O queue *number*: a completion queue with an interrupt of its number, and a submission queue.

        Raises:
            ConnectionError: the drive refuses.
        """
        answers = [self.ask(AdminOpcode.SET_FEATURES, cdws=(Feature.NR_QUEUES, 15 | 15 << 16))]
        queue = PciQueue(self.client, number, size)
        answers.append(self.create(AdminOpcode.CREATE_CQ, number, size, queue.cq, number << 16 | 0b11))
        answers.append(self.create(AdminOpcode.CREATE_SQ, number, size, queue.sq, number << 16 | 1))
        refused = [f"{reply.status:03X}h" for reply in answers if reply.status]
        if refused:
            message = f"no queue, because the drive answers {refused[0]}"
            raise ConnectionError(message)
        queue.shadow = self._shadow
        return queue

    def set_shadow(self, queues: Sequence[PciQueue] = ()) -> Reply:
        """Have the doorbells of *queues*, and of those to come, in memory."""
        addresses = self.client.allocate(1), self.client.allocate(1)
        admin = self.admin
        admin.push(admin.entry(AdminOpcode.DOORBELL_BUFFER)._replace(prp1=addresses[0], prp2=addresses[1]))
        reply = admin.wait()
        if not reply.status:
            doorbells, event_index = (self.client.view(address, _PAGE).cast("I") for address in addresses)
            self._shadow = doorbells, event_index
            for queue in queues:
                queue.shadow = self._shadow
        return reply
