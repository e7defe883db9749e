"""``umount``: the end of a mount."""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import FILE
from zonefs_emu.daemon.client import find_serving
from zonefs_emu.errors import UsageError
from zonefs_emu.fs.kernel import unmount

_FS_TYPE: Final = b"fuse.zonefs"
#: How long the daemon may take to write back and let the image go.
_END_S: Final = 60.0
_ESCAPE: Final = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountEntry:
    """A mount of ours as the kernel lists it."""

    directory: Path
    source: Path


def find_mounts(mountinfo: bytes) -> list[MountEntry]:
    """Return our mounts in *mountinfo*, the content of /proc/self/mountinfo, the latest first.

    A table of bytes: names of other people's mounts are in it, with any byte but a newline, which alone ends a line.

    Source: Linux Documentation/filesystems/proc.rst, 3.5; fs/proc_namespace.c: blank, tab, newline, backslash and "#"
    are written in octal.
    """
    entries = []
    for line in mountinfo.split(b"\n"):
        # The first separator: the fields before it, which are of any number, have no blank in them.
        before, _, after = line.partition(b" - ")
        fields, (fs_type, source, *_) = before.split(b" "), [*after.split(b" "), b""]
        if fs_type == _FS_TYPE:
            entries.append(MountEntry(directory=_unescape(fields[4]), source=_unescape(source)))
    return entries[::-1]


def _unescape(name: bytes) -> Path:
    return Path(os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), name)))


@click.command(short_help="Unmount a zonefs and wait until its image is free.")
@click.argument("directory", metavar="DIR", type=FILE)
def umount(*, directory: Path) -> None:
    """Unmount the zonefs at DIR, and return when everything is written back and the image is free.

    \b
    Example:
      zonefs-emu umount mnt

    Refused while a file under DIR is open or a process works in it.
    """
    place = directory.resolve()
    mounts = find_mounts(Path("/proc/self/mountinfo").read_bytes())
    entry = next((entry for entry in mounts if entry.directory == place), None)
    if entry is None:
        msg = f"no zonefs of ours is mounted at {directory}"
        raise UsageError(msg, exit_code=1)
    # Looked for while it can be asked; afterwards only the process is left of it.
    serving = find_serving(str(place), entry.source) if is_alive(place) else None
    try:
        if not unmount(place):
            msg = f"{directory} cannot be unmounted: a file in it is open, or it is not yours"
            raise UsageError(msg, exit_code=1)
        if serving is not None and not serving.wait(_END_S):
            msg = f"{directory} is unmounted, but the process that served {entry.source} has not ended"
            raise UsageError(msg, exit_code=1)
    finally:
        if serving is not None:
            serving.close()


def is_alive(place: Path) -> bool:
    """Say whether a process serves the FUSE mount at *place*: without one, every request is answered by ENOTCONN."""
    try:
        place.stat()
    except OSError as error:
        return error.errno != errno.ENOTCONN
    return True
