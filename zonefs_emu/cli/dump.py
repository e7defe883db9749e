"""``dump``: a copy of an image, held or not, into a file."""

from array import array
from pathlib import Path

import click

from zonefs_emu.cli.common import FILE, image_argument, number_of, zones_of
from zonefs_emu.daemon.client import Target, call, open_target
from zonefs_emu.errors import UsageError
from zonefs_emu.persist import copy as persist_copy


def copy(origin: Path, target: Path) -> None:
    """Copy the image *origin*, held or not, to the new file *target*.

    Raises:
        UsageError: *target* exists, or zones were reset while the copy ran.
        ImageError, OSError: as opening and copying raise them.
    """
    # Asked first: opening an image can take longer than this answer.
    if target.exists():
        msg = f"{target} exists, and nothing is ever overwritten: remove it first, or choose another name"
        raise UsageError(msg, exit_code=1)
    with open_target(origin, readonly=True) as source:
        nr_resets = _nr_resets(source)
        conds, wps = bytearray(), array("Q")
        for zone in zones_of(source):
            conds.append(zone.cond)
            wps.append(zone.wp - zone.start)
        try:
            persist_copy.copy_image(origin, target, conds, wps)
        except OSError as error:
            # "No space left" comes without a name.
            error.filename = error.filename or str(target)
            raise
        # Data below a wp never changes but by a reset; who resets while we copy gives us holes.
        if _nr_resets(source) != nr_resets:
            target.unlink()
            msg = f"zones of {origin} were reset while it was being copied: try again when it is quieter"
            raise UsageError(msg, exit_code=1)


def _nr_resets(source: Target) -> int:
    counters = call(source, {"verb": "stats"})[0]["device"]
    assert isinstance(counters, dict)
    return number_of(counters, "resets")


@click.command(short_help="Copy an image, even while it is used, to a file.")
@image_argument
@click.argument("file", metavar="FILE", type=FILE)
def dump(image: Path, file: Path) -> None:
    """Copy IMG to the new file FILE: conditions, write pointers and data, holes staying holes.

    \b
    Example:
      zonefs-emu dump small.img small.dump && zonefs-emu report small.dump

    The dump is an image itself. While IMG is mounted or served the dump has the zones as they were when it began;
    writes to conventional zones may or may not be in it.
    """
    copy(image, file)
