"""Attaching an image: the choice between ublk, VDUSE and NVMe, and recovery of a device whose process was killed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zonefs_emu.daemon.client import call
from zonefs_emu.daemon.framing import geometry_of
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends import ublk, vduse
from zonefs_emu.front_ends.kernel_device import KernelDeviceFrontEnd
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.front_ends.ublk import UblkFrontEnd
from zonefs_emu.front_ends.vduse import VduseFrontEnd
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.ublk import ublk_device
from zonefs_emu.vduse.vdpa_bus import Driver

#: Exists if the kernel has an NVMe driver. Without it, the modules that serve NVMe, which load slowly, are not loaded.
_NVME: Final = Path("/sys/class/nvme")


def make_front_end(image: Path, via: str, *, name: str | None, for_vm: bool, nr_queues: int) -> KernelDeviceFrontEnd:
    """Return the front-end that attaches *image* by *via* (ublk, vduse, nvme-tcp or auto) as the device *name*.

    If a killed process left a device of *image*, the front-end recovers that one.

    Raises:
        UsageError: a process has the image, the kernel cannot show it, or the arguments exclude each other; says which.
        ImageError, PeerError, OSError: as :func:`zonefs_emu.daemon.client.open_target`.
    """
    driver = Driver.VM if for_vm else Driver.HOST
    if driver is Driver.VM and via in {"ublk", "nvme-tcp"}:
        message = (
            f"{via} makes devices of the host only: give its node to QEMU with -blockdev host_device, or use "
            "--via vduse"
        )
        raise UsageError(message)
    with open_target(image, readonly=True) as target:
        info = call(target, {"verb": "info"})[0]
        if target.live:
            message = f"{image} is held by process {info['pid']} already"
            raise UsageError(message, exit_code=1)
    left = left_behind(image, str(info["uuid"]))
    if left:
        return left[0][0]
    match choose(via, driver, geometry_of(info)):
        case "ublk":
            return UblkFrontEnd(name=name, nr_queues=nr_queues)
        case "nvme-tcp":
            from zonefs_emu.front_ends.nvme_host import NvmeHostFrontEnd  # noqa: PLC0415

            return NvmeHostFrontEnd(name=name, nr_queues=nr_queues)
        case _:
            return VduseFrontEnd(name=name, driver=driver, nr_queues=nr_queues)


def left_behind(image: Path, uuid: str) -> list[tuple[KernelDeviceFrontEnd, str]]:
    """Return the recovery of each device that a killed process left of *image*, as (front-end, node of the device)."""
    left = ublk.left_behind(uuid) + vduse.left_behind(image)
    if _NVME.exists():
        from zonefs_emu.front_ends import nvme_host  # noqa: PLC0415

        left += nvme_host.left_behind(uuid)
    return left


def choose(via: str, driver: Driver, geometry: Geometry) -> str:
    """Return the way to use, after a check of what the kernel can do; auto takes ublk or vduse.

    Raises:
        UsageError: the kernel cannot show the image; with the reason and a remedy.
    """
    ways: Sequence[str] = (via,) if via != "auto" else ("vduse",) if driver is Driver.VM else ("ublk", "vduse")
    reasons = []
    for way in ways:
        try:
            if way == "ublk":
                ublk.require(geometry)
            elif way == "nvme-tcp":
                from zonefs_emu.front_ends import nvme_host  # noqa: PLC0415

                nvme_host.require(geometry)
            else:
                vduse.require(geometry, driver)
        except UsageError as error:
            reasons.append(str(error))
        else:
            return way
    raise UsageError("; and ".join(dict.fromkeys(reasons)), exit_code=1)


def is_in_use(node: str) -> bool:
    """Return whether a process has *node* open exclusively: a mount, a volume manager, a virtual machine."""
    return ublk_device.is_in_use(Path(node))
