"""A million zones against a hundred: creating, opening, one zone operation, memory, a streamed report."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

from bench.harness import Row, compare, limit
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, Operation

NR_MANY: Final = 1_000_000
NR_FEW: Final = 100
ZONE_SECTORS: Final = 2048
NR_CALLS: Final = 5_000


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure what must not grow with the number of zones, and what may."""
    images = iter(range(1000))

    def create(nr_zones: int = NR_MANY) -> float:
        started = time.perf_counter()
        ZonedDevice.create(scratch / f"{nr_zones}-{next(images)}.img", _geometry(nr_zones), uuid=uuid4())
        return time.perf_counter() - started

    created = limit("1,000,000 zones", "create", "s", create, runs=runs, at_most=2)
    few, many = scratch / "few.img", scratch / "many.img"
    for path, nr_zones in ((few, NR_FEW), (many, NR_MANY)):
        ZonedDevice.create(path, _geometry(nr_zones), uuid=uuid4())

    def open_close() -> float:
        started = time.perf_counter()
        device = ZonedDevice.open(many)
        elapsed = time.perf_counter() - started
        device.close()
        return elapsed

    opened = limit("1,000,000 zones", "open", "s", open_close, runs=runs, at_most=2)
    found = [
        created,
        opened,
        limit("1,000,000 zones", "resident memory of report --format json", "MB", lambda: _report(many)[0],
              runs=1, at_most=200),
        limit("1,000,000 zones", "first line of report --format json", "s", lambda: _report(many)[1],
              runs=1, at_most=3),
    ]  # fmt: skip
    with_few, with_many = ZonedDevice.open(few), ZonedDevice.open(many)
    ports = [device.port("bench", VIRTIO) for device in (with_many, with_few)]
    found.append(
        compare("1,000,000 zones", "open and reset one zone", "µs", lambda: _one_zone(ports[0]), peer="100 zones",
                peers=lambda: _one_zone(ports[1]), runs=runs, goal=0.8, less_is_better=True)
    )  # fmt: skip
    found.append(
        compare("1,000,000 zones", "write and flush", "µs", lambda: _flush(ports[0]), peer="100 zones",
                peers=lambda: _flush(ports[1]), runs=runs, goal=0.8, less_is_better=True)
    )  # fmt: skip
    for name, operation in (("finish", Operation.FINISH), ("reset", Operation.RESET)):
        found.append(
            limit("1,000,000 zones", f"{name} all as one range", "s", partial(_range, ports[0], operation), runs=1,
                  at_most=2)
        )  # fmt: skip
    with_few.close()
    with_many.close()
    return found


def _geometry(nr_zones: int) -> Geometry:
    return Geometry(
        size=nr_zones * ZONE_SECTORS, zone_size=ZONE_SECTORS, zone_capacity=ZONE_SECTORS, max_open_zones=8,
        max_active_zones=12,
    )  # fmt: skip


def _one_zone(port: Port) -> float:
    started = time.process_time_ns()
    for i in range(NR_CALLS):
        sector = (i % NR_FEW) * ZONE_SECTORS
        port.manage(Operation.OPEN, sector)
        port.manage(Operation.RESET, sector)
    return (time.process_time_ns() - started) / NR_CALLS / 1000


def _range(port: Port, operation: Operation) -> float:
    started = time.perf_counter()
    assert not port.manage(operation, 0, NR_MANY)
    return time.perf_counter() - started


def _flush(port: Port) -> float:
    calls = 100
    zone = port.zone(NR_FEW - 1)
    if zone.capacity - (zone.wp - zone.start) < calls * 8:
        port.manage(Operation.RESET, zone.start)
        port.flush()
        zone = port.zone(NR_FEW - 1)
    started = time.perf_counter_ns()
    for i in range(calls):
        assert not port.write(zone.wp + 8 * i, 8, (bytes(4096),))
        assert not port.flush()
    return (time.perf_counter_ns() - started) / calls / 1000


def _report(image: Path) -> tuple[float, float]:
    """Return (peak resident MB, seconds to the first line) of ``report --format json`` in a process of its own."""
    # Not ru_maxrss of getrusage: it begins with the peak of the process that started this one.
    program = (
        "import sys\nfrom zonefs_emu.cli.main import main\n"
        "try: main()\n"
        "finally: print(*(line for line in open('/proc/self/status') if 'VmHWM' in line), file=sys.stderr)\n"
    )
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", program, "report", str(image), "--format", "json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    first = time.perf_counter() - started
    nr_bytes = 1
    while chunk := process.stdout.read(1 << 20):
        nr_bytes += len(chunk)
    peak_kib = int(process.stderr.read().split()[-2])
    assert process.wait() == 0
    assert nr_bytes > NR_MANY
    return peak_kib * 1024 / 1e6, first
