"""The vdpa bus: creating, finding and deleting VDUSE devices, and binding them to a driver of the kernel.

May not know: rings, zones, images.
"""

import contextlib
import errno
import fcntl
import os
import re
import time
from enum import Enum
from pathlib import Path
from typing import Final

from zonefs_emu.errors import UsageError
from zonefs_emu.vduse import netlink, protocol

CONTROL_NODE: Final = Path("/dev/vduse/control")
_BUS: Final = Path("/sys/bus/vdpa")
_NODE_SECONDS: Final = 15
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Driver(Enum):
    """The drivers of the kernel that can use a device: for the host itself, or for a virtual machine."""

    HOST = "virtio_vdpa"
    VM = "vhost_vdpa"


def check_name(name: str) -> None:
    """Raise UsageError if *name* cannot be the name of a device. The kernel names files after devices."""
    if not _NAME.fullmatch(name) or name == "control":
        message = f"{name!r} cannot be the name of a device: a name has up to 64 letters, digits, '_', '.' and '-'"
        raise UsageError(message)


def check_host(driver: Driver) -> None:
    """Raise UsageError, with a remedy, if this kernel cannot make devices for *driver*: no module, no permission."""
    try:
        os.close(os.open(CONTROL_NODE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise UsageError(_hint(error), exit_code=1) from None
    if not (_BUS / "drivers" / driver.value).exists():
        message = f"the kernel's driver {driver.value} is not loaded: load it with 'modprobe {driver.value}'"
        raise UsageError(message, exit_code=1)


def _hint(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"{CONTROL_NODE} does not exist: load the module with 'modprobe vduse' (Linux 6.4 or later for zones)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{CONTROL_NODE} may not be opened by this user: attach as root"
    return f"{CONTROL_NODE} cannot be opened: {error.strerror}"


def create(name: str, *, device_id: int, features: int, nr_queues: int, config: bytes) -> None:
    """Make the device *name*, with *features* and the configuration space *config*.

    Raises:
        OSError: EEXIST if the device exists, or the kernel refuses it.
    """
    device = protocol.encode_device(
        name, device_id=device_id, features=features, nr_queues=nr_queues, config=config
    )  # fmt: skip
    _control(protocol.CREATE_DEV, device)


def destroy(name: str) -> None:
    """Delete the device *name*, which must be off the bus and not open.

    Raises:
        OSError: EBUSY if the device is on the bus or open; EINVAL if it does not exist.
    """
    _control(protocol.DESTROY_DEV, protocol.encode_name(name))


def _control(command: int, argument: bytes) -> None:
    fd = os.open(CONTROL_NODE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, protocol.SET_API_VERSION, protocol.API_VERSION.to_bytes(8, "little"))
        fcntl.ioctl(fd, command, argument)
    finally:
        os.close(fd)


def open_device(name: str) -> int:
    """Open the device *name* to serve it, and return the descriptor. Blocks until udev or devtmpfs has made the node.

    Raises:
        OSError: ENOENT if the device does not exist, EBUSY if it is served already.
    """
    node = CONTROL_NODE.with_name(name)
    deadline = time.monotonic() + _NODE_SECONDS
    while True:
        try:
            return os.open(node, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            # udev or devtmpfs makes the node a little after the device.
            if not Path(f"/sys/class/vduse/{name}").exists() or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def bind(name: str, driver: Driver) -> Path:
    """Put the device *name* on the bus, bind it to *driver*, and return the node that users open. Blocks.

    The device must be served meanwhile, because its driver sends requests to it.

    Raises:
        UsageError: the driver does not bind to it.
        OSError: the kernel refuses.
    """
    if not _on_bus(name).exists():
        netlink.add(name)
    if _driver_of(name) != driver.value:
        # Both drivers bind to any device, and the one that was loaded first may have bound to this device.
        (_on_bus(name) / "driver_override").write_text(driver.value)
        with contextlib.suppress(FileNotFoundError):
            (_on_bus(name) / "driver" / "unbind").write_text(name)
        (_BUS / "drivers" / driver.value / "bind").write_text(name)
    deadline = time.monotonic() + _NODE_SECONDS
    while (node := node_of(name)) is None:
        if time.monotonic() > deadline:
            message = (
                f"the kernel's {driver.value} has not made a device of {name}; the kernel's log (dmesg) has the reason"
            )
            raise UsageError(message, exit_code=1)
        time.sleep(0.02)
    return node


def unbind(name: str) -> None:
    """Remove the device *name* from the bus, if it is there; return when its driver has released it.

    Raises:
        OSError: the kernel refuses.
    """
    if _on_bus(name).exists():
        netlink.remove(name)


def node_of(name: str) -> Path | None:
    """Return the node that users of the device *name* open, or None if no driver is bound to the device."""
    for pattern in ("virtio*/block/*", "vhost-vdpa-*"):
        for found in _on_bus(name).glob(pattern):
            node = Path("/dev") / found.name
            if node.exists():
                return node
    return None


def _on_bus(name: str) -> Path:
    return _BUS / "devices" / name


def _driver_of(name: str) -> str:
    link = _on_bus(name) / "driver"
    return link.readlink().name if link.is_symlink() else ""
