"""A socket pair: messages in pieces, descriptors beside them, and what ends the connection."""

import array
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from zonefs_emu.errors import PeerError
from zonefs_emu.vfio_user.client_connection import ClientConnection
from zonefs_emu.vfio_user.vfio_messages import VfioCommand, encode_command

MESSAGE = encode_command(1, VfioCommand.REGION_READ, b"0123456789")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, ClientConnection]]:
    ours, theirs = socket.socketpair()
    connection = ClientConnection(theirs)
    yield ours, connection
    connection.close()
    ours.close()


def test_a_message_comes_byte_by_byte(pair: tuple[socket.socket, ClientConnection]) -> None:
    ours, connection = pair
    for at in range(len(MESSAGE)):
        assert connection.receive() is None
        ours.send(MESSAGE[at : at + 1])
    message = connection.receive()
    assert message is not None
    assert (message.header.command, message.payload, message.fds) == (VfioCommand.REGION_READ, b"0123456789", [])


def test_descriptors_belong_to_their_message(pair: tuple[socket.socket, ClientConnection]) -> None:
    """Several messages lie in the socket at once, some with a descriptor."""
    ours, connection = pair
    files = [os.memfd_create(f"file{number}") for number in range(2)]
    for number, fd in enumerate((-1, files[0], -1, files[1])):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        ours.sendmsg([encode_command(number, VfioCommand.DMA_MAP, bytes(32))], rights)
    found = [connection.receive() for _ in range(4)]
    assert [message.header.message_id for message in found if message] == [0, 1, 2, 3]
    counts = [[os.fstat(fd).st_ino for fd in message.fds] for message in found if message]
    assert counts == [[], [os.fstat(files[0]).st_ino], [], [os.fstat(files[1]).st_ino]]
    for fd in [fd for message in found if message for fd in message.fds] + files:
        os.close(fd)


def test_an_answer_longer_than_the_sockets_buffer(pair: tuple[socket.socket, ClientConnection]) -> None:
    ours, connection = pair
    received = bytearray()

    def read() -> None:
        while len(received) < 4 << 20:
            received.extend(ours.recv(1 << 16))

    thread = threading.Thread(target=read)
    thread.start()
    connection.send_bytes(b"x" * (4 << 20))
    thread.join()
    assert received == b"x" * (4 << 20)


def test_a_client_that_takes_no_answers(pair: tuple[socket.socket, ClientConnection]) -> None:
    _, connection = pair
    with pytest.raises(PeerError, match="does not read its answers"):
        connection.send_bytes(bytes(4 << 20))


@pytest.mark.parametrize("sent", [b"", MESSAGE[:5], MESSAGE[:-1]], ids=["nothing", "half a header", "half a message"])
def test_a_client_that_goes_away(pair: tuple[socket.socket, ClientConnection], sent: bytes) -> None:
    ours, connection = pair
    ours.sendall(sent)
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(PeerError, match="closed the connection"):
        connection.receive()


def test_too_many_descriptors(pair: tuple[socket.socket, ClientConnection]) -> None:
    ours, connection = pair
    fds = array.array("i", [ours.fileno()] * 17)
    ours.sendmsg([MESSAGE], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    with pytest.raises(PeerError, match="more file descriptors"):
        connection.receive()


def test_a_client_that_is_gone_before_the_answer(pair: tuple[socket.socket, ClientConnection]) -> None:
    ours, connection = pair
    ours.close()
    with pytest.raises(PeerError):
        connection.send_bytes(MESSAGE)
