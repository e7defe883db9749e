"""Where the control socket of an image is.

It is found from the image alone, by whatever name: the socket is called after the device and inode number of the file,
in a directory that only its user can enter. There are two places, because a daemon that was started from cron or sudo
has no $XDG_RUNTIME_DIR where a login has one: a daemon takes the first that works, a client looks into both.

Binding and connecting go through /proc/self/fd: a socket's address has 107 bytes, a temporary directory can have more.
"""

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from zonefs_emu.errors import UsageError

_DIRECTORY: Final = "zonefs-emu"
_CONNECT_S: Final = 5.0
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def socket_name(image: Path) -> str:
    """Return the name of the control socket for the file *image*.

    Raises:
        OSError: there is no such file.
    """
    status = image.stat()
    return f"{status.st_dev:x}-{status.st_ino:x}.sock"


def directories() -> list[Path]:
    """Return where control sockets of this user can be, the best place first."""
    places = [Path(tempfile.gettempdir()) / f"{_DIRECTORY}-{os.geteuid()}"]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_absolute():
        places.insert(0, Path(runtime) / _DIRECTORY)
    return places


def make_directory() -> Path:
    """Create the directory for our control socket if it is missing, and return it.

    Raises:
        UsageError: no place can be used; says why of the last one.
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
    msg = f"there is no place for the control socket ({reason}): set XDG_RUNTIME_DIR to a directory of your own"
    raise UsageError(msg, exit_code=1)


@contextmanager
def open_directory(place: Path) -> Iterator[int]:
    """Open *place* and make sure that it is ours alone.

    In a directory that others can write to (the temporary one) somebody may have been there first.

    Raises:
        PermissionError: it belongs to somebody else, or others can enter it.
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
    """Return where a daemon for *image* in the background writes what it has to say.

    Raises:
        UsageError: there is no place for it. OSError: there is no such image.
    """
    return (make_directory() / socket_name(image)).with_suffix(".log")


def listen(image: Path, backlog: int) -> tuple[socket.socket, Path]:
    """Return a listening control socket for *image*, and its path.

    The caller holds the image exclusively, so a socket that is already there was left behind by a process that is dead.

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


def connect(image: Path) -> socket.socket | None:
    """Return a connection to the daemon of this user that holds *image*, or None.

    Raises:
        OSError: there is no such image.
    """
    return _connect(socket_name(image))


def connect_all() -> Iterator[socket.socket]:
    """Yield a connection to each daemon of this user; the caller closes it."""
    seen: set[str] = set()
    for place in directories():
        with suppress(OSError), open_directory(place) as fd:
            seen.update(name for name in os.listdir(fd) if name.endswith(".sock"))  # noqa: PTH208  (of a descriptor)
    for name in sorted(seen):
        peer = _connect(name)
        if peer is not None:
            yield peer


def _connect(name: str) -> socket.socket | None:
    for place in directories():
        # No directory, no socket, nobody behind it any more, or not our directory: no daemon there.
        with suppress(OSError), open_directory(place) as fd:
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            # A queue of clients that is full fails at once with a timeout set, and blocks without.
            peer.settimeout(_CONNECT_S)
            try:
                peer.connect(f"/proc/self/fd/{fd}/{name}")
            except BaseException:
                peer.close()
                raise
            return peer
    return None
