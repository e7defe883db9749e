"""Figures of a paper about the ZN540, and what the timing model says of the same: see docs/timing.md.

python examples/zn540_figures.py
"""

from zonefs_emu.fitting.predictions import CAPACITY_SECTORS, ZONE_SECTORS
from zonefs_emu.model.timing.closed_loop import Job, run, run_management, steady_warm_up, summarize
from zonefs_emu.model.timing.flash import FlashTiming
from zonefs_emu.model.timing.timing_presets import ZN540
from zonefs_emu.model.transitions import Operation

KIB = 2  # sectors


def load(
    operation: Operation, nr_sectors: int, *, zones: int = 1, depth: int = 1, random: bool = False, beside: int = 0
) -> tuple[float, float]:
    """Return mean latency in microseconds and thousands of requests a second; *beside*: bytes a second of writes."""
    model = FlashTiming(ZN540, capacity_sectors=CAPACITY_SECTORS)
    jobs = [
        Job(operation=operation, nr_sectors=nr_sectors, depth=depth, first_zone=zone, random=random)
        for zone in range(zones)
    ]
    if beside:
        jobs.append(Job(operation=Operation.WRITE, nr_sectors=128 * KIB, first_zone=100, rate_bytes=beside))
    count = max(20_000, 20 * depth)
    outcomes = run(
        model, jobs, zone_sectors=ZONE_SECTORS, capacity_sectors=CAPACITY_SECTORS, count=count,
        warm_up=steady_warm_up(jobs[0], zones),
    )  # fmt: skip
    outcomes = outcomes[:zones]
    latencies_ns = [latency for outcome in outcomes for latency in outcome.latencies_ns]
    found = summarize(latencies_ns, outcomes[0].end_ns - outcomes[0].begin_ns, 0)
    return found.mean_ns / 1e3, found.iops / 1e3


def manage(operation: Operation, occupancy: float) -> float:
    """Return the median of finish or reset in milliseconds; *occupancy*: the share that is written, -1 for a page."""
    model = FlashTiming(ZN540, capacity_sectors=CAPACITY_SECTORS)
    written = 8 if occupancy < 0 else round(CAPACITY_SECTORS * occupancy)
    outcome = run_management(
        model, operation, count=1000, capacity_sectors=CAPACITY_SECTORS, written_sectors=written, finished=False
    )
    return outcome.summary().p50_ns / 1e6


def main() -> None:
    """Print the table."""
    write, append, read = Operation.WRITE, Operation.APPEND, Operation.READ
    rows = [
        ("a write of 4 KiB takes", "us", 10.83, load(write, 4 * KIB)[0]),
        ("an append of 4 KiB takes", "us", 14.28, load(append, 4 * KIB)[0]),
        ("appends of 4 KiB in one zone, 4 at once", "kIOPS", 132, load(append, 4 * KIB, depth=4)[1]),
        ("writes of 4 KiB in four zones", "kIOPS", 180, load(write, 4 * KIB, zones=4)[1]),
        ("appends of 16 KiB, 4 at once", "kIOPS", 73.4, load(append, 16 * KIB, depth=4)[1]),
        ("a random read of 4 KiB takes", "us", 72.5, load(read, 4 * KIB, random=True)[0]),
        ("random reads of 4 KiB, 256 at once", "kIOPS", 437, load(read, 4 * KIB, depth=256, random=True)[1]),
        ("a read beside 262 MB/s of writes takes", "us", 100, load(read, 4 * KIB, random=True, beside=262_144_000)[0]),
        ("finish of a zone with one page takes", "ms", 908.3, manage(Operation.FINISH, -1)),
        ("finish of a zone that is half full takes", "ms", 456.5, manage(Operation.FINISH, 0.5)),
        ("reset of a zone with one page takes", "ms", 1.69, manage(Operation.RESET, -1)),
        ("reset of a full zone takes", "ms", 15.49, manage(Operation.RESET, 1.0)),
    ]
    print(f"{'':<42} {'measured':>10} {'model':>10}")
    for what, unit, measured, modelled in rows:
        print(f"{what:<42} {measured:>10.4g} {modelled:>10.4g} {unit:<6} {100 * (modelled / measured - 1):+.1f} %")


if __name__ == "__main__":
    main()
