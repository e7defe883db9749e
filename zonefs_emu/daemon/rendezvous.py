"""Where the control sockets of an image are.

Their names are made from the device and inode number of the image, so that they are found by any name of the file. A
daemon listens at two sockets:

* An abstract socket, which belongs to no directory, so that a client of another environment or user finds it. Such
  names belong to the network namespace, and any process there may take one. So a client asks the kernel which process
  listens (:mod:`zonefs_emu.daemon.holders`). It trusts a process of its own user only; root also trusts a process that
  holds the image's lock and may write to the image.
* A socket in a directory that only its user can enter, which is found from another network namespace too (a
  container's). There are two such directories, because a daemon that was started from cron or sudo has no
  $XDG_RUNTIME_DIR. A daemon takes the first one that works, and a client looks into both.

The path of the socket is not stored in the image, because a read-only image could not have it.

Binding and connecting go through /proc/self/fd: a socket's address has at most 107 bytes, and the name of a temporary
directory can have more.
"""

import errno
import logging
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from zonefs_emu.daemon.holders import lock_holders, may_write, peer_of
from zonefs_emu.errors import UsageError, trying
from zonefs_emu.persist.backing import user_name

log = logging.getLogger(__name__)

_DIRECTORY: Final = "zonefs-emu"
_CONNECT_S: Final = 5.0
#: The beginning of abstract names, after the NUL that makes them abstract.
_PREFIX: Final = "zonefs-emu/"
#: The field of /proc/net/unix that has the name.
_UNIX_NAME: Final = 7
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def socket_name(image: Path) -> str:
    """Return the name of the control socket for the file *image*.

    Raises:
        OSError: there is no such file.
    """
    with trying(f"open {image}"):
        status = image.stat()
    return f"{status.st_dev:x}-{status.st_ino:x}.sock"


def directories() -> list[Path]:
    """Return the directories where control sockets of this user can be, the best one first."""
    places = [Path(tempfile.gettempdir()) / f"{_DIRECTORY}-{os.geteuid()}"]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_absolute():
        places.insert(0, Path(runtime) / _DIRECTORY)
    return places


def make_directory() -> Path:
    """Create the directory for the control socket of this process if it is missing, and return it.

    Raises:
        UsageError: no directory can be used; with the reason of the last one.
    """
    reason = ""
    for place in directories():
        try:
            with suppress(FileExistsError):
                place.mkdir(mode=0o700)
            with open_directory(place):
                return place
        except (OSError, PermissionError) as error:
            reason = f"{place}: {error.strerror}"
    message = f"there is no place for the control socket ({reason}): set XDG_RUNTIME_DIR to a directory of your own"
    raise UsageError(message, exit_code=1)


@contextmanager
def open_directory(place: Path) -> Iterator[int]:
    """Open *place* and make sure that only this user can enter it.

    In a directory that others can write to, like the temporary one, another user may have created *place* first.

    Raises:
        PermissionError: it belongs to another user, or others can enter it.
        OSError: it cannot be opened.
    """
    fd = os.open(place, _DIRECTORY_FLAGS)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(0, "it is not a directory that only you can enter", str(place))
        yield fd
    finally:
        os.close(fd)


def log_path(image: Path) -> Path:
    """Return the path of the log of a daemon for *image* in the background.

    Raises:
        UsageError: there is no place for it. OSError: there is no such image.
    """
    return (make_directory() / socket_name(image)).with_suffix(".log")


def listen(image: Path, backlog: int) -> tuple[socket.socket, Path]:
    """Return a listening control socket for *image*, and its path.

    The caller holds the image exclusively, so a socket that exists already was left by a dead process.

    Raises:
        UsageError: there is no place for it.
        OSError: the host refuses.
    """
    place = make_directory()
    name = socket_name(image)
    with open_directory(place) as fd:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=fd)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{fd}/{name}")
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
    return listener, place / name


def listen_everywhere(image: Path, backlog: int) -> socket.socket | None:
    """Return a second listening control socket for *image*, with a name that needs no directory; None if it is taken.

    Raises:
        OSError: the host refuses.
    """
    name = socket_name(image)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(f"\0{_PREFIX}{name}")
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise
        # This process holds the image, so the process that took the name does not serve it.
        squatter = _connect_abstract(name)
        by = "" if squatter is None else f" by {peer_of(squatter)}"
        if squatter is not None:
            squatter.close()
        log.warning("the control socket's name @%s%s is taken%s: only verbs of this user and environment find this "
                    "daemon", _PREFIX, name, by)  # fmt: skip
        return None
    return listener


def connect(image: Path) -> socket.socket | None:
    """Return a connection to the daemon that holds *image* and may be driven by this user, or None.

    Raises:
        UsageError: the daemon of another user holds it; names the user.
        OSError: there is no such image.
    """
    name = socket_name(image)
    peer = _connect_abstract(name)
    if peer is not None:
        try:
            if _is_to_be_believed(peer, image):
                return peer
        except BaseException:
            peer.close()
            raise
        peer.close()
    return _connect_in_directories(name)


def _is_to_be_believed(connection: socket.socket, image: Path) -> bool:
    """Return whether this user may use the process that listens at the socket of a daemon of *image*.

    Raises:
        UsageError: it holds the image, and belongs to another user.
    """
    peer = peer_of(connection)
    if peer.uid == os.geteuid():
        return True
    if peer.pid not in lock_holders(image):
        log.info("%s listens where a daemon of %s would, but does not hold it", peer, image)
        return False
    if os.geteuid() == 0 and may_write(connection, image):
        return True
    who = user_name(peer.uid)
    message = f"{image} is in use by {peer}: only {who}{'' if peer.uid == 0 else ' or root'} can work on it meanwhile"
    if os.geteuid() == 0:
        message = f"{image} is in use by {peer}, which is not trusted because it may not write to the image"
    raise UsageError(message, exit_code=1)


def connect_all(*, of_others: bool = False) -> Iterator[socket.socket]:
    """Yield a connection to each daemon of this user; the caller closes it.

    With *of_others*, root gets those of other users as well: their end may be waited for, but their replies may be
    false.
    """
    names = set(_abstract_names())
    for place in directories():
        with suppress(OSError), open_directory(place) as fd:
            names.update(name for name in os.listdir(fd) if name.endswith(".sock"))  # noqa: PTH208  (of a descriptor)
    for name in sorted(names):
        connection = _connect_abstract(name)
        if connection is not None and peer_of(connection).uid != os.geteuid() and not (of_others and os.geteuid() == 0):
            connection.close()
            connection = None
        connection = connection or _connect_in_directories(name)
        if connection is not None:
            yield connection


def _abstract_names() -> Iterator[str]:
    """Yield the names of the abstract sockets that could be control sockets.

    Source: proc(5), /proc/net/unix; net/unix/af_unix.c, unix_seq_show: the first NUL of a name is shown as "@".
    """
    prefix = f"@{_PREFIX}".encode()
    with suppress(OSError):  # without /proc nothing is listed
        for line in Path("/proc/net/unix").read_bytes().split(b"\n"):
            fields = line.split(None, _UNIX_NAME)
            if len(fields) > _UNIX_NAME and fields[_UNIX_NAME].startswith(prefix):
                yield os.fsdecode(fields[_UNIX_NAME].removeprefix(prefix))


def _connect_abstract(name: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(_CONNECT_S)
    try:
        connection.connect(f"\0{_PREFIX}{name}")
    except OSError:
        # No socket of that name, or one with a full queue.
        connection.close()
        return None
    return connection


def _connect_in_directories(name: str) -> socket.socket | None:
    for place in directories():
        # No directory, no socket, no listener behind it, or another user's directory: there is no daemon.
        with suppress(OSError), open_directory(place) as fd:
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            # Without a timeout, connecting to a socket whose queue is full would block; with one, it fails at once.
            peer.settimeout(_CONNECT_S)
            try:
                peer.connect(f"/proc/self/fd/{fd}/{name}")
            except BaseException:
                peer.close()
                raise
            return peer
    return None
