"""A line of fstab and the units under a real systemd, which boots in namespaces of the guest.

systemd is process 1 of a PID namespace, with a control-group tree and a /run of its own, as in a container. Most of
what it would start is masked: without hardware acceleration, udev alone takes longer than all that is tested. So does
a start of Python, of which there are four; cli/test_mount_helper.py has more cases, and the unit that serves differs
from the others in its command only.
"""

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from tools.guest.machine import Completed, Guest
from zonefs_emu.fs.mkfs import format_device, parse_features
from zonefs_emu.model.presets import build_geometry
from zonefs_emu.persist.check import check_image
from zonefs_emu.testing.zoned_device import DeviceUnderTest

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(1800)]

CHECKOUT: Final = Path(__file__).parents[2]
#: Small: the images are copied through the share, which knows no holes.
GEOMETRY: Final = build_geometry(size=8 << 20, zone_size=1 << 20, conventional=((0, 2),))
ZONE_SECTORS: Final = 2048
MASKED: Final = (
    "systemd-udevd systemd-udev-trigger systemd-hwdb-update systemd-journal-catalog-update "
    "systemd-journal-flush systemd-update-utmp systemd-timesyncd systemd-resolved systemd-random-seed systemd-sysusers "
    "systemd-modules-load systemd-sysctl systemd-tmpfiles-setup systemd-tmpfiles-setup-dev systemd-binfmt ldconfig "
    "systemd-firstboot systemd-machine-id-commit systemd-tmpfiles-clean modprobe@configfs modprobe@dm_mod "
    "modprobe@loop apparmor networking keyboard-setup console-setup systemd-remount-fs kmod-static-nodes systemd-pstore"
)
MASKED_MOUNTS: Final = (
    "dev-hugepages dev-mqueue sys-kernel-debug sys-kernel-tracing sys-kernel-config sys-fs-fuse-connections"
)
BOOT: Final = """
unshare --mount --pid --cgroup --fork --mount-proc sh <<'END'
mount -t tmpfs run /run
mkdir -p /run/lock /images /mnt/boot /mnt/unit /etc/zonefs-emu /usr/local/bin
mount -t tmpfs images /images
mount -t cgroup2 cgroup /sys/fs/cgroup
program() {{
    cat >/usr/local/bin/$1 <<PROGRAM
#!/bin/sh
export PYTHONPATH={checkout} PYTHONDONTWRITEBYTECODE=1
exec {python} -c "from zonefs_emu.cli.main import $2; $2()" "\\$@"
PROGRAM
    chmod +x /usr/local/bin/$1
}}
program zonefs-emu main
program mount.fuse.zonefs-emu mount_helper
ln -sf /usr/local/bin/mount.fuse.zonefs-emu /sbin/
cp {checkout}/systemd/*.service /etc/systemd/system/
for unit in {masked}; do ln -sf /dev/null /etc/systemd/system/$unit.service; done
for unit in {masked_mounts}; do ln -sf /dev/null /etc/systemd/system/$unit.mount; done
# A start of Python takes long here, and longer beside other guests.
mkdir -p /etc/systemd/system.conf.d
printf '[Manager]\\nDefaultTimeoutStartSec=300\\n' >/etc/systemd/system.conf.d/guest.conf
targets="basic.target local-fs.target remote-fs.target"
printf "[Unit]\\nRequires=$targets\\nAfter=$targets\\n" >/etc/systemd/system/guest.target
options=nofail,_netdev,x-systemd.mount-timeout=300,errors=repair
echo "/images/boot.img /mnt/boot fuse.zonefs-emu $options 0 0" >/etc/fstab
cp --sparse=always {share}/boot.img {share}/unit.img {share}/disk.img /images/
printf 'IMAGE=/images/unit.img\\nDIRECTORY=/mnt/unit\\nMOUNT_OPTIONS=explicit-open\\n' >/etc/zonefs-emu/unit.conf
printf 'IMAGE=/images/disk.img\\nATTACH_OPTIONS=--via ublk\\n' >/etc/zonefs-emu/disk.conf
exec env -i container=guest PATH=$PATH LC_ALL=C.UTF-8 /usr/lib/systemd/systemd --system --unit=guest.target \
    --show-status=false --log-target=console --log-level=notice
END
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The guest, and the process in it that is systemd."""

    guest: Guest
    pid: str

    def sh(self, script: str, *, check: bool = True) -> Completed:
        """Run *script* where systemd is process 1."""
        return self.guest.run(
            f"nsenter --target {self.pid} --mount --pid --cgroup sh -e <<'END'\n{script}\nEND", timeout=240, check=check
        )

    def show(self, unit: str, name: str) -> str:
        """Return the property *name* of *unit*."""
        return self.sh(f"systemctl show --value --property={name} {unit}").stdout.strip()

    def kill_and_wait(self, unit: str) -> None:
        """Kill the main process of *unit*, and wait until systemd has started it again."""
        self.sh(
            f"""kill -9 $(systemctl show --value --property=MainPID {unit})
            until [ "$(systemctl show --value --property=NRestarts {unit})" = 1 ] && systemctl -q is-active {unit}
            do sleep 0.2; done"""
        )


@pytest.fixture
def machine(guest: Guest, tmp_path: Path) -> Iterator[Machine]:
    """systemd, booted as far as its units for mounts."""
    guest.load("ublk_drv")
    # Made here, where a start of Python does not take seconds.
    for name in ("boot", "unit", "disk"):
        with closing(DeviceUnderTest(tmp_path, GEOMETRY)) as device:
            format_device(device.port, parse_features("", uuid=uuid4(), label=""))
        device.image.replace(guest.share / f"{name}.img")
    words = {"masked": MASKED, "masked_mounts": MASKED_MOUNTS, "share": guest.share}
    boot = guest.start(BOOT.format(checkout=CHECKOUT, python=sys.executable, **words))
    try:
        find = "pgrep -o -f '^/usr/lib/systemd/systemd --system'"
        guest.wait_until(find, timeout=120)
        machine = Machine(guest=guest, pid=guest.run(find).stdout.strip())
        machine.sh("until systemctl -q is-active guest.target; do sleep 0.2; done")
        yield machine
    finally:
        boot.kill()
        boot.wait(check=False)


def test_fstab_and_units(machine: Machine) -> None:
    # The line of fstab is mounted at boot, which does not wait for it because of nofail.
    machine.sh("while [ $(systemctl is-active mnt-boot.mount) = activating ]; do sleep 0.2; done")
    assert "active (mounted)" in machine.sh("systemctl status -l --no-pager mnt-boot.mount", check=False).stdout
    assert machine.sh("findmnt -no FSTYPE,SOURCE /mnt/boot").stdout.split() == ["fuse.zonefs", "/images/boot.img"]
    machine.sh(
        """dd if=/dev/urandom of=/run/data bs=64k count=4 status=none
        dd if=/run/data of=/mnt/boot/seq/3 bs=64k oflag=direct conv=notrunc status=none
        systemctl stop mnt-boot.mount; [ ! -e /mnt/boot/seq ]"""
    )

    # A unit is ready when its mount is.
    unit = "zonefs-emu-mount@unit"
    machine.sh(f"systemctl start {unit}; [ -e /mnt/unit/seq/3 ]")
    assert machine.show(unit, "StatusText") == "/images/unit.img: zonefs at /mnt/unit"
    machine.sh(f"systemctl stop {unit}; [ ! -e /mnt/unit/seq ]")
    assert machine.show(unit, "Result") == "success"

    # A disk whose server is killed under load: the writer notices nothing.
    unit = "zonefs-emu-attach@disk"
    machine.sh(f"systemctl start {unit}")
    node = machine.show(unit, "StatusText").rpartition(" at ")[2]
    assert node.startswith("/dev/ublkb")
    writer = machine.guest.start(
        f"""for block in $(seq 0 63); do
        dd if=/dev/zero of={node} bs=4k count=1 seek=$(({4 * ZONE_SECTORS // 8} + block)) oflag=direct status=none
        done"""
    )
    machine.kill_and_wait(unit)
    writer.wait(timeout=240)
    assert "wptr 0x000200" in machine.sh(f"blkzone report -o {4 * ZONE_SECTORS} -c 1 {node}").stdout
    machine.sh(f"systemctl stop {unit}; [ ! -e {node} ]; cp --sparse=always /images/*.img {machine.guest.share}/")
    for name in ("boot", "unit", "disk"):
        assert check_image(machine.guest.share / f"{name}.img") == []
