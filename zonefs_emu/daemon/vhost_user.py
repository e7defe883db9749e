"""vhost-user sockets as front-ends of a session.

A socket of ours is left behind when a process is killed; whoever starts next takes its place if nobody answers there.
"""

import logging
import os
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from zonefs_emu.daemon.session import Session
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.vhost_user.backend import Backend
from zonefs_emu.virtqueue.model import DeviceModel

log = logging.getLogger(__name__)

_BACKLOG: Final = 8


class VhostUserFrontEnd:
    """The front-end of a session that offers what *make_model* makes of the device.

    *path* is where the socket is to be; or *fd*, a socket that somebody else has opened for us: listening, or connected
    already, in which case the front-end ends with the connection.
    """

    def __init__(
        self, make_model: Callable[[ZonedDevice], DeviceModel], *, path: Path | None = None, fd: int = -1
    ) -> None:
        """Take one of *path* and *fd*."""
        assert (path is None) != (fd < 0)
        self._make_model = make_model
        self._path = path
        self._fd = fd

    async def __call__(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled, or until the one connection ends."""
        model = self._make_model(session.device)
        if self._path is not None:
            sock, listening, where = listen(self._path), True, str(self._path)
        else:
            sock, listening = adopt(self._fd)
            where = f"file descriptor {self._fd}"
        try:
            backend = Backend(
                session.device,
                model,
                listener=sock if listening else None,
                connected=None if listening else sock,
            )
            with session.register(model.name, where, lambda: statistics(backend)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_serve, backend, nursery.cancel_scope)
                    task_status.started()
                    try:
                        await trio.sleep_forever()
                    finally:
                        backend.stop()
        finally:
            session.device.unsubscribe(model.changes)
            if self._path is not None:
                with suppress(FileNotFoundError):
                    self._path.unlink()


async def _serve(backend: Backend, scope: trio.CancelScope) -> None:
    """Run *backend* on its thread; the end of the one is the end of the other."""
    # Not abandoned when cancelled: stop() ends it, and the device must not be closed before.
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(backend.run, limiter=trio.CapacityLimiter(1))
    scope.cancel()


def statistics(backend: Backend) -> Mapping[str, int]:
    """Return the counters of a front-end, for ``info`` and ``stats``."""
    return {"connected": int(backend.is_connected), "requests": backend.count_requests()}


def listen(path: Path) -> socket.socket:
    """Return a listening socket at *path*, in the place of one that nobody answers at.

    Raises:
        UsageError: somebody serves there, or it is no socket.
        OSError: the host refuses.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            msg = f"{path} exists and is no socket"
            raise UsageError(msg, exit_code=1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                log.info("%s was left behind by a process that is gone", path)
            else:
                msg = f"another process serves at {path}"
                raise UsageError(msg, exit_code=1)
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        # The sentence of a failed bind does not name the path, and one of them is that the path is too long.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    return sock


def adopt(fd: int) -> tuple[socket.socket, bool]:
    """Return the socket *fd* that we were started with, and whether it listens.

    Raises:
        UsageError: it is no Unix socket.
    """
    try:
        sock = socket.socket(fileno=fd)
        if sock.family != socket.AF_UNIX:
            raise OSError
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0
    except OSError:
        msg = f"file descriptor {fd} is no Unix socket"
        raise UsageError(msg, exit_code=1) from None
    os.set_inheritable(fd, False)  # noqa: FBT003  (its only form)
    return sock, listening
