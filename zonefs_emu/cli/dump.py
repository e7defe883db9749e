"""``dump``: a copy of an image, held or not, into a file or a pipe."""

import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click

from zonefs_emu.cli.common import FILE_OR_STREAM, STREAM, image_argument, info_of, number_of
from zonefs_emu.cli.progress import progress
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.units import human_bytes, to_bytes

#: Bytes written to a pipe at once.
_PIECE_BYTES: Final = 1 << 20


def copy(origin: Path, target: Path, *, spool: bool = False) -> None:
    """Copy the image *origin*, held or not, to the new file *target*; show the progress on a terminal.

    *spool*: the directory of *target* is a temporary one for it alone.

    Raises:
        UsageError: *target* exists, or the host refuses or has no room for it.
        ImageError, PeerError, OSError: *origin* cannot be opened, or its daemon went away.
    """
    # Checked first, because opening an image can take longer.
    require_new(target)
    with open_target(origin, readonly=True) as source:
        size = number_of(info_of(source), "size")
        if spool and os.geteuid() == 0:
            # A daemon of another user must be able to write there.
            os.chown(target.parent, source.uid, -1)
        with progress(to_bytes(size), human_bytes) as at:
            # A daemon has another working directory.
            for reply, _ in source.stream({"verb": "dump", "path": str(target.absolute())}):
                at(to_bytes(number_of(reply, "done") if "done" in reply else size))


def require_new(target: Path) -> None:
    """Raise UsageError if there is a file *target*."""
    if os.path.lexists(target):
        message = f"{target} exists, and files are never overwritten: remove it first, or choose another name"
        raise UsageError(message, exit_code=1)


def send(image: Path) -> None:
    """Write a copy of *image* to stdout, which may be a pipe.

    A temporary file is used in between, because data of a mounted image is copied out of order, before it is
    overwritten, and a slow reader of the pipe must not hold up the writers.

    Raises:
        UsageError: stdout is a terminal. As :func:`copy`.
    """
    if sys.stdout.isatty():
        message = "a dump cannot go to a terminal: send stdout to a pipe or a file, or name a file"
        raise UsageError(message)
    with TemporaryDirectory(prefix="zonefs-emu-dump-") as directory:
        spool = Path(directory) / "dump"
        copy(image, spool, spool=True)
        with spool.open("rb") as file:
            spool.unlink()
            try:
                shutil.copyfileobj(file, sys.stdout.buffer, _PIECE_BYTES)
                sys.stdout.buffer.flush()
            except OSError as error:
                error.filename = error.filename or "stdout"
                raise


@click.command()
@image_argument
@click.argument("file", metavar="FILE", type=FILE_OR_STREAM)
def dump(image: Path, file: Path) -> None:
    """Copy IMG to the new file FILE: conditions, write pointers and data. Holes stay holes.

    \b
    Examples:
      zonefs-emu dump small.img small.dump && zonefs-emu report small.dump
      zonefs-emu dump small.img - | zstd >small.dump.zst

    The dump is an image itself. If IMG is mounted or served, the dump has its state at the beginning, whatever is
    written or reset meanwhile. With - the dump goes to stdout, with holes as zeros; it is first made in the
    temporary directory (TMPDIR), where it takes as much space as the data. A file called - is ./-.
    """
    if file is STREAM:
        send(image)
    else:
        copy(image, file)
