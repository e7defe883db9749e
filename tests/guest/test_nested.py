"""What is attached in the guest, in a virtual machine in the guest: QEMU's host_device, and the kernel's vhost-vdpa.

QEMU emulates the guest's processor with its virtualization, so the guest has a KVM of its own, and the virtual machine
is ten times faster than one that the guest would emulate again. Each access of it to a port costs milliseconds, though:
hence a console that is no serial port, and one machine for both ways.
"""

import re
from pathlib import Path
from typing import Final

import pytest

from tests import attaching
from tools.guest.cpio import CpioWriter
from tools.guest.kit import Kit, find_kit
from tools.guest.machine import Guest

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(1800)]

APPLETS: Final = ("cat", "cmp", "dd", "echo", "insmod", "mount", "poweroff", "sh", "sleep", "tr")
LIMITS: Final = "zoned nr_zones chunk_sectors max_open_zones max_active_zones zone_write_granularity"
#: 8 zones of 4 MiB with a capacity of 3 MiB, the first one conventional.
SHAPE: Final = "--size 32M --zone-size 4M --zone-capacity 3M --nr-conv 1 --max-open-zones 3 --max-active-zones 5"
ZONE_BLOCKS: Final = 1024
#: Writes two blocks at the write pointer of zone 2, one by one; one that is refused; finishes zone 5; reads back.
INIT: Final = f"""#!/bin/sh
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
insmod /virtio_blk.ko
dd if=/dev/zero bs=4k count=2 status=none | tr '\\0' x >/data
for disk in vda vdb; do
    until [ -b /dev/$disk ]; do sleep 0.1; done
    write() {{ dd if=/data of=/dev/$disk bs=4k skip=$1 seek=$2 count=1 oflag=direct conv=notrunc status=none; }}
    (cd /sys/block/$disk/queue && echo $disk limits $(cat {LIMITS}))
    write 0 {2 * ZONE_BLOCKS} && write 1 {2 * ZONE_BLOCKS + 1} && echo $disk written
    write 0 {3 * ZONE_BLOCKS + 1} || echo $disk refused
    blkzone finish -o {5 * 8 * ZONE_BLOCKS} -c 1 /dev/$disk && echo $disk finished
    dd if=/dev/$disk bs=4k skip={2 * ZONE_BLOCKS} count=2 iflag=direct status=none | cmp - /data && echo $disk same
    echo $disk report; blkzone report /dev/$disk; echo $disk end
done
poweroff -f
"""
#: QEMU in the guest; the kit's own is first in the guest's path, with all its files in their places.
QEMU: Final = (
    "qemu-system-x86_64 -nodefaults -no-reboot -display none -accel kvm -cpu host -m 192 -L /usr/share/seabios "
    "-object memory-backend-memfd,id=memory,size=192M,share=on -machine pc,memory-backend=memory "
    "-device virtio-serial-pci -chardev file,id=said,path=said -device virtconsole,chardev=said"
)


@pytest.fixture
def kit() -> Kit:
    found = find_kit()
    assert found is not None
    return found


def initramfs(kit: Kit) -> bytes:
    """Busybox, the driver of virtio disks, and the host's blkzone with the C library it needs."""
    archive = CpioWriter()
    for directory in ("bin", "dev", "lib", "lib64", "sys"):
        archive.directory(directory)
    archive.character_device("dev/console", major=5, minor=1)
    archive.file("bin/busybox", kit.busybox.read_bytes(), executable=True)
    for applet in APPLETS:
        archive.symlink(f"bin/{applet}", "busybox")
    archive.file("virtio_blk.ko", (kit.modules / "kernel/drivers/block/virtio_blk.ko").read_bytes())
    archive.file("bin/blkzone", Path("/usr/sbin/blkzone").read_bytes(), executable=True)
    archive.file("lib64/ld-linux-x86-64.so.2", Path("/lib64/ld-linux-x86-64.so.2").read_bytes(), executable=True)
    archive.file("lib/libc.so.6", Path("/lib/x86_64-linux-gnu/libc.so.6").read_bytes(), executable=True)
    archive.file("init", INIT.encode(), executable=True)
    return archive.finish()


def test_zoned_disks_in_a_virtual_machine(guest: Guest, kit: Kit) -> None:
    for module in ("ublk_drv", "vduse", "vhost_vdpa", "kvm_amd"):
        guest.load(module)
    (guest.share / "nested.cpio").write_bytes(initramfs(kit))
    with attaching.attaching(guest) as place:
        images = {"vda": "h.img", "vdb": "v.img"}
        for image in images.values():
            place.create(image, f"{SHAPE} --block-size 4096")
        node = place.attach("h.img", "ublk")
        told = place.sh("Z attach v.img --via vduse --for vm").stdout
        device = re.search(r"-device (\S+)", told)
        assert device is not None
        place.sh(
            f"""{QEMU} -kernel {kit.kernel} -initrd {guest.share}/nested.cpio \\
                -append 'console=hvc0 loglevel=0 panic=-1' \\
                -blockdev driver=host_device,node-name=zns,filename={node},cache.direct=on \\
                -device virtio-blk-pci,drive=zns -device {device[1]} >&2""",
            timeout=500,
        )
        said = place.sh("tr -d '\\r' <said").stdout
        for disk, image in images.items():
            assert f"{disk} limits host-managed 8 8192 3 5 4096" in said, said
            for word in ("written", "refused", "finished", "same"):
                assert f"{disk} {word}\n" in said, said
            report = re.search(rf"{disk} report\n(.*?){disk} end\n", said, re.DOTALL)
            assert report is not None
            assert report[1] == place.sh(f"Z report {image} --format blkzone").stdout
            assert "write of 8 sectors" in place.sh(f"Z why {image}").stdout
            place.sh(f"Z detach {image}")
