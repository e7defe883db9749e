"""The sources of other people's test suites: Debian's source packages, or checkouts that the user gives.

A checkout is used as it is. The user must have compiled it, as its own documents describe. A suite lists the files that
it expects, and is left out if they are missing.
"""

import re
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.guest.kit import Apt, KitError, Progress, cache_directory, locked


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A suite's files on this machine."""

    place: Path
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A source package of Debian."""

    name: str
    suite: str
    """The suite of Debian; the version there is that of the programs in the guest."""
    wanted: str
    """How the paths begin that are wanted of it."""

    def obtain(self, progress: Progress) -> Source:
        """Return the files, downloaded first where they are missing.

        Raises:
            KitError: the mirror of this machine does not have it.
        """
        place = cache_directory() / "suites" / f"{self.name}-{self.suite}"
        version = place / _VERSION
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place.parent / "lock"):
            if not version.exists():
                progress(f"conformance: downloading the source of {self.name} from {self.suite}")
                with tempfile.TemporaryDirectory(prefix="building-", dir=place.parent) as work:
                    archive = self._download(Path(work))
                    unpack(archive, self.wanted, Path(work) / "unpacked")
                    (Path(work) / "unpacked" / _VERSION).write_text(f"{self.name} {version_of(archive.name)}\n")
                    if place.exists():
                        place.rename(Path(work) / "old")
                    (Path(work) / "unpacked").rename(place)
        return Source(place=place, version=version.read_text().strip())

    def _download(self, work: Path) -> Path:
        apt = Apt(work, suite=self.suite)
        for source in (work / "sources").glob("*.sources"):
            source.write_text(source.read_text().replace("Types: deb\n", "Types: deb-src\n"))
        downloads = work / "downloads"
        downloads.mkdir()
        apt.run("apt-get", "-qq", "update")
        apt.run("apt-get", "-qq", "--download-only", "--tar-only", "source", self.name, cwd=downloads)
        archives = [path for path in downloads.iterdir() if ".orig.tar." in path.name and path.suffix != ".asc"]
        if not archives:
            message = f"the source of {self.name} in {self.suite} has no archive of its authors"
            raise KitError(message)
        return archives[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """A directory that the user gives, with the suite's own name below it."""

    name: str
    built: tuple[str, ...]
    """Files that are there once the user has compiled it."""

    def find(self, suites: Path | None) -> Source:
        """Return the checkout below *suites*.

        Raises:
            KitError: it is not there, or was not compiled.
        """
        if suites is None:
            message = f"{self.name} is no part of Debian: give a directory with a checkout of it (SUITES=DIR)"
            raise KitError(message)
        place = suites.resolve() / self.name
        for path in self.built:
            if not (place / path).exists():
                message = f"{place} has no {path}: it is no checkout of {self.name}, or was not compiled"
                raise KitError(message)
        return Source(place=place, version=f"{self.name} {_described(place)}")


_VERSION: Final = ".version"


def version_of(archive: str) -> str:
    """Return the version in the name of an archive of a source package."""
    found = re.match(r"[^_]+_(.+)\.orig\.tar\.", archive)
    return found[1] if found else archive


def _described(place: Path) -> str:
    """Return the commit that is checked out there."""
    command = ["git", "-C", str(place), "describe", "--always", "--tags", "--exclude=*-rc*"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "of an unknown commit"


def unpack(archive: Path, wanted: str, place: Path) -> None:
    """Unpack the files of *archive* whose path, without the first directory, begins with *wanted*, into a new *place*.

    Raises:
        KitError: there is no such file.
    """
    place.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, path = member.name.partition("/")
            if member.isfile() and path.startswith(wanted):
                member.name = path
                tar.extract(member, place, filter="data")
    if not any(place.iterdir()):
        message = f"{archive.name} has nothing that begins with {wanted}"
        raise KitError(message)
