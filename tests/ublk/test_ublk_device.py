"""Devices of the kernel's ublk driver, in the guest."""

import re

import pytest

from tests import attaching
from tests.attaching import Place

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(2700)]


def test_kernel_zonefs(place: Place) -> None:
    attaching.check_kernel_zonefs(place, "ublk", front_end="ublk")


def test_zone_operations(place: Place) -> None:
    attaching.check_zone_operations(place, "ublk")


def test_killed_while_btrfs_writes(place: Place) -> None:
    attaching.check_killed_while_btrfs_writes(place, "ublk")


def test_detached_with_requests_in_flight(place: Place) -> None:
    attaching.check_detached_with_requests_in_flight(place, "ublk")


def test_detached_after_a_kill(place: Place) -> None:
    attaching.check_detached_after_a_kill(place, "ublk")


def test_killed_while_fio_verifies_on_two_queues(place: Place) -> None:
    place.create("f.img", "--size 128M --zone-size 16M --block-size 4096")
    node = place.attach("f.img", "ublk", "--queues", "2", "--name", "5")
    assert node == "/dev/ublkb5"
    pid = place.server_pid("f.img")
    fio = place.guest.start(
        f"fio --name=x --filename={node} --zonemode=zbd --direct=1 --rw=write --bs=16k --ioengine=libaio --iodepth=8 "
        "--numjobs=2 --offset_increment=64m --size=32m --verify=crc32c --do_verify=1"
    )
    for _ in range(2):
        # The script that waits kills as well, and fio is stopped while the command line works: it would be done then.
        killing = place.waiting(node, 200) + place.killing(pid)
        place.sh(f"pkill -CONT -x fio || :; {killing}; pkill -STOP -x fio; Z attach f.img")
        pid = place.server_pid("f.img")
    place.sh("pkill -CONT -x fio")
    fio.wait(timeout=200)
    place.assert_reports_agree(node, "f.img")
    place.sh("Z detach f.img")


def test_qemu_io(place: Place) -> None:
    place.create("h.img", "--size 64M --zone-size 4M --block-size 4096")
    node = place.attach("h.img", "ublk")
    zone = 4 << 20

    def qemu_io(*commands: str) -> str:
        words = " ".join(f"-c '{command}'" for command in commands)
        options = f"driver=host_device,filename={node},cache.direct=on"
        return place.sh(f"qemu-io --image-opts -n {options} {words}").stdout

    for first in (0, 7 * zone, 15 * zone):
        report = f"zrp {first} 1"
        said = qemu_io(
            report, f"zo {first} {zone}", report, f"zc {first} {zone}", report,
            f"zap -p {first} 0x1000 0x2000", f"zap -p {first} 0x1000 0x2000", report,
            f"zf {first} {zone}", report, f"zrs {first} {zone}", report,
        )  # fmt: skip
        start = first >> 9
        assert f"start: 0x{start:x}, len 0x2000, cap 0x2000, wptr 0x{start:x}" in said
        # Closing an open zone without data makes it empty.
        assert re.findall(r"zcond:(\d+)", said) == ["1", "3", "1", "2", "14", "1"]
        assert f"wptr 0x{start + 0x30:x}, zcond:2" in said
        assert re.findall(r"append sector is (0x[0-9a-f]+)", said) == [f"0x{start:x}", f"0x{start + 0x18:x}"]
    place.sh("Z detach h.img")


def test_formatted_by_others(place: Place) -> None:
    # mkzonefs of zonefs-tools, where the first zone is sequential: it is finished behind the super block.
    place.create("s.img", "--size 32M --zone-size 4M --block-size 4096")
    place.super_block("super", label="others")
    node = place.attach("s.img", "ublk")
    place.guest.load("zonefs")
    place.sh(
        f"""blkzone reset {node}; dd if=super of={node} bs=4k oflag=direct status=none
        blkzone finish -o 0 -c 1 {node}
        mkdir -p mnt; mount -t zonefs {node} mnt; [ $(ls mnt/seq | wc -l) = 7 ]
        dd if=/dev/zero of=mnt/seq/6 bs=4k count=3 oflag=direct conv=notrunc status=none; umount mnt"""
    )
    place.assert_reports_agree(node, "s.img")
    place.create("t.img")
    assert f"there is a device {node} already" in place.refusal(f"attach t.img --via ublk --name {node}")
    place.sh("Z detach s.img")


def test_what_others_do_to_the_zones_is_reported(place: Place) -> None:
    place.create("i.img")
    node = place.attach("i.img", "ublk")
    place.sh("Z finish i.img --zone 4; Z open i.img --zone 5")
    place.assert_reports_agree(node, "i.img")
    place.sh("Z detach i.img")
