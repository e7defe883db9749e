import fcntl
import os
import socket
import threading
from pathlib import Path

import pytest
import trio

from zonefs_emu.daemon.session import Session
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends import vhost_user
from zonefs_emu.front_ends.vhost_user import VhostUserFrontEnd, adopt, listen, make_scsi_host


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listen(path).close()
    assert path.is_socket()
    sock = listen(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    sock.close()


def test_a_socket_that_is_served_is_not(tmp_path: Path) -> None:
    with listen(tmp_path / "socket"), pytest.raises(UsageError, match="another process serves at"):
        listen(tmp_path / "socket")


def test_a_server_that_takes_no_more_connections_is_alive(tmp_path: Path) -> None:
    """Each process that looks for a server leaves a connection in its queue."""
    with listen(tmp_path / "socket"):
        for _ in range(20):
            with pytest.raises(UsageError, match="another process serves at"):
                listen(tmp_path / "socket")


def test_of_two_that_start_at_once_one_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second looks while the first, which has seen that nothing answers, is about to remove the dead socket."""
    path = tmp_path / "socket"
    listen(path).close()
    outcomes: list[socket.socket | UsageError] = []

    def start() -> None:
        try:
            outcomes.append(listen(path))
        except UsageError as error:
            outcomes.append(error)

    others: list[threading.Thread] = []
    unlink = Path.unlink

    def slow_unlink(self: Path, missing_ok: bool = False) -> None:
        if not others:
            other = threading.Thread(target=start)
            others.append(other)
            other.start()
            # Without a lock the other gets to its end here; with one it waits for us.
            other.join(timeout=1)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", slow_unlink)
    start()
    others[0].join()
    servers = [outcome for outcome in outcomes if isinstance(outcome, socket.socket)]
    refusals = [str(outcome) for outcome in outcomes if isinstance(outcome, UsageError)]
    assert refusals == [f"another process serves at {path}"]
    (server,) = servers
    with server, socket.socket(socket.AF_UNIX) as client:
        # Of the other process's probe: it comes first.
        server.settimeout(20)
        server.accept()[0].close()
        client.connect(str(path))
        server.accept()[0].close()


def test_a_lock_that_others_keep_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vhost_user, "_LOCK_S", 0.05)
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="another process is about to serve"):
        listen(tmp_path / "socket")
    os.close(fd)
    listen(tmp_path / "socket").close()


def test_only_the_own_socket_is_removed_at_the_end(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"

    async def serve() -> None:
        device = ZonedDevice.open(image)
        async with trio.open_nursery() as nursery:
            front_end = VhostUserFrontEnd(make_scsi_host, path=path)
            await nursery.start(front_end, Session(device, image))
            path.unlink()
            other = listen(path)
            nursery.cancel_scope.cancel()
        assert path.is_socket()
        other.close()
        device.close()

    trio.run(serve)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is not a socket"):
        listen(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["no/such/directory", "x" * 200])
def test_a_failure_names_the_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=name):
        listen(tmp_path / name)


@pytest.mark.parametrize("listening", [False, True])
def test_sockets_that_others_opened(tmp_path: Path, listening: bool) -> None:
    if listening:
        sock = listen(tmp_path / "socket")
    else:
        sock, other = socket.socketpair()
        other.close()
    os.set_inheritable(sock.fileno(), True)
    adopted, found = adopt(sock.detach())
    assert found is listening
    assert not os.get_inheritable(adopted.fileno())
    adopted.close()


def test_what_is_no_unix_socket_is_refused() -> None:
    reader, writer = os.pipe()
    for fd in (reader, 1 << 20):
        with pytest.raises(UsageError, match="is not a Unix socket"):
            adopt(fd)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_of_a_manager_that_is_no_stream_is_refused(kind: socket.SocketKind) -> None:
    sock, peer = socket.socketpair(socket.AF_UNIX, kind)
    with peer, pytest.raises(UsageError, match="vhost-user needs a stream"):
        adopt(sock.detach())


def test_a_socket_of_a_manager_that_is_not_connected_is_refused() -> None:
    with pytest.raises(UsageError, match="neither listens nor is connected"):
        adopt(socket.socket(socket.AF_UNIX).detach())
