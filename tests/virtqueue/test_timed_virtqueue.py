"""A queue that holds answers, on a clock and an alarm that the test moves."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.virtio.rings import MEMORY_BYTES
from tests.virtqueue.test_virtqueue import Bench, Echo
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.errors import PeerError
from zonefs_emu.inflight.ring_record import RingRecord, record_bytes
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.testing.driver_rings import GUEST_BASE, SplitDriver
from zonefs_emu.virtio.ring import Chain
from zonefs_emu.virtqueue.dirty_log import DirtyLog
from zonefs_emu.virtqueue.peer_memory import PeerMemory
from zonefs_emu.virtqueue.timed_virtqueue import TimedVirtqueue, time_queues
from zonefs_emu.virtqueue.virtqueue import Virtqueue


class TimedEcho(Echo):
    """The answer to each request is due as many microseconds after its arrival as its first byte says."""

    nr_executed = 0

    def __init__(self, port: TimedPort) -> None:
        super().__init__()
        self._port = port

    def execute(self, chain: Chain) -> int:
        self.nr_executed += 1
        now_ns = self._port.clock()
        self._port.held.hold(now_ns + chain[1][0][0] * 1000, now_ns)
        return super().execute(chain)


class Alarm:
    is_cut = False

    def __init__(self) -> None:
        self.times: list[int] = []
        self.function: Callable[[], object] = lambda: None

    def at(self, due_ns: int, function: Callable[[], object]) -> None:
        self.times.append(due_ns)
        self.function = function

    def cut(self) -> None:
        """Do nothing."""


class TimedBench(Bench):
    def __init__(self, device: ZonedDevice, *, is_packed: bool, size: int = 64) -> None:
        super().__init__(is_packed=is_packed, size=size)
        self.now_ns = 0
        device.start_timing("zn540", clock=lambda: self.now_ns)
        port = device.port("test", VIRTIO)
        assert isinstance(port, TimedPort)
        self.port = port
        assert device.timing is not None
        self.timing = device.timing
        self.alarm = device.timing.alarm = Alarm()  # type: ignore[assignment]  # a double
        plain = self.queue
        self.queue = queue = TimedVirtqueue(0, self.intents, TimedEcho(port), self.service)
        for name in ("address", "size", "base", "call_fd", "enabled"):
            setattr(queue, name, getattr(plain, name))
        self.nr_woken = 0
        time_queues([queue], port, self.wake)

    def wake(self) -> None:
        self.nr_woken += 1

    @property
    def nr_executed(self) -> int:
        assert isinstance(self.queue._handler, TimedEcho)
        return self.queue._handler.nr_executed

    def done(self) -> list[int]:
        return [done.request_id for done in self.pair.driver.reap()]


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def bench(request: pytest.FixtureRequest, device: ZonedDevice) -> Iterator[TimedBench]:
    bench = TimedBench(device, is_packed=request.param)
    yield bench
    bench.queue.close()


def send(bench: TimedBench, microseconds: int) -> int:
    return bench.pair.add([bytes([microseconds])], [1])


def test_answers_are_given_when_they_are_due(bench: TimedBench) -> None:
    bench.start()
    first, second = send(bench, 10), send(bench, 20)
    assert bench.queue.run(), "there were new ones"
    assert bench.nr_executed == 2, "they are carried out at once"
    assert not bench.queue.run()
    assert bench.done() == []
    assert bench.alarm.times == [10_000]
    bench.now_ns = 9_999
    third = send(bench, 30)
    bench.queue.run()
    assert bench.done() == []
    bench.now_ns = 10_000
    bench.alarm.function()
    assert bench.nr_woken == 1
    assert bench.queue.run()
    assert bench.done() == [first]
    assert bench.alarm.times == [10_000, 20_000]
    bench.now_ns = 40_000
    assert bench.queue.run()
    assert bench.done() == [second, third]
    assert bench.timing.statistics()["answers"] == 3
    assert bench.timing.statistics()["late_answers"] == 1, "the second one"


def test_what_overtakes_a_late_answer_sets_no_second_alarm_for_it(bench: TimedBench) -> None:
    bench.start()
    late = send(bench, 200)
    for _ in range(100):
        early = send(bench, 1)
        bench.queue.run()
        bench.now_ns += 1000
        bench.queue.run()
        assert bench.done() == [early]
    assert bench.alarm.times.count(200_000) == 1
    bench.now_ns = 200_000
    bench.queue.run()
    assert bench.done() == [late]
    send(bench, 100)
    bench.queue.run()
    assert bench.alarm.times[-1] == 300_000, "an alarm that has come is no reason to set none"


def test_a_ring_that_is_started_again_needs_no_alarm_after_one_that_comes(bench: TimedBench) -> None:
    for microseconds in (100, 200, 50):
        bench.start()
        send(bench, microseconds)
        bench.queue.run()
        bench.queue.base = bench.queue.stop()
    assert bench.alarm.times == [100_000, 50_000]


@pytest.mark.parametrize("has_record", [False, True])
def test_quick_answers_overtake_slow_ones(bench: TimedBench, has_record: bool) -> None:
    record = memoryview(bytearray(record_bytes(64))) if has_record else None
    bench.queue.start(bench.memory, bench.features, record, None)
    slow, quick = send(bench, 50), send(bench, 1)
    bench.queue.run()
    bench.now_ns = 1000
    bench.queue.run()
    assert bench.done() == [quick]
    later = send(bench, 2)
    bench.queue.run()
    bench.now_ns = 3000
    bench.queue.run()
    assert bench.done() == [later]
    bench.now_ns = 49_999
    bench.queue.run()
    assert bench.done() == []
    bench.now_ns = 50_000
    bench.queue.run()
    assert bench.done() == [slow]


def test_an_alarm_that_comes_while_the_queue_is_served_is_not_lost(bench: TimedBench) -> None:
    """It comes after the look at the clock that found nothing due, and before the loop sleeps."""
    bench.start()
    number = send(bench, 10)
    bench.queue.run()
    assert not bench.queue.run(), "nothing is due"
    assert not bench.queue.sleep(), "the alarm is still to come"
    bench.now_ns = 10_000
    bench.alarm.function()
    assert bench.queue.sleep(), "the loop serves the queue once more"
    assert bench.queue.run()
    assert bench.done() == [number]
    assert not bench.queue.sleep()


@pytest.mark.parametrize("has_record", [False, True])
def test_a_stopped_queue_gives_what_it_holds_at_once(bench: TimedBench, has_record: bool) -> None:
    """The driver's reset, or another back-end, waits for it; an answer may be an hour away."""
    record = memoryview(bytearray(record_bytes(64))) if has_record else None
    bench.queue.start(bench.memory, bench.features, record, None)
    numbers = [send(bench, 30), send(bench, 20), send(bench, 10)]
    bench.queue.run()
    bench.queue.base = bench.queue.stop()
    assert bench.done() == numbers[::-1]
    bench.queue.start(bench.memory, bench.features, record, None)
    following = send(bench, 1)
    bench.queue.run()
    bench.now_ns = 100_000
    bench.queue.run()
    assert bench.done() == [following]
    assert bench.nr_executed == 4, "none was carried out again"


def test_all_is_given_when_the_daemon_ends(bench: TimedBench) -> None:
    bench.start()
    first = send(bench, 30)
    bench.queue.run()
    bench.alarm.is_cut = True
    second = send(bench, 20)
    bench.queue.run()
    assert sorted(bench.done()) == [first, second]


def test_who_takes_over_gives_what_a_killed_process_held(device: ZonedDevice) -> None:
    """With a record that another process goes on with, timed or not; the answers are given at once."""
    for is_packed in (False, True):
        for is_timed in (False, True):
            bench = TimedBench(device, is_packed=is_packed)
            record = memoryview(bytearray(record_bytes(64)))
            bench.queue.start(bench.memory, bench.features, record, None)
            numbers = [send(bench, microseconds) for microseconds in (30, 10, 20)]
            bench.queue.run()
            bench.now_ns += 10_000
            bench.queue.run()
            assert bench.done() == numbers[1:2]
            untaken = send(bench, 5)
            kind = TimedVirtqueue if is_timed else Virtqueue
            queue = kind(0, bench.intents, TimedEcho(bench.port), bench.service)
            if is_timed:
                time_queues([queue], bench.port, bench.wake)
            for name in ("address", "size", "base", "call_fd", "enabled"):
                setattr(queue, name, getattr(bench.queue, name))
            queue.start(bench.memory, bench.features, record, None)
            assert bench.done() == [numbers[0], numbers[2]]
            queue.run()
            bench.now_ns += 5000
            queue.run()
            assert bench.done() == [untaken]
            assert isinstance(queue._handler, TimedEcho)
            assert queue._handler.nr_executed == 1, "those that were held are carried out no more"
            queue.stop()
            queue.close()


def test_requests_that_may_come_again_are_taken_one_by_one(bench: TimedBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.queue.start(bench.memory, bench.features, memoryview(bytearray(record_bytes(64))), None)
    for _ in range(5):
        send(bench, 10)
    monkeypatch.setattr(RingRecord, "recovering", True)
    assert isinstance(bench.queue, TimedVirtqueue)
    for number in (1, 2):
        assert bench.queue.run()
        assert len(bench.queue._held) == number
    monkeypatch.setattr(RingRecord, "recovering", False)
    assert bench.queue.run()
    assert len(bench.queue._held) == 5


def test_a_driver_that_waits_is_notified_at_once(bench: TimedBench) -> None:
    bench.start()
    for number in (1, 2, 3):
        bench.pair.driver.reap()
        assert not bench.pair.driver.want_call()
        send(bench, 10)
        bench.queue.run()
        bench.now_ns += 10_000
        bench.queue.run()
        assert os.eventfd_read(bench.queue.call_fd) >= 1, number


def test_one_that_waits_for_the_disk_holds_up_requests_behind_it_but_no_answer(bench: TimedBench) -> None:
    bench.start()
    before, waits, behind = send(bench, 10), bench.pair.add([b"w"], [1]), send(bench, 1)
    bench.queue.run()
    assert bench.queue.busy
    assert bench.queue.is_ready, "answers may be due"
    assert not bench.queue.sleep()
    bench.now_ns = 10_000
    bench.queue.run()
    assert bench.done() == [before]
    bench.work()
    bench.queue.run()
    bench.now_ns += ord("w") * 1000
    bench.queue.run()
    assert bench.done() == [behind, waits]


def test_an_injected_delay_is_held_as_well(bench: TimedBench) -> None:
    bench.start()
    assert bench.port.defer is not None
    bench.port.defer(5000)
    delayed, other = send(bench, 10), send(bench, 12)
    bench.queue.run()
    bench.now_ns = 14_999
    bench.queue.run()
    assert bench.done() == [other]
    bench.now_ns = 15_000
    bench.queue.run()
    assert bench.done() == [delayed]


def test_a_bug_of_a_request_is_answered_when_that_is_due(
    bench: TimedBench, expect_warning: Callable[[str], None]
) -> None:
    bench.start()
    bug, other = bench.pair.add([b"y"], [1]), send(bench, 1)
    bench.queue.run()
    bench.now_ns = 1000
    bench.queue.run()
    assert bench.done() == [other]
    bench.now_ns = ord("y") * 1000
    bench.queue.run()
    assert bench.done() == [bug]
    assert isinstance(bench.contained[0][1], AssertionError)


def test_a_broken_ring_is_given_what_is_held_when_it_is_stopped(
    bench: TimedBench, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("queue 0 is broken: x")
    bench.start()
    good = send(bench, 10)
    bench.pair.add([b"x"], [1])
    bench.queue.run()
    assert bench.queue.broken
    assert not bench.queue.run()
    bench.queue.stop()
    assert bench.done() == [good]


def test_a_bug_where_answers_are_given_costs_the_ring(
    bench: TimedBench, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("queue 0 is broken: an internal error")
    bench.start()
    send(bench, 1)
    bench.queue.run()
    bench.now_ns = 1000
    monkeypatch.setattr(bench.queue, "_give_held", None)
    assert not bench.queue.run()
    assert isinstance(bench.contained[0][1], TypeError)


@pytest.mark.parametrize(("size", "nr_held"), [(1, 0), (2, 1), (4, 3)])
@pytest.mark.parametrize("is_packed", [False, True], ids=["split", "packed"])
def test_a_full_ring_is_answered_wholly(device: ZonedDevice, is_packed: bool, size: int, nr_held: int) -> None:
    """The record has room for one answer less: the last request is carried out when another has been answered.

    In a ring of one entry there is nothing to overtake, and no room: it is answered at once.
    """
    bench = TimedBench(device, is_packed=is_packed, size=size)
    bench.queue.start(bench.memory, bench.features, memoryview(bytearray(record_bytes(size))), None)
    for _ in range(3):
        numbers = [bench.pair.add([bytes([10 + index])], [1], indirect=True) for index in range(size)]
        bench.queue.run()
        bench.queue.sleep()
        assert isinstance(bench.queue, TimedVirtqueue)
        assert len(bench.queue._held) == nr_held
        found = bench.done()
        assert len(found) == (size == 1)
        for _ in range(30):
            bench.now_ns += 1000
            bench.queue.run()
            found += bench.done()
        assert found == numbers
    bench.queue.stop()
    bench.queue.close()


@pytest.mark.parametrize("takes_over", [False, True])
def test_pages_are_logged_when_answers_are_given(device: ZonedDevice, takes_over: bool) -> None:
    """Of answers that another process held it is not known what was written for them: all pages are marked."""
    bench = TimedBench(device, is_packed=False)
    nr_bytes = ((GUEST_BASE + MEMORY_BYTES) >> 12) + 7 >> 3
    fd = os.memfd_create("log")
    os.ftruncate(fd, nr_bytes)
    dirty = DirtyLog(PeerMemory(), fd, nr_bytes, 0)
    record = memoryview(bytearray(record_bytes(64)))
    bench.queue.start(bench.memory, bench.features, record, None if takes_over else dirty)
    send(bench, 10)
    bench.queue.run()
    assert not any(os.pread(fd, nr_bytes, 0))
    if takes_over:
        bench.queue.start(bench.memory, bench.features, record, dirty)
    else:
        bench.now_ns = 10_000
        bench.queue.run()
    marked = int.from_bytes(os.pread(fd, nr_bytes, 0), "little") >> (GUEST_BASE >> 12)
    assert marked.bit_count() == (MEMORY_BYTES >> 12 if takes_over else 1)
    bench.queue.close()
    os.close(fd)


@given(st.lists(st.tuples(st.integers(1, 8 + 4 * 64 - 1), st.integers(0, (1 << 64) - 1)), max_size=12), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_record_of_anything_does_no_harm(
    device: ZonedDevice, garbage: list[tuple[int, int]], is_packed: bool
) -> None:
    """The peer can store what it likes into it: the queue goes on, or is refused, or its ring is broken."""
    bench = TimedBench(device, is_packed=is_packed)
    bench.queue._service.log.warning = lambda *_: None  # type: ignore[method-assign]  # a broken ring is allowed
    record = memoryview(bytearray(record_bytes(64)))
    bench.queue.start(bench.memory, bench.features, record, None)
    for microseconds in range(20):
        send(bench, microseconds)
    bench.queue.run()
    for at, word in garbage:
        record.cast("Q")[at] = word
    with suppress(PeerError):
        bench.queue.start(bench.memory, bench.features, record, None)
        send(bench, 5)
        bench.queue.run()
        bench.now_ns += 100_000
        bench.queue.run()
        bench.queue.stop()
    assert not bench.contained
    bench.queue.close()


def test_events_are_not_timed(bench: TimedBench) -> None:
    class Events:
        def next_event(self) -> bytes | None:
            return b"e"

        def put_back(self, event: bytes) -> None: ...

    queue = TimedVirtqueue(0, bench.intents, None, bench.service, events=Events())
    time_queues([queue], bench.port, bench.wake)
    for name in ("address", "size", "base", "enabled"):
        setattr(queue, name, getattr(bench.queue, name))
    queue.start(bench.memory, bench.features, memoryview(bytearray(record_bytes(64))), None)
    buffer = bench.pair.add([], [8])
    assert queue.run()
    assert bench.done() == [buffer]
    queue.stop()


def test_no_more_is_held_than_the_ring_has_entries(device: ZonedDevice) -> None:
    """A guest can make the same chains available again and again before they are given back."""
    bench = TimedBench(device, is_packed=False)
    bench.start()
    head = send(bench, 100)
    driver = bench.pair.driver
    assert isinstance(driver, SplitDriver)
    for _ in range(250):
        driver.publish(head)
        bench.queue.run()
    assert isinstance(bench.queue, TimedVirtqueue)
    assert len(bench.queue._held) <= bench.queue.size
    bench.queue.close()


def test_a_port_without_a_timing_leaves_queues_alone(tmp_path: Path, device: ZonedDevice) -> None:
    bench = Bench(is_packed=False)
    assert type(bench.queue) is Virtqueue
    time_queues([bench.queue], device.port("plain", VIRTIO), lambda: None)
    bench.queue.close()
