"""What every dialect answers to every operation in every condition, written down by hand from the standards.

Not derived from the code: where a cell here and a cell there differ, one of them is wrong, and the standard says which.

Columns: nw NOT_WP, em EMPTY, oi IMP_OPEN, oe EXP_OPEN, cl CLOSED, ro READONLY, fu FULL, ol OFFLINE. A cell is the
condition afterwards, or a refusal: -cnv CONVENTIONAL, -ro ZONE_READONLY, -ol ZONE_OFFLINE, -fu ZONE_FULL,
-bad BAD_TRANSITION, -area ZRWA_INVALID. The writes and appends are one block, not the last one of the zone, with data
in every zone that is not EMPTY and no limit in the way.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import VIRTIO, ZBC, ZNS, Dialect, Operation
from zonefs_emu.model.zone import Condition

ABBREVIATIONS: Final[Mapping[str, Condition | Status]] = MappingProxyType(
    {
        "nw": Condition.NOT_WP,
        "em": Condition.EMPTY,
        "oi": Condition.IMP_OPEN,
        "oe": Condition.EXP_OPEN,
        "cl": Condition.CLOSED,
        "ro": Condition.READONLY,
        "fu": Condition.FULL,
        "ol": Condition.OFFLINE,
        "-cnv": Status.CONVENTIONAL,
        "-ro": Status.ZONE_READONLY,
        "-ol": Status.ZONE_OFFLINE,
        "-fu": Status.ZONE_FULL,
        "-bad": Status.BAD_TRANSITION,
        "-area": Status.ZRWA_INVALID,
    }
)

_VIRTIO = """
         nw    em    oi    oe    cl    ro    fu    ol
READ     nw    em    oi    oe    cl    ro    fu    -ol
WRITE    nw    oi    oi    oe    oi    -ro   -fu   -ol
APPEND   -cnv  oi    oi    oe    oi    -ro   -fu   -ol
OPEN     -cnv  oe    oe    oe    oe    -ro   -bad  -ol
CLOSE    -cnv  -bad  cl    cl    cl    -ro   -bad  -ol
FINISH   -cnv  fu    fu    fu    fu    -ro   fu    -ol
RESET    -cnv  em    em    em    em    -ro   em    -ol
"""

_ZBC = """
         nw    em    oi    oe    cl    ro    fu    ol
READ     nw    em    oi    oe    cl    ro    fu    -ol
WRITE    nw    oi    oi    oe    oi    -ro   -fu   -ol
APPEND   -cnv  oi    oi    oe    oi    -ro   -fu   -ol
OPEN     -cnv  oe    oe    oe    oe    -ro   fu    -ol
CLOSE    -cnv  em    cl    cl    cl    -ro   fu    -ol
FINISH   -cnv  fu    fu    fu    fu    -ro   fu    -ol
RESET    -cnv  em    em    em    em    -ro   em    -ol
"""

_ZNS = """
         nw    em    oi    oe    cl    ro    fu    ol
READ     nw    em    oi    oe    cl    ro    fu    -ol
WRITE    nw    oi    oi    oe    oi    -ro   -fu   -ol
APPEND   -cnv  oi    oi    oe    oi    -ro   -fu   -ol
OPEN     -cnv  oe    oe    oe    oe    -bad  -bad  -bad
CLOSE    -cnv  -bad  cl    cl    cl    -bad  -bad  -bad
FINISH   -cnv  fu    fu    fu    fu    -bad  fu    -bad
RESET    -cnv  em    em    em    em    -bad  em    -bad
SET_EXTENSION  -cnv  cl  -bad  -bad  -bad  -bad  -bad  -bad
ALLOCATE_ZRWA  -cnv  oe  -area -area -area -area -area -area
FLUSH_ZRWA     -cnv  -area oi  oe    oi    -area -area -area
"""

# The ALL forms refuse nothing: what is not named here stays as it is. They are the same in all dialects.
_ALL = """
         nw    em    oi    oe    cl    ro    fu    ol
OPEN     nw    em    oi    oe    oe    ro    fu    ol
CLOSE    nw    em    cl    cl    cl    ro    fu    ol
FINISH   nw    em    fu    fu    fu    ro    fu    ol
RESET    nw    em    em    em    em    ro    em    ol
"""


class Cell(NamedTuple):
    """One cell; its ``str`` names the test."""

    dialect: Dialect
    operation: Operation
    cond: Condition
    outcome: Condition | Status

    def __str__(self) -> str:
        return f"{self.dialect.name}-{self.operation.name}-{self.cond.name}"


def cells_of(dialect: Dialect, text: str) -> Iterator[Cell]:
    head, *rows = text.strip().splitlines()
    conds = [Condition(ABBREVIATIONS[name]) for name in head.split()]
    for row in rows:
        name, *outcomes = row.split()
        for cond, outcome in zip(conds, outcomes, strict=True):
            yield Cell(dialect, Operation[name], cond, ABBREVIATIONS[outcome])


CELLS: Final = (*cells_of(VIRTIO, _VIRTIO), *cells_of(ZBC, _ZBC), *cells_of(ZNS, _ZNS))
ALL_CELLS: Final = tuple(cell for dialect in (VIRTIO, ZBC, ZNS) for cell in cells_of(dialect, _ALL))
