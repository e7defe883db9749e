"""A vhost-user socket: whole messages in and out, with the file descriptors beside them.

May not know: what messages mean.
"""

import socket
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from zonefs_emu.descriptor_socket import DescriptorSocket
from zonefs_emu.vhost_user.messages import (
    FDS_MAX,
    FLAG_REPLY,
    HEADER,
    Header,
    Payload,
    decode_header,
    encode_header,
    encode_payload,
)


class Message(NamedTuple):
    """A received message: *request*, *flags*, the payload *data*, and *fds*, which the receiver owns and closes."""

    request: int
    flags: int
    data: bytes
    fds: list[int]


class Reply(NamedTuple):
    """The answer to a message. *fds* are sent with it and then closed."""

    payload: Payload
    fds: tuple[int, ...] = ()


#: A function that handles a message: (payload, descriptors) -> the answer, or None if an acknowledgement is enough. A
#: handler that keeps a descriptor removes it from the list.
Handler: TypeAlias = Callable[..., Reply | None]


class Connection(DescriptorSocket):
    """One connected socket, non-blocking: :meth:`receive` returns None until a message has arrived completely."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over *sock*."""
        super().__init__(sock, peer="front-end", fds_max=FDS_MAX)
        self._header: Header | None = None

    def receive(self) -> Message | None:
        """Return the next message, or None if it has not arrived completely.

        Raises:
            PeerError: the peer is gone, or sent something that is not a message.
        """
        if self._header is None:
            if not self.fill(HEADER.size):
                return None
            self._header = decode_header(self.take_bytes())
        header = self._header
        if not self.fill(header.size):
            return None
        self._header = None
        return Message(header.request, header.flags, *self.take())

    def send(self, request: int, payload: Payload, *, flags: int = 0, fds: tuple[int, ...] = ()) -> None:
        """Send a message.

        Raises:
            PeerError: the peer is gone, or does not read.
        """
        data = encode_payload(payload)
        self.send_bytes(encode_header(request, flags, len(data)) + data, fds)

    def reply(self, request: int, payload: Payload, *, fds: tuple[int, ...] = ()) -> None:
        """Send the answer to *request*.

        Raises:
            PeerError: as :meth:`send`.
        """
        self.send(request, payload, flags=FLAG_REPLY, fds=fds)
