"""Which walker is used: the compiled one, or none, and why."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.requires import requires
from zonefs_emu.virtqueue import compiled


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
