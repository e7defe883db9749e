"""The image as an NVMe drive of this host's kernel, over the loopback interface."""

from collections.abc import Callable

from zonefs_emu.daemon.session import Session
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.kernel_device import KernelDevice, KernelDeviceFrontEnd
from zonefs_emu.model import linux
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.nvme.namespace import require_zns
from zonefs_emu.nvme_tcp import attached_drive, kernel_host


class NvmeHostFrontEnd(KernelDeviceFrontEnd):
    """The front-end of a session that makes the image a disk /dev/nvmeNn1. The kernel chooses N.

    Raises:
        UsageError: a *name* is asked for.
    """

    #: The same name as of the front-end that only serves; that one has an address in place of a node.
    name = "nvme-tcp"

    def __init__(self, *, name: str | None = None, nr_queues: int = 1) -> None:
        super().__init__()
        if name is not None:
            message = f"the kernel chooses the names of NVMe disks: leave out --name {name}"
            raise UsageError(message)
        self._nr_queues = nr_queues

    def make(self, session: Session, ended: Callable[[], None]) -> KernelDevice:
        """Return the device."""
        return attached_drive.AttachedDrive(session.device, nr_queues=self._nr_queues, ended=ended)


def left_behind(uuid: str) -> list[tuple[KernelDeviceFrontEnd, str]]:
    """Return the recovery of the disk that a killed process left of the image *uuid*, with the disk's node."""
    return [(NvmeHostFrontEnd(), node) for node in attached_drive.left_behind(uuid)]


def require(geometry: Geometry) -> None:
    """Raise UsageError if the kernel cannot show *geometry* as an NVMe disk; says why and what would help."""
    require_zns(geometry)
    refusals = linux.refusals(geometry)
    if geometry.active_excursions:
        # Source: Linux drivers/nvme/host/zns.c: Zone Operation Characteristics must be 0.
        refusals.append(
            "Linux refuses an NVMe drive that may finish zones by itself: create the image without "
            "--zone-active-excursions"
        )
    if refusals:
        raise UsageError(refusals[0], exit_code=1)
    kernel_host.check_host()
