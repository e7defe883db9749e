"""The package that tools/deb builds, installed by dpkg into the guest and used there with Debian's own Python."""

import os
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from tests.requires import requires
from tools import share
from tools.guest.machine import Guest
from zonefs_emu import __version__
from zonefs_emu.fs.mkfs import format_device, parse_features
from zonefs_emu.model.presets import build_geometry
from zonefs_emu.testing.zoned_device import DeviceUnderTest

ROOT: Final = Path(__file__).parents[2]
GEOMETRY: Final = build_geometry(size=8 << 20, zone_size=1 << 20, conventional=((0, 2),))
pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(2700)]


def build(directory: Path) -> Path:
    """Build the package into *directory*, without this checkout or its environment on the way."""
    path = os.pathsep.join(("/usr/sbin", "/usr/bin", "/sbin", "/bin"))
    subprocess.run([ROOT / "tools/deb", directory], check=True, env=os.environ | {"PATH": path})
    (package,) = directory.glob("*.deb")
    return package


def test_the_package_is_installed_used_and_removed(guest: Guest, tmp_path: Path) -> None:
    requires("dh", "git", "/usr/bin/python3")
    lacking = subprocess.run(
        ["dpkg-checkbuilddeps", ROOT / "debian/control"], capture_output=True, text=True, check=False
    )
    if lacking.returncode != 0:
        pytest.skip(lacking.stderr.strip())
    package = build(tmp_path)
    assert package.name.startswith(f"zonefs-emu_{__version__}_")
    listed = subprocess.run(["dpkg-deb", "--contents", package], check=True, capture_output=True, text=True).stdout
    units = [f"lib/systemd/system/{unit.name}" for unit in (ROOT / "systemd").iterdir()]
    pages = [f"usr/{path}" for path, _ in share.files() if path.startswith("share/man")]
    assert [path for path in units if f" ./{path}\n" not in listed] == []
    assert [path for path in pages if f" ./{path}.gz\n" not in listed] == []

    # Made here, where a start of Python does not take seconds.
    with closing(DeviceUnderTest(guest.share, GEOMETRY)) as device:
        format_device(device.port, parse_features("", uuid=uuid4(), label=""))
    (guest.share / package.name).write_bytes(package.read_bytes())
    # Triggers are other packages' work, as the index of manual pages, which takes minutes here.
    dpkg = "dpkg --no-triggers --force-unsafe-io"
    done = guest.run(
        f"""{dpkg} --install {guest.share}/{package.name} >&2
        trap '{dpkg} --purge zonefs-emu >&2; [ ! -e /usr/lib/zonefs-emu ]' EXIT
        zonefs-emu --version
        mkdir -p /run/deb/mnt; cd /run/deb
        cp --sparse=always {device.image} zones.img
        mount -t fuse.zonefs-emu /run/deb/zones.img mnt
        ls mnt; findmnt -no FSTYPE mnt
        umount mnt; rm -rf /run/deb""",
        timeout=600,
    )
    version, *listing = done.stdout.splitlines()
    assert version.startswith(f"zonefs-emu {__version__} (CPython 3.")
    assert "ring walker compiled" in version
    assert listing == ["cnv", "seq", "fuse.zonefs"]
