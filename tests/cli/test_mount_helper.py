import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ok
from zonefs_emu.cli.mount_helper import exit_code, verb_arguments
from zonefs_emu.errors import UsageError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.img mnt", "mount -- a.img mnt"),
        ("a.img mnt -o rw,nofail", "mount -o rw,nofail -- a.img mnt"),
        ("a.img mnt -n -s -v -o ro -o sync -t fuse.zonefs-emu", "mount -o ro,sync -- a.img mnt"),
        ("-o ro a.img mnt", "mount -o ro -- a.img mnt"),
    ],
)
def test_the_arguments_of_a_helper(given: str, expected: str) -> None:
    assert verb_arguments(given.split()) == expected.split()


def test_a_fake_mount_mounts_nothing() -> None:
    assert verb_arguments(["a.img", "mnt", "-f"]) is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("a.img", "an image and a directory are needed, not 1 words"),
        ("a.img mnt -x", "option -x not recognized"),
        ("a.img mnt -N 7", "a namespace .-N. cannot be entered"),
    ],
)
def test_what_is_not_those_of_a_helper(given: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        verb_arguments(given.split())


def test_exit_codes_are_those_of_mount() -> None:
    assert [exit_code(code) for code in (0, 1, 2, None, "words")] == [0, 32, 1, None, "words"]


def helper(*arguments: object) -> "subprocess.CompletedProcess[str]":
    script = "from zonefs_emu.cli.main import mount_helper; mount_helper()"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


@pytest.mark.fuse
def test_it_mounts(fresh: Path, tmp_path: Path) -> None:
    ok("mkfs", fresh)
    (tmp_path / "mnt").mkdir()
    done = helper(fresh, tmp_path / "mnt", "-o", "rw,nofail,_netdev,x-systemd.mount-timeout=5,errors=repair")
    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "mnt/seq/0").exists()
    finally:
        ok("umount", tmp_path / "mnt")


def test_what_it_refuses_is_one_sentence_with_the_exit_code_of_mount(fresh: Path, tmp_path: Path) -> None:
    assert helper(fresh, tmp_path, "-f").returncode == 0
    unformatted = helper(fresh, tmp_path)
    assert (unformatted.returncode, len(unformatted.stderr.splitlines())) == (32, 1)
    wrong = helper(fresh)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (1, 1)
    option = helper(fresh, tmp_path, "-o", "flavour=mint")
    assert (option.returncode, "unknown mount option flavour=mint" in option.stderr) == (1, True)
