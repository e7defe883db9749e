"""Real mounts. Chapters and titles follow zonefs-tools' test suite: 00xx mkfs and mount, 02xx conventional files,
03xx sequential files, 05xx attributes, 06xx I/O errors."""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from tests.fs.conftest import APPEND_DIRECT, BLOCK, CAPACITY, RW_DIRECT, SHAPES, Bench, blocks, geometry
from tests.fs.mounts import MNT_DETACH, Mounted, Server, aio_write, counting, fails, mounted
from tests.requires import requires, which
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.errors import BadMagicError, UsageError
from zonefs_emu.fs import mount as mount_module
from zonefs_emu.fs.kernel import MS_REMOUNT, _libc, remount_readonly
from zonefs_emu.fs.mount import fuse_options, serve
from zonefs_emu.fs.options import VFS_OPTIONS, MountOptions, parse_options
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition

READ_DIRECT: Final = os.O_RDONLY | os.O_DIRECT
MIB: Final = 1 << 20


def large(**changes: object) -> Any:
    """Zones of 8 MiB, so that requests are cut into pieces."""
    zone = 8 * MIB // 512
    return geometry(**({"size": 6 * zone, "zone_size": zone, "zone_capacity": zone} | changes))


# -- 00xx: mounting -------------------------------------------------------------------------------------------


@pytest.mark.fuse
def test_0020_the_tree(bench: Bench) -> None:
    bench.write_raw(3, 2 * BLOCK)
    with mounted(bench) as fs:
        assert sorted(os.listdir(fs.path)) == ["cnv", "seq"]
        assert os.listdir(fs.path / "seq") == ["0", "1", "2", "3", "4", "5"]
        root = os.stat(fs.path)
        assert (root.st_mode, root.st_ino, root.st_nlink, root.st_size) == (stat.S_IFDIR | 0o555, 8, 4, 4)
        cnv, seq = os.stat(fs.path / "cnv"), os.stat(fs.path / "seq")
        assert (cnv.st_ino, cnv.st_nlink, cnv.st_size, cnv.st_mode) == (9, 2, 1, stat.S_IFDIR | 0o555)
        assert (seq.st_ino, seq.st_nlink, seq.st_size) == (10, 2, 6)
        first, file = os.stat(fs.path / "cnv/0"), os.stat(fs.path / "seq/1")
        assert (first.st_ino, first.st_size, first.st_blocks) == (1, CAPACITY, CAPACITY // 512)
        assert (file.st_ino, file.st_size, file.st_blocks, file.st_blksize) == (3, 2 * BLOCK, CAPACITY // 512, BLOCK)
        assert (file.st_mode, file.st_nlink, file.st_uid) == (stat.S_IFREG | 0o640, 1, os.geteuid())
        assert root.st_ctime_ns == file.st_ctime_ns == file.st_mtime_ns == seq.st_mtime_ns


@pytest.mark.fuse
@pytest.mark.parametrize("shape", SHAPES)
def test_0021_every_shape_keeps_its_data_over_a_remount(make_bench: Callable[..., Bench], shape: str) -> None:
    bench = make_bench(shape)
    block = bench.raw.geometry.write_granularity * 512
    with mounted(bench) as fs:
        last = max(os.listdir(fs.path / "seq"), key=int)
        fd = fs.open(f"seq/{last}", APPEND_DIRECT)
        assert os.write(fd, b"a" * 2 * block) == 2 * block
        assert os.write(fd, b"b" * block) == block
        capacity = os.stat(fs.path / f"seq/{last}").st_blocks * 512
        assert capacity == bench.raw.geometry.zone_cap(bench.raw.geometry.nr_zones - 1) * 512
        assert os.write(fd, b"c" * capacity) == capacity - 3 * block
        with fails(errno.EFBIG):
            os.write(fd, b"d" * block)
        assert (fs.path / "cnv").exists() == (bench.raw.geometry.nr_conventional > 1 or shape == "conventional-ranges")
    with mounted(bench) as fs:
        data = (fs.path / f"seq/{last}").read_bytes()
        assert data == b"a" * 2 * block + b"b" * block + b"c" * (capacity - 3 * block)


@pytest.mark.fuse
def test_0022_proc_mounts(bench: Bench) -> None:
    with mounted(bench, "noatime") as fs:
        source, _, fstype, options, *_ = fs.mount_line()
        assert (source, fstype) == (str(bench.path), "fuse.zonefs")
        assert {"rw", "nosuid", "nodev", "noatime"} <= set(options.split(","))


@pytest.mark.fuse
@pytest.mark.parametrize("seen", [True, False], ids=["restricting", "default"])
def test_0022_libfuse_knows_each_option_that_is_passed_on(seen: bool, bench: Bench) -> None:
    names = {name for name in VFS_OPTIONS if (name.startswith("no") or name in {"sync", "dirsync"}) == seen}
    with mounted(bench, ",".join((*sorted(names), "nodiratime"))) as fs:
        options = fs.mount_line()[3].split(",")
        assert names & set(options) == (names if seen else set())


@pytest.mark.fuse
def test_0023_statfs(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("capacity")
    bench.write_raw(2, BLOCK)
    with mounted(bench) as fs:
        found = os.statvfs(fs.path)
    assert (found.f_bsize, found.f_frsize, found.f_namemax) == (BLOCK, BLOCK, 16)
    assert (found.f_blocks, found.f_bfree, found.f_files, found.f_ffree) == (88, 71, 9, 0)


def test_0024_an_unformatted_device_is_not_mounted(bench: Bench, tmp_path: Path) -> None:
    assert not bench.raw.write(0, 8, (bytes(4096),))
    with pytest.raises(BaseExceptionGroup) as caught, mounted(bench):
        pass
    assert caught.group_contains(BadMagicError, match="no zonefs super block")


def test_0025_a_mount_point_must_be_a_directory(bench: Bench, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", bench.path):
        with pytest.raises(UsageError, match=f"{path} is not a directory, so nothing can be mounted on it"):
            trio.run(partial(serve, bench.device, path, MountOptions(), source="x"))


@pytest.mark.fuse
def test_a_mount_that_fails_says_so_and_can_be_tried_again(bench: Bench, tmp_path: Path) -> None:
    wrong = MountOptions(passed_on=frozenset({"nonsense"}))
    with pytest.raises(UsageError, match=f"cannot mount on {tmp_path}: fuse: unknown option.*nonsense"):
        trio.run(partial(serve, bench.device, tmp_path, wrong, source="x"))
    with mounted(bench) as fs:
        assert fs.size("seq/0") == 0


def test_0026_what_libfuse_is_told() -> None:
    told = fuse_options(parse_options("ro,allow_other,noatime"), "a,b\\c")
    assert told == {
        "default_permissions", "subtype=zonefs", "fsname=a\\,b\\\\c", "ro", "allow_other", "noatime",
    }  # fmt: skip
    assert "rw" in fuse_options(MountOptions(), "x")


@pytest.mark.fuse
def test_0027_an_unmount_from_outside_ends_the_server(bench: Bench) -> None:
    with mounted(bench) as fs:
        fd = fs.open("seq/0", APPEND_DIRECT)
        os.write(fd, blocks(1))
        fs.close(fd)
        subprocess.run(["umount", fs.path], check=True, timeout=20)
        fs.server.join()
        assert os.listdir(fs.path) == []


@pytest.mark.fuse
def test_0028_a_mount_in_use_is_taken_away_when_stopped(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("limits")
    with mounted(bench, "explicit-open") as fs:
        fd = fs.open("seq/0", APPEND_DIRECT)
        os.write(fd, blocks(1))
        assert bench.cond(2) is Condition.EXP_OPEN
        fs.server.stop()
        with fails(errno.ENOTCONN):
            os.write(fd, blocks(1))
        with fails(errno.ENOTCONN):
            fs.close(fd)
    assert bench.cond(2) is Condition.CLOSED
    assert bench.raw.zone(2).wp == 256 + 8


@pytest.mark.fuse
@pytest.mark.parametrize("what", ["stopped", "error"])
def test_0028_what_covers_a_mount_is_not_touched(
    bench: Bench, what: str, expect_warning: Callable[[str], None]
) -> None:
    requires("root")
    with mounted(bench) as fs:
        fd = os.open(fs.path / "seq/0", RW_DIRECT)
        subprocess.run(["mount", "-t", "tmpfs", "cover", fs.path], check=True, timeout=20)
        try:
            (fs.path / "precious").touch()
            if what == "error":
                expect_warning("read-only from now on")
                bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.WRITE})))
                with fails(errno.EIO):
                    os.pwrite(fd, blocks(1), 0)
                os.close(fd)
                time.sleep(0.5)
                (fs.path / "writable").touch()
            fs.server.stop()
            assert (fs.path / "precious").exists()
        finally:
            subprocess.run(["umount", "-l", fs.path], check=True, timeout=20)
        if what == "stopped":
            with suppress(OSError):
                os.close(fd)
        subprocess.run(["umount", "-l", fs.path], check=True, timeout=20)


@pytest.mark.fuse
@pytest.mark.parametrize("in_use", [False, True])
def test_0028_a_mount_whose_parent_was_renamed_is_unmounted(bench: Bench, in_use: bool, tmp_path: Path) -> None:
    place = tmp_path / "before" / "mnt"
    place.mkdir(parents=True)
    server = Server(bench, place, "")
    place = place.parent.rename(tmp_path / "after") / "mnt"
    fd = os.open(place / "seq/0" if in_use else os.devnull, os.O_RDONLY)
    try:
        server.stop()
        assert server.error is None
        assert list(place.iterdir()) == []
    finally:
        with suppress(OSError):
            os.close(fd)
        _libc().umount2(os.fsencode(place), MNT_DETACH)


@pytest.mark.fuse
def test_0029_read_only(bench: Bench) -> None:
    bench.write_raw(2, BLOCK)
    with mounted(bench, "ro") as fs:
        with fails(errno.EROFS):
            fs.open("seq/0", os.O_WRONLY)
        with fails(errno.EROFS):
            os.truncate(fs.path / "seq/0", 0)
        with fails(errno.EROFS):
            os.chmod(fs.path / "cnv/0", 0o600)
        assert (fs.path / "seq/0").read_bytes() == blocks(1, b"r")


# -- 01xx: names ----------------------------------------------------------------------------------------------


@pytest.mark.fuse
def test_0110_names_that_do_not_exist(bench: Bench) -> None:
    with mounted(bench) as fs:
        for name in ("x", "seq/6", "seq/00", "seq/0x0", "seq/-1", "cnv/1", "seq/" + "9" * 16):
            with fails(errno.ENOENT):
                os.stat(fs.path / name)
            with fails(errno.ENOENT):
                fs.open(name, os.O_RDWR | os.O_CREAT)
            with fails(errno.ENOENT):
                os.mkdir(fs.path / name)
            with fails(errno.ENOENT):
                os.symlink("target", fs.path / name)
            with fails(errno.ENOENT):
                os.link(fs.path / "seq/0", fs.path / name)
            with fails(errno.ENOENT):
                os.mkfifo(fs.path / name)
            with fails(errno.ENOENT):
                os.rename(fs.path / "seq/0", fs.path / name)
            with fails(errno.ENOENT):
                os.unlink(fs.path / name)
        for name in ("x" * 17, "seq/" + "0" * 17):
            with fails(errno.ENAMETOOLONG):
                os.stat(fs.path / name)


@pytest.mark.fuse
def test_0111_names_that_exist_stay(bench: Bench) -> None:
    with mounted(bench) as fs:
        table: Sequence[tuple[Callable[[], object], int]] = [
            (lambda: fs.open("seq/0", os.O_RDWR | os.O_CREAT | os.O_EXCL), errno.EEXIST),
            (lambda: os.mkdir(fs.path / "seq"), errno.EEXIST),
            (lambda: os.symlink("target", fs.path / "seq/0"), errno.EEXIST),
            (lambda: os.link(fs.path / "seq/0", fs.path / "seq/1"), errno.EEXIST),
            (lambda: os.unlink(fs.path / "seq/0"), errno.EPERM),
            (lambda: os.rmdir(fs.path / "seq"), errno.EPERM),
            (lambda: os.rename(fs.path / "seq/0", fs.path / "seq/1"), errno.EPERM),
            (lambda: os.rename(fs.path / "cnv/0", fs.path / "seq/0"), errno.EPERM),
            (lambda: fs.open(".", os.O_RDWR | os.O_TMPFILE), errno.EOPNOTSUPP),
            (lambda: fs.open("seq", os.O_WRONLY), errno.EISDIR),
            (lambda: os.truncate(fs.path / "seq", 0), errno.EISDIR),
            (lambda: os.setxattr(fs.path / "seq/0", "user.a", b"b"), errno.EOPNOTSUPP),
            (lambda: os.getxattr(fs.path / "seq/0", "user.a"), errno.EOPNOTSUPP),
            (lambda: os.fsync(fs.open("seq", os.O_RDONLY | os.O_DIRECTORY)), errno.EINVAL),
            (lambda: fcntl.ioctl(fs.open("seq/0", os.O_RDONLY), 0x80086601, bytes(8)), errno.ENOTTY),
            (lambda: fallocate(fs.open("seq/0", os.O_RDWR)), errno.EOPNOTSUPP),
        ]
        for call, number in table:
            with fails(number):
                call()
        assert os.listxattr(fs.path / "seq/0") == []
        # With O_CREAT alone an existing file is simply opened.
        fs.open("seq/0", os.O_RDWR | os.O_CREAT)


@pytest.mark.fuse
def test_0112_listing_matches_inode_numbers(bench: Bench) -> None:
    with mounted(bench) as fs:
        script = "import os; print([(e.name, e.inode(), e.is_file()) for e in os.scandir('seq')])"
        assert fs.run(script) == str([(str(i), i + 2, True) for i in range(6)])


def fallocate(fd: int) -> None:
    """fallocate(2) itself: the C library's posix_fallocate writes to the file where it is not supported."""
    if _libc().fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(BLOCK)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# -- 02xx: conventional files ---------------------------------------------------------------------------------


@pytest.mark.fuse
@pytest.mark.parametrize("flags", [os.O_RDWR, RW_DIRECT])
def test_0210_conventional_files(bench: Bench, flags: int) -> None:
    with mounted(bench) as fs:
        fd = fs.open("cnv/0", flags)
        assert os.pwrite(fd, blocks(2, b"a"), 3 * BLOCK) == 2 * BLOCK
        assert os.pwrite(fd, blocks(1, b"b"), 0) == BLOCK
        assert os.pread(fd, 2 * BLOCK, 2 * BLOCK) == bytes(BLOCK) + blocks(1, b"a")
        assert os.pwrite(fd, blocks(2, b"z"), CAPACITY - BLOCK) == BLOCK
        with fails(errno.EFBIG):
            os.pwrite(fd, blocks(1), CAPACITY)
        os.fsync(fd)
        assert fs.size("cnv/0") == CAPACITY
        with fails(errno.EPERM):
            os.ftruncate(fd, CAPACITY)
        with fails(errno.EPERM):
            fs.open("cnv/0", os.O_WRONLY | os.O_TRUNC)


@pytest.mark.fuse
def test_0211_conventional_files_take_any_bytes_buffered(bench: Bench) -> None:
    with mounted(bench) as fs:
        model = bytearray(CAPACITY)
        fd = fs.open("cnv/0", os.O_RDWR)
        for offset, count in ((100, 200), (4000, 200), (CAPACITY - 10, 10), (8191, 4098)):
            data = bytes([offset % 250 + 1]) * count
            assert os.pwrite(fd, data, offset) == count
            model[offset : offset + count] = data
        fs.close(fd)
        assert (fs.path / "cnv/0").read_bytes() == model
        direct = fs.open("cnv/0", READ_DIRECT)
        assert os.pread(direct, CAPACITY, 0) == model


@pytest.mark.fuse
def test_0212_alignment_and_append(bench: Bench) -> None:
    with mounted(bench) as fs:
        fd = fs.open("cnv/0", RW_DIRECT)
        with fails(errno.EINVAL):
            os.pwrite(fd, b"x" * 512, 0)
        with fails(errno.EINVAL):
            os.pwrite(fd, blocks(1), 512)
        with fails(errno.EINVAL):
            os.pread(fd, 512, 0)
        for flags in (APPEND_DIRECT, os.O_WRONLY | os.O_APPEND):
            with fails(errno.EINVAL):
                os.write(fs.open("cnv/0", flags), blocks(1))


@pytest.mark.fuse
def test_0213_mappings_of_conventional_files(bench: Bench) -> None:
    with mounted(bench) as fs:
        fs.run(
            "import mmap, os; fd = os.open('cnv/0', os.O_RDWR); m = mmap.mmap(fd, 65536); "
            "m[5000:5005] = b'hello'; m.flush(); m.close(); os.close(fd)"
        )
        assert os.pread(fs.open("cnv/0", READ_DIRECT), BLOCK, BLOCK)[904:909] == b"hello"


@pytest.mark.fuse
@pytest.mark.parametrize("flags", [os.O_RDWR, RW_DIRECT])
def test_0214_aggregated_files_span_zones(make_bench: Callable[..., Bench], flags: int) -> None:
    bench = make_bench(geometry(conventional=((0, 4),)), "aggr_cnv")
    with mounted(bench) as fs:
        assert os.listdir(fs.path / "cnv") == ["0"]
        assert (fs.size("cnv/0"), os.stat(fs.path / "cnv").st_size) == (3 * CAPACITY, 1)
        fd = fs.open("cnv/0", flags)
        data = os.urandom(3 * CAPACITY)
        assert os.pwrite(fd, data, 0) == len(data)
        assert os.pread(fd, CAPACITY, CAPACITY - BLOCK) == data[CAPACITY - BLOCK :][:CAPACITY]


# -- 03xx: sequential files -----------------------------------------------------------------------------------


@pytest.mark.fuse
def test_0310_writes_at_the_end_only(bench: Bench) -> None:
    with mounted(bench) as fs:
        fd = fs.open("seq/0", RW_DIRECT)
        assert os.pwrite(fd, blocks(2, b"a"), 0) == 2 * BLOCK
        for offset in (0, BLOCK, 3 * BLOCK):
            with fails(errno.EINVAL):
                os.pwrite(fd, blocks(1), offset)
        with fails(errno.EINVAL):
            os.pwrite(fd, b"x" * 512, 2 * BLOCK)
        with fails(errno.EFBIG):
            os.pwrite(fd, blocks(1), CAPACITY)
        assert fs.size("seq/0") == 2 * BLOCK
        assert os.pread(fd, CAPACITY, 0) == blocks(2, b"a")
        with fails(errno.EINVAL):
            os.pread(fd, 100, 0)
        assert os.pread(fd, BLOCK, 2 * BLOCK) == b""


@pytest.mark.fuse
def test_0311_buffered_writes_are_refused(bench: Bench) -> None:
    with mounted(bench) as fs:
        fd = fs.open("seq/0", os.O_RDWR)
        with fails(errno.EIO):
            os.pwrite(fd, blocks(1), 0)
        with fails(errno.EFBIG):
            os.pwrite(fd, blocks(1), CAPACITY)
        assert fs.size("seq/0") == 0


@pytest.mark.fuse
def test_0312_append_and_short_write(bench: Bench) -> None:
    with mounted(bench) as fs:
        fd = fs.open("seq/0", APPEND_DIRECT)
        for i in range(3):
            assert os.write(fd, blocks(1, bytes([97 + i]))) == BLOCK
        assert os.write(fd, b"z" * CAPACITY) == CAPACITY - 3 * BLOCK
        with fails(errno.EFBIG):
            os.write(fd, blocks(1))
        assert bench.cond(2) is Condition.FULL
        assert (fs.path / "seq/0").read_bytes()[: 4 * BLOCK : BLOCK] == b"abcz"


@pytest.mark.fuse
def test_0313_large_writes_are_in_order_and_short_at_the_capacity(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(large(zone_capacity=7 * MIB // 512))
    with mounted(bench) as fs:
        # Page-aligned memory, or the kernel cuts the request in pieces that are not whole blocks.
        buffer = mmap.mmap(-1, 5 * MIB)
        data = os.urandom(5 * MIB)
        buffer[:] = data
        fd = fs.open("seq/0", APPEND_DIRECT)
        assert os.write(fd, buffer) == 5 * MIB
        assert os.write(fd, buffer) == 2 * MIB
        assert (fs.path / "seq/0").read_bytes() == data + data[: 2 * MIB]
        direct = fs.open("seq/0", READ_DIRECT)
        assert os.preadv(direct, [buffer], 3 * MIB) == 4 * MIB
        assert buffer[: 4 * MIB] == (data + data[: 2 * MIB])[3 * MIB :]
        buffer.close()


@pytest.mark.fuse
def test_0314_truncate(bench: Bench) -> None:
    with mounted(bench) as fs:
        path = fs.path / "seq/0"
        fd = fs.open("seq/0", RW_DIRECT)
        os.pwrite(fd, blocks(2), 0)
        for size, number in (
            (BLOCK, errno.EPERM), (2 * BLOCK, errno.EPERM), (3 * BLOCK, errno.EPERM), (CAPACITY + 1, errno.EFBIG),
        ):  # fmt: skip
            with fails(number):
                os.truncate(path, size)
            with fails(number):
                os.ftruncate(fd, size)
        os.truncate(path, 0)
        assert (fs.size("seq/0"), bench.cond(2)) == (0, Condition.EMPTY)
        os.truncate(path, 0)
        os.pwrite(fd, blocks(1, b"n"), 0)
        os.ftruncate(fd, CAPACITY)
        assert (fs.size("seq/0"), bench.cond(2)) == (CAPACITY, Condition.FULL)
        assert os.pread(fd, 2 * BLOCK, 0) == blocks(1, b"n") + bytes(BLOCK)
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        assert (fs.size("seq/0"), bench.cond(2)) == (0, Condition.EMPTY)
        os.truncate(path, CAPACITY)
        os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))
        assert (fs.size("seq/0"), bench.cond(2)) == (0, Condition.EMPTY)


@pytest.mark.fuse
@pytest.mark.parametrize("shape", ["plain", "block-512"])
def test_0315_a_reader_sees_growth_reset_and_new_data(make_bench: Callable[..., Bench], shape: str) -> None:
    bench = make_bench(shape)
    block = bench.raw.geometry.block_size_bytes
    with mounted(bench) as fs:
        writer = fs.open("seq/0", RW_DIRECT)
        reader = fs.open("seq/0", os.O_RDONLY)
        for round_no in range(3):
            expected = b""
            for i in range(5):
                data = bytes([65 + 10 * round_no + i]) * block
                assert os.pwrite(writer, data, len(expected)) == block
                expected += data
                assert os.pread(reader, CAPACITY, 0) == expected
            os.ftruncate(writer, 0)
            assert os.pread(reader, CAPACITY, 0) == b""


@pytest.mark.fuse
def test_0316_mappings_of_sequential_files(bench: Bench) -> None:
    bench.write_raw(2, 2 * BLOCK)
    with mounted(bench) as fs:
        script = (
            "import mmap, os\n"
            "def look(flags, kind, prot):\n"
            "    fd = os.open('seq/0', flags)\n"
            "    try:\n"
            "        m = mmap.mmap(fd, 8192, flags=kind, prot=prot)\n"
            "        return m[4090:4100].decode()\n"
            "    except OSError as e:\n"
            "        return os.strerror(e.errno)\n"
            "r, w = mmap.PROT_READ, mmap.PROT_WRITE\n"
            "print(look(os.O_RDONLY, mmap.MAP_SHARED, r), look(os.O_RDONLY, mmap.MAP_PRIVATE, r | w),\n"
            "    look(os.O_RDWR, mmap.MAP_PRIVATE, r), look(os.O_RDWR, mmap.MAP_SHARED, r), sep=',')\n"
        )
        data = "r" * 10
        # zonefs says EINVAL to the last; docs/fuse.md has why it is ENODEV here.
        assert fs.run(script) == f"{data},{data},{data},No such device"


@pytest.mark.fuse
def test_0317_many_writers_by_turns(bench: Bench) -> None:
    """Appending descriptors in several threads: every block lands whole, once."""
    with mounted(bench) as fs:
        fds = [fs.open("seq/0", APPEND_DIRECT) for _ in range(4)]

        def append(number: int) -> None:
            for _ in range(4):
                assert os.write(fds[number], blocks(1, bytes([65 + number]))) == BLOCK

        threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        data = (fs.path / "seq/0").read_bytes()
        assert len(data) == CAPACITY
        assert sorted(data[::BLOCK]) == sorted(b"AAAABBBBCCCCDDDD")
        assert all(len(set(data[i : i + BLOCK])) == 1 for i in range(0, CAPACITY, BLOCK))


@pytest.mark.fuse
def test_0318_seeking_to_data_and_holes(bench: Bench) -> None:
    bench.write_raw(2, 2 * BLOCK)
    with mounted(bench) as fs:
        fd = fs.open("seq/0", os.O_RDONLY)
        assert os.lseek(fd, BLOCK, os.SEEK_DATA) == BLOCK
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 2 * BLOCK
        with fails(errno.ENXIO):
            os.lseek(fd, 2 * BLOCK, os.SEEK_DATA)


@pytest.mark.fuse
@pytest.mark.parametrize("flag", [0, os.O_DSYNC, os.O_SYNC])
def test_0319_synchronous_writes_reach_the_medium(bench: Bench, flag: int) -> None:
    with mounted(bench) as fs:
        fd = fs.open("seq/0", APPEND_DIRECT | flag)
        before = bench.device.statistics()["flushes"]
        os.write(fd, blocks(1))
        assert bench.device.statistics()["flushes"] - before == (1 if flag else 0)
        os.fsync(fd)
        os.fdatasync(fd)
        assert bench.device.statistics()["flushes"] - before == (3 if flag else 2)


@pytest.mark.fuse
def test_0330_explicit_open(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("limits")
    with mounted(bench, "explicit-open") as fs:
        first, second = fs.open("seq/0", RW_DIRECT), fs.open("seq/1", RW_DIRECT)
        assert (bench.cond(2), bench.cond(3)) == (Condition.EXP_OPEN, Condition.EXP_OPEN)
        with fails(errno.EBUSY):
            fs.open("seq/2", os.O_WRONLY)
        assert fs.statistics() == {
            "max_wro_seq_files": 2, "nr_wro_seq_files": 2, "max_active_seq_files": 3, "nr_active_seq_files": 2,
            "readonly": 0,
        }  # fmt: skip
        os.pwrite(second, blocks(1), 0)
        fs.close(first)
        fs.close(second)
        assert fs.statistics()["nr_wro_seq_files"] == 0
        assert (bench.cond(2), bench.cond(3)) == (Condition.EMPTY, Condition.CLOSED)


@pytest.mark.fuse
def test_0331_the_active_limit(make_bench: Callable[..., Bench], expect_warning: Callable[[str], None]) -> None:
    expect_warning("read-only from now on")
    with mounted(make_bench("active-limit")) as fs:
        for i in range(2):
            os.write(fs.open(f"seq/{i}", APPEND_DIRECT), blocks(1))
        with fails(errno.EOVERFLOW):
            os.write(fs.open("seq/2", APPEND_DIRECT), blocks(1))
        with fails(errno.EROFS):
            os.truncate(fs.path / "seq/0", 0)


# -- 05xx: attributes -----------------------------------------------------------------------------------------


@pytest.mark.fuse
def test_0510_owner_and_permissions_from_formatting(make_bench: Callable[..., Bench]) -> None:
    with mounted(make_bench("plain", "uid=7,gid=8,perm=604")) as fs:
        for name in ("cnv/0", "seq/3"):
            found = os.stat(fs.path / name)
            assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (7, 8, 0o604)
        assert os.stat(fs.path / "seq").st_uid == os.geteuid()


@pytest.mark.fuse
def test_0511_changes_of_attributes_last_until_unmounted(bench: Bench) -> None:
    requires("root")
    with mounted(bench) as fs:
        path = fs.path / "seq/0"
        os.chmod(path, 0o400)
        os.chown(path, 5, 6)
        os.utime(path, ns=(123, 456))
        found = os.stat(path)
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o400, 5, 6)
        assert (found.st_atime_ns, found.st_mtime_ns) == (123, 456)
        os.chmod(fs.path / "seq", 0o500)
        for mode in (0o700, 0o522):
            with fails(errno.EPERM):
                os.chmod(fs.path / "seq", mode)
            with fails(errno.EPERM):
                os.chmod(fs.path, mode)
    with mounted(bench) as fs:
        found = os.stat(fs.path / "seq/0")
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o640, 0)


@pytest.mark.fuse
@pytest.mark.parametrize("name", ["seq/0", "cnv/0", "seq", ""])
def test_0512_each_change_of_attributes_updates_ctime(bench: Bench, name: str) -> None:
    with mounted(bench) as fs:
        path = fs.path / name
        mode = stat.S_IMODE(path.stat().st_mode)
        changes: list[tuple[Callable[[], object], bool]] = [
            (lambda: os.chmod(path, mode), True),
            (lambda: os.chown(path, -1, -1), True),
            (lambda: os.utime(path, ns=(path.stat().st_atime_ns, 9)), True),
            (lambda: subprocess.run(["touch", "-a", path], check=True, timeout=20), True),
        ]
        if name == "seq/0":
            changes.append((lambda: os.truncate(path, 0), False))
        for number, (change, updates) in enumerate(changes):
            before = path.stat().st_ctime_ns
            change()
            assert (path.stat().st_ctime_ns > before) is updates, number


@pytest.mark.fuse
def test_0512_writes_leave_times_alone(bench: Bench) -> None:
    with mounted(bench) as fs:
        mount_time = os.stat(fs.path).st_mtime_ns
        for name, flags in (("seq/0", APPEND_DIRECT), ("cnv/0", os.O_WRONLY)):
            os.write(fs.open(name, flags), blocks(1))
            after = os.stat(fs.path / name)
            assert (after.st_mtime_ns, after.st_ctime_ns) == (mount_time, mount_time)
        os.truncate(fs.path / "seq/0", 0)
        assert os.stat(fs.path / "seq/0").st_mtime_ns == mount_time
        os.ftruncate(fs.open("seq/0", os.O_RDWR), 0)
        assert os.stat(fs.path / "seq/0").st_mtime_ns > mount_time


@pytest.mark.fuse
def test_0512_accesses_are_noted_as_relatime_does(bench: Bench) -> None:
    with mounted(bench) as fs:
        os.write(fs.open("seq/0", APPEND_DIRECT), blocks(1))
        for name, flags in (("seq/0", READ_DIRECT), ("seq/0", os.O_RDONLY), ("cnv/0", os.O_RDONLY)):
            path = fs.path / name
            os.utime(path, ns=(1, 2))  # which is a change of ctime
            fd = fs.open(name, flags | os.O_NOATIME)
            assert os.pread(fd, BLOCK, 0)
            assert os.stat(path).st_atime_ns == 1
            fd = fs.open(name, flags)
            assert os.pread(fd, BLOCK, 0)
            noted = os.stat(path).st_atime_ns
            assert noted > os.stat(path).st_ctime_ns
            assert os.pread(fd, BLOCK, 0)
            assert os.stat(path).st_atime_ns == noted
        before = os.stat(fs.path / "seq").st_atime_ns
        os.listdir(fs.path / "seq")
        assert os.stat(fs.path / "seq").st_atime_ns > before


@pytest.mark.fuse
def test_0512_times_of_what_is_mapped(bench: Bench) -> None:
    """A read through a mapping is noted. A store is not: FUSE does not say which writes come from mappings."""
    with mounted(bench) as fs:
        path = fs.path / "cnv/0"
        os.utime(path, ns=(1, 2))
        before = os.stat(path)
        fs.run(
            """
            import mmap, os
            fd = os.open("cnv/0", os.O_RDWR)
            with mmap.mmap(fd, 4096) as mapping:
                assert mapping[0] == 0
                mapping[1] = 1
                mapping.flush()
        """.replace("\n            ", "\n")
        )
        after = os.stat(path)
        assert after.st_atime_ns > before.st_ctime_ns
        assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
        assert path.read_bytes()[1] == 1


@pytest.mark.fuse
def test_0513_other_users(make_bench: Callable[..., Bench]) -> None:
    requires("root", "setpriv")
    bench = make_bench("plain", "perm=604")
    with mounted(bench, "allow_other") as fs:
        fs.path.parent.chmod(0o755)
        setpriv = which("setpriv")
        assert setpriv is not None
        as_nobody = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"]
        read = subprocess.run(
            [*as_nobody, "dd", "if=seq/0", "of=/dev/null"], cwd=fs.path, check=False, capture_output=True
        )
        write = subprocess.run(
            [*as_nobody, "truncate", "-s0", "seq/0"], cwd=fs.path, check=False, capture_output=True, text=True
        )
        assert (read.returncode, write.returncode) == (0, 1)
        assert "Permission denied" in write.stderr


# -- 06xx: I/O errors -----------------------------------------------------------------------------------------

#: policy: (size in blocks, permissions, fs read-only) after a write to a zone that went READONLY, OFFLINE, or is good.
LOST: Final = {
    "remount-ro": {"READONLY": (2, 0o440, True), "OFFLINE": (0, 0, True), "good": (2, 0o640, True)},
    "zone-ro": {"READONLY": (2, 0o440, False), "OFFLINE": (0, 0, False), "good": (2, 0o440, False)},
    "zone-offline": {"READONLY": (0, 0, False), "OFFLINE": (0, 0, False), "good": (0, 0, False)},
    "repair": {"READONLY": (2, 0o440, False), "OFFLINE": (0, 0, False), "good": (2, 0o640, False)},
}


@pytest.mark.fuse
@pytest.mark.parametrize("policy", LOST)
@pytest.mark.parametrize("what", ["READONLY", "OFFLINE", "good"])
@pytest.mark.parametrize("how", ["sync", "async"])
def test_0610_errors_at_io_time(
    bench: Bench, policy: str, what: str, how: str, expect_warning: Callable[[str], None]
) -> None:
    size, mode, readonly = LOST[policy][what]
    if mode != 0o640:
        expect_warning("access disabled")
    if readonly:
        expect_warning("read-only from now on")
    with mounted(bench, f"errors={policy}") as fs:
        path = fs.path / "seq/0"
        fd = fs.open("seq/0", RW_DIRECT)
        os.pwrite(fd, blocks(2), 0)
        if what == "good":
            bench.device.inject(
                Fault(effect=Effect.FAIL, operations=frozenset({Operation.WRITE}), first_zone=2, nr_zones=1)
            )
        else:
            bench.set_cond(2, Condition[what])
        assert os.stat(path).st_size == 2 * BLOCK
        if how == "sync":
            with fails(errno.EIO):
                os.pwrite(fd, blocks(1), 2 * BLOCK)
        else:
            assert aio_write(fd, blocks(1), 2 * BLOCK) == -errno.EIO
        found = os.stat(path)
        assert (found.st_size, stat.S_IMODE(found.st_mode)) == (size * BLOCK, mode)
        assert fs.statistics()["readonly"] == readonly
        if mode != 0o640:
            for call in (
                lambda: os.pwrite(fd, blocks(1), 2 * BLOCK),
                lambda: os.fsync(fd),
            ):
                with fails(errno.EPERM):
                    call()
            with fails(errno.EROFS if readonly else errno.EPERM):
                os.chmod(path, 0o600)
            with fails(errno.EROFS if readonly else errno.EPERM):
                os.truncate(path, 0)
            with fails(errno.EROFS if readonly else errno.EPERM):
                fs.open("seq/0", os.O_WRONLY)
        elif readonly:
            with fails(errno.EROFS):
                os.pwrite(fd, blocks(1), 2 * BLOCK)
            os.fsync(fd)
        else:
            assert os.pwrite(fd, blocks(1), 2 * BLOCK) == BLOCK
        if mode == 0:
            with fails(errno.EPERM):
                os.pread(fd, BLOCK, 0)
        else:
            assert os.pread(fd, 2 * BLOCK, 0) == blocks(2)
        # The other files go on, unless everything is read-only.
        if readonly:
            with fails(errno.EROFS):
                fs.open("seq/1", RW_DIRECT)
        else:
            os.pwrite(fs.open("seq/1", RW_DIRECT), blocks(1), 0)


@pytest.mark.fuse
@pytest.mark.parametrize("policy", LOST)
@pytest.mark.parametrize("cond", ["READONLY", "OFFLINE"])
def test_0620_errors_at_mount_time(bench: Bench, policy: str, cond: str) -> None:
    bench.write_raw(2, BLOCK)
    bench.set_cond(2, Condition[cond])
    with mounted(bench, f"errors={policy}") as fs:
        found = os.stat(fs.path / "seq/0")
        assert (found.st_size, stat.S_IMODE(found.st_mode)) == (0, 0)
        assert fs.statistics()["readonly"] == 0
        for call in (
            lambda: fs.open("seq/0", os.O_WRONLY),
            lambda: os.truncate(fs.path / "seq/0", 0),
            lambda: os.chmod(fs.path / "seq/0", 0o600),
            lambda: os.utime(fs.path / "seq/0"),
            lambda: os.unlink(fs.path / "seq/0"),
            lambda: os.pread(fs.open("seq/0", os.O_RDONLY), BLOCK, 0),
        ):
            with fails(errno.EPERM):
                call()


@pytest.mark.fuse
def test_0630_a_read_error_of_a_good_zone_changes_nothing(bench: Bench) -> None:
    bench.write_raw(2, BLOCK)
    with mounted(bench) as fs:
        fd = fs.open("seq/0", READ_DIRECT)
        bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.READ}), first_zone=2, nr_zones=1))
        with fails(errno.EIO):
            os.pread(fd, BLOCK, 0)
        assert os.pread(fd, BLOCK, 0) == blocks(1, b"r")
        assert fs.statistics()["readonly"] == 0


@pytest.mark.fuse
def test_0640_after_an_error_the_kernel_knows_that_the_mount_is_read_only(
    bench: Bench, expect_warning: Callable[[str], None]
) -> None:
    requires("root")
    expect_warning("read-only from now on")
    with mounted(bench) as fs:
        fd = fs.open("seq/0", RW_DIRECT)
        bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.WRITE})))
        with fails(errno.EIO):
            os.pwrite(fd, blocks(1), 0)
        assert "rw" in fs.mount_line()[3].split(",")  # a writer is still there
        fs.close(fd)
        wait_until(lambda: "ro" in fs.mount_line()[3].split(","))
        assert {"nosuid", "nodev"} <= set(fs.mount_line()[3].split(","))
        with fails(errno.EROFS):
            fs.open("seq/1", os.O_WRONLY)


@pytest.mark.fuse
def test_0640_a_writer_may_be_gone_only_after_its_release(
    bench: Bench, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    requires("root")
    expect_warning("read-only from now on")
    attempts = []

    def busy_twice(place: Path) -> None:
        attempts.append(place)
        if len(attempts) < 3:
            raise OSError(errno.EBUSY, "a writer is there")
        remount_readonly(place)

    monkeypatch.setattr(mount_module, "remount_readonly", busy_twice)
    with mounted(bench) as fs:
        fd = fs.open("seq/0", RW_DIRECT)
        bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.WRITE})))
        with fails(errno.EIO):
            os.pwrite(fd, blocks(1), 0)
        fs.close(fd)
        wait_until(lambda: "ro" in fs.mount_line()[3].split(","))


@pytest.mark.fuse
def test_0641_root_can_remount_it_read_write_after_an_error(
    bench: Bench, expect_warning: Callable[[str], None]
) -> None:
    requires("root")
    expect_warning("read-only from now on")
    with mounted(bench) as fs:
        for change in ("open", "chmod", "chmod-directory"):
            fd = fs.open("seq/0", RW_DIRECT)
            bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.WRITE})))
            with fails(errno.EIO):
                os.pwrite(fd, blocks(1), 0)
            fs.close(fd)
            wait_until(lambda: "ro" in fs.mount_line()[3].split(","))
            assert fs.statistics()["readonly"] == 1
            assert _libc().mount(b"none", os.fsencode(fs.path), None, MS_REMOUNT, None) == 0
            if change == "open":
                fs.close(fs.open("seq/1", os.O_WRONLY))
            else:
                os.chmod(fs.path / ("seq/1" if change == "chmod" else "seq"), 0o500)
            assert fs.statistics()["readonly"] == 0
        os.pwrite(fs.open("seq/0", RW_DIRECT), blocks(1), 0)


@pytest.mark.fuse
def test_0650_a_write_behind_the_mount_is_noticed_by_the_next_error(bench: Bench) -> None:
    with mounted(bench, "errors=repair") as fs:
        fd = fs.open("seq/0", APPEND_DIRECT)
        os.write(fd, blocks(1))
        bench.write_raw(2, 2 * BLOCK)
        assert fs.size("seq/0") == BLOCK
        with fails(errno.EIO):
            os.write(fd, blocks(1))
        assert fs.size("seq/0") == 3 * BLOCK
        assert os.write(fd, blocks(1)) == BLOCK
        assert (fs.path / "seq/0").read_bytes()[::BLOCK] == b"xrrx"


@pytest.mark.fuse
def test_0651_changes_by_others_reach_cached_readers(bench: Bench) -> None:
    bench.write_raw(2, 2 * BLOCK)
    with mounted(bench) as fs:
        reader = fs.open("seq/0", os.O_RDONLY)
        assert os.pread(reader, BLOCK, 0) == blocks(1, b"r")
        assert not bench.raw.manage(Operation.RESET, 256)
        bench.write_raw(2, 2 * BLOCK, b"n")
        wait_until(lambda: os.pread(reader, BLOCK, 0) == blocks(1, b"n"))


@pytest.mark.fuse
@pytest.mark.parametrize("zone_no", [1, 2])
def test_0652_what_error_recovery_changed_is_seen_at_once(
    bench: Bench, expect_warning: Callable[[str], None], zone_no: int
) -> None:
    """By every way to look: the kernel keeps names for long, and the attributes of files not at all."""
    name = "cnv/0" if zone_no == 1 else "seq/0"

    def looks(fs: Mounted, fd: int) -> set[tuple[int, int, int]]:
        found = [os.stat(fs.path / name), os.fstat(fd), *(e.stat() for e in os.scandir(fs.path / name[:3]))][:3]
        return {(found.st_ino, found.st_size, stat.S_IMODE(found.st_mode)) for found in found}

    expect_warning("read and write access disabled")
    with mounted(bench, "errors=zone-offline") as fs:
        fd = fs.open(name, RW_DIRECT)
        os.pwrite(fd, blocks(2), 0)
        size = CAPACITY if zone_no == 1 else 2 * BLOCK
        assert looks(fs, fd) == {(zone_no, size, 0o640)}
        bench.set_cond(zone_no, Condition.OFFLINE)
        assert looks(fs, fd) == {(zone_no, size, 0o640)}  # not noticed yet: no I/O has failed
        with fails(errno.EIO):
            os.pwrite(fd, blocks(1), 2 * BLOCK)
        assert looks(fs, fd) == {(zone_no, 0, 0)}


@pytest.mark.fuse
def test_0653_a_reset_by_another_is_found_by_an_error_and_seen_at_once(bench: Bench) -> None:
    with mounted(bench, "errors=repair") as fs:
        fd = fs.open("seq/0", APPEND_DIRECT)
        os.write(fd, blocks(4))
        assert fs.size("seq/0") == 4 * BLOCK
        assert not bench.raw.manage(Operation.RESET, 256)
        bench.write_raw(2, BLOCK)
        assert fs.size("seq/0") == 4 * BLOCK
        with fails(errno.EIO):
            os.write(fd, blocks(1))
        assert (fs.size("seq/0"), os.fstat(fd).st_size) == (BLOCK, BLOCK)
        again = fs.open("seq/0", APPEND_DIRECT)
        assert os.write(again, blocks(1, b"n")) == BLOCK
        assert (fs.path / "seq/0").read_bytes()[::BLOCK] == b"rn"


@pytest.mark.fuse
def test_0654_changes_of_directories_are_seen_at_once(bench: Bench) -> None:
    requires("root")
    with mounted(bench) as fs:
        for directory in (fs.path, fs.path / "seq"):
            before = os.stat(directory)
            os.chmod(directory, 0o500)
            os.chown(directory, 7, 8)
            os.utime(directory, (1, 2))
            found = os.stat(directory)
            assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o500, 7, 8)
            assert (found.st_atime, found.st_mtime, found.st_ino) == (1, 2, before.st_ino)
            assert (found.st_size, found.st_nlink) == (before.st_size, before.st_nlink)


@pytest.mark.fuse
def test_0655_looking_costs_few_requests(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: Counter[str] = Counter()

    def asked(look: Callable[[], object]) -> dict[str, int]:
        requests.clear()
        look()
        return {name: count for name, count in requests.items() if name not in {"release", "releasedir"}}

    monkeypatch.setattr(mount_module, "ZonefsOperations", counting(requests))
    with mounted(bench) as fs:
        path = fs.path / "seq"
        os.stat(path)
        assert asked(lambda: os.stat(path / "0")) == {"lookup": 1, "getattr": 1}
        assert asked(lambda: os.stat(path / "0")) == {"getattr": 1}
        assert asked(lambda: os.stat(path)) == {}
        assert asked(lambda: os.close(os.open(path / "0", os.O_RDONLY))) == {"getattr": 1, "open": 1, "flush": 1}
        # A listing tells the kernel all names; then a file costs one request.
        assert asked(lambda: [entry.stat() for entry in os.scandir(path)])["getattr"] == 6


@pytest.mark.fuse
@pytest.mark.parametrize("looked", [False, True], ids=["not looked at before", "looked at before"])
def test_0656_a_file_has_the_size_that_zonefs_remembers(bench: Bench, looked: bool) -> None:
    """Whether or not the file had been looked at, and until the next mount; the device's report has the truth."""
    bench.write_raw(3, BLOCK)
    with mounted(bench) as fs:
        if looked:
            assert (fs.size("seq/0"), fs.size("seq/1")) == (0, BLOCK)
        for zone_no in (2, 3):
            bench.write_raw(zone_no, BLOCK)
        assert (fs.size("seq/0"), fs.size("seq/1")) == (0, BLOCK)
        for name, size in (("seq/0", 0), ("seq/1", BLOCK)):
            for flags in (os.O_RDONLY, os.O_RDONLY | os.O_DIRECT):
                assert os.preadv(fs.open(name, flags), [mmap.mmap(-1, 4 * BLOCK)], 0) == size
    with mounted(bench) as fs:
        assert (fs.size("seq/0"), fs.size("seq/1")) == (BLOCK, 2 * BLOCK)


@pytest.mark.fuse
def test_0660_a_failed_asynchronous_write_does_not_reset_the_zone(bench: Bench) -> None:
    """The kernel truncates a file to the size that it believes after a failed AIO write; here it believes in 0."""
    with mounted(bench, "errors=repair") as fs:
        fd = fs.open("seq/0", RW_DIRECT)
        bench.write_raw(2, 3 * BLOCK)
        assert aio_write(fd, blocks(1), 0) == -errno.EIO
        assert (fs.size("seq/0"), bench.cond(2)) == (3 * BLOCK, Condition.IMP_OPEN)
        assert aio_write(fd, blocks(2), 3 * BLOCK) == 2 * BLOCK
        assert (fs.path / "seq/0").read_bytes()[::BLOCK] == b"rrrxx"


@pytest.mark.fuse
def test_0661_asynchronous_writes_across_the_capacity_are_short(bench: Bench) -> None:
    with mounted(bench) as fs:
        fd = fs.open("seq/0", RW_DIRECT)
        os.pwrite(fd, blocks(15), 0)
        assert aio_write(fd, blocks(2), 15 * BLOCK) == BLOCK
        assert (fs.size("seq/0"), bench.cond(2)) == (CAPACITY, Condition.FULL)
        assert aio_write(fd, blocks(1), CAPACITY) == -errno.EFBIG
        fd = fs.open("cnv/0", RW_DIRECT)
        assert aio_write(fd, blocks(3), 15 * BLOCK) == BLOCK
        assert (fs.path / "cnv/0").read_bytes()[-2 * BLOCK :] == bytes(BLOCK) + blocks(1)


@pytest.mark.fuse
def test_0662_asynchronous_writes_of_several_pieces_are_short(make_bench: Callable[..., Bench]) -> None:
    with mounted(make_bench(large(conventional=()))) as fs:
        fd = fs.open("seq/0", RW_DIRECT)
        assert aio_write(fd, b"a" * (5 * MIB), 0) == 5 * MIB
        assert aio_write(fd, b"b" * (5 * MIB), 5 * MIB) == 3 * MIB
        assert (fs.path / "seq/0").read_bytes()[::MIB] == b"aaaaabbb"


@pytest.mark.fuse
def test_0663_with_async_dio_such_a_write_keeps_what_fits(bench: Bench) -> None:
    with mounted(bench, "async_dio") as fs:
        fd = fs.open("seq/0", RW_DIRECT)
        os.pwrite(fd, blocks(15), 0)
        # The kernel makes an error of a short answer to one of the pieces that it sent without waiting.
        assert aio_write(fd, blocks(2), 15 * BLOCK) == -errno.EIO
        assert (fs.size("seq/0"), bench.cond(2)) == (CAPACITY, Condition.FULL)
        # The kernel truncates the file to the size from before the request. Here that is 0.
        fd = fs.open("seq/1", RW_DIRECT)
        assert aio_write(fd, blocks(17), 0) == -errno.EIO
        assert (fs.size("seq/1"), bench.cond(3)) == (CAPACITY, Condition.FULL)
        os.ftruncate(fd, 0)
        assert (fs.size("seq/1"), bench.cond(3)) == (0, Condition.EMPTY)


@pytest.mark.fuse
@pytest.mark.parametrize("append", [0, os.O_APPEND])
@pytest.mark.parametrize("is_reset", [False, True])
def test_0663_with_async_dio_what_was_written_before_a_failed_piece_is_kept(
    append: int, is_reset: bool, make_bench: Callable[..., Bench]
) -> None:
    bench = make_bench(large(conventional=()))
    with mounted(bench, "async_dio,errors=repair") as fs:
        fd = fs.open("seq/0", RW_DIRECT | append)
        if is_reset:  # then the pieces wait for a flush, and each other
            os.pwrite(fd, blocks(1), 0)
            os.ftruncate(fd, 0)
        bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.WRITE}), nth=3))
        data = b"".join(letter * MIB for letter in (b"a", b"b", b"c", b"d", b"e"))
        assert aio_write(fd, data, 0) == -errno.EIO
        assert fs.size("seq/0") == 2 * MIB
        assert (fs.path / "seq/0").read_bytes()[::MIB] == b"ab"
        assert aio_write(fd, data[2 * MIB :], 2 * MIB) == 3 * MIB
        assert (fs.path / "seq/0").read_bytes()[::MIB] == b"abcde"


@pytest.mark.fuse
@pytest.mark.parametrize("options", ["", "async_dio"])
def test_0664_the_mount_has_its_descriptor_again(bench: Bench, options: str) -> None:
    """No socket is left in its place, and none is leaked, whether or not anything was asked of the mount."""

    def descriptors() -> list[str]:
        return sorted(os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if entry.is_symlink())

    def sockets() -> int:
        return sum(name.startswith("socket:") for name in descriptors())

    with mounted(bench, options) as fs:
        os.stat(fs.path / "seq/0")
        assert descriptors().count("/dev/fuse") == 1
        before = sockets()
    with mounted(bench, options) as fs:
        os.stat(fs.path / "seq/0")
        assert descriptors().count("/dev/fuse") == 1
        assert sockets() <= before, "fewer may be open, because objects of earlier tests are collected at any time"
    assert "/dev/fuse" not in descriptors()


@pytest.mark.fuse
def test_0670_the_next_mount_may_have_another_policy(bench: Bench, expect_warning: Callable[[str], None]) -> None:
    def fail_once(fs: Mounted) -> None:
        bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.WRITE})))
        with fails(errno.EIO):
            os.write(fs.open("seq/0", APPEND_DIRECT), blocks(1))

    expect_warning("read-only from now on")
    with mounted(bench) as fs:
        fail_once(fs)
        assert fs.statistics()["readonly"] == 1
    expect_warning("access disabled")
    with mounted(bench, "errors=zone-ro") as fs:
        fail_once(fs)
        assert stat.S_IMODE(os.stat(fs.path / "seq/0").st_mode) == 0o440
        assert fs.statistics()["readonly"] == 0


@pytest.mark.fuse
@pytest.mark.parametrize("options", ["", "explicit-open"])
def test_0671_on_a_full_host_what_needs_no_space_and_what_frees_it_work(tmp_path: Path, options: str) -> None:
    requires("root", "mount", "umount")
    host = tmp_path / "small"
    host.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", host], check=False).returncode:
        pytest.skip("this root may not mount")
    try:
        bench = Bench(host / "image", geometry(size=16 * 2048, zone_size=2048, zone_capacity=2048, max_open_zones=4))
        with mounted(bench, options) as fs:
            first, second = fs.open("seq/0", APPEND_DIRECT), fs.open("seq/1", APPEND_DIRECT)
            assert os.write(first, blocks(32)) == 32 * BLOCK
            os.fsync(first)
            with fails(errno.ENOSPC):
                for _ in range(CAPACITY):
                    os.write(second, blocks(4))
            size = fs.size("seq/1")
            for _ in range(3):  # again and again, and nothing changes
                with fails(errno.ENOSPC):
                    os.write(second, blocks(4))
                assert fs.size("seq/1") == size
            assert fs.statistics()["readonly"] == 0
            os.fsync(second)
            assert (fs.path / "seq/1").read_bytes() == blocks(size // BLOCK)
            fs.close(second)
            fs.open("seq/2", APPEND_DIRECT)  # with explicit-open a command to the zone
            os.truncate(fs.path / "seq/0", 0)
            os.fsync(first)  # gives back what the file had
            assert os.write(first, blocks(16, b"n")) == 16 * BLOCK
            assert (fs.path / "seq/0").read_bytes() == blocks(16, b"n")
            assert fs.statistics()["readonly"] == 0
            # The counters are written at the end, which is not what this is about.
            subprocess.run(["mount", "-o", "remount,size=4m", host], check=True)
        bench.device.close()
        again = ZonedDevice.open(bench.path)
        assert [again.machine.zone(zone_no).wp - 2048 * zone_no for zone_no in (2, 3)] == [16 * 8, size // 512]
        again.close()
    finally:
        subprocess.run(["umount", "-l", str(host)], check=True)


# -- what differs from the kernel's zonefs, as docs/fuse.md says ------------------------------------------------


@pytest.mark.fuse
def test_0701_an_append_at_a_position_past_the_capacity_appends(bench: Bench) -> None:
    with mounted(bench) as fs:
        fd = fs.open("seq/0", APPEND_DIRECT)
        assert os.pwrite(fd, blocks(1), CAPACITY) == BLOCK
        assert os.pwrite(fd, blocks(1), CAPACITY + MIB) == BLOCK
        assert fs.size("seq/0") == 2 * BLOCK


@pytest.mark.fuse
def test_0702_root_may_write_an_immutable_file_as_far_as_access_knows(bench: Bench) -> None:
    requires("root")
    bench.set_cond(2, Condition.OFFLINE)
    with mounted(bench) as fs:
        assert os.access(fs.path / "seq/0", os.W_OK)
        with fails(errno.EPERM):
            fs.open("seq/0", os.O_WRONLY)


@pytest.mark.fuse
@pytest.mark.parametrize("end", [BLOCK, CAPACITY, CAPACITY + BLOCK, 1 << 50])
def test_0703_fallocate_is_not_supported_wherever(bench: Bench, end: int) -> None:
    with mounted(bench) as fs:
        for name in ("cnv/0", "seq/0"):
            with fails(errno.EOPNOTSUPP):
                # The Python function writes zeros where the file system allocates nothing.
                _fallocate(fs.open(name, os.O_RDWR), end - BLOCK, BLOCK)


def _fallocate(fd: int, offset: int, size: int) -> None:
    libc = _libc()
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if libc.fallocate(fd, 0, offset, size):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@pytest.mark.fuse
def test_0704_files_have_handles(bench: Bench) -> None:
    requires("root")

    libc = _libc()
    with mounted(bench) as fs:
        os.write(fs.open("seq/0", APPEND_DIRECT), blocks(1))
        # struct file_handle: room, type, the handle.
        handle, mount_id = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 8 + 128), ctypes.c_int()
        directory = fs.open("seq", os.O_RDONLY)
        assert libc.name_to_handle_at(directory, b"0", ctypes.byref(handle), ctypes.byref(mount_id), 0) == 0
        fd = libc.open_by_handle_at(directory, ctypes.byref(handle), os.O_RDONLY)
        assert fd >= 0
        try:
            assert os.pread(fd, BLOCK, 0) == blocks(1)
        finally:
            os.close(fd)


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for what happens in the background, for as long as it can take on a busy machine."""
    pause = threading.Event()
    for _ in range(2000):
        if holds():
            return
        pause.wait(0.01)
    pytest.fail("nothing happened")


@pytest.mark.fuse
def test_a_mount_of_many_zones_lists_and_serves(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(geometry(size=9000 * 8, zone_size=8, zone_capacity=8, conventional=((0, 100), (5000, 10))))
    with mounted(bench) as fs:
        assert len(os.listdir(fs.path / "seq")) == 8890
        assert len(os.listdir(fs.path / "cnv")) == 109
        name = f"seq/{5000 - 100}"  # the first after the second run of conventional zones
        assert os.stat(fs.path / name).st_ino == 5010
        os.write(fs.open(name, APPEND_DIRECT), blocks(1))
        assert bench.cond(5010) is Condition.FULL
