"""A drive that is served in a thread of this process, and a client with a guest's driver."""

import select
import shutil
import socket
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.nvme.conftest import new_device, on_a_thread
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import PeerError
from zonefs_emu.front_ends.vhost_user import listen
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.testing.vfio_client import NvmeGuest, VfioClient
from zonefs_emu.vfio_user.client_connection import ClientConnection
from zonefs_emu.vfio_user.drive_memory import MEMORY_BYTES, DriveMemory
from zonefs_emu.vfio_user.drive_record import RECORD_BYTES, DriveRecord
from zonefs_emu.vfio_user.pci_drive import PciDrive
from zonefs_emu.vfio_user.pci_function import PciFunction
from zonefs_emu.vfio_user.vfio_server import VfioServer
from zonefs_emu.virtqueue.peer_memory import LOST


class LocalClient:
    """A client whose function is in this process: what a keeper and its daemon are together, without a process more."""

    def __init__(self, sock: socket.socket, device: ZonedDevice) -> None:
        memory = DriveMemory(bytearray(MEMORY_BYTES))
        self.drive = PciDrive(Subsystem([device]), memory, DriveRecord(bytearray(RECORD_BYTES)), device.unforeseen)
        self.drive.start()
        self.function = PciFunction(self.drive, memory)
        self.connection = ClientConnection(sock)

    def watch(self, poller: select.epoll) -> None:
        for fd in (self.connection.fileno(), *self.drive.wake_fds):
            poller.register(fd, select.EPOLLIN)

    def step(self, ready: Container[int]) -> bool:
        for _ in range(64):
            message = self.connection.receive()
            if message is None:
                break
            reply = self.function.handle(message)
            if reply is not None:
                self.connection.send_bytes(reply)
        is_busy = self.drive.serve(ready)
        if self.drive.has_lost_memory:
            raise PeerError(LOST)
        return is_busy

    def close(self) -> None:
        self.connection.close()
        self.function.close()
        self.drive.close()


class Served:
    """A served device, and where."""

    def __init__(self, device: ZonedDevice, server: VfioServer, path: Path) -> None:
        self.device = device
        self.server = server
        self.path = path

    @contextmanager
    def guest(self) -> Iterator[NvmeGuest]:
        with VfioClient(self.path) as client:
            yield NvmeGuest(client)


@contextmanager
def serving(device: ZonedDevice) -> Iterator[Served]:
    # A socket's path has at most 107 bytes, and a test's directory may be longer than that.
    directory = Path(tempfile.mkdtemp(prefix="vfio-"))
    server = VfioServer(listen(directory / "socket"), lambda sock, _: LocalClient(sock, device), device.unforeseen)
    try:
        with on_a_thread(server):
            yield Served(device, server, directory / "socket")
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[ZonedDevice]:
    with new_device(tmp_path) as device:
        yield device


@pytest.fixture
def served(device: ZonedDevice) -> Iterator[Served]:
    with serving(device) as served:
        yield served


@pytest.fixture
def guest(served: Served) -> Iterator[NvmeGuest]:
    with served.guest() as guest:
        yield guest
