"""Real mounts for tests: the file system runs in a thread, so that tests are plain programs that use files.

What holds the interpreter's lock during a page fault (touching a mapping) would stop the file system: mappings are for
processes of their own.
"""

import ctypes
import errno
import os
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.fs.conftest import Bench
from zonefs_emu.fs.boundary import HANDLERS
from zonefs_emu.fs.kernel import _libc
from zonefs_emu.fs.mount import Mount, serve
from zonefs_emu.fs.operations import ZonefsOperations
from zonefs_emu.fs.options import parse_options

MNT_DETACH = 2
START_SECONDS = 20


class Server:
    """A thread that runs one mount. *stop* cancels it; *error* is what ended it, if something went wrong."""

    def __init__(self, bench: Bench, mountpoint: Path, options: str) -> None:
        self.mount: Mount | None = None
        self.error: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._main, args=(bench, mountpoint, options), daemon=True)
        self._thread.start()
        assert self._started.wait(START_SECONDS)

    def _main(self, bench: Bench, mountpoint: Path, options: str) -> None:
        try:
            trio.run(self._run, bench, mountpoint, options)
        except BaseException as error:
            self.error = error
        finally:
            self._started.set()

    async def _run(self, bench: Bench, mountpoint: Path, options: str) -> None:
        self._token = trio.lowlevel.current_trio_token()
        run = partial(serve, bench.device, mountpoint, parse_options(options), source=str(bench.path))
        with self._scope:
            async with trio.open_nursery() as nursery:
                self.mount = await nursery.start(run)
                self._started.set()

    def call(self, function: Callable[[], object]) -> object:
        """Call *function* in the file system's thread."""
        assert self._token is not None
        return trio.from_thread.run_sync(function, trio_token=self._token)

    def stop(self) -> None:
        """Cancel the mount, as a signal does to the daemon, and wait for its end."""
        if self._thread.is_alive() and self._token is not None:
            with suppress(trio.RunFinishedError):
                self.call(self._scope.cancel)
        self.join()

    def join(self) -> None:
        self._thread.join(START_SECONDS)
        assert not self._thread.is_alive()


class Mounted:
    """A mounted file system as tests use it."""

    def __init__(self, bench: Bench, path: Path, server: Server) -> None:
        self.bench = bench
        self.path = path
        self.server = server
        self._fds: list[int] = []

    def open(self, name: str, flags: int) -> int:
        fd = os.open(self.path / name, flags)
        self._fds.append(fd)
        return fd

    def close(self, fd: int) -> None:
        self._fds.remove(fd)
        os.close(fd)

    def close_all(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def size(self, name: str) -> int:
        return os.stat(self.path / name).st_size

    def statistics(self) -> dict[str, int]:
        """Counters, after everything that was closed before is counted: statfs queues behind it."""
        os.statvfs(self.path)
        assert self.server.mount is not None
        return self.server.mount.statistics()

    def run(self, script: str) -> str:
        """Run Python *script* in a process of its own, in the root of the file system; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=self.path, capture_output=True, text=True, check=False, timeout=40
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def mount_line(self) -> list[str]:
        # Other mounts of this host can have any bytes in their paths.
        mounts = Path("/proc/self/mounts").read_bytes().decode(errors="surrogateescape")
        lines = [line.split() for line in mounts.split("\n") if line]
        found = [line for line in lines if line[1] == str(self.path)]
        assert len(found) == 1
        return found[0]


@contextmanager
def mounted(bench: Bench, options: str = "") -> Iterator[Mounted]:
    """Mount *bench* beside its image; unmount at the end, in order."""
    path = bench.path.with_suffix(".mnt")
    path.mkdir(exist_ok=True)
    server = Server(bench, path, options)
    if server.error is not None:
        raise server.error
    fs = Mounted(bench, path, server)
    try:
        yield fs
    finally:
        fs.close_all()
        try:
            server.stop()
        finally:
            # Nothing of it may be left to hang others, whatever happened.
            _libc().umount2(os.fsencode(path), MNT_DETACH)
    if server.error is not None:
        raise server.error
    assert not path.is_mount()


def counting(requests: Counter[str]) -> type[ZonefsOperations]:
    """Return operations that count in *requests* what the kernel asks for."""

    def counted(name: str) -> Callable[..., Any]:
        proper = getattr(ZonefsOperations, name)

        async def handler(self: ZonefsOperations, *args: Any) -> Any:
            requests[name] += 1
            return await proper(self, *args)

        return handler

    return type("Counting", (ZonefsOperations,), {name: counted(name) for name in HANDLERS})


@contextmanager
def fails(errno_no: int) -> Iterator[None]:
    """Expect a system call to fail with that errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the errno is compared)
        yield
    assert errno.errorcode.get(caught.value.errno or 0) == errno.errorcode[errno_no]


#: struct iocb: data, key, rw_flags, opcode, reqprio, fd, buf, nbytes, offset, reserved2, flags, resfd.
#: Source: Linux include/uapi/linux/aio_abi.h.
IOCB = struct.Struct("<QIiHhIQQqQII")


def aio_write(fd: int, data: bytes, offset: int) -> int:
    """Write by Linux AIO; return the result, negative errno."""
    io_setup, io_destroy, io_getevents, io_submit, opcode_pwrite = 206, 207, 208, 209, 1
    libc = _libc()
    context = ctypes.c_uint64(0)
    assert libc.syscall(io_setup, 1, ctypes.byref(context)) == 0
    try:
        buffer = ctypes.create_string_buffer(len(data) + 4096)
        aligned = (ctypes.addressof(buffer) + 4095) & ~4095
        ctypes.memmove(aligned, data, len(data))
        iocb = ctypes.create_string_buffer(
            IOCB.pack(0, 0, 0, opcode_pwrite, 0, fd, aligned, len(data), offset, 0, 0, 0), IOCB.size
        )
        requests = (ctypes.c_void_p * 1)(ctypes.addressof(iocb))
        if libc.syscall(io_submit, context, 1, requests) != 1:
            return -ctypes.get_errno()
        events = (ctypes.c_int64 * 4)()
        assert libc.syscall(io_getevents, context, 1, 1, events, None) == 1
        return int(events[2])
    finally:
        libc.syscall(io_destroy, context)
