"""The first file system of the guest: busybox, the modules that reach the host's files, and `init.sh`."""

from pathlib import Path
from typing import Final

from tools.guest.cpio import CpioWriter
from tools.guest.kit import Kit

_HERE: Final = Path(__file__).parent
# Everything else is loaded by modprobe once the host's files are there.
_MODULES: Final = ("9pnet_virtio", "9p", "overlay")
_APPLETS: Final = ("cp", "insmod", "mkdir", "mount", "poweroff", "sh", "switch_root")


def build_initramfs(kit: Kit) -> bytes:
    """An uncompressed archive for the kernel of *kit*."""
    archive = CpioWriter()
    for name in ("bin", "dev", "modules", "proc", "sys"):
        archive.directory(name)
    # The kernel opens it for process 1 before anything can have mounted devtmpfs.
    archive.character_device("dev/console", major=5, minor=1)
    archive.file("bin/busybox", kit.busybox.read_bytes(), executable=True)
    for applet in _APPLETS:
        archive.symlink(f"bin/{applet}", "busybox")
    for position, module in enumerate(_in_load_order(kit)):
        # The number in front makes the shell's alphabetical order the order of loading.
        archive.file(f"modules/{position:02}-{module.name}", module.read_bytes())
    archive.file("init", (_HERE / "init.sh").read_bytes(), executable=True)
    archive.file("agent.sh", (_HERE / "agent.sh").read_bytes())
    return archive.finish()


def _in_load_order(kit: Kit) -> list[Path]:
    """The files of `_MODULES` and all they depend on, each after its own dependencies."""
    dependencies: dict[str, list[str]] = {}
    path_of: dict[str, str] = {}
    for line in (kit.modules / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        # Nearest first, as modprobe would unload them.
        dependencies[path] = needed.split()
        path_of[Path(path).stem.replace("-", "_")] = path
    ordered: dict[str, None] = {}
    for name in _MODULES:
        for path in (*reversed(dependencies[path_of[name]]), path_of[name]):
            ordered.setdefault(path)
    return [kit.modules / path for path in ordered]
