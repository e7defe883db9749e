"""A newer QEMU than the kit's, for what only it has: vfio-user comes with 10.1, and the backports have 10.0.

Kernel, tools and first file system stay those of the kit.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.guest.kit import Kit
from tools.guest.newer_suite import NewerPart, Suite, linked_program

_PACKAGES: Final = ("qemu-system-x86", "seabios")


def _build(suite: Suite) -> Path:
    root = suite.work / "root"
    suite.unpack(suite.dependencies(*_PACKAGES), root)
    return root


NEWER_QEMU: Final = NewerPart(
    name="newer-qemu-1", what="newer QEMU", lacking="tests of vfio-user are skipped", build=_build
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewerKit(Kit):
    """A kit whose QEMU is the newer one."""

    qemu_root: Path

    @property
    def qemu_command(self) -> tuple[str, ...]:
        """See :class:`Kit`."""
        root = self.qemu_root
        firmware = [argument for name in ("qemu", "seabios") for argument in ("-L", str(root / "usr/share" / name))]
        return (*linked_program(root, "usr/bin/qemu-system-x86_64"), *firmware)

    @property
    def environment(self) -> dict[str, str]:
        """See :class:`Kit`. No LD_LIBRARY_PATH: programs that QEMU starts are the host's."""
        return os.environ | {"QEMU_MODULE_DIR": str(self.qemu_root / "usr/lib/x86_64-linux-gnu/qemu")}


def find_newer_qemu(kit: Kit | None) -> NewerKit | None:
    """Return *kit* with the QEMU in the cache, or None if either is missing; downloads nothing."""
    root = NEWER_QEMU.root
    if kit is None or not root.exists():
        return None
    return NewerKit(**{field.name: getattr(kit, field.name) for field in dataclasses.fields(Kit)}, qemu_root=root)
