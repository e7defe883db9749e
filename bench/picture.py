"""The ratios as a picture: one bar for each row, on a logarithmic scale, with the peer at 1 and the goal as a mark."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from bench.harness import Row

PICTURE: Final = Path(__file__).parent / "results.svg"

_WIDTH: Final = 960
_LABELS: Final = 500
_RIGHT: Final = 60
_LINE: Final = 20
_HEAD: Final = 44
#: Ratios beyond these are drawn at the edge.
_LEAST: Final = 0.05
_MOST: Final = 10.0
_TICKS: Final = (0.1, 0.25, 0.5, 1, 2, 4, 8)
#: Readable on white and on black.
_COLOURS: Final = {"met": "#2a9d57", "MISSED": "#d1495b", "too noisy": "#999999", "": "#4f86c6"}


def svg(rows: Sequence[Row]) -> str:
    """Return the picture of those *rows* that have a peer."""
    areas = list(dict.fromkeys(row.area for row in rows if row.ratio is not None))
    compared = sorted((row for row in rows if row.ratio is not None), key=lambda row: areas.index(row.area))
    height = _HEAD + _LINE * (len(compared) + len(areas)) + 12
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12" fill="#777777" role="img" aria-label="Ratios of zonefs_emu to its peers">'
    )
    return "\n".join((head, *_scale(height), *_body(compared), "</svg>\n"))


def _x(ratio: float) -> float:
    share = math.log(min(max(ratio, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)
    return round(_LABELS + share * (_WIDTH - _RIGHT - _LABELS), 1)


def _scale(height: int) -> Iterator[str]:
    for tick in _TICKS:
        stroke = 'stroke="#777777" stroke-width="2"' if tick == 1 else 'stroke="#777777" stroke-opacity="0.3"'
        yield f'<line x1="{_x(tick)}" y1="{_HEAD - 12}" x2="{_x(tick)}" y2="{height - 8}" {stroke}/>'
        yield f'<text x="{_x(tick)}" y="{_HEAD - 18}" text-anchor="middle">{tick:g} ×</text>'
    yield f'<text x="{_x(1)}" y="{_HEAD - 32}" text-anchor="middle">the peer</text>'


def _body(rows: Sequence[Row]) -> Iterator[str]:
    y = _HEAD
    for area, of_area in groupby(rows, key=lambda row: row.area):
        yield f'<text x="4" y="{y + 14}" font-weight="bold">{escape(area)}</text>'
        y += _LINE
        for row in of_area:
            assert row.ratio is not None
            colour = _COLOURS[row.verdict]
            label = f"{row.what}, against {row.peer}"
            begin, end = sorted((_x(1), _x(row.ratio)))
            yield f'<text x="16" y="{y + 13}">{escape(label)}</text>'
            yield f'<rect x="{begin}" y="{y + 3}" width="{max(end - begin, 1):.1f}" height="12" fill="{colour}"/>'
            yield (
                f'<line x1="{_x(min(row.ratios))}" y1="{y + 9}" x2="{_x(max(row.ratios))}" y2="{y + 9}" '
                f'stroke="#777777" stroke-width="2"/>'
            )
            if row.goal is not None:
                yield f'<path d="M{_x(row.goal)} {y} v18" stroke="#000000" stroke-width="3" stroke-opacity="0.6"/>'
            yield f'<text x="{_WIDTH - 4}" y="{y + 13}" text-anchor="end">{row.ratio:.2f} ×</text>'
            y += _LINE
