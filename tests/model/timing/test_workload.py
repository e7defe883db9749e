from collections.abc import Iterable
from typing import Any

import pytest

from zonefs_emu.model.timing.closed_loop import Host
from zonefs_emu.model.timing.waits import Instant
from zonefs_emu.model.timing.workload import (
    ALL_ZONES,
    Arrival,
    JobOutcome,
    WorkloadJob,
    ZoneStates,
    run_arrivals,
    run_workload,
)
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition

#: No time of its own.
IDEAL = Host(write_gap_ns=0, read_gap_ns=0)
W, A, R = Operation.WRITE, Operation.APPEND, Operation.READ


class Fixed(Instant):
    """Each request takes a microsecond and a reset ten; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Operation, int, int, int, int, int]] = []

    def submit(self, operation: Operation, zone: int, sector: int, nr_sectors: int, arrival_ns: int, *,
               condition: int = Condition.IMP_OPEN, written_sectors: int = 0) -> int:  # fmt: skip
        self.asked.append((operation, zone, sector, arrival_ns, condition, written_sectors))
        return arrival_ns + (10_000 if operation == Operation.RESET else 1000)

    def places(self) -> list[tuple[Operation, int, int]]:
        return [(operation, zone, sector - 32 * zone) for operation, zone, sector, *_ in self.asked]


def states(written: Iterable[tuple[int, int]] = (), **how: Any) -> ZoneStates:
    """Eight zones of 32 sectors with 24 of capacity."""
    return ZoneStates(8, 32, 24, written=written, **how)


def job(*operations: Operation, **how: Any) -> WorkloadJob:
    parts: dict[str, Any] = {"name": "j", "sizes": ((8, 1),), "zones": (2, 2)}
    return WorkloadJob(**parts | {"mix": tuple((operation, 1) for operation in operations)} | how)


def simulate(
    *jobs: WorkloadJob, zones: ZoneStates | None = None, seed: int = 0
) -> tuple[Fixed, list[JobOutcome], ZoneStates]:
    model, zones = Fixed(), zones or states()
    return model, run_workload(model, jobs, zones, host=IDEAL, seed=seed), zones


def test_writes_go_on_in_the_next_zone_and_reset_a_full_one() -> None:
    model, (outcome,), zones = simulate(job(W, count=8))
    assert model.places() == [
        (W, 2, 0), (W, 2, 8), (W, 2, 16), (W, 3, 0), (W, 3, 8), (W, 3, 16),
        (Operation.RESET, 2, 0), (W, 2, 0), (W, 2, 8),
    ]  # fmt: skip
    assert [asked[4:] for asked in model.asked[:3]] == [
        (Condition.EMPTY, 0), (Condition.IMP_OPEN, 8), (Condition.IMP_OPEN, 16),
    ]  # fmt: skip
    assert model.asked[6][4:] == (Condition.FULL, 24)
    assert list(outcome.of[W].latencies_ns) == [1000] * 8
    assert outcome.of[W].nr_bytes == 8 * 4096
    assert list(outcome.of[Operation.RESET].latencies_ns) == [10_000]
    assert (outcome.begin_ns, outcome.end_ns) == (0, 18_000)
    assert (zones.written(2), zones.written(3)) == (16, 24)


def written_at_once(model: Fixed) -> int:
    """Return the greatest number of zones that were begun and not full."""
    filled: dict[int, int] = {}
    most = 0
    for operation, zone, *_ in model.asked:
        if operation == W:
            filled[zone] = filled.get(zone, 0) % 24 + 8
            most = max(most, sum(sectors < 24 for sectors in filled.values()))
        elif operation == Operation.RESET:
            filled[zone] = 0
    return most


def test_random_writes_go_to_as_many_zones_as_may_be_open() -> None:
    free = simulate(job(W, count=60, zones=(0, 8), random=True))[0]
    assert written_at_once(free) > 3
    for how in ({"open_zones": 3}, {"open_zones_together": 3}):
        model, (outcome,), _ = simulate(job(W, count=60, zones=(0, 8), random=True, depth=4, **how))
        assert written_at_once(model) == 3
        assert len({zone for _, zone, *_ in model.asked}) > 3, "a full zone makes room for another"
        assert len(outcome.of[W].begins_ns) == 60


def test_jobs_wait_for_a_zone_that_may_be_written() -> None:
    """Each of three writes a zone of its own, two at once: the third begins when a zone is full, and all end."""
    jobs = [job(W, name=str(zone), count=3, zones=(zone, 1), open_zones_together=2) for zone in range(3)]
    model, outcomes, _ = simulate(*jobs)
    assert written_at_once(model) == 2
    assert [len(outcome.of[W].begins_ns) for outcome in outcomes] == [3, 3, 3]
    first, _, third = outcomes
    assert third.of[W].begins_ns[0] == first.of[W].begins_ns[2] + 1000, "when the last write of the first is answered"


def test_a_zone_with_too_little_room_is_open_no_more() -> None:
    """A write of 16 sectors leaves 8 of 24."""
    model, (outcome,), _ = simulate(job(W, count=60, zones=(0, 8), random=True, open_zones=3, sizes=((16, 1),)))
    assert len({zone for _, zone, *_ in model.asked}) > 3
    assert len(outcome.of[W].begins_ns) == 60
    _, (first, second), _ = simulate(
        job(W, count=8, zones=(0, 2), open_zones_together=1, sizes=((16, 1),)),
        job(W, count=3, zones=(2, 1), open_zones_together=1),
    )
    assert len(first.of[W].begins_ns) == 8
    assert len(second.of[W].begins_ns) == 3


def test_a_job_whose_zones_never_come_ends() -> None:
    """The first leaves its zone half written."""
    _, (first, second), _ = simulate(
        job(W, count=1, zones=(0, 1), open_zones_together=1), job(W, count=1, zones=(1, 1), open_zones_together=1)
    )
    assert first.of
    assert not second.of


def test_a_zone_that_is_reset_is_open_no_more() -> None:
    _, (_, _, third), _ = simulate(
        job(W, count=1, zones=(0, 1)),
        job(Operation.RESET, count=1, zones=(0, 1), group=1),
        job(W, count=1, zones=(1, 1), open_zones_together=1, group=2),
    )
    assert third.of


def test_zones_are_skipped_in_order() -> None:
    model, _, _ = simulate(job(W, count=7, zones=(0, 8), skip_zones=2))
    assert [zone for _, zone, offset in model.places() if not offset] == [0, 3, 6]
    model, _, _ = simulate(job(R, count=7, zones=(0, 8), skip_zones=2))
    assert [zone for _, zone, offset in model.places() if not offset] == [0, 3, 6]


def test_a_rate_a_depth_and_a_time() -> None:
    _, (by_bytes, by_requests, deep), _ = simulate(
        job(A, rate_bytes=409_600, duration_ns=10**9, zones=(0, 1)),
        job(A, rate_requests=50, duration_ns=10**9, begin_ns=10**8, zones=(1, 1)),
        job(A, depth=4, count=400, think_ns=3000, zones=(2, 1)),
    )
    assert 98 <= len(by_bytes.of[A].latencies_ns) <= 102
    assert 48 <= len(by_requests.of[A].latencies_ns) <= 52
    assert by_requests.begin_ns >= 10**8
    assert by_requests.end_ns < 1.2 * 10**9
    resets_ns = sum(deep.of[Operation.RESET].latencies_ns)
    assert deep.end_ns - deep.begin_ns < 400 / 4 * 4000 + resets_ns


def test_a_number_of_bytes_and_groups_one_after_the_other() -> None:
    model, (first, second), _ = simulate(job(W, nr_bytes=8192), job(R, group=1, count=3))
    assert len(first.of[W].latencies_ns) == 2
    assert second.begin_ns == first.end_ns
    assert model.places()[2:] == [(R, 2, 0), (R, 2, 8), (R, 2, 0)], "what was written, again from its beginning"


def test_reads_of_zones_without_data_find_them_full() -> None:
    model, _, zones = simulate(job(R, random=True, count=200))
    assert {zone for _, zone, _ in model.places()} == {2, 3}
    assert {offset for *_, offset in model.places()} == {0, 8, 16}
    assert zones.condition(2) == Condition.FULL
    full, _, _ = simulate(job(R, count=6))
    assert full.places() == [(R, zone, offset) for zone in (2, 3) for offset in (0, 8, 16)]


def test_random_reads_find_the_one_zone_with_data() -> None:
    model, _, _ = simulate(job(R, random=True, count=50, zones=(0, 8)), zones=states([(5, 16)]))
    assert {place[1:] for place in model.places()} <= {(5, 0), (5, 8)}


def test_a_job_with_nothing_to_read_ends() -> None:
    model, (outcome,), _ = simulate(job(R, sizes=((16, 1),), count=5), zones=states([(2, 8)]))
    assert not model.asked
    assert not outcome.of


def test_a_read_of_a_mix_that_finds_no_data_is_a_write() -> None:
    mixed = job(mix=((R, 1_000_000), (A, 1)), sizes=((16, 1),), count=3, zones=(2, 1))
    model, (outcome,), _ = simulate(mixed, zones=states([(2, 8)]))
    assert model.places() == [(A, 2, 8), (R, 2, 0), (R, 2, 0)]
    assert outcome.of[A].nr_bytes == 16 * 512


def test_a_mix_and_sizes_are_drawn_by_their_weights() -> None:
    mixed = job(W, mix=((R, 3), (A, 1)), sizes=((8, 1), (16, 3)), random=True, count=4000, zones=(0, 8))
    _, (outcome,), _ = simulate(mixed, zones=states([(zone, 24) for zone in range(8)]))
    assert len(outcome.of[R].latencies_ns) + len(outcome.of[A].latencies_ns) == 4000
    assert 2400 < len(outcome.of[R].latencies_ns) < 3200, "some find no data after a reset, and write"
    nr_bytes = outcome.of[R].nr_bytes + outcome.of[A].nr_bytes
    assert 0.95 < nr_bytes / (4000 * 512 * 14) < 1.05
    _, (again,), _ = simulate(mixed, zones=states([(zone, 24) for zone in range(8)]))
    assert outcome.of[R].begins_ns == again.of[R].begins_ns


def test_zones_are_managed_one_after_the_other() -> None:
    model, _, zones = simulate(job(Operation.RESET, count=3), zones=states([(2, 8), (3, 24)]))
    assert [asked[1:2] + asked[4:] for asked in model.asked] == [
        (2, Condition.IMP_OPEN, 8), (3, Condition.FULL, 24), (2, Condition.EMPTY, 0),
    ]  # fmt: skip
    model, _, zones = simulate(job(Operation.FINISH, count=2), zones=states([(2, 8)]))
    assert [asked[1] for asked in model.asked] == [2, 3]
    assert zones.condition(3) == Condition.FULL
    model, _, zones = simulate(job(Operation.CLOSE, count=2), zones=states([(2, 8)]))
    assert (zones.condition(2), zones.condition(3)) == (Condition.CLOSED, Condition.EMPTY)
    zones.note(W, 2, 8)
    assert zones.condition(2) == Condition.IMP_OPEN


def test_a_conventional_zone_is_full_of_data() -> None:
    zones = states(is_conventional=lambda zone: zone == 0)
    assert (zones.written(0), zones.written(1)) == (24, 0)
    in_order, _, _ = simulate(job(W, count=4, zones=(0, 2)), zones=states(is_conventional=lambda zone: zone < 2))
    assert in_order.places() == [(W, 0, 0), (W, 0, 8), (W, 0, 16), (W, 1, 0)]
    # From a conventional zone into a sequential one, and back.
    mixed, _, zones = simulate(
        job(W, count=9, zones=(1, 2)), zones=states([(2, 16)], is_conventional=lambda zone: zone < 2)
    )
    assert mixed.places() == [
        (W, 1, 0), (W, 1, 8), (W, 1, 16), (W, 2, 16), (W, 1, 0), (W, 1, 8), (W, 1, 16), (Operation.RESET, 2, 0),
        (W, 2, 0), (W, 2, 8),
    ]  # fmt: skip
    assert zones.written(1) == 24
    anywhere, _, _ = simulate(job(W, count=99, zones=(0, 1), random=True), zones=states(is_conventional=lambda _: True))
    assert set(anywhere.places()) == {(W, 0, 0), (W, 0, 8), (W, 0, 16)}


def test_progress_is_told_now_and_then() -> None:
    told: list[int] = []
    run_workload(Fixed(), [job(R, count=3000)], states(), progress=told.append)
    assert told == [1024, 2048]


def test_requests_of_a_log_arrive_when_they_did() -> None:
    model, told = Fixed(), list[int]()
    arrivals = [
        Arrival(0, "fuse", W, 2, 0, 8),
        Arrival(5000, "scsi", Operation.RESET, 2, 0, 0, nr_zones=100),
        Arrival(4000, "fuse", W, 2, 0, 8),  # two threads write their lines in another order
    ]
    fuse, scsi = run_arrivals(model, arrivals, states(), progress=told.append)
    assert [asked[3] for asked in model.asked] == [0, *[5000] * 6, 5000]
    assert (fuse.name, len(fuse.of[W].latencies_ns)) == ("fuse", 2)
    assert list(scsi.of[Operation.RESET].begins_ns) == [5000] * 6
    many = [Arrival(number, "a", R, 0, 0, 8) for number in range(2048)]
    run_arrivals(model, many, states(), progress=told.append)
    assert told == [1024, 2048]


def test_an_operation_on_all_zones_is_one_on_those_with_something_in_them() -> None:
    arrivals = [Arrival(0, "fuse", Operation.RESET, 0, 0, 0, ALL_ZONES)]
    zones = states([(2, 8), (5, 24), (3, 0)], is_conventional=lambda zone: zone == 0)
    assert zones.written(0) == 24
    model = Fixed()
    run_arrivals(model, arrivals, zones)
    assert model.places() == [(Operation.RESET, 2, 0), (Operation.RESET, 5, 0)]
    assert zones.all_written() == []


def test_a_simulation_ends_after_a_number_of_requests() -> None:
    outcomes = run_workload(Fixed(), [job(R, count=90), job(R, count=90, group=1)], states(), limit=100)
    assert [len(outcome.of[R].begins_ns) for outcome in outcomes] == [90, 10]
    arrivals = [Arrival(0, "fuse", Operation.RESET, 0, 0, 0, nr_zones=8)] * 3
    (outcome,) = run_arrivals(Fixed(), arrivals, states(), limit=20)
    assert len(outcome.of[Operation.RESET].begins_ns) == 20


def test_nothing_begins_after_the_end_of_time() -> None:
    _, (slow, late), _ = simulate(
        job(R, count=90, rate_bytes=4096, think_ns=1 << 60), job(R, count=1, begin_ns=1 << 80)
    )
    assert len(slow.of[R].begins_ns) == 4
    assert not late.of


@pytest.mark.parametrize("depth", [1, 7])
def test_no_more_are_under_way_than_the_depth(depth: int) -> None:
    _, (outcome,), _ = simulate(job(R, random=True, count=200, depth=depth))
    begins, latencies = outcome.of[R].begins_ns, outcome.of[R].latencies_ns
    ends = [begin + latency for begin, latency in zip(begins, latencies, strict=True)]
    assert all(sum(begin <= at < end for begin, end in zip(begins, ends, strict=True)) <= depth for at in begins)
