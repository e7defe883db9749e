"""A newer QEMU than the kit's, for what only it has: vfio-user comes with 10.1, and the backports have 10.0.

It is taken from Debian's unstable suite, with all that it depends on, the C library included, and unpacked into a
directory of its own. It is started by its own dynamic linker, so that nothing of it meets the libraries of the host or
of the kit. Kernel, tools and first file system stay those of the kit.
"""

import dataclasses
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.guest.kit import Apt, Kit, KitError, Progress, cache_directory, locked, unpack_packages

_SUITE: Final = "sid"
_PACKAGES: Final = ("qemu-system-x86", "seabios")
#: A change of the recipe needs another name.
_NAME: Final = "newer-qemu-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewerKit(Kit):
    """A kit whose QEMU is the newer one."""

    qemu_root: Path

    @property
    def qemu_command(self) -> tuple[str, ...]:
        """See :class:`Kit`."""
        root = self.qemu_root
        firmware = [argument for name in ("qemu", "seabios") for argument in ("-L", str(root / "usr/share" / name))]
        linker = root / "usr/lib64/ld-linux-x86-64.so.2"
        libraries = root / "usr/lib/x86_64-linux-gnu"
        return (str(linker), "--library-path", str(libraries), str(root / "usr/bin/qemu-system-x86_64"), *firmware)

    @property
    def environment(self) -> dict[str, str]:
        """See :class:`Kit`. No LD_LIBRARY_PATH: programs that QEMU starts are the host's."""
        return os.environ | {"QEMU_MODULE_DIR": str(self.qemu_root / "usr/lib/x86_64-linux-gnu/qemu")}


def _root() -> Path:
    return cache_directory() / _NAME


def find_newer_qemu(kit: Kit | None) -> NewerKit | None:
    """Return *kit* with the QEMU in the cache, or None if either is missing; downloads nothing."""
    if kit is None or not _root().exists():
        return None
    return NewerKit(**{field.name: getattr(kit, field.name) for field in dataclasses.fields(Kit)}, qemu_root=_root())


def obtain_newer_qemu(progress: Progress, *, refresh: bool = False) -> Path:
    """Return where the QEMU is, downloaded first where it is missing or *refresh* asks for a new one.

    Raises:
        KitError: the mirror of this machine does not have the suite, or apt failed.
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        if _root().exists() and not refresh:
            return _root()
        with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as work:
            root = _build(Path(work), progress)
            if _root().exists():
                _root().rename(Path(work) / "old")
            root.rename(_root())
    return _root()


def _build(work: Path, progress: Progress) -> Path:
    try:
        return unpack_with_dependencies(work, _SUITE, _PACKAGES, lambda line: progress(f"newer QEMU: {line}"))
    except KitError as error:
        message = f"no QEMU newer than the guest kit's can be had here, so tests of vfio-user are skipped: {error}"
        raise KitError(message) from None


def unpack_with_dependencies(work: Path, suite: str, packages: Sequence[str], progress: Progress) -> Path:
    """Download *packages* of *suite* with all that they depend on, and unpack them below *work*; their root.

    Raises:
        KitError: the mirror of this machine does not have the suite, or apt failed.
    """
    apt = Apt(work, suite=suite)
    progress(f"reading the package lists of {suite}")
    apt.run("apt-get", "-qq", "update")
    # As on a machine where nothing is installed.
    simulated = apt.run("apt-get", "--simulate", "install", *packages)
    found = re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ", simulated, re.MULTILINE)
    progress(f"downloading {len(found)} packages")
    downloads = work / "packages"
    downloads.mkdir()
    apt.run("apt-get", "-qq", "download", *(f"{name}={version}" for name, version in found), cwd=downloads)
    progress("unpacking")
    root = work / "root"
    unpack_packages(downloads, root)
    return root
