import array
import os
import socket
from collections.abc import Iterator

import pytest

from zonefs_emu.errors import PeerError
from zonefs_emu.vhost_user.connection import Connection
from zonefs_emu.vhost_user.messages import FLAG_REPLY, Nothing, Number, Request, encode_header


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    yield connection, theirs
    connection.close()
    theirs.close()


def send(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def test_a_message_in_single_bytes(pair: tuple[Connection, socket.socket]) -> None:
    connection, sock = pair
    data = encode_header(Request.SET_FEATURES, 0, 8) + bytes(range(8))
    for index in range(len(data)):
        assert connection.receive() is None
        sock.send(data[index : index + 1])
    message = connection.receive()
    assert message is not None
    assert (message.request, message.data, message.fds) == (Request.SET_FEATURES, bytes(range(8)), [])
    assert connection.receive() is None


def test_descriptors_stay_with_their_message(pair: tuple[Connection, socket.socket]) -> None:
    connection, sock = pair
    reader, writer = os.pipe()
    send(sock, encode_header(Request.SET_FEATURES, 0, 8) + bytes(8), [])
    send(sock, encode_header(Request.SET_VRING_CALL, 0, 8) + bytes(8), [writer])
    send(sock, encode_header(Request.SET_OWNER, 0, 0), [])
    os.close(writer)
    fds = []
    for _ in range(3):
        message = connection.receive()
        assert message is not None
        fds.append(len(message.fds))
        for fd in message.fds:
            os.write(fd, b"x")
            os.close(fd)
    assert fds == [0, 1, 0]
    assert os.read(reader, 2) == b"x"
    os.close(reader)


def test_too_many_descriptors_are_closed(pair: tuple[Connection, socket.socket]) -> None:
    connection, sock = pair
    reader, writer = os.pipe()
    send(sock, encode_header(Request.SET_MEM_TABLE, 0, 0), [writer] * 12)
    os.close(writer)
    with pytest.raises(PeerError, match="more file descriptors"):
        connection.receive()
    connection.close()
    assert os.read(reader, 1) == b"", "the other end is closed"
    os.close(reader)


def test_the_end(pair: tuple[Connection, socket.socket]) -> None:
    connection, sock = pair
    sock.close()
    with pytest.raises(PeerError, match="closed the connection"):
        connection.receive()


def test_answers(pair: tuple[Connection, socket.socket]) -> None:
    connection, sock = pair
    connection.reply(Request.GET_FEATURES, Number(7))
    assert sock.recv(100) == encode_header(Request.GET_FEATURES, FLAG_REPLY, 8) + (7).to_bytes(8, "little")
    reader, writer = os.pipe()
    connection.reply(Request.GET_INFLIGHT_FD, Nothing(), fds=(writer,))
    os.close(writer)
    _, ancillary, _, _ = sock.recvmsg(100, 100)
    (fd,) = array.array("i", ancillary[0][2])
    os.write(fd, b"y")
    os.close(fd)
    assert os.read(reader, 2) == b"y"
    os.close(reader)


def test_a_peer_that_is_gone_takes_no_answers(pair: tuple[Connection, socket.socket]) -> None:
    connection, sock = pair
    sock.close()
    with pytest.raises(PeerError):
        connection.reply(Request.GET_FEATURES, Number(7))


def test_a_peer_that_takes_nothing(pair: tuple[Connection, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    connection, _ = pair
    monkeypatch.setattr("zonefs_emu.descriptor_socket._SEND_TIMEOUT_MS", 20)

    def flood() -> None:
        for _ in range(1 << 16):
            connection.reply(Request.GET_FEATURES, Number(7))

    with pytest.raises(PeerError, match="does not read its answers"):
        flood()
