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
    *number* is the kernel's number of the mount, which stays when it is moved. A later mount may get the same one.
    """

    directory: Path
    source: Path
    is_ours: bool
    uid: int
    number: int

    def is_same_mount(self, other: "MountEntry") -> bool:
        """Return whether both entries are of one mount, which may have been moved between them."""
        return (self.number, self.source, self.is_ours) == (other.number, other.source, other.is_ours)


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
            number, _, _, _, directory, *_ = before.split(b" ")
            entries.append(
                MountEntry(
                    directory=_unescape(directory),
                    source=_unescape(source),
                    is_ours=fs_type == _FS_TYPE,
                    uid=int(user[1]) if user else 0,
                    number=int(number),
                )
            )
    return entries[::-1]


def mount_at(directory: Path) -> MountEntry | None:
    """Return the mount that is seen at *directory*, an absolute path without links; None unless it is ours."""
    top = next((entry for entry in _read() if entry.directory == directory), None)
    return top if top is not None and top.is_ours else None


def place_of(mount: MountEntry) -> Path | None:
    """Return the directory at which *mount* is seen now; None if it is unmounted, or another mount covers it."""
    seen: dict[Path, MountEntry] = {}
    for entry in _read():
        seen.setdefault(entry.directory, entry)
    return next((directory for directory, entry in seen.items() if entry.is_same_mount(mount)), None)


def _read() -> list[MountEntry]:
    return parse(Path("/proc/self/mountinfo").read_bytes())


def _unescape(name: bytes) -> Path:
    return Path(os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), name)))
