"""The control socket's server: verbs for other processes of the same user, and for root's.

The kernel tells which user connects (SO_PEERCRED); a peer's own statements are not used. A peer that breaks the
protocol loses its connection only. The memory of a connection is bounded, and so is the time for a message that has
begun.

Each verb and each connection is a boundary: an unforeseen error becomes the answer to that verb, or the end of that
connection. Verbs have a pool of threads of their own, so that a verb that waits (for an injected delay, for the host's
disk) takes no thread from another task. When the session ends, the verb under way is still answered, and its client has
a short time to read the answer.
"""

import logging
import os
import socket
from collections.abc import Callable, Generator
from functools import partial
from typing import Final, TypeVar

import trio

from zonefs_emu.daemon import framing
from zonefs_emu.daemon.framing import Json, Message
from zonefs_emu.daemon.holders import peer_of
from zonefs_emu.daemon.verbs import Verbs
from zonefs_emu.errors import PeerError
from zonefs_emu.persist.backing import user_name

CONNECTIONS_MAX: Final = 32
#: How long a peer may take to send the rest of a message that it began, and to read a reply.
MESSAGE_S: Final = 30.0
#: How long a peer may take to read the last reply after the session has begun to end.
LAST_REPLY_S: Final = 1.0
#: How long a peer may be silent before its first message. Later there is no limit, as a client may wait for its input.
FIRST_S: Final = 10.0
#: How long a client may take between the answer to its hello and its request, even if the session ends meanwhile.
NEXT_S: Final = 1.0

T = TypeVar("T")

_log = logging.getLogger(__name__)


class ControlServer:
    """Answers verbs on *listener* and *more* listening sockets, which it takes over."""

    def __init__(self, listener: socket.socket, verbs: Verbs, *more: socket.socket) -> None:
        self._listeners = (listener, *more)
        self._verbs = verbs
        self._nr_connections = 0
        # One thread for each connection, so that no verb waits for another one.
        self._threads = trio.CapacityLimiter(CONNECTIONS_MAX)
        #: Sends under way, and whether the session ends.
        self._sending: set[trio.CancelScope] = set()
        self._ending = False

    async def run(self, *, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener)) for listener in self._listeners]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hurry_at_the_end)
            await trio.serve_listeners(self._serve, listeners, task_status=task_status)

    async def _hurry_at_the_end(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._ending = True
            for scope in self._sending:
                scope.deadline = min(scope.deadline, trio.current_time() + LAST_REPLY_S)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await self._converse(stream)
            except PeerError as error:
                _log.info("control socket: %s", error)
                await _say_goodbye(stream, str(error))
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                # The peer went away or stopped reading; only its connection ends.
                _log.info("control socket: a client went away")
            except Exception as error:  # the boundary of a connection
                reply, _ = self._verbs.contain("a connection to the control socket", error)
                await _say_goodbye(stream, str(reply["error"]))

    async def _converse(self, stream: trio.SocketStream) -> None:
        uid = _peer_uid(stream)
        if uid not in (0, os.geteuid()):
            mine = user_name(os.geteuid())
            message = f"{user_name(uid)} may not control this image: only {mine} and root may (pid {os.getpid()})"
            raise PeerError(message)
        # Connections of other users are not counted: any process can reach the abstract socket, and must not use up the
        # connections of this user.
        self._nr_connections += 1
        try:
            await self._serve_client(stream)
        finally:
            self._nr_connections -= 1

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        if self._nr_connections > CONNECTIONS_MAX:
            message = f"{CONNECTIONS_MAX} clients are already connected: try again later"
            raise PeerError(message)
        verbs = self._verbs.for_client()
        asked = await _receive(stream, FIRST_S)
        if asked is not None and asked[0] == framing.HELLO:
            asked = await self._welcome(stream)
        while asked is not None:
            await self._answer(stream, verbs, *asked)
            asked = await _receive(stream, None)

    async def _welcome(self, stream: trio.SocketStream) -> Message | None:
        """Answer a hello, and return the request that follows.

        A session that ends meanwhile still waits for that request, for NEXT_S at most, because the client relies on the
        answer to its hello.
        """
        with trio.CancelScope(shield=True):
            await self._send(stream, framing.encode({}))
        is_here = False
        with trio.move_on_after(NEXT_S, shield=True):
            await trio.lowlevel.wait_readable(stream.socket)
            is_here = True
        with trio.CancelScope(shield=is_here):
            return await _receive(stream, None)
        return None  # cancelled

    async def _answer(self, stream: trio.SocketStream, verbs: Verbs, request: dict[str, Json], payload: bytes) -> None:
        replies = verbs.execute(request, payload)
        # A verb can take long (a million zones, a slow host), so it runs on a thread and no front-end waits for it. The
        # device has a lock of its own.
        try:
            more = True
            while more:
                # A verb that was carried out is answered even if the session ends meanwhile. A verb of several replies
                # may be cancelled between two of them.
                with trio.CancelScope(shield=True):
                    data, more = await self._in_thread(partial(_next, verbs, replies, request.get("verb")))
                    await self._send(stream, data)
                await trio.lowlevel.checkpoint()
        finally:
            with trio.CancelScope(shield=True):
                # Cancelling a verb can take long as well, because an incomplete copy is deleted.
                await self._in_thread(replies.close)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function, limiter=self._threads)

    async def _send(self, stream: trio.SocketStream, data: bytes) -> None:
        with trio.fail_after(LAST_REPLY_S if self._ending else MESSAGE_S) as scope:
            self._sending.add(scope)
            try:
                await stream.send_all(data)
            finally:
                self._sending.discard(scope)


def _next(verbs: Verbs, replies: Generator[Message], name: Json) -> tuple[bytes, bool]:
    """Return the bytes of the next reply, and whether another reply follows.

    The generator is not resumed after the last reply: an error after it would be read as the reply to the client's next
    request.
    """
    try:
        reply, payload = next(replies)
        return framing.encode(reply, payload), reply.get("more") is True
    except Exception as error:  # the boundary of a verb
        return framing.encode(*verbs.contain(f"verb {name}", error)), False


def _peer_uid(stream: trio.SocketStream) -> int:
    return peer_of(stream.socket).uid


async def _say_goodbye(stream: trio.SocketStream, sentence: str) -> None:
    with trio.move_on_after(1):
        try:
            await stream.send_all(framing.encode({"error": sentence, "exit_code": 1}))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


async def _receive(stream: trio.SocketStream, patience_s: float | None) -> Message | None:
    """Return the next message, or None when the peer has closed or stays silent for *patience_s* seconds.

    Raises:
        PeerError: the bytes are no message, or the message is incomplete.
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
    message = f"the peer began a message and did not finish it within {MESSAGE_S:.0f} seconds"
    raise PeerError(message)


async def _receive_exactly(stream: trio.SocketStream, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = await stream.receive_some(length - len(parts))
        if not part:
            message = "the peer closed the connection in the middle of a message"
            raise PeerError(message)
        parts += part
    return bytes(parts)
