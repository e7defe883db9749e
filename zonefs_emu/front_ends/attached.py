"""Attached devices: listing and detaching them.

Listing asks the daemons only. The modules of ublk, VDUSE and NVMe load slowly, so they are imported to detach a device.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zonefs_emu.daemon.client import call, is_ended, live_infos
from zonefs_emu.daemon.framing import Json
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.known import open_target, run

#: The names of front-ends that are devices of the kernel.
_WAYS: Final = ("ublk", "vduse", "nvme-tcp")
#: How long the requests in flight and the image's last flush may take.
_END_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """An attached device: its node, how it is attached, its image, and the process that serves it."""

    node: str
    via: str
    image: str
    pid: int


def attached() -> Iterator[Attached]:
    """Yield the devices that daemons of this user serve."""
    for info in live_infos():
        yield from _attached_by(info)


def attached_nodes(info: dict[str, Json]) -> list[str]:
    """Return the nodes of the devices in *info*, the answer of a daemon to that verb."""
    return [each.node for each in _attached_by(info)]


def _attached_by(info: dict[str, Json]) -> Iterator[Attached]:
    front_ends, pid = info["front_ends"], info["pid"]
    assert isinstance(front_ends, list)
    assert isinstance(pid, int)
    for each in front_ends:
        assert isinstance(each, dict)
        # An NVMe drive that is served to other hosts has an address in place of a node.
        if each["name"] in _WAYS and (each["name"] != "nvme-tcp" or str(each["where"]).startswith("/dev/")):
            yield Attached(node=str(each["where"]), via=str(each["name"]), image=str(info["path"]), pid=pid)


def detach(what: Path, *, force: bool) -> None:
    """Detach *what*, a node or an image, and return when everything is written back and the image is free.

    If the serving process was killed, the requests that it had in flight are answered first.

    Raises:
        UsageError: it is not attached, it is in use and not *force*, or its process does not end.
        ZonedError, OSError: the image cannot be opened, or the device of a killed process cannot be recovered.
    """
    found = _find(what)
    if not found:
        _detach_left_behind(what, force=force)
        return
    for each in found:
        _require_unused(each.node, force=force)
    _end(found[0].pid, found[0].image)


def _find(what: Path) -> list[Attached]:
    """Return all devices of the daemon that serves *what*, a node or an image: they end together."""
    for info in live_infos():
        devices = list(_attached_by(info))
        if any(_is(what, each) for each in devices):
            return devices
    return []


def _is(what: Path, device: Attached) -> bool:
    image = Path(device.image)
    return str(what) == device.node or (what.exists() and image.exists() and what.samefile(image))


def _detach_left_behind(what: Path, *, force: bool) -> None:
    """Remove the device that a killed process left for the image *what*."""
    if not what.is_file():
        message = f"{what} is neither a device that zonefs-emu has attached nor an image"
        raise UsageError(message, exit_code=1)
    with open_target(what, readonly=True) as target:
        info = call(target, {"verb": "info"})[0]
        if target.live:
            message = f"{what} is not attached: process {info['pid']} uses it in another way"
            raise UsageError(message, exit_code=1)
    from zonefs_emu.front_ends.block_device import left_behind  # noqa: PLC0415  (takes a while to load)

    image = Path(os.path.realpath(what))
    left = left_behind(image, str(info["uuid"]))
    if not left:
        message = f"{what} is not attached"
        raise UsageError(message, exit_code=1)
    for front_end, node in left:
        _require_unused(node, force=force)
        # Requests in flight are answered first, so that their callers get the data.
        front_end.end_at_once = True
        run(image, [front_end], ready=lambda: None, owner="zonefs-emu detach")


def _require_unused(node: str, *, force: bool) -> None:
    from zonefs_emu.front_ends.block_device import is_in_use  # noqa: PLC0415  (takes a while to load)

    if not force and is_in_use(node):
        message = f"{node} is in use: unmount it, or end the program that has it open"
        raise UsageError(message, exit_code=1)


def _end(pid: int, image: str) -> None:
    """End the process *pid*, which serves *image*, and wait for it.

    Raises:
        UsageError: it has not ended in time.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        ended = is_ended(pidfd, _END_S)
    finally:
        os.close(pidfd)
    if not ended:
        message = f"the process {pid} that serves {image} has not ended"
        raise UsageError(message, exit_code=1)
