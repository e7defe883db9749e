"""What ``make dist`` builds, installed into an empty virtual environment far from the checkout, and used there."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.test_documents import ROOT, is_shown, play, session
from tools import share
from zonefs_emu import __version__

#: pip compiles pyfuse3 where it has no wheel of it yet.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def clean(command: Sequence[object], directory: Path) -> str:
    """Run *command* in *directory*, without anything of this checkout in its environment; return its output."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE", "VIRTUAL"))
    }
    done = subprocess.run(
        [str(word) for word in command], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the sdist and the wheel of a clean copy of what git tracks."""
    copy = tmp_path_factory.mktemp("clone")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    clean([sys.executable, "-m", "build", "--no-isolation"], copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def environment(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and what it depends on, in it."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=True)
    (wheel,) = archives.glob("*.whl")
    clean([place / "bin/pip", "install", "-q", "--disable-pip-version-check", wheel], place)
    return place


def test_the_sdist_has_what_building_and_testing_need(archives: Path) -> None:
    (sdist,) = archives.glob("*.tar.gz")
    assert sdist.name == f"zonefs_emu-{__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/test_dist.py", "tools/check", "docs/architecture.md", "Makefile", "CHANGELOG.md"} < names
    assert not any("__pycache__" in name for name in names)


def test_the_installation_is_complete(environment: Path) -> None:
    for path, content in share.files():
        assert (environment / path).read_text() == content
    for unit in (ROOT / "systemd").iterdir():
        assert (environment / "lib/systemd/system" / unit.name).read_text() == unit.read_text()
    helper = subprocess.run([environment / "bin/mount.fuse.zonefs-emu", "x", "y", "-f"], check=False)
    assert helper.returncode == 0
    (package,) = environment.glob("lib/python*/site-packages/zonefs_emu")
    assert (package / "py.typed").exists()
    assert (package / "cli/page.html").exists()
    (metadata,) = environment.glob("lib/python*/site-packages/zonefs_emu-*.dist-info/METADATA")
    assert f"\nVersion: {__version__}\n" in metadata.read_text()
    assert clean([environment / "bin/zonefs-emu", "--version"], environment).startswith(f"zonefs-emu {__version__} (")


@pytest.mark.fuse
def test_the_tour_of_the_readme_works_there(environment: Path, tmp_path: Path) -> None:
    # The examples belong to the checkout, and an installation does not have them.
    steps = [step for step in session((ROOT / "README.md").read_text()) if " examples/" not in step.command]
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    for step, printed in zip(
        steps, play(steps, directory, programs=environment / "bin", modules=""), strict=True
    ):  # fmt: skip
        if step.shown:
            assert is_shown(step.shown, printed), f"$ {step.command}\n{printed}\nand not\n{step.shown}"
    found = clean([environment / "bin/python", "-c", "import zonefs_emu; print(zonefs_emu.__file__)"], tmp_path)
    assert found.startswith(str(environment)), "the tour has used the checkout"
