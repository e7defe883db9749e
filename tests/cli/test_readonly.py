"""An image that cannot be written can be mounted with -o ro."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from tests.requires import requires


@pytest.fixture
def unwritable(fresh: Path, tmp_path: Path) -> Iterator[Path]:
    """A formatted image with data in zone 3, on a file system that is mounted read-only."""
    requires("root", "mount", "umount")
    ok("mkfs", fresh)
    ok("write", fresh, "--zone", 3, stdin=b"x" * 4096)
    place = tmp_path / "ro"
    place.mkdir()
    shutil.move(fresh, place / "a.img")
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        yield place / "a.img"
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def mount(*args: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "zonefs_emu", "mount", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.fuse
def test_a_read_only_file_system(unwritable: Path, tmp_path: Path) -> None:
    directory = tmp_path / "mnt"
    directory.mkdir()
    before = unwritable.read_bytes()
    refused = mount(unwritable, directory)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert f"{unwritable}" in refused.stderr
    assert "Read-only file system" in refused.stderr
    assert "-o ro" in refused.stderr
    done = mount(unwritable, directory, "-o", "ro")
    assert (done.returncode, done.stderr) == (0, "")
    try:
        file = directory / "seq" / "1"
        assert file.read_bytes() == b"x" * 4096
        with pytest.raises(OSError, match="Read-only file system"):
            os.truncate(file, 0)
        info = json.loads(ok("info", unwritable, "--json"))
        assert info["pid"] is not None
        assert ok("report", unwritable) == run_cli("report", unwritable).stdout
        assert "read-only" in fails("reset", unwritable, "--zone", 3)
        # One daemon, as for any image.
        other = tmp_path / "other"
        other.mkdir()
        assert "is in use by" in mount(unwritable, other, "-o", "ro").stderr
    finally:
        ok("umount", directory)
    assert unwritable.read_bytes() == before
    assert json.loads(ok("info", unwritable, "--json"))["pid"] is None
