"""``detach``: the end of an attached device."""

from pathlib import Path

import click

from zonefs_emu.cli.common import FILE
from zonefs_emu.front_ends import attached


@click.command()
@click.argument("what", metavar="NODE|IMG", type=FILE)
@click.option("-f", "--force", is_flag=True, help="Detach even while it is mounted or in use: its users get errors.")
def detach(*, what: Path, force: bool) -> None:
    """Detach the device NODE, or that of the image IMG, and return when it is gone and everything is written back.

    \b
    Examples:
      zonefs-emu detach /dev/ublkb0
      zonefs-emu detach small.img

    If the process that served IMG was killed, this answers the requests in flight and ends the device.
    """
    attached.detach(what, force=force)
