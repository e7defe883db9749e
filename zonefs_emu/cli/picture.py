"""The picture of all zones: condition and fill, for a terminal or as SVG.

Pure: zones in, text out; the caller gives the width of the terminal and whether it has colours. Zones are aggregated
into a limited number of cells, so that a million zones fit on a screen. A cell of several zones shows the condition
that needs most attention, and the mean fill.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from types import MappingProxyType
from typing import Final

from zonefs_emu.cli.conditions import COND_CODES, COND_WORDS
from zonefs_emu.model.zone import Condition, Zone

_C = Condition
#: A cell of several zones shows the first of these conditions that occurs in it. FULL and EMPTY are last, because the
#: fill shows them.
_ATTENTION: Final = (_C.OFFLINE, _C.READONLY, _C.EXP_OPEN, _C.IMP_OPEN, _C.CLOSED, _C.FULL, _C.EMPTY, _C.NOT_WP)
_ORDER: Final = (_C.NOT_WP, _C.EMPTY, _C.IMP_OPEN, _C.EXP_OPEN, _C.CLOSED, _C.FULL, _C.READONLY, _C.OFFLINE)
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_NO_DATA: Final = "·"
_CONVENTIONAL: Final = "="
_DEAD: Final = "X"
_SGR: Final = MappingProxyType(
    {
        _C.NOT_WP: "36",
        _C.EMPTY: "90",
        _C.IMP_OPEN: "32",
        _C.EXP_OPEN: "92",
        _C.CLOSED: "33",
        _C.FULL: "34",
        _C.READONLY: "35",
        _C.OFFLINE: "31",
    }
)
_FILL: Final = MappingProxyType(
    {
        _C.NOT_WP: "#5b9aa0",
        _C.EMPTY: "#9a9a9a",
        _C.IMP_OPEN: "#4caf50",
        _C.EXP_OPEN: "#1b7f2a",
        _C.CLOSED: "#e0a030",
        _C.FULL: "#3566b8",
        _C.READONLY: "#8e44ad",
        _C.OFFLINE: "#c0392b",
    }
)
#: With at most this many rows, a terminal picture shows the condition of every zone in letters.
_DETAILED_ROWS: Final = 24
_DENSE_ROWS: Final = 32
_ROUND: Final = (256, 200, 160, 128, 100, 80, 64, 50, 40, 32, 20, 16, 10, 8)
_SVG_COLUMNS: Final = 64
_SVG_CELLS: Final = 64 * 64
_SVG_CELL: Final = 14
_SVG_GAP: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One or several adjacent zones. *fill*: mean share of the capacity that is written, 0 to 1."""

    first: int
    count: int
    cond: Condition
    fill: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All zones, aggregated into cells, and how many zones are in each condition."""

    cells: tuple[Cell, ...]
    zones_per_cell: int
    nr_zones: int
    counts: MappingProxyType[Condition, int]


def fill_of(zone: Zone) -> float:
    """Return how full *zone* is, 0 to 1; a FULL zone is 1, conventional and OFFLINE zones are 0."""
    if zone.cond == _C.FULL:
        return 1.0
    if zone.cond in (_C.NOT_WP, _C.OFFLINE):
        return 0.0
    return (zone.wp - zone.start) / zone.capacity


def aggregate(zones: Iterable[Zone], *, nr_zones: int, max_cells: int) -> Picture:
    """Aggregate *nr_zones* *zones* into at most *max_cells* cells."""
    per_cell = max(1, -(-nr_zones // max_cells))
    totals = dict.fromkeys(_ORDER, 0)
    cells: list[Cell] = []
    first, nr_seen, fill = 0, 0, 0.0
    present: set[Condition] = set()
    for zone in zones:
        if nr_seen == 0:
            first = zone.zone_no
        totals[zone.cond] += 1
        present.add(zone.cond)
        fill += fill_of(zone)
        nr_seen += 1
        if nr_seen == per_cell:
            cells.append(_cell(first, nr_seen, present, fill))
            present, nr_seen, fill = set(), 0, 0.0
    if nr_seen:
        cells.append(_cell(first, nr_seen, present, fill))
    return Picture(cells=tuple(cells), zones_per_cell=per_cell, nr_zones=nr_zones, counts=MappingProxyType(totals))


def _cell(first: int, count: int, present: set[Condition], fill: float) -> Cell:
    cond = next(cond for cond in _ATTENTION if cond in present)
    return Cell(first=first, count=count, cond=cond, fill=fill / count)


def terminal(zones: Iterable[Zone], *, nr_zones: int, width: int, colour: bool) -> Iterator[str]:
    """Yield the lines of a terminal picture at most *width* columns wide."""
    label = len(str(nr_zones - 1)) + 2
    room = max(8, width - label)
    columns = _round_columns(room // 4)
    dense = nr_zones > columns * _DETAILED_ROWS
    if not dense:
        picture = aggregate(zones, nr_zones=nr_zones, max_cells=nr_zones)
        texts = [f"{COND_CODES[cell.cond]}{_glyph(cell)} " for cell in picture.cells]
    else:
        columns = _round_columns(room)
        picture = aggregate(zones, nr_zones=nr_zones, max_cells=columns * _DENSE_ROWS)
        texts = [_glyph(cell) if colour else _dense_glyph(cell) for cell in picture.cells]
    for row in range(0, len(texts), columns):
        painted = _paint(picture.cells[row : row + columns], texts[row : row + columns], colour=colour)
        yield f"{picture.cells[row].first:>{label - 2}}  {painted}\n".replace(" \n", "\n")
    yield from _legend(picture, colour=colour, dense=dense)


def _round_columns(columns: int) -> int:
    """Return the largest round number of columns that fits, so that people can count."""
    return next((n for n in _ROUND if n <= columns), max(1, columns))


def _glyph(cell: Cell) -> str:
    if cell.cond == _C.NOT_WP:
        return _CONVENTIONAL
    if cell.cond == _C.OFFLINE:
        return _DEAD
    if cell.fill == 0:
        return _NO_DATA
    return _LEVELS[min(len(_LEVELS) - 1, int(cell.fill * len(_LEVELS)))]


def _dense_glyph(cell: Cell) -> str:
    """Return one character for the condition, or for the fill if the condition has no character of its own."""
    letters = {_C.EXP_OPEN: "O", _C.IMP_OPEN: "o", _C.CLOSED: "c", _C.READONLY: "R"}
    return letters.get(cell.cond) or _glyph(cell)


def _paint(cells: Sequence[Cell], texts: Sequence[str], *, colour: bool) -> str:
    """Join *texts*, with one colour change where the condition changes."""
    if not colour:
        return "".join(texts)
    parts: list[str] = []
    current: Condition | None = None
    for cell, text in zip(cells, texts, strict=True):
        if cell.cond != current:
            parts.append(f"\x1b[{_SGR[cell.cond]}m")
            current = cell.cond
        parts.append(text)
    return "".join(parts).rstrip(" ") + "\x1b[0m"


def _legend(picture: Picture, *, colour: bool, dense: bool) -> Iterator[str]:
    """Yield the meaning of the signs, and how many zones are in each condition that occurs."""
    yield "\n"
    shown = [cond for cond in _ORDER if picture.counts[cond]]
    sign = {_C.EXP_OPEN: "O", _C.IMP_OPEN: "o", _C.CLOSED: "c", _C.READONLY: "R", _C.OFFLINE: _DEAD}
    for cond in shown:
        code = f"{COND_CODES[cond]} {COND_WORDS[cond]}"
        if dense and not colour and cond in sign:
            code = f"{sign[cond]} {code}"
        line = f"{code}: {picture.counts[cond]}"
        yield f"\x1b[{_SGR[cond]}m{line}\x1b[0m\n" if colour else f"{line}\n"
    yield f"{_CONVENTIONAL} conventional, {_NO_DATA} no data, {_LEVELS} written share of the capacity"
    yield f", {_DEAD} offline\n" if picture.counts[_C.OFFLINE] else "\n"
    if picture.zones_per_cell > 1:
        yield f"each sign stands for {picture.zones_per_cell} zones and shows the condition that needs most attention\n"


def svg(zones: Iterable[Zone], *, nr_zones: int, title: str) -> Iterator[str]:
    """Yield an SVG document: a square per zone (or per group of zones), filled from below by what is written."""
    picture = aggregate(zones, nr_zones=nr_zones, max_cells=_SVG_CELLS)
    pitch = _SVG_CELL + _SVG_GAP
    columns = min(_SVG_COLUMNS, len(picture.cells))
    rows = -(-len(picture.cells) // columns)
    shown = [cond for cond in _ORDER if picture.counts[cond]]
    width = max(columns * pitch, 320) + 20
    top = 34
    height = top + rows * pitch + 12 + 18 * len(shown)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        f'<text x="10" y="22" font-size="14">{escape(title)}</text>\n'
    )
    for index, cell in enumerate(picture.cells):
        yield _svg_cell(cell, x=10 + index % columns * pitch, y=top + index // columns * pitch)
    for index, cond in enumerate(shown):
        y = top + rows * pitch + 12 + 18 * index
        yield (
            f'<rect x="10" y="{y}" width="12" height="12" fill="{_FILL[cond]}"/>'
            f'<text x="28" y="{y + 11}">{COND_CODES[cond]} {COND_WORDS[cond]}: {picture.counts[cond]}</text>\n'
        )
    yield "</svg>\n"


def _svg_cell(cell: Cell, *, x: int, y: int) -> str:
    colour = _FILL[cell.cond]
    level = _SVG_CELL if cell.cond in (_C.NOT_WP, _C.OFFLINE) else round(cell.fill * _SVG_CELL)
    last = cell.first + cell.count - 1
    name = f"zone {cell.first}" if cell.count == 1 else f"zones {cell.first} to {last}"
    return (
        f"<g><title>{name}: {COND_WORDS[cell.cond]}, {cell.fill:.0%}</title>"
        f'<rect x="{x}" y="{y}" width="{_SVG_CELL}" height="{_SVG_CELL}" fill="{colour}" fill-opacity="0.18" '
        f'stroke="{colour}"/>'
        f'<rect x="{x}" y="{y + _SVG_CELL - level}" width="{_SVG_CELL}" height="{level}" fill="{colour}"/></g>\n'
    )
