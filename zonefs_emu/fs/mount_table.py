"""The kernel's table of mounts: which mounts are those of zonefs_emu, and their owners.

The table is read as bytes, because names in it may have any byte but a newline.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FS_TYPE: Final = b"fuse.zonefs"
_ESCAPE: Final = re.compile(rb"\\([0-3][0-7]{2})")
_USER: Final = re.compile(rb"(?:^|,)user_id=(\d+)(?:,|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountEntry:
    """A mount as the kernel lists it: the mounted *source*, and the *directory* where it is mounted.

    *is_ours*: it is a zonefs of zonefs_emu. *uid* is then its owner, as numbered in the user namespace of this process.
    """

    directory: Path
    source: Path
    is_ours: bool
    uid: int


def parse(mountinfo: bytes) -> list[MountEntry]:
    """Return the mounts in *mountinfo*, the content of /proc/self/mountinfo, the latest one first.

    Source: Linux Documentation/filesystems/proc.rst, 3.5; fs/proc_namespace.c, show_mountinfo, which writes blank, tab,
    newline, backslash and "#" in octal.
    """
    entries = []
    for line in mountinfo.split(b"\n"):
        # The first " - " is the separator: there is any number of fields before it, but none of them has a blank.
        before, separator, after = line.partition(b" - ")
        if separator:
            fs_type, source, options, *_ = [*after.split(b" "), b"", b""]
            user = _USER.search(options)
            entries.append(
                MountEntry(
                    directory=_unescape(before.split(b" ")[4]),
                    source=_unescape(source),
                    is_ours=fs_type == _FS_TYPE,
                    uid=int(user[1]) if user else 0,
                )
            )
    return entries[::-1]


def mount_at(directory: Path) -> MountEntry | None:
    """Return the mount that is seen at *directory*, an absolute path without links; None unless it is ours."""
    entries = parse(Path("/proc/self/mountinfo").read_bytes())
    top = next((entry for entry in entries if entry.directory == directory), None)
    return top if top is not None and top.is_ours else None


def _unescape(name: bytes) -> Path:
    return Path(os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), name)))
