"""An exception that the code does not foresee costs the request that met it, and nothing else."""

import errno
import inspect
import os
import select
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

import pyfuse3
import pytest

from tests.fs.conftest import APPEND_DIRECT, BLOCK, CAPACITY, RW_DIRECT, Bench, blocks, geometry
from tests.fs.mounts import Mounted, mounted
from tests.fs.test_mount import wait_until
from tests.fs.test_operations import CTX, Kernel
from tests.tracing import traced
from zonefs_emu.device.counters import Counter
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.fs import boundary, mount as mount_module
from zonefs_emu.fs.boundary import HANDLERS
from zonefs_emu.fs.operations import ZonefsOperations
from zonefs_emu.fs.tree import ROOT_NODE_ID
from zonefs_emu.model.transitions import Operation

#: What the kernel never asks: it checks permissions itself (default_permissions), and there are no symbolic links.
NEVER_CALLED: Final = {"access", "readlink"}


def failing_once(raised: set[str]) -> type[ZonefsOperations]:
    """Return operations each of whose handlers fails the first time, and adds its name to *raised*."""

    def failing(name: str) -> Callable[..., Any]:
        proper = getattr(ZonefsOperations, name)

        async def handler(self: ZonefsOperations, *args: Any) -> Any:
            if name not in raised:
                raised.add(name)
                message = f"a bug in {name}"
                raise RuntimeError(message)
            return await proper(self, *args)

        return handler

    return type("Failing", (ZonefsOperations,), {name: failing(name) for name in HANDLERS})


def nr_contained(bench: Bench) -> int:
    return int(bench.device.counters.device[Counter.INTERNAL_ERRORS])


@pytest.mark.parametrize("name", sorted(HANDLERS))
async def test_each_handler_answers_eio_and_goes_on(
    bench: Bench, expect_warning: Callable[[str], None], name: str
) -> None:
    expect_warning(f"internal error in zonefs, {name} request: RuntimeError: a bug in {name}")
    operations = failing_once(set(HANDLERS - {name}))(bench.mount(), lambda _: None)
    if name != "open":
        assert (await operations.open(2, APPEND_DIRECT, CTX)).fh == 1
    # 1 is a handle and the node of the root; what else the request names is not looked at.
    arguments = [1] * (len(inspect.signature(getattr(pyfuse3.Operations, name)).parameters) - 1)
    handler = partial(getattr(operations, name), *arguments)
    if name == "forget":  # nothing is answered, and FUSEError would end pyfuse3's loop
        assert await handler() is None
    else:
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await handler()
        assert caught.value.errno == errno.EIO
    assert nr_contained(bench) == 1
    refusal = bench.device.refusals.last(1)[0]
    assert (refusal.front_end, refusal.rule) == ("zonefs", DeviceRule.INTERNAL)
    assert (await operations.statfs(CTX)).f_namemax == 16


def _use_everything(fs: Mounted) -> None:
    """Make the kernel send each kind of request. What fails here is not looked at."""
    path = fs.path
    seq, new = path / "seq/0", path / "seq/new"
    attempts: list[Callable[[], object]] = [
        lambda: os.statvfs(path),
        lambda: os.stat(seq),
        lambda: os.listdir(path / "seq"),
        new.touch,
        lambda: os.mknod(new, stat.S_IFIFO),
        new.mkdir,
        lambda: new.symlink_to("target"),
        lambda: os.link(seq, new),
        lambda: os.rename(seq, new),
        lambda: os.unlink(seq),
        lambda: os.rmdir(path / "seq"),
        lambda: os.chmod(seq, 0o600),
        lambda: os.getxattr(seq, "user.x"),
        lambda: os.listxattr(seq),
        lambda: os.setxattr(seq, "user.x", b""),
        lambda: os.removexattr(seq, "user.x"),
        lambda: _use_file(seq),
        lambda: _use_directory(path / "seq"),
        lambda: Path("/proc/sys/vm/drop_caches").write_text("2"),  # forget
    ]
    for attempt in attempts:
        with suppress(OSError):
            attempt()


def _use_file(path: Path) -> None:
    fd = os.open(path, RW_DIRECT)
    try:
        for attempt in (
            lambda: os.write(fd, blocks(1)),
            lambda: os.fsync(fd),
            lambda: os.pread(fd, BLOCK, 0),
            lambda: _poll(fd),
        ):
            with suppress(OSError):
                attempt()
    finally:
        os.close(fd)


def _poll(fd: int) -> None:
    poll = select.poll()
    poll.register(fd)
    poll.poll(0)


def _use_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@pytest.mark.fuse
def test_each_handler_fails_once_on_a_mount_that_survives(
    bench: Bench, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_warning("internal error in zonefs, .* request: RuntimeError: a bug in")
    raised: set[str] = set()
    monkeypatch.setattr(mount_module, "ZonefsOperations", failing_once(raised))
    with mounted(bench) as fs:
        for _ in range(len(HANDLERS)):
            if raised | NEVER_CALLED | {"forget"} >= HANDLERS:
                break
            _use_everything(fs)
        assert HANDLERS - raised <= NEVER_CALLED | {"forget"}  # forget comes when the kernel pleases
        assert nr_contained(bench) == len(raised)
        size = fs.size("seq/0")
        fd = fs.open("seq/0", APPEND_DIRECT)
        assert os.write(fd, blocks(2)) == 2 * BLOCK
        os.fsync(fd)
        assert (fs.path / "seq/0").read_bytes() == blocks(size // BLOCK + 2)
        assert sorted(os.listdir(fs.path)) == ["cnv", "seq"]
        fs.close(fd)
        # A RELEASE has no second try: the writer whose RELEASE failed is counted until the unmount.
        assert fs.statistics()["nr_wro_seq_files"] == 1


@pytest.mark.fuse
def test_what_tells_the_kernel_fails_and_the_mount_survives(
    bench: Bench, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropping pages for another front-end's change fails twice: the third is delivered, and requests are served."""
    expect_warning(r"internal error in zonefs, dropping the cached pages of seq/0: RuntimeError: a bug")
    failures = 2
    drop = ZonefsOperations.drop_pages_sync

    def failing(self: ZonefsOperations, file: Any) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            message = "a bug"
            raise RuntimeError(message)
        drop(self, file)

    monkeypatch.setattr(ZonefsOperations, "drop_pages_sync", failing)
    bench.write_raw(2, 2 * BLOCK)
    with mounted(bench) as fs:
        reader = fs.open("seq/0", os.O_RDONLY)
        for byte in (b"a", b"b", b"c"):
            assert os.pread(reader, 1, 0)
            left = failures
            assert not bench.raw.manage(Operation.RESET, 256)
            bench.write_raw(2, 2 * BLOCK, byte)
            wait_until(lambda left=left: failures < left or left == 0)  # type: ignore[misc]  # a default in a lambda
        wait_until(lambda: os.pread(reader, BLOCK, 0) == blocks(1, b"c"))
        assert fs.size("seq/0") == 2 * BLOCK


@pytest.mark.fuse
def test_an_unmount_is_clean_although_a_file_cannot_be_closed(
    bench: Bench, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_warning("closing the files that were open at the unmount: ZeroDivisionError")
    with mounted(bench) as fs:
        monkeypatch.setattr(fs.server.mount.volume, "close", lambda: 1 // 0)  # type: ignore[union-attr]  # it is there
        assert fs.size("seq/0") == 0
    assert not fs.path.is_mount()


@pytest.mark.fuse
def test_a_remount_that_fails_leaves_the_mount_as_it_is(
    bench: Bench, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_warning("read-only from now on")
    expect_warning("internal error in zonefs, making the mount read-only: RuntimeError: a bug")

    def failing(_: Path) -> None:
        message = "a bug"
        raise RuntimeError(message)

    monkeypatch.setattr(mount_module, "remount_readonly", failing)
    with mounted(bench) as fs:
        fd = fs.open("seq/0", APPEND_DIRECT)
        bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.WRITE})))
        with pytest.raises(OSError, match="Input/output error"):
            os.write(fd, blocks(1))
        wait_until(lambda: nr_contained(bench) == 1)
        with pytest.raises(OSError, match="Read-only file system"):
            os.write(fd, blocks(1))
        assert fs.size("seq/0") == 0


# -- every function below the boundary -------------------------------------------------------------------------


class Answer(NamedTuple):
    """What was asked of which file, and what came: some of the result, or the negative errno."""

    file: str
    request: str
    result: object


async def _use_two_files(kernel: Kernel) -> list[Answer]:
    """Use two files, one after the other; return the answers."""
    operations = kernel.operations
    answers: list[Answer] = []

    async def ask(file: str, request: str, asked: Awaitable[Any]) -> Any:
        try:
            result = await asked
        except pyfuse3.FUSEError as error:
            answers.append(Answer(file, request, -error.errno))
            return None
        shown = result
        if isinstance(result, pyfuse3.EntryAttributes):
            shown = (result.st_size, oct(result.st_mode))
        elif isinstance(result, memoryview):
            shown = bytes(result)
        elif isinstance(result, pyfuse3.FileInfo | pyfuse3.StatvfsData):
            shown = None
        answers.append(Answer(file, request, shown))
        return result

    for file, zone_no in (("0", 2), ("1", 3)):
        await ask(file, "lookup", operations.lookup(10, file.encode(), CTX))
        await ask(file, "getattr", operations.getattr(zone_no, CTX))
        reader = await ask(file, "open to read", operations.open(zone_no, os.O_RDONLY, CTX))
        writer = await ask(file, "open", operations.open(zone_no, APPEND_DIRECT, CTX))
        if writer is not None:
            await ask(file, "write", operations.write(writer.fh, 0, blocks(2)))
            await ask(file, "fsync", operations.fsync(writer.fh, False))
            await ask(file, "write past the end", operations.write(writer.fh, CAPACITY, blocks(1)))
        if reader is not None:
            await ask(file, "read", operations.read(reader.fh, 0, BLOCK))
            await ask(file, "unlink", operations.unlink(10, file.encode(), CTX))
            await ask(file, "chmod", kernel.setattr(zone_no, mode=0o600))
            await ask(file, "truncate", kernel.setattr(zone_no, size=0))
            await ask(file, "release of the reader", operations.release(reader.fh))
        if writer is not None:
            await ask(file, "write again", operations.write(writer.fh, 0, blocks(3)))
            await ask(file, "release", operations.release(writer.fh))
    await ask("", "statfs", operations.statfs(CTX))
    await ask("", "attributes of the root", operations.getattr(ROOT_NODE_ID, CTX))
    return answers


@contextmanager
def _at_each_call(note: Callable[[CodeType], None]) -> Iterator[None]:
    """Call *note* with the code of each function below the boundary that is called in the context; it may raise."""
    package = Path(boundary.__file__).parent

    def trace(frame: FrameType, event: str, _: object) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path != boundary.__file__ and path.startswith(f"{package}/"):
            note(frame.f_code)

    with traced(trace):
        yield


async def test_each_function_below_the_boundary_fails_once(
    make_bench: Callable[..., Bench], expect_warning: Callable[[str], None]
) -> None:
    """Every function that the requests reach raises once, the first time; the other requests must not notice."""
    expect_warning("internal error in zonefs, .* request: ZeroDivisionError")
    reached: list[CodeType] = []
    shape = geometry(max_open_zones=2)
    kernel = Kernel(make_bench(shape), "explicit-open")
    with _at_each_call(reached.append):
        expected = await _use_two_files(kernel)
    assert len(set(reached)) > 40
    assert all(answer.result != -errno.EIO for answer in expected)

    for culprit in dict.fromkeys(reached):
        bench = make_bench(shape)
        kernel = Kernel(bench, "explicit-open")
        missing = [culprit]

        def fail(code: CodeType, missing: list[CodeType] = missing) -> None:
            if code in missing:
                missing.remove(code)
                1 // 0  # noqa: B018  (the bug)

        with _at_each_call(fail):
            answers = await _use_two_files(kernel)
        what = f"{culprit.co_qualname} raised"
        assert nr_contained(bench) == 1, what
        assert [answer.result for answer in answers].count(-errno.EIO) == 1, what
        hit = next(answer for answer in answers if answer.result == -errno.EIO)
        if hit.file != "1":
            # The other file answers as if nothing had happened, and holds what was acknowledged.
            others = [answer for answer in answers if answer.file == "1"]
            assert others == [answer for answer in expected if answer.file == "1"], what
            assert bench.raw.zone(3).wp == 384 + 3 * BLOCK // 512, what
        if "release" not in hit.request:
            assert (kernel.volume.nr_wro_files, kernel.operations.handles) == (0, {}), what
