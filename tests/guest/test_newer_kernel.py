"""A kernel that is newer than the kit's: the drive over vfio-user and over TCP, zonefs, and XFS on a zoned disk.

One guest for everything. What the kernel of the kit is asked in test_vfio_user.py and test_nvme_tcp.py is asked again.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.attaching import attaching
from tests.lacking_drive import ROWS
from tests.nvme_drives import (
    SHAPE,
    Drive,
    check_fio,
    check_limits,
    check_passthrough,
    check_zone_management,
    check_zonefs,
    drive_of,
    make_zonefs,
)
from tests.nvme_targets import (
    check_digests,
    check_discovery,
    check_keys,
    check_killed_under_reads,
    connect,
    disconnect,
    image_of,
    lacking_drives,
    serve,
    stop,
)
from tests.requires import requires
from tests.served import Served
from tools.guest.kit import Kit, find_kit
from tools.guest.machine import Guest
from tools.guest.newer_kernel import NEWER_KERNEL, NewerKernelKit, find_newer_kernel
from tools.guest.newer_qemu import NewerKit, find_newer_qemu

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(2700)]

#: XFS has its metadata in conventional zones, 300 MiB of them at least.
XFS_SHAPE: Final = "--size 1G --zone-size 32M --nr-conv 12 --block-size 4096"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The guest, its drive over vfio-user, and the disk that XFS is made on."""

    kit: NewerKernelKit
    guest: Guest
    drive: Drive
    scsi: Served


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    requires("newer-kernel")
    kit = find_newer_kernel(find_newer_qemu(find_kit()))
    assert kit is not None
    with ExitStack() as stack:
        served = Served(tmp_path_factory.mktemp("drive"), create=SHAPE, front_ends=["vfio"])
        served.verb("mkfs")
        stack.enter_context(served)
        scsi = stack.enter_context(Served(tmp_path_factory.mktemp("disk"), create=XFS_SHAPE))
        served.wait_until_ready()
        device = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(served.vfio_socket)}}
        guest = stack.enter_context(Guest(kit, qemu_arguments=["-device", json.dumps(device)]))
        guest.load("nvme")
        guest.wait_until("[ -b /dev/nvme0n1 ]")
        yield Machine(kit=kit, guest=guest, drive=Drive(node="/dev/nvme0n1", sh=guest.run, verb=served.verb), scsi=scsi)


def test_it_has_zoned_xfs(machine: Machine) -> None:
    release = machine.guest.run(["uname", "-r"]).stdout.strip()
    assert release == machine.kit.kernel_release
    assert tuple(map(int, release.split(".")[:2])) >= (6, 15)


def test_the_drive_over_vfio_user(machine: Machine) -> None:
    """First zonefs, which was made before the drive was served."""
    check_zonefs(machine.drive)
    check_drive(machine.drive)


def test_the_drive_over_tcp(machine: Machine) -> None:
    with attaching(machine.guest) as place:
        place.guest.run("ip link set lo up")
        place.create("n.img", SHAPE)
        check_drive(drive_of(place, "n.img", place.attach("n.img", "nvme-tcp")))
        place.sh("Z detach n.img; Z check n.img")


def test_a_target_over_tcp(machine: Machine) -> None:
    """What Linux 6.12 does with a target in test_nvme_tcp.py."""
    with attaching(machine.guest) as place, image_of(place, SHAPE):
        serve(place)
        check_discovery(place)
        node = connect(place)
        drive = drive_of(place, "n.img", node)
        make_zonefs(drive)
        check_zonefs(drive)
        check_killed_under_reads(place, node)
        disconnect(place, node)
        check_digests(place)
        stop(place)
        check_keys(place)


def test_what_it_insists_on_that_the_older_one_does_not(machine: Machine) -> None:
    """The other rows are in test_nvme_tcp.py."""
    lacked = [row for row in ROWS if row.fate_of_linux_7 is not None]
    assert [row.name for row in lacked] == ["CNS 08: NSTAT, ready"]
    with attaching(machine.guest) as place, image_of(place, SHAPE), lacking_drives(place) as fate_of:
        found = [fate_of(row)[0] for row in lacked]
    assert found == [row.fate_of_linux_7 for row in lacked]


def check_drive(drive: Drive) -> None:
    check_limits(drive)
    check_zone_management(drive)
    check_fio(drive)
    check_passthrough(drive)


def test_zoned_xfs(machine: Machine) -> None:
    """Made, written, mounted again and read back, all without a refusal; a removed file stays in its zones."""
    guest = machine.guest
    disk = guest.attach("scsi", machine.scsi.scsi_socket)
    mkfs = " ".join(machine.kit.newer_program("usr/sbin/mkfs.xfs"))
    guest.load("xfs")
    guest.run(
        f"""{mkfs} -q -r zoned=1 {disk.path}
        mount -t xfs {disk.path} /mnt
        dd if=/dev/urandom of=/run/data bs=1M count=24 status=none
        for copy in 0 1 2; do cp /run/data /mnt/$copy; done
        sync -f /mnt; rm /mnt/1; umount /mnt""",
        timeout=200,
    )
    assert sum(zone["written"] for zone in zones(machine.scsi)) >= 3 * (24 << 11)
    guest.run(
        f"""mount -t xfs {disk.path} /mnt
        for copy in 0 2; do cmp /run/data /mnt/$copy; done
        cp /run/data /mnt/3; sync -f /mnt; cmp /run/data /mnt/3
        umount /mnt; rm /run/data; ! dmesg | grep -E 'XFS.*(rror|orrupt)'""",
        timeout=200,
    )
    assert guest.run(f"blkzone report {disk.path}").stdout == machine.scsi.blkzone_report()
    assert machine.scsi.refusals() == []
    disk.detach()


def zones(served: Served) -> list[dict[str, Any]]:
    """Return the sequential zones."""
    found: list[dict[str, Any]] = json.loads(served.verb("report", "--json"))["zones"]
    return [zone for zone in found if zone["cond"] != "nw"]


def test_it_is_found_beside_the_newer_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kit = NewerKit(root=tmp_path / "kit", kernel_release="6.12", qemu_root=tmp_path / "qemu")
    assert find_newer_kernel(None) is None
    assert find_newer_kernel(kit) is None
    modules = NEWER_KERNEL.root / "kernel/usr/lib/modules/7.2.13"
    modules.mkdir(parents=True)
    (modules / "vmlinuz").touch()
    found = find_newer_kernel(kit)
    assert found is not None
    assert (found.kernel, found.modules) == (modules / "vmlinuz", modules)
    assert found.layers == (tmp_path / "kit", NEWER_KERNEL.root / "kernel")
    assert found.newer_program("usr/sbin/mkfs.xfs")[-1] == str(NEWER_KERNEL.root / "programs/usr/sbin/mkfs.xfs")
    assert isinstance(found, Kit)
