"""The first file system of the guest: busybox, the modules that reach the host's files, `init.sh`, and near files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tools.guest.cpio import CpioWriter
from tools.guest.kit import Kit
from tools.guest.near_files import near_files

_HERE: Final = Path(__file__).parent
# Everything else is loaded by modprobe once the host's files are there.
_MODULES: Final = ("9pnet_virtio", "9p", "overlay")
_APPLETS: Final = ("cp", "insmod", "mkdir", "mount", "poweroff", "sh", "switch_root")


def build_initramfs(kit: Kit) -> bytes:
    """An uncompressed archive for the kernel of *kit*."""
    archive = _archive(kit, (_HERE / "init.sh").read_bytes(), modules=_MODULES, applets=_APPLETS)
    archive.file("agent.sh", (_HERE / "agent.sh").read_bytes())
    _add_near_files(archive, near_files(kit))
    return archive.finish()


def build_small_initramfs(kit: Kit, init: str, *, modules: Sequence[str], applets: Sequence[str]) -> bytes:
    """The same without the host's files, for a guest that may move to another QEMU: it runs *init* and nothing else.

    Args:
        kit: whose kernel it is for.
        init: a script for busybox' sh, process 1.
        modules: names of the kernel's modules; those that they need come with them, as /modules/*.ko in load order.
        applets: busybox' commands that *init* uses.
    """
    return _archive(kit, init.encode(), modules=modules, applets=applets).finish()


def _archive(kit: Kit, init: bytes, *, modules: Sequence[str], applets: Sequence[str]) -> CpioWriter:
    archive = CpioWriter()
    for name in ("bin", "dev", "modules", "proc", "sys"):
        archive.directory(name)
    # The kernel opens it for process 1 before anything can have mounted devtmpfs.
    archive.character_device("dev/console", major=5, minor=1)
    archive.file("bin/busybox", kit.busybox.read_bytes(), executable=True)
    for applet in applets:
        archive.symlink(f"bin/{applet}", "busybox")
    for position, module in enumerate(_in_load_order(kit, modules)):
        # The number in front makes the shell's alphabetical order the order of loading.
        archive.file(f"modules/{position:02}-{module.name}", module.read_bytes())
    archive.file("init", init, executable=True)
    return archive


def _add_near_files(archive: CpioWriter, files: Mapping[str, Path]) -> None:
    """Add *files* below /near, in directories like the host's, and the links there that are on the way to them."""
    archive.directory("near")
    for link in sorted(path for path in Path("/").iterdir() if path.is_symlink() and path.readlink().parts[0] == "usr"):
        archive.symlink(f"near{link}", str(link.readlink()))
    directories: set[Path] = set()
    for name in files:
        directories.update(Path(name).parents)
    # What lies on top says whose a directory of several layers is.
    for directory in sorted(directories - {Path("/")}):
        status = directory.stat() if directory.exists() else Path("/usr").stat()
        archive.directory(f"near{directory}", mode=status.st_mode & 0o7777, owner=(status.st_uid, status.st_gid))
    for name, file in files.items():
        archive.file(f"near{name}", file.read_bytes(), executable=os.access(file, os.X_OK))


def _in_load_order(kit: Kit, modules: Sequence[str]) -> list[Path]:
    """The files of *modules* and all they depend on, each after its own dependencies."""
    dependencies: dict[str, list[str]] = {}
    path_of: dict[str, str] = {}
    for line in (kit.modules / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        # Nearest first, as modprobe would unload them.
        dependencies[path] = needed.split()
        path_of[Path(path).stem.replace("-", "_")] = path
    ordered: dict[str, None] = {}
    for name in modules:
        for path in (*reversed(dependencies[path_of[name]]), path_of[name]):
            ordered.setdefault(path)
    return [kit.modules / path for path in ordered]
