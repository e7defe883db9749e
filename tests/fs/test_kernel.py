"""What only the kernel can do to a mount."""

import errno
import os
from pathlib import Path

import pytest

from tests.fs.conftest import BLOCK, RW_DIRECT, Bench, blocks
from tests.fs.mounts import fails, mounted
from tests.requires import requires
from zonefs_emu.fs.kernel import cached_size, remount_readonly, unmount


@pytest.mark.fuse
@pytest.mark.parametrize("user", [0, 1000], ids=["root", "with the help of fusermount"])
def test_a_mount_in_use_is_not_unmounted(bench: Bench, monkeypatch: pytest.MonkeyPatch, user: int) -> None:
    with mounted(bench) as fs:
        monkeypatch.setattr(os, "geteuid", lambda: user)
        fd = fs.open("seq/0", os.O_RDONLY)
        assert not unmount(fs.path)
        fs.close(fd)
        os.statvfs(fs.path)
        assert unmount(fs.path)
        fs.server.join()
        monkeypatch.undo()


def test_without_fusermount_nothing_is_unmounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not unmount(tmp_path)


@pytest.mark.fuse
def test_a_remount_keeps_the_other_flags(bench: Bench) -> None:
    requires("root")
    with mounted(bench, "noexec,noatime") as fs:
        fd = fs.open("cnv/0", os.O_RDWR)
        with fails(errno.EBUSY):
            remount_readonly(fs.path)
        fs.close(fd)
        os.statvfs(fs.path)
        remount_readonly(fs.path)
        assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= set(fs.mount_line()[3].split(","))


def test_what_is_no_mount_is_not_remounted(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path)):
        remount_readonly(tmp_path)


@pytest.mark.fuse
def test_the_size_that_the_kernel_has_in_memory(bench: Bench) -> None:
    with mounted(bench, "errors=repair") as fs:
        fd = fs.open("seq/0", RW_DIRECT)
        bench.write_raw(2, BLOCK)
        with fails(errno.EIO):
            os.pwrite(fd, blocks(1), 0)  # the file now has one block, of which the kernel is not told here
        assert cached_size(fs.path / "seq/0") in {0, BLOCK}
        assert fs.size("seq/0") == BLOCK
        assert cached_size(fs.path / "seq/0") == BLOCK
        assert cached_size(fs.path / "seq/99") == -1
