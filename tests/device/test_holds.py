"""Commands that take long: what others may do meanwhile, what waits, and how much is done with the lock held."""

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.holds import Holds
from zonefs_emu.device.image_access import LONG_WRITE_SECTORS
from zonefs_emu.device.port import Port
from zonefs_emu.device.powercut import PowerCutLab
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.machine import PORTION_ZONES
from zonefs_emu.model.transitions import VIRTIO, ZBC, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist.image import Image

UUID_OF_TESTS = UUID("00112233-4455-6677-8899-aabbccddeeff")
#: Longer than what is written with the lock held.
LONG = 4096
ZONE = 8192
#: What must be over long before; a test that waits for so long has failed.
SECONDS = 20


class Counting:
    """A lock, and per hold of it how often the machine's, the image's and the host's work was called for a zone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.steps = 0
        self.worst = 0
        self.nr_holds = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        taken = self._lock.acquire(blocking, timeout)
        if taken:
            self.steps = 0
        return taken

    def release(self) -> None:
        self.nr_holds += 1
        self.worst = max(self.worst, self.steps)
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def make(path: Path, *, nr_zones: int = 8, zone: int = ZONE, **limits: int) -> ZonedDevice:
    geometry = Geometry(
        size=nr_zones * zone, zone_size=zone, zone_capacity=zone, conventional=((0, 1),), max_append=zone,
        **limits,  # type: ignore[arg-type]  # numbers
    )  # fmt: skip
    ZonedDevice.create(path, geometry, uuid=UUID_OF_TESTS)
    return ZonedDevice.open(path)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[ZonedDevice]:
    device = make(tmp_path / "image", max_open_zones=2, max_active_zones=6)
    yield device
    device.close()


class Slow:
    """The host's pwritev: a long write waits in it until :meth:`go_on`; the rest goes through.

    With *failure*, the first long write fails with it.
    """

    def __init__(self, port: Port, *, failure: int = 0) -> None:
        self.arrived = threading.Event()
        self._go_on = threading.Event()
        self._failure = failure
        self._pwritev = port.device.access.pwritev
        port.device.access.pwritev = self

    def __call__(self, buffers: Sequence[Any], offset: int) -> int:
        if sum(len(buffer) for buffer in buffers) >= LONG * 512:
            self.arrived.set()
            assert self._go_on.wait(SECONDS)
            failure, self._failure = self._failure, 0
            if failure:
                raise OSError(failure, os.strerror(failure))
        return self._pwritev(buffers, offset)

    def go_on(self) -> None:
        self._go_on.set()


class Background:
    """Commands on threads of their own, and what they answered."""

    def __init__(self) -> None:
        self.answers: dict[str, object] = {}
        self._threads: list[threading.Thread] = []

    def start(self, name: str, command: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            self.answers[name] = command()

        thread = threading.Thread(target=run, name=name)
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self) -> dict[str, object]:
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive(), thread.name
        return self.answers


def content(number: int, nr_sectors: int) -> bytes:
    return number.to_bytes(8, "big") * (64 * nr_sectors)


def read(port: Port, sector: int, nr_sectors: int) -> bytes:
    buffer = bytearray(nr_sectors * 512)
    assert port.read(sector, nr_sectors, [buffer]) is Status.OK
    return bytes(buffer)


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.APPEND])
def test_others_go_on_during_a_long_write_and_its_zone_waits(device: ZonedDevice, operation: Operation) -> None:
    writer, other = device.port("writer", VIRTIO), device.port("other", VIRTIO)
    start = 2 * ZONE
    assert other.write(start, 8, [content(1, 8)]) is Status.OK
    slow = Slow(writer)
    background = Background()
    if operation is Operation.WRITE:
        background.start("long", lambda: writer.write(start + 8, LONG, [content(2, LONG)]))
    else:
        background.start("long", lambda: writer.append(start, LONG, [content(2, LONG)]))
    assert slow.arrived.wait(SECONDS)
    # Nothing of it is to be seen yet, and other zones are written, opened, reset, flushed and reported.
    assert other.zone(2).wp == start + 8
    assert read(other, start + 8, 8) == bytes(4096)
    assert other.write(3 * ZONE, 8, [content(3, 8)]) is Status.OK
    assert other.manage(Operation.RESET, 3 * ZONE) is Status.OK
    assert other.manage(Operation.OPEN, 4 * ZONE) is Status.OK
    assert other.flush() is Status.OK
    assert len(other.report(0, 100)) == 8
    # What wants its zone waits.
    waiting = [
        background.start("append", lambda: other.append(start, 8, [content(4, 8)])),
        background.start("write", lambda: other.write(start + 8, 8, [content(5, 8)])),
        background.start("set_cond", lambda: other.set_cond(2, Condition.FULL)),
    ]
    for thread in waiting:
        thread.join(0.05)
        assert thread.is_alive()
    slow.go_on()
    answers = background.join()
    assert answers["long"] == (Status.OK if operation is Operation.WRITE else (Status.OK, start + 8))
    assert read(other, start + 8, LONG) == content(2, LONG)
    assert answers["append"] in {(Status.OK, start + 8 + LONG), (Status.ZONE_FULL, start)}
    assert answers["write"] in {Status.UNALIGNED_WP, Status.ZONE_FULL}
    assert other.zone(2).cond is Condition.FULL
    assert not device.holds.held


@pytest.mark.parametrize(
    "command",
    [
        lambda port: port.manage_all(Operation.RESET),
        lambda port: port.manage(Operation.RESET, ZONE, 7),
        lambda port: port.power_cycle(),
        lambda port: port.device.load_zones(port.device.save_zones()),
        lambda port: PowerCutLab(port.device).close(),
        lambda port: port.device.close(),
    ],
    ids=["reset all", "reset a range", "power cycle", "load", "hook", "close"],
)
def test_what_is_on_all_zones_waits_for_a_long_write(device: ZonedDevice, command: Callable[[Port], object]) -> None:
    writer, other = device.port("writer", VIRTIO), device.port("other", VIRTIO)
    slow = Slow(writer)
    background = Background()
    background.start("long", lambda: writer.write(2 * ZONE, LONG, [content(2, LONG)]))
    assert slow.arrived.wait(SECONDS)
    waiting = background.start("all", lambda: command(other))
    waiting.join(0.05)
    assert waiting.is_alive()
    slow.go_on()
    assert background.join()["long"] is Status.OK


def test_a_zone_that_is_written_to_is_not_closed_for_another(device: ZonedDevice) -> None:
    """Two zones may be open: the one that is being written to, and one that is open explicitly. A third one waits."""
    writer, other = device.port("writer", VIRTIO), device.port("other", VIRTIO)
    slow = Slow(writer)
    background = Background()
    background.start("long", lambda: writer.write(2 * ZONE, LONG, [content(2, LONG)]))
    assert slow.arrived.wait(SECONDS)
    assert other.zone(2).cond is Condition.IMP_OPEN
    assert other.manage(Operation.OPEN, 3 * ZONE) is Status.OK
    commands: dict[str, Callable[[], object]] = {
        "open": lambda: other.manage(Operation.OPEN, 4 * ZONE),
        "write": lambda: other.write(5 * ZONE, 8, [content(5, 8)]),
    }
    waiting = [background.start(name, command) for name, command in commands.items()]
    for thread in waiting:
        thread.join(0.05)
        assert thread.is_alive()
    slow.go_on()
    answers = background.join()
    assert answers["long"] is Status.OK
    # Whichever came first closed zone 2. The other one closed the first, if that was open implicitly.
    assert answers["open"] is Status.OK
    assert answers["write"] in {Status.OK, Status.OPEN_RESOURCE}
    assert other.zone(2)[4:6] == (2 * ZONE + LONG, Condition.CLOSED)
    assert device.nr_open == 2


@pytest.mark.parametrize(
    ("failure", "status"), [(errno.ENOSPC, Status.NO_SPACE), (errno.EIO, Status.IO_ERROR)], ids=["full", "broken"]
)
def test_a_long_write_that_the_host_fails(device: ZonedDevice, failure: int, status: Status) -> None:
    writer, other = device.port("writer", VIRTIO), device.port("other", VIRTIO)
    slow = Slow(writer, failure=failure)
    slow.go_on()
    assert writer.write(2 * ZONE, LONG, [content(2, LONG)]) is status
    assert not device.holds.held
    assert other.zone(2).wp == 2 * ZONE
    again = other.write(2 * ZONE, LONG, [content(3, LONG)])
    assert again is (Status.OK if status is Status.NO_SPACE else Status.POISONED)


def test_a_long_write_of_conventional_zones_and_of_many_buffers(tmp_path: Path) -> None:
    geometry = Geometry(size=8 * ZONE, zone_size=ZONE, zone_capacity=ZONE, conventional=((0, 4),))
    ZonedDevice.create(tmp_path / "image", geometry, uuid=UUID_OF_TESTS)
    device = ZonedDevice.open(tmp_path / "image")
    port = device.port("test", VIRTIO)
    data = content(7, 2 * ZONE)
    assert port.write(ZONE // 2, 2 * ZONE, [data]) is Status.OK
    assert read(port, ZONE // 2, ZONE // 2) == data[: ZONE // 2 * 512]
    pieces = [content(number, 1) for number in range(LONG)]
    assert port.write(4 * ZONE, LONG, pieces) is Status.OK
    assert read(port, 4 * ZONE, LONG) == b"".join(pieces)
    device.close()


def test_a_zone_beside_a_held_one_is_not_waited_for() -> None:
    lock = threading.Lock()
    holds = Holds(lock)
    background = Background()

    def wait(first: int, end: int) -> str:
        with lock:
            holds.wait(first, end)
        return "free"

    with lock:
        hold = holds.take(2, 4)
    background.start("before", lambda: wait(0, 2))
    background.start("behind", lambda: wait(4, 6))
    assert background.join() == {"before": "free", "behind": "free"}
    waiting = [background.start("first", lambda: wait(1, 3)), background.start("last", lambda: wait(3, 5))]
    for thread in waiting:
        thread.join(0.05)
        assert thread.is_alive()
    with lock:
        holds.give_back(hold)
    assert background.join()["last"] == "free"


def test_zones_that_a_hold_is_done_with_are_free_at_once() -> None:
    lock = threading.Lock()
    holds = Holds(lock)
    background = Background()

    def wait() -> int:
        with lock:
            holds.wait(0, 3)
            return hold[0]

    with lock:
        hold = holds.take(0, 8)
    waiting = background.start("early", wait)
    waiting.join(0.05)
    assert waiting.is_alive()
    with lock:
        holds.advance(hold, 3)
    assert background.join()["early"] == 3
    assert list(holds.held.values()) == [[3, 8]]


def test_a_change_is_waited_for_and_not_asked_for_again_and_again() -> None:
    lock = threading.Lock()
    holds = Holds(lock)
    background = Background()

    def wait() -> str:
        with lock:
            holds.wait_for_change()
        return "changed"

    with lock:
        hold = holds.take(0, 1)
    waiting = background.start("change", wait)
    waiting.join(0.05)
    assert waiting.is_alive()
    with lock:
        holds.give_back(hold)
    assert background.join()["change"] == "changed"


# -- how much is done under one hold of the lock ----------------------------------------------------------------------


def test_no_command_goes_through_more_than_a_portion_of_zones_under_one_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nr_zones = 20_000
    geometry = Geometry(size=nr_zones * 8, zone_size=8, zone_capacity=8)
    path = tmp_path / "image"
    ZonedDevice.create(path, geometry, uuid=UUID_OF_TESTS)
    image = Image.open(path)
    lock = Counting()
    image.lock = lock  # type: ignore[assignment]  # it does what a lock does
    device = ZonedDevice(image)

    def counted(function: Callable[..., Any], weight: Callable[..., int]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if lock.locked():
                lock.steps += weight(*args)
            return function(*args, **kwargs)

        return call

    # What is done for each zone, wherever it is done, goes through one of these.
    monkeypatch.setattr(image, "publish_all", counted(image.publish_all, len))
    machine_class = type(device.machine)
    for name, weight in {
        "_move_all": lambda _machine, zones, *_: len(zones),
        "_set_cond": lambda *_: 1,
        "snapshot": lambda *_: 1,
        "_close_oldest": lambda _machine, count, *_: count,
    }.items():
        monkeypatch.setattr(machine_class, name, counted(getattr(machine_class, name), weight))
    monkeypatch.setattr(device.counters, "count_all", counted(device.counters.count_all, lambda zones, _: len(zones)))
    port, zbc = device.port("test", VIRTIO), device.port("test", ZBC)
    saved = device.save_zones()
    commands: dict[str, Callable[[], object]] = {
        "open": lambda: zbc.manage(Operation.OPEN, 0, nr_zones),
        "flush": port.flush,
        "close all": lambda: port.manage_all(Operation.CLOSE),
        "open again": lambda: zbc.manage(Operation.OPEN, 0, nr_zones),
        "power cycle": device.power_cycle,
        "finish": lambda: port.manage(Operation.FINISH, 0, nr_zones),
        "reset": lambda: port.manage(Operation.RESET, 0, nr_zones),
        "load": lambda: device.load_zones(saved),
        "finish again": lambda: port.manage(Operation.FINISH, 0, nr_zones),
        "load over": lambda: device.load_zones(saved),
        "report": lambda: port.report(0, nr_zones),
        "reset all": lambda: port.manage_all(Operation.RESET),
    }
    for name, command in commands.items():
        lock.worst = lock.nr_holds = 0
        assert command() in (Status.OK, None) or name == "report", name
        # Each zone is moved, set, published.
        assert lock.worst <= 4 * PORTION_ZONES, (name, lock.worst)
        assert lock.nr_holds >= nr_zones // PORTION_ZONES or name not in {"open", "close all", "power cycle", "finish"}
    device.close()


def test_a_range_is_changed_as_a_whole_for_other_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two portions others get the lock: they wait for the zones that are left, and not for the others."""
    nr_zones = 3 * PORTION_ZONES
    geometry = Geometry(size=nr_zones * 8, zone_size=8, zone_capacity=8)
    ZonedDevice.create(tmp_path / "image", geometry, uuid=UUID_OF_TESTS)
    device = ZonedDevice.open(tmp_path / "image")
    port, other = device.port("test", VIRTIO), device.port("other", VIRTIO)
    background = Background()
    steps = itertools.count()
    last = 8 * (nr_zones - 1)

    def between_portions() -> None:
        if next(steps):
            return
        assert other.manage(Operation.RESET, 0) is Status.OK
        waiting = background.start("offline", lambda: other.set_cond(nr_zones - 1, Condition.OFFLINE))
        waiting.join(0.05)
        assert waiting.is_alive()

    monkeypatch.setattr(device.image, "let_others_in", between_portions)
    assert port.manage(Operation.FINISH, 0, nr_zones) is Status.OK
    assert background.join()["offline"] is Status.OK
    assert port.manage(Operation.RESET, 0, nr_zones) is Status.ZONE_OFFLINE
    assert port.zone(0).cond is Condition.EMPTY
    assert port.zone(1).cond is Condition.FULL
    assert port.write(last, 8, [content(1, 8)]) is Status.ZONE_OFFLINE
    device.close()


def test_what_is_long_is_a_matter_of_sectors(device: ZonedDevice) -> None:
    assert device.access.short_sectors == LONG_WRITE_SECTORS < LONG


def test_only_a_write_leaves_its_zone_open() -> None:
    holds = Holds(threading.Lock())
    reset, write = holds.take(0, 3), holds.take(3, 4, writing=True)
    assert list(holds.held.values()) == [reset, write]
    assert list(holds.writing.values()) == [write]
