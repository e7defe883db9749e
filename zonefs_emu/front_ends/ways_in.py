"""Checks of the ways in on this machine: whether each works, and if not, the reason and the command that repairs it.

There is one function for each way. It changes nothing: no module is loaded and no device is made. ``doctor`` prints the
findings, and tests are skipped by them.

May not know: images. The front-end refuses a geometry that Linux refuses.
"""

import errno
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from zonefs_emu.errors import UsageError, host_sentence, printable
from zonefs_emu.persist.backing import user_name
from zonefs_emu.units import human_bytes

#: Programs of administrators, which are not on the PATH of every user.
_SBIN: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_FUSE_CONFIGURATION: Final = Path("/etc/fuse.conf")
_FUSE_NODE: Final = Path("/dev/fuse")
_HELPER: Final = "mount.fuse.zonefs-emu"
_HELPER_DIRECTORY: Final = Path("/sbin")
_MODULES: Final = Path("/lib/modules")
_QEMUS: Final = ("qemu-system-x86_64", "qemu-system-aarch64", "qemu-kvm", "/usr/libexec/qemu-kvm")
_QEMU_SECONDS: Final = 20
#: With less free space, a small image could fill the file system.
_ROOM_BYTES: Final = 1 << 30
#: A sparse file of this size takes a few blocks.
_SPARSE_BYTES: Final = 64 << 20

_Version = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Whether the way *name* works here, with the *reason*; *remedy* is the command that repairs it, or ""."""

    name: str
    works: bool
    reason: str
    remedy: str = ""


def images(directory: Path) -> Finding:
    """Say whether images can live in *directory*: sparse files, locks, and room for data."""
    name = "images"
    place = printable(directory.absolute())
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.ftruncate(file.fileno(), _SPARSE_BYTES)
            os.pwrite(file.fileno(), b"\1", _SPARSE_BYTES // 2)
            sparse = os.fstat(file.fileno()).st_blocks * 512 < _SPARSE_BYTES // 2
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.statvfs(directory)
    except OSError as error:
        reason = f"no image can be made in {place}: {error.strerror}"
        return Finding(name=name, works=False, reason=reason, remedy="zonefs-emu doctor --directory DIR")
    room = status.f_bavail * status.f_frsize
    if not sparse:
        reason = f"{place} has no sparse files: an image takes its whole size there"
        return Finding(name=name, works=False, reason=reason, remedy="zonefs-emu doctor --directory DIR")
    reason = f"{place} has sparse files and {human_bytes(room)} of room"
    if room < _ROOM_BYTES:
        return Finding(name=name, works=False, reason=f"{reason}, which is little", remedy=f"df -h {place}")
    return Finding(name=name, works=True, reason=reason)


def mount() -> Finding:
    """Say whether a zonefs can be mounted by FUSE."""
    name = "mount"
    try:
        os.close(os.open(_FUSE_NODE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        reason = f"{_FUSE_NODE} cannot be opened: {error.strerror}"
        remedy = _load("fuse") if error.errno != errno.EACCES else f"sudo chmod 666 {_FUSE_NODE}"
        return Finding(name=name, works=False, reason=reason, remedy=remedy)
    if _which("fusermount3") is None:
        return Finding(name=name, works=False, reason="fusermount3 is not installed", remedy=_install("fuse3"))
    return Finding(name=name, works=True, reason=f"{_FUSE_NODE} can be opened, and fusermount3 is installed")


def allow_other() -> Finding:
    """Say whether a mount may let other users in. Source: fuse(8), "Mount options", allow_other."""
    name = "allow_other"
    if os.geteuid() == 0:
        return Finding(name=name, works=True, reason="root may always let other users into a mount")
    try:
        lines = _FUSE_CONFIGURATION.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if "user_allow_other" in (line.strip() for line in lines):
        return Finding(name=name, works=True, reason=f"{_FUSE_CONFIGURATION} has user_allow_other")
    reason = f"{_FUSE_CONFIGURATION} has no line user_allow_other, so that only root may let other users into a mount"
    remedy = f"echo user_allow_other | sudo tee -a {_FUSE_CONFIGURATION}"
    return Finding(name=name, works=False, reason=reason, remedy=remedy)


def fstab() -> Finding:
    """Say whether mount(8), and so a line of fstab, can mount an image. Source: mount(8), "EXTERNAL HELPERS"."""
    name = "fstab"
    helper = _HELPER_DIRECTORY / _HELPER
    if os.access(helper, os.X_OK):
        return Finding(name=name, works=True, reason=f"{helper} is there")
    # The same installation puts it beside this program.
    place = shutil.which(_HELPER, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if place is None:
        reason = f"{_HELPER}, which mount(8) runs, is not installed"
        return Finding(name=name, works=False, reason=reason, remedy="pip install zonefs-emu")
    reason = f"mount(8) looks for {_HELPER} in {_HELPER_DIRECTORY} only"
    return Finding(name=name, works=False, reason=reason, remedy=f"{_sudo()}ln -s {place} {_HELPER_DIRECTORY}/")


def vhost_user_scsi() -> Finding:
    """Say whether a virtual machine here can have the SCSI disk of ``serve --vhost-user-scsi``."""
    return _by_qemu("vhost-user-scsi", "vhost-user-scsi-pci", (8, 0))


def vhost_user_blk() -> Finding:
    """Say whether a virtual machine here can have the virtio disk of ``serve --vhost-user-blk`` with its zones."""
    for monitor in ("crosvm", "krunvm"):
        if _which(monitor) is not None:
            return Finding(name="vhost-user-blk", works=True, reason=f"{monitor} is installed")
    return _by_qemu("vhost-user-blk", "vhost-user-blk-pci", (11, 1))


def vfio_user() -> Finding:
    """Say whether a virtual machine here can have the drive of ``serve --vfio-user``."""
    return _by_qemu("vfio-user", "vfio-user-pci", (10, 1))


def _by_qemu(name: str, device: str, oldest: _Version) -> Finding:
    needed = f"QEMU {oldest[0]}.{oldest[1]} or later with {device}"
    remedy = _install("qemu-system-x86" if platform.machine() == "x86_64" else "qemu-system-arm")
    qemu = next(filter(None, map(_which, _QEMUS)), None)
    if qemu is None:
        return Finding(name=name, works=False, reason=f"no QEMU is installed; {needed} is needed", remedy=remedy)
    version = re.search(r"version (\d+)\.(\d+)", _output([qemu, "--version"]))
    if version is None:
        return Finding(name=name, works=False, reason=f"{qemu} does not say its version", remedy=remedy)
    found = f"QEMU {version[1]}.{version[2]}"
    if (int(version[1]), int(version[2])) < oldest:
        reason = f"{qemu} is {found}, and {needed} is needed"
        return Finding(name=name, works=False, reason=reason, remedy=remedy)
    if f'"{device}"' not in _output([qemu, "-device", "help"]):
        return Finding(name=name, works=False, reason=f"{found} has no {device}", remedy=remedy)
    return Finding(name=name, works=True, reason=f"{found} has {device}")


def nvme_tcp() -> Finding:
    """Say whether this host can use the drive of ``serve --nvme-tcp``; serving it needs nothing."""
    name = "nvme-tcp"
    if _which("nvme") is None:
        reason = "nvme-cli, which connects to a drive, is not installed"
        return Finding(name=name, works=False, reason=reason, remedy=_install("nvme-cli"))
    if not _is_loaded("nvme_tcp") and not _is_there("nvme_tcp"):
        reason = f"the kernel {platform.release()} has no module nvme_tcp; hosts with it can connect"
        return Finding(name=name, works=False, reason=reason)
    if os.geteuid():
        reason = f"only root may connect, and this is {user_name(os.geteuid())}; serving needs no root"
        return Finding(name=name, works=False, reason=reason, remedy="sudo nvme connect ...")
    if not _is_loaded("nvme_tcp"):
        reason = "the module nvme_tcp is not loaded"
        return Finding(name=name, works=False, reason=reason, remedy=_load("nvme_tcp"))
    return Finding(name=name, works=True, reason="nvme-cli is installed and nvme_tcp is loaded")


def ublk() -> Finding:
    """Say whether ``attach --via ublk`` works."""
    # Imported here because the other functions do not need it.
    from zonefs_emu.ublk.control_device import control_device  # noqa: PLC0415

    def look() -> None:
        with control_device():
            pass

    return _attached("ublk", look, ("ublk_drv",), "Linux 6.6")


def vduse() -> Finding:
    """Say whether ``attach --via vduse`` works for this host."""
    from zonefs_emu.vduse import vdpa_bus  # noqa: PLC0415  (loads the way to the kernel)

    def look() -> None:
        vdpa_bus.check_host(vdpa_bus.Driver.HOST)

    return _attached("vduse", look, ("vduse", "virtio_vdpa"), "Linux 6.4")


def _attached(name: str, look: Callable[[], None], modules: Sequence[str], oldest: str) -> Finding:
    try:
        look()
    except UsageError as error:
        absent = [module for module in modules if not _is_loaded(module) and not _is_there(module)]
        if absent:
            reason = f"the kernel {platform.release()} has no module {absent[0]}; {oldest} or later can have it"
            return Finding(name=name, works=False, reason=reason)
        loads = [_load(module) for module in modules if not _is_loaded(module)]
        remedy = " && ".join(loads) if loads else f"sudo zonefs-emu attach --via {name} IMG"
        return Finding(name=name, works=False, reason=str(error), remedy=remedy)
    return Finding(name=name, works=True, reason=f"Linux {platform.release()} lets this user make devices")


#: The ways in by name; "images" is looked at in the present directory.
WAYS: Final[Mapping[str, Callable[[], Finding]]] = MappingProxyType(
    {
        "images": lambda: images(Path()),
        "mount": mount,
        "allow_other": allow_other,
        "fstab": fstab,
        "vhost-user-scsi": vhost_user_scsi,
        "vhost-user-blk": vhost_user_blk,
        "vfio-user": vfio_user,
        "nvme-tcp": nvme_tcp,
        "ublk": ublk,
        "vduse": vduse,
    }
)


def _which(command: str) -> str | None:
    return shutil.which(command, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN)))


def _output(command: Sequence[str]) -> str:
    """Return the output of *command*; "" if it cannot be run or does not end in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_QEMU_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _install(package: str) -> str:
    """Return the command that installs *package*, by Debian's name, which most distributions share."""
    managers = {"apt-get": "apt-get install", "dnf": "dnf install", "zypper": "zypper install", "pacman": "pacman -S"}
    command = next((managers[name] for name in managers if _which(name)), managers["apt-get"])
    return f"{_sudo()}{command} {package}"


def _load(module: str) -> str:
    return f"{_sudo()}modprobe {module}"


def _sudo() -> str:
    return "" if os.geteuid() == 0 else "sudo "


def _is_loaded(module: str) -> bool:
    return Path("/sys/module", module).exists()


def _is_there(module: str) -> bool:
    """Return whether the running kernel has *module*. Source: depmod(8), modules.dep and modules.builtin."""
    for listing in ("modules.dep", "modules.builtin"):
        try:
            text = (_MODULES / platform.release() / listing).read_text()
        except OSError:
            continue
        if re.search(rf"/{module.replace('_', '[-_]')}\.ko\b", text):
            return True
    return False


def examine(names: Sequence[str], directory: Path) -> list[Finding]:
    """Return a finding for each way of *names*; images are looked at in *directory*.

    Raises:
        UsageError: there is no way of that name.
    """
    unknown = [name for name in names if name not in WAYS]
    if unknown:
        message = f"there is no way in called {unknown[0]!r}: there are {', '.join(WAYS)}"
        raise UsageError(message)
    return [images(directory) if name == "images" else _contained(name) for name in names]


def _contained(name: str) -> Finding:
    try:
        return WAYS[name]()
    except OSError as error:
        # An unexpected error in one check does not hide the other ways.
        return Finding(name=name, works=False, reason=f"the host cannot be asked: {host_sentence(error)}")
