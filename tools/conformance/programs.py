"""Programs that suites need and the guest's kit lacks, unpacked from Debian's packages into the cache.

They are started by the dynamic linker that comes with them, so that they meet no library of the host or of the kit:
what the guest finds first in its PATH are scripts that do so.
"""

import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tools.guest.kit import Progress, cache_directory, locked
from tools.guest.newer_suite import unpack_with_dependencies


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Programs of one suite of Debian."""

    suite: str
    packages: tuple[str, ...]
    commands: Mapping[str, str]
    """By name, where each is in the packages."""

    def obtain(self, progress: Progress) -> Path:
        """Return the directory for the guest's PATH, its programs downloaded first where they are missing.

        Raises:
            KitError: the mirror of this machine does not have the suite, or apt failed.
        """
        # A change of the packages needs another name.
        place = cache_directory() / "programs" / f"{self.suite}-{'-'.join(self.packages)}"
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place.parent / "lock"):
            if not place.exists():
                with tempfile.TemporaryDirectory(prefix="building-", dir=place.parent) as work:
                    root = unpack_with_dependencies(
                        Path(work), self.suite, self.packages, lambda line: progress(f"conformance: {line}")
                    )
                    (root / _SCRIPTS).mkdir()
                    for name, path in self.commands.items():
                        (root / _SCRIPTS / name).write_text(launcher(place, path))
                        (root / _SCRIPTS / name).chmod(0o755)
                    root.rename(place)
        return place / _SCRIPTS


_SCRIPTS: Final = "scripts"
#: A newer fio than the guest's, which ends with a double free in one of its tests.
FIO: Final = Programs(suite="forky", packages=("fio",), commands=MappingProxyType({"fio": "usr/bin/fio"}))
TOOLS: Final = Programs(
    suite="trixie",
    packages=("gawk", "lsscsi", "zbd-utils"),
    commands=MappingProxyType({name: f"usr/bin/{name}" for name in ("gawk", "lsscsi", "zbd")}),
)


def launcher(root: Path, path: str) -> str:
    """Return a script that starts the program *path* of the packages below *root*."""
    linker, libraries = root / "usr/lib64/ld-linux-x86-64.so.2", root / "usr/lib/x86_64-linux-gnu"
    # Ceph's libraries, which Debian's fio has, name the host's directory for the rest of them.
    command = shlex.join([str(linker), "--library-path", f"{libraries}:{libraries}/ceph", str(root / path)])
    return f'#!/bin/sh\nexec {command} "$@"\n'
