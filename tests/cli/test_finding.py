"""A daemon is found from its image, whatever environment, user and names are; and no trap is taken for one."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import DAEMON, fails, held, ok
from tests.requires import requires
from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.holders import lock_holders

ALICE, BOB = 65534, 12345
#: Becomes another user once everything is loaded: the interpreter and the checkout can lie where only root may look.
AS_USER = """
import os, sys
import encodings.idna, json, secrets, zonefs_emu.cli.main, zonefs_emu.daemon.session, zonefs_emu.fs.mount
from tests.cli.conftest import run_cli
from zonefs_emu.cli.verb_table import VERBS
for verb in VERBS:
    verb.load()
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
"""
VERB = AS_USER + "done = run_cli(*sys.argv[1:]); print(done.exit_code, done.output)"
LISTEN = "import socket; s = socket.socket(socket.AF_UNIX); s.bind({name!r}); s.listen(); print('ready', flush=True)\n"


@contextmanager
def running(script: str, *args: object, env: dict[str, str] | None = None) -> Iterator["subprocess.Popen[str]"]:
    """Run *script* until the end of the context; it has printed "ready"."""
    command = [sys.executable, "-c", script, *map(str, args)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | (env or {})
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.terminate()


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can reach and write to."""
    requires("root")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def alices(public: Path) -> Path:
    image = public / "a.img"
    ok("create", image, "--preset", "small")
    os.chown(image, ALICE, ALICE)
    image.chmod(0o644)
    return image


def as_user(uid: int, *args: object) -> str:
    """Run a verb as the user *uid*; return its exit code and what it printed."""
    command = [sys.executable, "-c", VERB.format(uid=uid), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout


def test_whatever_the_environment_is(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    env = {"XDG_RUNTIME_DIR": str(elsewhere), "TMPDIR": str(elsewhere), "HOME": str(elsewhere)}
    with running(DAEMON, fresh, env=env) as process:
        for name in ("XDG_RUNTIME_DIR", "HOME"):
            monkeypatch.delenv(name)
        assert json.loads(ok("info", fresh, "--json"))["pid"] == process.pid
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")
        moved = fresh.rename(tmp_path / "moved.img")
        ok("open", moved, "--zone", 3)
        assert json.loads(ok("info", moved, "--json"))["nr_open"] == 1


def test_root_drives_a_users_daemon_and_another_user_is_told_whose_it_is(alices: Path) -> None:
    with running(AS_USER.format(uid=ALICE) + DAEMON, alices, env={"XDG_RUNTIME_DIR": "", "TMPDIR": "/"}) as process:
        ok("open", alices, "--zone", 9)
        assert json.loads(ok("info", alices, "--json"))["pid"] == process.pid
        said = as_user(BOB, "report", alices)
        assert said.startswith(f"1 zonefs-emu: {alices} is in use by process {process.pid} of user ")
        assert "work on it meanwhile" in said
        assert as_user(ALICE, "info", alices).startswith("0 ")


def test_the_daemon_of_a_user_who_may_not_write_the_image_is_not_believed(alices: Path) -> None:
    os.chown(alices, 0, 0)
    # It holds the image's lock, for which reading is enough, and the socket's name.
    lock = f"import fcntl, sys; f = open({str(alices)!r}); fcntl.flock(f, fcntl.LOCK_EX)\n"
    name = f"\0zonefs-emu/{rendezvous.socket_name(alices)}"
    script = AS_USER.format(uid=ALICE) + lock + LISTEN.format(name=name) + "sys.stdin.read()"
    with running(script) as process:
        assert lock_holders(alices) == {process.pid}
        assert "because it may not write to the image" in fails("info", alices)
    assert json.loads(ok("info", alices, "--json"))["pid"] is None


def test_a_stranger_in_the_daemons_place_is_no_daemon(alices: Path, expect_warning: Callable[[str], None]) -> None:
    name = f"\0zonefs-emu/{rendezvous.socket_name(alices)}"
    with running(AS_USER.format(uid=BOB) + LISTEN.format(name=name) + "sys.stdin.read()") as process:
        # No process holds the image, so it is opened.
        assert json.loads(ok("info", alices, "--json"))["pid"] is None
        # A daemon that finds its name taken says by whom, and is found by those who share its directory.
        expect_warning(f"is taken by process {process.pid} of user ")
        assert rendezvous.listen_everywhere(alices, backlog=1) is None
        with held(alices):
            assert json.loads(ok("info", alices, "--json"))["pid"] == os.getpid()


def test_any_process_may_knock_and_none_takes_a_place(alices: Path) -> None:
    with running(AS_USER.format(uid=ALICE) + DAEMON, alices):
        name = f"\0zonefs-emu/{rendezvous.socket_name(alices)}"
        knocking = (
            "import socket\nsockets = []\n"
            f"for _ in range(100):\n    s = socket.socket(socket.AF_UNIX); s.connect({name!r}); sockets.append(s)\n"
            "print('ready', flush=True); sys.stdin.read()"
        )
        with running(AS_USER.format(uid=BOB) + knocking):
            assert as_user(ALICE, "report", alices).startswith("0 ")


def test_locks_of_others_are_seen_by_the_file(fresh: Path, tmp_path: Path) -> None:
    assert lock_holders(fresh) == set()
    with fresh.open("rb") as file, (tmp_path / "other").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert lock_holders(fresh) == set()
        fcntl.flock(file, fcntl.LOCK_SH)
        assert lock_holders(fresh) == {os.getpid()}


@pytest.mark.fuse
def test_umount_waits_for_a_renamed_image(fresh: Path, tmp_path: Path) -> None:
    directory, moved = tmp_path / "mnt", tmp_path / "moved.img"
    directory.mkdir()
    ok("mkfs", fresh)
    for _ in range(2):
        subprocess.run([sys.executable, "-m", "zonefs_emu", "mount", fresh, directory], check=True)
        fresh.rename(moved)
        # And another one, which has no part in it, in its place.
        ok("create", fresh, "--preset", "small")
        ok("umount", directory)
        with moved.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert json.loads(ok("info", moved, "--json"))["recovery"] == ""
        moved.rename(fresh)
