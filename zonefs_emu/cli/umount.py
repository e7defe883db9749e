"""``umount``: the end of a mount."""

import errno
import os
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import FILE
from zonefs_emu.daemon.client import find_serving
from zonefs_emu.errors import UsageError
from zonefs_emu.fs.kernel import take_away
from zonefs_emu.fs.mount_table import mount_at
from zonefs_emu.persist.backing import user_name

#: How long the daemon may take to write back and let the image go.
_END_S: Final = 60.0


@click.command(short_help="Unmount a zonefs and wait until its image is free.")
@click.argument("directory", metavar="DIR", type=FILE)
def umount(*, directory: Path) -> None:
    """Unmount the zonefs at DIR, and return when everything is written back and the image is free.

    \b
    Example:
      zonefs-emu umount mnt

    Refused while a file under DIR is open or a process works in it.
    """
    place = Path(os.path.realpath(directory))
    entry = mount_at(place)
    if entry is None:
        msg = f"no zonefs of ours is mounted at {directory}"
        raise UsageError(msg, exit_code=1)
    if os.geteuid() not in (0, entry.uid):
        msg = f"{directory} is the mount of {user_name(entry.uid)}: only they and root can unmount it"
        raise UsageError(msg, exit_code=1)
    # Looked for while it can be asked; afterwards only the process is left of it.
    serving = find_serving(str(place), entry.source) if is_alive(place) else None
    try:
        take_away(place)
        if serving is not None and not serving.wait(_END_S):
            msg = f"{directory} is unmounted, but the process that served {entry.source} has not ended"
            raise UsageError(msg, exit_code=1)
    finally:
        if serving is not None:
            serving.close()


def is_alive(place: Path) -> bool:
    """Say whether a process serves the FUSE mount at *place*: without one, every request fails."""
    try:
        # What stat(2) asks for is in the kernel's cache.
        os.statvfs(place)
    except OSError as error:
        return error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)
    return True
