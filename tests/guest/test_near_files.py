"""What is copied into the guest is what the guest would have found on the host."""

import hashlib
import os
from pathlib import Path

import pytest

from tests.requires import requires
from tools.guest.kit import Kit, find_kit
from tools.guest.machine import Guest
from tools.guest.near_files import near_files

pytestmark = pytest.mark.qemu


@pytest.fixture
def kit() -> Kit:
    requires("qemu")
    found = find_kit()
    assert found is not None
    return found


def test_programs_come_with_what_they_open(kit: Kit) -> None:
    files = near_files(kit)
    names = {os.path.basename(name) for name in files}  # noqa: PTH119  (names in the guest)
    assert {"dd", "blkzone", "nvme", "libc.so.6", "libblkid.so.1", "ld-linux-x86-64.so.2", "LC_CTYPE"} <= names
    # What the kit has, the guest finds at its place without the kit's directory.
    assert files["/usr/sbin/nvme"] == kit.root / "usr/sbin/nvme"
    assert [name for name in files if not name.startswith(("/usr/", "/etc/"))] == []
    # The guest has half a gigabyte for all that it writes.
    assert sum(file.stat().st_size for file in files.values()) < 40_000_000


def test_the_guest_has_them_and_their_directories_as_the_host_has(guest: Guest, kit: Kit) -> None:
    files = near_files(kit)
    directories = sorted(
        {str(parent) for name in files for parent in Path(name).parents} & {"/etc", "/usr", "/usr/bin"}
    )
    said = guest.run(f"sha256sum {' '.join(files)}; stat -c '%a %u %g %n' {' '.join(directories)}").stdout
    expected = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}" for name, file in files.items()]
    for directory in directories:
        status = os.stat(directory)  # noqa: PTH116
        expected.append(f"{status.st_mode & 0o7777:o} {status.st_uid} {status.st_gid} {directory}")
    assert said.splitlines() == expected
