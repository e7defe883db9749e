"""Ratios as pictures: bars on a logarithmic scale, with the peer at 1.

One picture has a bar for each row, with its goal as a mark; the other one has a bar for each area and peer.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from bench.harness import PURE, Row

PICTURE: Final = Path(__file__).parent / "results.svg"
OVERVIEW: Final = Path(__file__).parent / "overview.svg"

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bar:
    """A bar up to *ratio*, with a line from *least* to *most*."""

    label: str
    ratio: float
    least: float
    most: float
    goal: float | None = None
    verdict: str = ""


def svg(rows: Sequence[Row]) -> str:
    """Return the picture of those *rows* that have a peer."""
    areas = list(dict.fromkeys(row.area for row in rows if row.ratio is not None))
    compared = sorted((row for row in rows if row.ratio is not None), key=lambda row: areas.index(row.area))
    return _draw({area: [_bar(row) for row in group] for area, group in groupby(compared, key=lambda row: row.area)})


def overview(rows: Sequence[Row]) -> str:
    """Return the picture of areas: the geometric mean of the ratios against each peer, and their range."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.ratio is not None:
            pure = ", in pure Python" if row.what.endswith(PURE) else ""
            ratios.setdefault(row.area, {}).setdefault(f"against {row.peer}{pure}", []).append(row.ratio)
    return _draw({
        area: [
            _Bar(label=peer, ratio=statistics.geometric_mean(of_peer), least=min(of_peer), most=max(of_peer))
            for peer, of_peer in peers.items()
        ]
        for area, peers in ratios.items()
    })  # fmt: skip


def _bar(row: Row) -> _Bar:
    assert row.ratio is not None
    return _Bar(
        label=f"{row.what}, against {row.peer}", ratio=row.ratio, least=min(row.ratios), most=max(row.ratios),
        goal=row.goal, verdict=row.verdict,
    )  # fmt: skip


def _draw(groups: Mapping[str, Sequence[_Bar]]) -> str:
    height = _HEAD + _LINE * (len(groups) + sum(map(len, groups.values()))) + 12
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12" fill="#777777" role="img" aria-label="Ratios of zonefs_emu to its peers">'
    )
    return "\n".join((head, *_scale(height), *_body(groups), "</svg>\n"))


def _x(ratio: float) -> float:
    share = math.log(min(max(ratio, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)
    return round(_LABELS + share * (_WIDTH - _RIGHT - _LABELS), 1)


def _scale(height: int) -> Iterator[str]:
    for tick in _TICKS:
        stroke = 'stroke="#777777" stroke-width="2"' if tick == 1 else 'stroke="#777777" stroke-opacity="0.3"'
        yield f'<line x1="{_x(tick)}" y1="{_HEAD - 12}" x2="{_x(tick)}" y2="{height - 8}" {stroke}/>'
        yield f'<text x="{_x(tick)}" y="{_HEAD - 18}" text-anchor="middle">{tick:g} ×</text>'
    yield f'<text x="{_x(1)}" y="{_HEAD - 32}" text-anchor="middle">the peer</text>'


def _body(groups: Mapping[str, Sequence[_Bar]]) -> Iterator[str]:
    y = _HEAD
    for area, bars in groups.items():
        yield f'<text x="4" y="{y + 14}" font-weight="bold">{escape(area)}</text>'
        y += _LINE
        for bar in bars:
            begin, end = sorted((_x(1), _x(bar.ratio)))
            colour = _COLOURS[bar.verdict]
            yield f'<text x="16" y="{y + 13}">{escape(bar.label)}</text>'
            yield f'<rect x="{begin}" y="{y + 3}" width="{max(end - begin, 1):.1f}" height="12" fill="{colour}"/>'
            yield (
                f'<line x1="{_x(bar.least)}" y1="{y + 9}" x2="{_x(bar.most)}" y2="{y + 9}" '
                f'stroke="#777777" stroke-width="2"/>'
            )
            if bar.goal is not None:
                yield f'<path d="M{_x(bar.goal)} {y} v18" stroke="#000000" stroke-width="3" stroke-opacity="0.6"/>'
            yield f'<text x="{_WIDTH - 4}" y="{y + 13}" text-anchor="end">{bar.ratio:.2f} ×</text>'
            y += _LINE
