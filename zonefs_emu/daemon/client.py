"""How a verb reaches an image: through the daemon that holds it, or else by opening it.

Both ways end in the same :class:`Verbs`, so a verb has the same rules, answers and sentences offline and live.
"""

import os
import select
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

from zonefs_emu.daemon import framing, rendezvous
from zonefs_emu.daemon.extensions import Extensions
from zonefs_emu.daemon.framing import Json, Message
from zonefs_emu.daemon.holders import peer_of
from zonefs_emu.daemon.verbs import Verbs
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import ImageBusyError, PeerError, UsageError

#: How long to wait for an image that another short command holds, or whose daemon is starting or ending.
BUSY_S: Final = 5.0
_POLL_S: Final = 0.02
#: How long a daemon may take for one reply: resetting a huge device blocks on the host.
_REPLY_S: Final = 300.0
_HELLO_S: Final = 30.0


class _GoneError(PeerError):
    """The daemon ended before it had answered."""


class Target(Protocol):
    """An image to which verbs can be sent."""

    #: Whether a daemon holds it.
    live: bool
    #: The user whose process reads and writes files for it.
    uid: int

    def stream(self, request: Mapping[str, Json], payload: bytes = b"") -> Iterator[Message]:
        """Send the request of a verb with several replies, and yield them.

        Raises:
            UsageError: refused; the exit code tells a refusal by the device (1) from wrong usage (2).
            PeerError: the daemon went away.
        """
        ...


def call(target: Target, request: Mapping[str, Json], payload: bytes = b"") -> Message:
    """Send the request of a verb with one reply to *target*, and return the reply.

    Raises:
        UsageError, PeerError: as :meth:`Target.stream`.
    """
    (reply,) = target.stream(request, payload)
    return reply


class LocalTarget:
    """An image that this process has open."""

    live = False

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs
        self.uid = os.geteuid()

    def stream(self, request: Mapping[str, Json], payload: bytes = b"") -> Iterator[Message]:
        """Carry out a verb; see :meth:`Target.stream`."""
        for reply in self._verbs.execute(request, payload):
            _raise_refusal(reply[0])
            yield reply


class _LiveTarget:
    live = True

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self.uid = peer_of(peer).uid
        self._answering = False

    def say_hello(self) -> None:
        """Make sure that the daemon answers: a daemon that is about to end still has its socket.

        Raises:
            _GoneError: it ended. PeerError: it does not answer, or breaks the protocol.
        """
        self._peer.settimeout(_HELLO_S)
        call(self, framing.HELLO)
        self._peer.settimeout(_REPLY_S)

    def stream(self, request: Mapping[str, Json], payload: bytes = b"") -> Iterator[Message]:
        # Unread replies would be taken for the answers to the next request, so the connection is closed.
        assert not self._answering
        self._answering = True
        try:
            self._peer.sendall(framing.encode(request, payload))
        except (BrokenPipeError, ConnectionResetError):
            # The daemon has closed the connection. A reply that it sent before has a better sentence.
            pass
        except OSError as error:
            raise _silent(error) from None
        more: Json = True
        while more:
            reply = self._receive()
            self._answering = False
            _raise_refusal(reply[0])
            more = reply[0].get("more", False)
            self._answering = bool(more)
            yield reply

    def _receive(self) -> Message:
        object_bytes, payload_bytes = framing.decode_header(self._receive_exactly(framing.HEADER_BYTES))
        obj = framing.decode_object(self._receive_exactly(object_bytes))
        return obj, self._receive_exactly(payload_bytes)

    def _receive_exactly(self, length: int) -> bytes:
        parts = bytearray()
        try:
            while len(parts) < length:
                part = self._peer.recv(length - len(parts))
                if not part:
                    break
                parts += part
        except ConnectionResetError:
            pass
        except OSError as error:
            raise _silent(error) from None
        if len(parts) < length:
            message = "the daemon that holds the image ended before it answered"
            raise _GoneError(message)
        return bytes(parts)


def _silent(error: OSError) -> PeerError:
    return PeerError(f"the daemon that holds the image does not answer ({error.strerror or error})")


def _raise_refusal(reply: Mapping[str, Json]) -> None:
    error, exit_code = reply.get("error"), reply.get("exit_code")
    if isinstance(error, str):
        raise UsageError(error, exit_code=exit_code if isinstance(exit_code, int) else 1)


def open_target(image: Path, extensions: Extensions, *, readonly: bool = False) -> AbstractContextManager[Target]:
    """Open *image*, through its daemon if it has one; *readonly* where nothing is to be changed.

    *extensions*: the verbs and rules of front-ends, for an image without a daemon. A daemon uses its own.

    Raises:
        ImageBusyError: a process holds it and does not serve it within BUSY_S seconds; the sentence names the process.
        ImageError: it cannot be opened. OSError: the host refuses.
        UsageError: the daemon of another user holds it. PeerError: its daemon does not answer.
    """
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            peer = rendezvous.connect(image)
            if peer is not None:
                return _live(peer)
            return _local(ZonedDevice.open(image, readonly=readonly), extensions)
        except (ImageBusyError, _GoneError):
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_S)


def live_infos() -> Iterator[dict[str, Json]]:
    """Yield what the verb ``info`` says of each image that a daemon of this user holds."""
    for peer in rendezvous.connect_all():
        # A daemon that is ending holds no image any more. A daemon that refuses, such as one of another version, is
        # skipped, so that the others are still found.
        with suppress(PeerError, UsageError), _live(peer) as target:
            yield call(target, {"verb": "info"})[0]


class Serving:
    """A daemon whose end can be waited for, even if its image or mount point is renamed meanwhile."""

    def __init__(self, peer: socket.socket, where: str) -> None:
        """Take over *peer*, a connection to the daemon.

        Raises:
            ProcessLookupError: the process has ended. OSError: it is in another PID namespace.
        """
        self._peer = peer
        self._where = where
        # The kernel names the process. A descriptor is kept, because the number of a process may be reused.
        self._pidfd = os.pidfd_open(peer_of(peer).pid)
        peer.settimeout(_HELLO_S)

    def close(self) -> None:
        """Close the connection."""
        os.close(self._pidfd)
        self._peer.close()

    def front_ends(self) -> list[str]:
        """Return the places of its front-ends: mount points, sockets, nodes.

        Raises:
            PeerError: it is about to end, or says nothing of front-ends. UsageError: it refuses.
        """
        front_ends = call(_LiveTarget(self._peer), {"verb": "info"})[0].get("front_ends")
        if not isinstance(front_ends, list):
            message = "the daemon does not say which front-ends it has"
            raise PeerError(message)
        return [str(front_end["where"]) for front_end in front_ends if isinstance(front_end, dict)]

    def wait(self, seconds: float) -> bool:
        """Return True when the process has ended or serves other front-ends only; False after *seconds*.

        The end of the process is waited for, because a process that has closed its socket may still write to the image.
        """
        deadline = time.monotonic() + seconds
        answers = True
        while time.monotonic() < deadline:
            if is_ended(self._pidfd, _POLL_S):
                return True
            if answers:
                try:
                    front_ends = self.front_ends()
                except (PeerError, UsageError):
                    answers = False
                else:
                    # Without any front-end it is about to end.
                    if front_ends and self._where not in front_ends:
                        return True
        return False


def is_ended(pidfd: int, seconds: float) -> bool:
    """Wait up to *seconds* for the end of the process *pidfd*; say whether it has ended."""
    # Not select(), which takes no descriptor above 1023.
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def find_serving(where: str, image: Path) -> Serving | None:
    """Return the daemon that has a front-end at *where*, or None. The daemon of *image* is asked before all others."""
    for peer in _peers(image):
        try:
            serving = Serving(peer, where)
        except OSError:
            # The process has ended, or is in another PID namespace.
            peer.close()
            continue
        # All daemons of the machine are asked. One of another version may refuse, or answer something else.
        with suppress(PeerError, UsageError):
            if where in serving.front_ends():
                return serving
        serving.close()
    return None


def _peers(image: Path) -> Iterator[socket.socket]:
    with suppress(OSError, UsageError):
        peer = rendezvous.connect(image)
        if peer is not None:
            yield peer
    # The image may have been renamed, and another file may be in its place.
    yield from rendezvous.connect_all(of_others=True)


def _live(peer: socket.socket) -> AbstractContextManager[Target]:
    target = _LiveTarget(peer)
    try:
        target.say_hello()
    except BaseException:
        peer.close()
        raise
    return _held(peer, target)


@contextmanager
def _held(peer: socket.socket, target: Target) -> Iterator[Target]:
    with peer:
        yield target


@contextmanager
def _local(device: ZonedDevice, extensions: Extensions) -> Iterator[Target]:
    try:
        yield LocalTarget(Verbs(device, extensions=extensions))
    finally:
        device.close()
