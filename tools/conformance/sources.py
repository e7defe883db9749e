"""Other people's test suites, from Debian's source packages."""

import tarfile
import tempfile
from pathlib import Path
from typing import Final

from tools.guest.kit import Apt, KitError, Progress, cache_directory, locked

#: Of a package: its version, its suite, and what of it is wanted. The versions are those of the programs in the guest.
PACKAGES: Final = {
    "fio": ("bookworm", "t/zbd/"),
    "qemu": ("bookworm-backports", "tests/qemu-iotests/tests/zoned"),
}


def obtain(package: str, progress: Progress) -> Path:
    """Return the directory with what is wanted of the source of *package*, downloaded first where it is missing.

    Raises:
        KitError: the mirror of this machine does not have it.
    """
    suite, wanted = PACKAGES[package]
    place = cache_directory() / "suites" / f"{package}-{suite}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.parent / "lock"):
        if not place.exists():
            progress(f"conformance: downloading the source of {package} from {suite}")
            with tempfile.TemporaryDirectory(prefix="building-", dir=place.parent) as work:
                archive = _download(package, suite, Path(work))
                unpack(archive, wanted, Path(work) / "unpacked")
                (Path(work) / "unpacked").rename(place)
    return place


def _download(package: str, suite: str, work: Path) -> Path:
    apt = Apt(work, suite=suite)
    for source in (work / "sources").glob("*.sources"):
        source.write_text(source.read_text().replace("Types: deb\n", "Types: deb-src\n"))
    downloads = work / "downloads"
    downloads.mkdir()
    apt.run("apt-get", "-qq", "update")
    apt.run("apt-get", "-qq", "--download-only", "--tar-only", "source", package, cwd=downloads)
    archives = [path for path in downloads.iterdir() if ".orig.tar." in path.name and path.suffix != ".asc"]
    if not archives:
        message = f"the source of {package} in {suite} has no archive of its authors"
        raise KitError(message)
    return archives[0]


def unpack(archive: Path, wanted: str, place: Path) -> None:
    """Unpack the files of *archive* whose path, without the first directory, begins with *wanted*."""
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
