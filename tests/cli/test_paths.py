"""Images and directories of every name that a file system allows, and texts that are none."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok
from zonefs_emu.errors import printable

#: Everything that a table, a list of options, a terminal or an encoding could stumble over, but "/" and NUL.
NAMES = [
    os.fsdecode(b"\xff\xfe,fsname=x\\,b \t\n# - fuse.zonefs y\\040\xc2\x85\xe2\x80\xa8\x1b"),
    "Gerät-机器 ½",
    "-o ro",
]
#: Without UTF-8 at all, a name of other characters is as little text as \xff is.
LOCALES = [{}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


def run(locale: dict[str, str], *args: object) -> bytes:
    """Run a verb that must succeed, in a process with *locale*, and return its stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "zonefs_emu", *map(str, args)], capture_output=True, check=False, env=os.environ | locale
    )
    assert (done.returncode, done.stderr) == (0, b""), (args, done.stderr)
    return done.stdout


@pytest.mark.fuse
@pytest.mark.parametrize(
    ("name", "locale"),
    [(NAMES[0], LOCALES[0]), (NAMES[0], LOCALES[2]), (NAMES[1], LOCALES[1]), (NAMES[2], LOCALES[0])],
    ids=["bytes", "bytes-ascii", "non-ascii-C", "option"],
)
def test_an_image_and_a_directory_of_any_name(name: str, locale: dict[str, str], tmp_path: Path) -> None:
    image, directory, dump = tmp_path / f"{name}.img", tmp_path / name, tmp_path / f"{name}.dump"
    directory.mkdir()
    assert run(locale, "create", image, "--preset", "small").count(b"\n") == 1
    run(locale, "mkfs", image)
    run(locale, "mount", image, directory)
    try:
        assert sorted(path.name for path in directory.iterdir()) == ["cnv", "seq"]
        shown = run(locale, "info", image)
        assert any(line.startswith(b"zonefs at ") for line in shown.split(b"\n"))
        (front_end,) = json.loads(run(locale, "info", image, "--json"))["front_ends"]
        assert os.fsencode(front_end["where"]) == os.fsencode(directory) or locale
        run(locale, "dump", image, dump)
        run(locale, "map", image)
    finally:
        run(locale, "umount", directory)
    assert not directory.is_mount()
    assert ok("report", dump) == ok("report", image)
    assert printable(dump) in ok("check", dump)


def test_a_sentence_about_any_name_is_one_line(tmp_path: Path) -> None:
    for name in NAMES:
        path = tmp_path / name
        assert printable(path) in fails("report", path)
        path.mkdir()
        assert printable(path) in fails("report", path)
        assert "unknown mount option" in fails("mount", path, path, "-o", name.replace(",", ""), code=2)
        path.rmdir()


NO_TEXT = os.fsdecode(b"a\xe9b")


@pytest.mark.parametrize(
    "arguments",
    [["create", "new.img", "--size", "64M", "--label", NO_TEXT], ["mkfs", "a.img", "-L", NO_TEXT],
     ["attach", "a.img", "--name", NO_TEXT], ["mount", "a.img", ".", "-o", NO_TEXT],
     ["create", "new.img", "--size", NO_TEXT], ["create", "new.img", "--size", "64M", "--conv", NO_TEXT],
     ["create", "new.img", "--preset", NO_TEXT], ["inject", "a.img", NO_TEXT],
     ["crash", "a.img", "--out", "x", "--at", NO_TEXT],
     ["set-cond", "a.img", "--zone", "3", NO_TEXT], ["report", "a.img", f"--{NO_TEXT}"], [NO_TEXT]],
    ids=lambda arguments: " ".join(arguments[::2])[:20].encode("ascii", "replace").decode(),
)  # fmt: skip
def test_bytes_that_are_no_text_are_wrong_usage(
    arguments: list[str], fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fresh.parent)
    before = fresh.read_bytes()
    # click's own sentences have Python's way to write such a byte.
    assert re.search(r"a\\(xe9|udce9)b", fails(*arguments, code=2))
    assert fresh.read_bytes() == before
    assert not Path("new.img").exists()


def test_a_label_is_utf8_in_every_locale(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    for locale in LOCALES:
        run(locale, "create", image, "--preset", "small", "--label", "Gerät")
        assert json.loads(ok("info", image, "--json"))["label"] == "Gerät"
        image.unlink()
