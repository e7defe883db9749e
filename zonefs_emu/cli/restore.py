"""``restore``: an image from a dump."""

import sys
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import FILE, FILE_OR_STREAM, STREAM
from zonefs_emu.cli.dump import copy, require_new
from zonefs_emu.cli.progress import progress
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import ImageError, UsageError, trying
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.units import human_bytes

_CHUNK_BYTES: Final = 1 << 20
#: Zeros of this length become a hole.
_HOLE_BYTES: Final = 1 << 16
_ZEROS: Final = bytes(_HOLE_BYTES)


def receive(image: Path) -> None:
    """Make the new image *image* from the dump in stdin.

    Raises:
        UsageError: *image* exists, stdin is a terminal or has no image.
        OSError: the host refuses or has no room. Nothing is left behind.
    """
    require_new(image)
    if sys.stdin.isatty():
        message = "a dump cannot come from a terminal: stdin must be a pipe or a file, or name a file"
        raise UsageError(message)
    backing = FileBacking.create(image, 0, ())
    try:
        try:
            _fill(backing, image)
        finally:
            backing.close()
        # Opened for reading only, which checks the image without changing it.
        ZonedDevice.open(image, readonly=True).close()
    except BaseException as error:
        image.unlink(missing_ok=True)
        if isinstance(error, ImageError):
            message = f"stdin has no image: {str(error).removeprefix(f'{image}: ')}"
            raise UsageError(message, exit_code=1) from None
        raise


def _fill(backing: FileBacking, image: Path) -> None:
    length = 0
    try:
        with progress(None, human_bytes) as at:
            while chunk := _chunk():
                backing.resize(length + len(chunk))
                for start in range(0, len(chunk), _HOLE_BYTES):
                    piece = chunk[start : start + _HOLE_BYTES]
                    if piece != _ZEROS:
                        backing.pwrite(piece, length + start)
                length += len(chunk)
                at(length)
        backing.sync()
        backing.sync_name()
    except OSError as error:
        # "No space left" comes without a name.
        error.filename = error.filename or str(image)
        raise


def _chunk() -> bytes:
    with trying("read stdin"):
        return sys.stdin.buffer.read(_CHUNK_BYTES)


@click.command()
@click.argument("file", metavar="FILE", type=FILE_OR_STREAM)
@click.argument("image", metavar="IMG", type=FILE)
def restore(file: Path, image: Path) -> None:
    """Make the new image IMG from the dump FILE: conditions, write pointers and data. Holes stay holes.

    \b
    Examples:
      zonefs-emu restore small.dump again.img
      zstd -dc small.dump.zst | zonefs-emu restore - again.img

    An existing file is never overwritten. With - the dump comes from stdin, and zeros become holes. A file called -
    is ./-.
    """
    if file is STREAM:
        receive(image)
    else:
        copy(file, image)
