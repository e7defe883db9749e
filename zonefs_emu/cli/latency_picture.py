"""The picture of a simulated workload: latency over time, a colour for each operation, as SVG.

Pure: requests in, text out. All requests of one column are one line, from the shortest to the longest latency, with a
point at the mean. So a picture of millions of requests is as small as one of thousands.
"""

from collections.abc import Iterable, Iterator
from html import escape
from math import ceil, floor, log10
from typing import Final

from zonefs_emu.model.timing.workload import Requests
from zonefs_emu.model.transitions import Operation

_COLOURS: Final = {
    Operation.READ: "#3566b8",
    Operation.WRITE: "#c0392b",
    Operation.APPEND: "#e0a030",
    Operation.OPEN: "#5b9aa0",
    Operation.CLOSE: "#9a9a9a",
    Operation.FINISH: "#8e44ad",
    Operation.RESET: "#1b7f2a",
}
_LEFT: Final = 70
_TOP: Final = 36
_WIDTH: Final = 900
_HEIGHT: Final = 400
_COLUMN: Final = 3
_UNITS: Final = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns"))


def latency_svg(requests: Iterable[tuple[Operation, Requests]], *, title: str) -> Iterator[str]:
    """Yield an SVG document of *requests*."""
    by_operation: dict[Operation, list[Requests]] = {}
    for operation, found in requests:
        by_operation.setdefault(operation, []).append(found)
    end_ns = max((found.begins_ns[-1] for many in by_operation.values() for found in many), default=0) + 1
    columns = {operation: _columns(many, end_ns) for operation, many in sorted(by_operation.items())}
    every = [values for found in columns.values() for values in found.values()]
    low = floor(log10(max(min((values[0] for values in every), default=1), 1)))
    high = max(ceil(log10(max(max((values[1] for values in every), default=10), 1))), low + 1)

    def y(latency_ns: float) -> float:
        return _TOP + _HEIGHT * (1 - (log10(max(latency_ns, 1)) - low) / (high - low))

    width, height = _LEFT + _WIDTH + 20, _TOP + _HEIGHT + 60 + 18 * len(columns)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12">\n<title>{escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        f'<text x="10" y="22" font-size="14">{escape(title)}</text>\n'
    )
    for power in range(low, high + 1):
        line = y(10.0**power)
        yield (
            f'<path d="M{_LEFT} {line:.1f}H{_LEFT + _WIDTH}" stroke="#dddddd"/>'
            f'<text x="{_LEFT - 6}" y="{line + 4:.1f}" text-anchor="end">{_time(10.0**power)}</text>\n'
        )
    for step in range(6):
        x = _LEFT + _WIDTH * step / 5
        yield f'<text x="{x:.0f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{_time(end_ns * step / 5)}</text>\n'
    for index, (operation, spans) in enumerate(columns.items()):
        colour = _COLOURS.get(operation, "#000000")
        lines = "".join(
            f"M{_LEFT + column * _COLUMN + 1} {y(least):.1f}V{y(most) - 1:.1f}"
            for column, (least, most, _, _) in spans.items()
        )
        yield f'<path d="{lines}" stroke="{colour}" stroke-opacity="0.35" stroke-width="2" fill="none"/>\n'
        yield from (
            f'<circle cx="{_LEFT + column * _COLUMN + 1}" cy="{y(total / count):.1f}" r="1.3" fill="{colour}"/>\n'
            for column, (_, _, total, count) in spans.items()
        )
        nr_requests = sum(count for _, _, _, count in spans.values())
        at = _TOP + _HEIGHT + 36 + 18 * index
        yield (
            f'<rect x="{_LEFT}" y="{at}" width="12" height="12" fill="{colour}"/><text x="{_LEFT + 18}" y="{at + 11}">'
            f"{operation.name.lower()}: {nr_requests} requests; line: shortest to longest, point: mean</text>\n"
        )
    yield "</svg>\n"


def _columns(requests: Iterable[Requests], end_ns: int) -> dict[int, tuple[int, int, int, int]]:
    """Return (shortest, longest, sum, number) of the latencies that began in each column."""
    found: dict[int, tuple[int, int, int, int]] = {}
    nr_columns = _WIDTH // _COLUMN
    for each in requests:
        for begin_ns, latency_ns in zip(each.begins_ns, each.latencies_ns, strict=True):
            column = begin_ns * nr_columns // end_ns
            least, most, total, count = found.get(column, (latency_ns, latency_ns, 0, 0))
            found[column] = (min(least, latency_ns), max(most, latency_ns), total + latency_ns, count + 1)
    return found


def _time(nanoseconds: float) -> str:
    for scale, unit in _UNITS:
        if nanoseconds >= scale:
            return f"{nanoseconds / scale:.3g} {unit}"
    return "0"
