"""A drive with an initiator of ours in place of the kernel."""

import socket
from pathlib import Path

import pytest

from tests.nvme.conftest import BLOCK, UUID_1
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.nvme.subsystem import nqn_of
from zonefs_emu.nvme_tcp import attached_drive, kernel_host
from zonefs_emu.nvme_tcp.attached_drive import AttachedDrive, left_behind
from zonefs_emu.nvme_tcp.kernel_host import Credentials, KernelController
from zonefs_emu.nvme_tcp.server import NvmeTcpServer
from zonefs_emu.testing.nvme_initiator import AuthenticationError, HostKeys, NvmeHost

NODE = Path("/dev/nvme9n1")


class Kernel:
    """Connects as the kernel does, and remembers its controller when the target is gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host: NvmeHost | None = None
        self.controllers: list[KernelController] = []
        for name in ("connect", "connected", "wait_for_disk", "disconnect", "disk"):
            monkeypatch.setattr(kernel_host, name, getattr(self, name))
        monkeypatch.setattr(attached_drive, "_PORTS", [0])  # also for a user who is not root

    def connect(self, nqn: str, port: int, credentials: Credentials, *, nr_queues: int) -> KernelController:
        self.reach(nqn, port, credentials)
        self.controllers.append(KernelController(name="nvme9", port=port, credentials=credentials))
        return self.controllers[0]

    def reach(self, nqn: str, port: int, credentials: Credentials) -> None:
        keys = HostKeys(credentials.host_key, credentials.controller_key)
        self.host = NvmeHost("127.0.0.1", port, nqn, host_nqn=credentials.host_nqn, keys=keys)

    def connected(self, _nqn: str) -> list[KernelController]:
        return self.controllers

    def disk(self, _nqn: str, _uuid: str) -> Path | None:
        return NODE if self.controllers else None

    def wait_for_disk(self, controller: KernelController, nqn: str, _uuid: str) -> Path:
        if self.host is None:
            self.reach(nqn, controller.port, controller.credentials)
        return NODE

    def disconnect(self, _controller: KernelController) -> None:
        assert self.host is not None
        self.host.queue(2).flush(1)  # the target still answers
        self.die()
        self.controllers.clear()

    def die(self) -> None:
        assert self.host is not None
        self.host.close()
        self.host = None


def drive(device: ZonedDevice) -> AttachedDrive:
    return AttachedDrive(device, nr_queues=1, ended=lambda: None)


def test_the_kernel_and_no_other_host_connects(device: ZonedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    attached = drive(device)
    assert attached.start() == NODE
    assert kernel.host is not None
    assert kernel.host.queue(1).write(1, 0, bytes(BLOCK), BLOCK).status == 0
    with pytest.raises(AuthenticationError):
        NvmeHost("127.0.0.1", attached._port, nqn_of(UUID_1), host_nqn=kernel.controllers[0].credentials.host_nqn)
    attached.stop()
    assert kernel.controllers == []
    assert device.machine.zone(0).wp == BLOCK // 512
    assert attached.failure is None


def test_what_a_killed_process_left_goes_on_with_its_keys(device: ZonedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    assert left_behind(str(UUID_1)) == []
    first = drive(device)
    first.start()
    kernel.die()
    first._server.stop()
    first._thread.join()
    assert left_behind(str(UUID_1)) == [str(NODE)]
    second = drive(device)
    assert second._port == first._port
    assert second.start() == NODE
    assert second.statistics()["hosts"] == 1
    second.stop()
    assert left_behind(str(UUID_1)) == []


def test_a_kernel_that_does_not_connect_leaves_nothing(device: ZonedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch)

    def refuse(*_: object, **__: object) -> None:
        message = "the kernel does not connect"
        raise UsageError(message)

    monkeypatch.setattr(kernel_host, "connect", refuse)
    attached = drive(device)
    with pytest.raises(UsageError, match="the kernel does not connect"):
        attached.start()
    assert not attached._thread.is_alive()


def test_only_root_can_listen_where_a_killed_process_did(device: ZonedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_host, "connected", lambda _: [])
    tried: list[int] = []

    def listen(address: str, port: int) -> list[socket.socket]:
        tried.append(port)
        message = f"{address} is taken"
        raise UsageError(message)

    monkeypatch.setattr(attached_drive, "listen", listen)
    with pytest.raises(UsageError, match=r"127.0.0.1 is taken"):
        drive(device)
    assert len(set(tried)) > 1
    assert 0 < min(tried) < max(tried) < 1024
    for port in tried:
        with pytest.raises(OSError, match="not found"):
            socket.getservbyport(port, "tcp")


def test_a_server_that_fails_ends_the_front_end(device: ZonedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    ended: list[bool] = []

    class Server(NvmeTcpServer):
        def run(self) -> None:
            super().run()
            raise ZeroDivisionError

    monkeypatch.setattr(attached_drive, "NvmeTcpServer", Server)
    attached = AttachedDrive(device, nr_queues=1, ended=lambda: ended.append(True))
    attached.start()
    attached._server.stop()
    attached._thread.join()
    kernel.die()
    assert ended == [True]
    assert isinstance(attached.failure, ZeroDivisionError)
