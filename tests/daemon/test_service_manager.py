import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zonefs_emu.daemon import service_manager

#: A session with one front-end that ends, and one that stays until the signal.
SCRIPT = """
import sys, trio
from pathlib import Path
from zonefs_emu.front_ends.known import run

async def short(session, *, task_status):
    with session.register("short", "here", dict):
        task_status.started()
        await trio.sleep(0.05)

async def patient(session, *, task_status):
    with session.register("patient", "there", dict):
        task_status.started()
        await trio.sleep_forever()

run(Path(sys.argv[1]), [short, patient], ready=lambda: None, owner="a session")
"""
BACKGROUND = """
import os, sys
from pathlib import Path
from zonefs_emu.daemon import service_manager
from zonefs_emu.daemon.background import run_in_background

def body(ready):
    service_manager.notify_ready("of a process in the background")
    ready()

run_in_background(body, log=Path(sys.argv[1]))
service_manager.notify_ready("of the process itself")
"""


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        monkeypatch.chdir(tmp_path)
        manager.bind("notify")
        manager.settimeout(20)
        monkeypatch.setenv(service_manager.VARIABLE, "notify")
        yield manager


def test_a_session_says_that_it_is_ready_what_it_serves_and_that_it_ends(image: Path, manager: socket.socket) -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT, image]) as process:
        assert manager.recv(4096).decode() == f"READY=1\nSTATUS={image}: short at here, patient at there"
        assert manager.recv(4096).decode() == f"STATUS={image}: patient at there; short at here has ended"
        process.terminate()
        assert manager.recv(4096) == b"STOPPING=1"
    assert process.returncode == 0


def test_a_process_in_the_background_does_not_speak_for_its_starter(manager: socket.socket, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", BACKGROUND, tmp_path / "log"], check=True)
    assert manager.recv(4096) == b"READY=1\nSTATUS=of the process itself"


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"zonefs-emu-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(20)
        monkeypatch.setenv(service_manager.VARIABLE, f"@{name}")
        service_manager.notify_status("two\nlines")
        assert manager.recv(4096) == b"STATUS=two\\nlines"


def test_without_a_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv(service_manager.VARIABLE, raising=False)
    with caplog.at_level(logging.INFO):
        service_manager.notify_stopping()
    assert caplog.text == ""


def test_a_manager_that_has_gone_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv(service_manager.VARIABLE, str(tmp_path / "gone"))
    with caplog.at_level(logging.INFO):
        service_manager.notify_ready("ready")
    assert "cannot be notified" in caplog.text
