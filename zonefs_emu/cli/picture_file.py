"""Writing a picture into a file, in the place of an earlier picture but of nothing else."""

import stat
from pathlib import Path
from typing import Final

from zonefs_emu.errors import UsageError

#: What the pictures of this program begin with: the pages and the drawings.
_BEGINNINGS: Final = (b"<!doctype html>", b"<svg ")


def require_picture_file(path: Path) -> None:
    """Make sure that *path* can be written without a loss: no file, an empty one, a picture, or no regular file.

    A command line with the names in the wrong order must not put a picture in the place of an image or of a log.

    Raises:
        UsageError: it is another file. OSError: it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return
        with path.open("rb") as file:
            beginning = file.read(max(map(len, _BEGINNINGS)))
    except FileNotFoundError:
        return
    if beginning and not beginning.startswith(_BEGINNINGS):
        message = f"{path} exists and is not a picture: remove it first, or choose another name"
        raise UsageError(message, exit_code=1)


def write_picture(path: Path, text: str) -> None:
    """Write the picture *text* into *path*. If that fails, no new file stays behind.

    Raises:
        UsageError: as :func:`require_picture_file`. OSError: the file cannot be written; with its name.
    """
    require_picture_file(path)
    existed = path.exists()
    try:
        path.write_text(text, encoding="utf-8")
    except BaseException as error:
        if not existed:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            # A failed write does not tell the file.
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
