"""Obtain what a test guest is made of: a kernel, a QEMU, and tools that the host may not have.

Everything comes from the machine's own Debian mirror, as packages that are downloaded and unpacked into one directory,
the *kit*; nothing is installed and no privilege is needed. The suite is bookworm with its backports: Linux 6.12 has
every driver the tests want, and QEMU 10 is the first there whose vhost-user-scsi survives a restart of the back-end.

A kit is built aside and renamed into place, so one that exists is complete.
"""

import contextlib
import fcntl
import functools
import hashlib
import lzma
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

Progress = Callable[[str], None]

_CODENAME: Final = "bookworm"
_BACKPORTS: Final = "bookworm-backports"
_NEXT: Final = "trixie"
# The metapackage that depends on the newest kernel of the suite. Its full flavour: "cloud" lacks 9p and f2fs.
_KERNEL_METAPACKAGE: Final = "linux-image-amd64"
_KERNEL_PATTERN: Final = re.compile(r"linux-image-\d[\w.+-]*-amd64")
_PACKAGES: Final = (
    f"qemu-system-x86/{_BACKPORTS}",
    f"qemu-system-common/{_BACKPORTS}",
    f"qemu-system-data/{_BACKPORTS}",
    f"qemu-utils/{_BACKPORTS}",  # qemu-storage-daemon: a vhost-user back-end to compare with
    f"seabios/{_BACKPORTS}",
    "btrfs-progs",
    "busybox-static",  # the guest's first programs
    "f2fs-tools",
    "fio",
    "iproute2",  # vdpa: attaches a VDUSE device
    "kmod",
    "nvme-cli",
    "sg3-utils",
)
# Of the next release, without what they depend on: a C library as old as bookworm's is enough.
_NEXT_PACKAGES: Final = ("libblkio1",)  # a vhost-user-blk front-end that is not QEMU's and not ours
# What the tests have a use for; the rest, four fifths, is drivers of hardware that the guest does not have.
_MODULES: Final = (
    "arch/x86/crypto/*",
    "arch/x86/kvm/*",
    "block/**/*",
    "crypto/**/*",
    *(f"drivers/{name}/**/*" for name in ("block", "dax", "md", "nvme", "target", "uio", "vdpa", "vhost", "virtio")),
    "drivers/crypto/ccp/*",  # kvm_amd does not load without
    "drivers/scsi/*",  # the directories below it are host adapters
    "fs/**/*",
    "lib/**/*",
    "net/9p/*",
    "virt/**/*",
)
_NEXT_SOURCE: Final = "zonefs-emu-next.sources"
# One directory behind both names, as on every merged-/usr host: a real /lib would hide the host's in the overlay.
_MERGED: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")


class KitError(Exception):
    """The kit cannot be had here; the message is one sentence that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """An unpacked set of packages."""

    root: Path
    kernel_release: str

    @property
    def kernel(self) -> Path:
        """The bootable kernel."""
        return self.root / "boot" / f"vmlinuz-{self.kernel_release}"

    @property
    def modules(self) -> Path:
        """Directory of the kernel's modules, with modules.dep."""
        return self.root / "usr/lib/modules" / self.kernel_release

    @property
    def layers(self) -> tuple[Path, ...]:
        """Directories whose files lie over the host's in the guest, the topmost last."""
        return (self.root,)

    @property
    def busybox(self) -> Path:
        """A statically linked busybox."""
        return self.root / "usr/bin/busybox"

    @property
    def qemu_command(self) -> tuple[str, ...]:
        """How to start QEMU: it does not find its firmware by itself when it is not installed."""
        firmware = (self.root / "usr/share" / name for name in ("qemu", "seabios"))
        arguments = [argument for directory in firmware for argument in ("-L", str(directory))]
        return (self.program("qemu-system-x86_64"), *arguments)

    def program(self, name: str) -> str:
        """Path of a program of the kit, to be run on the host in `environment`."""
        return str(self.root / "usr/bin" / name)

    def library(self, name: str) -> str:
        """Path of a shared library of the kit."""
        return str(self._libraries / name)

    @property
    def _libraries(self) -> Path:
        return self.root / "usr/lib/x86_64-linux-gnu"

    @property
    def environment(self) -> dict[str, str]:
        """The environment to start programs of the kit in: libraries that the host lacks are in the kit."""
        return os.environ | {
            "LD_LIBRARY_PATH": str(self._libraries),
            "QEMU_MODULE_DIR": str(self._libraries / "qemu"),
        }


def cache_directory() -> Path:
    """The directory of kits: below $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "zonefs-emu" / "guest"


def find_kit() -> Kit | None:
    """The kit in the cache, or None; quick, and downloads nothing."""
    root = _kit_root()
    kernels = sorted((root / "boot").glob("vmlinuz-*"))
    if not kernels:
        return None
    return Kit(root=root, kernel_release=kernels[-1].name.removeprefix("vmlinuz-"))


def obtain_kit(progress: Progress, *, refresh: bool = False) -> Kit:
    """The kit in the cache, downloaded first where it is missing or *refresh* asks for a new one.

    Raises:
        KitError: this machine is not Debian bookworm on x86-64, or apt failed.
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        kit = find_kit()
        if kit is not None and not refresh:
            return kit
        _check_machine()
        with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as work:
            root = _build(Path(work), progress)
            if kit is not None:
                kit.root.rename(Path(work) / "old")
            root.rename(_kit_root())
    kit = find_kit()
    if kit is None:
        message = f"no kernel in {_kit_root()} although one was unpacked there"
        raise AssertionError(message)
    return kit


@functools.cache
def _kit_root() -> Path:
    # Named after the recipe: a change of this file makes another kit, and two checkouts do not quarrel over one.
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    return cache_directory() / f"kit-{recipe}"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the cache."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_machine() -> None:
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        system = {}
    if system.get("VERSION_CODENAME") != _CODENAME or platform.machine() != "x86_64" or shutil.which("apt-get") is None:
        name = system.get("PRETTY_NAME", platform.system())
        message = (
            f"the test guest needs Linux 6.12 and QEMU 10 from Debian 12 on x86-64 ({_BACKPORTS}); "
            f"{name} on {platform.machine()} does not offer them"
        )
        raise KitError(message)


def _build(work: Path, progress: Progress) -> Path:
    """Download and unpack everything below *work*; the root of the result."""
    apt = Apt(work)
    progress("guest kit: reading the package lists")
    apt.run("apt-get", "-qq", "update")
    kernel = apt.newest_kernel()
    packages = [f"{kernel}/{_BACKPORTS}", *_PACKAGES]
    packages += sorted(apt.missing_dependencies(packages))
    progress(f"guest kit: downloading {kernel}, QEMU and {len(packages) - 2} other packages")
    downloads = work / "packages"
    downloads.mkdir()
    apt.run("apt-get", "-qq", "download", *packages, *(f"{name}/{_NEXT}" for name in _NEXT_PACKAGES), cwd=downloads)

    progress("guest kit: unpacking")
    root = work / "root"
    unpack_packages(downloads, root)

    progress("guest kit: preparing the kernel's modules")
    prepare_modules(root, kernel.removeprefix("linux-image-"), kmod=root / "usr/bin/kmod")
    return root


def prepare_modules(root: Path, release: str, *, kmod: Path) -> None:
    """Keep the modules below *root* that a guest has a use for, and make modules.dep with the program *kmod*."""
    _prune_modules(root / "usr/lib/modules" / release / "kernel")
    # kmod is one program that goes by the name it is called; the package's links are absolute and lead out of the kit.
    _run(["depmod", "--basedir", str(root), release], executable=kmod)


def unpack_packages(downloads: Path, root: Path) -> None:
    """Unpack all packages in *downloads* into the new directory *root*."""
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in sorted(downloads.iterdir()):
        _unpack(package, root)
    for name in _MERGED:
        with contextlib.suppress(OSError):  # not empty: in use
            (root / "usr" / name).rmdir()
            (root / name).unlink()


def _unpack(package: Path, root: Path) -> None:
    # Not dpkg-deb --extract: it replaces the link /lib by a directory.
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as archive:
        _run(["tar", "--extract", "--no-same-owner", "--keep-directory-symlink"], cwd=root, stdin=archive.stdout)
    if archive.returncode != 0:
        message = f"{package.name} is damaged: dpkg-deb cannot read it"
        raise KitError(message)


def _prune_modules(directory: Path) -> None:
    """Keep the modules that `_MODULES` names, decompressed: busybox wants them so, and they load faster."""
    wanted = {module for pattern in _MODULES for module in directory.glob(pattern)}
    for module in directory.rglob("*.ko.xz"):
        if module in wanted:
            module.with_suffix("").write_bytes(lzma.decompress(module.read_bytes()))
        module.unlink()


class Apt:
    """apt with lists, cache and sources of its own; only the list of installed packages is the machine's.

    With *suite*, that suite is the only source, and no package counts as installed.
    """

    def __init__(self, work: Path, *, suite: str = "") -> None:
        lists, cache, sources = (work / name for name in ("lists", "cache", "sources"))
        for directory in (lists / "partial", cache / "archives" / "partial", sources):
            directory.mkdir(parents=True)
        preferences = work / "preferences"
        self._options = [
            "-oDir::Etc::SourceList=/dev/null",
            f"-oDir::Etc::SourceParts={sources}",
            f"-oDir::Etc::Preferences={preferences}",
            f"-oDir::State::Lists={lists}",
            f"-oDir::Cache={cache}",
            # The user that apt downloads as cannot enter a private cache directory.
            "-oAPT::Sandbox::User=",
            "-oAPT::Install-Recommends=false",
            f"-oAPT::Architectures={platform.machine().replace('x86_64', 'amd64')}",
        ]
        if suite:
            _write_sources(work / "of-the-machine", suite)
            (work / "of-the-machine" / _NEXT_SOURCE).rename(sources / _NEXT_SOURCE)
            status = work / "status"
            status.touch()
            self._options.append(f"-oDir::State::status={status}")
            return
        _write_sources(sources, _NEXT)
        # Never by itself, only where it is named.
        preferences.write_text(f"Package: *\nPin: release n={_NEXT}\nPin-Priority: 1\n")

    def run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        """Run an apt program to its end; its standard output."""
        return _run([program, *self._options, *arguments], cwd=cwd)

    def newest_kernel(self) -> str:
        """Name of the package of the newest kernel in the backports."""
        text = self.run(
            "apt-cache", f"-oAPT::Default-Release={_BACKPORTS}", "show", "--no-all-versions", _KERNEL_METAPACKAGE
        )
        depends = next((line for line in text.splitlines() if line.startswith("Depends:")), "")
        match = _KERNEL_PATTERN.search(depends)
        if match is None:
            message = f"{_KERNEL_METAPACKAGE} of {_BACKPORTS} names no kernel: {depends!r}"
            raise KitError(message)
        return match[0]

    def missing_dependencies(self, packages: list[str]) -> set[str]:
        """Return the packages that *packages* need in addition on this machine, as "name=version"."""
        # A kernel would pull in the tools that build an initramfs: we bring our own.
        wanted = [name for name in packages if not name.startswith("linux-image-")]
        text = self.run("apt-get", "--simulate", "install", *wanted)
        # Inst NAME [INSTALLED] (VERSION ARCHIVE [ARCHITECTURE])
        found = re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ", text, re.MULTILINE)
        named = {name.split("/")[0] for name in packages}
        return {f"{name}={version}" for name, version in found if name not in named}


def _write_sources(directory: Path, next_suite: str) -> None:
    """The machine's own apt sources, and beside them the backports and *next_suite* from the same place."""
    directory.mkdir(exist_ok=True)
    etc = Path("/etc/apt")
    candidates = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    stanza: str | None = None  # of the backports
    for source in candidates:
        if source.suffix not in {".list", ".sources"} or not source.is_file():
            continue
        text = source.read_text()
        (directory / source.name).write_text(text)
        stanza = stanza or (_from_deb822(text) if source.suffix == ".sources" else _from_lines(text))
    if stanza is None:
        message = f"no apt source of this machine offers {_CODENAME}, so there is no telling where {_BACKPORTS} is"
        raise KitError(message)
    (directory / "zonefs-emu-backports.sources").write_text(stanza)
    (directory / _NEXT_SOURCE).write_text(stanza.replace(f"Suites: {_BACKPORTS}", f"Suites: {next_suite}"))


def _from_deb822(text: str) -> str | None:
    """A source of the backports made from the first stanza of *text* that is about the release itself."""
    without_comments = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    for stanza in re.split(r"\n\s*\n", without_comments):
        suites = re.search(r"^Suites:(.*)$", stanza, re.MULTILINE | re.IGNORECASE)
        if suites is not None and _CODENAME in suites[1].split():
            return stanza.replace(suites[0], f"Suites: {_BACKPORTS}").strip() + "\n"
    return None


def _from_lines(text: str) -> str | None:
    """The same for the one-line format: deb [options] URI suite component..."""
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)", line)
        if match is None or match[3] != _CODENAME:
            continue
        signed_by = re.search(r"signed-by=(\S+)", match[1] or "")
        fields = {"Types": "deb", "URIs": match[2], "Suites": _BACKPORTS, "Components": match[4]}
        if signed_by is not None:
            fields["Signed-By"] = signed_by[1]
        return "".join(f"{name}: {value}\n" for name, value in fields.items())
    return None


def _run(
    command: list[str], *, executable: Path | None = None, cwd: Path | None = None, stdin: IO[bytes] | None = None
) -> str:
    """Run *command* to its end; its standard output.

    Raises:
        KitError: it cannot be started or fails, with the last line it said.
    """
    try:
        done = subprocess.run(
            command, executable=executable, cwd=cwd, stdin=stdin, capture_output=True, text=True, check=False
        )
    except OSError as error:
        message = f"cannot run {command[0]}: {error.strerror}"
        raise KitError(message) from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        message = f"{command[0]} failed: {said}"
        raise KitError(message)
    return done.stdout
