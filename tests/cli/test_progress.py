"""The bar on a real terminal, and nothing anywhere else."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ok
from zonefs_emu.cli.progress import progress


def on_a_terminal(*arguments: object, stdin: bytes | None = None) -> str:
    """Run a verb whose stderr is a terminal, and return what that shows."""
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "zonefs_emu", *map(str, arguments)]
    try:
        done = subprocess.run(command, input=stdin, stdout=subprocess.DEVNULL, stderr=its, check=True)
        assert done.returncode == 0
        os.set_blocking(ours, False)
        return os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(its)


def test_a_dump_shows_how_far_it_is_and_how_fast(fresh: Path, tmp_path: Path) -> None:
    ok("write", fresh, "--zone", 3, stdin=bytes(4096))
    shown = on_a_terminal("dump", fresh, tmp_path / "copy")
    assert "100%" in shown
    assert "iB/s" in shown
    received = on_a_terminal("restore", "-", tmp_path / "b.img", stdin=(tmp_path / "copy").read_bytes())
    assert "MiB, " in received
    assert "iB/s" in received


@pytest.mark.parametrize("operation", ["append", "reset"])
def test_a_simulation_shows_how_far_it_is_and_how_fast(operation: str) -> None:
    shown = on_a_terminal("simulate", "--op", operation, "--count", 20_000)
    assert "%" in shown
    assert " requests/s" in shown


def test_elsewhere_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for length in (10, None):
        with progress(length, str) as at:
            at(4)
            at(2)
            at(10)
    assert capsys.readouterr() == ("", "")
