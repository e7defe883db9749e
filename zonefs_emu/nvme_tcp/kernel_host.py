"""The NVMe/TCP driver of this host's kernel: connecting to a drive, listing connections, and disconnecting.

It writes the same lines as nvme-cli into ``/dev/nvme-fabrics``. Running nvme-cli, if it is installed, was rejected,
because it would be a second way to the same file. May not know: images, servers. Every call may block until the kernel
is done.

Source: Linux, drivers/nvme/host/fabrics.c and sysfs.c.
"""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zonefs_emu.errors import UsageError
from zonefs_emu.nvme_tcp.host_keys import DhchapKey, key_text, parse_key

_FABRICS: Final = Path("/dev/nvme-fabrics")
_CONTROLLERS: Final = Path("/sys/class/nvme")
_DISKS: Final = Path("/sys/block")
_ADDRESS: Final = "127.0.0.1"
#: A killed server is looked for this often.
_RECONNECT_S: Final = 2
#: How long the kernel may take to make a disk of the drive, or to find a server again.
_WAIT_S: Final = 60.0
_LOOK_S: Final = 0.05
_PLACE: Final = re.compile(rf"traddr={re.escape(_ADDRESS)},trsvcid=(\d+)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The name of this host, and the keys by which it and the drive prove their names."""

    host_nqn: str
    host_key: DhchapKey
    controller_key: DhchapKey


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelController:
    """A controller that the kernel has of a drive at this machine: its *name*, such as nvme0, and where it is."""

    name: str
    port: int
    credentials: Credentials


def check_host() -> None:
    """Make sure that the kernel can connect by TCP, and proves its name.

    Raises:
        UsageError: it cannot; says what would help.
    """
    try:
        options = _FABRICS.read_text()
    except OSError as error:
        message = f"{_FABRICS} cannot be opened ({error.strerror}): load the driver with 'modprobe nvme-tcp', as root"
        raise UsageError(message, exit_code=1) from None
    if "dhchap_secret" not in options:
        message = (
            "this kernel's NVMe driver has no authentication (CONFIG_NVME_HOST_AUTH), without which every user of this "
            "machine could connect to the drive: attach by ublk or vduse"
        )
        raise UsageError(message, exit_code=1)


def connect(nqn: str, port: int, credentials: Credentials, *, nr_queues: int) -> KernelController:
    """Connect to the drive *nqn* at *port* of this machine.

    Raises:
        UsageError: the kernel does not, and its log says why; or its files would show the keys to every user. Nothing
            is connected then.
    """
    options = {
        "transport": "tcp",
        "traddr": _ADDRESS,
        "trsvcid": port,
        "nqn": nqn,
        "hostnqn": credentials.host_nqn,
        "hostid": credentials.host_nqn.rpartition(":")[2],
        "nr_io_queues": nr_queues,
        "reconnect_delay": _RECONNECT_S,
        "dhchap_secret": key_text(credentials.host_key),
        "dhchap_ctrl_secret": key_text(credentials.controller_key),
    }
    try:
        with _FABRICS.open("r+b", buffering=0) as file:
            file.write(",".join(f"{name}={value}" for name, value in options.items()).encode())
            answer = file.read(4096).decode()
    except OSError as error:
        message = (
            f"the kernel does not connect to the drive ({error.strerror}); the kernel's log (dmesg) has the reason"
        )
        raise UsageError(message, exit_code=1) from None
    found = re.search(r"instance=(\d+)", answer)
    assert found is not None, answer
    controller = KernelController(name=f"nvme{found[1]}", port=port, credentials=credentials)
    try:
        for attribute in ("dhchap_secret", "dhchap_ctrl_secret"):
            # Some kernels let every user read the keys there.
            (_CONTROLLERS / controller.name / attribute).chmod(0o600)
    except OSError as error:
        disconnect(controller)
        message = f"the keys of {controller.name} cannot be hidden from other users ({error.strerror})"
        raise UsageError(message, exit_code=1) from None
    return controller


def connected(nqn: str) -> list[KernelController]:
    """Return the controllers that the kernel has of the drive *nqn* at this machine, by keys of :func:`connect`."""
    found = []
    for path in sorted(_CONTROLLERS.glob("nvme*")):
        place = _PLACE.search(_attribute(path, "address"))
        if place is None or _attribute(path, "subsysnqn") != nqn:
            continue
        try:
            credentials = Credentials(
                host_nqn=_attribute(path, "hostnqn"),
                host_key=parse_key(_attribute(path, "dhchap_secret")),
                controller_key=parse_key(_attribute(path, "dhchap_ctrl_secret")),
            )
        except UsageError:
            continue  # connected by another program, without keys
        found.append(KernelController(name=path.name, port=int(place[1]), credentials=credentials))
    return found


def disk(nqn: str, uuid: str) -> Path | None:
    """Return the node of the namespace *uuid* of the drive *nqn*; None if the kernel has no disk of it."""
    for path in sorted(_DISKS.glob("nvme*n*")):
        # With multipath, a disk that is hidden is one path to the disk that is not.
        if _attribute(path, "hidden") != "1" and _attribute(path, "uuid") == uuid:
            node = Path("/dev", path.name)
            if _attribute(path / "device", "subsysnqn") == nqn and node.exists():
                return node
    return None


def wait_for_disk(controller: KernelController, nqn: str, uuid: str) -> Path:
    """Return the node of the namespace *uuid*, once *controller* is connected and has looked at it.

    Raises:
        UsageError: that takes too long.
    """
    deadline = time.monotonic() + _WAIT_S
    while True:
        node = disk(nqn, uuid)
        if node is not None and _attribute(_CONTROLLERS / controller.name, "state") == "live":
            return node
        if time.monotonic() > deadline:
            message = (
                f"the kernel has made no disk of the controller {controller.name}; the kernel's log (dmesg) "
                "has the reason"
            )
            raise UsageError(message, exit_code=1)
        time.sleep(_LOOK_S)


def disconnect(controller: KernelController) -> None:
    """End *controller* and its disk; what was written is flushed first. Nothing if another program has ended it.

    Raises:
        OSError: the kernel refuses, or this process is not root.
    """
    try:
        fd = os.open(_CONTROLLERS / controller.name / "delete_controller", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def _attribute(directory: Path, name: str) -> str:
    try:
        return (directory / name).read_text().strip()
    except OSError:
        return ""
