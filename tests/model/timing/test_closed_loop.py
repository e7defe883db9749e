from collections import Counter
from typing import Any

import pytest

from zonefs_emu.model.timing import closed_loop
from zonefs_emu.model.timing.closed_loop import (
    Host,
    Job,
    Outcome,
    run,
    run_in_proportion,
    run_management,
    steady_warm_up,
    summarize,
)
from zonefs_emu.model.timing.flash import FlashTiming
from zonefs_emu.model.timing.timing_presets import ZN540
from zonefs_emu.model.timing.waits import Instant, Wait
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition

CAPACITY = 1077 << 11
ZONE = 2048 << 11
#: No time of its own.
IDEAL = Host(write_gap_ns=0, read_gap_ns=0, read_fill_ns=0)


class Fixed(Instant):
    """Each request takes a microsecond, however many there are; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Operation, int, int, int, int, int]] = []

    def submit(self, operation: Operation, zone: int, sector: int, nr_sectors: int, arrival_ns: int, *,
               condition: int = Condition.IMP_OPEN, written_sectors: int = 0) -> int:  # fmt: skip
        self.asked.append((operation, zone, sector, arrival_ns, condition, written_sectors))
        return arrival_ns + 1000


def simulate(model: Any, *jobs: Job, **options: Any) -> list[Outcome]:
    return run(model, jobs, zone_sectors=32, capacity_sectors=24, **options)


def test_a_job_keeps_its_depth_in_flight_and_goes_through_its_zones() -> None:
    model = Fixed()
    job = Job(operation=Operation.WRITE, nr_sectors=8, depth=1, first_zone=2, zone_step=3, nr_zones=2)
    (outcome,) = simulate(model, job, count=8, host=IDEAL)
    assert [(zone, sector) for _, zone, sector, *_ in model.asked] == [
        (2, 64), (2, 72), (2, 80), (5, 160), (5, 168), (5, 176), (2, 64), (2, 72),
    ]  # fmt: skip
    assert [condition for *_, condition, _ in model.asked[:2]] == [Condition.EMPTY, Condition.IMP_OPEN]
    assert outcome.begins_ns == list(range(0, 8000, 1000))
    assert outcome.summary().iops == pytest.approx(1e6)
    (deep,) = simulate(Fixed(), Job(operation=Operation.WRITE, nr_sectors=8, depth=4), count=4000, host=IDEAL)
    assert deep.summary().iops == pytest.approx(4e6, rel=0.01)


def test_progress_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_loop, "_PROGRESS_EVERY", 4)
    told: list[int] = []
    model = FlashTiming(ZN540, capacity_sectors=CAPACITY)
    job = Job(operation=Operation.WRITE, nr_sectors=8)
    simulate(model, job, count=8, warm_up=2, progress=told.append)
    assert told == [2, 6, 10]
    told.clear()
    run_management(
        model, Operation.RESET, count=6, capacity_sectors=CAPACITY, written_sectors=0, finished=False,
        progress=told.append,
    )  # fmt: skip
    assert told == [0, 4]


def test_jobs_in_proportion_wait_for_each_other() -> None:
    reads = Job(operation=Operation.READ, nr_sectors=8, depth=16, random=True)
    writes = Job(operation=Operation.WRITE, nr_sectors=8, first_zone=5)
    model = Fixed()
    outcomes = run_in_proportion(
        model, (reads, writes), (3, 1), zone_sectors=32, capacity_sectors=24, duration_ns=1_000_000, host=IDEAL
    )
    counts = [len(outcome.begins_ns) for outcome in outcomes]
    assert counts[0] == pytest.approx(3 * counts[1], abs=6)
    # The reads go on when a write is answered, after 1000 ns, so that their depth of 16 is not reached.
    began = [at for operation, _, _, at, *_ in model.asked if operation == Operation.READ]
    assert began[:5] == [0, 0, 0, 0, 1000]
    assert max(Counter(began).values()) < 8
    assert outcomes[1].summary().mean_ns == 1000
    # A job that the other does not hold up is as fast as alone, and what is warming up is not counted.
    (alone,) = run_in_proportion(
        Fixed(), (writes,), (1,), zone_sectors=32, capacity_sectors=24,
        duration_ns=1_000_000, warm_up_ns=500_000, host=IDEAL,
    )  # fmt: skip
    assert alone.summary().iops == pytest.approx(1e6, rel=0.01)
    assert len(alone.begins_ns) == 500


def test_jobs_in_proportion_take_time_for_each_request() -> None:
    jobs = (
        Job(operation=Operation.READ, nr_sectors=8, depth=16, random=True),
        Job(operation=Operation.WRITE, nr_sectors=8, first_zone=5),
    )
    reads, writes = run_in_proportion(
        Fixed(), jobs, (3, 1), zone_sectors=32, capacity_sectors=24, duration_ns=10_000,
        host=Host(write_gap_ns=70, read_gap_ns=50, read_fill_ns=20),
    )  # fmt: skip
    assert reads.begins_ns[:4] == [0, 20, 40, 60], "a job fills its queue with one request after the other"
    # The write of time 97 is ahead until the fourth read, and the first read of time 60 + 1000.
    assert writes.begins_ns[1] - writes.begins_ns[0] >= 1000 + 70
    assert all(write - max(read for read in reads.begins_ns if read < write) >= 50 for write in writes.begins_ns[2:])


def test_a_job_that_is_ahead_waits_until_the_other_has_caught_up() -> None:
    class SlowWrites(Fixed):
        def submit(self, operation: Operation, zone: int, sector: int, nr_sectors: int, arrival_ns: int, *,
                   condition: int = Condition.IMP_OPEN, written_sectors: int = 0) -> int:  # fmt: skip
            end_ns = super().submit(operation, zone, sector, nr_sectors, arrival_ns,
                                    condition=condition, written_sectors=written_sectors)  # fmt: skip
            return end_ns + 9000 * (operation == Operation.WRITE)

    jobs = (
        Job(operation=Operation.READ, nr_sectors=8, depth=16, random=True),
        Job(operation=Operation.WRITE, nr_sectors=8, first_zone=5),
    )
    reads, writes = run_in_proportion(
        SlowWrites(), jobs, (1, 1), zone_sectors=32, capacity_sectors=24, duration_ns=100_000, host=IDEAL
    )
    # A write takes ten microseconds and a read one: reads begin beside a write or when the first of them is answered,
    # and then wait for the next write.
    assert max(at % 10_000 for at in reads.begins_ns) < 2000
    assert len(reads.begins_ns) == pytest.approx(len(writes.begins_ns), abs=2)


def test_random_reads_are_anywhere_in_the_zones() -> None:
    model = Fixed()
    simulate(model, Job(operation=Operation.READ, nr_sectors=8, random=True, nr_zones=2), count=200)
    assert {sector for _, _, sector, *_ in model.asked} == {0, 8, 16, 32, 40, 48}


def test_a_rate_holds_requests_back() -> None:
    job = Job(operation=Operation.WRITE, nr_sectors=8, rate_bytes=4096 * 1000)
    (outcome,) = simulate(Fixed(), job, duration_ns=10**9, warm_up_ns=10**8)
    assert len(outcome.latencies_ns) == 900
    assert outcome.summary().iops == pytest.approx(1000)


def test_what_warms_up_is_not_counted() -> None:
    (outcome,) = simulate(Fixed(), Job(operation=Operation.READ, nr_sectors=8), count=10, warm_up=5, host=IDEAL)
    assert outcome.begins_ns[0] == 5000
    assert len(outcome.latencies_ns) == 10


def test_jobs_that_share_processors_wait_for_their_turn() -> None:
    jobs = [Job(operation=Operation.READ, nr_sectors=8, first_zone=zone) for zone in range(4)]
    host = Host(read_gap_ns=0, nr_processors=3, turn_ns=10_000)
    outcomes = simulate(Fixed(), *jobs, duration_ns=1_000_000, host=host)
    counts = [len(outcome.latencies_ns) for outcome in outcomes]
    assert sum(counts) == pytest.approx(3000, rel=0.05)
    assert min(counts) == pytest.approx(max(counts), rel=0.05)
    assert max(outcomes[0].latencies_ns) > 10_000


def test_nothing_that_was_asked_for_is_no_figure() -> None:
    summary = summarize([], 10, 4096)
    assert (summary.iops, summary.p99_ns) == (0.0, 0)
    (outcome,) = simulate(Fixed(), Job(operation=Operation.READ, nr_sectors=8), duration_ns=10, warm_up_ns=20)
    assert outcome.summary() == summary


def test_percentiles() -> None:
    summary = summarize(range(100, 0, -1), 1000, 512)
    assert (summary.p50_ns, summary.p95_ns, summary.p99_ns, summary.mean_ns) == (51, 96, 100, 50)
    assert (summary.iops, summary.bw) == (1e8, 512e8)


@pytest.mark.parametrize(
    ("operation", "written", "finished", "expected"),
    [
        (Operation.RESET, 0, False, [(Operation.RESET, Condition.IMP_OPEN)]),
        (Operation.RESET, 24, False, [(Operation.RESET, Condition.FULL)]),
        (Operation.FINISH, 0, False, [(Operation.FINISH, Condition.EMPTY)]),
        (Operation.RESET, 8, True, [(Operation.FINISH, Condition.IMP_OPEN), (Operation.RESET, Condition.FULL)]),
    ],
)
def test_zones_are_managed_one_after_the_other(
    operation: Operation, written: int, finished: bool, expected: list[tuple[Operation, Condition]]
) -> None:
    model = Fixed()
    outcome = run_management(model, operation, count=2, capacity_sectors=24, written_sectors=written, finished=finished)
    assert [(asked[0], asked[4]) for asked in model.asked] == expected * 2
    assert outcome.latencies_ns == [1000, 1000]
    assert outcome.summary().iops == pytest.approx(1e6)


def test_the_queues_of_a_drive_are_full_before_counting_begins() -> None:
    assert steady_warm_up(Job(operation=Operation.READ, nr_sectors=8, depth=4), 2) == 16
    assert steady_warm_up(Job(operation=Operation.WRITE, nr_sectors=8, depth=4), 2) == 16, "they fill no buffer"
    assert steady_warm_up(Job(operation=Operation.WRITE, nr_sectors=32, depth=4), 2) == 16 + 610


#: What was measured, in microseconds or thousands a second; docs/timing.md has the source.
@pytest.mark.parametrize(
    ("operation", "size", "zones", "depth", "iops", "mean_us"),
    [
        (Operation.WRITE, 4096, 1, 1, 85_147, 10.83),
        (Operation.APPEND, 4096, 1, 1, 65_680, 14.28),
        (Operation.APPEND, 4096, 1, 4, 132_168, 29.1),
        (Operation.WRITE, 4096, 8, 1, 185_852, 41.7),
        (Operation.APPEND, 16384, 1, 4, 73_337, 52.3),
        (Operation.WRITE, 65536, 4, 1, 18_461, 213.3),
        (Operation.WRITE, 4096, 14, 1, 182_386, 75.2),
        (Operation.READ, 4096, 1, 1, 13_704, 72.5),
        (Operation.READ, 4096, 1, 64, 365_005, 174.9),
        (Operation.READ, 16384, 1, 16, 111_843, 142.6),
        (Operation.READ, 4096, 14, 1, 120_098, 115.6),
    ],
)
def test_the_zn540_is_as_fast_as_the_drive(
    *, operation: Operation, size: int, zones: int, depth: int, iops: float, mean_us: float
) -> None:
    jobs = [
        Job(operation=operation, nr_sectors=size >> 9, depth=depth, first_zone=zone, random=True)
        for zone in range(zones)
    ]
    model = FlashTiming(ZN540, capacity_sectors=CAPACITY)
    outcomes = run(
        model,
        jobs,
        zone_sectors=ZONE,
        capacity_sectors=CAPACITY,
        count=3000,
        warm_up=steady_warm_up(jobs[0], zones),
    )
    latencies = [latency for outcome in outcomes for latency in outcome.latencies_ns]
    summary = summarize(latencies, outcomes[0].end_ns - outcomes[0].begin_ns, size)
    assert summary.iops == pytest.approx(iops, rel=0.1)
    assert summary.mean_ns / 1e3 == pytest.approx(mean_us, rel=0.1)
    assert model.waited_for in set(Wait)
