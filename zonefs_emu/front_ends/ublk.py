"""The image as a block device of this host's kernel, by ublk."""

from collections.abc import Callable

from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.session import Session
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.kernel_device import KernelDevice, KernelDeviceFrontEnd
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.ublk import ublk_device
from zonefs_emu.ublk.control_device import control_device


class UblkFrontEnd(KernelDeviceFrontEnd):
    """The front-end of a session that makes the image the device /dev/ublkbN; *name* is N, or None for any.

    Raises:
        UsageError: *name* is no number.
    """

    name = "ublk"

    def __init__(self, *, name: str | None = None, nr_queues: int = 1) -> None:
        super().__init__()
        self._number = device_number(name)
        self._nr_queues = nr_queues

    def make(self, session: Session, ended: Callable[[], None]) -> KernelDevice:
        """Return the device."""
        # The record is beside the control socket, where it outlives this process. A reboot makes it invalid.
        records = rendezvous.log_path(session.path).with_suffix(".ublk")
        return ublk_device.UblkDevice(
            session.device, records=records, number=self._number, nr_queues=self._nr_queues, ended=ended
        )


def left_behind(uuid: str) -> list[tuple[KernelDeviceFrontEnd, str]]:
    """Return the recovery of each device that a killed process left of the image *uuid*, with the device's node."""
    return [(UblkFrontEnd(), node) for node in ublk_device.left_behind(uuid)]


def require(geometry: Geometry) -> None:
    """Raise UsageError, with the reason and a remedy, if the kernel cannot show *geometry* by ublk."""
    refusals = ublk_device.refusals_of(geometry)
    if refusals:
        raise UsageError(refusals[0], exit_code=1)
    with control_device():
        pass


def device_number(name: str | None) -> int | None:
    """Return N of the /dev/ublkbN that *name* asks for; None for any.

    Raises:
        UsageError: it is no number.
    """
    if name is None:
        return None
    number = name.removeprefix("/dev/").removeprefix("ublkb")
    if not number.isdecimal():
        message = f"the name of a ublk device is a number, such as 3 or ublkb3, not {name!r}"
        raise UsageError(message)
    return int(number)
