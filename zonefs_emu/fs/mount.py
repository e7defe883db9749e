"""The life of one mount: from a formatted device and an empty directory to a clean end.

One process has at most one mount: pyfuse3 keeps its session in global variables.

    async with trio.open_nursery() as nursery:
        mount = await nursery.start(partial(serve, device, Path("mnt"), MountOptions(), source="disk.img"))
        print(mount.statistics())
        # ends after an unmount, or when cancelled

A mount ends in one of two ways. After umount(8), which fails while files are open, the main loop returns. When the
caller cancels, the mount is unmounted in order if it is not in use, and lazily if it is.

Unmounting and remounting take a path, and the kernel applies them to the mount that it finds there. So before each, the
kernel's table says where this mount is now: it may have been moved, and a mount that covers it is not touched.
"""

import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

import pyfuse3
import trio

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import ImageError, UsageError
from zonefs_emu.fs.boundary import PORT_NAME, contained
from zonefs_emu.fs.files import ZoneFile
from zonefs_emu.fs.kernel import cached_size, remount_readonly, unmount
from zonefs_emu.fs.mount_table import MountEntry, mount_at, place_of
from zonefs_emu.fs.negotiation import FUSE_ASYNC_DIO, Handshake
from zonefs_emu.fs.operations import ZonefsOperations
from zonefs_emu.fs.options import MountOptions
from zonefs_emu.fs.volume import Volume
from zonefs_emu.fs.waiting import RequestWaiter
from zonefs_emu.model.transitions import VIRTIO

log = logging.getLogger(__name__)

#: The longest time for an orderly unmount when cancelled: a daemon that gets a signal has 5 seconds for everything.
UNMOUNT_SECONDS: Final = 2
#: How long to wait for the release of a writer before the next attempt to make the mount read-only.
_REMOUNT_AGAIN_SECONDS: Final = 1


class Mount:
    """A mount in use, for the code that started it."""

    def __init__(self, volume: Volume, mountpoint: Path) -> None:
        self.volume = volume
        self.mountpoint = mountpoint
        self.operations = ZonefsOperations(volume)
        self.operations.kernel_size = self.kernel_size
        self.waiter = RequestWaiter()
        #: The mount in the kernel's table; None before it is made.
        self.entry: MountEntry | None = None

    def place(self) -> Path | None:
        """Return the directory at which the mount is seen now; None if it is unmounted, or another mount covers it."""
        return None if self.entry is None else place_of(self.entry)

    def kernel_size(self, file: ZoneFile) -> int:
        """Return the size that the kernel has in memory for *file*; -1 if that is not known. It blocks."""
        place = self.place()
        return -1 if place is None else cached_size(place / file.path)

    def unmount(self) -> bool:
        """Unmount it as ``kernel.unmount`` does, unless another mount covers it; return whether it is unmounted."""
        place = self.place()
        return place is not None and unmount(place)

    def end(self) -> None:
        """End the connection to the kernel. A mount that is still there is unmounted lazily, unless it is covered."""
        place = self.place()
        if place not in {None, self.mountpoint}:
            assert place is not None
            unmount(place, lazy=True)
        pyfuse3.close(unmount=place == self.mountpoint)

    def statistics(self) -> dict[str, int]:
        """Return the counters of /sys/fs/zonefs, 0 = no limit, and ``readonly`` as 0 or 1."""
        return {name: int(value) for name, value in asdict(self.volume.statistics()).items()}


async def serve(
    device: ZonedDevice,
    mountpoint: Path,
    options: MountOptions,
    *,
    source: str,
    task_status: trio.TaskStatus[Mount] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount the zonefs on *device* at *mountpoint* and serve it until it is unmounted or the caller cancels.

    *source* is for the first column of /proc/mounts, and names the image in errors. ``task_status.started`` passes the
    Mount on when it can be used.

    Raises:
        ImageError: the device has no sound super block; nothing was mounted.
        UsageError: nothing was mounted; one sentence says why.
    """
    # An unreadable super block and a missing directory are found before anything is mounted.
    mountpoint = _directory(mountpoint)
    port = device.port(PORT_NAME, VIRTIO)
    try:
        volume = Volume(port, options, owner=(os.geteuid(), os.getegid()))
    except ImageError as error:
        error.path = source
        raise
    mount = Mount(volume, mountpoint)
    news = _News(mount, trio.lowlevel.current_trio_token())
    said: list[str] = []
    handshake = Handshake()
    mount.operations.on_init = handshake.end
    mount.waiter.install()
    try:
        with _stderr_caught(said):
            pyfuse3.init(mount.operations, str(mountpoint), fuse_options(options, source))
    except RuntimeError as error:
        # The error only names a function. libfuse or fusermount3 has written the reason to stderr.
        message = f"cannot mount on {mountpoint}: {'; '.join(said) or error}"
        raise UsageError(message, 1) from None
    for line in said:
        log.warning("libfuse: %s", line)
    mount.entry = mount_at(mountpoint)
    device.subscribe(news.zones_changed, port=port)
    try:
        if not options.async_dio:
            handshake.begin(FUSE_ASYNC_DIO)
        await _run(mount, news, task_status)
    finally:
        handshake.end()
        device.unsubscribe(news.zones_changed)
        # The mount must be removed even if closing the files fails.
        with contained(device.unforeseen, "closing the files that were open at the unmount"):
            volume.close()
        mount.end()
        with trio.CancelScope(shield=True):
            # umount(8) flushes too. A failure is noted by the port, and reported when the device is closed.
            await trio.to_thread.run_sync(port.flush)


@contextmanager
def _stderr_caught(lines: list[str]) -> Iterator[None]:
    """Add the lines that are written to stderr in the context to *lines*: those of C code and child processes too."""
    with TemporaryFile() as catch:
        stderr = os.dup(2)
        os.dup2(catch.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            catch.seek(0)
            lines.extend(catch.read().decode(errors="replace").splitlines())


class _Option(str):
    """An option that reaches libfuse byte for byte.

    pyfuse3 calls ``option.encode("us-ascii")``, which fails for a path of other bytes. Leaving the path out instead
    would make all mounts look alike in /proc/mounts.
    """

    __slots__ = ()

    def encode(self, _encoding: str = "", _errors: str = "") -> bytes:
        """Return the option as bytes, in the encoding of the file system."""
        return os.fsencode(str(self))


def fuse_options(options: MountOptions, source: str) -> set[str]:
    """Return the options for libfuse; *source* is what the kernel is to show as the mounted device."""
    # A comma separates options, a backslash quotes one.
    name = source.replace("\\", "\\\\").replace(",", "\\,")
    # default_permissions: the kernel compares mode and owner with the caller, as for any file system.
    own = {"default_permissions", "subtype=zonefs", _Option(f"fsname={name}"), "ro" if options.readonly else "rw"}
    if options.allow_other:
        own.add("allow_other")
    return own | options.passed_on


def _directory(mountpoint: Path) -> Path:
    if not mountpoint.is_dir():
        message = f"{mountpoint} is not a directory, so nothing can be mounted on it"
        raise UsageError(message, 1)
    return Path(os.path.realpath(mountpoint))


async def _run(mount: Mount, news: "_News", task_status: trio.TaskStatus[Mount]) -> None:
    async with trio.open_nursery() as nursery:
        # Serving has a shield of its own, because an orderly unmount after a cancel needs the file system to be served.
        serving = trio.CancelScope(shield=True)
        ended = trio.Event()
        nursery.start_soon(_serve_shielded, news, serving, ended)
        task_status.started(mount)
        try:
            await ended.wait()
        finally:
            if not ended.is_set():
                with trio.move_on_after(UNMOUNT_SECONDS, shield=True):
                    gone = await trio.to_thread.run_sync(mount.unmount, abandon_on_cancel=True)
                    if gone:
                        await ended.wait()
                    else:
                        log.info("%s is in use or covered: from now on, its users get errors", mount.mountpoint)
            serving.cancel()


async def _serve_shielded(news: "_News", serving: trio.CancelScope, ended: trio.Event) -> None:
    try:
        with serving:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(news.deliver)
                nursery.start_soon(news.make_readonly)
                await pyfuse3.main()
                nursery.cancel_scope.cancel()
    finally:
        ended.set()


class _News:
    """Notifications to the kernel that do not answer a request.

    There are three kinds: cached pages of a file are stale, because another front-end changed its zone; error recovery
    changed a size; the file system has become read-only. Each of them blocks, and the kernel may send requests
    meanwhile, so threads send them.

    An error with one file is contained: the notifications for other files, and requests, are not affected.
    """

    def __init__(self, mount: Mount, token: trio.lowlevel.TrioToken) -> None:
        self._mount = mount
        self._unforeseen = mount.volume.port.device.unforeseen
        self._token = token
        self._changed_zones: deque[tuple[int, int]] = deque()
        self._resized: set[ZoneFile] = set()
        self._wake = trio.Event()
        self._readonly = trio.Event()
        self._writer_gone = trio.Event()
        mount.volume.on_resized = self._file_resized
        mount.volume.on_readonly = self._now_readonly
        mount.operations.on_writer_gone = self._on_writer_gone

    def zones_changed(self, zone_no: int, nr_zones: int) -> None:
        """Note that another front-end changed zones; called by any thread, with the device's lock held."""
        # Usually no handle uses the page cache. Then no pages are stale, and nothing is noted.
        if self._mount.operations.nr_cached_handles:
            self._changed_zones.append((zone_no, nr_zones))
            self._token.run_sync_soon(self._wake_up, idempotent=True)

    def _wake_up(self) -> None:
        self._wake.set()

    def _file_resized(self, file: ZoneFile) -> None:
        self._resized.add(file)
        self._wake.set()

    def _on_writer_gone(self) -> None:
        self._writer_gone.set()

    async def deliver(self) -> None:
        """Notify the kernel of stale pages and changed sizes, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            with contained(self._unforeseen, "finding out which files are stale"):
                await self._tell_what_is_stale()

    async def _tell_what_is_stale(self) -> None:
        resized, self._resized = self._resized, set()
        for file in self._stale_files() | resized:
            with contained(self._unforeseen, f"dropping the cached pages of {file.path}"):
                await _in_thread(partial(self._mount.operations.drop_pages_sync, file))
        for file in resized:
            # The kernel asks for the size when a process looks at the file, and not when its attributes are dropped.
            with contained(self._unforeseen, f"telling the kernel the size of {file.path}"):
                await _in_thread(partial(_look_at, self._mount, file))

    def _stale_files(self) -> set[ZoneFile]:
        ranges = [self._changed_zones.popleft() for _ in range(len(self._changed_zones))]
        cached = {handle.file for handle in self._mount.operations.handles.values() if handle.cached}
        return {
            file
            for file in cached
            if any(first < file.zone_no + file.nr_zones and file.zone_no < first + count for first, count in ranges)
        }

    async def make_readonly(self) -> None:
        """Make the mount read-only for the kernel, too, whenever an error makes the file system read-only.

        The kernel refuses that until the last writer is gone. Requests that change something fail with EROFS from the
        error on; after the remount, /proc/mounts and statvfs(3) say that the mount is read-only. root can remount it
        read-write then.
        """
        while True:
            await self._readonly.wait()
            self._readonly = trio.Event()
            with contained(self._unforeseen, "making the mount read-only"):
                await self._remount_when_the_last_writer_is_gone()

    def _now_readonly(self) -> None:
        self._readonly.set()

    async def _remount_when_the_last_writer_is_gone(self) -> None:
        while True:
            writer_gone = self._writer_gone = trio.Event()
            try:
                await _in_thread(partial(_remount_readonly, self._mount))
            except OSError as error:
                if error.errno != errno.EBUSY:
                    log.debug("the mount stays writable for the kernel: %s", error)
                    return
            else:
                self._mount.volume.kernel_readonly = True
                return
            # close(2) stops counting as a writer after RELEASE was sent, and a change of attributes counts as one, too.
            with trio.move_on_after(_REMOUNT_AGAIN_SECONDS):
                await writer_gone.wait()


async def _in_thread(function: Callable[[], None]) -> None:
    # The thread is abandoned when the mount ends. The kernel then ends the thread's call with an error.
    await trio.to_thread.run_sync(function, abandon_on_cancel=True)


def _remount_readonly(mount: Mount) -> None:
    """Remount *mount*; raise OSError if it is not seen, or as :func:`remount_readonly` does."""
    place = mount.place()
    if place is None:
        raise OSError(errno.EINVAL, "another mount covers it", os.fspath(mount.mountpoint))
    remount_readonly(place)


def _look_at(mount: Mount, file: ZoneFile) -> None:
    place = mount.place()
    if place is None:
        return
    try:
        (place / file.path).stat()
    except OSError as error:
        log.debug("cannot look at %s: %s", file.path, error)
