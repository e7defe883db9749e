import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from tests.requires import requires


def fill(image: Path) -> None:
    ok("write", image, "--zone", 1, "--offset", "512K", stdin=b"c" * 4096)
    ok("write", image, "--zone", 2, stdin=b"d" * 12288)
    ok("close", image, "--zone", 2)
    ok("open", image, "--zone", 3)
    ok("write", image, "--zone", 4, stdin=b"e" * 4096)
    ok("finish", image, "--zone", 4)
    ok("write", image, "--zone", 5, stdin=b"f" * 4096)
    ok("set-cond", image, "--zone", 5, "readonly")
    ok("set-cond", image, "--zone", 6, "offline")


def contents(image: Path) -> list[bytes]:
    return [run_cli("read", image, "--zone", zone_no).stdout_bytes for zone_no in range(6)]


def test_a_dump_is_an_image_with_the_same_zones(image: Path, tmp_path: Path) -> None:
    fill(image)
    dump = tmp_path / "a.dump"
    assert ok("dump", image, dump) == ""
    assert ok("report", dump) == ok("report", image)
    assert contents(dump) == contents(image)
    assert ok("check", dump) == f"{dump}: nothing found\n"
    ok("write", dump, "--zone", 2, stdin=bytes(4096))


def test_holes_stay_holes(tmp_path: Path) -> None:
    image, dump = tmp_path / "large.img", tmp_path / "large.dump"
    ok("create", image, "--size", "64G", "--nr-conv", "4")
    ok("write", image, "--zone", 10, stdin=os.urandom(1 << 20))
    ok("dump", image, dump)
    assert dump.stat().st_size == image.stat().st_size
    assert dump.stat().st_blocks * 512 < 4 << 20


def test_nothing_is_overwritten(image: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    assert "exists, and files are never overwritten" in fails("dump", image, precious)
    assert "exists" in fails("dump", image, image)
    assert precious.read_text() == "data"


def test_a_host_that_refuses_leaves_nothing(image: Path, tmp_path: Path) -> None:
    assert "No such file or directory" in fails("dump", image, tmp_path / "no" / "a.dump")
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        assert "Permission denied" in fails("dump", image, tmp_path / "a.dump")


def test_a_terminal_sees_how_far_it_is(fresh: Path, tmp_path: Path) -> None:
    requires("script")
    command = shlex.join([sys.executable, "-m", "zonefs_emu", "dump", str(fresh), str(tmp_path / "dump")])
    done = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, text=True, check=True)
    assert "100%" in done.stdout
    assert (tmp_path / "dump").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_dump_that_is_told_to_end_leaves_nothing(number: signal.Signals, fresh: Path, tmp_path: Path) -> None:
    ok("write", fresh, "--zone", 2, stdin=bytes(4096))
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "from zonefs_emu.cli.main import main\n"
        "from zonefs_emu.persist.copy import Copy\n"
        "Copy._copy = lambda *_: print('copying', flush=True) or time.sleep(60)\n"
        "main()"
    )
    command = [sys.executable, "-c", script, "dump", str(fresh), str(tmp_path / "dump")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "copying\n"
        assert (tmp_path / "dump").exists()
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 1}[number]
    assert not (tmp_path / "dump").exists()
    assert '"recovery": ""' in ok("info", fresh, "--json")


PIPE = "{0} dump {1} - | {0} restore - {2}"


def program() -> str:
    return shlex.join([sys.executable, "-m", "zonefs_emu"])


def bash(command: str, *, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False, cwd=cwd
    )


def test_through_a_pipe_the_copy_is_the_same(image: Path, tmp_path: Path) -> None:
    fill(image)
    direct, piped = tmp_path / "a.dump", tmp_path / "b.img"
    ok("dump", image, direct)
    done = bash(PIPE.format(program(), image, piped))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert piped.read_bytes() == direct.read_bytes()
    # Zeros have become holes again.
    assert piped.stat().st_blocks * 512 < 1 << 20
    assert contents(piped) == contents(image)


def test_a_reader_that_ends_early_is_no_traceback(image: Path) -> None:
    done = bash(f"{program()} dump {image} - | head -c 10000 | wc -c")
    assert done.stdout.strip() == "10000"
    assert done.stderr == ""
    assert done.returncode == 1


def test_what_stdin_has_must_be_an_image(fresh: Path, tmp_path: Path) -> None:
    target = tmp_path / "again.img"
    whole = run_cli("dump", fresh, "-").stdout_bytes
    for data in (b"", b"hello\n" * 10_000, whole[:-4096], whole[4096:], whole + bytes(4096), whole[: len(whole) // 2]):
        assert "stdin has no image: " in fails("restore", "-", target, stdin=data)
        assert not target.exists()
    ok("restore", "-", target, stdin=whole)
    assert "exists, and files are never overwritten" in fails("restore", "-", target, stdin=whole)
    assert target.read_bytes() == whole


def test_a_file_called_dash_is_a_file(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli("dump", fresh, "./-").stdout_bytes == b""
    assert ok("check", "-") == "-: nothing found\n"
    ok("restore", "./-", "again.img")
    assert ok("report", "again.img") == ok("report", fresh)
    ok("map", fresh, "--svg", "./-.svg")
    Path("-").unlink()
    assert ok("map", fresh, "--svg", "./-") == ""
    assert Path("-").read_text() == ok("map", fresh, "--svg", "-")


def test_a_terminal_is_no_place_for_a_dump(fresh: Path, tmp_path: Path) -> None:
    requires("script")
    for verb, words in (("dump {} -", "send stdout to a pipe"), ("restore - {}x", "stdin must be a pipe")):
        command = f"{program()} {verb.format(fresh)}"
        done = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert words in done.stdout
    assert not (tmp_path / "a.imgx").exists()


def test_no_room_for_what_comes_through_a_pipe(fresh: Path) -> None:
    done = bash(f"{program()} dump {fresh} - >/dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "stdout: No space left on device" in done.stderr
