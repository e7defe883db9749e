"""A queue that holds requests, on a clock and an alarm that the test moves."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.virtqueue.test_virtqueue import Bench, Echo
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.inflight.ring_record import RingRecord, record_bytes
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.testing.driver_rings import SplitDriver
from zonefs_emu.virtio.ring import BrokenRingError, Chain
from zonefs_emu.virtqueue.timed_virtqueue import TimedVirtqueue, time_queues
from zonefs_emu.virtqueue.virtqueue import Virtqueue


class TimedEcho(Echo):
    """Each request is due as many microseconds after its arrival as its first byte says; b"x" cannot be read."""

    nr_executed = 0

    def execute(self, chain: Chain) -> int:
        self.nr_executed += 1
        return super().execute(chain)

    def due_ns(self, chain: Chain, arrival_ns: int) -> int:
        if chain[1][0][0] == ord("x"):
            raise BrokenRingError("x")
        return arrival_ns + chain[1][0][0] * 1000


class Alarm:
    def __init__(self) -> None:
        self.times: list[int] = []
        self.function: Callable[[], object] = lambda: None

    def at(self, due_ns: int, function: Callable[[], object]) -> None:
        self.times.append(due_ns)
        self.function = function

    def cut(self) -> None:
        """Do nothing."""


class TimedBench(Bench):
    def __init__(self, device: ZonedDevice, *, is_packed: bool) -> None:
        super().__init__(is_packed=is_packed)
        self.now_ns = 0
        device.start_timing("zn540", clock=lambda: self.now_ns)
        port = device.port("test", VIRTIO)
        assert isinstance(port, TimedPort)
        self.port = port
        assert device.timing is not None
        self.timing = device.timing
        self.alarm = device.timing.alarm = Alarm()  # type: ignore[assignment]  # a double
        plain = self.queue
        self.queue = queue = TimedVirtqueue(0, self.intents, TimedEcho(), self.service)
        for name in ("address", "size", "base", "call_fd", "enabled"):
            setattr(queue, name, getattr(plain, name))
        self.nr_woken = 0
        time_queues([queue], port, self.wake)

    def wake(self) -> None:
        self.nr_woken += 1

    def done(self) -> list[int]:
        return [done.request_id for done in self.pair.driver.reap()]


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def bench(request: pytest.FixtureRequest, device: ZonedDevice) -> Iterator[TimedBench]:
    bench = TimedBench(device, is_packed=request.param)
    yield bench
    bench.queue.close()


def send(bench: TimedBench, microseconds: int) -> int:
    return bench.pair.add([bytes([microseconds])], [1])


def test_requests_are_carried_out_when_they_are_due(bench: TimedBench) -> None:
    bench.start()
    first, second = send(bench, 10), send(bench, 20)
    assert bench.queue.run(), "there were new ones"
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


def test_a_request_does_not_overtake_another(bench: TimedBench) -> None:
    """The record of requests in flight knows one place only where the queue goes on."""
    bench.start()
    slow, quick = send(bench, 50), send(bench, 1)
    bench.queue.run()
    bench.now_ns = 49_999
    bench.queue.run()
    assert bench.done() == []
    bench.now_ns = 50_000
    bench.queue.run()
    assert bench.done() == [slow, quick]


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


def test_the_port_itself_holds_nothing(bench: TimedBench) -> None:
    assert not bench.port.is_held


def test_a_stopped_queue_leaves_what_it_holds_to_the_next(bench: TimedBench) -> None:
    bench.start()
    numbers = [send(bench, 10), send(bench, 20), send(bench, 30)]
    bench.queue.run()
    bench.now_ns = 10_000
    bench.queue.run()
    assert bench.done() == numbers[:1]
    bench.queue.base = bench.queue.stop()
    assert isinstance(bench.queue._handler, TimedEcho)
    assert bench.queue._handler.nr_executed == 1, "no other was carried out"
    bench.start()
    bench.queue.run()
    bench.now_ns = 100_000
    bench.queue.run()
    assert bench.done() == numbers[1:]


def test_a_killed_process_has_carried_out_what_it_gave_back(device: ZonedDevice) -> None:
    bench = TimedBench(device, is_packed=False)
    record = memoryview(bytearray(record_bytes(64)))
    bench.queue.start(bench.memory, bench.features, record, None)
    send(bench, 10), send(bench, 20)
    bench.queue.run()
    bench.now_ns = 10_000
    bench.queue.run()
    again = RingRecord(record, 64, packed=False)
    again.start_split(1)
    assert bench.done() == [0]
    bench.queue.close()


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
        bench.queue._notify_at = 10  # of as many at once as it was before
        bench.queue.run()
        assert os.eventfd_read(bench.queue.call_fd) >= 1, number


def test_one_that_waits_for_the_disk_holds_up_those_behind_it(bench: TimedBench) -> None:
    bench.start()
    waits, other = bench.pair.add([b"w"], [1]), send(bench, 1)
    bench.queue.run()
    bench.now_ns = 1_000_000
    bench.queue.run()
    assert bench.done() == []
    bench.work()
    bench.queue.run()
    assert bench.done() == [waits, other]


def test_what_cannot_be_read_is_said_when_it_is_carried_out(
    bench: TimedBench, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("queue 0 is broken: x")
    bench.start()
    bench.pair.add([b"x"], [1])
    bench.queue.run()
    assert bench.queue.broken
    assert not bench.queue.run()


def test_a_bug_where_requests_are_timed_costs_the_ring(
    bench: TimedBench, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("queue 0 is broken: an internal error")
    monkeypatch.setattr(bench.queue._handler, "due_ns", None)
    bench.start()
    send(bench, 1)
    assert not bench.queue.run()
    assert isinstance(bench.contained[0][1], TypeError)


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
