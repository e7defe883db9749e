"""A newer kernel than the kit's, and the programs for what only it has: XFS on zoned disks comes with Linux 6.15.

It boots in the newer QEMU. Its modules lie over the kit's tools, which stay.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.guest.kit import KitError, find_kit, prepare_modules
from tools.guest.newer_qemu import NewerKit
from tools.guest.newer_suite import NewerPart, Suite, linked_program

_METAPACKAGE: Final = "linux-image-amd64"
#: The kernel and its modules, which are several packages; the rest of what they need installs them.
_KERNEL_PACKAGES: Final = re.compile(r"linux-(binary|image|modules)-\d")
_PROGRAMS: Final = ("xfsprogs",)
_KERNEL: Final = "kernel"
_PROGRAM_ROOT: Final = "programs"


def _build(suite: Suite) -> Path:
    kit = find_kit()
    if kit is None:
        message = "the guest kit is not there, whose depmod is needed"
        raise KitError(message)
    root = suite.work / "root"
    root.mkdir()
    found = suite.dependencies(_METAPACKAGE)
    kernel = {name: version for name, version in found.items() if _KERNEL_PACKAGES.match(name)}
    suite.unpack(kernel, root / _KERNEL)
    suite.unpack(suite.dependencies(*_PROGRAMS), root / _PROGRAM_ROOT)
    prepare_modules(root / _KERNEL, _release(root), kmod=Path(kit.program("kmod")))
    return root


def _release(root: Path) -> str:
    """Return the release of the kernel below *root*."""
    images = sorted((root / _KERNEL / "usr/lib/modules").glob("*/vmlinuz"))
    if not images:
        message = f"{_METAPACKAGE} brings no kernel"
        raise KitError(message)
    return images[-1].parent.name


NEWER_KERNEL: Final = NewerPart(
    name="newer-kernel-1", what="newer kernel", lacking="tests with it are skipped", build=_build
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewerKernelKit(NewerKit):
    """A kit whose QEMU and kernel are the newer ones."""

    newer_root: Path

    @property
    def kernel(self) -> Path:
        """See :class:`tools.guest.kit.Kit`."""
        return self.modules / "vmlinuz"

    @property
    def modules(self) -> Path:
        """See :class:`tools.guest.kit.Kit`."""
        return self.newer_root / _KERNEL / "usr/lib/modules" / self.kernel_release

    @property
    def layers(self) -> tuple[Path, ...]:
        """See :class:`tools.guest.kit.Kit`."""
        return (self.root, self.newer_root / _KERNEL)

    def newer_program(self, path: str) -> tuple[str, ...]:
        """Return the words that start the program at *path* of the newer suite, such as usr/sbin/mkfs.xfs."""
        return linked_program(self.newer_root / _PROGRAM_ROOT, path)


def find_newer_kernel(kit: NewerKit | None) -> NewerKernelKit | None:
    """Return *kit* with the kernel in the cache, or None if either is missing; downloads nothing."""
    root = NEWER_KERNEL.root
    if kit is None or not root.exists():
        return None
    fields = {field.name: getattr(kit, field.name) for field in dataclasses.fields(NewerKit)}
    return NewerKernelKit(**fields | {"kernel_release": _release(root)}, newer_root=root)
