import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# The parent says on stdout what became of its child.
SCRIPT = """
import os, signal, sys, time
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

def warns(ready):
    print("a warning", file=sys.stderr)
    refused(ready)

def hello(ready):
    print("before")
    ready()
    print("after", flush=True)

def inherits(ready):
    ready()
    mask = os.umask(0)
    print(sorted(os.listdir("/proc/self/fd"))[:-1], mask, os.getcwd(), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    handlers = {each: signal.getsignal(each) for each in signal.valid_signals()}
    print(sorted(int(each) for each, handler in handlers.items() if handler is not signal.SIG_DFL), flush=True)

def late(ready):
    ready()
    raise UsageError("too late to tell", exit_code=1)

if sys.argv[1] == "inherits":
    # What a shell, a service manager or another program may leave us with.
    for number in range(10, 20):
        os.dup2(0, number)
    os.umask(0o77)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
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
    assert start(name, tmp_path) == (f"1 the background process ended before it was ready; {log} may have the reason\n")
    assert ("AssertionError: a bug" in log.read_text()) == (name == "bug")


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 20
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_comes_later_goes_to_the_log(tmp_path: Path, log: Path) -> None:
    assert start("late", tmp_path) == "up\n"
    wait_for(log, "too late to tell\n")


def test_the_log_goes_on_where_it_was(tmp_path: Path, log: Path) -> None:
    log.write_text("of an earlier daemon\n")
    assert start("hello", tmp_path) == "up\n"
    wait_for(log, "after")
    assert log.read_text() == "of an earlier daemon\nbefore\nafter\n"


def test_one_that_is_refused_leaves_the_log_alone(tmp_path: Path, log: Path) -> None:
    """It may be that of the daemon which has the image."""
    log.write_text("of another daemon\n")
    command = [sys.executable, "-c", SCRIPT, "warns", str(tmp_path / "pid"), str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "1 the image is in use by a dragon\n"
    assert done.stderr == "a warning\n"
    assert log.read_text() == "of another daemon\n"


def test_a_daemon_starts_clean(tmp_path: Path, log: Path) -> None:
    """Source: daemon(7), "SysV Daemons"."""
    assert start("inherits", tmp_path) == "up\n"
    wait_for(log, "]\n")
    ignored_by_python = sorted([signal.SIGPIPE, signal.SIGXFSZ])
    assert log.read_text() == f"['0', '1', '2'] 0 / set()\n{[int(number) for number in ignored_by_python]}\n"
