"""A target that serves a device in a thread of this process."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.nvme.conftest import new_device, on_a_thread
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.nvme_tcp.host_keys import OPEN, Access
from zonefs_emu.nvme_tcp.server import NvmeTcpServer, listen
from zonefs_emu.testing.nvme_initiator import NvmeHost, NvmeQueue

#: For tests that make TLS connections: Python's ssl module has pre-shared keys from 3.13 on.
needs_tls = pytest.mark.skipif(sys.version_info < (3, 13), reason="Python before 3.13 has no TLS with pre-shared keys")


class Target:
    """A served device, and where."""

    def __init__(self, device: ZonedDevice, server: NvmeTcpServer, port: int) -> None:
        self.device = device
        self.server = server
        self.port = port
        self.nqn = server.subsystem.nqn

    def host(self, **options: object) -> NvmeHost:
        return NvmeHost("127.0.0.1", self.port, self.nqn, **options)  # type: ignore[arg-type]  # a table of arguments

    def queue(self, **options: object) -> NvmeQueue:
        return NvmeQueue("127.0.0.1", self.port, **options)  # type: ignore[arg-type]  # as above

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@contextmanager
def serving(device: ZonedDevice, *, access: Access = OPEN) -> Iterator[Target]:
    sockets = listen("127.0.0.1", 0)
    server = NvmeTcpServer(Subsystem([device]), sockets, device.unforeseen, access=access)
    with on_a_thread(server):
        yield Target(device, server, sockets[0].getsockname()[1])


@pytest.fixture
def device(tmp_path: Path) -> Iterator[ZonedDevice]:
    with new_device(tmp_path) as device:
        yield device


@pytest.fixture
def target(device: ZonedDevice) -> Iterator[Target]:
    with serving(device) as target:
        yield target
