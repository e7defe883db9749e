import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from zonefs_emu.cli.umount import MountEntry, find_mounts

MOUNTINFO = rb"""21 28 0:19 / /proc rw,nosuid shared:1 - proc proc rw
30 28 0:25 / /mnt/a rw,nosuid,nodev - fuse.zonefs /images/a.img rw,user_id=0
31 28 0:26 / /mnt/with\040blank\134 rw shared:3 master:1 - fuse.zonefs /images/b\040c.img rw,user_id=0
32 28 0:27 / /mnt/other rw - fuse.sshfs me@there rw
33 30 0:28 / /mnt/a rw - fuse.zonefs /images/d.img rw
34 30 0:29 / /mnt/\011\012\043\134040 rw - fuse.zonefs /images/\012\134012 rw
"""
#: Other people's names: what ends a line for str.splitlines, what is no text, what looks like another field.
MOUNTINFO += b"".join(
    b"35 28 0:30 / /mnt/" + bytes([byte]) + b"\\040-\\040fuse.zonefs rw - fuse.sshfs me@" + bytes([byte]) + b" rw\n"
    for byte in (*b"\r\v\f\x1c\x1d\x1e\x85\xff", 0xE9)
)


def test_our_mounts_are_found_the_latest_first() -> None:
    assert find_mounts(MOUNTINFO) == [
        MountEntry(directory=Path("/mnt/\t\n#\\040"), source=Path("/images/\n\\012")),
        MountEntry(directory=Path("/mnt/a"), source=Path("/images/d.img")),
        MountEntry(directory=Path("/mnt/with blank\\"), source=Path("/images/b c.img")),
        MountEntry(directory=Path("/mnt/a"), source=Path("/images/a.img")),
    ]


def test_what_is_no_mount_of_ours(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/proc"), tmp_path / "absent"):
        assert f"no zonefs of ours is mounted at {path}" in fails("umount", path)


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
