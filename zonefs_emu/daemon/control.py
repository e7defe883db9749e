"""The control socket's server: verbs for other processes of the same user.

Whoever connects is checked by the kernel's word (SO_PEERCRED), not by what it says. A peer that breaks the protocol
loses its connection and nothing else; what one connection can cost is bounded in memory and, once a message has begun,
in time.
"""

import logging
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Final

import trio

from zonefs_emu.daemon import framing
from zonefs_emu.daemon.framing import Json, Message
from zonefs_emu.daemon.verbs import Verbs
from zonefs_emu.errors import PeerError

CONNECTIONS_MAX: Final = 32
#: How long a peer may take to send the rest of a message that it began, and to take in a reply.
MESSAGE_S: Final = 30.0
#: How long a peer may be silent before its first message. Later it may: a writer waits for its own input.
FIRST_S: Final = 10.0
_UCRED: Final = struct.Struct("3i")

_log = logging.getLogger(__name__)


class ControlServer:
    """Answers verbs on *listener*, which it takes over."""

    def __init__(self, listener: socket.socket, verbs: Verbs) -> None:
        self._listener = listener
        self._verbs = verbs
        self._nr_connections = 0

    async def run(self, *, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener))
        await trio.serve_listeners(self._serve, [listener], task_status=task_status)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            self._nr_connections += 1
            try:
                await self._converse(stream)
            except PeerError as error:
                _log.info("control socket: %s", error)
                await _say_goodbye(stream, str(error))
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                # The peer went away or stopped reading; its connection is all that is lost.
                _log.info("control socket: a client went away")
            finally:
                self._nr_connections -= 1

    async def _converse(self, stream: trio.SocketStream) -> None:
        uid = _peer_uid(stream)
        if uid != os.geteuid():
            msg = f"user {uid} may not control this image: only user {os.geteuid()} may"
            raise PeerError(msg)
        if self._nr_connections > CONNECTIONS_MAX:
            msg = f"{CONNECTIONS_MAX} clients are already connected: try again later"
            raise PeerError(msg)
        message = await _receive(stream, FIRST_S)
        while message is not None:
            await self._answer(stream, *message)
            message = await _receive(stream, None)

    async def _answer(self, stream: trio.SocketStream, request: dict[str, Json], payload: bytes) -> None:
        replies = self._verbs.execute(request, payload)
        # A verb can take long (a million zones, a slow host): off the loop, so that no front-end waits for it. The
        # device has its own lock.
        more = True
        with closing(replies):
            while more:
                # What was executed is answered, even while the session ends; between two replies it may.
                with trio.CancelScope(shield=True):
                    more = await self._reply(stream, replies)
                await trio.lowlevel.checkpoint()

    async def _reply(self, stream: trio.SocketStream, replies: Iterator[Message]) -> bool:
        reply = await trio.to_thread.run_sync(_next, replies)
        if reply is None:
            return False
        with trio.fail_after(MESSAGE_S):
            await stream.send_all(framing.encode(*reply))
        return True


def _next(replies: Iterator[Message]) -> Message | None:
    return next(replies, None)


def _peer_uid(stream: trio.SocketStream) -> int:
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    return int(uid)


async def _say_goodbye(stream: trio.SocketStream, sentence: str) -> None:
    with trio.move_on_after(1):
        try:
            await stream.send_all(framing.encode({"error": sentence, "exit_code": 1}))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


async def _receive(stream: trio.SocketStream, patience_s: float | None) -> Message | None:
    """Return the next message, or None when the peer has closed or stays silent for *patience_s* seconds.

    Raises:
        PeerError: what came is no message, or it stopped in the middle.
    """
    first = b""
    with trio.move_on_after(float("inf") if patience_s is None else patience_s):
        first = await stream.receive_some(1)
    if not first:
        return None
    with trio.move_on_after(MESSAGE_S) as scope:
        header = first + await _receive_exactly(stream, framing.HEADER_BYTES - 1)
        object_bytes, payload_bytes = framing.decode_header(header)
        request = framing.decode_object(await _receive_exactly(stream, object_bytes))
        return request, await _receive_exactly(stream, payload_bytes)
    assert scope.cancelled_caught
    msg = f"the peer began a message and did not finish it within {MESSAGE_S:.0f} seconds"
    raise PeerError(msg)


async def _receive_exactly(stream: trio.SocketStream, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = await stream.receive_some(length - len(parts))
        if not part:
            msg = "the peer closed the connection in the middle of a message"
            raise PeerError(msg)
        parts += part
    return bytes(parts)
