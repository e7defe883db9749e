"""vhost-user sockets as front-ends of a session.

A killed process leaves its socket behind, and the next process replaces it if nothing answers there. Connecting,
removing and binding are one step under a lock of the directory (flock). Without the lock, two processes that start at
once would both find the dead socket, and the second would remove the live socket of the first.
"""

import errno
import fcntl
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

import trio

from zonefs_emu.daemon.session import Session
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.own_thread import run_until_stopped
from zonefs_emu.vhost_user.backend import Backend
from zonefs_emu.virtio.blk_config import CONFIG_BYTES, BlkOptions
from zonefs_emu.virtqueue.blk_device import BlkDevice
from zonefs_emu.virtqueue.scsi_host import ScsiHost
from zonefs_emu.virtqueue.virtio_device import VirtioDevice

log = logging.getLogger(__name__)

#: The length of the virtio block device's configuration space, which some virtual machine monitors must be given.
BLK_CONFIG_BYTES: Final = CONFIG_BYTES
#: QEMU uses a request queue for each processor of the guest, and fails if fewer are offered.
_SCSI_QUEUES: Final = 16
_BACKLOG: Final = 8
#: How long to wait for the lock of a socket's directory, which is held for microseconds. Any process that can read the
#: directory can hold the lock for longer, so the wait has an end.
_LOCK_S: Final = 5.0
#: How long removing the socket waits for that lock. A dead socket that stays does no harm.
_LAST_LOCK_S: Final = 0.5
_POLL_S: Final = 0.02


#: Makes the virtio device that offers a device.
MakeVirtioDevice: TypeAlias = Callable[[ZonedDevice], VirtioDevice]


def make_blk_device(device: ZonedDevice, *, nr_queues: int, strict: bool) -> VirtioDevice:
    """Make the virtio block device."""
    return BlkDevice(device, BlkOptions(serial=device.serial, nr_queues=nr_queues), strict=strict)


def make_scsi_host(device: ZonedDevice) -> VirtioDevice:
    """Make the virtio SCSI host."""
    return ScsiHost(device, serial=device.serial, nr_request_queues=_SCSI_QUEUES)


class VhostUserFrontEnd:
    """The front-end of a session that serves the device as the virtio device that *make_device* makes.

    *path* is the path of the socket to make. Or *fd* is a socket that another process has opened: it listens, or it is
    connected already, and then the front-end ends with the connection.
    """

    def __init__(self, make_device: MakeVirtioDevice, *, path: Path | None = None, fd: int = -1) -> None:
        """Take one of *path* and *fd*."""
        assert (path is None) != (fd < 0)
        self._make_device = make_device
        self._path = path
        self._fd = fd

    async def __call__(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled, or until the one connection ends."""
        virtio_device = self._make_device(session.device)
        if self._path is not None:
            sock, listening, where = listen(self._path), True, str(self._path)
            ours = _identity(self._path)
        else:
            sock, listening = adopt(self._fd)
            where = f"file descriptor {self._fd}"
            ours = None
        try:
            backend = Backend(
                session.device,
                virtio_device,
                listener=sock if listening else None,
                connected=None if listening else sock,
            )
            with session.register(virtio_device.name, where, lambda: statistics(backend)):
                await run_until_stopped(backend.run, backend.stop, task_status.started, backend.look_after)
        finally:
            session.device.unsubscribe(virtio_device.changes)
            if self._path is not None and ours is not None:
                _remove(self._path, ours)


def statistics(backend: Backend) -> Mapping[str, int]:
    """Return the counters of a front-end, for ``info`` and ``stats``."""
    return {"connected": int(backend.is_connected), "requests": backend.count_requests()}


def listen(path: Path) -> socket.socket:
    """Return a listening socket at *path*, in the place of one at which no process answers.

    Raises:
        UsageError: another process serves there or is about to, or *path* is no socket.
        OSError: the host refuses.
    """
    with _locked_directory(path, _LOCK_S):
        _remove_dead(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(path))
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            raise _of_path(error, path) from None
    return sock


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Yield a socket that listens at *path*, and remove *path* at the end unless it is another process's by then.

    The caller closes the socket.

    Raises:
        UsageError, OSError: as :func:`listen`.
    """
    sock = listen(path)
    ours = _identity(path)
    try:
        yield sock
    finally:
        _remove(path, ours)


def _remove_dead(path: Path) -> None:
    """Remove the socket *path* if there is one and nothing answers at it; with the directory locked."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            message = f"{path} exists and is not a socket"
            raise UsageError(message, exit_code=1)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A live server that has a guest accepts no further connections. Once its queue is full, connecting would block.
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            log.info("%s was left behind by a process that has ended", path)
        except BlockingIOError:
            raise _served(path) from None
        except OSError as error:
            raise _of_path(error, path) from None
        else:
            raise _served(path)
    path.unlink(missing_ok=True)


def _of_path(error: OSError, path: Path) -> OSError:
    """Return *error* with the name of the socket, which bind and connect do not tell."""
    # The error of a path that is too long has no number either.
    return OSError(error.errno, error.strerror or str(error), str(path))


def _served(path: Path) -> UsageError:
    return UsageError(f"another process serves at {path}", exit_code=1)


@contextmanager
def _locked_directory(path: Path, patience_s: float) -> Iterator[None]:
    """Lock the directory of *path*, so that no other process of this program makes a socket there meanwhile.

    The alternative, a lock file beside the socket, would stay behind, and could belong to another user in a directory
    that others can write to.

    Raises:
        UsageError: another process holds the lock for longer than *patience_s*.
        OSError: there is no such directory, or it may not be read.
    """
    try:
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _of_path(error, path) from None
    try:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK:
                    raise _of_path(error, path) from None
            if time.monotonic() > deadline:
                message = f"another process is about to serve at {path}, or holds a lock on {path.parent}"
                raise UsageError(message, exit_code=1)
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)


def _identity(path: Path) -> tuple[int, int]:
    """Return the identity of the file *path*, which differs from that of another file of the same name."""
    status = path.lstat()
    return status.st_dev, status.st_ino


def _remove(path: Path, identity: tuple[int, int]) -> None:
    """Remove the socket *path*, unless another process has put its own in its place."""
    with suppress(OSError, UsageError), _locked_directory(path, _LAST_LOCK_S):
        if _identity(path) == identity:
            path.unlink()


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError as error:
        return error.errno != errno.ENOTCONN
    return True


def adopt(fd: int) -> tuple[socket.socket, bool]:
    """Return the socket *fd*, which this process inherited, and whether it listens.

    Raises:
        UsageError: it is no Unix socket for a stream, or neither listens nor is connected.
    """
    try:
        sock = socket.socket(fileno=fd)
        if sock.family != socket.AF_UNIX:
            raise OSError
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0
    except OSError:
        message = f"file descriptor {fd} is not a Unix socket"
        raise UsageError(message, exit_code=1) from None
    refusal = ""
    if sock.type != socket.SOCK_STREAM:
        refusal = f"file descriptor {fd} is a Unix socket for datagrams or packets: vhost-user needs a stream"
    elif not listening and not _is_connected(sock):
        refusal = f"the Unix socket of file descriptor {fd} neither listens nor is connected"
    if refusal:
        sock.close()
        raise UsageError(refusal, exit_code=1)
    os.set_inheritable(fd, False)  # noqa: FBT003  (its only form)
    return sock, listening
