"""Which walker is used: the compiled one, or none, and why."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

from tests.requires import requires
from zonefs_emu.virtqueue import compiled

ROOT: Final = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_walker", None)


def test_the_environment_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.PURE, "1")
    assert not compiled.is_compiled()
    assert compiled.used_walker() == "pure Python (as ZONEFS_EMU_PURE asks)"


@pytest.mark.parametrize("value", ["", "0"])
def test_an_empty_variable_does_not(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requires("walker")
    monkeypatch.setattr(compiled, "_walker", None)
    monkeypatch.setenv(compiled.PURE, value)
    assert compiled.used_walker() == "compiled"


def test_one_that_was_built_from_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = SimpleNamespace(SOURCES=compiled.sources_crc() ^ 1)
    monkeypatch.setenv(compiled.PURE, "0")
    monkeypatch.setitem(sys.modules, "zonefs_emu.virtqueue.walker", stale)
    monkeypatch.setattr("zonefs_emu.virtqueue.walker", stale, raising=False)
    assert not compiled.is_compiled()
    assert compiled.used_walker() == "pure Python (the compiled one was built from other sources)"


def test_sources_that_are_missing_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    requires("walker")
    monkeypatch.setattr(compiled, "_walker", None)
    monkeypatch.setenv(compiled.PURE, "0")
    monkeypatch.setattr(compiled, "SOURCES", (*compiled.SOURCES, "virtqueue/none.pyx"))
    assert not compiled.is_compiled()


def test_without_the_extension_python_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.PURE, "0")
    monkeypatch.setitem(sys.modules, "zonefs_emu.virtqueue.walker", None)
    monkeypatch.delattr("zonefs_emu.virtqueue.walker", raising=False)
    assert compiled.used_walker() == "pure Python (the compiled one is not built)"


def without_compiler(compiler: str, *command: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=os.environ | {"CC": compiler} | variables, check=False,
        capture_output=True, text=True,
    )  # fmt: skip


def test_a_failing_compiler_makes_nothing(tmp_path: Path) -> None:
    done = without_compiler("false", "tools/build_walker.py", "--into", tmp_path / "built")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "the compiled ring walker was not built: Cython or a compiler is missing"
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_an_installation_goes_on_without_a_compiler(tmp_path: Path) -> None:
    """What pip does for an editable installation, which copies what was built; for others it does less."""
    elsewhere = ("--build-lib", tmp_path, "--build-temp", tmp_path / "temp")
    done = without_compiler(
        "/nonexistent", "setup.py", "build_ext", "--inplace", *elsewhere, ZONEFS_EMU_CYTHON_DIR=str(tmp_path / "c")
    )
    assert done.returncode == 0, done.stderr
    assert "zonefs_emu.virtqueue.walker is not built: " in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_asking_imports_nothing_of_the_package() -> None:
    script = "import sys\nfrom zonefs_emu.virtqueue import compiled\ncompiled.used_walker()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    found = {name for name in done.stdout.split() if name.startswith("zonefs_emu.")}
    names = ("", ".compiled", ".walker", ".compiled_plain_rules", ".compiled_slot_stores")
    assert found <= {f"zonefs_emu.virtqueue{name}" for name in names}


def test_every_change_of_a_source_changes_the_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compiled.sources_crc()
    stamps = {whole}
    for source in compiled.SOURCES:
        monkeypatch.setattr(compiled, "SOURCES", (source,))
        stamps.add(compiled.sources_crc())
    assert len(stamps) == 6
