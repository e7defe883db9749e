"""A drive with the time of a real one (``--timing``): what the option costs where it is off, and fio in a guest.

The first rows say by how much the alarm of a daemon is late, which answers wait for. The guest's rows say how far mean
latencies are off the model's own prediction, at time scales of 1, 10 and 100. The daemon counts answers that it gave
late, so that a row says so instead of blaming the model: the machine was busy then. All of it takes two to three
minutes.
"""

import json
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from bench.guest import READ_ZONE, ZONE_MIB, fio_job, serving
from bench.harness import PROJECT, Row, compare, program, progress
from bench.vhost import compile_loop, our_disk
from tools.guest.kit import obtain_kit
from tools.guest.machine import Guest
from zonefs_emu.device.alarm import Alarm
from zonefs_emu.fitting.measurements import Measurement
from zonefs_emu.fitting.predictions import predict
from zonefs_emu.model.timing.timing_presets import ZN540

SCALES: Final = (1, 10, 100)
#: Per cent that a mean latency may be off, and the share of late answers above which it says nothing of the model.
OFF_MAX: Final = 5.0
LATE_SHARE_MAX: Final = 0.05
#: A server without the option is as fast as one with ``--timing none`` but for noise.
_NONE_GOAL: Final = 0.95
#: Written of the zone that is read at random, before that; writes go to the first zone.
_WRITTEN_MIB: Final = 4
#: Each row is measured for about so long, with no more requests than fit into a zone.
_SECONDS: Final = 3
_REQUESTS_MAX: Final = 15_000
#: Alarms so far ahead, in nanoseconds, and how many of each.
_ALARMS: Final = ((70_000, 2000), (1_000_000, 500), (7_000_000, 150))
_ALARM_GOAL: Final = 1.5


class _Load(NamedTuple):
    """A measurement: name, direction in fio's output, fio's options, the model's point, and the lowest scale."""

    what: str
    direction: str
    options: str
    point: Measurement
    #: The lowest scale. Below it the guest and its driver take a large part of the drive's time.
    judged_from: int


def _point(operation: str, depth: int) -> Measurement:
    return Measurement(operation, 4096, 4096, 1, depth, 0, 1, 0, 0, 0)


_LOADS: Final = (
    _Load("4 KiB random read, depth 1", "read", "--rw=randread --iodepth=1", _point("randread", 1), 10),
    _Load("4 KiB random read, depth 8", "read", "--rw=randread --iodepth=8", _point("randread", 8), 10),
    _Load("4 KiB write, depth 1", "write", "--rw=write --iodepth=1", _point("write", 1), 100),
)


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure both."""
    kit = obtain_kit(print)
    return [*_alarms(runs), *_none(scratch, kit.library("libblkio.so.1"), runs), *_in_guest(scratch)]


def _alarms(runs: int) -> Iterator[Row]:
    for ahead_ns, count in _ALARMS:
        measure = partial(_late_us, ahead_ns, count)
        yield compare(
            "timed", f"an alarm after {ahead_ns / 1e6:g} ms is late by", "µs", measure,
            peer="waiting until it is due", peers=partial(_without_leads, measure), runs=runs, goal=_ALARM_GOAL,
            less_is_better=True,
        )  # fmt: skip


def _without_leads(measure: Callable[[], float]) -> float:
    with patch("zonefs_emu.device.alarm._LEAD_NS_MAX", 0):
        return measure()


def _late_us(ahead_ns: int, count: int) -> float:
    """Return by how much the median of *count* alarms is late that come *ahead_ns* after each other."""
    alarm, called, late_us = Alarm(), threading.Event(), []
    for _ in range(count):
        due_ns = time.monotonic_ns() + ahead_ns

        def note(due_ns: int = due_ns) -> None:
            late_us.append((time.monotonic_ns() - due_ns) / 1e3)
            called.set()

        alarm.at(due_ns, note)
        called.wait()
        called.clear()
    alarm.cut()
    return statistics.median(late_us)


def _none(scratch: Path, library: str, runs: int) -> Iterator[Row]:
    loop = compile_loop(scratch)
    with ExitStack() as stack:
        plain, none = (
            stack.enter_context(our_disk(scratch, library, loop, name=name, options=options))
            for name, options in (("plain", ()), ("none", ("--timing", "none")))
        )
        for disk in (plain, none):
            disk.fill()
        for depth, count in ((32, 60_000), (1, 15_000)):
            yield compare(
                "timed", f"4 KiB random read, depth {depth}, --timing none", "/s", partial(none.read, count, depth),
                peer="without the option", peers=partial(plain.read, count, depth), runs=runs, goal=_NONE_GOAL,
            )  # fmt: skip


def _in_guest(scratch: Path) -> Iterator[Row]:
    with Guest(obtain_kit(print)) as guest, ExitStack() as stack:
        for scale in SCALES:
            path, statistics = stack.enter_context(_timed_disk(guest, scratch, scale))
            for load in _LOADS:
                progress(f"timed: {load.what}, a drive that is {scale} times slower")
                yield _row(guest, path, statistics, load, scale)


@contextmanager
def _timed_disk(guest: Guest, scratch: Path, scale: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Serve an image to *guest*; yields its node there and what asks the daemon for its figures."""
    image, socket_path = scratch / f"timed-{scale}.img", scratch / f"timed-{scale}.sock"

    def statistics() -> dict[str, Any]:
        command = [*program(), "stats", str(image), "--json"]
        done = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
        found: dict[str, Any] = json.loads(done.stdout)["timing"]
        return found

    with serving(image, "--vhost-user-scsi", str(socket_path), "--timing", "zn540", "--time-scale", str(scale)):
        disk = guest.attach("scsi", socket_path)
        guest.run(f"dd if=/dev/zero of={disk.path} oflag=direct bs=1M count={_WRITTEN_MIB} seek={READ_ZONE * ZONE_MIB}")
        yield disk.path, statistics
        disk.detach()


def _row(guest: Guest, path: str, statistics: Callable[[], dict[str, Any]], load: _Load, scale: int) -> Row:
    expected_ns = predict(ZN540, load.point).mean_ns * scale
    count = min(int(_SECONDS * 1e9 * load.point.depth / expected_ns), _REQUESTS_MAX)
    zone_no = READ_ZONE if load.direction == "read" else 0
    before = statistics()
    place = f"--offset={zone_no * ZONE_MIB}M --size={ZONE_MIB}M"
    job = fio_job(guest, path, f"{load.options} --bs=4k {place} --number_ios={count}")
    after = statistics()
    late = (after["late_answers"] - before["late_answers"]) / max(after["answers"] - before["answers"], 1)
    off = abs(float(job[load.direction]["clat_ns"]["mean"]) / expected_ns - 1) * 100
    what = f"{load.what}, zn540 at scale {scale}: off the model"
    if late > LATE_SHARE_MAX:
        what += f"; the host was late with {late:.0%} of the answers"
    is_judged = scale >= load.judged_from and late <= LATE_SHARE_MAX
    return Row(area="timed", what=what, unit="%", ours=off, limit=OFF_MAX if is_judged else None)
