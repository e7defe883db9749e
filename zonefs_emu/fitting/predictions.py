"""Predictions of a timing model at measured points, and their errors."""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from zonefs_emu.fitting.measurements import Measurement
from zonefs_emu.model.timing.closed_loop import (
    FILLING_BYTES,
    Job,
    Summary,
    run,
    run_in_proportion,
    run_management,
    steady_warm_up,
    summarize,
)
from zonefs_emu.model.timing.flash import FlashTiming
from zonefs_emu.model.timing.parameters import FlashParameters
from zonefs_emu.model.transitions import Operation
from zonefs_emu.units import to_sectors

#: The zones of the drive that was measured, in sectors.
ZONE_SECTORS: Final = 2048 << 11
CAPACITY_SECTORS: Final = 1077 << 11
_PAGE_SECTORS: Final = 8
#: The operations by the names that load generators have for them.
OPERATIONS: Final = {
    "append": Operation.APPEND,
    "write": Operation.WRITE,
    "read": Operation.READ,
    "randread": Operation.READ,
    "reset": Operation.RESET,
    "finish": Operation.FINISH,
    "open": Operation.OPEN,
    "close": Operation.CLOSE,
}
#: Writes that fill the buffer are simulated until the drive has stored so much: it pauses every few megabytes.
_WRITTEN_BYTES: Final = 46_500_000
#: How long a mix is simulated, and how much of that is not counted.
_MIX_NS: Final = 300_000_000
_MIX_WARM_UP_NS: Final = 50_000_000


def predict(parameters: FlashParameters, point: Measurement, *, count: int = 4000, seed: int = 1) -> Summary:
    """Return what a drive with *parameters* does at *point*, from about *count* requests."""
    model = FlashTiming(parameters, capacity_sectors=CAPACITY_SECTORS, block_bytes=point.block_bytes, seed=seed)
    if point.group in ("finish and reset", "open and close"):
        return run_management(
            model,
            OPERATIONS[point.operation],
            count=count,
            capacity_sectors=CAPACITY_SECTORS,
            written_sectors=point.pages * _PAGE_SECTORS,
            finished=point.finished,
        ).summary()
    if point.beside is not None:
        return _predict_mix(model, point, point.beside, seed)
    jobs = [_job(point, first_zone=zone) for zone in range(point.nr_zones)]
    # The latencies of a queue repeat with its length, so at least three such rounds are simulated.
    count = max(count, 3 * point.depth * point.nr_zones)
    if jobs[0].operation != Operation.READ and point.nr_bytes >= FILLING_BYTES:
        count = max(count, _WRITTEN_BYTES // point.nr_bytes)
    outcomes = run(
        model,
        jobs,
        zone_sectors=ZONE_SECTORS,
        capacity_sectors=CAPACITY_SECTORS,
        count=count,
        warm_up=steady_warm_up(jobs[0], point.nr_zones),
        seed=seed,
    )
    latencies_ns = [latency for outcome in outcomes for latency in outcome.latencies_ns]
    return summarize(latencies_ns, outcomes[0].end_ns - outcomes[0].begin_ns, point.nr_bytes)


def _predict_mix(model: FlashTiming, point: Measurement, beside: Measurement, seed: int) -> Summary:
    """Run both jobs at once: with the writer's rate limit, or else in the proportion that was measured."""
    sides = (point, beside)
    jobs = [_job(side, first_zone=100 * number, rate_bytes=side.limit_bytes) for number, side in enumerate(sides)]
    limited = any(side.limit_bytes for side in sides)
    if limited or not (point.iops and beside.iops):
        outcomes = run(
            model,
            jobs,
            zone_sectors=ZONE_SECTORS,
            capacity_sectors=CAPACITY_SECTORS,
            duration_ns=_MIX_NS,
            warm_up_ns=_MIX_WARM_UP_NS,
            seed=seed,
        )
    else:
        # The load generator was given a whole number of per cent.
        share = min(max(round(100 * point.iops / (point.iops + beside.iops)), 1), 99)
        outcomes = run_in_proportion(
            model,
            jobs,
            (share, 100 - share),
            zone_sectors=ZONE_SECTORS,
            capacity_sectors=CAPACITY_SECTORS,
            duration_ns=_MIX_NS,
            warm_up_ns=_MIX_WARM_UP_NS,
            seed=seed,
        )
    return outcomes[0].summary()


def _job(point: Measurement, *, first_zone: int, rate_bytes: int = 0) -> Job:
    return Job(
        operation=OPERATIONS[point.operation],
        nr_sectors=to_sectors(point.nr_bytes),
        depth=point.depth,
        first_zone=first_zone,
        random=point.operation == "randread",
        rate_bytes=rate_bytes,
    )


class PointError(NamedTuple):
    """A point and how far the model is off, as shares of what was measured; None for what was not measured."""

    point: Measurement
    mean: float
    iops: float | None
    p50: float | None
    p99: float | None


def errors_of(parameters: FlashParameters, points: Iterable[Measurement], *, count: int = 4000) -> list[PointError]:
    """Return the errors at *points*."""
    found = []
    for point in points:
        summary = predict(parameters, point, count=count)
        found.append(
            PointError(
                point,
                summary.mean_ns / point.mean_ns - 1,
                summary.iops / point.iops - 1 if point.iops else None,
                summary.p50_ns / point.p50_ns - 1 if point.p50_ns else None,
                summary.p99_ns / point.p99_ns - 1 if point.p99_ns else None,
            )
        )
    return found


class GroupError(NamedTuple):
    """The errors of a group: mean and median of the absolute ones, and the share of points within 10 %.

    *p99_within*: the share of points whose 99th percentile is within 35 %.
    """

    group: str
    nr_points: int
    mean: float
    median: float
    greatest: float
    within: float
    iops_within: float
    p99_median: float
    p99_within: float


def by_group(errors: Sequence[PointError]) -> list[GroupError]:
    """Return the errors of each group, in the order in which the groups come."""
    rows = []
    for group in dict.fromkeys(error.point.group for error in errors):
        of_group = [error for error in errors if error.point.group == group]
        means = sorted(abs(error.mean) for error in of_group)
        rates = [abs(error.iops) for error in of_group if error.iops is not None]
        tails = sorted(abs(error.p99) for error in of_group if error.p99 is not None)
        rows.append(
            GroupError(
                group,
                len(means),
                sum(means) / len(means),
                means[len(means) // 2],
                means[-1],
                _share(means, 0.1),
                _share(rates, 0.1),
                tails[len(tails) // 2] if tails else 0.0,
                _share(tails, 0.35),
            )
        )
    return rows


def _share(values: Sequence[float], limit: float) -> float:
    return sum(value <= limit for value in values) / len(values) if values else 1.0
