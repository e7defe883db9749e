"""What is said of a newer QEMU; whether it works is shown by the tests of vfio-user."""

import os
from pathlib import Path

import pytest

from tools.guest.kit import Apt, Kit, KitError
from tools.guest.newer_qemu import NewerKit, find_newer_qemu, obtain_newer_qemu


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "zonefs-emu/guest"


def test_it_is_found_beside_a_kit(cache: Path) -> None:
    kit = Kit(root=cache / "kit", kernel_release="6.12")
    assert find_newer_qemu(kit) is None
    (cache / "newer-qemu-1").mkdir(parents=True)
    assert find_newer_qemu(None) is None
    found = find_newer_qemu(kit)
    assert found is not None
    assert found.kernel == kit.kernel
    assert obtain_newer_qemu(lambda _: None) == cache / "newer-qemu-1", "nothing is downloaded"


def test_it_runs_by_its_own_linker_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    kit = NewerKit(root=Path("/kit"), kernel_release="6.12", qemu_root=Path("/newer"))
    assert kit.qemu_command[0] == "/newer/usr/lib64/ld-linux-x86-64.so.2"
    assert kit.qemu_command[2:4] == ("/newer/usr/lib/x86_64-linux-gnu", "/newer/usr/bin/qemu-system-x86_64")
    assert kit.environment.keys() - os.environ.keys() <= {"QEMU_MODULE_DIR"}


def test_a_mirror_without_the_suite_is_told_in_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_apt: Apt, program: str, *_arguments: str, **_options: object) -> str:
        message = f"{program} failed: no such suite"
        raise KitError(message)

    monkeypatch.setattr(Apt, "run", run)
    with pytest.raises(KitError, match="tests of vfio-user are skipped: "):
        obtain_newer_qemu(lambda _: None)
    assert not (cache / "newer-qemu-1").exists()
