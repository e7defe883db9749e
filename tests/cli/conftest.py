"""Images for the verbs, held by no process or by a daemon in a process of its own."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from zonefs_emu.cli.main import cli
from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.control import ControlServer
from zonefs_emu.daemon.verbs import Verbs
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.front_ends.known import EXTENSIONS

DAEMON = """
import sys
from pathlib import Path
from zonefs_emu.front_ends.known import run
run(Path(sys.argv[1]), [], ready=lambda: print("ready", flush=True), owner="a test")
"""


@pytest.fixture(autouse=True)
def _own_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))


def run_cli(*args: object, stdin: bytes = b"") -> Result:
    result = CliRunner().invoke(cli, [str(arg) for arg in args], input=stdin, prog_name="zonefs-emu")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # the runner makes a status of 1 of it, without a message
    return result


def ok(*args: object, stdin: bytes = b"") -> str:
    """Run a verb that must succeed, and return its stdout."""
    result = run_cli(*args, stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def fails(*args: object, stdin: bytes = b"", code: int = 1) -> str:
    """Run a verb that must fail in one sentence, and return the sentence."""
    result = run_cli(*args, stdin=stdin)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("zonefs-emu: ")
    return lines[0]


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """An image of 8 zones of 1 MiB, capacity 768 KiB, the first 2 conventional; 3 may be open and 4 active."""
    path = tmp_path / "a.img"
    shape = "--size 8M --zone-size 1M --zone-capacity 768K --nr-conv 2"
    limits = "--max-open-zones 3 --max-active-zones 4"
    result = run_cli("create", path, *shape.split(), *limits.split())
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def daemon(fresh: Path) -> Iterator["subprocess.Popen[str]"]:
    """A daemon without front-ends that holds ``fresh``."""
    with subprocess.Popen([sys.executable, "-c", DAEMON, str(fresh)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.terminate()
        assert process.wait(timeout=20) == 0


@contextmanager
def held(path: Path, *, timing: str = "none") -> Iterator[None]:
    """Hold *path* and answer verbs as a daemon does, on a thread: starting a process takes forty times as long.

    *timing*: that of the device.
    """
    started = threading.Event()
    scope = trio.CancelScope()
    tokens: list[trio.lowlevel.TrioToken] = []

    async def serve(device: ZonedDevice) -> None:
        listener, socket_path = rendezvous.listen(path, backlog=16)
        server = ControlServer(listener, Verbs(device, pid=os.getpid(), path=path, extensions=EXTENSIONS))
        tokens.append(trio.lowlevel.current_trio_token())
        with scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.run)
                started.set()
        socket_path.unlink()

    device = ZonedDevice.open(path, owner="a test")
    device.start_timing(timing)
    try:
        thread = threading.Thread(target=trio.run, args=(serve, device), name="daemon")
        thread.start()
        try:
            assert started.wait(20)
            yield
        finally:
            trio.from_thread.run_sync(scope.cancel, trio_token=tokens[0])
            thread.join(20)
            assert not thread.is_alive()
    finally:
        device.close()


@pytest.fixture(params=["offline", "live"])
def image(request: pytest.FixtureRequest, fresh: Path) -> Iterator[Path]:
    """``fresh``, once held by no process and once by a daemon: verbs must do the same in both cases."""
    if request.param == "offline":
        yield fresh
        return
    with held(fresh):
        yield fresh
