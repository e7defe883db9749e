"""Whether compiled modules are used, and why not."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

from tests.requires import requires
from zonefs_emu import compiled_modules

ROOT: Final = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_modules, "_loaded", {})


def test_the_environment_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled_modules.PURE, "1")
    assert not compiled_modules.is_usable(compiled_modules.RING_WALKER)
    assert compiled_modules.used_walker() == "pure Python (as ZONEFS_EMU_PURE asks)"


@pytest.mark.parametrize("value", ["", "0"])
def test_an_empty_variable_does_not(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requires("walker")
    monkeypatch.setattr(compiled_modules, "_loaded", {})
    monkeypatch.setenv(compiled_modules.PURE, value)
    assert compiled_modules.used_walker() == "compiled"


def test_one_that_was_built_from_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = SimpleNamespace(SOURCES=compiled_modules.sources_crc() ^ 1)
    monkeypatch.setenv(compiled_modules.PURE, "0")
    monkeypatch.setitem(sys.modules, "zonefs_emu.virtqueue.walker", stale)
    assert not compiled_modules.is_usable(compiled_modules.RING_WALKER)
    assert compiled_modules.used_walker() == "pure Python (the compiled one was built from other sources)"


def test_sources_that_are_missing_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    requires("walker")
    monkeypatch.setattr(compiled_modules, "_loaded", {})
    monkeypatch.setenv(compiled_modules.PURE, "0")
    monkeypatch.setattr(compiled_modules, "SOURCES", (*compiled_modules.SOURCES, "virtqueue/none.pyx"))
    assert not compiled_modules.is_usable(compiled_modules.RING_WALKER)


def test_without_the_extension_python_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled_modules.PURE, "0")
    monkeypatch.setitem(sys.modules, "zonefs_emu.virtqueue.walker", None)
    assert compiled_modules.used_walker() == "pure Python (the compiled one is not built)"


def without_compiler(compiler: str, *command: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=os.environ | {"CC": compiler} | variables, check=False,
        capture_output=True, text=True,
    )  # fmt: skip


def test_a_failing_compiler_makes_nothing(tmp_path: Path) -> None:
    done = without_compiler("false", "tools/build_walker.py", "--into", tmp_path / "built")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "the compiled modules were not built: Cython or a compiler is missing"
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
    script = "import sys\nfrom zonefs_emu import compiled_modules\ncompiled_modules.used_walker()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    found = {name for name in done.stdout.split() if name.startswith("zonefs_emu.")}
    packages = {name.rpartition(".")[0] for name in compiled_modules.MODULES}
    assert found <= {"zonefs_emu.compiled_modules", *packages, *compiled_modules.MODULES}


def test_every_change_of_a_source_changes_the_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = compiled_modules.SOURCES
    stamps = {compiled_modules.sources_crc()}
    for source in sources:
        monkeypatch.setattr(compiled_modules, "SOURCES", (source,))
        stamps.add(compiled_modules.sources_crc())
    assert len(stamps) == len(sources) + 1


def test_every_source_is_in_the_stamp() -> None:
    """A compiled file that the stamp leaves out could change without a rebuild."""
    package = ROOT / "zonefs_emu"
    found = {str(path.relative_to(package)) for suffix in ("pyx", "pxd") for path in package.rglob(f"*.{suffix}")}
    assert found <= set(compiled_modules.SOURCES)


@pytest.mark.slow
def test_the_sanitizers_find_nothing(tmp_path: Path) -> None:
    requires("cc")
    library = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("the compiler has no sanitizer")
    built, images = tmp_path / "built", tmp_path / "images"
    images.mkdir()
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -g -O1"
    subprocess.run(
        [sys.executable, ROOT / "tools/build_walker.py", "--into", built, f"--cflags={flags}"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    # Python's own allocations are not freed at its end. Its allocator would hide accesses beyond a block.
    environment = {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    rigs = {"virtqueue/walker_rig": 30, "ublk/tag_walker_rig": 30, "vfio_user/queue_walker_rig": 10}
    for rig, nr_rounds in rigs.items():
        done = subprocess.run(
            [sys.executable, ROOT / f"tests/{rig}.py", str(nr_rounds), "1", images, built],
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split()[2]) > 0, done.stdout
