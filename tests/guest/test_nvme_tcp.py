"""The kernel's own NVMe/TCP driver and nvme-cli, with our drive in the same guest, over its loopback interface."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.attaching import Place
from tests.lacking_drive import ROWS
from tests.nvme_drives import (
    SHAPE,
    ZONE,
    check_fio,
    check_limits,
    check_passthrough,
    check_zone_management,
    check_zonefs,
    drive_of,
)
from tests.nvme_targets import (
    CONNECT,
    HOST,
    check_digests,
    check_discovery,
    check_keys,
    check_killed_under_reads,
    check_killed_under_writes,
    check_two_hosts,
    connect,
    image_of,
    lacking_drives,
    serve,
)

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(2700)]

#: Beside the shape of all drives, random write areas of 16 blocks.
AREAS = f"{SHAPE} --zrwa 64K --zrwa-granularity 16K --max-zrwa 1"


@pytest.fixture
def image(place: Place) -> Iterator[Place]:
    """An image n.img that can be served over TCP."""
    with image_of(place, AREAS):
        yield place


@pytest.fixture
def drive(image: Place) -> Place:
    """A served image n.img; the guest is connected, and its disk is /dev/nvme0n1."""
    serve(image)
    assert connect(image) == "/dev/nvme0n1"
    return image


def nvme(place: Place, command: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(place.sh(f"nvme {command} -o json").stdout)
    return found


def test_linux_takes_the_drive_and_reports_the_same_zones(drive: Place) -> None:
    check_limits(drive_of(drive, "n.img", "/dev/nvme0n1"))
    drive.assert_reports_agree("/dev/nvme0n1", "n.img")
    check_discovery(drive)
    drive.sh(
        f"""dd if=/dev/urandom of=data bs=64k count=4 status=none
        dd if=data of=/dev/nvme0n1 bs=64k oflag=direct seek={2 * 4 * 16} status=none
        dd if=/dev/nvme0n1 bs=64k count=4 iflag=direct skip={2 * 4 * 16} status=none | cmp - data
        sync /dev/nvme0n1"""
    )
    drive.assert_reports_agree("/dev/nvme0n1", "n.img")
    assert drive.sh("Z why n.img").stdout == "", "a kernel that does nothing wrong is refused nothing"


def test_nvme_cli_manages_zones(drive: Place) -> None:
    check_zone_management(drive_of(drive, "n.img", "/dev/nvme0n1"))
    assert "Invalid Zone State Transition" in drive.sh("nvme zns close-zone /dev/nvme0n1 -s 0", check=False).stderr
    assert "1BFh INVALID_ZONE_TRANSITION" in drive.sh("Z why n.img -n 1").stdout
    drive.sh(f"cd /run/attaching; nvme zns zone-append /dev/nvme0n1 -s {2 * ZONE} -z 8192 -d two")
    drive.sh(
        f"""nvme copy /dev/nvme0n1 --sdlba={7 * ZONE} --slbs={2 * ZONE},{2 * ZONE + 1} --blocks=0,0
        nvme compare /dev/nvme0n1 -s {7 * ZONE} -c 1 -z 8192 -d two
        nvme compare /dev/nvme0n1 -s {7 * ZONE} -c 0 -z 4096 -d /dev/zero 2>&1 && exit 1
        nvme endurance-log /dev/nvme0 -g 1 >endurance"""
    )
    drive.sh("nvme zns reset-zone /dev/nvme0n1 -a; nvme smart-log /dev/nvme0 >smart; nvme error-log /dev/nvme0 >errors")
    use_a_random_write_area(drive)


def use_a_random_write_area(drive: Place) -> None:
    """Have nvme-cli allocate the area of a zone, write in it and flush it."""
    identified = nvme(drive, "zns id-ns /dev/nvme0n1")
    assert (identified["ozcs"], identified["numzrwa"]) == (3, 1)
    assert (identified["zrwafg"], identified["zrwasz"], identified["zrwacap"]) == (4, 16, 1)
    drive.sh(
        f"""cd /run/attaching; nvme zns open-zone /dev/nvme0n1 -s {ZONE} --zrwaa
        for at in 5 2 5; do nvme write /dev/nvme0n1 -s $(({ZONE} + at)) -c 1 -z 8192 -d two; done
        nvme read /dev/nvme0n1 -s {ZONE + 5} -c 1 -z 8192 -d found; cmp found two"""
    )

    def zone() -> tuple[object, int, int]:
        zones = nvme(drive, "zns report-zones /dev/nvme0n1")["zone_list"]
        assert isinstance(zones, list)
        # nvme-cli 2.3 prints no attributes. Its binary output has a line before the report.
        report = drive.sh(
            "nvme zns report-zones /dev/nvme0n1 -o binary | tail -n +2 | od -An -v -tx1 -j 130 -N 1"
        ).stdout
        return zones[1]["state"], zones[1]["wp"] - ZONE, int(report, 16)

    assert zone() == ("EXP_OPENED", 0, 8)
    assert "zrwa" in drive.sh("Z report n.img -o 4M -c 1").stdout
    drive.sh(f"cd /run/attaching; nvme write /dev/nvme0n1 -s {ZONE + 16} -c 1 -z 8192 -d two")
    assert zone() == ("EXP_OPENED", 4, 8), "an implicit flush"
    drive.sh(f"nvme zns zrwa-flush-zone /dev/nvme0n1 -l {ZONE + 11}")
    assert zone() == ("EXP_OPENED", 12, 8), "an explicit flush"
    more = drive.sh(f"nvme zns open-zone /dev/nvme0n1 -s {2 * ZONE} --zrwaa", check=False)
    append = drive.sh(f"cd /run/attaching; nvme zns zone-append /dev/nvme0n1 -s {ZONE} -z 8192 -d two", check=False)
    assert more.returncode
    assert append.returncode
    why = drive.sh("Z why n.img -n 2").stdout
    assert "1B7h ZRWA_UNAVAILABLE" in why
    assert "1B6h INVALID_ZONE_OPERATION" in why
    drive.sh(f"nvme zns finish-zone /dev/nvme0n1 -s {ZONE}")
    assert zone()[::2] == ("FULL", 0)
    drive.assert_reports_agree("/dev/nvme0n1", "n.img")
    drive.sh(
        f"""cd /run/attaching; nvme zns reset-zone /dev/nvme0n1 -s {ZONE}; head -c 64 /dev/urandom >descriptor
        nvme zns set-zone-desc /dev/nvme0n1 -s {ZONE} --zrwaa -d descriptor
        nvme write /dev/nvme0n1 -s {ZONE + 2} -c 1 -z 8192 -d two
        nvme zns report-zones /dev/nvme0n1 -s {ZONE} -d 1 -e -o binary | tail -n +2 | tail -c +129 >found
        cmp -n 64 found descriptor"""
    )
    assert zone() == ("IMP_OPENED", 0, 0x88), "an area beside an extension"


def test_a_drive_that_finishes_zones_itself(place: Place) -> None:
    """Linux makes no block device of it. nvme-cli has a character device; it asks for controllers and time as well."""
    with image_of(place, "--size 64M --zone-size 4M --zone-active-excursions"):
        check_excursion(place)


def check_excursion(place: Place) -> None:
    serve(place)
    place.sh(
        f"""nqn=$(awk '/^nvme connect/ {{ print $NF }}' served); {CONNECT} {HOST} -n $nqn
        until [ -c /dev/ng0n1 ]; do sleep 0.1; done; head -c 4096 /dev/urandom >one
        nvme write /dev/ng0n1 -s {2 * ZONE} -c 0 -z 4096 -d one
        Z inject n.img excursion --zone 2"""
    )
    place.sh("! [ -b /dev/nvme0n1 ]")
    assert nvme(place, "zns id-ns /dev/ng0n1 -n 1")["zoc"] == 2
    changed = place.sh("nvme zns changed-zone-list /dev/nvme0 -n 1").stdout
    assert re.search(r"nrzid: *1\b", changed), changed
    report = place.sh(
        "nvme zns report-zones /dev/ng0n1 -n 1 -o binary | tail -n +2 | od -An -v -tx1 -j 192 -N 3"
    ).stdout
    assert report.split() == ["02", "e0", "01"]
    refused = place.sh(f"nvme write /dev/ng0n1 -s {2 * ZONE + 1} -c 0 -z 4096 -d one", check=False)
    assert "Zone Is Full" in refused.stderr + refused.stdout
    assert "the drive has finished that zone by itself" in place.sh("Z why n.img").stdout
    assert "1" in place.sh("nvme list-ctrl /dev/nvme0").stdout
    stamps = [place.sh("nvme get-feature /dev/nvme0 -f 0xe -b | tail -c 8 | od -An -tu8").stdout for _ in range(2)]
    first, second = (int(stamp) for stamp in stamps)
    assert first >> 49 == 1, "Linux has set it"
    assert first < second


def test_fio_verifies(drive: Place) -> None:
    check_fio(drive_of(drive, "n.img", "/dev/nvme0n1"))


def test_io_uring_passthrough(drive: Place) -> None:
    check_passthrough(drive_of(drive, "n.img", "/dev/nvme0n1"))


def test_a_killed_target_is_found_again(drive: Place) -> None:
    """The host repeats what it had under way; reads never fail, and the zones stay what the image says."""
    check_killed_under_reads(drive, "/dev/nvme0n1")


def test_a_target_killed_under_writes(drive: Place) -> None:
    check_killed_under_writes(drive, "/dev/nvme0n1")


def test_two_hosts(drive: Place) -> None:
    check_two_hosts(drive, "/dev/nvme0n1")


def test_digests(image: Place) -> None:
    serve(image)
    check_digests(image)


def test_the_kernel_and_the_drive_prove_their_names(image: Place) -> None:
    check_keys(image)


def test_attached_to_this_host_and_detached(image: Place) -> None:
    """One command makes the disk, for which only this kernel has the keys; another one ends it. A kill is a pause."""
    node = image.attach("n.img", "nvme-tcp", "--queues", "2")
    assert node == "/dev/nvme0n1"
    assert image.limits(node)["zoned"] == "host-managed"
    image.assert_reports_agree(node, "n.img")
    (row,) = json.loads(image.sh("Z attach --list --json").stdout)
    assert (row["node"], row["via"]) == (node, "nvme-tcp")
    keys = image.sh("stat -c %a /sys/class/nvme/nvme0/dhchap_secret /sys/class/nvme/nvme0/dhchap_ctrl_secret").stdout
    assert keys.split() == ["600", "600"]
    place = "-t tcp -a 127.0.0.1 -s $(sed 's/.*trsvcid=//; s/,.*//' /sys/class/nvme/nvme0/address)"
    strange = f"nvme connect {place} -n $(cat /sys/class/nvme/nvme0/subsysnqn)"
    image.sh(f"! {strange} --hostnqn nqn.b --hostid 11111111-2222-3333-4444-555555555555 2>&1")
    image.sh(
        f"""dd if=/dev/urandom of=data bs=64k count=4 status=none
        dd if=data of={node} bs=64k oflag=direct status=none"""
    )
    image.kill_server("n.img")
    assert image.sh("Z attach n.img").stdout.strip() == node
    image.sh(f"dd if={node} bs=64k count=4 iflag=direct status=none | cmp - data")
    image.kill_server("n.img")
    image.sh(f"Z detach n.img; [ ! -e {node} ]; Z check n.img")
    assert image.sh("Z attach --list; ls /sys/class/nvme").stdout == ""
    assert "n.img is not attached" in image.refusal("detach n.img")


def test_the_kernels_zonefs(image: Place) -> None:
    image.sh("Z mkfs n.img")
    serve(image)
    check_zonefs(drive_of(image, "n.img", connect(image)))


def test_what_linux_insists_on(place: Place) -> None:
    """What becomes of drives that lack one thing each. What they lack is in lacking_drive.py.

    Not tried live: a zone of another type, which no drive of ours can have. NSTAT, which Linux 6.12 does not read, is
    in test_newer_kernel.py.
    """
    with image_of(place, SHAPE), lacking_drives(place) as fate_of:
        found = {row.name: fate_of(row) for row in ROWS}
    assert {name: fate for name, (fate, _) in found.items()} == {row.name: row.fate for row in ROWS}
    assert [row.name for row in ROWS if row.says not in found[row.name][1]] == []
    assert "write through" in found["CNS 01: VWC"][1]
