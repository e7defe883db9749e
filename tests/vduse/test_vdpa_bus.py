"""What is said where the kernel has no VDUSE, and names; with VDUSE, in the guest (test_server.py)."""

import errno
from pathlib import Path

import pytest

from zonefs_emu.errors import UsageError
from zonefs_emu.vduse import vdpa_bus
from zonefs_emu.vduse.vdpa_bus import Driver, check_host, check_name, node_of


@pytest.mark.parametrize("name", ["disk", "a.b-c_d", "0", "x" * 64])
def test_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "a/b", ".", "..", "-x", "x" * 65, "control", "a b", "ä"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a device"):
        check_name(name)


def test_without_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vdpa_bus, "CONTROL_NODE", tmp_path / "control")
    with pytest.raises(UsageError, match="load the module with 'modprobe vduse'"):
        check_host(Driver.HOST)


def test_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EACCES, "no")

    monkeypatch.setattr("zonefs_emu.vduse.vdpa_bus.os.open", refuse)
    with pytest.raises(UsageError, match="attach as root"):
        check_host(Driver.HOST)


def test_without_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "control").touch()
    monkeypatch.setattr(vdpa_bus, "CONTROL_NODE", tmp_path / "control")
    monkeypatch.setattr(vdpa_bus, "_BUS", tmp_path)
    with pytest.raises(UsageError, match="load it with 'modprobe virtio_vdpa'"):
        check_host(Driver.HOST)
    (tmp_path / "drivers" / "vhost_vdpa").mkdir(parents=True)
    check_host(Driver.VM)


def test_the_node_of_a_bound_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vdpa_bus, "_BUS", tmp_path)
    assert node_of("disk") is None
    (tmp_path / "devices" / "disk" / "virtio3" / "block" / "null").mkdir(parents=True)
    assert node_of("disk") == Path("/dev/null")
    assert node_of("other") is None
