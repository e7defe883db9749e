"""A socket pair: bytes in pieces and descriptors beside them; both transports' tests have whole messages."""

import array
import os
import socket
from collections.abc import Iterator

import pytest

from zonefs_emu.descriptor_socket import DescriptorSocket
from zonefs_emu.errors import PeerError


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, DescriptorSocket]]:
    theirs, ours = socket.socketpair()
    end = DescriptorSocket(ours, peer="peer", fds_max=2)
    yield theirs, end
    end.close()
    theirs.close()


def send(sock: socket.socket, data: bytes, *fds: int) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def test_no_byte_more_than_asked_is_received(pair: tuple[socket.socket, DescriptorSocket]) -> None:
    """The second piece's descriptor must not be taken for the first's."""
    theirs, end = pair
    reader, writer = os.pipe()
    send(theirs, b"first")
    send(theirs, b"second", writer)
    os.close(writer)
    assert end.fill(5)
    assert end.take() == (b"first", [])
    assert end.fill(0), "an empty piece is always there"
    assert not end.fill(7)
    send(theirs, b"!")
    assert end.fill(7)
    data, (fd,) = end.take()
    assert data == b"second!"
    os.close(fd)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_descriptors_of_bytes_that_were_taken_stay_for_the_rest(pair: tuple[socket.socket, DescriptorSocket]) -> None:
    theirs, end = pair
    reader, writer = os.pipe()
    send(theirs, b"headrest", writer)
    os.close(writer)
    assert end.fill(4)
    assert end.take_bytes() == b"head"
    assert end.fill(4)
    data, (fd,) = end.take()
    assert data == b"rest"
    os.close(fd)
    os.close(reader)


def test_descriptors_that_were_not_taken_are_closed(pair: tuple[socket.socket, DescriptorSocket]) -> None:
    theirs, end = pair
    reader, writer = os.pipe()
    send(theirs, b"x", writer)
    os.close(writer)
    assert not end.fill(2)
    end.close()
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_peer_that_goes(pair: tuple[socket.socket, DescriptorSocket]) -> None:
    theirs, end = pair
    assert not end.is_gone()
    theirs.close()
    assert end.is_gone()
    with pytest.raises(PeerError, match="the peer closed the connection"):
        end.fill(1)


def test_more_descriptors_than_allowed(pair: tuple[socket.socket, DescriptorSocket]) -> None:
    theirs, end = pair
    send(theirs, b"x", *[theirs.fileno()] * 3)
    with pytest.raises(PeerError, match="the peer sent more file descriptors"):
        end.fill(1)


def test_a_peer_that_takes_nothing(
    pair: tuple[socket.socket, DescriptorSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, end = pair
    monkeypatch.setattr("zonefs_emu.descriptor_socket._SEND_TIMEOUT_MS", 20)
    with pytest.raises(PeerError, match="the peer does not read its answers"):
        end.send_bytes(bytes(4 << 20))
