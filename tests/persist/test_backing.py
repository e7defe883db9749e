import ctypes
import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zonefs_emu.errors import ImageBusyError, ImageError, host_sentence
from zonefs_emu.persist import backing as module
from zonefs_emu.persist.backing import FileBacking, SyncFailedError, checked_sync, current_boot_id, is_full
from zonefs_emu.testing.backings import FailingBacking

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_a_file_longer_than_the_user_may_make_is_named(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            FileBacking.create(path, 2 * MIB, ())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert host_sentence(caught.value) == f"cannot set the length of {path}: File too large"
    assert not path.exists()


def test_what_is_no_regular_file_is_not_opened(path: Path) -> None:
    os.mkfifo(path)
    for name, kind in ((path, "a FIFO"), (path.parent, "a directory"), (Path(os.devnull), "a character device")):
        for open_it in (FileBacking.open, FileBacking.peek):
            with pytest.raises(ImageError, match=f"^{name} is {kind}, but an image must be a regular file$"):
                open_it(name)


def test_create_makes_a_sparse_file_and_never_overwrites(path: Path) -> None:
    backing = FileBacking.create(path, 64 * MIB, [(32 * MIB, MIB)])
    assert (backing.length, path.stat().st_size) == (64 * MIB, 64 * MIB)
    assert MIB <= path.stat().st_blocks * 512 < 2 * MIB
    backing.sync_name()
    backing.close()
    backing.close()
    with pytest.raises(FileExistsError):
        FileBacking.create(path, 1, [])
    assert path.stat().st_size == 64 * MIB


def test_a_file_that_cannot_be_made_whole_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match="No space"):
        FileBacking.create(path, MIB, [(0, MIB)])
    assert not path.exists()


def test_reading_and_writing(path: Path) -> None:
    backing = FileBacking.create(path, MIB, [])
    backing.pwrite(b"abcdef", 1000)
    assert backing.pread(8, 999) == b"\0abcdef\0"
    assert backing.pread(10, MIB - 4) == bytes(4)
    assert backing.pwritev([b"12", b"345"], 0) == 5
    first, second = bytearray(3), bytearray(2)
    assert backing.preadv([first, second], 0) == 5
    assert first + second == b"12345"
    backing.sync()
    backing.close()


def test_a_host_that_takes_little_at_a_time_gets_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backing = FileBacking.create(path, MIB, [])
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, offset: pwrite(fd, view[:3], offset))
    backing.pwrite(b"0123456789", 7)
    assert backing.pread(10, 7) == b"0123456789"
    backing.close()


def test_one_writer_or_many_readers(path: Path) -> None:
    writer = FileBacking.create(path, MIB, [])
    for readonly in (False, True):
        with pytest.raises(ImageBusyError, match="file is in use by another process"):
            FileBacking.open(path, readonly=readonly)
    # Looking needs no lock.
    looker = FileBacking.peek(path)
    assert looker.identity == writer.identity
    looker.close()
    writer.close()
    readers = [FileBacking.open(path, readonly=True) for _ in range(2)]
    with pytest.raises(ImageBusyError):
        FileBacking.open(path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        readers[0].pwrite(b"x", 0)
    for reader in readers:
        reader.close()
    FileBacking.open(path).close()


def test_punch_gives_space_back_and_extents_tell(path: Path) -> None:
    backing = FileBacking.create(path, 8 * MIB, [])
    backing.pwrite(b"x" * MIB, MIB)
    backing.pwrite(b"y" * MIB, 4 * MIB)
    backing.sync()
    assert list(backing.extents(0, 8 * MIB)) == [(MIB, MIB), (4 * MIB, MIB)]
    assert list(backing.extents(MIB + 4096, 4 * MIB + 4096)) == [(MIB + 4096, MIB - 4096), (4 * MIB, 4096)]
    assert list(backing.extents(2 * MIB, 4 * MIB)) == []
    assert list(backing.extents(6 * MIB, 8 * MIB)) == []
    before = path.stat().st_blocks * 512
    backing.punch(MIB, MIB)
    assert path.stat().st_blocks * 512 <= before - MIB
    assert backing.pread(MIB, MIB) == bytes(MIB)
    assert backing.length == 8 * MIB
    assert list(backing.extents(0, 8 * MIB)) == [(4 * MIB, MIB)]
    backing.close()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_a_host_without_holes_keeps_the_bytes_and_other_failures_are_told(
    path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backing = FileBacking.create(path, MIB, [])
    backing.pwrite(b"x", 0)
    monkeypatch.setattr(module, "_fallocate", lambda *_args: -1)
    monkeypatch.setattr(ctypes, "get_errno", lambda: code)
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            backing.punch(0, MIB)
    else:
        backing.punch(0, MIB)
    assert backing.pread(1, 0) == b"x"
    backing.close()


def test_an_error_of_seeking_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backing = FileBacking.create(path, MIB, [])

    def fail(*_args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "lseek", fail)
    with pytest.raises(OSError, match="Input/output"):
        list(backing.extents(0, MIB))
    backing.close()


def test_mapped_memory_is_the_file(path: Path) -> None:
    backing = FileBacking.create(path, MIB, [(0, MIB)])
    view = backing.map(4096 + 512, 1024)
    assert len(view) == 1024
    view[0:3] = b"abc"
    words = view.cast("Q")
    words[127] = 0x0102030405060708
    assert backing.pread(3, 4096 + 512) == b"abc"
    assert backing.pread(8, 4096 + 512 + 1016) == bytes((8, 7, 6, 5, 4, 3, 2, 1))
    backing.pwrite(b"Z", 4096 + 513)
    assert bytes(view[0:3]) == b"aZc"
    words.release()
    backing.close()


def test_boot_id(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", current_boot_id().hex())
    assert current_boot_id() == current_boot_id()

    def fail(_path: Path) -> str:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(ImageError, match=r"boot id cannot be read .*: /proc must be mounted"):
        current_boot_id()


def test_resizing(path: Path) -> None:
    backing = FileBacking.create(path, 4096, [])
    backing.pwrite(b"abcdef", 4090)
    backing.resize(4093)
    assert (backing.length, backing.pread(9, 4090)) == (4093, b"abc")
    backing.resize(5000)
    assert (backing.length, backing.pread(9, 4090)) == (5000, b"abc" + bytes(6))
    backing.close()


def test_a_closed_file_is_let_go_and_its_number_stays_taken(path: Path) -> None:
    backing = FileBacking.create(path, MIB, [(0, MIB)])
    backing.pwrite(b"ours", 0)
    preadv, fd = backing.preadv, backing._fd
    backing.close()
    backing.close()
    secret = path.with_name("secret")
    secret.write_bytes(b"secret" * 1000)
    others = [os.open(secret, os.O_RDWR) for _ in range(20)]
    assert fd not in others
    calls: tuple[Callable[[], object], ...] = (
        lambda: preadv([bytearray(16)], 0),
        lambda: backing.pwritev([b"x"], 0),
        lambda: backing.pread(16, 0),
        lambda: backing.pwrite(b"x", 0),
        backing.sync,
        lambda: backing.punch(0, 4096),
        lambda: list(backing.extents(0, MIB)),
        lambda: backing.reserve(0, 4096),
        lambda: backing.resize(0),
    )
    for call in calls:
        with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument"):
            call()
    assert secret.read_bytes() == b"secret" * 1000
    backing._release()  # what the end of the object does
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    for other in others:
        os.close(other)


def test_who_still_looks_at_mapped_memory_does_not_keep_the_lock(path: Path) -> None:
    backing = FileBacking.create(path, MIB, [(0, MIB)])
    view = backing.map(0, 4096)
    view[:4] = b"kept"
    part = view[:4]
    words = view.cast("Q")
    backing.close()
    again = FileBacking.open(path)
    assert again.pread(4, 0) == bytes(part) == words.tobytes()[:4] == b"kept"
    again.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_host_refuses_writes_but_a_failed_sync_is_never_only_that(code: int) -> None:
    assert is_full(OSError(code, "")) == (code != errno.EIO)
    with pytest.raises(SyncFailedError) as raised:
        checked_sync(FailingBacking(bytearray(), fail_at=1, errno=code))
    assert (raised.value.errno, raised.value.strerror, is_full(raised.value)) == (code, os.strerror(code), False)


def test_a_forked_daemon_keeps_the_file_that_took_the_number(tmp_path: Path) -> None:
    """It closes what it inherits. What is left of the parent's backing must not close the number again."""
    program = f"""
import gc, os
from pathlib import Path
from zonefs_emu.persist.backing import FileBacking
backing = FileBacking.create(Path({str(tmp_path / "a")!r}), 4096, [])
fd = backing._fd
child = os.fork()
if child == 0:
    os.close(fd)
    assert os.open(os.devnull, os.O_RDONLY) == fd
    del backing
    gc.collect()
    os.fstat(fd)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
del backing
gc.collect()
try:
    os.fstat(fd)
except OSError:
    print("closed")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("closed\n", "")
