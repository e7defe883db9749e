"""A vfio-user socket: whole messages in and out, with the file descriptors beside them.

May not know: what messages mean.
"""

import socket
from contextlib import suppress
from typing import NamedTuple

from zonefs_emu.descriptor_socket import DescriptorSocket
from zonefs_emu.vfio_user.vfio_messages import FDS_MAX, HEADER, MessageHeader, decode_header


class ClientMessage(NamedTuple):
    """A message that has come. The receiver owns *fds* and closes them."""

    header: MessageHeader
    payload: bytes
    fds: list[int]


class ClientConnection(DescriptorSocket):
    """One connected socket, non-blocking: :meth:`receive` returns a message once it has arrived completely."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over *sock*."""
        super().__init__(sock, peer="client", fds_max=FDS_MAX)
        self._header: MessageHeader | None = None

    def receive(self) -> ClientMessage | None:
        """Return the next message, or None if it has not arrived completely.

        Raises:
            PeerError: the client is gone, or sent something that is not a message.
        """
        if self._header is None:
            if not self.fill(HEADER.size):
                return None
            self._header = decode_header(self.take_bytes())
        header = self._header
        if not self.fill(header.nr_bytes):
            return None
        self._header = None
        return ClientMessage(header, *self.take())

    def close(self) -> None:
        """End the connection, even if another process has a copy of the socket's descriptor.

        The daemon keeps its copy open if an internal error makes it lose the number. A guest that sees no end of the
        connection waits for an answer for ever.
        """
        with suppress(OSError):  # the client is gone already
            self._socket.shutdown(socket.SHUT_RDWR)
        super().close()

    @property
    def is_between_messages(self) -> bool:
        """Whether no part of the next message was taken from the socket."""
        return self._header is None and not self.has_part
