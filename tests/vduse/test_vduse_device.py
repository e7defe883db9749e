"""Devices on the kernel's vdpa bus, in the guest."""

import re

import pytest

from tests import attaching
from tests.attaching import SHAPE, ZONE_SECTORS, Place

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(2700)]


def test_kernel_zonefs(place: Place) -> None:
    attaching.check_kernel_zonefs(place, "vduse", front_end="vduse")


def test_zone_operations(place: Place) -> None:
    attaching.check_zone_operations(place, "vduse")


def test_killed_while_btrfs_writes(place: Place) -> None:
    attaching.check_killed_while_btrfs_writes(place, "vduse")


def test_detached_with_requests_in_flight(place: Place) -> None:
    attaching.check_detached_with_requests_in_flight(place, "vduse")


def test_detached_after_a_kill(place: Place) -> None:
    attaching.check_detached_after_a_kill(place, "vduse")


def test_a_smaller_last_zone(place: Place) -> None:
    # ublk cannot show one.
    place.create("f.img", "--size 30M --zone-size 4M")
    node = place.attach("f.img", "vduse")
    place.assert_reports_agree(node, "f.img")
    place.sh("Z detach f.img")


def test_goes_on_after_each_reset(place: Place) -> None:
    place.create("r.img", f"{SHAPE} --block-size 4096")
    node = place.attach("r.img", "vduse")
    for number in range(3):
        # A driver that lets the device go, and one that takes it, reset it.
        place.sh(
            f"""dd if=/dev/urandom of=data bs=4k count=5 status=none
            dd if=data of={node} bs=4k seek={(4 + number) * ZONE_SECTORS // 8} oflag=direct conv=notrunc status=none
            device=$(basename $(readlink -f /sys/block/{node.removeprefix("/dev/")}/device))
            cd /sys/bus/virtio/drivers/virtio_blk; echo $device >unbind; [ ! -e {node} ]; echo $device >bind; cd -
            # The kernel makes the node on a thread of its own.
            for _ in $(seq 300); do [ -b {node} ] && break; sleep 0.1; done
            dd if={node} bs=4k count=5 skip={(4 + number) * ZONE_SECTORS // 8} iflag=direct status=none | cmp - data"""
        )
    place.assert_reports_agree(node, "r.img")
    place.sh("Z detach r.img")


def test_a_device_of_another_image_is_left_alone(place: Place) -> None:
    place.create("x.img")
    place.create("y.img")
    place.attach("x.img", "vduse", "--name", "mine")
    place.kill_server("x.img")
    assert "the VDUSE device mine exists" in place.refusal("attach y.img --via vduse --name mine")
    assert place.sh("Z attach x.img").stdout.startswith("/dev/vd")
    place.sh("Z detach x.img")


def test_for_a_virtual_machine(place: Place) -> None:
    place.create("i.img", SHAPE)
    for module in ("vduse", "vhost_vdpa"):
        place.guest.load(module)
    command = place.sh("Z attach i.img --via vduse --for vm --name for-a-vm").stdout
    found = re.search(r"-device vhost-vdpa-device-pci,vhostdev=(/dev/vhost-vdpa-\d+)", command)
    assert found is not None
    assert "share=on" in command
    node = found[1]
    place.sh(f"[ -c {node} ]; [ -c /dev/vduse/for-a-vm ]")
    place.kill_server("i.img")
    assert place.sh("Z attach i.img").stdout == command
    # The same device for the host: unbound here, bound there.
    place.sh(f"Z detach {node}; [ ! -e {node} ]; [ ! -e /dev/vduse/for-a-vm ]")
    host = place.attach("i.img", "vduse", "--name", "for-a-vm")
    assert host.startswith("/dev/vd")
    place.sh("Z detach i.img")
