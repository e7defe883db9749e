import os
import socket
from pathlib import Path

import pytest

from zonefs_emu.daemon.vhost_user import adopt, listen
from zonefs_emu.errors import UsageError


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


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is no socket"):
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
        with pytest.raises(UsageError, match="is no Unix socket"):
            adopt(fd)
    os.close(reader)
    os.close(writer)
