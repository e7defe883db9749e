import logging
from collections.abc import Callable

import pytest

from zonefs_emu.device.timing import LAST_MAX, SLOWEST_MAX, Timing
from zonefs_emu.model.timing.waits import Instant, Wait
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition


class Model(Instant):
    """Each request takes as many nanoseconds as it has sectors, a quarter of which it waits for a die."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def submit(self, operation: Operation, zone: int, sector: int, nr_sectors: int, arrival_ns: int, *,
               condition: int = Condition.IMP_OPEN, written_sectors: int = 0) -> int:  # fmt: skip
        self.asked.append((arrival_ns, condition, written_sectors))
        self.waited_for, self.waited_ns = Wait.DIE, nr_sectors // 4
        self.busy_ns += nr_sectors
        return arrival_ns + nr_sectors


class Clock:
    def __init__(self) -> None:
        self.now_ns = 500

    def __call__(self) -> int:
        return self.now_ns


def submit(timing: Timing, nr_sectors: int, arrival_ns: int, operation: Operation = Operation.READ) -> int:
    return timing.submit(operation, 3, 0, nr_sectors, cond=Condition.CLOSED, written_sectors=7, arrival_ns=arrival_ns)


def test_the_time_of_the_drive_begins_with_the_timing_and_runs_with_the_clock() -> None:
    model = Model()
    timing = Timing("x", model, clock=Clock())
    assert submit(timing, 100, 510) == 610
    assert model.asked == [(10, Condition.CLOSED, 7)]


def test_a_scale_makes_the_drive_slower_in_proportion() -> None:
    model = Model()
    timing = Timing("x", model, clock=Clock(), scale=10)
    assert submit(timing, 100, 550) == 1550
    assert model.asked[0][0] == 5


def test_requests_of_threads_are_submitted_in_order() -> None:
    model = Model()
    timing = Timing("x", model, clock=Clock())
    submit(timing, 1, 700)
    submit(timing, 1, 600)
    assert [arrival for arrival, *_ in model.asked] == [200, 200]


def test_statistics() -> None:
    clock = Clock()
    timing = Timing("x", Model(), clock=clock, scale=2)
    submit(timing, 100, 500)
    submit(timing, 300, 500)
    submit(timing, 40, 500, Operation.RESET)
    clock.now_ns = 2500
    found = timing.statistics()
    assert (found["preset"], found["scale"], found["elapsed_ns"], found["busy_ns"]) == ("x", 2, 1000, 440)
    assert found["operations"] == {
        "read": {
            "count": 2,
            "total_ns": 400,
            "waited_ns": 100,
            "mean_ns": 200,
            "queueing_ns": 50,
            "service_ns": 150,
            "longest_ns": 300,
        },
        "reset": {
            "count": 1,
            "total_ns": 40,
            "waited_ns": 10,
            "mean_ns": 40,
            "queueing_ns": 10,
            "service_ns": 30,
            "longest_ns": 40,
        },
    }


def test_the_slowest_and_the_last_operations_are_remembered_and_no_more() -> None:
    timing = Timing("x", Model(), clock=Clock())
    for nr_sectors in range(1, 3 * SLOWEST_MAX):
        submit(timing, nr_sectors, 500 + nr_sectors)
    assert [done.latency_ns for done in timing.slowest(3)] == [191, 190, 189]
    assert len(timing.slowest(1000)) == SLOWEST_MAX
    assert [done.latency_ns for done in timing.last()] == list(range(192 - LAST_MAX, 192))
    assert str(timing.slowest(1)[0]) == (
        "read of 191 sectors, zone 3, at 0.000 ms: 0.2 us, of which 0.0 us for a die busy"
    )
    submit(timing, 0, 900_500)
    assert str(timing.last()[-1]) == "read, zone 3, at 0.900 ms: 0.0 us"


def test_an_answer_is_late_by_more_than_a_twentieth_of_its_latency(caplog: pytest.LogCaptureFixture) -> None:
    timing = Timing("x", Model(), clock=Clock())
    timing.answered(1000, 0, 1050)
    assert timing.statistics()["late_answers"] == 0
    timing.answered(1000, 0, 1100)
    timing.answered(1000, 0, 1300)
    found = timing.statistics()
    assert (found["answers"], found["late_answers"], found["late_mean_ns"], found["late_max_ns"]) == (3, 2, 200, 300)
    assert not caplog.records


def test_a_host_that_is_too_slow_is_said_once(
    caplog: pytest.LogCaptureFixture, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("WARNING zonefs_emu.device.timing: the host is too slow for the timing x")
    timing = Timing("x", Model(), clock=Clock(), scale=5)
    for number in range(3000):
        timing.answered(1000, 0, 3000 if number % 10 == 0 else 1000)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "the host is too slow for the timing x: 101 of 1001 answers were late, by 2 us on average; "
        "a --time-scale above 5 gives it more time"
    )
