"""How far the timing model of the zn540 is from the measurements of the drive, and from those that it has not seen.

For each group of points: the mean error of the mean latency, and the points of which it is more than 10 % off. Then the
same where the model has not seen the points: for each request size, and for each depth, the parameters that a group
decides are searched anew, from a start that is a fifth off, with the points of that size or depth left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.harness import PROJECT, Row, progress
from zonefs_emu.fitting.measurements import Measurement, read_measurements
from zonefs_emu.fitting.predictions import PointError, by_group, errors_of
from zonefs_emu.fitting.search import SEARCHED, fit
from zonefs_emu.model.timing.parameters import FlashParameters
from zonefs_emu.model.timing.timing_presets import ZN540

MEASUREMENTS: Final = PROJECT / "bench" / "zn540-train.csv"
#: Goals in per cent: points that are more than 10 % off, by their mean latency.
OUTSIDE_MAX: Final = 10.0
#: Every so many of the jobs of mixes, odd because reads and writes alternate. There are hundreds, which differ in
#: little, and each is a third of a second of a busy drive.
_EVERY_MIX: Final = 13
_COUNT: Final = 3000
_FOLDED: Final = (
    "write and append, 4096-byte blocks",
    "write and append, 512-byte blocks",
    "random read",
    "sequential read",
)
_FOLDS: Final[dict[str, Callable[[Measurement], int]]] = {
    "size": lambda point: point.nr_bytes,
    "depth": lambda point: point.depth,
}


def rows(scratch: Path, runs: int) -> list[Row]:  # noqa: ARG001  (as every area; nothing here varies from run to run)
    """Compare the model with what was measured."""
    with MEASUREMENTS.open(newline="") as lines:
        points = read_measurements(lines)
    mixes = [point for point in points if point.group.endswith("of a mix of jobs")]
    seen = [point for point in points if point not in mixes] + mixes[::_EVERY_MIX]
    progress("timing: all points")
    found = _rows("", errors_of(ZN540, seen, count=_COUNT))
    for name, key in _FOLDS.items():
        for group in _FOLDED:
            of_group = [point for point in points if point.group == group]
            errors = []
            for value in sorted({key(point) for point in of_group}):
                progress(f"timing: {group}, without {name} {value}")
                known = [point for point in of_group if key(point) != value]
                errors += errors_of(
                    fit(known, _start(group)), [point for point in of_group if key(point) == value], count=_COUNT
                )
            found += _rows(f", unseen {name}", errors)
    return found


def _start(group: str) -> FlashParameters:
    """Return the preset with the parameters that *group* decides a fifth off, in turn to either side."""
    names = SEARCHED.get(group, ())
    changed = {}
    for number, name in enumerate(names):
        value = getattr(ZN540, name)
        changed[name] = type(value)(value * (1.2 if number % 2 else 0.83))
    return replace(ZN540, **changed)


def _rows(suffix: str, errors: Sequence[PointError]) -> list[Row]:
    found = []
    for row in by_group(errors):
        what = f"{row.group}{suffix}: "
        outside = 100 * (1 - row.within)
        found += [
            Row(area="timing", what=f"{what}mean error", unit="%", ours=100 * row.mean),
            Row(area="timing", what=f"{what}points 10 % off", unit="%", ours=outside, limit=OUTSIDE_MAX),
            Row(area="timing", what=f"{what}median error of the 99th percentile", unit="%", ours=100 * row.p99_median),
        ]
    return found
