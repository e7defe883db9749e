"""The drive as a PCI device of a guest of a stock QEMU, with the kernel's own NVMe driver and nvme-cli."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.nvme_drives import (
    SHAPE,
    Drive,
    check_limits,
    check_passthrough,
    check_zone_management,
    check_zonefs,
    make_zonefs,
)
from tests.requires import requires
from tests.served import Served
from tools.guest.kit import find_kit
from tools.guest.machine import Guest
from tools.guest.newer_qemu import find_newer_qemu

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(1800)]


class Machine:
    """A guest with two drives, each served by a daemon of its own."""

    def __init__(self, guest: Guest, drives: dict[str, Served]) -> None:
        self.guest = guest
        #: By node.
        self.drives = drives

    def first(self) -> Drive:
        """One of the drives."""
        node, served = next(iter(self.drives.items()))
        return Drive(node=node, sh=self.guest.run, verb=served.verb)

    def assert_reports_agree(self) -> None:
        for node, served in self.drives.items():
            assert self.guest.run(["blkzone", "report", node]).stdout == served.blkzone_report()


def find_drives(guest: Guest, served: list[Served]) -> dict[str, Served]:
    """Return the drives by their nodes, which the driver numbers in any order."""
    guest.load("nvme")
    guest.wait_until("[ -b /dev/nvme0n1 -a -b /dev/nvme1n1 ]", timeout=60)
    serials = guest.run("cat /sys/class/nvme/nvme0/serial /sys/class/nvme/nvme1/serial").stdout.split()
    assert sorted(serials) == ["drive0", "drive1"]
    return {f"/dev/nvme{number}n1": served[int(serial[-1])] for number, serial in enumerate(serials)}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    requires("newer-qemu")
    kit = find_newer_qemu(find_kit())
    assert kit is not None
    with ExitStack() as stack:
        served = []
        for name in ("drive0", "drive1"):
            directory = tmp_path_factory.mktemp(name)
            each = Served(directory, create=SHAPE, front_ends=["vfio"], options=["--serial", name])
            served.append(stack.enter_context(each))
            each.wait_until_ready()
        devices = [
            json.dumps({"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(each.vfio_socket)}})
            for each in served
        ]
        arguments = [word for device in devices for word in ("-device", device)]
        guest = stack.enter_context(Guest(kit, qemu_arguments=arguments))
        yield Machine(guest, find_drives(guest, served))


def test_linux_takes_two_drives_and_reports_the_same_zones(machine: Machine) -> None:
    guest = machine.guest
    refusals = [served.refusals() for served in machine.drives.values()]
    check_limits(machine.first())
    machine.assert_reports_agree()
    guest.run(
        f"""dd if=/dev/urandom of=data bs=64k count=4 status=none
        for node in {" ".join(machine.drives)}
        do
            blkzone reset $node
            dd if=data of=$node bs=64k oflag=direct seek={2 * 4 * 16} status=none
            dd if=$node bs=64k count=4 iflag=direct skip={2 * 4 * 16} status=none | cmp - data
            sync $node
        done"""
    )
    machine.assert_reports_agree()
    assert [served.refusals() for served in machine.drives.values()] == refusals, "a kernel does nothing wrong"


def test_nvme_cli_manages_zones(machine: Machine) -> None:
    drive = machine.first()
    check_zone_management(drive)
    drive.sh(f"nvme smart-log {drive.node} >smart; nvme error-log {drive.node} >errors")


def test_the_kernels_zonefs(machine: Machine) -> None:
    drive = machine.first()
    make_zonefs(drive)
    check_zonefs(drive)


def test_io_uring_passthrough(machine: Machine) -> None:
    check_passthrough(machine.first())


def test_fio_verifies_on_both_at_once(machine: Machine) -> None:
    jobs = [
        machine.guest.start(
            # Not by nvme-cli: the kernel knows the write pointers, and does not see what passes it by.
            f"blkzone reset {node}\n"
            f"fio --name=x --filename={node} --zonemode=zbd --direct=1 --ioengine=libaio --iodepth=8 --max_open_zones=3"
            " --rw=randwrite --bs=32k --size=12M --verify=crc32c --do_verify=1 --verify_fatal=1"
        )
        for node in machine.drives
    ]
    for job in jobs:
        job.wait(300)
    machine.assert_reports_agree()


def test_killed_daemons_are_a_pause(machine: Machine) -> None:
    """Killed under load and started again: the guest goes on, each write is carried out once, and its data is there."""
    refusals = [served.refusals() for served in machine.drives.values()]
    jobs = [
        machine.guest.start(
            f"blkzone reset {node}\n"
            f"fio --name=x --filename={node} --zonemode=zbd --direct=1 --ioengine=libaio --iodepth=8 --max_open_zones=3"
            " --rw=randwrite --bs=16k --size=24M --verify=crc32c --do_verify=1 --verify_fatal=1 --rate=1m"
        )
        for node in machine.drives
    ]
    were_busy = []
    for served in [*machine.drives.values()] * 2:
        while not any(zone["written"] for zone in json.loads(served.verb("report", "--json"))["zones"]):
            time.sleep(0.1)
        served.kill()
        were_busy.append([job.poll() for job in jobs] == [None, None])
        served.start()
        served.wait_until_ready()
    assert were_busy[0], "the first kill came under load"
    for job in jobs:
        job.wait(300)
    machine.assert_reports_agree()
    assert [served.refusals() for served in machine.drives.values()] == refusals
    assert "reset" not in machine.guest.run("dmesg | grep 'nvme.*timeout' || true").stdout


def test_a_drive_is_plugged_and_unplugged(machine: Machine, tmp_path: Path) -> None:
    """Also one whose daemon was killed and started again, and while a program has the drive open."""
    guest = machine.guest
    others = guest.disks()
    with Served(tmp_path, create=SHAPE, front_ends=["vfio"], options=["--serial", "plugged", "--msi"]) as served:
        served.wait_until_ready()
        for nr_blocks in (1, 2):
            device = guest.plug("vfio-user-pci", socket={"type": "unix", "path": str(served.vfio_socket)})
            guest.wait_until(f"[ $(ls /sys/block | wc -l) -gt {len(others)} ]", timeout=60)
            (name,) = guest.disks() - others
            assert guest.run(f"cat /sys/block/{name}/device/serial").stdout.split() == ["plugged"]
            assert re.search(rf"PCI-MSI-?[^X\n]* {name[:-2]}q", guest.run("cat /proc/interrupts").stdout)
            served.kill()
            served.start()
            served.wait_until_ready()
            guest.run(f"dd if=/dev/urandom of=/dev/{name} bs=4k count=1 seek={nr_blocks - 1} oflag=direct status=none")
            assert guest.run(f"blkzone report /dev/{name}").stdout == served.blkzone_report()
            reader = guest.start(f"exec 3</dev/{name}; sleep 600") if nr_blocks == 2 else None
            guest.unplug(device)
            assert guest.disks() == others
            if reader is not None:
                reader.kill()
        zones = json.loads(served.verb("report", "--json"))["zones"]
        assert [zone["written"] for zone in zones[:2]] == [2 * 4096 // 512, 0]
        assert served.refusals() == []


def test_a_guest_that_reboots_finds_its_data(machine: Machine) -> None:
    """The firmware drives the controller in between, and leaves it enabled."""
    guest = machine.guest
    node = next(iter(machine.drives))
    guest.run(f"blkzone reset {node}; echo here | dd of={node} bs=4k conv=sync oflag=direct")
    written = machine.drives[node]
    guest.reboot()
    machine.drives = find_drives(guest, sorted(machine.drives.values(), key=lambda each: each.image))
    (again,) = [node for node, each in machine.drives.items() if each is written]
    assert guest.run(f"dd if={again} bs=4k count=1 iflag=direct status=none | tr -d '\\0'").stdout == "here\n"
    machine.assert_reports_agree()
