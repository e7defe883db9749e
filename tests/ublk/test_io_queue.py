"""What is done with each request, on a file that plays the character device: the data of a tag lies at its offset."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.refused import last_refusal
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.intent_log import Intents
from zonefs_emu.errors import Status
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.inflight.tag_record import COMMITTED, FREE, TagRecord
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.ublk.io_queue import Executor, IoQueue
from zonefs_emu.ublk.protocol import BLK_ZONE_BYTES, IO_DESC, IO_RES_ABORT, Request, buffer_offset

ZONE = 128
TAG = 5
FUA = 1 << 13


class Driver:
    """Asks for one request after the other, as the kernel does."""

    def __init__(self, directory: Path, *, timing: str = "none") -> None:
        image = directory / "image"
        geometry = Geometry(
            size=8 * ZONE, zone_size=ZONE, zone_capacity=100, conventional=((0, 1),), write_granularity=4,
            max_append=16, max_open_zones=2, max_active_zones=3,
        )  # fmt: skip
        ZonedDevice.create(image, geometry, uuid=UUID(int=1))
        self.device = ZonedDevice.open(image)
        self.device.start_timing(timing)
        self.port = self.device.port("ublk", VIRTIO)
        intents = self.port.intents = Intents(contested=lambda _: False)
        self.record = TagRecord(directory / "records", self.port, device_tag=1, nr_tags=8, go_on=False)
        self.fd = os.open(directory / "node", os.O_RDWR | os.O_CREAT)
        self.executor = Executor(self.port, intents, self.fd, self.record, queue_number=0, depth=8)
        self.executor.begin()

    def ask(self, request: Request, sector: int = 0, count: int = 0, *, flags: int = 0, data: bytes = b"") -> int:
        if data:
            os.pwrite(self.fd, data, buffer_offset(0, TAG))
        return self.executor.execute(TAG, request | flags, count, sector)

    def data(self, length: int) -> bytes:
        return os.pread(self.fd, length, buffer_offset(0, TAG))

    def write(self, sector: int, count: int, letter: str = "x", *, flags: int = 0) -> int:
        return self.ask(Request.WRITE, sector, count, flags=flags, data=letter.encode() * (count * 512))


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    made = Driver(tmp_path)
    yield made
    made.record.close()
    made.device.close()
    os.close(made.fd)


def test_write_and_read(driver: Driver) -> None:
    assert driver.write(ZONE, 8, "a") == 8 * 512
    assert driver.ask(Request.READ, ZONE, 12) == 12 * 512
    assert driver.data(12 * 512) == b"a" * (8 * 512) + bytes(4 * 512)


def test_append_says_where(driver: Driver) -> None:
    for number in range(3):
        assert driver.ask(Request.ZONE_APPEND, 2 * ZONE, 4, data=b"b" * 2048) == 2048
        assert driver.executor.landed == 2 * ZONE + 4 * number


def test_a_write_with_fua_is_flushed(driver: Driver) -> None:
    assert driver.write(ZONE, 4, flags=FUA) == 4 * 512
    assert driver.device.statistics()["flushes"] == 1
    assert driver.ask(Request.FLUSH) == 0
    assert driver.device.statistics()["flushes"] == 2


@pytest.mark.parametrize("sector", [ZONE + 8, ZONE + 2, 2 * ZONE + 96])
def test_refused_writes_are_io_errors_with_a_reason(driver: Driver, sector: int) -> None:
    assert driver.write(sector, 4) == -errno.EIO
    refusal = last_refusal(driver.port)
    assert refusal is not None
    assert refusal.status in (Status.UNALIGNED_WP, Status.UNALIGNED)
    assert "ublk: write of 4 sectors" in EXPLAINER.explain(refusal, driver.device.geometry)


def test_management(driver: Driver) -> None:
    for request, cond in (
        (Request.ZONE_OPEN, Condition.EXP_OPEN),
        (Request.ZONE_CLOSE, Condition.EMPTY),
        (Request.ZONE_FINISH, Condition.FULL),
        (Request.ZONE_RESET, Condition.EMPTY),
    ):
        assert driver.ask(request, 3 * ZONE) == 0
        assert driver.port.zone(3).cond is cond
    driver.write(ZONE, 4)
    assert driver.ask(Request.ZONE_RESET_ALL) == 0
    assert driver.port.zone(1).cond is Condition.EMPTY
    assert driver.ask(Request.ZONE_OPEN, 0) == -errno.EIO


def test_limits_have_errors_of_their_own(driver: Driver) -> None:
    assert driver.ask(Request.ZONE_OPEN, ZONE) == 0
    assert driver.ask(Request.ZONE_OPEN, 2 * ZONE) == 0
    assert driver.ask(Request.ZONE_OPEN, 3 * ZONE) == -errno.ETOOMANYREFS
    driver.write(ZONE, 4)
    driver.ask(Request.ZONE_CLOSE, ZONE)
    assert driver.ask(Request.ZONE_OPEN, 3 * ZONE) == 0
    assert driver.write(4 * ZONE, 4) == -errno.EOVERFLOW


def test_report(driver: Driver) -> None:
    assert driver.ask(Request.REPORT_ZONES, 0, 100) == 8 * BLK_ZONE_BYTES
    assert driver.ask(Request.REPORT_ZONES, 6 * ZONE, 1) == BLK_ZONE_BYTES
    assert driver.data(8) == (6 * ZONE).to_bytes(8, "little")


def test_what_is_not_offered(driver: Driver) -> None:
    assert driver.ask(Request.DISCARD, ZONE, 4) == -errno.EOPNOTSUPP
    assert driver.ask(Request.WRITE_ZEROES, ZONE, 4) == -errno.EOPNOTSUPP
    assert [EXPLAINER.explain(refusal, driver.device.geometry) for refusal in driver.device.refusals.last(10)] == [
        f"ublk: operation {number} was refused (UNSUPPORTED): the kernel asks for reads, writes, flushes and zone "
        "operations, as the device was set up [Linux include/uapi/linux/ublk_cmd.h, UBLK_IO_OP_*]"
        for number in (3, 5)
    ]


def test_data_that_the_kernel_does_not_give(driver: Driver) -> None:
    os.ftruncate(driver.fd, buffer_offset(0, TAG) + 100)
    assert driver.ask(Request.WRITE, ZONE, 4) == -errno.EIO
    assert driver.port.zone(1).cond is Condition.EMPTY
    (refusal,) = driver.device.refusals.last(10)
    assert EXPLAINER.explain(refusal, driver.device.geometry) == (
        f"ublk: write of 4 sectors at sector {ZONE} was refused (IO_ERROR): the kernel did not give or take the data "
        "of the request [Linux Documentation/block/ublk.rst, UBLK_F_USER_COPY]"
    )


def test_data_that_the_kernel_does_not_take(driver: Driver, expect_warning: Callable[[str], None]) -> None:
    expect_warning("cannot be moved to or from the kernel")
    os.close(driver.fd)
    driver.fd = os.open(os.devnull, os.O_RDONLY)
    driver.executor._fd = driver.fd
    assert driver.ask(Request.READ, ZONE, 4) == -errno.EBADF
    assert driver.ask(Request.REPORT_ZONES, 0, 8) == -errno.EBADF
    assert [refusal.request for refusal in driver.device.refusals.last(10)] == [
        f"read of 4 sectors at sector {ZONE}", "report zones of 8 zones at sector 0",
    ]  # fmt: skip


def test_records_of_writes_stay_until_answered(driver: Driver) -> None:
    driver.write(ZONE, 4)
    words = driver.record.words
    assert words[driver.record.slots[TAG]] == COMMITTED
    driver.ask(Request.READ, ZONE, 4)
    assert words[driver.record.slots[TAG]] == COMMITTED
    driver.write(ZONE + 60, 4)
    assert [words[at] for at in driver.record.slots].count(FREE) >= 7


@pytest.mark.parametrize("grown", [4, 8, 16])
def test_a_write_comes_again_with_more_behind_it(driver: Driver, grown: int) -> None:
    driver.write(ZONE, 4, "a")
    # As after a restart: the record is of an earlier process.
    record = driver.record
    record.recoverable.append(record.slots[TAG])
    record.slots[TAG] = max(record.slots) + 4
    assert driver.ask(Request.WRITE, ZONE, grown, data=b"a" * 2048 + b"b" * 512 * (grown - 4)) == grown * 512
    assert driver.port.zone(1).wp == ZONE + grown
    driver.ask(Request.READ, ZONE, grown)
    assert driver.data(grown * 512) == b"a" * 2048 + b"b" * 512 * (grown - 4)


def test_an_append_comes_again(driver: Driver) -> None:
    driver.ask(Request.ZONE_APPEND, ZONE, 4, data=b"a" * 2048)
    record = driver.record
    record.recoverable.append(record.slots[TAG])
    record.slots[TAG] = max(record.slots) + 4
    driver.executor.landed = 0
    assert driver.ask(Request.ZONE_APPEND, ZONE, 4, data=b"a" * 2048) == 2048
    assert driver.executor.landed == ZONE
    assert record.recoverable == []
    assert driver.ask(Request.ZONE_APPEND, ZONE, 4, data=b"a" * 2048) == 2048
    assert driver.executor.landed == ZONE + 4


@pytest.mark.parametrize(
    ("request_kind", "operation"),
    [
        (Request.READ, Operation.READ),
        (Request.WRITE, Operation.WRITE),
        (Request.ZONE_APPEND, Operation.APPEND),
        (Request.ZONE_FINISH, Operation.FINISH),
        (Request.FLUSH, Operation.FLUSH),
    ],
)
def test_a_delay_is_cut_short_at_the_end(driver: Driver, request_kind: Request, operation: Operation) -> None:
    hour_ns = 3600 * 10**9
    fault = Fault(
        effect=Effect.DELAY, operations=frozenset((operation,)), delay_min_ns=hour_ns, delay_max_ns=hour_ns
    )  # fmt: skip
    driver.device.inject(fault)
    results: list[int] = []

    def serve() -> None:
        driver.executor.begin()
        results.append(driver.ask(request_kind, ZONE, 4, data=bytes(2048)))

    thread = threading.Thread(target=serve)
    thread.start()
    while not driver.device.faults.faults[0].seen:
        threading.Event().wait(0.01)
    driver.device.stop_waiting()
    thread.join()
    assert results[0] >= 0


class Kernel:
    """The ring of a queue, and the kernel behind it: one request after the other, then the end of all tags."""

    def __init__(self, driver: Driver, requests: list[tuple[int, int, int]], depth: int) -> None:
        #: The answers to *requests* (operation, count, sector), in their order.
        self.results: list[int] = []
        self.entries = bytearray(128 * (depth + 1))
        self.pending = 0
        self._driver = driver
        self._requests = requests
        self._depth = depth
        self._completions: list[tuple[int, int]] = []
        self._wake = -1
        self._ask()

    def serve(self, queue: IoQueue) -> None:
        self._wake = queue._slow_waker.fd
        queue._slow_thread.start()
        with memoryview(self.entries) as raw, raw.cast("i") as results, raw.cast("Q") as landed:
            queue._serve_requests(self, results, landed)  # type: ignore[arg-type]  # what it needs of a ring
        queue._end_slow_thread()

    def _ask(self) -> None:
        if self._requests:
            operation, count, sector = self._requests.pop(0)
            os.pwrite(self._driver.fd, IO_DESC.pack(operation, count, sector, 0), IO_DESC.size * TAG)
            self._completions = [(TAG, 0)]
        else:
            self._completions = [(tag, IO_RES_ABORT) for tag in range(self._depth)]

    def push(self, tag: int) -> None:
        if tag == TAG:
            self.results.append(int.from_bytes(self.entries[128 * TAG + 52 : 128 * TAG + 56], "little", signed=True))
            self._ask()

    def enter(self, nr_wanted: int) -> None:
        if nr_wanted and not self._completions:
            # The request is with the slow thread, which says so when it is done.
            while True:
                try:
                    os.eventfd_read(self._wake)
                    break
                except BlockingIOError:
                    threading.Event().wait(0.01)
            self._completions = [(self._depth, 0)]

    def has_completions(self) -> bool:
        return bool(self._completions)

    def spin(self, _duration_ns: int) -> bool:
        return bool(self._completions)

    def reap(self) -> list[tuple[int, int]]:
        completions, self._completions = self._completions, []
        return completions


# The slow path has what may wait for the host's disk.
@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("read", (Request.READ, 4, ZONE)),
        ("write", (Request.WRITE, 4, ZONE)),
        ("append", (Request.ZONE_APPEND, 4, ZONE)),
        ("manage", (Request.ZONE_OPEN, 0, ZONE)),
        ("has_pending_reset", (Request.WRITE, 4, ZONE)),
        ("flush", (Request.FLUSH, 0, 0)),
        ("flush", (Request.WRITE | FUA, 4, 0)),
        ("manage_all", (Request.ZONE_RESET_ALL, 0, 0)),
        ("report", (Request.REPORT_ZONES, 4000, 0)),
        ("report", (Request.REPORT_ZONES, 4, 0)),
    ],
)
def test_an_unforeseen_error_costs_its_request(
    driver: Driver, method: str, asked: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch,
    expect_warning: Callable[[str], None],
) -> None:  # fmt: skip
    expect_warning("internal error in ublk, .* at sector .*: AssertionError: a bug")
    real = getattr(driver.port, method)
    calls: list[object] = []

    def broken(*args: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            message = "a bug"
            raise AssertionError(message)
        return real(*args)

    monkeypatch.setattr(driver.port, method, broken)
    assert driver.port.intents is not None
    os.ftruncate(driver.fd, buffer_offset(0, 8))
    queue = IoQueue(
        driver.port, driver.port.intents, driver.fd, driver.record, number=0, depth=8, ended=lambda: None
    )  # fmt: skip
    kernel = Kernel(driver, [asked, asked, (Request.READ, 4, 0)], 8)
    kernel.serve(queue)
    assert kernel.results[0] == -errno.EIO
    assert kernel.results[1] >= 0
    assert kernel.results[2] == 2048
    assert driver.device.statistics()["internal_errors"] == 1


def test_a_queue_that_the_kernel_refuses_ends_and_says_so(driver: Driver) -> None:
    """A plain file takes no commands of ublk: all tags are out of service at once."""
    assert driver.port.intents is not None
    ended = threading.Event()
    os.ftruncate(driver.fd, buffer_offset(0, 8))
    queue = IoQueue(driver.port, driver.port.intents, driver.fd, driver.record, number=0, depth=8, ended=ended.set)
    queue.start()
    assert ended.wait(60)
    queue.join()
    assert queue.failure is None or isinstance(queue.failure, OSError)


class ManualAlarm:
    """Rings when the test says so; here, as soon as the queue sleeps."""

    def __init__(self) -> None:
        self.functions: list[Callable[[], object]] = []
        self.is_set = threading.Event()

    def at(self, due_ns: int, function: Callable[[], object]) -> None:
        self.functions.append(function)
        self.is_set.set()

    def cut(self) -> None:
        """Do nothing."""


@pytest.fixture
def timed_driver(tmp_path: Path) -> Iterator[Driver]:
    made = Driver(tmp_path, timing="zn540")
    yield made
    made.record.close()
    made.device.close()
    os.close(made.fd)


@pytest.mark.parametrize(
    ("asked", "result"),
    [
        ((Request.READ, 4, ZONE), 2048),
        ((Request.WRITE, 4, ZONE), 2048),
        ((Request.ZONE_APPEND, 4, ZONE), 2048),
        ((Request.ZONE_OPEN, 0, ZONE), 0),
        ((Request.WRITE | FUA, 4, ZONE), 2048),
    ],
)
def test_the_answer_of_a_timed_drive_waits_for_its_time(
    timed_driver: Driver, asked: tuple[int, int, int], result: int
) -> None:
    driver, alarm = timed_driver, ManualAlarm()
    assert driver.device.timing is not None
    driver.device.timing.alarm = alarm  # type: ignore[assignment]  # a double
    assert driver.port.intents is not None
    os.ftruncate(driver.fd, buffer_offset(0, 8))
    queue = IoQueue(driver.port, driver.port.intents, driver.fd, driver.record, number=0, depth=8, ended=lambda: None)
    kernel = Kernel(driver, [asked, (Request.FLUSH, 0, 0)], 8)
    plain_enter = kernel.enter
    slots: list[int] = []

    def enter(nr_wanted: int) -> None:
        if nr_wanted and not slots:
            assert alarm.is_set.wait(60)
            assert not kernel.results, "it is not answered yet"
            slots.append(driver.record.words[driver.record.slots[TAG]])
            alarm.functions.pop()()
        plain_enter(nr_wanted)

    kernel.enter = enter  # type: ignore[method-assign]
    queue._executor.begin()
    kernel.serve(queue)
    assert kernel.results == [result, 0]
    assert len(slots) == 1
    assert (slots[0] == FREE) == (asked[0] == Request.READ), "what changed something is in the record until then"
    assert driver.record.words[driver.record.slots[TAG]] == FREE
    assert driver.device.timing.statistics()["answers"] == 1
