"""The bytes of a connection that is encrypted by TLS 1.3, with a key that host and drive share.

The handshake is made while the first bytes are received, so it has the time limit of the first exchange. OpenSSL works
on bytes in memory and never on the socket: another thread may shut the socket down at any time, and Python's SSLSocket
would then continue without encryption.

May not know: hosts and their keys.
"""

import contextlib
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from typing import Final

from zonefs_emu.nvme_tcp.pdu import PduType
from zonefs_emu.nvme_tcp.stream import Stream

#: How much is received, and how much is encrypted, at once.
_RECEIVE_BYTES: Final = 128 << 10
_SEND_BYTES: Final = 128 << 10

#: Returns the key for an identity that a host says, or nothing if there is none.
FindPsk = Callable[[str], bytes]


def missing_tls() -> str:
    """Return what this Python lacks for TLS with pre-shared keys, as a part of a sentence; empty if it has all."""
    lack = ""
    if sys.version_info < (3, 13):
        lack = f"this is Python {sys.version_info[0]}.{sys.version_info[1]}, whose ssl module has no pre-shared keys"
    elif not ssl.HAS_PSK:
        lack = "this Python's OpenSSL was built without pre-shared keys"
    return lack


class HandshakeError(Exception):
    """The TLS handshake has failed; the text has OpenSSL's reason. *is_plain*: the host does not speak TLS."""

    def __init__(self, reason: str, *, is_plain: bool = False) -> None:
        super().__init__(reason)
        self.is_plain = is_plain


class TlsStream(Stream):
    """A connected socket whose host begins a TLS connection. Until it has, what is sent is not encrypted."""

    def __init__(self, sock: socket.socket, find_psk: FindPsk) -> None:
        """*find_psk* is called by the thread that receives. It must not raise."""
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = _context(find_psk).wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_begun = False
        self._is_open = False

    def receive_into(self, buffer: memoryview) -> int:
        """Receive what has come, as :meth:`Stream.receive_into`.

        Raises:
            HandshakeError: the handshake fails; the host has been told.
        """
        if not self.has_more:
            data = self._sock.recv(_RECEIVE_BYTES)
            if not data:
                return 0
            if not self._is_begun and data[0] == PduType.IC_REQ:
                raise HandshakeError("the host does not speak TLS", is_plain=True)
            self._is_begun = True
            self._incoming.write(data)
        count = 0
        self.has_more = False
        try:
            if not self._is_open:
                self._tls.do_handshake()
                self._is_open = True
            while count < len(buffer):
                room = buffer[count:]
                # With a buffer, it returns a number; and 0, without an exception, if the host has ended the connection.
                if not (nr_read := self._tls.read(len(room), room)):
                    self.has_more = bool(count)
                    return count
                count += nr_read  # type: ignore[operator]
            self.has_more = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # the host has ended the connection in the handshake
            return 0
        except ssl.SSLError as error:
            with contextlib.suppress(OSError):
                self._send_encrypted()  # the alert, which says what is wrong
            if self._is_open:
                raise
            raise HandshakeError((error.reason or "").replace("_", " ").lower()) from None
        self._send_encrypted()
        if not count:
            raise BlockingIOError
        return count

    def send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send all of *parts*, as :meth:`Stream.send`."""
        if not self._is_open:
            super().send(parts)
            return
        gathered: list[bytes | memoryview] = []
        nr_bytes = 0
        for part in parts:
            # Joined, because each call of OpenSSL makes a record of its own.
            gathered.append(part)
            nr_bytes += len(part)
            if nr_bytes >= _SEND_BYTES:
                self._send_record(b"".join(gathered))
                gathered, nr_bytes = [], 0
        if gathered:
            self._send_record(b"".join(gathered))

    def _send_record(self, data: bytes) -> None:
        self._tls.write(data)
        self._send_encrypted()

    def _send_encrypted(self) -> None:
        if self._outgoing.pending:
            super().send([self._outgoing.read()])

    def close(self) -> None:
        """Tell the host that the connection ends here, unless the socket is shut down or full, and close the socket."""
        if self._is_open:
            with contextlib.suppress(ssl.SSLError):  # the host has not said the same yet, or the connection is broken
                self._tls.unwrap()
            with contextlib.suppress(OSError):
                self._sock.send(self._outgoing.read())
        super().close()


def _context(find_psk: FindPsk) -> ssl.SSLContext:
    """Return what OpenSSL needs for one connection. *find_psk* belongs to it, so it is not that of all connections."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # A ticket would let a host return without its key; and Linux's driver ends a connection that brings one.
    context.num_tickets = 0
    if sys.version_info >= (3, 13):
        context.set_psk_server_callback(lambda identity: find_psk(identity or ""))
    return context
