"""``power-cycle``: cut and restore the power of the drive."""

from pathlib import Path

import click

from zonefs_emu.cli.common import image_argument
from zonefs_emu.daemon.client import call
from zonefs_emu.front_ends.known import open_target


@click.command("power-cycle")
@image_argument
def power_cycle(image: Path) -> None:
    """Do what a power cut does to a drive: open zones come back closed, or empty if nothing was written.

    \b
    Example:
      zonefs-emu open small.img --zone 4 && zonefs-emu power-cycle small.img

    Without this verb an image is like a drive that stays powered: conditions last across commands, mounts and
    clean stops. The data is flushed first, so none is lost.
    """
    with open_target(image) as target:
        call(target, {"verb": "power-cycle"})
