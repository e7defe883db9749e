"""``detach``: the end of an attached device."""

import os
import signal
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.attach import attached_nodes
from zonefs_emu.cli.common import FILE, info_of, number_of
from zonefs_emu.daemon.client import is_ended, live_infos
from zonefs_emu.daemon.framing import Json
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends import known
from zonefs_emu.front_ends.known import open_target

#: How long the device's requests and the image's last flush may take.
_END_S: Final = 60.0


@click.command()
@click.argument("what", metavar="NODE|IMG", type=FILE)
@click.option("-f", "--force", is_flag=True, help="Even while it is mounted or in use: its users get errors.")
def detach(*, what: Path, force: bool) -> None:
    """Detach the device NODE, or that of the image IMG, and return when it is gone and everything is written back.

    \b
    Examples:
      zonefs-emu detach /dev/ublkb0
      zonefs-emu detach small.img

    Given an image whose serving process was killed, this answers what was in flight and ends the device.
    """
    info = _find(what)
    if info is None:
        _detach_left_behind(what, force=force)
        return
    for node in attached_nodes(info):
        _require_unused(node, force=force)
    _end(number_of(info, "pid"), str(info["path"]))


def _find(what: Path) -> dict[str, Json] | None:
    """Return what the daemon says that serves *what*, a node or an image, as a device; None if there is none."""
    for info in live_infos():
        nodes = attached_nodes(info)
        image = Path(str(info["path"]))
        if nodes and (str(what) in nodes or (what.exists() and image.exists() and what.samefile(image))):
            return info
    return None


def _detach_left_behind(what: Path, *, force: bool) -> None:
    """End the device that a killed process left of the image *what*."""
    if not what.is_file():
        msg = f"{what} is no device of ours that is attached, and no image"
        raise UsageError(msg, exit_code=1)
    with open_target(what, readonly=True) as target:
        info = info_of(target)
        if target.live:
            msg = f"{what} is not attached: process {info['pid']} uses it otherwise"
            raise UsageError(msg, exit_code=1)
    from zonefs_emu.front_ends.block_device import left_behind  # noqa: PLC0415  (takes a while to load)

    image = Path(os.path.realpath(what))
    left = left_behind(image, str(info["uuid"]))
    if not left:
        msg = f"{what} is not attached"
        raise UsageError(msg, exit_code=1)
    for front_end, node in left:
        _require_unused(node, force=force)
        # Requests in flight are answered first, so that their callers get the data.
        front_end.end_at_once = True
        known.run(image, [front_end], ready=lambda: None, owner="zonefs-emu detach")


def _require_unused(node: str, *, force: bool) -> None:
    from zonefs_emu.front_ends.block_device import is_in_use  # noqa: PLC0415  (takes a while to load)

    if not force and is_in_use(node):
        msg = f"{node} is in use: unmount it, or end the program that has it open"
        raise UsageError(msg, exit_code=1)


def _end(pid: int, image: str) -> None:
    """Have the process *pid*, which serves *image*, end, and return when it has.

    Raises:
        UsageError: that takes too long.
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
        msg = f"the process {pid} that serves {image} has not ended"
        raise UsageError(msg, exit_code=1)
