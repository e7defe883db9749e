"""A vfio-user socket: whole messages in and out, with the file descriptors beside them.

May not know: what messages mean.
"""

import array
import os
import select
import socket
from typing import Final, NamedTuple

from zonefs_emu.errors import PeerError
from zonefs_emu.vfio_user.vfio_messages import FDS_MAX, HEADER, MessageHeader, decode_header

#: A client that does not read an answer for this long is given up.
_SEND_TIMEOUT_MS: Final = 1_000


class ClientMessage(NamedTuple):
    """A message that has come. The receiver owns *fds* and closes them."""

    header: MessageHeader
    payload: bytes
    fds: list[int]


class ClientConnection:
    """One connected socket, non-blocking: :meth:`receive` takes what is there and gives a message when it is whole."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over *sock*."""
        self._socket = sock
        sock.settimeout(0)
        self._header: MessageHeader | None = None
        self._buffer = b""
        self._fds: list[int] = []

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def receive(self) -> ClientMessage | None:
        """Return the next message, or None if it is not all there yet.

        Raises:
            PeerError: the client is gone, or sent something that is not a message.
        """
        while True:
            header = self._header
            need = HEADER.size if header is None else header.nr_bytes
            if need > len(self._buffer):
                # Not a byte of the next message, whose descriptors would be taken for those of this one.
                if not self._receive_some(need - len(self._buffer)):
                    return None
                if len(self._buffer) < need:
                    continue
            if header is None:
                self._header = decode_header(self._buffer)
                self._buffer = b""
                continue
            message = ClientMessage(header, self._buffer, self._fds)
            self._header, self._buffer, self._fds = None, b"", []
            return message

    def _receive_some(self, nr_bytes: int) -> bool:
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                nr_bytes, socket.CMSG_SPACE(4 * FDS_MAX), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except OSError as error:
            raise PeerError(str(error)) from None
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._fds += array.array("i", content[: len(content) - len(content) % 4])
        if not data:
            message = "the client closed the connection"
            raise PeerError(message)
        if flags & socket.MSG_CTRUNC or len(self._fds) > FDS_MAX:
            message = "more file descriptors than a message may have"
            raise PeerError(message)
        self._buffer += data
        return True

    def send(self, data: bytes) -> None:
        """Send a message.

        Raises:
            PeerError: the client is gone, or does not read.
        """
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[self._socket.send(view, socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    self._wait_writable()
        except OSError as error:
            raise PeerError(str(error)) from None

    def _wait_writable(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        if not poll.poll(_SEND_TIMEOUT_MS):
            message = "the client takes no answers"
            raise PeerError(message)

    def close(self) -> None:
        """Close the socket, and descriptors of a message that never became whole."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._socket.close()
