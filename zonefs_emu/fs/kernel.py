"""What only the host's kernel can do to a mount: take it away, make it read-only."""

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Final

# Source: Linux include/uapi/linux/mount.h. The ST_ flags of statvfs(3) have the same values.
MS_RDONLY: Final = 1
MS_REMOUNT: Final = 32
#: MS_NOSUID, NODEV, NOEXEC, SYNCHRONOUS, NOATIME, NODIRATIME: what a remount would clear if it did not name them.
_KEPT_FLAGS: Final = 2 | 4 | 8 | 16 | 1024 | 2048

#: Source: Linux include/linux/fs.h.
_MNT_DETACH: Final = 2

_FUSERMOUNT_SECONDS: Final = 20


def unmount(mountpoint: Path, *, lazy: bool = False) -> bool:
    """Unmount *mountpoint* if nobody uses it; say whether it is gone.

    Blocks, and needs the file system to be served meanwhile; not if *lazy*, which takes it away from its users too.
    """
    if os.geteuid() == 0:
        return bool(_libc().umount2(os.fsencode(mountpoint), _MNT_DETACH if lazy else 0) == 0)
    try:
        done = subprocess.run(
            ["fusermount3", "-u", "-q", *(["-z"] if lazy else []), "--", os.fspath(mountpoint)],
            check=False,
            capture_output=True,
            timeout=_FUSERMOUNT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def remount_readonly(mountpoint: Path) -> None:
    """Make *mountpoint* read-only for the kernel too. Blocks, and needs the file system to be served.

    Raises:
        OSError: EBUSY while a file is open for writing; EPERM without CAP_SYS_ADMIN.
    """
    flags = os.statvfs(mountpoint).f_flag & _KEPT_FLAGS
    if _libc().mount(b"none", os.fsencode(mountpoint), None, MS_REMOUNT | MS_RDONLY | flags, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(mountpoint))


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = (
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p
    )  # fmt: skip
    libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
    return libc
