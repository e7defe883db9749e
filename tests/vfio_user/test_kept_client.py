"""A client that a keeper has, served by one device after the other in this process, and keepers in processes."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.at_rest import assert_at_rest, threads_of, used_ns
from tests.nvme.conftest import BLOCK, ZONE, on_a_thread
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import PeerError, UsageError
from zonefs_emu.front_ends.vhost_user import listen
from zonefs_emu.nvme.controller import Register
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.testing.vfio_client import NvmeGuest, VfioClient
from zonefs_emu.vfio_user.keeper_link import LinkKind, LinkMessage
from zonefs_emu.vfio_user.kept_client import KeptClient
from zonefs_emu.vfio_user.vfio_messages import VfioCommand
from zonefs_emu.vfio_user.vfio_server import VfioServer


@pytest.fixture
def places() -> Iterator[Path]:
    """A directory for sockets, whose paths have at most 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="vfio-"))
    yield directory
    shutil.rmtree(directory)


def find(device: ZonedDevice, places: Path, serial: str = "") -> KeptClient | None:
    return KeptClient.find(places / "keeper", Subsystem([device], serial=serial), device.unforeseen)


@contextmanager
def served(device: ZonedDevice, places: Path) -> Iterator[VfioServer]:
    def start(sock: socket.socket, end_fd: int) -> KeptClient:
        return KeptClient.start(sock, places / "keeper", Subsystem([device]), device.unforeseen, end_fd)

    server = VfioServer(listen(places / "socket"), start, device.unforeseen, find(device, places))
    with on_a_thread(server):
        yield server
    (places / "socket").unlink()


def vanish(client: KeptClient) -> None:
    """End as a process that is killed: without a word to the keeper."""
    client._link.close()
    client._doorbells.close()
    client.drive.close()
    for fd in (client._wakes, *client._interrupts):
        if fd >= 0:
            os.close(fd)


def test_one_client_after_the_other(device: ZonedDevice, places: Path) -> None:
    with served(device, places):
        for number in range(2):
            with VfioClient(places / "socket") as client:
                queue = NvmeGuest(client).queue(1)
                assert queue.append(1, 0, bytes(BLOCK), BLOCK).result == number
                client.unmap()
                client.map()
                client.reset()
                guest = NvmeGuest(client)
                assert guest.identify(1).status == 0


@pytest.mark.parametrize("has_shadow", [False, True])
def test_an_idle_guest_costs_neither_process_anything(device: ZonedDevice, places: Path, *, has_shadow: bool) -> None:
    others = threads_of()
    with served(device, places) as server, VfioClient(places / "socket") as client:
        guest = NvmeGuest(client)
        queue = guest.queue(1)
        if has_shadow:
            guest.set_shadow([queue])
        for _ in range(3):
            assert not queue.read(1, 0, 1, BLOCK).status
        kept = server._client
        assert isinstance(kept, KeptClient)
        assert kept._process is not None
        assert_at_rest({*threads_of() - others, *threads_of(kept._process.pid)})


def test_the_keeper_sleeps_while_a_guest_reads_and_writes(device: ZonedDevice, places: Path) -> None:
    with served(device, places) as server, VfioClient(places / "socket") as client:
        queue = NvmeGuest(client).queue(1)
        kept = server._client
        assert isinstance(kept, KeptClient)
        assert kept._process is not None
        assert not queue.read(1, 0, 1, BLOCK).status
        assert_at_rest(threads_of(kept._process.pid))
        before = used_ns(threads_of(kept._process.pid))
        for _ in range(50):
            assert not queue.read(1, 0, 1, BLOCK).status
        assert used_ns(threads_of(kept._process.pid)) == before
        assert queue.nr_rings >= 100


def test_a_guest_goes_on_with_another_daemon(device: ZonedDevice, places: Path) -> None:
    """It resets its controller, its device and its memory while no daemon is there, and finds one of another state."""
    ours, theirs = socket.socketpair()
    kept = KeptClient.start(theirs, places / "keeper", Subsystem([device]), device.unforeseen)
    process = kept._process
    vanish(kept)
    client = VfioClient(ours, handshake=True)
    with pytest.raises(UsageError, match=r"a guest waits for the drive .* another name"):
        find(device, places, serial="another")
    kept_again = find(device, places)
    assert kept_again is not None
    kept_again.close()
    assert client.is_ended()
    client.close()
    assert process is not None
    assert process.wait(30) == 0
    assert find(device, places) is None


def test_a_keeper_that_ends_late_leaves_the_next_one_alone(device: ZonedDevice, places: Path) -> None:
    ours, theirs = socket.socketpair()
    kept = KeptClient.start(theirs, places / "keeper", Subsystem([device]), device.unforeseen)
    process = kept._process
    assert process is not None
    vanish(kept)
    adopted = find(device, places)
    assert adopted is not None
    os.kill(process.pid, signal.SIGSTOP)
    adopted.close()
    others, theirs = socket.socketpair()
    following = KeptClient.start(theirs, places / "keeper", Subsystem([device]), device.unforeseen)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(30) == 0
    assert (places / "keeper").is_socket()
    following.close()
    assert not (places / "keeper").exists()
    ours.close()
    others.close()


def test_a_guest_that_cuts_its_memory_while_no_daemon_is_there(device: ZonedDevice, places: Path) -> None:
    ours, theirs = socket.socketpair()
    kept = KeptClient.start(theirs, places / "keeper", Subsystem([device]), device.unforeseen)
    process = kept._process
    assert process is not None
    vanish(kept)
    client = VfioClient(ours, handshake=True)
    os.ftruncate(client._fd, 4096)
    assert find(device, places) is None
    assert client.is_ended()
    client.close()
    assert process.wait(30) == 0


def test_a_reset_while_no_daemon_is_there(device: ZonedDevice, places: Path) -> None:
    with served(device, places) as server:
        client = VfioClient(places / "socket")
        queue = NvmeGuest(client).queue(1)
        assert not queue.append(1, ZONE, bytes(BLOCK), BLOCK).status
        kept = server._client
        assert isinstance(kept, KeptClient)
        kept.close = lambda: vanish(kept)  # type: ignore[method-assign]
    client.set_register(Register.CC, 0)
    client.view(queue.sq, 64)[:] = bytes(range(64))  # what is no queue any more may be anything
    with served(device, places):
        admin = NvmeGuest(client)
        assert admin.queue(1).append(1, ZONE, bytes(BLOCK), BLOCK).result == ZONE + 1
        client.close()
    assert kept._process is not None
    kept._process.wait(30)


def test_no_controller_is_ready_that_was_reset_while_no_daemon_was_there(device: ZonedDevice, places: Path) -> None:
    """A guest that saw it ready would ring a doorbell, which is set to zero when its queues are made."""
    with served(device, places) as server:
        client = VfioClient(places / "socket")
        guest = NvmeGuest(client)
        kept = server._client
        assert isinstance(kept, KeptClient)
        kept.close = lambda: vanish(kept)  # type: ignore[method-assign]
    client.reset()
    client.set_register(Register.CC, 0x460061)
    assert client.register(Register.CC) == 0x460061
    adopted = find(device, places)
    assert adopted is not None
    assert client.register(Register.CSTS) == 0, "no daemon has served it yet"
    vanish(adopted)
    with served(device, places):
        client.reset()
        guest.disable()
        guest.enable()
        assert guest.identify(1).status == 0
        client.close()
    assert kept._process is not None
    kept._process.wait(30)


def test_a_keeper_that_is_killed_ends_the_client_only(device: ZonedDevice, places: Path) -> None:
    with served(device, places) as server:
        with VfioClient(places / "socket") as client:
            NvmeGuest(client)
            kept = server._client
            assert isinstance(kept, KeptClient)
            assert kept._process is not None
            os.kill(kept._process.pid, signal.SIGKILL)
            assert client.is_ended()
        with VfioClient(places / "socket") as client:
            assert NvmeGuest(client).identify(1).status == 0


def test_a_host_that_starts_no_keeper(
    device: ZonedDevice, places: Path, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    expect_warning("no keeper can be started for a client: .*too busy")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(11, "too busy")

    with served(device, places):
        with monkeypatch.context() as patch:
            patch.setattr("subprocess.Popen", refuse)
            for _ in range(40):  # as often as a client likes
                with VfioClient(places / "socket", handshake=False) as client:
                    assert client.is_ended()
        assert len(caplog.records) < 20, "the log does not fill the disk"
        with VfioClient(places / "socket") as client:
            assert NvmeGuest(client).identify(1).status == 0


def test_a_keeper_that_ends_at_once(device: ZonedDevice, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(PeerError):
        KeptClient.start(theirs, places / "keeper", Subsystem([device]), device.unforeseen)
    ours.close()


@pytest.mark.parametrize("is_taken_over", [False, True])
def test_a_connection_ends_although_a_copy_of_its_socket_is_left(
    device: ZonedDevice, places: Path, monkeypatch: pytest.MonkeyPatch, *, is_taken_over: bool
) -> None:
    """A daemon that loses a descriptor to an exception keeps a copy of the socket for good."""
    ours, theirs = socket.socketpair()
    start = partial(KeptClient.start, theirs, places / "keeper", Subsystem([device]), device.unforeseen)
    with ours, theirs.dup():
        if is_taken_over:
            start().close()
        else:
            monkeypatch.setattr("zonefs_emu.vfio_user.kept_client.DriveRecord", lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                start()
        ours.settimeout(30)
        assert ours.recv(1) == b""


def test_a_server_ends_while_a_new_keeper_is_stopped(
    device: ZonedDevice, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[subprocess.Popen[bytes]] = []

    class Stopped(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            self.send_signal(signal.SIGSTOP)
            made.append(self)

    monkeypatch.setattr("subprocess.Popen", Stopped)
    with served(device, places), VfioClient(places / "socket", handshake=False):
        while not made:
            time.sleep(0.01)
    assert made[0].poll() == -signal.SIGKILL


def test_a_bug_of_the_keeper_is_reported(
    device: ZonedDevice, places: Path, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("internal error in nvme, a connection: RuntimeError: the keeper has met a bug: in line 1")
    with served(device, places) as server, VfioClient(places / "socket") as client:
        NvmeGuest(client)
        kept = server._client
        assert isinstance(kept, KeptClient)
        told = LinkMessage(LinkKind.FAILED, text="in line 1")
        kept._link.receive = lambda: told  # type: ignore[method-assign]
        client.send(VfioCommand.DEVICE_RESET)
        assert client.is_ended()
