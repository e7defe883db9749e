"""Files of the host that a guest opens again and again. They are copied into its memory when it boots.

To open a file of the host takes the guest three requests to QEMU's 9p server, about 2 ms of a processor where the guest
is emulated. The kernel's cache (``cache=loose``) keeps what was read and which names there are, but each open is asked
for. A program that prints its version opens twenty files, so it took four times as long.

Not among them are Python's modules: to copy them to each guest takes as long as a start of Python wins by it. An image
of the host's root would have all files near, but it would be gigabytes, and old whenever the host changes.
"""

import functools
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tools.guest.kit import Kit

#: What scripts for the guest use most, where busybox would not do. Not fio, which comes with 60 MB of libraries.
_PROGRAMS: Final = """
    awk basename bash blkzone cat chmod cmp cp cut dash date dd diff dirname dmesg env expr find findmnt grep head kill
    ln ls lsblk mkdir mkfifo mktemp mount mv nvme od pgrep readlink rm sed seq setsid sh sleep sort stat sync tail tee
    timeout touch tr true umount wc xargs
"""
_DIRECTORIES: Final = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
#: Read by the C library whenever a program starts or asks for the locale that the guest's agent sets.
_OF_EACH_PROGRAM: Final = (
    "/etc/ld.so.cache",
    "/etc/passwd",
    "/usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
    "/usr/share/locale/locale.alias",
)
#: To copy more takes longer than to open the file a few times, and the guest's memory is small.
_BYTES_MAX: Final = 5 << 20
_LOCALE: Final = Path("/usr/lib/locale/C.utf8")


@functools.cache
def near_files(kit: Kit) -> dict[str, Path]:
    """Return the files by their names in the guest, which have no link in them; what the host lacks is left out."""
    programs = [found for name in _PROGRAMS.split() if (found := _program(kit, name)) is not None]
    files = [*programs, *_libraries(kit, programs), *map(Path, _OF_EACH_PROGRAM), *_LOCALE.rglob("*")]
    return {_name_in_guest(kit, file): file for file in files if file.is_file() and file.stat().st_size <= _BYTES_MAX}


def _program(kit: Kit, name: str) -> Path | None:
    """Return where the guest finds the program *name*: what the kit has lies over what the host has."""
    of_kit = (kit.root / directory.removeprefix("/") / name for directory in _DIRECTORIES)
    of_host = shutil.which(name, path=os.pathsep.join(_DIRECTORIES))
    return next((path for path in of_kit if path.is_file()), Path(of_host) if of_host else None)


def _libraries(kit: Kit, programs: Iterable[Path]) -> set[Path]:
    """Return the paths of the shared libraries of *programs*, and of the one that loads them."""
    # Not the kit's own environment: that of a newer QEMU has no path to the kit's libraries.
    environment = os.environ | {"LD_LIBRARY_PATH": kit.library("")}
    # It fails for a program that is static or a script, after all that it says of the others.
    said = subprocess.run(["ldd", *programs], env=environment, capture_output=True, text=True, check=False).stdout
    return {Path(word) for word in said.split() if word.startswith("/") and not word.endswith(":")}


def _name_in_guest(kit: Kit, file: Path) -> str:
    directory, root = os.path.realpath(file.parent), os.path.realpath(kit.root)
    return f"{directory.removeprefix(root)}/{file.name}"
