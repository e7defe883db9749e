"""The control device: creating, starting, finding, recovering and deleting ublk devices.

May not know: zones, images.
"""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zonefs_emu.errors import UsageError
from zonefs_emu.ublk.protocol import DEV_INFO_BYTES, Control, DeviceInfo, Flag, control_opcode, encode_control
from zonefs_emu.ublk.uring import Ring

CONTROL_NODE: Final = Path("/dev/ublk-control")
_NEEDED: Final = Flag.CMD_IOCTL_ENCODE | Flag.USER_COPY | Flag.ZONED | Flag.USER_RECOVERY | Flag.USER_RECOVERY_REISSUE


class ControlDevice:
    """The opened /dev/ublk-control.

    Every method blocks until the kernel has carried out the command, and raises OSError if the kernel refuses it.
    """

    def __init__(self) -> None:
        """Open /dev/ublk-control.

        Raises:
            UsageError: the kernel cannot make zoned devices (no module, no permission, too old); with a remedy.
        """
        try:
            self._fd = os.open(CONTROL_NODE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(_hint(error), exit_code=1) from None
        ring: Ring | None = None
        try:
            ring = self._ring = Ring(4)
            features = Flag(self._value(Control.GET_FEATURES))
        except OSError as error:
            if ring is not None:
                ring.close()
            os.close(self._fd)
            message = (
                f"the kernel refuses io_uring commands to {CONTROL_NODE} ({error.strerror}): Linux 6.6 or later helps"
            )
            raise UsageError(message, exit_code=1) from None
        if missing := _NEEDED & ~features:
            self.close()
            message = f"this kernel's ublk driver lacks {missing!r}: zoned devices need Linux 6.6 or later"
            raise UsageError(message, exit_code=1)

    def close(self) -> None:
        """Close /dev/ublk-control. Devices stay as they are."""
        self._ring.close()
        os.close(self._fd)

    def _call(self, command: Control, payload: bytes) -> int:
        result = self._ring.call(self._fd, control_opcode(command), payload)
        if result < 0:
            raise OSError(-result, f"{command.name}: {os.strerror(-result)}")
        return result

    def _with_buffer(self, command: Control, device_id: int, content: bytes) -> bytes:
        buffer = ctypes.create_string_buffer(content, len(content))
        self._call(command, encode_control(device_id, address=ctypes.addressof(buffer), length=len(content)))
        return buffer.raw

    def _value(self, command: Control) -> int:
        return int.from_bytes(self._with_buffer(command, 0xFFFFFFFF, bytes(8)), "little")

    def add(self, info: DeviceInfo) -> DeviceInfo:
        """Create a device; return *info* with the device's number and the kernel's other changes.

        Raises:
            OSError: EEXIST if the number is taken.
        """
        return DeviceInfo.decode(self._with_buffer(Control.ADD_DEV, info.device_id, info.encode()))

    def info(self, device_id: int) -> DeviceInfo:
        """Return the information on device *device_id*.

        Raises:
            OSError: ENODEV if there is no such device.
        """
        return DeviceInfo.decode(self._with_buffer(Control.GET_DEV_INFO, device_id, bytes(DEV_INFO_BYTES)))

    def set_params(self, device_id: int, params: bytes) -> None:
        """Set the parameters (:func:`encode_params`) of a device that is not started yet."""
        self._with_buffer(Control.SET_PARAMS, device_id, params)

    def start(self, device_id: int) -> None:
        """Start a device, with this process as its server; return when the kernel has read its zones.

        The queues must be served already, because the kernel reads the zones through them.
        """
        self._call(Control.START_DEV, encode_control(device_id, data=os.getpid()))

    def stop(self, device_id: int) -> None:
        """Stop a device; requests in flight are aborted or finished first."""
        self._call(Control.STOP_DEV, encode_control(device_id))

    def delete(self, device_id: int) -> None:
        """Delete a stopped device; return when its nodes are gone."""
        self._call(Control.DEL_DEV, encode_control(device_id))

    def start_recovery(self, device_id: int) -> None:
        """Begin to take over a device whose server died.

        Raises:
            OSError: EBUSY while the kernel still cleans up after the dead server. The caller tries again then.
        """
        self._call(Control.START_USER_RECOVERY, encode_control(device_id))

    def end_recovery(self, device_id: int) -> None:
        """Resume the device with this process as its server. Its queues must be served already."""
        self._call(Control.END_USER_RECOVERY, encode_control(device_id, data=os.getpid()))

    def devices(self) -> Iterator[DeviceInfo]:
        """Yield all ublk devices of this host. A device that is deleted meanwhile is left out."""
        for node in sorted(Path("/dev").glob("ublkc*")):
            try:
                yield self.info(int(node.name.removeprefix("ublkc")))
            except (OSError, ValueError):
                continue


@contextmanager
def control_device() -> Iterator[ControlDevice]:
    """Open the control device in the context."""
    control = ControlDevice()
    try:
        yield control
    finally:
        control.close()


def _hint(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"{CONTROL_NODE} does not exist: load the module with 'modprobe ublk_drv' (Linux 6.6 or later)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{CONTROL_NODE} may not be opened by this user: attach as root"
    return f"{CONTROL_NODE} cannot be opened: {error.strerror}"
