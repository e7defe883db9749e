"""A mounted zonefs without FUSE: files, their checks in the kernel's order, zone commands, error recovery.

Sync; not thread safe: all calls come from one thread, the event loop's. May not know pyfuse3 or trio.

Invariants:

* The volume keeps the size and write pointer of each zone. They are read from the device at mount, and changed by the
  volume's own commands. A change of a zone by another front-end is noticed only when an I/O on its file fails.
* ``wp == size`` for every sequential file between two calls.
* ``nr_wro_files`` counts the sequential files that are open for writing, and ``nr_active_files`` those whose zone was
  opened explicitly by the volume or is partly written. ``used_bytes`` is the used space that statfs reports.

A device of a million zones is mounted and listed without a million objects. A :class:`ZoneFile` is kept only after its
file was opened or changed. Until then, :meth:`Volume.look_at` makes a new one each time, from the zone report of the
mount.

Sizes and offsets are in bytes, as applications see them; those of the port are in sectors.
Source: Linux fs/zonefs/{super,file}.c.
"""

import logging
import mmap
import os
import time
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from zonefs_emu.device.compiled_commands import compiled_commands
from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status, UsageError
from zonefs_emu.fs import superblock
from zonefs_emu.fs.errnos import ERRNO_OF, FS_RULES, FileError
from zonefs_emu.fs.files import Handle, Node, ZoneFile, ZonefsStatistics
from zonefs_emu.fs.io_errors import ALL_BITS, Finding, data_size, judge
from zonefs_emu.fs.options import MountOptions
from zonefs_emu.fs.rules import ZonefsRule
from zonefs_emu.fs.tree import Group, Tree
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import OPEN_CONDITIONS, Condition, ZoneType
from zonefs_emu.units import SECTOR_BYTES, SECTOR_SHIFT

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger(__name__)

DIRECTORY_MODE: Final = 0o555
#: Zones in one report.
_REPORT_ZONES: Final = 4096
_NOT_EMPTY: Final = frozenset(Condition) - {Condition.EMPTY}
#: If a zone is in one of these conditions at mount, its file has no permissions, and size 0.
_LOST: Final = frozenset((int(Condition.READONLY), int(Condition.OFFLINE)))
#: Such a buffer begins at a page: from a bytearray, the kernel takes 1.5 times as long to copy 1 MiB to an application.
_READ_BUFFER_BYTES: Final = 1 << 20


class Volume:
    """The file system on the device behind *port*.

    *owner* (uid, gid) owns the directories, and the files if the super block has no owner. *now_ns* is the clock of
    file times. To notify the kernel, ``on_readonly`` is called when an error makes the file system read-only, and
    ``on_resized`` after error recovery changed a file.

    Raises:
        BadMagicError, CorruptImageError: the device has no super block, or a damaged one.
        UsageError: the device cannot be mounted; one sentence says why.
    """

    def __init__(
        self,
        port: Port,
        options: MountOptions,
        *,
        owner: tuple[int, int] = (0, 0),
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.port = port
        self.geometry = port.geometry
        self.now_ns = now_ns
        self.on_readonly: Callable[[], None] = _nothing
        self.on_resized: Callable[[ZoneFile], None] = _nothing
        commands = compiled_commands(port) or port
        self._write, self._read = commands.write, commands.read
        self._buffer = memoryview(mmap.mmap(-1, _READ_BUFFER_BYTES))
        #: st_blksize, and the granule of direct I/O.
        self.block_bytes = self.geometry.write_granularity * SECTOR_BYTES
        self.super_block = superblock.decode(self._read_super_block())
        self.readonly = options.readonly or port.device.image.readonly
        #: After an error made the file system read-only, the mount was made read-only for the kernel, too.
        self.kernel_readonly = False
        self.max_wro_files = self.geometry.max_open_zones
        self.max_active_files = self.geometry.max_active_zones
        self.options = options
        self.errors = options.errors
        self._notes_access = "noatime" not in options.passed_on
        # Without a limit, "explicit-open" has no effect. The kernel drops it without a message, too.
        self.explicit_open = options.explicit_open and bool(self.max_wro_files or self.max_active_files)
        self.tree = Tree(self.geometry, aggregated=self.super_block.aggregates)
        if not self.tree.groups:
            message = "no zone is left for files: zone 0 holds the super block"
            raise UsageError(message, 1)
        self.root = Node(DIRECTORY_MODE, *owner, now_ns())
        self.directories = {group.name: Node(DIRECTORY_MODE, *owner, self.root.ctime_ns) for group in self.tree.groups}
        self._file_node = self._describe_files(owner)
        self.files: dict[int, ZoneFile] = {}
        self.nr_wro_files = 0
        self.nr_active_files = 0
        self.used_bytes = 0
        self.total_bytes = 0
        #: s_maxbytes: no file can be longer.
        self.max_file_bytes = 0
        self._mount_conds = bytearray((Condition.EMPTY,)) * self.geometry.nr_zones
        self._mount_sizes = array("Q", bytes(8 * self.geometry.nr_zones))
        self._close_open_zones()
        self._scan()

    # -- mounting ---------------------------------------------------------------------------------------------

    def _read_super_block(self) -> bytes:
        view = self._buffer[: superblock.SUPER_BLOCK_BYTES]
        status = self.port.read(0, superblock.SUPER_BLOCK_BYTES >> SECTOR_SHIFT, (view,))
        if status:
            message = f"zone 0, where the super block is, cannot be read ({status.name})"
            raise UsageError(message, 1)
        return bytes(view)

    def _describe_files(self, owner: tuple[int, int]) -> Node:
        block = self.super_block
        features = block.features
        uid = block.uid if superblock.Feature.UID in features else owner[0]
        gid = block.gid if superblock.Feature.GID in features else owner[1]
        perm = block.perm if superblock.Feature.PERM in features else superblock.DEFAULT_PERM
        return Node(perm, uid, gid, self.root.ctime_ns)

    def _close_open_zones(self) -> None:
        """Close zones that were left open, so that all open resources are free. Source: zonefs_init_zgroup."""
        if self.port.device.image.readonly:
            return
        zone_no = 1
        while zones := self.port.report(zone_no, _REPORT_ZONES, OPEN_CONDITIONS):
            for zone in zones:
                # A drive may keep a closed zone active although it has no data. A reset makes it inactive.
                operation = Operation.CLOSE if zone.wp > zone.start else Operation.RESET
                status = self.port.manage(operation, zone.start)
                if status:
                    message = f"zone {zone.zone_no} is open and cannot be closed ({status.name})"
                    raise UsageError(message, 1)
            zone_no = zones[-1].zone_no + 1

    def _scan(self) -> None:
        """Read the states of all zones from the device.

        Most zones of a large device are empty, and the geometry says all about them. They are left out of the report,
        unless faults change reports.
        """
        aggregated = self.super_block.aggregates
        for group in self.tree.groups:
            total, largest = group.measure(self.geometry)
            self.total_bytes += total << SECTOR_SHIFT
            if group.sequential or not aggregated:
                self.max_file_bytes = max(self.max_file_bytes, largest << SECTOR_SHIFT)
        conds = None if self.port.device.faults else _NOT_EMPTY
        zone_no = 1
        while zones := self.port.report(zone_no, _REPORT_ZONES, conds):
            for zone in zones:
                capacity = zone.capacity << SECTOR_SHIFT
                sequential = zone.type is not ZoneType.CONVENTIONAL
                size = data_size(zone.cond, (zone.wp - zone.start) << SECTOR_SHIFT, capacity, 0, sequential=sequential)
                self._mount_conds[zone.zone_no] = zone.cond
                self._mount_sizes[zone.zone_no] = size
                if sequential or not aggregated:
                    self.used_bytes += size
                if sequential and 0 < size < capacity:
                    self.nr_active_files += 1
            zone_no = zones[-1].zone_no + 1
        if aggregated:
            for file_no in range(self.tree.cnv.nr_files):
                file = self.file(self.tree.cnv.zones(file_no)[0])
                self.used_bytes += file.size
                self.max_file_bytes = max(self.max_file_bytes, file.capacity)

    def file(self, zone_no: int) -> ZoneFile:
        """Return the file whose first zone is *zone_no*, and keep it. There must be such a file."""
        file = self.files.get(zone_no)
        if file is None:
            file = self.files[zone_no] = self._make_file(zone_no)
        return file

    def look_at(self, zone_no: int) -> ZoneFile:
        """Return what :meth:`file` returns, for reading only: a file that was never opened or changed is not kept."""
        return self.files.get(zone_no) or self._make_file(zone_no)

    def unused_size(self, zone_no: int) -> int:
        """Return the size of the file of zone *zone_no* if it is readable and as it was at mount, otherwise -1."""
        if zone_no in self.files or self._mount_conds[zone_no] in _LOST:
            return -1
        return self._mount_sizes[zone_no]

    def find(self, group: Group, name: bytes) -> ZoneFile | None:
        """Return the file called *name* in the directory of *group*, for reading only; None if it does not exist."""
        file_no = group.find(name)
        return None if file_no is None else self.look_at(group.zones(file_no)[0])

    def _make_file(self, zone_no: int) -> ZoneFile:
        group = self.tree.group_of(zone_no)
        file_no = group.file_no(zone_no)
        assert file_no is not None
        first, nr_zones = group.zones(file_no)
        assert first == zone_no
        file = ZoneFile(zone_no, nr_zones, f"{group.name}/{file_no}", sequential=group.sequential, node=self._file_node)
        geometry = self.geometry
        file.start = geometry.zone_start(zone_no)
        file.capacity = sum(geometry.zone_cap(zone_no + i) for i in range(nr_zones)) << SECTOR_SHIFT
        conds = self._mount_conds[zone_no : zone_no + nr_zones]
        file.offline = Condition.OFFLINE in conds
        file.readonly = not file.offline and Condition.READONLY in conds
        if file.offline or file.readonly:
            # At mount, the write pointer of a read-only zone is not known, so its file cannot be read either.
            file.mode &= ~ALL_BITS
            file.immutable = True
        if not file.offline:
            file.size = file.wp = sum(self._mount_sizes[zone_no : zone_no + nr_zones])
        file.active = file.sequential and not file.immutable and 0 < file.wp < file.capacity
        # The kernel knows no other size of a file that was not kept.
        file.notified_size = file.size
        return file

    # -- open and close ---------------------------------------------------------------------------------------

    def open(self, file: ZoneFile, flags: int) -> Handle:
        """Return a handle on *file* opened with *flags*; carry out O_TRUNC.

        Raises:
            FileError: EROFS, EPERM (immutable; O_TRUNC of a conventional file), EBUSY (explicit-open: more files open
                for writing than max_open_zones), or the errno of a failed zone command, e.g. EOVERFLOW.
        """
        handle = Handle(file, flags)
        truncates = bool(flags & os.O_TRUNC)
        if handle.writable or truncates:
            self.check_changeable(file, Operation.OPEN)
        if handle.writable and file.sequential:
            self._open_for_writing(file)
        if truncates:
            try:
                self.truncate(file, 0)
            except FileError:
                self.release(handle)
                raise
            file.mtime_ns = file.ctime_ns = self.now_ns()
        return handle

    def check_changeable(self, file: ZoneFile, operation: Operation) -> None:
        """Raise FileError, EROFS or else EPERM, unless the VFS would let root change *file* by *operation*."""
        if self.refuses_changes():
            raise self._refuse(ZonefsRule.FS_READONLY, operation, file)
        if file.immutable:
            raise self._immutable(file, operation)

    def refuses_changes(self) -> bool:
        """Return whether the file system is read-only, for a request by which the kernel begins to change something."""
        if self.kernel_readonly:
            # The kernel sends no such request for a read-only mount, so the mount was remounted read-write.
            self.readonly = self.kernel_readonly = False
        return self.readonly

    def _open_for_writing(self, file: ZoneFile) -> None:
        """Count a writer; with explicit-open, open the zone. Source: zonefs_seq_file_write_open."""
        if not file.nr_writers:
            if self.explicit_open:
                # As in the kernel, the number of files is checked before any command to the device.
                if self.max_wro_files and self.nr_wro_files >= self.max_wro_files:
                    raise self._refuse(ZonefsRule.FS_TOO_MANY_WRITERS, Operation.OPEN, file)
                if file.size < file.capacity:
                    self._manage(file, Operation.OPEN)
                    file.zone_open = True
                    self._account_active(file)
            self.nr_wro_files += 1
        file.nr_writers += 1

    def release(self, handle: Handle) -> None:
        """Close *handle*; never fails. Source: zonefs_seq_file_write_close."""
        file = handle.file
        if not (handle.writable and file.sequential):
            return
        file.nr_writers -= 1
        if file.nr_writers:
            return
        self.nr_wro_files -= 1
        if file.zone_open and not self._close_zone(file) and file.zone_open:
            # A zone that stays open uses up a resource that other zones need.
            log.warning("%s: its zone could not be closed", file.path)
            self._go_readonly()

    def _close_zone(self, file: ZoneFile) -> bool:
        """Close the zone that was opened for writers. If the device refuses, do error recovery and return False."""
        try:
            self._manage(file, Operation.CLOSE)
        except FileError:
            self._recover(file, write=False)
            return False
        file.zone_open = False
        self._account_active(file)
        return True

    def close(self) -> None:
        """Close the zones of files that are still open for writing, at unmount."""
        for file in self.files.values():
            if file.nr_writers:
                file.nr_writers = 1
                self.release(Handle(file, os.O_WRONLY))

    # -- data -------------------------------------------------------------------------------------------------

    def read(self, handle: Handle, offset: int, count: int) -> "Buffer":
        """Return up to *count* bytes at *offset*, in a buffer that is valid until the next read.

        Raises:
            FileError: EPERM if the file has no permissions after an error; EINVAL if the part of a direct read that
                lies within the file is not whole blocks; EIO if the device refuses, after error recovery.
        """
        file = handle.file
        if file.immutable and not file.mode & ALL_BITS:
            raise self._immutable(file, Operation.READ)
        available = file.size - offset
        if available <= 0:
            return b""
        count = min(count, available)
        if self._notes_access and not handle.noatime:
            self._touch(file)
        lead, padded = 0, count
        if (offset | count) % self.block_bytes:
            if handle.direct:
                raise self._refuse(ZonefsRule.FS_UNALIGNED, Operation.READ, file, offset, count)
            block = self.geometry.block_size_bytes
            lead = offset % block
            padded = -(-(lead + count) // block) * block
        if padded > len(self._buffer):
            self._buffer = memoryview(mmap.mmap(-1, padded))
        view = self._buffer[:padded]
        status = self._read(file.start + ((offset - lead) >> SECTOR_SHIFT), padded >> SECTOR_SHIFT, (view,))
        if status:
            raise self._failed(file, status, write=False)
        return view if padded == count else view[lead : lead + count]

    def _touch(self, node: Node) -> None:
        if not self.readonly:
            node.note_access(self.now_ns())

    def touch_directory(self, node: Node) -> None:
        """Note that the directory *node* is listed."""
        if self._notes_access and not self.options.nodiratime:
            self._touch(node)

    def write(self, handle: Handle, offset: int, data: bytes) -> int:
        """Write *data* (not empty) at *offset*; return how many bytes were written, fewer where the capacity ends.

        Raises:
            FileError, first hit wins: EPERM immutable; EROFS; EFBIG at or past the capacity; EIO buffered to a
                sequential file; EINVAL O_APPEND to a conventional one, not whole blocks, not at the end of a sequential
                file; then what the device says (EIO, EOVERFLOW, ETOOMANYREFS, ENOSPC), after error recovery.

        Source: zonefs_file_write_iter, zonefs_write_checks, zonefs_file_dio_write.
        """
        file = handle.file
        if file.immutable:
            raise self._immutable(file, Operation.WRITE, offset, len(data))
        if self.readonly:
            raise self._refuse(ZonefsRule.FS_READONLY, Operation.WRITE, file, offset)
        count = len(data)
        capacity = file.capacity
        if offset >= capacity and not handle.append:
            # zonefs compares the position of the caller. With O_APPEND, FUSE passes the end of the file instead.
            raise self._too_big(file, offset, count)
        if file.sequential:
            if not handle.direct:
                raise self._refuse(ZonefsRule.FS_DIRECT_ONLY, Operation.WRITE, file, offset, count)
            if handle.append:
                # The offset is the end of the file in the kernel's cache, which can be stale.
                offset = file.wp
                if offset >= capacity:
                    raise self._too_big(file, offset, count)
        elif handle.append:
            raise self._refuse(ZonefsRule.FS_APPEND_CONVENTIONAL, Operation.WRITE, file, offset, count)
        buffer: Buffer = data
        if offset + count > capacity:
            count = capacity - offset
            buffer = memoryview(data)[:count]
        if (offset | count) % self.block_bytes:
            if handle.direct:
                raise self._refuse(ZonefsRule.FS_UNALIGNED, Operation.WRITE, file, offset, count)
            return self._write_unaligned(file, offset, buffer, count)
        if file.sequential and offset != file.wp:
            raise self._refuse(ZonefsRule.FS_NOT_AT_END, Operation.WRITE, file, offset, count)
        status = self._write(file.start + (offset >> SECTOR_SHIFT), count >> SECTOR_SHIFT, (buffer,))
        if status:
            raise self._failed(file, status, write=True)
        if file.sequential:
            self.used_bytes += count
            file.wp = file.size = offset + count
            if not file.active or file.wp == capacity:
                self._account_active(file)
        return count

    def _write_unaligned(self, file: ZoneFile, offset: int, buffer: "Buffer", count: int) -> int:
        """Write *count* bytes to a conventional file as the kernel's page cache does: read and write whole blocks."""
        block = self.geometry.block_size_bytes
        lead = offset % block
        padded = -(-(lead + count) // block) * block
        whole = memoryview(bytearray(padded))
        sector = file.start + ((offset - lead) >> SECTOR_SHIFT)
        status = self._read(sector, padded >> SECTOR_SHIFT, (whole,))
        if status:
            raise self._failed(file, status, write=False)
        whole[lead : lead + count] = memoryview(buffer)
        status = self._write(sector, padded >> SECTOR_SHIFT, (whole,))
        if status:
            raise self._failed(file, status, write=True)
        return count

    def check_sync(self, file: ZoneFile) -> None:
        """Raise FileError, EPERM, if fsync(2) of *file* is refused. The caller flushes, because a flush blocks."""
        if file.immutable:
            raise self._immutable(file, Operation.FLUSH)

    def synced(self, file: ZoneFile, status: Status) -> None:
        """Take the *status* of a flush for fsync(2) or O_DSYNC on *file*.

        Raises:
            FileError: ENOSPC if the host is full, otherwise EIO after error recovery: the flush failed.
        """
        if status:
            raise self._failed(file, status, write=True)

    # -- attributes -------------------------------------------------------------------------------------------

    def truncate(self, file: ZoneFile, size: int) -> None:
        """Set the size of *file*: 0 resets its zone, the capacity finishes it.

        Raises:
            FileError: EFBIG beyond the largest file; EPERM for a conventional file, or for another size; the errno of a
                zone command that the device refuses, e.g. EOVERFLOW.

        Source: zonefs_file_truncate.
        """
        if size > self.max_file_bytes:
            raise self._too_big(file, size, 0)
        if not file.sequential:
            raise self._refuse(ZonefsRule.FS_TRUNCATE_CONVENTIONAL, Operation.RESET, file, size)
        if size not in {0, file.capacity}:
            raise self._refuse(ZonefsRule.FS_TRUNCATE_SIZE, Operation.RESET, file, size)
        if size == file.size:
            return
        self._manage(file, Operation.FINISH if size else Operation.RESET)
        try:
            if file.zone_open:
                if size:
                    file.zone_open = False
                else:
                    # Processes have the file open for writing, so its zone is opened again.
                    self._manage(file, Operation.OPEN)
        finally:
            self._resize(file, size)

    def statistics(self) -> ZonefsStatistics:
        """Return the statistics that the kernel's zonefs shows in sysfs."""
        return ZonefsStatistics(
            max_wro_seq_files=self.max_wro_files,
            nr_wro_seq_files=self.nr_wro_files,
            max_active_seq_files=self.max_active_files,
            nr_active_seq_files=self.nr_active_files,
            readonly=self.readonly,
        )

    # -- zones ------------------------------------------------------------------------------------------------

    def _manage(self, file: ZoneFile, operation: Operation) -> None:
        """Send a zone command to the device; raise FileError if it is refused. Source: zonefs_inode_zone_mgmt."""
        if operation is Operation.CLOSE and not file.wp:
            # On some drives, closing leaves a zone active even if nothing was written to it; a reset does not.
            operation = Operation.RESET
        status = self.port.manage(operation, file.start)
        if status:
            raise FileError(ERRNO_OF[status])

    def _account_active(self, file: ZoneFile) -> None:
        """Count *file* as active or not. Source: zonefs_inode_account_active, zonefs_i_size_write."""
        if file.sequential and file.wp >= file.capacity:
            # A full zone is not open any more and need not be closed.
            file.zone_open = False
        active = file.sequential and not file.immutable and (file.zone_open or 0 < file.wp < file.capacity)
        if active != file.active:
            file.active = active
            self.nr_active_files += 1 if active else -1

    def _resize(self, file: ZoneFile, size: int) -> None:
        self.used_bytes += size - file.size
        file.size = file.wp = size
        self._account_active(file)

    # -- errors -----------------------------------------------------------------------------------------------

    def take_stock(self, file: ZoneFile) -> None:
        """Read the size of *file* from the device, after an exception between a command and the file's update."""
        if not file.sequential or file.immutable:
            return
        zone = self.port.zone(file.zone_no)
        written = (zone.wp - zone.start) << SECTOR_SHIFT
        size = data_size(zone.cond, written, file.capacity, file.wp, sequential=True)
        if size != file.size:
            self._resize(file, size)
            self.on_resized(file)

    def _recover(self, file: ZoneFile, *, write: bool) -> None:
        """Compare *file* with its zone after a failed I/O (*write*: no read), and apply the policy of ``errors=``."""
        size = file.size
        written = 0
        if file.sequential:
            zone = self.port.zone(file.zone_no)
            cond = zone.cond
            written = (zone.wp - zone.start) << SECTOR_SHIFT
        else:
            # The kernel's zonefs does not read the state of conventional zones, and takes them for good.
            cond = Condition.NOT_WP
        finding = Finding(
            cond=cond,
            written=written,
            capacity=file.capacity,
            wp_size=file.wp,
            size=size,
            readonly=file.readonly,
            offline=file.offline,
            sequential=file.sequential,
        )
        verdict = judge(finding, self.errors, write=write)
        if verdict is None:
            return
        if verdict.offline or verdict.readonly:
            what = "read and write access" if verdict.offline else "write access"
            log.warning("%s: %s disabled after an I/O error, its zone is %s", file.path, what, cond.name)
            file.offline = verdict.offline
            file.readonly = verdict.readonly
            file.immutable = True
            file.mode &= ~verdict.lost_mode
            file.zone_open = False
        if verdict.size != size:
            log.info("%s: size corrected from %d to %d bytes after an I/O error", file.path, size, verdict.size)
        self._resize(file, verdict.size)
        if verdict.remount_ro:
            self._go_readonly()
        self.on_resized(file)

    def _go_readonly(self) -> None:
        if not self.readonly:
            log.warning("the file system is read-only from now on, after an I/O error (errors=%s)", self.errors.value)
            self.readonly = True
            self.on_readonly()

    def _failed(self, file: ZoneFile, status: Status, *, write: bool) -> FileError:
        """Do error recovery after the device refused with *status*, and return the error for the application.

        NO_SPACE needs no recovery, because nothing has changed. Recovery would by default make the mount read-only, and
        then no file could be truncated to make room on the host.
        """
        if status is not Status.NO_SPACE:
            self._recover(file, write=write)
        return FileError(ERRNO_OF[status])

    def _immutable(self, file: ZoneFile, operation: Operation, offset: int = 0, count: int = 0) -> FileError:
        if file.offline:
            return self._refuse(ZonefsRule.FS_OFFLINE, operation, file, offset, count)
        return self._refuse(ZonefsRule.FS_WRITE_PROTECTED, operation, file, offset, count)

    def _too_big(self, file: ZoneFile, offset: int, count: int) -> FileError:
        return self._refuse(ZonefsRule.FS_TOO_BIG, Operation.WRITE, file, offset, count)

    def refuse(self, rule: ZonefsRule, request: str) -> FileError:
        """Note that *request*, which has no zone, was refused by a *rule* of zonefs; return the error."""
        status, errno_no = FS_RULES[rule]
        self.port.refusals.refuse(rule, None, status, request=request)
        return FileError(errno_no)

    def _refuse(
        self, rule: ZonefsRule, operation: Operation, file: ZoneFile, offset: int = 0, count: int = 0
    ) -> FileError:
        """Note that *operation* was refused by a *rule* of zonefs; return the error for the application."""
        status, errno_no = FS_RULES[rule]
        self.port.refusals.refuse(
            rule,
            operation,
            status,
            file.start + (offset >> SECTOR_SHIFT),
            -(-count >> SECTOR_SHIFT),
            zone_no=file.zone_no,
        )
        return FileError(errno_no)


def _nothing(*_: object) -> None:
    pass
