"""The results of a simulated workload, as fio prints them: for people, and as JSON with fio's names.

Pure: outcomes in, text out.
"""

from collections.abc import Iterable, Iterator
from math import sqrt
from typing import Final

from zonefs_emu.daemon.framing import Json
from zonefs_emu.errors import printable
from zonefs_emu.model.timing.workload import JobOutcome, Requests

#: fio's own list.
PERCENTILES: Final = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99)


def figures(requests: Requests, duration_ns: int) -> dict[str, Json]:
    """Return the figures of *requests*, all of which were within *duration_ns*; names and units are fio's."""
    ordered = sorted(requests.latencies_ns)
    count = len(ordered)
    mean = sum(ordered) / count
    spread = sqrt(max(sum(value * value for value in ordered) / count - mean * mean, 0.0))
    seconds = max(duration_ns, 1) / 1e9
    percentile: dict[str, Json] = {
        f"{share:.6f}": ordered[min(int(count * share / 100), count - 1)] for share in PERCENTILES
    }
    return {
        "io_bytes": requests.nr_bytes,
        "bw_bytes": round(requests.nr_bytes / seconds),
        "iops": round(count / seconds, 3),
        "runtime": round(duration_ns / 1e6, 3),
        "total_ios": count,
        "clat_ns": {
            "min": ordered[0],
            "max": ordered[-1],
            "mean": round(mean, 1),
            "stddev": round(spread, 1),
            "N": count,
            "percentile": percentile,
        },
    }


def as_json(outcomes: Iterable[JobOutcome]) -> list[Json]:
    """Return one object for each job, with one for each operation that it asked for."""
    jobs: list[Json] = []
    for outcome in outcomes:
        duration_ns = outcome.end_ns - outcome.begin_ns
        job: dict[str, Json] = {"jobname": outcome.name}
        job |= {operation.name.lower(): figures(found, duration_ns) for operation, found in sorted(outcome.of.items())}
        jobs.append(job)
    return jobs


def as_text(jobs: Iterable[Json]) -> Iterator[str]:
    """Yield lines on *jobs*, which are those of :func:`as_json`."""
    for job in jobs:
        assert isinstance(job, dict)
        yield f"{printable(job['jobname'])}:\n"
        for operation, found in job.items():
            if isinstance(found, dict):
                yield from _lines(operation, found)


def _lines(operation: str, found: dict[str, Json]) -> Iterator[str]:
    clat = found["clat_ns"]
    bw, iops, io_bytes, runtime = (_number(found[name]) for name in ("bw_bytes", "iops", "io_bytes", "runtime"))
    assert isinstance(clat, dict)
    low, high, mean, spread = (_number(clat[name]) / 1e3 for name in ("min", "max", "mean", "stddev"))
    yield (
        f"  {operation}: IOPS={iops:.0f}, BW={bw / (1 << 20):.1f}MiB/s ({bw / 1e6:.1f}MB/s)"
        f"({io_bytes / (1 << 20):.1f}MiB/{runtime:.0f}msec)\n"
    )
    yield f"    clat (usec): min={low:.1f}, max={high:.1f}, avg={mean:.1f}, stdev={spread:.1f}\n"
    yield "    clat percentiles (usec):\n"
    percentile = clat["percentile"]
    assert isinstance(percentile, dict)
    shown = [f"{float(name):g}th=[{_number(value) / 1e3:.1f}]" for name, value in percentile.items()]
    yield from (f"     | {', '.join(shown[at : at + 5])}\n" for at in range(0, len(shown), 5))


def _number(value: Json) -> float:
    assert isinstance(value, int | float)
    return value
