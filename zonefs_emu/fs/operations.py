"""FUSE requests, translated to calls of :class:`Volume`: node and handle numbers to files, FileError to FUSEError.

All handlers raise FUSEError with the errno of a refused request. This module also has the guards that FUSE needs and
the kernel's zonefs does not; docs/fuse.md explains each.

* The hot path (read, write) does not await, so requests are answered in the order in which the kernel queued them.
* A flush waits in a thread. A write that must wait for a flush takes the lock of its file, and every later request
  that changes the file queues behind it, in order.
* An injected delay defers the answer and does not block the event loop: see :meth:`ZonefsOperations._wait_deferred`.
"""

import errno
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, StatvfsData

from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.fs.boundary import ContainedOperations
from zonefs_emu.fs.errnos import FileError
from zonefs_emu.fs.failed_writes import is_automatic, note_failure, note_look
from zonefs_emu.fs.files import Handle, Node, ZoneFile
from zonefs_emu.fs.io_errors import ALL_BITS, WRITE_BITS
from zonefs_emu.fs.rules import ZonefsRule
from zonefs_emu.fs.tree import NAME_MAX, ROOT_NODE_ID, Group, node_id, zone_no_of
from zonefs_emu.fs.volume import Volume
from zonefs_emu.model.transitions import Operation

#: How long the kernel may cache names, which never change, and the attributes of directories, which change by requests
#: of the kernel only.
KEPT_SECONDS: Final = 3600
_NO_SUCH_FILE: Final = errno.ENOENT


class ZonefsOperations(ContainedOperations):
    """The handlers of one mount. *invalidate* drops the kernel's cached pages of a node; it blocks."""

    def __init__(self, volume: Volume, invalidate: Callable[[int], None] = pyfuse3.invalidate_inode) -> None:
        super().__init__()
        self.volume = volume
        self.unforeseen = volume.port.device.unforeseen
        self.handles: dict[int, Handle] = {}
        self._invalidate = invalidate
        self._last_handle = 0
        #: How many of the handles use the kernel's page cache.
        self.nr_cached_handles = 0
        #: Files on which a request waits; see :meth:`_file_lock`.
        self._file_locks: dict[int, trio.Lock] = {}
        # Looked up once, because they are used in each request.
        self._read = volume.read
        self._write = volume.write
        self._has_pending_reset = volume.port.has_pending_reset
        #: Injected delays that the request in progress has met and not yet waited for.
        self._late_ns = 0
        self._thread = threading.get_ident()
        #: With the mount option sync, each handle behaves as if it were opened with O_SYNC.
        self._all_synchronous = "sync" in volume.options.passed_on
        self._is_async = volume.options.async_dio
        volume.port.defer = self._defer
        self._timed = volume.port if isinstance(volume.port, TimedPort) else None
        if self._timed is not None:
            self._timed.hold = self._hold
        #: The size that the kernel has in memory for a file, -1 if it is not known; it blocks.
        self.kernel_size: Callable[[ZoneFile], int] = _unknown_size
        #: Called when a handle that can write has been closed.
        self.on_writer_gone: Callable[[], None] = _nothing
        #: Called between the kernel's first request and its answer.
        self.on_init: Callable[[], None] = _nothing

    def init(self) -> None:
        """Call *on_init*: libfuse has read the first request."""
        self.on_init()

    def take_stock(self, handler: str, *arguments: object) -> None:
        """Read the state of the zone that a request was to change when an exception ended it.

        The command may have been carried out. If the size of the file did not follow, the next write would not be at
        the write pointer, and ``errors=`` could make the mount read-only.
        """
        if handler not in {"open", "setattr", "write"}:
            return
        number = arguments[0]  # of a handle or a node
        assert isinstance(number, int)
        file = self.handles[number].file if handler == "write" else self._file(number)
        if file is not None:
            self.volume.take_stock(file)

    def _defer(self, duration_ns: int) -> None:
        """Note an injected delay of the request in progress; in another thread than the event loop's, wait."""
        if threading.get_ident() == self._thread:
            self._late_ns += duration_ns
        else:
            self.volume.port.device.sleep_ns(duration_ns)

    def _hold(self, due_ns: int, arrival_ns: int) -> None:
        """Note when the request in progress is due, by the timing of the drive, and when it arrived."""
        assert self._timed is not None
        self._timed.held.hold(due_ns, arrival_ns)
        self._late_ns = max(self._late_ns, 1)

    async def _wait_deferred(self) -> None:
        """Defer the answer to a request by its injected delay, or until it is due.

        The request has been carried out already, so this wait does not change the order of requests. If a request had
        to wait for something else before, its delay may fall on another request that came meanwhile.
        """
        duration_ns, self._late_ns = self._late_ns, 0
        port = self._timed
        due_ns, arrival_ns = (0, 0) if port is None else port.held.take()
        if port is None or not due_ns:
            await trio.sleep(duration_ns / 1e9)
            return
        answer = trio.Event()
        token = trio.lowlevel.current_trio_token()
        port.alarm.at(due_ns + duration_ns, lambda: token.run_sync_soon(answer.set))
        await answer.wait()
        port.answered(due_ns + duration_ns, arrival_ns)

    # -- names ------------------------------------------------------------------------------------------------

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Return the attributes of *name* in a directory; ENOENT, or ENAMETOOLONG if it is longer than NAME_MAX."""
        found = self._find(parent_inode, name)
        if isinstance(found, ZoneFile):
            entry = self._file_attributes(found)
            entry.st_ino = node_id(found.zone_no)
            return entry
        if found is None:
            entry = self._root_attributes()
            entry.st_ino = ROOT_NODE_ID
            return entry
        return self._group_attributes(found)

    def _find(self, parent: int, name: bytes) -> ZoneFile | Group | None:
        """Return the file or directory *name* of the directory *parent*; None if it is the root.

        Raises:
            FUSEError: ENOENT, ENAMETOOLONG, or ENOTDIR if *parent* is no directory.
        """
        if len(name) > NAME_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        tree = self.volume.tree
        if parent == ROOT_NODE_ID:
            if name in {b".", b".."}:
                return None
            group = tree.find(name)
            if group is None:
                raise FUSEError(_NO_SUCH_FILE)
            return group
        group = tree.group_of_inode(parent)
        if group is None:
            raise FUSEError(errno.ENOTDIR)
        if name == b".":
            return group
        if name == b"..":
            return None
        file = self.volume.find(group, name)
        if file is None:
            raise FUSEError(_NO_SUCH_FILE)
        return file

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Open a directory. Its handle is its node id."""
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory: the two dots, then the files in the order of their zones."""
        self.volume.touch_directory(self._directory(fh))
        for index, name in enumerate((b".", b"..")):
            if start_id <= index and not self._list(token, fh, name, index + 1):
                return
        first = max(start_id - 2, 0)
        group = self.volume.tree.group_of_inode(fh)
        if group is not None:
            self._list_files(token, group, first)
            return
        for number, directory in enumerate(self.volume.tree.groups[first:], first + 3):
            if not self._list(token, fh, directory.name.encode(), number):
                return

    def _list_files(self, token: pyfuse3.ReaddirToken, group: Group, first_no: int) -> None:
        """List the files of *group* from number *first_no* on, until the kernel has enough.

        A directory may have a million files. Files that were not used since the mount differ in three attributes only,
        so they share one object.
        """
        volume, reply = self.volume, pyfuse3.readdir_reply
        zone_cap = volume.geometry.zone_cap
        unused: EntryAttributes | None = None
        for file_no in range(first_no, group.nr_files):
            zone_no, nr_zones = group.zones(file_no)
            size = volume.unused_size(zone_no) if nr_zones == 1 else -1
            if size >= 0 and unused is not None:
                entry = unused
                entry.st_size = size
                entry.st_blocks = zone_cap(zone_no)
            else:
                entry = self._file_attributes(volume.look_at(zone_no))
                if size >= 0:
                    unused = entry
            entry.st_ino = node_id(zone_no)
            if not reply(token, b"%d" % file_no, entry, file_no + 3):
                return

    def _list(self, token: pyfuse3.ReaddirToken, parent: int, name: bytes, next_id: int) -> bool:
        found = self._find(parent, name)
        if isinstance(found, ZoneFile):
            entry = self._file_attributes(found)
            entry.st_ino = node_id(found.zone_no)
        elif found is None:
            entry = self._root_attributes()
        else:
            entry = self._group_attributes(found)
        return pyfuse3.readdir_reply(token, name, entry, next_id)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:  # noqa: FBT001  (pyfuse3's signature)
        """Refuse: zonefs has no fsync for directories."""
        raise self._refuse(ZonefsRule.FS_DIRECTORY_SYNC, "fsync of a directory")

    # The tree is fixed. The kernel's zonefs answers a lookup of an unknown name by an error and not by a negative
    # entry. So requests that create a name get ENOENT, and requests that remove one get EPERM if the name exists.

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Refuse to create a file."""
        raise self._refuse(ZonefsRule.FS_CREATE, "creating", name)

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        """Refuse to create a node."""
        raise self._refuse(ZonefsRule.FS_CREATE, "creating", name)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """Refuse to create a directory."""
        raise self._refuse(ZonefsRule.FS_CREATE, "creating", name)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        """Refuse to create a symbolic link."""
        raise self._refuse(ZonefsRule.FS_CREATE, "creating", name)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Refuse to create a link."""
        raise self._refuse(ZonefsRule.FS_CREATE, "creating", new_name)

    async def rename(  # noqa: PLR0917  (pyfuse3's signature)
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Refuse: EPERM if the new name exists, ENOENT otherwise."""
        self._find(parent_inode_old, name_old)
        try:
            self._find(parent_inode_new, name_new)
        except FUSEError as error:
            if error.errno != _NO_SUCH_FILE:
                raise
            raise self._refuse(ZonefsRule.FS_CREATE, "renaming to", name_new) from None
        raise self._refuse(ZonefsRule.FS_REMOVE, "renaming", name_old)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Refuse to remove a file."""
        self._find(parent_inode, name)
        raise self._refuse(ZonefsRule.FS_REMOVE, "removing", name)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Refuse to remove a directory."""
        self._find(parent_inode, name)
        raise self._refuse(ZonefsRule.FS_REMOVE, "removing", name)

    def _refuse(self, rule: ZonefsRule, what: str, name: bytes | None = None) -> FUSEError:
        """Note that *what* was refused, with the file *name* if given, and return the error for the application."""
        request = what if name is None else f"{what} {name.decode(errors='replace')!r}"
        return FUSEError(self.volume.refuse(rule, request).errno)

    # -- attributes -------------------------------------------------------------------------------------------

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """Return the attributes of a node."""
        attributes = self._attributes(inode)
        if inode != ROOT_NODE_ID and (file := self.volume.files.get(zone_no_of(inode))) is not None:
            note_look(file, ctx.pid)
        return attributes

    def _attributes(self, inode: int) -> EntryAttributes:
        if inode == ROOT_NODE_ID:
            return self._root_attributes()
        group = self.volume.tree.group_of_inode(inode)
        if group is not None:
            return self._group_attributes(group)
        return self._file_attributes(self.volume.look_at(zone_no_of(inode)))

    def _root_attributes(self) -> EntryAttributes:
        tree = self.volume.tree
        nr_entries = 2 + len(tree.groups)
        return self._directory_attributes(self.volume.root, tree.nr_zones, nr_entries, nr_entries)

    def _group_attributes(self, group: Group) -> EntryAttributes:
        node = self.volume.directories[group.name]
        return self._directory_attributes(node, self.volume.tree.group_inode(group), 2, group.nr_files)

    def _directory_attributes(self, node: Node, inode: int, nr_links: int, size: int) -> EntryAttributes:
        entry = self._node_attributes(node, stat.S_IFDIR)
        entry.st_ino = inode
        entry.attr_timeout = KEPT_SECONDS
        entry.st_nlink = nr_links
        entry.st_size = size
        return entry

    def _file_attributes(self, file: ZoneFile) -> EntryAttributes:
        entry = self._node_attributes(file, stat.S_IFREG)
        entry.st_ino = file.zone_no
        entry.st_nlink = 1
        if file.notified_size != file.size:
            file.notified_before, file.notified_size = file.notified_size, file.size
        entry.st_size = file.size
        # As in the kernel's zonefs, the blocks are those that the file can have, not those that it has.
        entry.st_blocks = file.capacity >> 9
        return entry

    def _node_attributes(self, node: Node, file_type: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.entry_timeout = KEPT_SECONDS
        # The attributes of files are not cached, for three reasons: error recovery changes sizes and modes; an O_APPEND
        # write goes to the write pointer, which may differ from the kernel's end of file; and a lookup answers with the
        # node id, which differs from st_ino for the file of zone 1.
        entry.attr_timeout = 0
        entry.st_mode = file_type | node.mode
        entry.st_uid = node.uid
        entry.st_gid = node.gid
        entry.st_blksize = self.volume.block_bytes
        entry.st_blocks = 0
        entry.st_atime_ns = node.atime_ns
        entry.st_mtime_ns = node.mtime_ns
        entry.st_ctime_ns = node.ctime_ns
        return entry

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Change attributes, and return all. The checks are in the order of the kernel's zonefs_inode_setattr."""
        volume = self.volume
        file = self._file(inode)
        node = file or self._directory(inode)
        try:
            if file is None:
                self._check_directory_change(attr, fields)
            elif fields.update_size and fh is not None and is_automatic(self.handles[fh], attr.st_size, ctx.pid):
                return self._file_attributes(file)
            else:
                volume.check_changeable(file, Operation.RESET)
                if fields.update_size:
                    async with self._file_lock(file):
                        volume.truncate(file, attr.st_size)
                        file.notified_size = file.size
                        await self._drop_pages(file)
        except FileError as error:
            raise FUSEError(error.errno) from None
        finally:
            if self._late_ns:
                await self._wait_deferred()
        if fields.update_mode:
            node.mode = stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_atime:
            node.atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            node.mtime_ns = attr.st_mtime_ns
        if fields.update_size and fh is not None:
            # truncate(2) changes no times. ftruncate(2) changes two, which the kernel leaves to the file system.
            node.mtime_ns = node.ctime_ns = volume.now_ns()
        elif not fields.update_size:
            # The VFS changes it with all other attributes, also by chown(2) that changes no owner.
            node.ctime_ns = volume.now_ns()
        return self._attributes(inode)

    def _check_directory_change(self, attr: EntryAttributes, fields: SetattrFields) -> None:
        """Refuse to make a directory writable, also for root, and to set its size.

        Raises:
            FileError: EROFS, EPERM or EISDIR.
        """
        request = "a change of the attributes of a directory"
        if self.volume.refuses_changes():
            raise self.volume.refuse(ZonefsRule.FS_READONLY, request)
        if fields.update_mode and attr.st_mode & WRITE_BITS:
            raise self.volume.refuse(ZonefsRule.FS_DIRECTORY_MODE, request)
        if fields.update_size:
            raise self.volume.refuse(ZonefsRule.FS_DIRECTORY_SIZE, request)

    def _file(self, inode: int) -> ZoneFile | None:
        if inode == ROOT_NODE_ID or self.volume.tree.group_of_inode(inode) is not None:
            return None
        return self.volume.file(zone_no_of(inode))

    def _directory(self, inode: int) -> Node:
        group = self.volume.tree.group_of_inode(inode)
        return self.volume.root if group is None else self.volume.directories[group.name]

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Return sizes in blocks of the write granularity. As in the kernel, offline zones count as free space."""
        volume = self.volume
        result = StatvfsData()
        result.f_bsize = result.f_frsize = volume.block_bytes
        result.f_blocks = volume.total_bytes // volume.block_bytes
        result.f_bfree = result.f_bavail = (volume.total_bytes - volume.used_bytes) // volume.block_bytes
        result.f_files = sum(group.nr_files + 1 for group in volume.tree.groups)
        result.f_ffree = result.f_favail = 0
        result.f_namemax = NAME_MAX
        return result

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """Answer ENOSYS, after which the kernel answers EOPNOTSUPP itself instead of asking before each write."""
        raise FUSEError(errno.ENOSYS)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """Return an empty list, because files have no extended attributes."""
        return []

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Refuse to set an extended attribute."""
        raise self._refuse(ZonefsRule.FS_XATTR, "a change of the extended attribute", name)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        """Refuse to remove an extended attribute."""
        raise self._refuse(ZonefsRule.FS_XATTR, "a change of the extended attribute", name)

    # -- files ------------------------------------------------------------------------------------------------

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a file. O_TRUNC is carried out here; the kernel sends no request for it.

        A handle that bypasses the page cache (FOPEN_DIRECT_IO) gets requests as the application made them, with short
        writes and without automatic truncation. Three kinds of handles need that: those that write sequential files;
        those of lost files, whose reads must arrive here to be refused; and O_DIRECT handles, which then need no
        GETATTR before each read. All others use the cache, so that they can be mapped shared.
        """
        file = self._file(inode)
        assert file is not None
        handle: Handle | None = None
        try:
            if flags & os.O_TRUNC:
                async with self._file_lock(file):
                    handle = self.volume.open(file, flags)
                    file.truncated_by(ctx.uid, ctx.gid)
                    file.notified_size = 0
                    await self._drop_pages(file)
            else:
                handle = self.volume.open(file, flags)
            if self._late_ns:
                await self._wait_deferred()
        except FileError as error:
            if self._late_ns:
                await self._wait_deferred()
            raise FUSEError(error.errno) from None
        except BaseException:
            # The kernel gets no handle, so it sends no RELEASE that would count the writer down.
            if handle is not None:
                self.volume.release(handle)
            raise
        handle.synchronous |= self._all_synchronous
        lost = file.immutable and not file.mode & ALL_BITS
        handle.cached = not (handle.direct or lost or (file.sequential and handle.writable))
        file.nr_cached += handle.cached
        self.nr_cached_handles += handle.cached
        self._last_handle += 1
        self.handles[self._last_handle] = handle
        return FileInfo(fh=self._last_handle, direct_io=not handle.cached, keep_cache=False)

    async def release(self, fh: int) -> None:
        """Close a file. The counters change first, so that a request after close(2) sees them."""
        handle = self.handles.pop(fh)
        handle.file.nr_cached -= handle.cached
        self.nr_cached_handles -= handle.cached
        self.volume.release(handle)
        if handle.writable:
            self.on_writer_gone()
        if self._late_ns:
            await self._wait_deferred()

    async def flush(self, fh: int) -> None:
        """Do nothing at close(2): no data waits to be written, and only fsync(2) promises durability."""

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Return up to *size* bytes at *off*, in a buffer that pyfuse3 copies before it takes another request."""
        try:
            data = self._read(self.handles[fh], off, size)
        except FileError as error:
            if self._late_ns:
                await self._wait_deferred()
            raise FUSEError(error.errno) from None
        if self._late_ns:
            data = bytes(data)
            await self._wait_deferred()
        return data  # type: ignore[return-value]  # any buffer will do

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write *buf* at *off*, and return how many bytes were written: fewer where the file's capacity ends."""
        handle = self.handles[fh]
        file = handle.file
        try:
            if self._file_locks or self._has_pending_reset(file.zone_no):
                count = await self._write_locked(handle, off, buf)
            else:
                count = self._write(handle if off != handle.failed_end else handle.positioned(), off, buf)
            if not handle.cached:
                if file.nr_cached:
                    await self._drop_pages(file)
                if handle.synchronous:
                    # On handles that bypass the cache, the kernel sends no FSYNC after a synchronous write.
                    await self._sync(file)
        except FileError as error:
            await self._note_failure(handle, off + len(buf))
            if self._late_ns:
                await self._wait_deferred()
            raise FUSEError(error.errno) from None
        if count < len(buf) and self._is_async:
            # The kernel makes an error of it.
            await self._note_failure(handle, off + len(buf))
        file.notified_size = max(file.notified_size, off + count)
        file.notified_before = -1
        if self._late_ns:
            await self._wait_deferred()
        return count

    async def _note_failure(self, handle: Handle, end: int) -> None:
        """Note that a write up to *end* has failed, before the kernel learns of it and may truncate the file.

        With async_dio, the write may be one piece of a request, and the kernel still has the size from before the whole
        request. The lock keeps the order of the answers: the application gets the error of the first one.
        """
        note_failure(handle)
        if self._is_async:
            handle.failed_end = end
            async with self._file_lock(handle.file) as file:
                handle.kernel_size = await trio.to_thread.run_sync(self.kernel_size, file, abandon_on_cancel=True)

    async def _write_locked(self, handle: Handle, offset: int, data: bytes) -> int:
        file = handle.file
        async with self._file_lock(file):
            if self._has_pending_reset(file.zone_no):
                # The zone was reset since the last flush, and its old data must not be overwritten before the reset is
                # durable. If this flush fails, the write is refused.
                await trio.to_thread.run_sync(self.volume.port.flush)
            return self._write(handle if offset != handle.failed_end else handle.positioned(), offset, data)

    @asynccontextmanager
    async def _file_lock(self, file: ZoneFile) -> AsyncIterator[ZoneFile]:
        """Hold the lock of *file*. Requests that wait for the lock get it in the order in which they came."""
        zone_no = file.zone_no
        lock = self._file_locks.setdefault(zone_no, trio.Lock())
        async with lock:
            try:
                yield file
            finally:
                if not lock.statistics().tasks_waiting:
                    del self._file_locks[zone_no]

    async def _drop_pages(self, file: ZoneFile) -> None:
        """Drop the kernel's cached pages of *file*. New sizes and times alone do not make the kernel read again."""
        if file.nr_cached:
            # The kernel may wait for an answer to another request, and none comes when the mount ends.
            await trio.to_thread.run_sync(self.drop_pages_sync, file, abandon_on_cancel=True)

    def drop_pages_sync(self, file: ZoneFile) -> None:
        """Do what :meth:`_drop_pages` does, in the calling thread, which must not be the event loop's."""
        with suppress(FileNotFoundError):  # the kernel has forgotten the file, and its pages with it
            self._invalidate(node_id(file.zone_no))

    async def fsync(self, fh: int, datasync: bool) -> None:  # noqa: FBT001  (pyfuse3's signature)
        """Make all answered writes survive a power cut."""
        file = self.handles[fh].file
        try:
            self.volume.check_sync(file)
            await self._sync(file)
        except FileError as error:
            raise FUSEError(error.errno) from None

    async def _sync(self, file: ZoneFile) -> None:
        self.volume.synced(file, await trio.to_thread.run_sync(self.volume.port.flush))


def _nothing() -> None:
    pass


def _unknown_size(_file: ZoneFile) -> int:
    return -1
