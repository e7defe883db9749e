"""The bytes of a connection, over a socket that never blocks."""

import select
import socket
from collections.abc import Sequence
from typing import Final

#: How long a host may take to receive what is sent to it.
SEND_S: Final = 30.0
_IOV_MAX: Final = 1024


class Stream:
    """A connected socket. *has_more*: bytes have come that :meth:`receive_into` had no room for."""

    has_more = False

    def __init__(self, sock: socket.socket) -> None:
        # Nonblocking, because with a timeout Python would ask the kernel before each call whether the socket is ready.
        sock.setblocking(False)  # noqa: FBT003  (its only form)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock

    def fileno(self) -> int:
        """Return the descriptor of the socket, for select.poll."""
        return self._sock.fileno()

    def local_address(self) -> tuple[str, int]:
        """Return the address and the port at which the host has reached this connection."""
        address, port = self._sock.getsockname()[:2]
        return str(address), int(port)

    def receive_into(self, buffer: memoryview) -> int:
        """Receive what has come into *buffer*, which is not empty; return how many bytes. 0: the host has ended.

        Raises:
            BlockingIOError: nothing has come.
            OSError: the connection is lost.
        """
        return self._sock.recv_into(buffer)

    def send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send all of *parts*.

        Raises:
            TimeoutError: the host has taken nothing for :data:`SEND_S`.
            OSError: the connection is lost.
        """
        total = sum(map(len, parts))
        done = 0
        while True:
            try:
                sent = self._sock.sendmsg(parts[:_IOV_MAX])
            except BlockingIOError:
                sent = 0
            done += sent
            if done == total:
                return
            parts = _without(parts, sent)
            if not sent and not self._wait_until_writable():
                raise TimeoutError

    def _wait_until_writable(self) -> bool:
        poller = select.poll()
        poller.register(self._sock, select.POLLOUT)
        return bool(poller.poll(int(SEND_S * 1000)))

    def shutdown(self, how: int) -> None:
        """End one or both directions, SHUT_RD, SHUT_WR or SHUT_RDWR; from any thread.

        Raises:
            OSError: the connection has ended already.
        """
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def _without(parts: Sequence[bytes | memoryview], nr_bytes: int) -> Sequence[bytes | memoryview]:
    """Return *parts* without their first *nr_bytes*."""
    for index, part in enumerate(parts):
        if nr_bytes < len(part):
            return [memoryview(part)[nr_bytes:], *parts[index + 1 :]]
        nr_bytes -= len(part)
    return []
