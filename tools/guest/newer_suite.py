"""Parts of a guest that are newer than the kit's, from Debian's unstable suite: each in a directory of its own.

They come with all that they depend on, the C library included, and are started by their own dynamic linker, so that
nothing of them meets the libraries of the host or of the kit.
"""

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.guest.kit import Apt, KitError, Progress, cache_directory, locked, unpack_packages

SUITE: Final = "sid"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewerPart:
    """Something that is taken from the suite."""

    name: str
    """The name of its directory in the cache. A change of the recipe needs another name."""
    what: str
    """A description for messages."""
    lacking: str
    """The tests that cannot run without it, in words."""
    build: Callable[["Suite"], Path]
    """Downloads and unpacks it; the directory that is to be kept."""

    @property
    def root(self) -> Path:
        """Where it is, if it is there."""
        return cache_directory() / self.name

    def obtain(self, progress: Progress, *, refresh: bool = False) -> Path:
        """Return where it is, downloaded first where it is missing or *refresh* asks for a new one.

        Raises:
            KitError: the mirror of this machine does not have the suite, or apt failed.
        """
        cache = cache_directory()
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / "lock"):
            if self.root.exists() and not refresh:
                return self.root
            with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as work:
                try:
                    root = self.build(Suite(Path(work), SUITE, lambda line: progress(f"{self.what}: {line}")))
                except KitError as error:
                    message = f"no {self.what} can be had here, so {self.lacking}: {error}"
                    raise KitError(message) from None
                if self.root.exists():
                    self.root.rename(Path(work) / "old")
                root.rename(self.root)
        return self.root


class Suite:
    """A suite, as something is taken from it."""

    def __init__(self, work: Path, name: str, progress: Progress) -> None:
        """Read the package lists of the suite *name*; all files lie below *work*.

        Raises:
            KitError: the mirror of this machine does not have it.
        """
        self.work = work
        self._progress = progress
        self._apt = Apt(work, suite=name)
        progress(f"reading the package lists of {name}")
        self._apt.run("apt-get", "-qq", "update")

    def dependencies(self, *packages: str) -> dict[str, str]:
        """Return the versions of *packages* and of all that they need, by name: as if nothing were installed.

        Raises:
            KitError: the suite does not have one of them.
        """
        simulated = self._apt.run("apt-get", "--simulate", "install", *packages)
        return dict(re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ", simulated, re.MULTILINE))

    def unpack(self, versions: dict[str, str], root: Path) -> None:
        """Download the packages *versions* and unpack them into the new directory *root*.

        Raises:
            KitError: apt failed, or a package is damaged.
        """
        self._progress(f"downloading {len(versions)} packages")
        downloads = self.work / f"packages-of-{root.name}"
        downloads.mkdir()
        named = [f"{name}={version}" for name, version in versions.items()]
        self._apt.run("apt-get", "-qq", "download", *named, cwd=downloads)
        self._progress("unpacking")
        unpack_packages(downloads, root)


def unpack_with_dependencies(work: Path, suite: str, packages: Sequence[str], progress: Progress) -> Path:
    """Download *packages* of *suite* with all that they depend on, and unpack them below *work*; their root.

    Raises:
        KitError: the mirror of this machine does not have the suite, or apt failed.
    """
    taken = Suite(work, suite, progress)
    root = work / "root"
    taken.unpack(taken.dependencies(*packages), root)
    return root


def linked_program(root: Path, path: str) -> tuple[str, ...]:
    """Return the words that start the program at *path* of *root*, with the linker and the libraries of *root*."""
    linker, libraries = root / "usr/lib64/ld-linux-x86-64.so.2", root / "usr/lib/x86_64-linux-gnu"
    return (str(linker), "--library-path", str(libraries), str(root / path))
