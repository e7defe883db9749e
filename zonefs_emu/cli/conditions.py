"""The names of zone conditions and types: those of this program and those of other tools.

Pure. Output has the two-letter codes of zbd. The names of blkzone, nvme-cli, xNVMe, libzbc and Linux are accepted
wherever a condition is an argument.
"""

from types import MappingProxyType
from typing import Final

from zonefs_emu.errors import UsageError
from zonefs_emu.model.zone import Condition, ZoneType

_C = Condition

#: The codes of zbd, which this program prints too. blkzone prints "of" for offline; its manual says "ol".
COND_CODES: Final = MappingProxyType(
    {
        _C.NOT_WP: "nw",
        _C.EMPTY: "em",
        _C.IMP_OPEN: "oi",
        _C.EXP_OPEN: "oe",
        _C.CLOSED: "cl",
        _C.READONLY: "ro",
        _C.FULL: "fu",
        _C.OFFLINE: "ol",
    }
)
COND_WORDS: Final = MappingProxyType(
    {
        _C.NOT_WP: "conventional",
        _C.EMPTY: "empty",
        _C.IMP_OPEN: "implicitly open",
        _C.EXP_OPEN: "explicitly open",
        _C.CLOSED: "closed",
        _C.READONLY: "read-only",
        _C.FULL: "full",
        _C.OFFLINE: "offline",
    }
)
TYPE_CODES: Final = MappingProxyType({ZoneType.CONVENTIONAL: "cnv", ZoneType.SWR: "swr", ZoneType.SWP: "swp"})

#: Names without case, blanks, hyphens and underscores.
_ALIASES: Final = MappingProxyType(
    {
        _C.NOT_WP: ("nw", "notwp", "notwritepointer", "conventional", "cnv"),
        _C.EMPTY: ("em", "empty"),
        _C.IMP_OPEN: ("oi", "impopen", "impopened", "implicitopen", "implicitlyopen", "implicitlyopened", "iopen"),
        _C.EXP_OPEN: ("oe", "expopen", "expopened", "explicitopen", "explicitlyopen", "explicitlyopened", "eopen"),
        _C.CLOSED: ("cl", "closed"),
        _C.READONLY: ("ro", "readonly", "rdonly", "ronly"),
        _C.FULL: ("fu", "full"),
        _C.OFFLINE: ("ol", "of", "offline"),
    }
)
_PREFIXES: Final = ("zndstate", "blkzonecond", "nvmeznszs", "virtioblkzs")
_BY_NAME: Final = MappingProxyType({name: cond for cond, names in _ALIASES.items() for name in names})


def parse_cond(text: str) -> Condition:
    """Return the condition called *text*: a code, any tool's name, or its number (0xe).

    Raises:
        UsageError: no tool has a condition of that name.
    """
    name = text.strip().lower().translate({ord(char): None for char in " -_"})
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    cond = _BY_NAME.get(name)
    if cond is None:
        cond = _by_number(text)
    if cond is None:
        known = ", ".join(f"{code} ({COND_WORDS[cond]})" for cond, code in COND_CODES.items())
        message = f"'{text}' is not a zone condition: there are {known}"
        raise UsageError(message)
    return cond


def parse_conds(text: str) -> frozenset[Condition]:
    """Return the conditions in the comma-separated list *text*.

    Raises:
        UsageError: an element is no condition, or the list is empty.
    """
    return frozenset(parse_cond(part) for part in text.split(","))


def _by_number(name: str) -> Condition | None:
    try:
        return Condition(int(name, 0))
    except ValueError:
        return None
