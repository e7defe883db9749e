"""FUSE handlers called directly, without a mount: what they add to the volume."""

import errno
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any, Final

import pyfuse3
import pytest
import trio
import trio.testing

from tests.fs.conftest import APPEND_DIRECT, BLOCK, CAPACITY, RW_DIRECT, Bench, blocks, cnv, geometry, seq
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.fs.files import ZoneFile
from zonefs_emu.fs.operations import KEPT_SECONDS, ZonefsOperations
from zonefs_emu.fs.tree import ROOT_NODE_ID, ZONE_1_NODE_ID
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition

CTX: Final[Any] = SimpleNamespace(pid=0, uid=0, gid=0)  # a thread not known here, as one of another PID namespace
READ_DIRECT: Final = os.O_RDONLY | os.O_DIRECT


@contextmanager
def fails(errno_no: int) -> Iterator[None]:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        yield
    assert caught.value.errno == errno_no


class Kernel:
    """Calls handlers as the kernel does, with doubles for the objects that only pyfuse3 itself can make."""

    def __init__(self, bench: Bench, options: str = "") -> None:
        self.bench = bench
        self.volume = bench.mount(options)
        self.invalidated: list[int] = []
        self.operations = ZonefsOperations(self.volume, self.invalidated.append)

    async def open(self, file: ZoneFile, flags: int) -> int:
        return (await self.open_info(file, flags)).fh

    async def open_info(self, file: ZoneFile, flags: int) -> pyfuse3.FileInfo:
        from zonefs_emu.fs.tree import node_id

        return await self.operations.open(node_id(file.zone_no), flags, CTX)

    async def read(self, fh: int, offset: int, count: int) -> bytes:
        return bytes(await self.operations.read(fh, offset, count))

    async def setattr(
        self, node: int, fh: int | None = None, *, context: Any = CTX, **values: int
    ) -> pyfuse3.EntryAttributes:
        names = ("size", "mode", "uid", "gid", "atime", "mtime", "ctime")
        fields: Any = SimpleNamespace(**{f"update_{name}": name in values for name in names})
        attr: Any = SimpleNamespace(
            **{f"st_{name}": value for name, value in values.items()},
            **{f"st_{name}_ns": value for name, value in values.items()},
        )
        return await self.operations.setattr(node, attr, fields, fh, context)


@pytest.fixture
def kernel(bench: Bench) -> Kernel:
    return Kernel(bench)


# -- names and attributes -------------------------------------------------------------------------------------


async def test_what_is_only_looked_at_is_not_kept(kernel: Kernel) -> None:
    for name in (b"0", b"1", b"2"):
        entry = await kernel.operations.lookup(kernel.volume.tree.group_inode(kernel.volume.tree.seq), name, CTX)
        assert (await kernel.operations.getattr(entry.st_ino, CTX)).st_size == 0
    assert kernel.volume.files == {}
    await kernel.setattr(3, mode=0o600)
    assert list(kernel.volume.files) == [3]
    assert stat.S_IMODE((await kernel.operations.getattr(3, CTX)).st_mode) == 0o600
    fh = await kernel.open(kernel.volume.file(4), APPEND_DIRECT)
    await kernel.operations.write(fh, 0, blocks(1))
    assert (await kernel.operations.getattr(4, CTX)).st_size == BLOCK
    assert list(kernel.volume.files) == [3, 4]


async def test_lookup_answers_with_node_ids_and_getattr_with_inode_numbers(kernel: Kernel) -> None:
    operations = kernel.operations
    found = await operations.lookup(ROOT_NODE_ID, b"cnv", CTX)
    assert (found.st_ino, found.st_mode, found.st_nlink, found.st_size) == (9, stat.S_IFDIR | 0o555, 2, 1)
    entry = await operations.lookup(9, b"0", CTX)
    assert entry.st_ino == ZONE_1_NODE_ID
    assert (await operations.getattr(ZONE_1_NODE_ID, CTX)).st_ino == 1
    assert (await operations.lookup(10, b"2", CTX)).st_ino == 4
    assert (await operations.lookup(10, b".", CTX)).st_ino == 10
    assert (await operations.lookup(10, b"..", CTX)).st_ino == ROOT_NODE_ID
    assert (await operations.lookup(ROOT_NODE_ID, b".", CTX)).st_ino == ROOT_NODE_ID
    root = await operations.getattr(ROOT_NODE_ID, CTX)
    assert (root.st_ino, root.st_nlink, root.st_size, root.st_blocks) == (8, 4, 4, 0)
    assert (await operations.getattr(10, CTX)).st_size == 6
    assert (entry.attr_timeout, root.attr_timeout, found.attr_timeout) == (0, KEPT_SECONDS, KEPT_SECONDS)
    assert entry.entry_timeout == found.entry_timeout == KEPT_SECONDS


@pytest.mark.parametrize(
    ("parent", "name", "number"),
    [
        (ROOT_NODE_ID, b"0", errno.ENOENT),
        (ROOT_NODE_ID, b"x" * 16, errno.ENOENT),
        (ROOT_NODE_ID, b"x" * 17, errno.ENAMETOOLONG),
        (10, b"6", errno.ENOENT),
        (10, b"0" * 17, errno.ENAMETOOLONG),
        (2, b"0", errno.ENOTDIR),
    ],
)
async def test_lookup_of_what_is_not_there(kernel: Kernel, parent: int, name: bytes, number: int) -> None:
    with fails(number):
        await kernel.operations.lookup(parent, name, CTX)


async def test_the_tree_is_fixed(kernel: Kernel) -> None:
    operations = kernel.operations
    refused: list[tuple[Callable[..., Any], tuple[object, ...], int]] = [
        (operations.create, (10, b"new", 0o600, os.O_RDWR, CTX), errno.ENOENT),
        (operations.mknod, (10, b"new", 0o600, 0, CTX), errno.ENOENT),
        (operations.mkdir, (10, b"new", 0o700, CTX), errno.ENOENT),
        (operations.symlink, (10, b"new", b"target", CTX), errno.ENOENT),
        (operations.link, (2, 10, b"new", CTX), errno.ENOENT),
        (operations.unlink, (10, b"0", CTX), errno.EPERM),
        (operations.unlink, (10, b"9", CTX), errno.ENOENT),
        (operations.rmdir, (ROOT_NODE_ID, b"seq", CTX), errno.EPERM),
        (operations.rename, (10, b"0", 10, b"1", 0, CTX), errno.EPERM),
        (operations.rename, (10, b"0", 10, b"new", 0, CTX), errno.ENOENT),
        (operations.rename, (10, b"0", 10, b"n" * 17, 0, CTX), errno.ENAMETOOLONG),
        (operations.fsyncdir, (10, False), errno.EINVAL),
        (operations.setxattr, (2, b"user.a", b"b", CTX), errno.EOPNOTSUPP),
        (operations.removexattr, (2, b"user.a", CTX), errno.EOPNOTSUPP),
        (operations.getxattr, (2, b"user.a", CTX), errno.ENOSYS),
    ]
    for handler, arguments, number in refused:
        with fails(number):
            await handler(*arguments)
    assert await operations.listxattr(2, CTX) == []
    # Looking for a name that is not there is no refusal, nor is asking for an attribute.
    device = kernel.bench.device
    assert [(EXPLAINER.name(refusal), refusal.request) for refusal in device.refusals.last(20)] == [
        ("FS_CREATE", "creating 'new'"),
        ("FS_CREATE", "creating 'new'"),
        ("FS_CREATE", "creating 'new'"),
        ("FS_CREATE", "creating 'new'"),
        ("FS_CREATE", "creating 'new'"),
        ("FS_REMOVE", "removing '0'"),
        ("FS_REMOVE", "removing 'seq'"),
        ("FS_REMOVE", "renaming '0'"),
        ("FS_CREATE", "renaming to 'new'"),
        ("FS_DIRECTORY_SYNC", "fsync of a directory"),
        ("FS_XATTR", "a change of the extended attribute 'user.a'"),
        ("FS_XATTR", "a change of the extended attribute 'user.a'"),
    ]
    assert EXPLAINER.explain(device.refusals.last(20)[0], device.geometry) == (
        "zonefs: creating 'new' was refused (UNSUPPORTED): ENOENT, there is one file for each zone, and no other can "
        "be created [zonefs.rst, Zone type sub-directories]"
    )


async def test_listing(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[tuple[bytes, int]] = []
    next_ids: list[int] = []
    room = [0]

    def reply(token: object, name: bytes, attr: pyfuse3.EntryAttributes, next_id: int) -> bool:
        if not room[0]:
            return False
        room[0] -= 1
        listed.append((name, attr.st_ino))
        next_ids.append(next_id)
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    token: Any = None
    for entries in (1, 2, 3, 100):
        for directory, expected in (
            (ROOT_NODE_ID, [(b".", 8), (b"..", 8), (b"cnv", 9), (b"seq", 10)]),
            (10, [(b".", 10), (b"..", 8), *((str(i).encode(), i + 2) for i in range(6))]),
            (9, [(b".", 9), (b"..", 8), (b"0", ZONE_1_NODE_ID)]),
        ):
            listed.clear()
            next_ids[:] = [0]
            fh = await kernel.operations.opendir(directory, CTX)
            for _ in range(len(expected) + 1):
                room[0] = entries
                await kernel.operations.readdir(fh, next_ids[-1], token)
            assert listed == expected


async def test_a_listing_has_the_attributes_of_each_file(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that were used since the mount, files that were not, and files of lost zones, in any order."""
    bench = make_bench("capacity")
    bench.write_raw(2, BLOCK)
    bench.write_raw(5, 2 * BLOCK)
    bench.set_cond(3, Condition.OFFLINE)
    bench.set_cond(6, Condition.READONLY)
    kernel = Kernel(bench)
    await kernel.setattr(4, mode=stat.S_IFREG | 0o600, uid=3)
    names = [name for name in pyfuse3.EntryAttributes.__dict__ if name.startswith("st_") and name != "st_ino"]
    listed: dict[int, list[object]] = {}

    def reply(_token: object, name: bytes, entry: pyfuse3.EntryAttributes, _next_id: int) -> bool:
        if name not in {b".", b".."}:
            listed[entry.st_ino] = [getattr(entry, field) for field in names]
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    token: Any = None
    await kernel.operations.readdir(await kernel.operations.opendir(10, CTX), 0, token)
    assert list(listed) == [2, 3, 4, 5, 6, 7]
    for node, attributes in listed.items():
        found = await kernel.operations.getattr(node, CTX)
        assert attributes == [getattr(found, field) for field in names], node


async def test_attributes_of_files(make_bench: Callable[..., Bench]) -> None:
    kernel = Kernel(make_bench("capacity", "uid=7,gid=8,perm=600"))
    kernel.bench.write_raw(2, BLOCK)
    found = await Kernel(kernel.bench).operations.getattr(2, CTX)
    assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFREG | 0o600, 7, 8)
    assert (found.st_size, found.st_blocks, found.st_blksize, found.st_nlink) == (BLOCK, 96, BLOCK, 1)


async def test_statfs(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("capacity")
    bench.write_raw(2, BLOCK)
    bench.set_cond(3, Condition.OFFLINE)
    found = await Kernel(bench).operations.statfs(CTX)
    assert (found.f_bsize, found.f_frsize, found.f_namemax) == (BLOCK, BLOCK, 16)
    assert (found.f_blocks, found.f_bfree, found.f_bavail) == (16 + 6 * 12, 6 * 12 - 1, 6 * 12 - 1)
    assert (found.f_files, found.f_ffree) == (1 + 1 + 6 + 1, 0)


async def test_setattr_of_files(kernel: Kernel) -> None:
    found = await kernel.setattr(2, mode=stat.S_IFREG | 0o4700, uid=3, gid=4, atime=5, mtime=6)
    assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFREG | 0o4700, 3, 4)
    assert (found.st_atime_ns, found.st_mtime_ns) == (5, 6)
    assert found.st_ctime_ns >= kernel.volume.root.ctime_ns
    with fails(errno.EPERM):
        await kernel.setattr(2, size=BLOCK, mode=0o100644)
    # Refused as a whole.
    assert (await kernel.operations.getattr(2, CTX)).st_mode == stat.S_IFREG | 0o4700


@pytest.mark.parametrize("node", [ROOT_NODE_ID, 9, 10])
async def test_setattr_of_directories(kernel: Kernel, node: int) -> None:
    found = await kernel.setattr(node, mode=stat.S_IFDIR | 0o500, uid=3)
    assert (found.st_mode, found.st_uid) == (stat.S_IFDIR | 0o500, 3)
    for mode in (0o200, 0o020, 0o002, 0o777):
        with fails(errno.EPERM):
            await kernel.setattr(node, mode=stat.S_IFDIR | mode)
    with fails(errno.EISDIR):
        await kernel.setattr(node, size=0)
    rules = [EXPLAINER.name(refusal) for refusal in kernel.bench.device.refusals.last(10)]
    assert rules == ["FS_DIRECTORY_MODE"] * 4 + ["FS_DIRECTORY_SIZE"]


async def test_setattr_of_what_must_not_change(bench: Bench) -> None:
    bench.set_cond(2, Condition.READONLY)
    kernel = Kernel(bench)
    for change in ({"mode": 0o644}, {"uid": 1}, {"mtime": 1}, {"size": 0}):
        with fails(errno.EPERM):
            await kernel.setattr(2, **change)
    kernel.volume.readonly = True
    for node in (2, 3, 10, ROOT_NODE_ID):  # EROFS comes before EPERM
        with fails(errno.EROFS):
            await kernel.setattr(node, mode=0o500)


# -- handles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sequential", "flags", "direct_io"),
    [
        (True, os.O_RDONLY, False),
        (True, os.O_WRONLY, True),
        (True, os.O_RDWR, True),
        (True, READ_DIRECT, True),
        (False, os.O_RDONLY, False),
        (False, os.O_RDWR, False),
        (False, RW_DIRECT, True),
    ],
)
async def test_which_handles_bypass_the_page_cache(
    kernel: Kernel, sequential: bool, flags: int, direct_io: bool
) -> None:
    file = seq(kernel.volume) if sequential else cnv(kernel.volume)
    info = await kernel.open_info(file, flags)
    assert (info.direct_io, info.keep_cache) == (direct_io, False)
    assert kernel.operations.nr_cached_handles == file.nr_cached == (not direct_io)
    await kernel.operations.flush(info.fh)
    await kernel.operations.release(info.fh)
    assert kernel.operations.nr_cached_handles == file.nr_cached == 0
    assert not kernel.operations.handles


async def test_read_and_write(kernel: Kernel) -> None:
    fh = await kernel.open(seq(kernel.volume), RW_DIRECT)
    assert await kernel.operations.write(fh, 0, blocks(2)) == 2 * BLOCK
    assert await kernel.read(fh, BLOCK, 4 * BLOCK) == blocks(1)
    with fails(errno.EINVAL):
        await kernel.operations.write(fh, 0, blocks(1))
    with fails(errno.EINVAL):
        await kernel.operations.read(fh, 0, 100)


DELAYED: Final = {
    "read": lambda kernel, fh: kernel.read(fh, 0, BLOCK),
    "failed write": lambda kernel, fh: kernel.operations.write(fh, BLOCK, blocks(1)),
    "write": lambda kernel, fh: kernel.operations.write(fh, BLOCK, blocks(1)),
    "truncate": lambda kernel, fh: kernel.setattr(2, fh, size=0),
    "open with O_TRUNC": lambda kernel, fh: kernel.open(seq(kernel.volume), RW_DIRECT | os.O_TRUNC),
    "fsync": lambda kernel, fh: kernel.operations.fsync(fh, False),
}


@pytest.mark.parametrize("what", DELAYED)
async def test_an_injected_delay_keeps_its_own_answer_back_and_no_other(bench: Bench, what: str) -> None:
    """Were the delay waited for on the event loop, no other request would be answered in the meantime."""
    kernel = Kernel(bench, "errors=repair")
    slow, quick = (
        await kernel.open(seq(kernel.volume, 0), RW_DIRECT),
        await kernel.open(seq(kernel.volume, 1), RW_DIRECT),
    )
    await kernel.operations.write(slow, 0, blocks(1))
    operations = frozenset({Operation.FLUSH} if what == "fsync" else {Operation.READ, Operation.WRITE, Operation.RESET})
    delay_ns = 300_000_000
    kernel.bench.device.inject(
        Fault(effect=Effect.DELAY, operations=operations, delay_min_ns=delay_ns, delay_max_ns=delay_ns)
    )
    if what == "failed write":
        kernel.bench.device.inject(Fault(effect=Effect.FAIL, operations=operations))
    order: list[str] = []

    async def ask() -> None:
        started = trio.current_time()
        try:
            await DELAYED[what](kernel, slow)
        except pyfuse3.FUSEError as error:
            order.append(errno.errorcode[error.errno])
        assert trio.current_time() - started >= delay_ns / 1e9
        order.append("slow")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert await kernel.operations.write(quick, 0, blocks(1)) == BLOCK
        assert await kernel.read(quick, 0, BLOCK) == blocks(1)
        order.append("quick")
    assert order == ["quick", *(["EIO"] if what == "failed write" else []), "slow"]


async def test_a_timed_drive_answers_each_request_at_its_time(bench: Bench) -> None:
    """A reset of the drive takes 1.6 ms and more, a read 0.07 ms, and both a hundred times that here."""
    timing = bench.device.start_timing("zn540", scale=100)
    assert timing is not None
    kernel = Kernel(bench, "errors=repair")
    slow, quick = (
        await kernel.open(seq(kernel.volume, 0), RW_DIRECT),
        await kernel.open(seq(kernel.volume, 1), RW_DIRECT),
    )
    await kernel.operations.write(slow, 0, blocks(1))
    order: list[str] = []

    async def reset() -> None:
        await DELAYED["truncate"](kernel, slow)
        order.append("reset")

    before = timing.statistics()["answers"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reset)
        await trio.testing.wait_all_tasks_blocked()
        assert await kernel.operations.write(quick, 0, blocks(1)) == BLOCK
        assert await kernel.read(quick, 0, BLOCK) == blocks(1)
        order.append("quick")
    assert order == ["quick", "reset"]
    assert isinstance(before, int)
    assert timing.statistics()["answers"] == before + 3


async def test_open_with_o_trunc_resets(kernel: Kernel) -> None:
    file = seq(kernel.volume)
    fh = await kernel.open(file, RW_DIRECT)
    await kernel.operations.write(fh, 0, blocks(2))
    reader = await kernel.open(file, os.O_RDONLY)
    await kernel.open(file, RW_DIRECT | os.O_TRUNC)
    assert (file.size, kernel.bench.cond(2)) == (0, Condition.EMPTY)
    assert kernel.invalidated == [2]
    await kernel.operations.release(reader)
    with fails(errno.EPERM):
        await kernel.open(cnv(kernel.volume), os.O_RDWR | os.O_TRUNC)
    assert len(kernel.operations.handles) == 2


async def test_open_with_o_trunc_by_another_user_takes_away_the_set_user_id_bit(kernel: Kernel) -> None:
    file = seq(kernel.volume)
    for uid, mode in ((0, 0o4777), (1000, 0o777)):
        file.mode = 0o4777
        context: Any = SimpleNamespace(pid=1, uid=uid, gid=uid)
        await kernel.operations.open(2, RW_DIRECT | os.O_TRUNC, context)
        assert file.mode == mode


async def test_cached_readers_are_told_of_direct_writes(kernel: Kernel) -> None:
    for file, node in ((seq(kernel.volume), 2), (cnv(kernel.volume), ZONE_1_NODE_ID)):
        kernel.invalidated.clear()
        fh = await kernel.open(file, RW_DIRECT)
        await kernel.operations.write(fh, 0, blocks(1))
        assert kernel.invalidated == []
        await kernel.open(file, os.O_RDONLY)
        await kernel.operations.write(fh, BLOCK, blocks(1))
        assert kernel.invalidated == [node]


@pytest.mark.parametrize("options", ["errors=repair", "errors=repair,async_dio"])
async def test_a_mount_that_ends_does_not_wait_for_the_kernel(bench: Bench, options: str) -> None:
    kernel = Kernel(bench, options)
    answered = threading.Event()

    def wait(_node: int) -> None:
        answered.wait(20)

    writer = await kernel.open(seq(kernel.volume), RW_DIRECT)
    if "async_dio" in options:
        kernel.operations.kernel_size = lambda _file: answered.wait(20) or 0
        bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.WRITE})))
    else:
        kernel.operations._invalidate = wait
        await kernel.open(seq(kernel.volume), os.O_RDONLY)
    try:
        with trio.move_on_after(0.2) as scope:
            await kernel.operations.write(writer, 0, blocks(1))
        assert scope.cancelled_caught
        assert not answered.is_set()
    finally:
        answered.set()


async def test_a_file_that_the_kernel_forgot_has_no_pages(bench: Bench) -> None:
    def forgotten(node: int) -> None:
        raise FileNotFoundError

    operations = ZonefsOperations(bench.mount(), forgotten)
    operations.drop_pages_sync(seq(operations.volume))


async def test_counters_move_before_release_waits(make_bench: Callable[..., Bench]) -> None:
    kernel = Kernel(make_bench("limits"), "explicit-open")
    gone: list[int] = []
    kernel.operations.on_writer_gone = lambda: gone.append(1)
    fh = await kernel.open(seq(kernel.volume), RW_DIRECT)
    assert kernel.volume.statistics().nr_wro_seq_files == 1
    coroutine = kernel.operations.release(fh)
    with pytest.raises(StopIteration):
        coroutine.send(None)  # runs to its end without waiting for anything
    assert kernel.volume.statistics().nr_wro_seq_files == 0
    assert gone == [1]


# -- durability and order -------------------------------------------------------------------------------------


def flushes(kernel: Kernel) -> int:
    return kernel.bench.device.statistics()["flushes"]


@pytest.mark.parametrize(("flag", "expected"), [(os.O_DSYNC, 1), (os.O_SYNC, 1), (0, 0)])
async def test_synchronous_handles_flush_each_write(kernel: Kernel, flag: int, expected: int) -> None:
    fh = await kernel.open(seq(kernel.volume), RW_DIRECT | flag)
    before = flushes(kernel)
    await kernel.operations.write(fh, 0, blocks(1))
    assert flushes(kernel) - before == expected


@pytest.mark.parametrize(("options", "expected"), [("sync", 1), ("sync,async", 0), ("dirsync", 0)])
async def test_a_synchronous_mount_flushes_each_write(bench: Bench, options: str, expected: int) -> None:
    kernel = Kernel(bench, options)
    fh = await kernel.open(seq(kernel.volume), RW_DIRECT)
    before = flushes(kernel)
    await kernel.operations.write(fh, 0, blocks(1))
    assert flushes(kernel) - before == expected


async def test_cached_synchronous_handles_leave_it_to_the_kernel(kernel: Kernel) -> None:
    fh = await kernel.open(cnv(kernel.volume), os.O_RDWR | os.O_SYNC)
    before = flushes(kernel)
    await kernel.operations.write(fh, 0, blocks(1))
    assert flushes(kernel) == before
    await kernel.operations.fsync(fh, True)
    assert flushes(kernel) == before + 1


async def test_a_failed_flush_is_an_error_of_the_file(kernel: Kernel, expect_warning: Callable[[str], None]) -> None:
    expect_warning("read-only from now on")
    fh = await kernel.open(seq(kernel.volume), RW_DIRECT)
    kernel.bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.FLUSH})))
    with fails(errno.EIO):
        await kernel.operations.fsync(fh, False)
    assert kernel.volume.readonly
    await kernel.operations.fsync(fh, False)


async def test_fsync_of_an_immutable_file_is_refused(bench: Bench) -> None:
    bench.set_cond(2, Condition.READONLY)
    kernel = Kernel(bench)
    fh = await kernel.open(seq(kernel.volume), os.O_RDONLY)
    with fails(errno.EPERM):
        await kernel.operations.fsync(fh, False)


async def test_writes_to_a_zone_just_reset_wait_for_a_flush_in_order(kernel: Kernel) -> None:
    file = seq(kernel.volume)
    fh = await kernel.open(file, APPEND_DIRECT)
    await kernel.operations.write(fh, 0, blocks(3))
    await kernel.operations.fsync(fh, False)
    await kernel.setattr(2, size=0, fh=fh)
    assert kernel.volume.port.has_pending_reset(2)
    other = await kernel.open(seq(kernel.volume, 1), APPEND_DIRECT)
    reader = await kernel.open(file, READ_DIRECT)
    async with trio.open_nursery() as nursery:
        for i in range(10):
            nursery.start_soon(kernel.operations.write, fh, 0, blocks(1, bytes([65 + i])))
            nursery.start_soon(kernel.operations.write, other, 0, blocks(1, bytes([97 + i])))
            # Tasks start in any order; requests come in one. Let each come as far as it comes before the next.
            await trio.testing.wait_all_tasks_blocked(0.0)
    data = await kernel.read(reader, 0, CAPACITY)
    assert data[::BLOCK] == b"ABCDEFGHIJ"
    assert not kernel.operations._file_locks
    assert not kernel.volume.port.has_pending_reset(2)


# -- the automatic truncate -----------------------------------------------------------------------------------


@asynccontextmanager
async def stale_kernel(kernel: Kernel) -> AsyncIterator[tuple[ZoneFile, int]]:
    """A file with two blocks of which the kernel knows nothing, after a write at 0 that failed."""
    file = seq(kernel.volume)
    fh = await kernel.open(file, RW_DIRECT)
    await kernel.operations.getattr(2, CTX)
    kernel.bench.write_raw(2, 2 * BLOCK)
    with fails(errno.EIO):
        await kernel.operations.write(fh, 0, blocks(1))
    assert file.size == 2 * BLOCK  # recovered
    yield file, fh


@pytest.mark.parametrize("overtaken", [False, True])
async def test_the_truncate_that_follows_a_failed_write_is_not_obeyed(bench: Bench, overtaken: bool) -> None:
    kernel = Kernel(bench, "errors=repair")
    async with stale_kernel(kernel) as (file, fh):
        if overtaken:
            await kernel.operations.getattr(2, CTX)
        found = await kernel.setattr(2, size=0, fh=fh)
        assert (found.st_size, file.size, bench.cond(2)) == (2 * BLOCK, 2 * BLOCK, Condition.IMP_OPEN)
        # The next one comes from an application.
        await kernel.setattr(2, size=0, fh=fh)
        assert (file.size, bench.cond(2)) == (0, Condition.EMPTY)


@pytest.mark.parametrize("is_same", [True, False])
async def test_a_thread_that_has_looked_at_the_file_truncates_by_itself(bench: Bench, is_same: bool) -> None:
    """The kernel truncates before write(2) returns, so before the thread that called it can call fstat(2)."""
    looker: Any = SimpleNamespace(pid=7)
    other: Any = SimpleNamespace(pid=8)
    kernel = Kernel(bench, "errors=repair")
    async with stale_kernel(kernel) as (file, fh):
        await kernel.operations.getattr(2, looker)
        await kernel.setattr(2, size=0, fh=fh, context=looker if is_same else other)
        assert file.size == (0 if is_same else 2 * BLOCK)


async def test_a_truncate_of_another_handle_is_obeyed(bench: Bench) -> None:
    kernel = Kernel(bench, "errors=repair")
    async with stale_kernel(kernel) as (file, _):
        await kernel.setattr(2, size=0)
        assert file.size == 0


async def test_an_application_can_start_over_after_a_failed_write(kernel: Kernel) -> None:
    file = seq(kernel.volume)
    fh = await kernel.open(file, RW_DIRECT)
    await kernel.operations.write(fh, 0, blocks(2))
    with fails(errno.EINVAL):
        await kernel.operations.write(fh, 0, blocks(1))
    await kernel.setattr(2, size=0, fh=fh)
    assert file.size == 0


async def test_granularity_is_the_block_size(make_bench: Callable[..., Bench]) -> None:
    kernel = Kernel(make_bench(geometry(write_granularity=16)))
    assert (await kernel.operations.getattr(2, CTX)).st_blksize == 8192
    fh = await kernel.open(seq(kernel.volume), RW_DIRECT)
    with fails(errno.EINVAL):
        await kernel.operations.write(fh, 0, blocks(1))
    assert await kernel.operations.write(fh, 0, blocks(2)) == 8192
