"""``dump``: a copy of an image, held or not, into a file."""

import sys
from pathlib import Path

import click

from zonefs_emu.cli.common import FILE, image_argument, info_of, number_of
from zonefs_emu.daemon.client import open_target
from zonefs_emu.errors import UsageError


def copy(origin: Path, target: Path) -> None:
    """Copy the image *origin*, held or not, to the new file *target*; a terminal sees how far it is.

    Raises:
        UsageError: *target* exists, or the host refuses or has no room for it.
        ImageError, OSError: *origin* cannot be opened.
    """
    # Asked first: opening an image can take longer than this answer.
    if target.exists():
        msg = f"{target} exists, and nothing is ever overwritten: remove it first, or choose another name"
        raise UsageError(msg, exit_code=1)
    with open_target(origin, readonly=True) as source:
        size = number_of(info_of(source), "size")
        with click.progressbar(length=size, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
            # A daemon has another directory.
            for reply, _ in source.stream({"verb": "dump", "path": str(target.absolute())}):
                bar.update((number_of(reply, "done") if "done" in reply else size) - bar.pos)


@click.command(short_help="Copy an image, even while it is used, to a file.")
@image_argument
@click.argument("file", metavar="FILE", type=FILE)
def dump(image: Path, file: Path) -> None:
    """Copy IMG to the new file FILE: conditions, write pointers and data, holes staying holes.

    \b
    Example:
      zonefs-emu dump small.img small.dump && zonefs-emu report small.dump

    The dump is an image itself. While IMG is mounted or served the dump has what it held when it began, whatever is
    written or reset meanwhile.
    """
    copy(image, file)
