"""Requests about a mount to the host's kernel: unmount it, make it read-only."""

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from zonefs_emu.errors import UsageError

# Source: Linux include/uapi/linux/mount.h. The ST_ flags of statvfs(3) have the same values.
MS_RDONLY: Final = 1
MS_REMOUNT: Final = 32
#: MS_NOSUID, NODEV, NOEXEC, SYNCHRONOUS, NOATIME, NODIRATIME. A remount clears those that it does not name.
_KEPT_FLAGS: Final = 2 | 4 | 8 | 16 | 1024 | 2048

#: Source: Linux include/linux/fs.h.
_MNT_DETACH: Final = 2

#: Source: Linux include/uapi/linux/fcntl.h and stat.h: struct statx has 256 bytes, with stx_size from byte 40 on.
_AT_FDCWD: Final = -100
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_SIZE: Final = 0x200
_STATX_BYTES: Final = 256
_STX_SIZE_AT: Final = 40

_FUSERMOUNT_SECONDS: Final = 20


def unmount(mountpoint: Path, *, lazy: bool = False) -> bool:
    """Unmount *mountpoint* unless it is in use; return whether it is unmounted.

    Blocks, and needs the file system to be served meanwhile. With *lazy*, neither is so, and a file system that is in
    use is unmounted, too.
    """
    try:
        take_away(mountpoint, lazy=lazy)
    except UsageError:
        return False
    return True


def take_away(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount *mountpoint* as :func:`unmount` does, but raise if that fails.

    Raises:
        UsageError: *mountpoint* is in use, or the host refuses; the sentence says why.
    """
    busy = f"{mountpoint} cannot be unmounted: a file in it is open, or a process works in it"
    if os.geteuid() == 0:
        if _libc().umount2(os.fsencode(mountpoint), _MNT_DETACH if lazy else 0):
            number = ctypes.get_errno()
            refused = f"{mountpoint} cannot be unmounted: {os.strerror(number)}"
            raise UsageError(busy if number == errno.EBUSY else refused, 1)
        return
    try:
        done = subprocess.run(
            ["fusermount3", "-u", *(["-z"] if lazy else []), "--", os.fspath(mountpoint)],
            check=False,
            capture_output=True,
            timeout=_FUSERMOUNT_SECONDS,
            # English, because the output is compared with os.strerror() below.
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError:
        message = f"{mountpoint} cannot be unmounted: fusermount3, which unmounts for users, is not installed"
        raise UsageError(message, 1) from None
    except OSError as error:
        message = f"{mountpoint} cannot be unmounted: fusermount3 cannot be run: {error.strerror}"
        raise UsageError(message, 1) from None
    except subprocess.TimeoutExpired:
        message = f"{mountpoint} cannot be unmounted: fusermount3 has not ended within {_FUSERMOUNT_SECONDS} seconds"
        raise UsageError(message, 1) from None
    if done.returncode:
        said = os.fsdecode(done.stderr).strip()
        refused = f"{mountpoint} cannot be unmounted: {said or 'fusermount3 does not say why'}"
        raise UsageError(busy if said.endswith(os.strerror(errno.EBUSY)) else refused, 1)


def remount_readonly(mountpoint: Path) -> None:
    """Make *mountpoint* read-only for the kernel, too. Blocks, and needs the file system to be served meanwhile.

    Raises:
        OSError: EBUSY while a file is open for writing; EPERM without CAP_SYS_ADMIN; or the host refuses otherwise.
    """
    flags = os.statvfs(mountpoint).f_flag & _KEPT_FLAGS
    if _libc().mount(b"none", os.fsencode(mountpoint), None, MS_REMOUNT | MS_RDONLY | flags, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(mountpoint))


def cached_size(path: Path) -> int:
    """Return the size that the kernel has in memory for the file *path*, or -1 if the file cannot be found.

    Blocks, and may need the file system to be served: for the directories of *path*, not for the file.
    """
    status = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc().statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, _STATX_SIZE, status):
        return -1
    return int.from_bytes(status.raw[_STX_SIZE_AT : _STX_SIZE_AT + 8], sys.byteorder)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = (
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p
    )  # fmt: skip
    libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
    libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
    return libc
