"""``umount``: the end of a mount."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import FILE
from zonefs_emu.daemon.client import call, open_target
from zonefs_emu.errors import ImageError, PeerError, UsageError
from zonefs_emu.fs.kernel import unmount

_FS_TYPE: Final = b"fuse.zonefs"
#: How long the daemon may take to write back and let the image go.
_END_S: Final = 60.0
_POLL_S: Final = 0.02
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
    if not unmount(place):
        msg = f"{directory} cannot be unmounted: a file in it is open, or it is not yours"
        raise UsageError(msg, exit_code=1)
    _wait_until_free(entry.source, str(place))


def _wait_until_free(image: Path, place: str) -> None:
    """Return when no daemon serves *image* at *place* any more.

    Raises:
        UsageError: that takes too long.
    """
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline:
        if not image.exists() or not _is_served(image, place):
            return
        time.sleep(_POLL_S)
    msg = f"{place} is unmounted, but the process that served {image} has not ended"
    raise UsageError(msg, exit_code=1)


def _is_served(image: Path, place: str) -> bool:
    try:
        # Opening waits for a daemon that is letting the image go.
        with open_target(image, readonly=True) as target:
            if not target.live:
                return False
            front_ends = call(target, {"verb": "info"})[0]["front_ends"]
    except PeerError:
        return True
    except ImageError:
        # Free, whatever else is wrong with it: or held by somebody who is not ours to wait for.
        return False
    assert isinstance(front_ends, list)
    # Another front-end may go on, and the image with it; a session without front-ends is about to end.
    others = [front_end for front_end in front_ends if isinstance(front_end, dict) and front_end["where"] != place]
    return not others
