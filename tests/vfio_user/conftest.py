"""A drive that is served in a thread of this process, and a client with a guest's driver."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.nvme.conftest import new_device, on_a_thread
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.front_ends.vhost_user import listen
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.testing.vfio_client import NvmeGuest, VfioClient
from zonefs_emu.vfio_user.vfio_server import VfioServer


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
    server = VfioServer(Subsystem([device]), listen(directory / "socket"), device.unforeseen)
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
