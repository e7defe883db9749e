"""Search the parameters with which a timing model agrees with measurements. Needs SciPy."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log
from typing import Final

from zonefs_emu.errors import UsageError
from zonefs_emu.fitting.measurements import Measurement
from zonefs_emu.fitting.predictions import predict
from zonefs_emu.model.timing.parameters import FlashParameters, ReadAheadTable

#: The parameters that each group of points determines; those of a group are searched together.
SEARCHED: Final = {
    "write and append, 4096-byte blocks": (
        *("controller_write_ns", "controller_append_ns", "small_write_ns", "small_append_ns", "write_byte_ns"),
        *("write_base_ns", "append_extra_ns", "large_write_ns", "large_append_ns", "overlap_ns", "slice_ns"),
    ),
    "write and append, 512-byte blocks": ("partial_4k_ns", "partial_ns", "partial_latency_ns"),
    "random read": (
        *("die_read_ns", "channel_byte_ns", "read_base_ns", "bus_ns", "bus_byte_ns"),
        *("slow_page_share", "slow_page_ns"),
    ),
    "finish and reset": (
        *("finish_empty_ns", "finish_ns", "finish_byte_ns"),
        *("reset_ns", "reset_written_ns", "reset_capacity_ns", "reset_active_ns", "reset_finished_ns"),
    ),
    "open and close": ("open_ns", "close_ns"),
}
#: Requests for a prediction while searching, and iterations of the search.
_COUNT: Final = 1000
_ITERATIONS: Final = 6
#: Outstanding requests above which a point is left out of the search: it shows a plateau that others show faster.
_OUTSTANDING_MAX: Final = 64


def fit(
    points: Sequence[Measurement],
    start: FlashParameters,
    *,
    say: Callable[[str], None] | None = None,
    count: int = _COUNT,
    iterations: int = _ITERATIONS,
) -> FlashParameters:
    """Return *start* with the parameters that *points* determine changed so that the model agrees with them.

    Parameters that no point decides stay as they are. *say* is called with the name of each group before its search.
    *count*: requests that are simulated for each prediction; *iterations*: of each search.

    Raises:
        UsageError: SciPy is not installed.
    """
    parameters = start
    for group, names in SEARCHED.items():
        of_group = [point for point in points if point.group == group]
        if of_group:
            if say is not None:
                say(group)
            parameters = _search(parameters, names, of_group, count, iterations)
    sequential = [point for point in points if point.group == "sequential read" and point.iops]
    if sequential:
        parameters = with_read_ahead(parameters, sequential)
    return parameters


def _search(
    parameters: FlashParameters, names: Sequence[str], points: Sequence[Measurement], count: int, iterations: int
) -> FlashParameters:
    """Minimize the logarithms of the ratios of means and rates, and in part of the 99th percentiles of reads."""
    try:
        from scipy.optimize import least_squares  # noqa: PLC0415  (an extra, and half a second)
    except ImportError:
        raise UsageError("fit needs SciPy: pip install 'zonefs-emu[fit]'") from None
    few = [point for point in points if point.depth * point.nr_zones <= _OUTSTANDING_MAX] or list(points)
    begin = [float(getattr(parameters, name)) for name in names]
    # A value of zero cannot be scaled; a thousandth of a microsecond can.
    scales = [value or 1.0 for value in begin]

    def made(factors: Sequence[float]) -> FlashParameters:
        changed = {}
        for name, factor, scale in zip(names, factors, scales, strict=True):
            value = abs(float(factor)) * scale
            is_whole = isinstance(getattr(parameters, name), int)
            changed[name] = min(value, 1.0) if name.endswith("_share") else int(value) if is_whole else value
        return replace(parameters, **changed)  # type: ignore[arg-type]

    def residuals(factors: Sequence[float]) -> list[float]:
        candidate = made(factors)
        found = []
        # With one seed for all points, what is drawn would be off in the same direction at all of them. Few requests
        # are simulated, and the parameters would make up for it.
        for seed, point in enumerate(few):
            summary = predict(candidate, point, count=count, seed=seed)
            is_management = point.group in ("finish and reset", "open and close")
            measured_ns = point.p50_ns if is_management and point.p50_ns else point.mean_ns
            found.append(log(max(summary.p50_ns if is_management else summary.mean_ns, 1) / measured_ns))
            if point.iops:
                found.append(log(max(summary.iops, 1e-9) / point.iops))
            if point.operation == "randread" and point.p99_ns:
                found.append(0.4 * log(max(summary.p99_ns, 1) / point.p99_ns))
        return found

    result = least_squares(
        residuals, [1.0] * len(names), diff_step=0.03, loss="soft_l1", f_scale=0.05, max_nfev=iterations
    )
    return made(result.x)


def with_read_ahead(parameters: FlashParameters, points: Sequence[Measurement]) -> FlashParameters:
    """Return *parameters* with the rates of sequential reads that *points* show.

    A rate that was not measured is that of the nearest point of its size.
    """
    sizes = sorted({point.nr_bytes for point in points})
    streams = tuple(sorted({point.nr_zones for point in points}))
    depths = tuple(sorted({point.depth for point in points}))
    rates = {(point.nr_bytes, point.nr_zones, point.depth): point.iops for point in points}

    def rate(size: int, nr_streams: int, depth: int) -> int:
        known = [
            (abs(log(other / nr_streams)) + abs(log(deep / depth)), found)
            for (of_size, other, deep), found in rates.items()
            if of_size == size
        ]
        return max(round(min(known)[1]), 1)

    table: ReadAheadTable = tuple(
        (size, tuple(tuple(rate(size, stream, depth) for depth in depths) for stream in streams)) for size in sizes
    )
    return replace(parameters, read_ahead_rates=table, read_ahead_streams=streams, read_ahead_depths=depths)
