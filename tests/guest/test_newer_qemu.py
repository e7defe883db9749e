"""What is said of a newer QEMU; whether it works is shown by the tests of vfio-user."""

import os
from pathlib import Path

import pytest

from tools.guest.kit import Kit
from tools.guest.newer_qemu import NEWER_QEMU, NewerKit, find_newer_qemu


def test_it_is_found_beside_a_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kit = Kit(root=tmp_path / "kit", kernel_release="6.12")
    assert find_newer_qemu(kit) is None
    NEWER_QEMU.root.mkdir(parents=True)
    assert find_newer_qemu(None) is None
    found = find_newer_qemu(kit)
    assert found is not None
    assert found.kernel == kit.kernel


def test_it_runs_by_its_own_linker_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    kit = NewerKit(root=Path("/kit"), kernel_release="6.12", qemu_root=Path("/newer"))
    assert kit.qemu_command[0] == "/newer/usr/lib64/ld-linux-x86-64.so.2"
    assert kit.qemu_command[2:4] == ("/newer/usr/lib/x86_64-linux-gnu", "/newer/usr/bin/qemu-system-x86_64")
    assert kit.environment.keys() - os.environ.keys() <= {"QEMU_MODULE_DIR"}
