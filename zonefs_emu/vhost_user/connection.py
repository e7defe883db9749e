"""A vhost-user socket: whole messages in and out, with the file descriptors beside them.

May not know: what messages mean.
"""

import array
import os
import select
import socket
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from zonefs_emu.errors import PeerError
from zonefs_emu.vhost_user.messages import (
    FDS_MAX,
    FLAG_REPLY,
    HEADER,
    Payload,
    decode_header,
    encode_header,
    encode_payload,
)

#: A peer that does not read an answer for this long is given up. A peer that waits for its answers never fills the
#: socket's buffer. A daemon that ends waits for this thread, and has 5 seconds for everything.
_SEND_TIMEOUT_MS: Final = 1_000


class Message(NamedTuple):
    """A message that has come. The receiver owns *fds* and closes them."""

    request: int
    flags: int
    data: bytes
    fds: list[int]


class Reply(NamedTuple):
    """What a message is answered with. *fds* are sent beside it and closed after that."""

    payload: Payload
    fds: tuple[int, ...] = ()


#: Does what a message asks: (payload, descriptors) -> the answer, or None where there is nothing to say but "done".
#: A descriptor that is kept is taken out of the list.
Handler: TypeAlias = Callable[..., Reply | None]


class Connection:
    """One connected socket, non-blocking: :meth:`receive` takes what is there and gives a message when it is whole."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over *sock*."""
        self._socket = sock
        sock.settimeout(0)
        self._buffer = b""
        self._need = HEADER.size
        self._fds: list[int] = []

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def is_gone(self) -> bool:
        """Say whether the peer has closed the connection; messages that it sent before may still be unread."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def receive(self) -> Message | None:
        """Return the next message, or None if it is not all there yet.

        Raises:
            PeerError: the peer is gone, or sent something that is not a message.
        """
        while True:
            try:
                # Not a byte of the next message, whose descriptors would be taken for those of this one.
                data, ancillary, flags, _ = self._socket.recvmsg(
                    self._need - len(self._buffer), socket.CMSG_SPACE(4 * FDS_MAX), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return None
            except OSError as error:
                raise PeerError(str(error)) from None
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    self._fds += array.array("i", content[: len(content) - len(content) % 4])
            if not data:
                message = "the front-end closed the connection"
                raise PeerError(message)
            if flags & socket.MSG_CTRUNC or len(self._fds) > FDS_MAX:
                message = "more file descriptors than a message may have"
                raise PeerError(message)
            self._buffer += data
            if len(self._buffer) < self._need:
                continue
            header = decode_header(self._buffer[: HEADER.size])
            self._need = HEADER.size + header.size
            if len(self._buffer) < self._need:
                continue
            received = Message(header.request, header.flags, self._buffer[HEADER.size :], self._fds)
            self._buffer, self._need, self._fds = b"", HEADER.size, []
            return received

    def send(self, request: int, payload: Payload, *, flags: int = 0, fds: tuple[int, ...] = ()) -> None:
        """Send a message.

        Raises:
            PeerError: the peer is gone, or does not read.
        """
        data = encode_payload(payload)
        data = encode_header(request, flags, len(data)) + data
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            while data:
                try:
                    done = self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    self._wait_writable()
                    continue
                data, ancillary = data[done:], []
        except OSError as error:
            raise PeerError(str(error)) from None

    def _wait_writable(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        if not poll.poll(_SEND_TIMEOUT_MS):
            message = "the front-end takes no answers"
            raise PeerError(message)

    def reply(self, request: int, payload: Payload, *, fds: tuple[int, ...] = ()) -> None:
        """Send the answer to *request*.

        Raises:
            PeerError: as :meth:`send`.
        """
        self.send(request, payload, flags=FLAG_REPLY, fds=fds)

    def close(self) -> None:
        """Close the socket, and descriptors of a message that never became whole."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._socket.close()
