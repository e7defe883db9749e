import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from zonefs_emu.daemon.client import Target, call
from zonefs_emu.daemon.framing import Json, Message


def wps(path: Path) -> list[int]:
    return [zone["written"] for zone in json.loads(ok("report", path, "--json"))["zones"]]


def test_an_image_that_nobody_holds_has_nothing_to_lose(fresh: Path, tmp_path: Path) -> None:
    ok("write", fresh, "--zone", 3, stdin=bytes(8192))
    assert ok("crash", fresh, "--out", tmp_path / "cuts") == f"{tmp_path}/cuts/cut-0000.img: nothing was unflushed\n"
    assert wps(tmp_path / "cuts" / "cut-0000.img") == wps(fresh)


@pytest.mark.usefixtures("daemon")
def test_now_with_every_outcome(fresh: Path, tmp_path: Path) -> None:
    ok("write", fresh, "--zone", 3, stdin=b"a" * 8192)
    images = json.loads(ok("crash", fresh, "--out", tmp_path / "cuts", "--all", "--torn", "--json"))["images"]
    assert {wps(Path(image["path"]))[3] for image in images} == {0, 8, 16}
    for image in images:
        written = wps(Path(image["path"]))[3]
        data = subprocess.run(
            [sys.executable, "-m", "zonefs_emu", "read", image["path"], "--zone", "3", "--length", "8K"],
            capture_output=True, check=True,
        ).stdout  # fmt: skip
        assert data == b"a" * (512 * written) + bytes(8192 - 512 * written)
        assert ok("check", image["path"]).endswith("nothing found\n")
    assert wps(fresh)[3] == 16, "the image itself goes on"


@pytest.mark.usefixtures("daemon")
def test_after_some_writes_and_at_every_flush(fresh: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zonefs_emu", "crash", str(fresh), "--json"]
    with subprocess.Popen(
        [*command, "--at", "after 3 writes", "--out", str(tmp_path / "a"), "--count", "2"],
        stdout=subprocess.PIPE, text=True,
    ) as waiting:  # fmt: skip
        while not (tmp_path / "a").exists():
            assert waiting.poll() is None
            time.sleep(0.02)
        for _ in range(3):
            ok("write", fresh, "--zone", 3, stdin=bytes(4096))
        assert waiting.stdout is not None
        images = json.loads(waiting.stdout.read())["images"]
    assert len(images) == 2
    assert all(image["writes"] >= 3 for image in images)
    assert "a power-cut lab" not in ok("crash", fresh, "--out", tmp_path / "b")


@pytest.mark.usefixtures("daemon")
def test_a_cut_between_two_writes_that_were_watched(fresh: Path, tmp_path: Path) -> None:
    assert ok("crash", fresh, "--watch") == ""
    ok("write", fresh, "--zone", 3, stdin=bytes(4096))
    ok("write", fresh, "--zone", 4, stdin=bytes(8192))
    images = json.loads(ok("crash", fresh, "--out", tmp_path / "cuts", "--all", "--json"))["images"]
    left = {tuple(wps(Path(image["path"]))[3:5]) for image in images}
    assert left == {(0, 0), (8, 0), (8, 16)}, "never the second without the first"
    assert ok("crash", fresh, "--no-watch") == ""


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--at", "noon"), 2, "'noon' is not known"),
        (("--at", "after 0 writes"), 2, "is not known"),
        (("--at", f"after {'9' * 5000} writes"), 2, "is not known"),
        (("--at", "every flush"), 1, "nothing writes to"),
        (("--all", "--reorder"), 2, "--reorder has no effect beside --all"),
        (("--all", "--seed", "0"), 2, "--seed has no effect beside --all"),
        (("--all", "--at", "every flush"), 2, "--all writes all outcomes of one moment"),
        (("--watch",), 2, "--out has no effect beside --watch, which writes no images"),
    ],
)
def test_what_cannot_be_is_refused(
    fresh: Path, tmp_path: Path, arguments: tuple[object, ...], code: int, sentence: str
) -> None:
    assert sentence in fails("crash", fresh, "--out", tmp_path / "cuts", *arguments, code=code)


def test_watching_is_for_images_that_change(fresh: Path, tmp_path: Path) -> None:
    assert "nothing writes to" in fails("crash", fresh, "--watch")
    assert "--seed has no effect beside --no-watch" in fails("crash", fresh, "--no-watch", "--seed", 1, code=2)
    assert "give --out DIR" in fails("crash", fresh, code=2)


def test_an_image_that_is_there_is_not_overwritten(fresh: Path, tmp_path: Path) -> None:
    ok("crash", fresh, "--out", tmp_path / "cuts")
    assert "cut-0000.img: File exists" in fails("crash", fresh, "--out", tmp_path / "cuts")


#: A daemon whose host blocks the thread of the lab for ever, in the middle of copying.
BLOCKED = """
import threading, time
from zonefs_emu.cli.main import main
from zonefs_emu.persist.backing import FileBacking
copy_from = FileBacking.copy_from
def blocked(*arguments):
    while threading.current_thread().name == "power cuts":
        print("copying", flush=True)
        time.sleep(3600)
    copy_from(*arguments)
FileBacking.copy_from = blocked
main()
"""


def test_a_daemon_ends_while_the_host_blocks_the_images(fresh: Path, tmp_path: Path) -> None:
    """It would never end if it waited for them."""
    ok("write", fresh, "--zone", 3, stdin=bytes(8192))
    serve = [sys.executable, "-c", BLOCKED, "serve", str(fresh), "--vhost-user-blk", str(tmp_path / "sock")]
    crash = [sys.executable, "-m", "zonefs_emu", "crash", str(fresh), "--out", str(tmp_path / "cuts")]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        assert "sock" in daemon.stdout.readline()
        with subprocess.Popen(crash, stderr=subprocess.PIPE, text=True) as client:
            assert daemon.stdout.readline() == "copying\n"
            ok("write", fresh, "--zone", 3, stdin=bytes(4096))
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(60) == 0
            _, error = client.communicate()
    assert (client.returncode, error) == (1, "zonefs-emu: the daemon that holds the image ended before it answered\n")
    assert wps(fresh)[3] == 24
    assert '"recovery": ""' in ok("info", fresh, "--json")
    assert list((tmp_path / "cuts").iterdir()) == []


@contextmanager
def waiting_for_a_flush(image: Path, directory: Path) -> "Iterator[subprocess.Popen[str]]":
    """Run a command that has begun to wait for a flush of *image*, and writes to cuts in *directory*."""
    command = [sys.executable, "-m", "zonefs_emu", "crash", str(image), "--at", "every flush", "--out", "cuts"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=directory) as waiting:
        while not (directory / "cuts").exists():
            assert waiting.poll() is None
            time.sleep(0.02)
        yield waiting


@pytest.mark.usefixtures("daemon")
def test_an_interrupt_ends_the_plan(fresh: Path, tmp_path: Path) -> None:
    with waiting_for_a_flush(fresh, tmp_path) as waiting:
        waiting.send_signal(signal.SIGTERM)
        _, error = waiting.communicate()
    assert (waiting.returncode, error) == (143, "")
    assert "nothing was unflushed" in ok("crash", fresh, "--out", tmp_path / "more"), "no lab is in the way"


@pytest.mark.usefixtures("daemon")
def test_an_interrupt_before_the_first_reply_ends_the_plan(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come when the daemon has begun and its reply is not read yet."""
    crash = importlib.import_module("zonefs_emu.cli.crash")

    def interrupted(target: Target, request: dict[str, Json]) -> Message:
        reply = call(target, request)
        if request["verb"] == "crash":
            raise KeyboardInterrupt
        return reply

    monkeypatch.setattr(crash, "call", interrupted)
    assert run_cli("crash", fresh, "--at", "every flush", "--out", tmp_path / "cuts").exit_code == 1
    monkeypatch.undo()
    assert "nothing was unflushed" in ok("crash", fresh, "--out", tmp_path / "more"), "no lab is in the way"


@pytest.mark.usefixtures("daemon")
def test_who_is_refused_ends_no_plan_of_another(fresh: Path, tmp_path: Path) -> None:
    with waiting_for_a_flush(fresh, tmp_path) as waiting:
        for _ in range(2):
            refused = fails("crash", fresh, "--out", tmp_path / "more", code=1)
            assert "another 'crash' is writing images of this device" in refused
        waiting.send_signal(signal.SIGTERM)
        waiting.communicate()
    assert list((tmp_path / "cuts").iterdir()) == []


def test_the_image_is_not_changed(fresh: Path, tmp_path: Path) -> None:
    """It is opened for reading, so that one that may only be read has its images too."""
    ok("write", fresh, "--zone", 3, stdin=bytes(8192))
    before = fresh.read_bytes()
    ok("crash", fresh, "--out", tmp_path / "cuts")
    assert fresh.read_bytes() == before
    assert wps(tmp_path / "cuts" / "cut-0000.img") == wps(fresh)
