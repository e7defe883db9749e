"""The longest time for which one command has the device's lock, with a million zones."""

import itertools
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final
from uuid import uuid4

from bench.harness import Row, limit
from zonefs_emu.device.cut_images import Moment, Plan
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.dump import dump
from zonefs_emu.device.port import Port
from zonefs_emu.device.powercut import PowerCutLab
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, ZBC, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist.codec.words import pack_words
from zonefs_emu.persist.image import Image

NR_ZONES: Final = 1_000_000
ZONE_SECTORS: Final = 2048
LONG_SECTORS: Final = 64 * 2048
#: The longest time for which a command may hold the lock, in milliseconds.
AT_MOST_MS: Final = 10


class MeasuredLock:
    """A lock that measures the longest time, in processor time of its holder, for which it was held."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began_ns = 0
        self.worst_ns = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002  (a lock's signature)
        """Take it."""
        taken = self._lock.acquire(blocking, timeout)
        if taken:
            self._began_ns = time.thread_time_ns()
        return taken

    def release(self) -> None:
        """Give it back."""
        self.worst_ns = max(self.worst_ns, time.thread_time_ns() - self._began_ns)
        self._lock.release()

    def locked(self) -> bool:
        """Whether it is held."""
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure each command that is on many zones or bytes; of several runs the worst counts."""
    lock = MeasuredLock()
    found: list[Row] = []
    device = _device(scratch / "many.img", NR_ZONES, ZONE_SECTORS, lock)
    port, zbc = device.port("bench", VIRTIO), device.port("bench", ZBC)
    large = _device(scratch / "large.img", 4, LONG_SECTORS, lock)
    writer = large.port("bench", VIRTIO)
    data = (bytes(LONG_SECTORS * 512),)
    saved = device.save_zones()

    def measure(what: str, command: Callable[[], object], before: Callable[[], object] = lambda: None) -> None:
        worst = 0.0
        for _ in range(runs):
            before()
            lock.worst_ns = 0
            command()
            worst = max(worst, lock.worst_ns / 1e6)
        found.append(limit("lock", what, "ms", lambda: worst, runs=1, at_most=AT_MOST_MS))

    def reset_zone() -> None:
        writer.manage(Operation.RESET, LONG_SECTORS)
        writer.flush()

    measure("report of all zones", lambda: port.report(0, NR_ZONES))
    measure("report of those in a rare condition", lambda: port.report(0, NR_ZONES, frozenset((Condition.FULL,))))
    measure("count", lambda: port.count(0, frozenset(Condition)))
    measure("64 MiB write", lambda: writer.write(LONG_SECTORS, LONG_SECTORS, data), reset_zone)
    measure("64 MiB append", lambda: writer.append(LONG_SECTORS, LONG_SECTORS, data), reset_zone)
    measure("open all zones as one range", lambda: zbc.manage(Operation.OPEN, 0, NR_ZONES), lambda: _reset(port))
    measure("flush after that", port.flush)
    measure("close all", lambda: port.manage_all(Operation.CLOSE), lambda: zbc.manage(Operation.OPEN, 0, NR_ZONES))
    measure("power cycle with all zones open", device.power_cycle, lambda: zbc.manage(Operation.OPEN, 0, NR_ZONES))
    measure("finish all as one range", lambda: port.manage(Operation.FINISH, 0, NR_ZONES), lambda: _reset(port))
    measure("save the states of all zones", device.save_zones)
    measure("load the states of all zones", lambda: device.load_zones(saved), lambda: _finish(port))
    written = pack_words(bytes((Condition.FULL,)) * NR_ZONES, array("Q", (8,)) * NR_ZONES)
    measure("reset all, which have data", lambda: port.manage_all(Operation.RESET), lambda: device.load_zones(written))
    measure("flush after that", port.flush, lambda: _load_and_reset(device, port, written))
    measure("statistics", device.statistics)
    numbers = itertools.count()
    measure("a dump", lambda: list(dump(device, scratch / f"dump-{next(numbers)}")))
    measure("an image of a power cut", lambda: _cut(device, scratch / f"cuts-{next(numbers)}"), lambda: _finish(port))
    device.close()
    large.close()
    return found


def _cut(device: ZonedDevice, directory: Path) -> None:
    lab = PowerCutLab(device)
    lab.begin(Plan(directory=directory, at=Moment.NOW))
    while not lab.is_done:
        time.sleep(0.01)
    lab.close()
    assert not lab.failure, lab.failure


def _device(path: Path, nr_zones: int, zone_sectors: int, lock: MeasuredLock) -> ZonedDevice:
    geometry = Geometry(
        size=nr_zones * zone_sectors, zone_size=zone_sectors, zone_capacity=zone_sectors, max_append=zone_sectors
    )
    ZonedDevice.create(path, geometry, uuid=uuid4())
    image = Image.open(path)
    image.lock = lock  # type: ignore[assignment]  # it does what a lock does
    return ZonedDevice(image)


def _load_and_reset(device: ZonedDevice, port: Port, words: bytes) -> None:
    device.load_zones(words)
    _reset(port)


def _reset(port: Port) -> None:
    assert not port.manage_all(Operation.RESET)


def _finish(port: Port) -> None:
    assert not port.manage(Operation.FINISH, 0, NR_ZONES)
