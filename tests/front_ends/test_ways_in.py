"""Each way in on machines that have it and that do not: programs, modules and files of a machine are made up."""

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.requires import requires
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends import ways_in

Install = Callable[[str, str], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A machine with no programs but apt-get; the function installs a script."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr(ways_in, "_SBIN", ())
    monkeypatch.setattr(ways_in, "_QEMUS", ("qemu-system-x86_64",))

    def install(name: str, script: str) -> Path:
        path = directory / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    install("apt-get", "")
    return install


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The list of the kernel's modules, which is empty."""
    listing = tmp_path / platform.release() / "modules.dep"
    listing.parent.mkdir()
    listing.touch()
    monkeypatch.setattr(ways_in, "_MODULES", tmp_path)
    monkeypatch.setattr(ways_in, "_is_loaded", lambda _module: False)
    return listing


def test_images_live_where_files_are_sparse(tmp_path: Path) -> None:
    finding = ways_in.images(tmp_path)
    assert f"{tmp_path} has sparse files and " in finding.reason


def test_images_need_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways_in, "_ROOM_BYTES", 1 << 80)
    finding = ways_in.images(tmp_path)
    assert (finding.works, finding.remedy) == (False, f"df -h {tmp_path}")


def test_no_image_can_be_made_in_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    finding = ways_in.images(tmp_path / "absent")
    assert not finding.works
    assert "No such file or directory" in finding.reason


def test_a_file_system_without_sparse_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The whole file is written, as such a file system does.
    monkeypatch.setattr(ways_in, "_SPARSE_BYTES", 8192)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, _data, _offset: pwrite(fd, bytes(8192), 0))
    finding = ways_in.images(tmp_path)
    assert "has no sparse files" in finding.reason


def test_a_mount_needs_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways_in, "_FUSE_NODE", tmp_path / "fuse")
    finding = ways_in.mount()
    assert "No such file" in finding.reason
    assert finding.remedy.endswith("modprobe fuse")


def test_a_mount_needs_fusermount3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Install) -> None:
    node = tmp_path / "fuse"
    node.touch()
    monkeypatch.setattr(ways_in, "_FUSE_NODE", node)
    assert ways_in.mount().remedy.endswith("apt-get install fuse3")
    install("fusermount3", "")
    assert ways_in.mount().works


def test_users_may_let_others_in_if_the_configuration_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = tmp_path / "fuse.conf"
    monkeypatch.setattr(ways_in, "_FUSE_CONFIGURATION", configuration)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert ways_in.allow_other().remedy == f"echo user_allow_other | sudo tee -a {configuration}"
    configuration.write_text("#user_allow_other\n")
    assert not ways_in.allow_other().works
    configuration.write_text("user_allow_other\n")
    assert ways_in.allow_other().works
    configuration.unlink()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert ways_in.allow_other().works


def test_a_line_of_fstab_needs_the_helper_where_mount_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Install
) -> None:
    monkeypatch.setattr(ways_in, "_HELPER_DIRECTORY", tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python/bin/python"))
    assert "is not installed" in ways_in.fstab().reason
    helper = install("mount.fuse.zonefs-emu", "")
    assert ways_in.fstab().remedy.endswith(f"ln -s {helper} {tmp_path}/")
    (tmp_path / helper.name).symlink_to(helper)
    assert ways_in.fstab().works


QEMU = """case "$1" in
--version) echo "QEMU emulator version {version} (Debian)";;
*) echo 'name "{device}", bus PCI';;
esac"""


@pytest.mark.parametrize(
    ("version", "device", "scsi", "blk"),
    [
        ("10.0.2", "vhost-user-scsi-pci", True, False),
        ("7.2.0", "vhost-user-scsi-pci", False, False),
        ("11.1.0", "vhost-user-blk-pci", False, True),
    ],
)
def test_a_virtual_machine_needs_a_qemu_with_the_device(
    install: Install, version: str, device: str, scsi: bool, blk: bool
) -> None:
    install("qemu-system-x86_64", QEMU.format(version=version, device=device))
    assert (ways_in.vhost_user_scsi().works, ways_in.vhost_user_blk().works) == (scsi, blk)


@pytest.mark.parametrize(("version", "works"), [("10.0.2", False), ("10.1.0", True), ("11.1.3", True)])
def test_an_nvme_drive_of_a_virtual_machine_needs_a_newer_one(install: Install, version: str, works: bool) -> None:
    install("qemu-system-x86_64", QEMU.format(version=version, device="vfio-user-pci"))
    assert ways_in.vfio_user().works == works


def test_without_qemu_the_package_is_named(install: Install) -> None:
    assert "apt-get install qemu-system" in ways_in.vhost_user_scsi().remedy
    install("crosvm", "")
    assert ways_in.vhost_user_blk().reason == "crosvm is installed"


@pytest.mark.parametrize("script", ["exit 1", "#", "echo strange"])
def test_a_qemu_that_cannot_be_asked_is_none(install: Install, script: str) -> None:
    install("qemu-system-x86_64", script)
    assert "does not say its version" in ways_in.vhost_user_scsi().reason


def test_a_program_that_cannot_be_run_says_nothing(install: Install) -> None:
    install("qemu-system-x86_64", "").write_bytes(b"\x7fELF")
    assert "does not say its version" in ways_in.vhost_user_scsi().reason


def test_an_nvme_host(install: Install, modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert ways_in.nvme_tcp().remedy == "sudo apt-get install nvme-cli"
    install("nvme", "")
    assert "has no module nvme_tcp" in ways_in.nvme_tcp().reason
    modules.write_text("kernel/drivers/nvme/host/nvme-tcp.ko.xz: kernel/drivers/nvme/host/nvme-fabrics.ko.xz\n")
    assert "only root may connect" in ways_in.nvme_tcp().reason
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert ways_in.nvme_tcp().remedy == "modprobe nvme_tcp"
    monkeypatch.setattr(ways_in, "_is_loaded", lambda _module: True)
    assert ways_in.nvme_tcp().works


@pytest.mark.parametrize(("way", "module"), [("ublk", "ublk_drv"), ("vduse", "vduse")])
def test_a_block_device_needs_a_module(way: str, module: str, modules: Path) -> None:
    if ways_in.WAYS[way]().works:
        pytest.skip(f"this kernel has {way}")
    assert f"has no module {module}" in ways_in.WAYS[way]().reason
    modules.write_text(f"kernel/drivers/{module}.ko:\nkernel/drivers/virtio_vdpa.ko:\n")
    assert ways_in.WAYS[way]().remedy.split(" && ")[0].endswith(f"modprobe {module}")


def test_a_user_is_told_that_attaching_takes_root(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        message = "/dev/ublk-control may not be opened by this user: attach as root"
        raise UsageError(message)

    monkeypatch.setattr(ways_in, "_is_loaded", lambda _module: True)
    finding = ways_in._attached("ublk", refuse, ("ublk_drv",), "Linux 6.6")
    assert finding.remedy == "sudo zonefs-emu attach --via ublk IMG"
    assert ways_in._attached("ublk", lambda: None, ("ublk_drv",), "Linux 6.6").works


def test_a_host_that_answers_strangely_hides_no_other_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> ways_in.Finding:
        raise OSError(5, "Input/output error", "/dev/strange")

    monkeypatch.setattr(ways_in, "WAYS", {**ways_in.WAYS, "mount": fail})
    mount, images = ways_in.examine(["mount", "images"], tmp_path)
    assert (mount.works, mount.reason) == (False, "the host cannot be asked: /dev/strange: Input/output error")
    assert images.name == "images"


def test_tests_skip_by_the_same_findings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ZONEFS_EMU_REQUIRE", raising=False)
    monkeypatch.setattr(ways_in, "_FUSE_NODE", tmp_path / "fuse")
    with pytest.raises(pytest.skip.Exception, match=r"fuse cannot be opened: No such file"):
        requires("fuse")
