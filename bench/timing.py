"""How far the timing model of the zn540 is from the measurements of the drive, and from those that it has not seen.

For each group of points: the mean error of the mean latency, and the points of which it is more than 10 % off. Then the
same where the model has not seen the points: for each request size, and for each depth, the parameters that a group
decides are searched anew, from a start that is a fifth off, with the points of that size or depth left out. Each size
has a row of its own besides, without a goal, because a size that alone shows some cost of the drive cannot be predicted
from the others: the parameters of that cost stay at their start.

Two processes share the work, which takes about ten minutes. The searches are those of `zonefs-emu fit`.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

from bench.harness import PROJECT, Row, limit, progress
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.virtual_clock import VirtualClock
from zonefs_emu.fitting.measurements import Measurement, read_measurements
from zonefs_emu.fitting.predictions import CAPACITY_SECTORS, ZONE_SECTORS, PointError, by_group, errors_of
from zonefs_emu.fitting.search import SEARCHED, fit
from zonefs_emu.model.presets import PRESETS, build_geometry
from zonefs_emu.model.timing.closed_loop import Job, run
from zonefs_emu.model.timing.flash import FlashTiming
from zonefs_emu.model.timing.parameters import FlashParameters
from zonefs_emu.model.timing.timing_presets import ZN540
from zonefs_emu.model.transitions import ZNS, Operation

MEASUREMENTS: Final = PROJECT / "bench" / "zn540-train.csv"
#: Goals in per cent: points that are more than 10 % off, by their mean latency and by their rate; the mean error of
#: zone management; and points of which the 99th percentile is more than 35 % off, of random reads 20 %.
OUTSIDE_MAX: Final = 10.0
MANAGEMENT_MAX: Final = 2.0
TAILS_MAX: Final = 10.0
#: 50,000 operations a second.
SPEED_MAX_US: Final = 20.0
_SPEED_COUNT: Final = 20_000
#: Requests under way in the row of those that are submitted.
_SPEED_DEPTH: Final = 32
#: One of this many jobs of mixes is measured: there are hundreds that differ in little, and each is a third of a second
#: of a busy drive. The number is odd because reads and writes alternate.
_EVERY_MIX: Final = 13
#: Requests for one prediction that is shown: as many as `zonefs-emu simulate` makes.
_COUNT: Final = 20_000
_NR_PROCESSES: Final = 2
_FOLDED: Final = (
    "write and append, 4096-byte blocks",
    "write and append, 512-byte blocks",
    "random read",
    "sequential read",
)
#: How far the 99th percentile may be off.
_TAILS: Final = {
    "write and append, 4096-byte blocks": 0.35,
    "write and append, 512-byte blocks": 0.35,
    "random read": 0.2,
}
_FOLDS: Final[dict[str, Callable[[Measurement], int]]] = {
    "size": lambda point: point.nr_bytes,
    "depth": lambda point: point.depth,
}


def rows(scratch: Path, runs: int) -> list[Row]:
    """Compare the model with what was measured, and say how fast it is."""
    return [*_speeds(scratch, runs), *_errors()]


def _speeds(scratch: Path, runs: int) -> list[Row]:
    """Processor time for an operation in virtual time: of a device that stores the data, and of the model alone."""
    image = scratch / "timed.img"
    ZonedDevice.create(image, build_geometry(preset=PRESETS["zn540"]), uuid=uuid4())
    device = ZonedDevice.open(image)
    clock = VirtualClock()
    device.sleep_ns = clock.advance
    device.start_timing("zn540", clock=clock.now)
    port = device.port("bench", ZNS)
    second_zone = device.geometry.zone_size
    data, block = (bytes(4096),), (bytearray(4096),)

    def per_request(run_all: Callable[[], object]) -> float:
        begin = time.process_time()
        run_all()
        return (time.process_time() - begin) / _SPEED_COUNT * 1e6

    def append() -> None:
        for _ in range(_SPEED_COUNT):
            port.append(0, 8, data)

    def append_together() -> None:
        for _ in range(_SPEED_COUNT // _SPEED_DEPTH):
            for _ in range(_SPEED_DEPTH):
                clock.submit(port.append, second_zone, 8, data)
            clock.run_until_idle()

    def read() -> None:
        # Another order than that of the appends, which the drive would read ahead of.
        for number in range(_SPEED_COUNT):
            port.read(number * 7919 % _SPEED_COUNT * 8, 8, block)

    def simulate(operation: Operation) -> None:
        model = FlashTiming(ZN540, capacity_sectors=CAPACITY_SECTORS)
        job = Job(operation=operation, nr_sectors=8, depth=4, random=operation is Operation.READ)
        run(model, [job], zone_sectors=ZONE_SECTORS, capacity_sectors=CAPACITY_SECTORS, count=_SPEED_COUNT)

    measured: tuple[tuple[str, Callable[[], None]], ...] = (
        ("append of 4 KiB on a virtual clock, stored", append),
        (f"append of 4 KiB on a virtual clock, stored, {_SPEED_DEPTH} under way", append_together),
        ("random read of 4 KiB on a virtual clock, stored", read),
        ("append of 4 KiB, simulated", partial(simulate, Operation.APPEND)),
        ("random read of 4 KiB, simulated", partial(simulate, Operation.READ)),
    )
    try:
        return [
            limit("timing", what, "µs", partial(per_request, run_all), runs=runs, at_most=SPEED_MAX_US)
            for what, run_all in measured
        ]
    finally:
        device.close()


def _errors() -> list[Row]:
    with MEASUREMENTS.open(newline="") as lines:
        points = read_measurements(lines)
    mixes = [point for point in points if point.group.endswith("of a mix of jobs")]
    seen = [point for point in points if point not in mixes] + mixes[::_EVERY_MIX]
    progress("timing: all points")
    # Spawned, as a fork of a process that has threads may hang.
    with ProcessPoolExecutor(_NR_PROCESSES, mp_context=multiprocessing.get_context("spawn")) as processes:
        chunk = max(len(seen) // (8 * _NR_PROCESSES), 1)
        whole = processes.map(_shown, [seen[at : at + chunk] for at in range(0, len(seen), chunk)])
        parts = [(name, group) for name in _FOLDS for group in _FOLDED]
        left_out = {}
        for name, group in parts:
            of_group = [point for point in points if point.group == group]
            values = sorted({_FOLDS[name](point) for point in of_group})
            left_out[name, group] = {value: processes.submit(_left_out, name, value, of_group) for value in values}
        found = _rows("", [error for errors in whole for error in errors])
        for name, group in parts:
            progress(f"timing: {group}, each {name} left out")
            errors = {value: part.result() for value, part in left_out[name, group].items()}
            found += _rows(f", unseen {name}", [error for of_value in errors.values() for error in of_value])
            if name == "size":
                found += [_row_of_size(group, size, of_size) for size, of_size in errors.items()]
    return found


def _shown(points: Sequence[Measurement]) -> list[PointError]:
    return errors_of(ZN540, points, count=_COUNT)


def _left_out(name: str, value: int, points: Sequence[Measurement]) -> list[PointError]:
    """Return the errors at the *points* whose size or depth is *value*, of a search that has seen the others only."""
    key = _FOLDS[name]
    known = [point for point in points if key(point) != value]
    parameters = fit(known, _start(points[0].group))
    return errors_of(parameters, [point for point in points if key(point) == value], count=_COUNT)


def _start(group: str) -> FlashParameters:
    """Return the preset with the parameters that *group* decides a fifth off, in turn to either side."""
    names = SEARCHED.get(group, ())
    changed = {}
    for number, name in enumerate(names):
        value = getattr(ZN540, name)
        changed[name] = type(value)(value * (1.2 if number % 2 else 0.83))
    return replace(ZN540, **changed)


def _row_of_size(group: str, nr_bytes: int, errors: Sequence[PointError]) -> Row:
    outside = 100 * (1 - by_group(errors)[0].within)
    return Row(area="timing", what=f"{group}, unseen size {nr_bytes}: points 10 % off", unit="%", ours=outside)


def _rows(suffix: str, errors: Sequence[PointError]) -> list[Row]:
    found = []
    for row in by_group(errors):
        what = f"{row.group}{suffix}: "
        outside = 100 * (1 - row.within)
        mean_max = MANAGEMENT_MAX if row.group == "finish and reset" else None
        found += [
            Row(area="timing", what=f"{what}mean error", unit="%", ours=100 * row.mean, limit=mean_max),
            Row(area="timing", what=f"{what}points 10 % off", unit="%", ours=outside, limit=OUTSIDE_MAX),
            Row(area="timing", what=f"{what}median error of the 99th percentile", unit="%", ours=100 * row.p99_median),
        ]
        of_group = [error for error in errors if error.point.group == row.group]
        if any(error.iops is not None for error in of_group):
            slow = 100 * (1 - row.iops_within)
            found.append(Row(area="timing", what=f"{what}IOPS 10 % off", unit="%", ours=slow, limit=OUTSIDE_MAX))
        if share := _TAILS.get(row.group):
            tails = [abs(error.p99) > share for error in of_group if error.p99 is not None]
            off = 100 * sum(tails) / max(len(tails), 1)
            what = f"{what}99th percentiles {100 * share:.0f} % off"
            found.append(Row(area="timing", what=what, unit="%", ours=off, limit=TAILS_MAX))
    return found
