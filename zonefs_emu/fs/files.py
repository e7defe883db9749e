"""The files, directories and open handles of a mount, as values; the rules are in :mod:`zonefs_emu.fs.volume`.

Sizes are in bytes; *start* is a sector.
"""

import os
import stat
from copy import copy
from dataclasses import dataclass
from typing import Final

#: relatime notes an access after this time, even if the file has not changed since the access that was noted last.
_ATIME_KEPT_NS: Final = 24 * 3600 * 10**9


class Node:
    """Permissions, owner and times of a file or directory. They exist in memory only, and are lost at the unmount."""

    __slots__ = ("atime_ns", "ctime_ns", "gid", "mode", "mtime_ns", "uid")

    def __init__(self, mode: int, uid: int, gid: int, time_ns: int) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.atime_ns = self.mtime_ns = self.ctime_ns = time_ns

    def note_access(self, now_ns: int) -> None:
        """Note an access by the rule of relatime, which is the default of all mounts.

        Source: Linux fs/inode.c, relatime_need_update.
        """
        atime_ns = self.atime_ns
        if atime_ns <= self.mtime_ns or atime_ns <= self.ctime_ns or now_ns - atime_ns >= _ATIME_KEPT_NS:
            self.atime_ns = now_ns

    def truncated_by(self, uid: int, gid: int) -> None:
        """Take away the set-user-ID and set-group-ID bits that a truncation by another user than root takes away.

        Source: Linux fs/attr.c, setattr_should_drop_suidgid.
        """
        if uid:
            self.mode &= ~stat.S_ISUID
            if self.mode & stat.S_IXGRP or gid != self.gid:
                self.mode &= ~stat.S_ISGID


class ZoneFile(Node):
    """One file, of *nr_zones* zones from *zone_no* on.

    *readonly* and *offline* are marks of zonefs; the zone need not have that condition. *wp* is the size that zonefs
    takes for the write pointer, in bytes from the start of the file. *zone_open*: the volume has opened the zone
    explicitly. *active*: the file counts among the active files. *nr_writers* counts the handles that can write, and
    *nr_cached* those that use the kernel's page cache. *notified_size* is the size that was last reported to the
    kernel. *notified_before* is the size reported before that if the kernel may still use it, otherwise -1. *lookers*
    are the threads that have asked for the attributes since the last failed write, None if no write has failed.
    """

    __slots__ = (
        "active", "capacity", "immutable", "lookers", "notified_before", "notified_size", "nr_cached", "nr_writers",
        "nr_zones", "offline", "path", "readonly", "sequential", "size", "start", "wp", "zone_no", "zone_open",
    )  # fmt: skip

    def __init__(self, zone_no: int, nr_zones: int, path: str, *, sequential: bool, node: Node) -> None:
        super().__init__(node.mode, node.uid, node.gid, node.ctime_ns)
        self.zone_no = zone_no
        self.nr_zones = nr_zones
        self.path = path
        self.sequential = sequential
        self.start = 0  # sector
        self.capacity = 0
        self.size = 0
        self.wp = 0
        self.readonly = False
        self.offline = False
        self.immutable = False
        self.zone_open = False
        self.active = False
        self.nr_writers = 0
        self.nr_cached = 0
        self.notified_size = 0
        self.notified_before = -1
        self.lookers: set[int] | None = None


class Handle:
    """One open file description, with the meaning of its *flags*.

    :mod:`zonefs_emu.fs.operations` sets *cached* (the handle uses the kernel's page cache) and *failed* (a write has
    failed, after which the kernel may truncate the file). *failed_end* is the position where the last failed write
    ended, and *kernel_size* the size that the kernel had in memory then; -1 if there is none, or it is not known.
    """

    __slots__ = (
        "append", "cached", "direct", "failed", "failed_end", "file", "kernel_size", "noatime", "synchronous",
        "writable",
    )  # fmt: skip

    def __init__(self, file: ZoneFile, flags: int) -> None:
        self.file = file
        self.writable = flags & os.O_ACCMODE != os.O_RDONLY
        self.direct = bool(flags & os.O_DIRECT)
        self.append = bool(flags & os.O_APPEND)
        self.noatime = bool(flags & os.O_NOATIME)
        self.synchronous = bool(flags & os.O_DSYNC)  # O_SYNC contains the bit of O_DSYNC
        self.cached = False
        self.failed = False
        self.kernel_size = self.failed_end = -1

    def positioned(self) -> "Handle":
        """Return a copy that does not append: for a piece of a request that must not take the place of a failed one."""
        handle = copy(self)
        handle.append = False
        return handle


@dataclass(frozen=True, slots=True, kw_only=True)
class ZonefsStatistics:
    """The four counters of /sys/fs/zonefs/DEVICE (0 = no limit), and whether the file system is read-only."""

    max_wro_seq_files: int
    nr_wro_seq_files: int
    max_active_seq_files: int
    nr_active_seq_files: int
    readonly: bool
