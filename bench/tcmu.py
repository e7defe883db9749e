"""tcmu-runner's file_zbc in a guest: the other zoned disk that a process of user space serves, in C.

The kernel's target_core_user gives its SCSI commands to tcmu-runner, and tcm_loop makes a disk of them in the same
kernel. So it has the place that ublk and VDUSE have: driver, kernel, process, image, all in the guest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from tools.conformance.programs import Programs
from tools.guest.machine import Guest

RUNNER: Final = Programs(
    suite="bookworm",
    packages=("tcmu-runner",),
    commands=MappingProxyType({"tcmu-runner": "usr/bin/tcmu-runner"}),
)
#: Its handler of zoned disks, below the root of the package.
_HANDLER: Final = "usr/lib/x86_64-linux-gnu/tcmu-runner/handler_file_zbc.so"
_TARGET: Final = "/sys/kernel/config/target"
_NAME: Final = "bench"


@contextmanager
def tcmu_disk(guest: Guest, *, zone_mib: int, nr_zones: int) -> Iterator[str]:
    """Serve a file in the guest's memory, with blocks of 4096 bytes; yield the disk's node."""
    scripts = RUNNER.obtain(print)
    for module in ("target_core_user", "tcm_loop", "sd_mod"):
        guest.load(module)
    guest.run(
        f"""
        mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
        mkdir -p /etc/tcmu /run/handlers
        touch /etc/tcmu/tcmu.conf
        ln -s {scripts.parent / _HANDLER} /run/handlers
        """
    )
    runner = guest.start(f"exec {scripts}/tcmu-runner --handler-path /run/handlers --tcmu-log-dir /run")
    before = guest.disks()
    device = f"{_TARGET}/core/user_0/{_NAME}"
    portal = f"{_TARGET}/loopback/naa.6001405000000001/tpgt_1"
    options = f"model-HM/lba-4096/zsize-{zone_mib}/conv-0/open-{nr_zones}"
    size = nr_zones * zone_mib << 20
    guest.run(
        f"""
        mkdir -p {device}
        echo -n hw_block_size=4096 >{device}/control
        echo -n dev_size={size} >{device}/control
        echo -n dev_config=zbc/{options}@/run/tcmu.raw >{device}/control
        # An I/O error until tcmu-runner, which was just started, listens to the kernel.
        for _ in $(seq 50); do echo -n 1 >{device}/enable && break; sleep 0.2; done
        mkdir -p {portal}/lun/lun_0
        echo -n naa.6001405000000002 >{portal}/nexus
        ln -s {device} {portal}/lun/lun_0/{_NAME}
        """
    )
    guest.wait_until("ls /sys/block/sd*/queue/zoned")
    (disk,) = guest.disks() - before
    try:
        yield f"/dev/{disk}"
    finally:
        guest.run(
            f"rm {portal}/lun/lun_0/{_NAME}; rmdir {portal}/lun/lun_0 {portal} {_TARGET}/loopback/naa.6001405000000001;"
            f"rmdir {device} {_TARGET}/core/user_0"
        )
        runner.kill()
        runner.wait(check=False)
