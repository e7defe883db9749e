"""The processes that hold an image, and the process at the other end of a socket, as the kernel reports them.

A process's own statements are not used. An impostor has neither the lock of the image nor the right to write to it.
"""

import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from zonefs_emu.persist.backing import user_name

_UCRED: Final = struct.Struct("3i")
#: Source: Linux include/uapi/asm-generic/socket.h; the module socket has no name for it.
_SO_PEERGROUPS: Final = 59
_GROUP: Final = struct.Struct("I")
#: NGROUPS_MAX of Linux.
_GROUPS_MAX: Final = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The process at the other end of a Unix socket: of a listening one, the process that made it listen.

    *pid* is 0 for a process that this process cannot see, in another PID namespace.
    """

    pid: int
    uid: int

    def __str__(self) -> str:
        """Return the name of that process, for messages."""
        return f"process {self.pid} of {user_name(self.uid)}"


class _Connection(Protocol):
    """A connected socket, the standard library's or trio's."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def peer_of(connection: _Connection) -> Peer:
    """Return the process at the other end of *connection*. Source: unix(7), SO_PEERCRED."""
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid=pid, uid=uid)


def lock_holders(image: Path) -> set[int]:
    """Return the processes that hold a lock, flock(2), on the file *image*, as far as this process can see them.

    Raises:
        OSError: there is no such file.

    Source: proc(5), /proc/locks: "1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF"; a waiting process has "->".
    """
    place = _place_of(image)
    holders = set()
    with suppress(OSError):  # without /proc nothing is known
        for line in Path("/proc/locks").read_bytes().split(b"\n"):
            fields = line.split()
            if len(fields) >= 6 and fields[1] == b"FLOCK" and fields[5] == place:
                holders.add(int(fields[4]))
    return holders


def _place_of(image: Path) -> bytes:
    """Return the device and inode number of *image* as /proc/locks has them.

    /proc/locks has the device of the file system, which the table of mounts has too. stat(2) has the device of a btrfs
    subvolume or of a layer of an overlay instead.
    """
    fd = os.open(image, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        major, minor = os.major(status.st_dev), os.minor(status.st_dev)
        with suppress(OSError, IndexError, ValueError):
            fdinfo = Path(f"/proc/self/fdinfo/{fd}").read_bytes()
            mount = next(line.split()[1] for line in fdinfo.split(b"\n") if line.startswith(b"mnt_id:"))
            for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n"):
                if line.startswith(mount + b" "):
                    major, minor = map(int, line.split(b" ")[2].split(b":"))
    finally:
        os.close(fd)
    return b"%02x:%02x:%d" % (major, minor, status.st_ino)


def may_write(connection: _Connection, image: Path) -> bool:
    """Return whether the process at the other end of *connection* may write to *image*, by the file's mode.

    Such a process can put any content into the image, so it gains nothing by lying about the content.

    Raises:
        OSError: there is no such file.
    """
    status, peer = image.stat(), peer_of(connection)
    if peer.uid in (0, status.st_uid):
        return True
    groups: list[int] = []
    with suppress(OSError):  # another architecture has another number for the option
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_MAX * _GROUP.size)
        groups = [group for (group,) in _GROUP.iter_unpack(packed)]
    return bool(status.st_mode & 0o002 or (status.st_mode & 0o020 and status.st_gid in groups))
