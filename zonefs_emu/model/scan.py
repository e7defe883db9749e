"""Searching an array of conditions by fast scans."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final

from zonefs_emu.errors import Status
from zonefs_emu.model.zone import Condition

#: The most zones of which the conditions that occur are found first, instead of looking for every condition.
_FEW: Final = 1024
_CONDITIONS: Final = frozenset(map(int, Condition))


def indices_of(conds: frozenset[Condition], cond_codes: bytes | bytearray, first: int = 0) -> Iterator[int]:
    """Yield the places in *cond_codes* that have one of *conds*, ascending; the first place has the number *first*."""
    if conds:
        for match in _pattern(conds).finditer(cond_codes):
            yield from range(first + match.start(), first + match.end())


@cache
def _pattern(conds: frozenset[Condition]) -> re.Pattern[bytes]:
    """Return a pattern for bytes that are of *conds*. Making it costs more than a command on one zone."""
    return re.compile(b"[" + b"".join(re.escape(bytes((cond,))) for cond in sorted(conds)) + b"]+")


def first_index(conds: frozenset[Condition], cond_codes: bytearray) -> int:
    """Return the first place in *cond_codes* that has one of *conds*; there is one."""
    return min(at for cond in conds if (at := cond_codes.find(cond)) >= 0)


def first_refused(row: Mapping[Condition, Condition | Status], cond_codes: bytearray) -> tuple[int, Status] | None:
    """Return the first place in *cond_codes* whose condition *row* refuses, and the status; None if there is none."""
    found = set(cond_codes) if len(cond_codes) <= _FEW else _CONDITIONS
    refused = (
        (at, target)
        for cond in map(Condition, found)
        if isinstance(target := row[cond], Status) and (at := cond_codes.find(cond)) >= 0
    )
    return min(refused, default=None)
