"""The arguments of the helper ``mount.fuse.zonefs-emu``, which mount(8) runs, as arguments of the verb ``mount``.

Pure. Source: mount(8), "EXTERNAL HELPERS": /sbin/mount.suffix spec dir [-sfnv] [-N namespace] [-o options] [-t
type.subtype].
"""

import getopt
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from zonefs_emu.errors import UsageError

#: Exit codes of mount(8) for those of the verbs. Source: mount(8), "EXIT STATUS".
_EXIT_CODES: Final = MappingProxyType({1: 32, 2: 1})
_TYPE: Final = "fuse.zonefs-emu"


def verb_arguments(arguments: Sequence[str]) -> list[str] | None:
    """Return the arguments of ``zonefs-emu`` for those of the helper; None if nothing is to be mounted (-f).

    Raises:
        UsageError: they are not those of a helper, or name a namespace; with the remedy.
    """
    try:
        options, words = getopt.gnu_getopt(list(arguments), "sfnvN:o:t:")
    except getopt.GetoptError as error:
        message = f"mount.{_TYPE}: {error.msg} (usage: mount.{_TYPE} IMG DIR [-o OPTIONS])"
        raise UsageError(message) from None
    given = dict(options)
    if len(words) != 2:
        message = f"mount.{_TYPE}: an image and a directory are needed, not {len(words)} words"
        raise UsageError(message)
    if "-N" in given:
        message = f"mount.{_TYPE}: a namespace (-N) cannot be entered: run mount inside it"
        raise UsageError(message)
    if "-f" in given:
        return None
    mount_options = ",".join(value for name, value in options if name == "-o")
    return ["mount", *(["-o", mount_options] if mount_options else []), "--", *words]


def exit_code(code: str | int | None) -> str | int | None:
    """Return the exit code of mount(8) for the exit *code* of a verb."""
    return _EXIT_CODES.get(code, code) if isinstance(code, int) else code
