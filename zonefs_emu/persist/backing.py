"""The file under an image. No other module locks, reads, writes, syncs or maps the file of an open image.

Compiled code reads and writes data through the descriptor of a :class:`FileBacking`.

May not know: the meaning of the bytes.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import pwd
import stat
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from zonefs_emu.errors import ImageBusyError, ImageError, trying
from zonefs_emu.persist import sigbus

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: The errors of copy_file_range(2) between files that the kernel cannot copy: on two file systems, or without support.
_NO_COPY_RANGE: Final = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP))
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
#: The errors of a full host, for all users or for this one.
NO_SPACE_ERRNOS: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
#: The kinds of files that are not regular.
_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


class Backing(Protocol):
    """The file under an image, of fixed length except for repairs. Offsets and lengths in bytes.

    Errors are OSError.
    """

    #: preadv(buffers, offset) and pwritev(buffers, offset) return the bytes moved, like the functions of os. They are
    #: attributes and not methods, so that reads and writes call those functions directly.
    preadv: Callable[[Sequence["Buffer"], int], int]
    pwritev: Callable[[Sequence["Buffer"], int], int]

    @property
    def length(self) -> int:
        """Length of the file in bytes."""
        ...

    @property
    def permissions(self) -> int:
        """Permission bits of the file, which a copy of it has as well."""
        ...

    def pread(self, length: int, offset: int) -> bytes:
        """Return up to *length* bytes."""
        ...

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of *data*."""
        ...

    def sync(self) -> None:
        """Make everything written so far durable."""
        ...

    def punch(self, offset: int, length: int) -> None:
        """Turn the range into zeros and give its space back to the host."""
        ...

    def extents(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the runs between *start* and *end* that may not be zeros."""
        ...

    def reserve(self, offset: int, length: int) -> None:
        """Allocate the range, so that later writes and mapped stores to it need no more room on the host."""
        ...

    def resize(self, length: int) -> None:
        """Cut the file to *length*, or add zeros up to it; no part of it is mapped.

        For repairs, and for an image that comes from a stream.
        """
        ...

    def map(self, offset: int, length: int, lost: Callable[[], None] | None = None) -> memoryview:
        """Return the range as memory whose content survives the end of this process.

        *lost* is called when an access finds that the file has lost that memory; see :mod:`zonefs_emu.persist.sigbus`.
        """
        ...

    def close(self) -> None:
        """Release everything, the lock included."""
        ...


def _close_in(process: int, fd: int) -> None:
    """Close *fd*, unless this is a child of *process*: there a daemon has closed it, and its number may be reused."""
    if os.getpid() == process:
        os.close(fd)


class FileBacking:
    """A file of the host, under a lock.

    After :meth:`close`, every call fails with EBADF for as long as this object lives. The file is released at once, but
    its descriptor stays in use, because another thread may be about to use it and must not meet another file.
    """

    def __init__(self, path: Path, fd: int) -> None:
        """Take over *fd*."""
        self.path = path
        self._fd = fd
        self._is_closed = False
        self._release = weakref.finalize(self, _close_in, os.getpid(), fd)
        self._maps: list[tuple[mmap.mmap, memoryview]] = []
        self._watched: list[int] = []
        self.preadv: Callable[[Sequence[Buffer], int], int] = partial(os.preadv, fd)
        self.pwritev: Callable[[Sequence[Buffer], int], int] = partial(os.pwritev, fd)

    @classmethod
    def create(
        cls, path: Path, length: int, allocated: Sequence[tuple[int, int]], *, permissions: int = 0o666
    ) -> "FileBacking":
        """Create the sparse file *path* of *length* bytes, with the *allocated* (offset, length) runs reserved.

        The umask is subtracted from *permissions*; a daemon's umask subtracts nothing. Every part that will be mapped
        must be reserved: a store into a hole of a full file system is a SIGBUS.

        Raises:
            FileExistsError: the file exists, and creating never overwrites.
            OSError: the host refuses or has no room. ImageBusyError: another process has locked the new file. No file
                is left behind.
        """
        with trying(f"create {path}"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, permissions)
        backing = cls(path, fd)
        try:
            backing._lock(exclusive=True)
            backing.resize(length)
            for offset, run in allocated:
                backing.reserve(offset, run)
        except BaseException:
            backing.close()
            path.unlink()
            raise
        return backing

    @classmethod
    def open(cls, path: Path, *, readonly: bool = False, alone: bool = False) -> "FileBacking":
        """Open *path*: exclusively, or beside other readers if *readonly* and not *alone*.

        Raises:
            ImageBusyError: another process holds it. ImageError: it is no regular file.
            OSError: it cannot be opened.
        """
        with trying(f"open {path}{'' if readonly else ' for writing'}"):
            fd = _open_regular(path, os.O_RDONLY if readonly else os.O_RDWR)
        backing = cls(path, fd)
        try:
            backing._lock(exclusive=alone or not readonly)
        except BaseException:
            backing.close()
            raise
        return backing

    @classmethod
    def peek(cls, path: Path) -> "FileBacking":
        """Open *path* for reading without any lock: the content may change under the reader.

        Raises:
            ImageError: it is no regular file. OSError: it cannot be opened.
        """
        with trying(f"open {path}"):
            return cls(path, _open_regular(path, os.O_RDONLY))

    def _lock(self, *, exclusive: bool) -> None:
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ImageBusyError(str(self.path), "another process") from None

    @property
    def descriptor(self) -> int:
        """The file's descriptor, for compiled code that does what *preadv* and *pwritev* do."""
        return self._fd

    @property
    def length(self) -> int:
        """Length of the file in bytes."""
        return os.fstat(self._fd).st_size

    @property
    def permissions(self) -> int:
        """Permission bits of the file."""
        return stat.S_IMODE(os.fstat(self._fd).st_mode) & 0o666

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode number, which are the same under every name of the file."""
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def pread(self, length: int, offset: int) -> bytes:
        """Return up to *length* bytes."""
        with trying(f"read {self.path}"):
            return os.pread(self._fd, length, offset)

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of *data* within the file. A file that was cut during use is not lengthened again.

        Raises:
            OSError: EIO if the file is shorter; any error of the host.
        """
        if offset + len(data) > self.length:
            raise OSError(errno.EIO, "the file was cut", str(self.path))
        view = memoryview(data)
        with trying(f"write to {self.path}"):
            while view:
                done = os.pwrite(self._fd, view, offset)
                view = view[done:]
                offset += done

    def copy_from(self, source: Backing, offset: int, length: int) -> None:
        """Copy the range of *source* to the same place of this file; the two share blocks where the host can (reflink).

        The bytes that a cut source lacks stay as they are in this file.

        Raises:
            OSError: EIO if this file is shorter; any error of the host.
        """
        if offset + length > self.length:
            raise OSError(errno.EIO, "the file was cut", str(self.path))
        end = offset + length
        if isinstance(source, FileBacking):
            with trying(f"copy {source.path} to {self.path}"):
                offset += _copy_range(source._fd, self._fd, offset, length)  # noqa: SLF001  (of the same class)
        if offset < end:
            self.pwrite(source.pread(end - offset, offset), offset)

    def sync(self) -> None:
        """Make everything written so far durable."""
        with trying(f"sync {self.path}"):
            os.fdatasync(self._fd)

    def sync_name(self) -> None:
        """Make the file's name durable: a power cut may remove a new file whose directory was never synced."""
        with trying(f"sync the directory of {self.path}"):
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def reserve(self, offset: int, length: int) -> None:
        """Allocate the range, so that later writes and mapped stores to it need no more room on the host."""
        with trying(f"reserve room for {self.path}"):
            os.posix_fallocate(self._fd, offset, length)

    def resize(self, length: int) -> None:
        """Cut the file to *length*, or add a hole up to it."""
        with trying(f"set the length of {self.path}"):
            os.ftruncate(self._fd, length)

    def punch(self, offset: int, length: int) -> None:
        """Turn the range into zeros and free its space; do nothing if the file system cannot punch holes.

        A file system without holes keeps the old bytes. They are beyond every write pointer, where no command reads
        them.
        """
        mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
        if _fallocate(self._fd, mode, offset, length):
            code = ctypes.get_errno()
            if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise OSError(code, os.strerror(code), str(self.path))

    def extents(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the runs between *start* and *end* that hold data on the host."""
        offset = start
        while offset < end:
            with trying(f"read {self.path}"):
                try:
                    offset = os.lseek(self._fd, offset, os.SEEK_DATA)
                except OSError as error:
                    if error.errno == errno.ENXIO:
                        return
                    raise
                if offset >= end:
                    return
                hole = min(os.lseek(self._fd, offset, os.SEEK_HOLE), end)
            yield offset, hole - offset
            offset = hole

    def map(self, offset: int, length: int, lost: Callable[[], None] | None = None) -> memoryview:
        """Return the range, page aligned, as shared memory of the file.

        *lost* is called when an access finds that the file was cut, or that the host cannot read it.
        """
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        with trying(f"map {self.path} into memory"):
            mapping = mmap.mmap(self._fd, offset + length - start, offset=start)
        view = memoryview(mapping)[offset - start :]
        if lost is not None:
            self._watched.append(sigbus.watch(view, lost))
        self._maps.append((mapping, view))
        return view

    def close(self) -> None:
        """Release everything, the lock included."""
        if self._is_closed:
            return
        self._is_closed = True
        for watch in self._watched:
            sigbus.unwatch(watch)
        for mapping, view in self._maps:
            # A thread that is reading a part of it now unmaps it afterwards.
            with suppress(BufferError):
                view.release()
            with suppress(BufferError):
                mapping.close()
        self._maps.clear()
        # Closing alone does not unlock, because a mapping or a running system call would keep the lock.
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        try:
            nothing = os.open("/", os.O_PATH | os.O_CLOEXEC)
        except OSError:  # no descriptor is free
            self._release()
            return
        try:
            os.dup2(nothing, self._fd, inheritable=False)
        finally:
            os.close(nothing)


class SyncFailedError(OSError):
    """A sync failed: data that the host had accepted may be lost, even if the reason is a full host."""


def _copy_range(source: int, target: int, offset: int, length: int) -> int:
    """Copy as many bytes in the kernel as possible; return their number. Source: copy_file_range(2)."""
    done = 0
    try:
        while done < length:
            count = os.copy_file_range(source, target, length - done, offset + done, offset + done)
            if not count:
                break
            done += count
    except OSError as error:
        if error.errno not in _NO_COPY_RANGE:
            raise
    return done


def checked_sync(backing: Backing) -> None:
    """Make everything written to *backing* so far durable.

    Raises:
        SyncFailedError: the host refuses. For this error :func:`is_full` is False with any errno.
    """
    try:
        backing.sync()
    except OSError as error:
        raise SyncFailedError(error.errno, error.strerror) from None


def is_full(error: OSError) -> bool:
    """Return whether *error* is a write that a full host refused, which loses nothing. False for a failed sync."""
    return error.errno in NO_SPACE_ERRNOS and not isinstance(error, SyncFailedError)


def _open_regular(path: Path, flags: int) -> int:
    """Open *path* with *flags*, after a check of its kind: opening a FIFO would wait for a writer.

    Raises:
        ImageError: it is no regular file. OSError: it cannot be opened.
    """
    kind = _KINDS.get(stat.S_IFMT(path.stat().st_mode))
    if kind is not None:
        message = f"{path} is {kind}, but an image must be a regular file"
        raise ImageError(message)
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except PermissionError as error:
        status = path.stat()
        # The usual reason is that the file belongs to another user, whom the message then names.
        whose = f"it belongs to {user_name(status.st_uid)}, with mode {stat.S_IMODE(status.st_mode):04o}"
        raise OSError(error.errno, f"{error.strerror} ({whose})", str(path)) from None


def user_name(uid: int) -> str:
    """Return the name of the user *uid*, or the number if the user has no name."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def current_boot_id() -> bytes:
    """Return the boot id: 16 random bytes of the kernel.

    Raises:
        ImageError: it cannot be read (no /proc).
    """
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError as error:
        message = f"the kernel's boot id cannot be read ({error.strerror}): /proc must be mounted"
        raise ImageError(message) from None
    return bytes.fromhex(text.strip().replace("-", ""))


def _load_fallocate() -> "Callable[[int, int, int, int], int]":
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    return function


_fallocate: Final = _load_fallocate()
