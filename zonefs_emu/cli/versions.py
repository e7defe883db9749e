"""The versions that a bug report needs: of this program, and of the software that it runs on."""

import ctypes
import platform
from typing import Final

from zonefs_emu import __version__

_LIBFUSE: Final = "libfuse3.so.3"


def versions() -> dict[str, str]:
    """Return the versions by name, this program's first, and which ring walker is used."""
    # Not at the head: every verb imports this module, and only this needs it.
    from zonefs_emu.compiled_modules import used_walker  # noqa: PLC0415

    return {
        "zonefs-emu": __version__,
        platform.python_implementation(): platform.python_version(),
        "libfuse": _libfuse(),
        "Linux": platform.release(),
        "ring walker": used_walker(),
    }


def _libfuse() -> str:
    # Not through pyfuse3, because importing it takes longer than everything else in --version.
    try:
        function = ctypes.CDLL(_LIBFUSE).fuse_pkgversion
    except (OSError, AttributeError):
        return "not found"
    function.restype = ctypes.c_char_p
    return str(function().decode())
