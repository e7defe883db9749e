"""The image as a block device of this host's kernel or of a virtual machine, by VDUSE."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.session import Session
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.kernel_device import KernelDevice, KernelDeviceFrontEnd
from zonefs_emu.model import linux
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.vduse import vdpa_bus, vduse_device
from zonefs_emu.vduse.vdpa_bus import Driver

#: The names of the records of a VDUSE device contain its name, so that the device is found again.
_SUFFIX: Final = ".vduse-"


class VduseFrontEnd(KernelDeviceFrontEnd):
    """The front-end of a session that makes the image the device *name* of the vdpa bus, used by *driver*.

    Raises:
        UsageError: *name* cannot be one.
    """

    name = "vduse"

    def __init__(self, *, name: str | None = None, driver: Driver = Driver.HOST, nr_queues: int = 1) -> None:
        super().__init__()
        if name is not None:
            vdpa_bus.check_name(name)
        self._device_name = name
        self._driver = driver
        self._nr_queues = nr_queues

    def make(self, session: Session, ended: Callable[[], None]) -> KernelDevice:
        """Return the device."""
        name = self._device_name or f"zonefs-emu-{str(session.device.uuid)[:8]}"
        # The record is beside the control socket, where it outlives this process. A reboot makes it invalid.
        records = rendezvous.log_path(session.path).with_suffix(_SUFFIX + name)
        return vduse_device.VduseDevice(
            session.device, name=name, records=records, driver=self._driver, nr_queues=self._nr_queues, ended=ended
        )


def left_behind(image: Path) -> list[tuple[KernelDeviceFrontEnd, str]]:
    """Return the recovery of each device that a killed process left of *image*, with the device's node."""
    beside = rendezvous.log_path(image)
    found: list[tuple[KernelDeviceFrontEnd, str]] = []
    for records in beside.parent.glob(f"{beside.stem}{_SUFFIX}*"):
        name = records.name.removeprefix(beside.stem + _SUFFIX)
        for node in vduse_device.left_behind(name):
            driver = Driver.VM if "vhost-vdpa" in node else Driver.HOST
            found.append((VduseFrontEnd(name=name, driver=driver), node))
    return found


def require(geometry: Geometry, driver: Driver) -> None:
    """Raise UsageError, with the reason and a remedy, if the kernel cannot show *geometry* to *driver* by VDUSE."""
    # The zones of a virtual machine's disk are checked by the guest's kernel.
    refusals = linux.refusals(geometry) if driver is Driver.HOST else []
    if refusals:
        raise UsageError(refusals[0], exit_code=1)
    vdpa_bus.check_host(driver)
