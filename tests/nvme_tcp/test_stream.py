"""Bytes over a pair of sockets: more than fits, and a host that takes nothing."""

import socket
import threading
from collections.abc import Iterator

import pytest

from zonefs_emu.nvme_tcp import stream
from zonefs_emu.nvme_tcp.stream import Stream


@pytest.fixture
def pair() -> Iterator[tuple[Stream, socket.socket]]:
    listener = socket.create_server(("127.0.0.1", 0))
    host = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    found = Stream(accepted)
    yield found, host
    for each in (found, host, listener):
        each.close()


def test_what_has_not_come_does_not_block(pair: tuple[Stream, socket.socket]) -> None:
    stream, host = pair
    buffer = memoryview(bytearray(8))
    with pytest.raises(BlockingIOError):
        stream.receive_into(buffer)
    assert not stream.has_more
    host.close()
    assert stream.receive_into(buffer) == 0
    assert stream.local_address()[0] == "127.0.0.1"


def test_any_number_of_parts_of_any_length_is_sent_in_order(pair: tuple[Stream, socket.socket]) -> None:
    """More parts than the kernel takes at once, and more bytes than it holds."""
    stream, host = pair
    parts: list[bytes | memoryview] = [bytes([number % 251]) * (number % 7) for number in range(3000)]
    parts += [memoryview(b"z" * (8 << 20)), b"end"]
    received = bytearray()

    def receive() -> None:
        while part := host.recv(1 << 20):
            received.extend(part)

    thread = threading.Thread(target=receive)
    thread.start()
    stream.send(parts)
    stream.shutdown(socket.SHUT_WR)
    thread.join()
    assert received == b"".join(parts)


def test_a_host_that_takes_nothing(pair: tuple[Stream, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SEND_S", 0.05)
    with pytest.raises(TimeoutError):
        pair[0].send([bytes(64 << 20)])
