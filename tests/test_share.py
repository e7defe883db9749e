"""Manual pages and shell completion: current, and understood by man and bash; test_dist.py installs them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import share
from zonefs_emu.cli.verb_table import VERBS

ROOT = Path(__file__).resolve().parent.parent
COMPLETION = ROOT / "share/bash-completion/completions/zonefs-emu"


def test_the_files_are_what_the_program_says() -> None:
    """``make docs`` writes them."""
    kept = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "share").rglob("*") if path.is_file()}
    assert kept == dict(share.files())
    assert {f"share/man/man1/zonefs-emu-{verb.name}.1" for verb in VERBS} < set(kept)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_program_prints_its_completion(shell: str) -> None:
    """For the start-up file of a shell, where no package has installed it."""
    printed = subprocess.run(
        [sys.executable, "-c", "from zonefs_emu.cli.main import main; main()"],
        env=os.environ | {"_ZONEFS_EMU_COMPLETE": f"{shell}_source"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (kept,) = (content for path, content in share.files() if shell in path.split("/")[1])
    assert printed.split() == kept.split()


def test_a_page_reads_as_the_help_does(tmp_path: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("no groff")
    page = ROOT / "share/man/man1/zonefs-emu-report.1"
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tascii", "-P-c", page], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr == ""
    lines = [line.strip() for line in done.stdout.replace("_\b", "").splitlines()]
    assert "zonefs-emu report small.img --format blkzone -o 64M -c 2" in lines, "examples stay as they are"


def test_no_page_is_refused_by_groff() -> None:
    if shutil.which("groff") is None:
        pytest.skip("no groff")
    pages = sorted((ROOT / "share/man/man1").iterdir())
    done = subprocess.run(["groff", "-man", "-ww", "-z", *pages], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["rep"], ["replay", "report"]),
        (["report", "--form"], ["--format"]),
        (["report", "--format", "zbd"], ["zbd", "zbd-csv"]),
    ],
)
def test_bash_completes(typed: list[str], offered: list[str], tmp_path: Path) -> None:
    program = tmp_path / "zonefs-emu"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m zonefs_emu "$@"\n')
    program.chmod(0o755)
    script = (
        'source "$0"; [[ $(complete -p zonefs-emu) == *"-F "* ]]; COMP_WORDS=(zonefs-emu "$@"); COMP_CWORD=$#\n'
        '_zonefs_emu_completion zonefs-emu; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-ec", script, COMPLETION, *typed], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.stdout.split(), done.stderr) == (sorted(offered), "")
