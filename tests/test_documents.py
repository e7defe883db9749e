"""The commands that documents show: run in their order, with the output that the documents show.

A block ``console`` is a session in bash. A line that begins with "$ " is a command, "> " continues it, and all other
lines up to the next command are its output, on stdout and stderr. Three points in it stand for any text. A command
without output in the document may print anything. Each command must succeed; one that is refused is followed by
``|| …`` in the document, too.

All blocks of a page are one session in an empty directory that looks like a checkout: ``tools`` and ``examples`` are
there. A block ``python`` or ``ini`` that begins with a comment that is a file name is that file.
"""

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
#: Pages with sessions, and the marks of what these need.
PAGES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "README.md": ("fuse",),
        "docs/break.md": ("fuse",),
        "docs/ci.md": (),
        "docs/timing.md": (),
        "docs/vm.md": ("qemu",),
        "docs/without-root.md": ("fuse",),
    }
)
_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE: Final = re.compile(r"# ([\w.-]+\.\w+)\n")
#: Printed before each command; no document has it.
_MARK: Final = "\x01"


class Step(NamedTuple):
    """A command of a session, and the output that the document shows."""

    command: str
    shown: str


def session(text: str) -> list[Step]:
    """Return the commands of all blocks ``console`` in *text*."""
    steps: list[Step] = []
    for kind, block in _BLOCK.findall(text):
        if kind != "console":
            continue
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append(Step(line[2:], ""))
            elif line == ">" or line.startswith("> "):
                steps[-1] = Step(f"{steps[-1].command}\n{line[2:]}", "")
            else:
                steps[-1] = Step(steps[-1].command, f"{steps[-1].shown}{line}\n")
    return steps


def files(text: str) -> Iterator[tuple[str, str]]:
    """Yield (name, content) of all blocks in *text* that show a file."""
    for kind, block in _BLOCK.findall(text):
        if kind != "console" and (name := _FILE.match(block)):
            yield name[1], block


def is_shown(shown: str, printed: str) -> bool:
    """Say whether *printed* is what the document shows; lines are broken anywhere in both."""
    pattern = r"\s+".join(re.escape(word).replace(r"\.\.\.", ".*?") for word in shown.split())
    return re.fullmatch(rf"\s*{pattern}\s*", printed, re.DOTALL) is not None


def play(
    steps: list[Step], directory: Path, *, programs: Path = Path(sys.executable).parent, modules: str = str(ROOT)
) -> list[str]:
    """Run *steps* in one shell in *directory* and return what each printed.

    *programs* is the first directory of PATH, and *modules* is PYTHONPATH: this checkout.
    """
    script = "set -eo pipefail\n" + "".join(f"printf '{_MARK}'\n{step.command}\n" for step in steps)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": modules,
        "TMPDIR": str(directory),
    }
    log = directory.parent / "session.log"
    with log.open("wb") as output:
        # A file and not a pipe: what a session leaves in the background does not keep the test waiting.
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait()  # pytest's timeout is the limit
        finally:
            subprocess.run(
                [programs / "python", "-m", "zonefs_emu", "umount", directory / "mnt"],
                env=environment,
                capture_output=True,
                check=False,
            )
            # What the session started in the background and did not end.
            if _group_exists(shell.pid):
                os.killpg(shell.pid, signal.SIGTERM)
    outputs = log.read_text().split(_MARK)[1:]
    assert code == 0, f"$ {steps[len(outputs) - 1].command}\n{outputs[-1]}"
    return outputs


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[getattr(pytest.mark, mark) for mark in marks]) for page, marks in PAGES.items()]
)
def test_the_commands_of_a_page_do_what_the_page_shows(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text()
    directory = tmp_path / "checkout"
    directory.mkdir()
    for name in ("tools", "examples"):
        (directory / name).symlink_to(ROOT / name)
    for name, content in files(text):
        (directory / name).write_text(content)
    steps = session(text)
    assert steps
    for step, printed in zip(steps, play(steps, directory), strict=True):
        if step.shown:
            assert is_shown(step.shown, printed), f"$ {step.command}\n{printed}\nand not\n{step.shown}"


@pytest.mark.slow
def test_the_site_has_no_broken_links(tmp_path: Path) -> None:
    """As ``make site`` builds it; also links to headings."""
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(tmp_path)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr
    assert "docs/vm.html" in (tmp_path / "README.html").read_text()


def workflow_steps() -> Mapping[str, str]:
    """The scripts of examples/ci.yml by the names of their steps."""
    text = (ROOT / "examples/ci.yml").read_text()
    return {
        name: textwrap.dedent(script)
        for name, script in re.findall(r"- name: (.*)\n(?: +if: .*\n)? +run: \|\n((?:(?: {10}.*)?\n)+)", text)
    }


@pytest.mark.fuse
@pytest.mark.slow
def test_the_workflow_tests_what_it_says(tmp_path: Path) -> None:
    """All its steps but those that install, each in a shell of its own as the service runs them."""
    steps = [(name, script) for name, script in workflow_steps().items() if not name.startswith("Install")]
    assert len(steps) == 4
    directory = tmp_path / "checkout"
    directory.mkdir()
    (directory / "test_on_zones.py").write_text(
        "def test_it(zoned_device):\n"
        "    status, _ = zoned_device.port.append(zoned_device.geometry.zone_start(5), 8, (bytes(4096),))\n"
        "    assert not status\n"
    )
    session = [Step(f"bash -e -o pipefail <<'STEP'\n{script}STEP", "") for _, script in steps]
    python, mounted, power_cut, refused = play(session, directory)
    assert "1 passed" in python
    assert "Writing super block" in mounted
    assert power_cut.count("unflushed writes are there") == 5
    assert "nothing was refused" in refused


def test_the_workflow_installs_what_the_set_up_installs() -> None:
    """Names of packages; tools/setup lists what the program needs under "demo"."""
    script = workflow_steps()["Install system packages"].replace("\\\n", " ")
    installed = set(script.split("--no-install-recommends")[1].split())
    setup = (ROOT / "tools/setup").read_text()
    listed = re.findall(r"^demo\|[^|]+\|([\w.$-]+)\|", setup, re.MULTILINE)
    assert installed == {package.replace("python$version", "python3") for package in listed}


def test_every_page_with_a_session_is_run() -> None:
    with_sessions = [
        str(path.relative_to(ROOT))
        for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
        if session(path.read_text())
    ]
    assert with_sessions == sorted(PAGES)


def test_a_session_is_read_in_order() -> None:
    text = "```console\n$ one\nshown\n$ two \\\n> three\n```\nwords\n```text\n$ none\n```\n```console\n$ four\n```\n"
    assert session(text) == [Step("one", "shown\n"), Step("two \\\nthree", ""), Step("four", "")]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a b\n", "a\n  b\n", True),
        ("a ... b\n", "a x y\nz b\n", True),
        ("a.b\n", "axb\n", False),
        ("a\n", "a b\n", False),
        ("zone 1...\n", "zone 17\n", True),
    ],
)
def test_what_counts_as_shown(shown: str, printed: str, same: bool) -> None:
    assert is_shown(shown, printed) == same


def test_a_command_that_fails_ends_the_session_with_its_output(tmp_path: Path) -> None:
    directory = tmp_path / "here"
    directory.mkdir()
    with pytest.raises(AssertionError, match=r"\$ cat missing\n *cat: missing: No such file"):
        play([Step("echo one", ""), Step("cat missing", ""), Step("echo two", "")], directory)
