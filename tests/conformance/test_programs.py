"""Programs that are started by their own linker."""

import subprocess
from pathlib import Path
from types import MappingProxyType

import pytest

from tools.conformance import programs as module
from tools.conformance.programs import Programs, launcher


def test_a_launcher_hands_its_words_on(tmp_path: Path) -> None:
    root = tmp_path / "a root"
    linker = root / "usr/lib64/ld-linux-x86-64.so.2"
    linker.parent.mkdir(parents=True)
    linker.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    linker.chmod(0o755)
    (tmp_path / "fio").write_text(launcher(root, "usr/bin/fio"))
    done = subprocess.run(["sh", tmp_path / "fio", "a b", ""], check=True, capture_output=True, text=True)
    libraries, program = root / "usr/lib/x86_64-linux-gnu", root / "usr/bin/fio"
    assert done.stdout.split("\n") == ["--library-path", f"{libraries}:{libraries}/ceph", str(program), "a b", "", ""]


def test_they_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def unpack(work: Path, suite: str, packages: tuple[str, ...], _progress: object) -> Path:
        asked.append((suite, packages))
        (work / "root").mkdir()
        return work / "root"

    monkeypatch.setattr(module, "unpack_with_dependencies", unpack)
    programs = Programs(suite="sid", packages=("fio",), commands=MappingProxyType({"fio": "usr/bin/fio"}))
    place = programs.obtain(lambda _: None)
    assert programs.obtain(lambda _: None) == place
    assert asked == [("sid", ("fio",))]
    assert str(place.parent / "usr/bin/fio") in (place / "fio").read_text(), "where it is in the end"
    assert (place / "fio").stat().st_mode & 0o111
