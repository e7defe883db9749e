import platform

import pytest

from tests.cli.conftest import ok
from zonefs_emu import __version__
from zonefs_emu.cli import versions


def test_the_program_names_what_it_runs_on() -> None:
    words = ok("--version")
    assert words.startswith(f"zonefs-emu {__version__} (")
    assert f" {platform.python_version()}, libfuse 3." in words


def test_a_machine_without_libfuse_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_LIBFUSE", "libnone.so.3")
    assert versions.versions()["libfuse"] == "not found"
