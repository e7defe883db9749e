import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli


def test_what_is_no_mount_of_ours(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/proc"), tmp_path / "absent"):
        assert f"no zonefs of zonefs-emu is mounted at {path}" in fails("umount", path)


@pytest.mark.fuse
def test_the_image_is_free_when_it_returns(fresh: Path, tmp_path: Path) -> None:
    directory = tmp_path / "with blank"
    directory.mkdir()
    ok("mkfs", fresh)
    for _ in range(3):
        subprocess.run([sys.executable, "-m", "zonefs_emu", "mount", fresh, directory], check=True)
        assert (directory / "seq").is_dir()
        assert ok("umount", directory) == ""
        with fresh.open("r+b") as file:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert '"pid": null' in ok("info", fresh, "--json")


@pytest.mark.fuse
def test_a_mount_in_use_stays(fresh: Path, tmp_path: Path) -> None:
    directory = tmp_path / "mnt"
    directory.mkdir()
    ok("mkfs", fresh)
    subprocess.run([sys.executable, "-m", "zonefs_emu", "mount", fresh, directory], check=True)
    fd = os.open(directory / "seq" / "0", os.O_RDONLY)
    assert "cannot be unmounted: a file in it is open" in fails("umount", directory)
    assert (directory / "seq" / "0").exists()
    os.close(fd)
    ok("umount", directory)


@pytest.mark.fuse
def test_a_mount_whose_process_was_killed_can_be_taken_away(fresh: Path, tmp_path: Path) -> None:
    import json

    directory = tmp_path / "mnt"
    directory.mkdir()
    ok("mkfs", fresh)
    subprocess.run([sys.executable, "-m", "zonefs_emu", "mount", fresh, directory], check=True)
    os.kill(json.loads(ok("info", fresh, "--json"))["pid"], 9)
    assert run_cli("umount", directory).exit_code == 0
    assert list(directory.iterdir()) == []
    assert "every command that it had answered is here" in ok("info", fresh)
