"""A connected UNIX socket for bytes and file descriptors. Non-blocking.

May not know: messages. The transports that use it determine how many bytes belong together.
"""

import array
import os
import select
import socket
from typing import Final

from zonefs_emu.errors import PeerError

#: How long a peer may take to read an answer. A peer that waits for its answers never fills the socket's buffer. The
#: end of a daemon waits for the thread of a connection, and must take at most 5 seconds.
_SEND_TIMEOUT_MS: Final = 1_000


class DescriptorSocket:
    """One end. Connections are derived from it: they say how many bytes to :meth:`fill` and what they :meth:`take`."""

    def __init__(self, sock: socket.socket, *, peer: str, fds_max: int) -> None:
        """Take over *sock*. *peer*: what errors call the other end. *fds_max*: descriptors that one take may have."""
        sock.settimeout(0)
        self._socket = sock
        self._peer = peer
        self._fds_max = fds_max
        self._buffer = b""
        self._fds: list[int] = []

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def is_gone(self) -> bool:
        """Return whether the peer has closed the connection; bytes that it sent before may still be unread."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def fill(self, nr_bytes: int) -> bool:
        """Receive until *nr_bytes* are gathered, and no byte more; False if they have not all come yet.

        A byte more could be the next message's, whose descriptors would be taken for those of this one.

        Raises:
            PeerError: the peer is gone, or sent more descriptors than it may.
        """
        while len(self._buffer) < nr_bytes:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    nr_bytes - len(self._buffer), socket.CMSG_SPACE(4 * self._fds_max), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return False
            except OSError as error:
                raise PeerError(str(error)) from None
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    self._fds += array.array("i", content[: len(content) - len(content) % 4])
            if not data:
                message = f"the {self._peer} closed the connection"
                raise PeerError(message)
            if flags & socket.MSG_CTRUNC or len(self._fds) > self._fds_max:
                message = f"the {self._peer} sent more file descriptors than a message may have"
                raise PeerError(message)
            self._buffer += data
        return True

    @property
    def has_part(self) -> bool:
        """Whether bytes are gathered that were not taken yet."""
        return bool(self._buffer)

    def take_bytes(self) -> bytes:
        """Return the gathered bytes; descriptors stay for a later take."""
        data, self._buffer = self._buffer, b""
        return data

    def take(self) -> tuple[bytes, list[int]]:
        """Return the gathered bytes and descriptors. The caller closes the descriptors."""
        fds, self._fds = self._fds, []
        return self.take_bytes(), fds

    def send_bytes(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send *data* and, beside its first byte, *fds*, which stay open here.

        Raises:
            PeerError: the peer is gone, or does not read.
        """
        view = memoryview(data)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            while view:
                try:
                    done = self._socket.sendmsg([view], ancillary, socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    self._wait_writable()
                    continue
                view, ancillary = view[done:], []
        except OSError as error:
            raise PeerError(str(error)) from None

    def _wait_writable(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        if not poll.poll(_SEND_TIMEOUT_MS):
            message = f"the {self._peer} does not read its answers"
            raise PeerError(message)

    def close(self) -> None:
        """Close the socket, and descriptors that were not taken."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._socket.close()
