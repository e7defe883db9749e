"""Every verb with every kind of broken path: one line on stderr, exit code 1 or 2, no traceback, nothing changed."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import ok, run_cli
from tests.cli.test_finding import ALICE, AS_USER, public  # noqa: F401  (a fixture)
from zonefs_emu.cli.main import cli

#: What each verb needs, with {} for the path that is broken and DIR for a directory that is not. Verbs that go into the
#: background stay in the foreground, and those that wait do so once.
ARGUMENTS = {
    "append": ["{} --zone 3"], "attach": ["{}"], "check": ["{}", "{} --repair"], "close": ["{} --all"],
    "crash": ["{} --out DIR/cuts", "GOOD --at now --out {}/x/y"], "create": ["{}/x --size 64M"], "detach": ["{}"],
    "doctor": ["images --directory {}"], "dump": ["{} DIR/dump", "GOOD {}/x", "{} -"], "finish": ["{} --all"],
    "fit": ["{}"], "info": ["{}"], "inject": ["{} --clear"],
    "map": ["{}", "GOOD --svg {}/x"], "mkfs": ["{}"], "mount": ["{} DIR --foreground", "GOOD {} --foreground"],
    "open": ["{} --all"], "power-cycle": ["{}"], "read": ["{} --zone 3"], "replay": ["{} GOOD", "GOOD {}"],
    "report": ["{}"], "reset": ["{} --all"], "restore": ["{} DIR/image", "GOOD {}/x", "- {}/x"],
    "rewind": ["{} first"],
    "serve": ["{} --vhost-user-scsi DIR/sock", "GOOD --vhost-user-scsi {}/x", "GOOD --vhost-user-blk DIR/s --mount {}",
              "GOOD --vhost-user-blk DIR/s --record {}/x"],
    "set-cond": ["{} --zone 3 ro"], "simulate": ["--op append --bs {}"],
    "snapshot": ["{} first", "{} first --delete"], "stats": ["{}"], "umount": ["{}"], "watch": ["{} --frames 1"],
    "why": ["{}"], "write": ["{} --zone 3"],
}  # fmt: skip
CASES = [(verb, arguments) for verb, all_of_it in ARGUMENTS.items() for arguments in all_of_it]
KINDS = [
    "absent",
    "below-a-file",
    "text",
    "fifo",
    "socket",
    "loop",
    "dangling",
    "long",
    "device",
    "unwritable",
]


def test_the_table_has_every_verb() -> None:
    assert set(ARGUMENTS) == set(cli.commands)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with each kind of broken path, by its name in KINDS."""
    place = tmp_path_factory.mktemp("broken")
    (place / "below-a-file").symlink_to(place / "empty" / "x")
    (place / "empty").touch()
    (place / "text").write_text("hello\n" * 10_000)
    os.mkfifo(place / "fifo")
    (place / "loop").symlink_to("loop")
    (place / "dangling").symlink_to("nowhere")
    (place / "long").symlink_to("x" * 255)
    (place / "device").symlink_to("/dev/null")
    (place / "unwritable").symlink_to("/proc/version")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(place / "socket"))
        yield place


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_and_no_traceback(kind: str, broken: Path, fresh: Path, tmp_path: Path) -> None:
    path = broken / ("x" * 300) if kind == "long" else broken / kind
    directory = tmp_path / "dir"
    directory.mkdir()
    wrong = []
    for verb, arguments in CASES:
        # A log and measurements may come through a FIFO; and a directory for power cuts is made where there is none.
        if (verb, kind) in {("replay", "fifo"), ("fit", "fifo"), ("crash", "absent")}:
            continue
        args = [word.replace("{}", str(path)).replace("DIR", str(directory)).replace("GOOD", str(fresh))
                for word in arguments.split()]  # fmt: skip
        result = run_cli(verb, *args)
        lines = result.stderr.splitlines()
        # check says on stdout what is wrong with a file that can be read, and doctor with a directory.
        says = len(lines) == 1 or (verb in ("check", "doctor") and not lines and result.stdout)
        is_clean = result.exception is None or isinstance(result.exception, SystemExit)
        if not (says and is_clean and result.exit_code in (1, 2)) or "Errno" in result.stderr:
            wrong.append((verb, arguments, result.exit_code, result.stderr, repr(result.exception)))
    assert not wrong, "\n".join(map(str, wrong))
    assert not [path for path in directory.iterdir() if path.name != "cuts"]


AS_ALICE = (
    AS_USER
    + """
for line in sys.stdin:
    result = run_cli(*json.loads(line))
    clean = result.exception is None or isinstance(result.exception, SystemExit)
    print(json.dumps([result.exit_code, result.stderr, result.stdout, clean]), flush=True)
"""
)


def test_what_belongs_to_somebody_else_is_said_so(public: Path) -> None:  # noqa: F811
    image, directory, closed = public / "a.img", public / "dir", public / "closed"
    ok("create", image, "--preset", "small")
    image.chmod(0o600)
    directory.mkdir()
    directory.chmod(0o777)
    closed.mkdir(mode=0o700)
    (closed / "a.img").touch()
    (public / "good.img").touch()
    words = [
        [verb, *(word.replace("{}", str(path)).replace("DIR", str(directory)).replace("GOOD", str(public / "good.img"))
                 for word in arguments.split())]
        for path in (image, closed / "a.img") for verb, arguments in CASES if arguments.startswith("{}")
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", AS_ALICE.format(uid=ALICE)],
        input="".join(json.dumps(each) + "\n" for each in words),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert not done.returncode, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(words)
    for each, (code, err, _, clean) in zip(words, answers, strict=True):
        assert clean, (each, err)
        assert (code in (1, 2), err.count("\n")) == (True, 1), (each, err)
        # Snapshots are looked for before the image is opened.
        if "--delete" in each or each[0] in (
            "umount", "detach", "attach", "create", "mount", "rewind", "serve", "replay"
        ):  # fmt: skip
            continue
        assert "Permission denied" in err, (each, err)
        # The owner is named for images; a table of measurements is any file.
        assert each[0] == "fit" or "it belongs to user root, with mode 0600" in err or "closed" in err, (each, err)
