"""``restore``: an image from a dump."""

from pathlib import Path

import click

from zonefs_emu.cli.common import FILE
from zonefs_emu.cli.dump import copy


@click.command(short_help="Make an image from a dump.")
@click.argument("file", metavar="FILE", type=FILE)
@click.argument("image", metavar="IMG", type=FILE)
def restore(file: Path, image: Path) -> None:
    """Make the new image IMG from the dump FILE: conditions, write pointers and data, holes staying holes.

    \b
    Example:
      zonefs-emu restore small.dump again.img

    An existing file is never overwritten.
    """
    copy(file, image)
