"""The zonefs on an image as a mounted directory: the front-end, and unmounting."""

import errno
import os
import stat
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import trio

from zonefs_emu.daemon.client import find_serving
from zonefs_emu.daemon.session import Session
from zonefs_emu.errors import UsageError
from zonefs_emu.fs.kernel import take_away
from zonefs_emu.fs.mount_table import mount_at
from zonefs_emu.fs.options import parse_options
from zonefs_emu.persist.backing import user_name

#: How long the daemon may take to write back and close the image.
_END_S: Final = 60.0
#: The errors of a FUSE mount whose process is gone; the second one answers requests that the process had received.
_DEAD: Final = frozenset((errno.ENOTCONN, errno.ECONNABORTED))
_WHO_MAY: Final = "only this user and root can unmount it"


class ZonefsFrontEnd:
    """The front-end of a session that mounts the image at *directory*, with the mount's *options*, as after ``-o``.

    A mount that a killed process left at *directory* is unmounted at once.

    Raises:
        UsageError: an option is wrong, or *directory* cannot be mounted on; with the reason.
    """

    def __init__(self, directory: Path, options: str = "") -> None:
        self._options = parse_options(options)
        #: The directory, without links.
        self.place = _mountable(directory)

    @property
    def readonly(self) -> bool:
        """Whether nothing is written through the mount."""
        return self._options.readonly

    async def __call__(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        """Mount, and serve until unmounted or cancelled."""
        # Imported here because it loads libfuse, which only a mount needs.
        from zonefs_emu.fs.mount import serve  # noqa: PLC0415

        start = partial(serve, session.device, self.place, self._options, source=str(session.path))
        with ExitStack() as registered:
            async with trio.open_nursery() as nursery:
                mount = await nursery.start(start)
                registered.enter_context(session.register("zonefs", str(self.place), mount.statistics))
                task_status.started()


def _mountable(directory: Path) -> Path:
    """Return *directory* without links, after a mount of a dead process there was removed.

    Raises:
        UsageError: it cannot be mounted on; with the reason.
    """
    place = Path(os.path.realpath(directory))
    while True:
        try:
            # Attributes may come from the kernel's cache. This request goes to the file system if it is FUSE.
            os.statvfs(directory)
            if not stat.S_ISDIR(directory.stat().st_mode):
                message = f"{directory} is not a directory, so nothing can be mounted on it"
                raise UsageError(message, exit_code=1)
        except OSError as error:
            if error.errno not in _DEAD:
                message = f"nothing can be mounted on {directory}: {error.strerror}"
                # FUSE refuses other users, root too, whether the process of the mount lives or not.
                entry = mount_at(place) if error.errno == errno.EACCES else None
                if entry is not None and entry.uid != os.geteuid():
                    message = f"{directory} was mounted by {user_name(entry.uid)}: {_WHO_MAY}"
                raise UsageError(message, exit_code=1) from None
        else:
            return place
        _take_away_dead(directory, place)


def _take_away_dead(directory: Path, place: Path) -> None:
    entry = mount_at(place)
    if entry is None:
        message = f"{directory} is a mount of another program whose process has ended: 'umount {directory}' removes it"
        raise UsageError(message, exit_code=1)
    if os.geteuid() not in (0, entry.uid):
        message = f"{directory} was mounted by {user_name(entry.uid)}, whose process has ended: {_WHO_MAY}"
        raise UsageError(message, exit_code=1)
    # The unmount is lazy: files that are still open in the mount do not stop it.
    take_away(place, lazy=True)


def unmount(directory: Path) -> None:
    """Unmount the zonefs at *directory*, and return when everything is written back and the image is free.

    Raises:
        UsageError: no zonefs of this program is mounted there, it is in use, or its process does not end; says which.
    """
    place = Path(os.path.realpath(directory))
    entry = mount_at(place)
    if entry is None:
        message = f"no zonefs of zonefs-emu is mounted at {directory}"
        raise UsageError(message, exit_code=1)
    if os.geteuid() not in (0, entry.uid):
        message = f"{directory} was mounted by {user_name(entry.uid)}: {_WHO_MAY}"
        raise UsageError(message, exit_code=1)
    # The daemon is looked up before the unmount, while it answers. After that only the id of its process is of use.
    serving = find_serving(str(place), entry.source) if _is_alive(place) else None
    try:
        take_away(place)
        if serving is not None and not serving.wait(_END_S):
            message = f"{directory} is unmounted, but the process that served {entry.source} has not ended"
            raise UsageError(message, exit_code=1)
    finally:
        if serving is not None:
            serving.close()


def _is_alive(place: Path) -> bool:
    """Return whether a process serves the FUSE mount at *place*: without one, every request fails."""
    try:
        # Not stat(2), which the kernel answers from its cache.
        os.statvfs(place)
    except OSError as error:
        return error.errno not in _DEAD
    return True
