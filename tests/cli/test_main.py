"""What holds for every verb: help with an example, one sentence for every error, exit codes, nothing changed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.cli.conftest import fails, ok, run_cli
from zonefs_emu.cli.verb_table import VERBS as VERB_TABLE

COMMANDS = {verb.name: verb for verb in VERB_TABLE if verb.name is not None}
VERBS = sorted(COMMANDS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb: str) -> None:
    text = ok(verb, "--help")
    assert "Example" in text
    assert f"zonefs-emu {verb} " in text
    assert COMMANDS[verb].short_help


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained(verb: str) -> None:
    for param in COMMANDS[verb].load().params:
        if isinstance(param, click.Option):
            assert param.help, param.name


def test_without_a_verb_help_is_shown() -> None:
    result = run_cli()
    assert result.exit_code == 2
    assert "zonefs-emu create small.img --preset small\n" in result.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_option_is_one_sentence(verb: str) -> None:
    code = 1 if verb == "mkfs" else 2
    assert f"No such option '--xyzzy' (see 'zonefs-emu {verb} --help')" in fails(verb, "--xyzzy", code=code)


def test_an_unknown_verb_is_one_sentence() -> None:
    assert "No such command 'xyzzy' (see 'zonefs-emu --help')" in fails("xyzzy", code=2)


READING = ["report", "map", "info", "stats", "why"]
#: What each verb on an image needs besides it, to be refused because of the image.
ARGUMENTS = {
    **{verb: [] for verb in [*READING, "mkfs", "power-cycle"]},
    **{verb: ["--all"] for verb in ["open", "close", "finish", "reset"]},
    **{verb: ["--zone", "3"] for verb in ["read", "write", "append"]},
    "set-cond": ["--zone", "3", "ro"],
    "inject": ["fail"],
    "snapshot": ["first"],
    "watch": ["--frames", "1"],
}
#: Verbs on an image that take something else besides it, which their own tests refuse; and verbs without an image.
TESTED_ELSEWHERE = frozenset(
    {"attach", "check", "crash", "create", "detach", "doctor", "dump", "fit", "mount", "replay", "restore", "rewind",
     "serve", "simulate", "umount"}
)  # fmt: skip


def test_no_verb_is_left_out() -> None:
    assert sorted(ARGUMENTS.keys() ^ TESTED_ELSEWHERE) == VERBS


def wrong_images(directory: Path) -> Iterator[tuple[Path, str]]:
    yield directory / "absent.img", f"cannot open {directory / 'absent.img'}: No such file or directory"
    empty = directory / "empty.img"
    empty.touch()
    yield empty, "no zonefs_emu header at byte 0"
    text = directory / "text.img"
    text.write_text("hello\n" * 10_000)
    yield text, "no zonefs_emu header at byte 55904"
    short = directory / "short.img"
    ok("create", short, "--size", "1M")
    os.truncate(short, short.stat().st_size - 8192)
    yield short, "the length of the file"
    fifo = directory / "fifo.img"
    os.mkfifo(fifo)
    yield fifo, "a FIFO, but an image must be a regular file"
    yield directory, "a directory, but an image must be a regular file"
    yield Path(os.devnull), "a character device, but an image must be a regular file"


def content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_what_is_no_image_is_one_sentence_with_its_name(tmp_path: Path) -> None:
    for path, sentence in wrong_images(tmp_path):
        before = content(path)
        for verb, arguments in ARGUMENTS.items():
            said = fails(verb, path, *arguments)
            assert str(path) in said
            assert sentence in said
        for verb in ("dump", "restore"):
            assert sentence in fails(verb, path, tmp_path / "copy")
        assert sentence in run_cli("check", path).output
        assert content(path) == before
    assert not (tmp_path / "copy").exists()
    assert not list(tmp_path.rglob("*.snapshot-*"))


@pytest.mark.parametrize("verb", READING)
def test_reading_verbs_change_nothing(verb: str, fresh: Path) -> None:
    before = fresh.read_bytes()
    assert run_cli(verb, fresh).exit_code == 0
    fresh.chmod(0o444)
    assert run_cli(verb, fresh).exit_code == 0
    assert fresh.read_bytes() == before


def python(*args: object) -> list[str]:
    return [sys.executable, "-m", "zonefs_emu", *map(str, args)]


def test_python_dash_m(fresh: Path) -> None:
    done = subprocess.run(python("report", fresh, "--format", "blkzone"), capture_output=True, text=True, check=True)
    assert done.stdout.startswith("  start: 0x000000000, len 0x000800")


def test_what_a_person_must_know_is_a_warning_in_one_line() -> None:
    script = (
        "import logging; from zonefs_emu.cli import main\n"
        "main.cli = lambda prog_name: logging.getLogger('zonefs_emu.x').warning('mind %s', 'this')\n"
        "main.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "zonefs-emu: warning: mind this\n"


def test_a_reader_that_has_had_enough_is_no_error(tmp_path: Path) -> None:
    image = tmp_path / "many.img"
    ok("create", image, "--size", "100M", "--zone-size", "4K")
    command = " ".join(python("report", image)) + " | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_closed_standard_streams_are_no_ones_file(fresh: Path) -> None:
    before = fresh.read_bytes()[:4096]
    for redirection, verb, code in (
        (">&-", "read", 0), ("<&-", "write", 1), ("<&- >&- 2>&-", "write", 1), ("<&- >&- 2>&-", "read", 0),
    ):  # fmt: skip
        command = f"{' '.join(python(verb, fresh, '--zone', 0))} {redirection}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert done.stderr in {"", "zonefs-emu: stdin ended after 0 bytes: there is nothing to write\n"}
    assert fresh.read_bytes()[:4096] == before
    assert '"recovery": ""' in ok("info", fresh, "--json")


def test_a_working_directory_that_was_removed_is_named(fresh: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"rmdir {gone}; {' '.join(python('dump', fresh, 'copy'))}"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["bash", "-c", command], cwd=gone, capture_output=True, text=True, check=False, env=environment
    )
    sentence = "zonefs-emu: cannot find the working directory: No such file or directory\n"
    assert (done.returncode, done.stderr) == (1, sentence)


def test_errors_of_standard_streams_say_which_stream(fresh: Path, tmp_path: Path) -> None:
    for redirection, arguments, sentence in (
        (">/dev/full", ("report", fresh), "cannot write to stdout: No space left on device"),
        (">/dev/full", ("info", fresh, "--json"), "cannot write to stdout: No space left on device"),
        (">/dev/full", ("--version",), "cannot write to stdout: No space left on device"),
        (">/dev/full", ("--help",), "cannot write to stdout: No space left on device"),
        (">/dev/full", ("report", "--help"), "cannot write to stdout: No space left on device"),
        ("0>/dev/null", ("write", fresh, "--zone", 2), "cannot read stdin: Bad file descriptor"),
        ("0>/dev/null", ("append", fresh, "--zone", 2), "cannot read stdin: Bad file descriptor"),
        ("0>/dev/null", ("restore", "-", tmp_path / "new"), "cannot read stdin: Bad file descriptor"),
    ):
        command = f"{' '.join(python(*arguments))} {redirection}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, f"zonefs-emu: {sentence}\n")


def test_a_terminal_without_our_signs_gets_question_marks(fresh: Path) -> None:
    done = subprocess.run(
        python("map", fresh), capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "latin-1:strict"}
    )
    assert b"???????? written share" in done.stdout
