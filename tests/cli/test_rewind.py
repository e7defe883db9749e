import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from zonefs_emu.persist.check import check_image


def test_an_image_is_what_it_was(image: Path) -> None:
    ok("write", image, "--zone", 1, stdin=b"c" * 4096)
    ok("write", image, "--zone", 3, stdin=b"a" * 8192)
    ok("open", image, "--zone", 4)
    ok("set-cond", image, "--zone", 7, "offline")
    ok("snapshot", image, "first")
    before = ok("report", image, "--json")
    ok("write", image, "--zone", 1, stdin=b"x" * 8192)
    ok("reset", image, "--zone", 3)
    ok("write", image, "--zone", 3, stdin=b"y" * 4096)
    ok("write", image, "--zone", 5, stdin=b"z" * 4096)
    ok("set-cond", image, "--zone", 7, "empty")
    ok("rewind", image, "first")
    assert ok("report", image, "--json") == before
    assert run_cli("read", image, "--zone", 1).stdout_bytes[:8192] == b"c" * 4096 + bytes(4096)
    assert run_cli("read", image, "--zone", 3).stdout_bytes[:8192] == b"a" * 8192
    ok("write", image, "--zone", 5, stdin=b"new" + bytes(4093))
    ok("rewind", image, "first")
    assert ok("report", image, "--json") == before


def test_an_image_that_was_rewound_is_whole(fresh: Path) -> None:
    ok("write", fresh, "--zone", 3, stdin=b"a" * 8192)
    ok("snapshot", fresh, "first")
    ok("finish", fresh, "--zone", 3)
    ok("rewind", fresh, "first")
    assert check_image(fresh) == []


def test_a_snapshot_of_another_image_is_refused(image: Path) -> None:
    ok("create", image.with_name("b.img"), "--size", "8M")
    ok("dump", image.with_name("b.img"), image.with_name("a.img.snapshot-other"))
    before = ok("report", image, "--json")
    assert "is a snapshot of another device" in fails("rewind", image, "other")
    image.with_name("a.img.snapshot-text").write_text("no image\n" * 10_000)
    assert "the snapshot 'text' is incomplete" in fails("rewind", image, "text")
    assert ok("report", image, "--json") == before


def test_an_unknown_name_is_refused_with_those_that_are_known(image: Path) -> None:
    ok("snapshot", image, "first")
    assert "has no snapshot 'second': there are first" in fails("rewind", image, "second")


def append(file: Path, char: bytes) -> None:
    """Append 8192 bytes by direct I/O, which takes memory that begins at a page."""
    page = mmap.mmap(-1, 8192)
    page[:] = char * 8192
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_DIRECT)
    try:
        assert os.write(fd, page) == 8192
    finally:
        os.close(fd)


@pytest.mark.fuse
def test_a_mount_shows_what_was(fresh: Path, tmp_path: Path) -> None:
    ok("mkfs", fresh)
    (tmp_path / "mnt").mkdir()
    # In a process of its own, which forks.
    subprocess.run([sys.executable, "-m", "zonefs_emu", "mount", fresh, tmp_path / "mnt"], check=True)
    try:
        file = tmp_path / "mnt/seq/0"
        append(file, b"a")
        ok("snapshot", fresh, "first")
        os.truncate(file, 0)
        append(file, b"b")
        assert file.read_bytes() == b"b" * 8192
        ok("rewind", fresh, "first")
        assert file.read_bytes() == b"a" * 8192
    finally:
        ok("umount", tmp_path / "mnt")
