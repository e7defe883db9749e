"""``umount``: the end of a mount."""

from pathlib import Path

import click

from zonefs_emu.cli.common import FILE
from zonefs_emu.front_ends.zonefs import unmount


@click.command()
@click.argument("directory", metavar="DIR", type=FILE)
def umount(*, directory: Path) -> None:
    """Unmount the zonefs at DIR, and return when everything is written back and the image is free.

    \b
    Example:
      zonefs-emu umount mnt

    This is refused while a file under DIR is open or a process has its working directory there.
    """
    unmount(directory)
