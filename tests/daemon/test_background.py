import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# The parent says on stdout what became of its child.
SCRIPT = """
import os, sys, time
from pathlib import Path
from zonefs_emu.daemon.background import run_in_background
from zonefs_emu.errors import UsageError

pid_file, log = Path(sys.argv[2]), Path(sys.argv[3])

def good(ready):
    pid_file.write_text(str(os.getpid()))
    print("hello", os.getsid(0) == os.getpid(), os.getcwd(), sys.stdin.read() == "", flush=True)
    ready()
    time.sleep(60)

def refused(ready):
    raise UsageError("the image is in use by a dragon", exit_code=1)

def usage(ready):
    raise UsageError("no", exit_code=2)

def host(ready):
    open("/nowhere/at/all")

def dies(ready):
    os._exit(3)

def bug(ready):
    raise AssertionError("a bug")

def late(ready):
    ready()
    raise UsageError("too late to tell", exit_code=1)

try:
    run_in_background(globals()[sys.argv[1]], log=log)
except UsageError as error:
    print(error.exit_code, error)
else:
    print("up")
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def start(name: str, tmp_path: Path) -> str:
    command = [sys.executable, "-c", SCRIPT, name, str(tmp_path / "pid"), str(tmp_path / "log")]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def test_the_parent_returns_when_the_child_is_ready(tmp_path: Path, log: Path) -> None:
    assert start("good", tmp_path) == "up\n"
    pid = int((tmp_path / "pid").read_text())
    assert log.read_text() == "hello False / True\n"
    assert log.stat().st_mode & 0o777 == 0o600
    os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("refused", "1 the image is in use by a dragon\n"),
        ("usage", "2 no\n"),
        ("host", "1 /nowhere/at/all: No such file or directory\n"),
    ],
)
def test_the_parent_says_what_the_child_met(name: str, sentence: str, tmp_path: Path) -> None:
    assert start(name, tmp_path) == sentence


@pytest.mark.parametrize("name", ["dies", "bug"])
def test_a_child_that_vanishes_is_reported(name: str, tmp_path: Path, log: Path) -> None:
    assert start(name, tmp_path) == (f"1 the process in the background ended before it was ready; {log} may say why\n")
    assert ("AssertionError: a bug" in log.read_text()) == (name == "bug")


def test_what_comes_later_goes_to_the_log(tmp_path: Path, log: Path) -> None:
    assert start("late", tmp_path) == "up\n"
    deadline = time.monotonic() + 20
    while log.read_text() != "too late to tell\n":
        assert time.monotonic() < deadline
        time.sleep(0.02)
