"""Jobs that keep a number of requests in flight, as fio's do, in virtual time.

A job submits its next request when one of its requests is answered and the host's own time has passed; a rate can delay
it further. The results are the latencies and rates that a load generator would print.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from zonefs_emu.model.timing.waits import DriveTiming
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import SECTOR_SHIFT

_WRITES: Final = frozenset({Operation.WRITE, Operation.APPEND})
#: Writes below this do not fill the drive's buffer: the controller takes longer for them than the drive to store them.
FILLING_BYTES: Final = 8192
#: Requests between two calls of *progress*.
_PROGRESS_EVERY: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the host adds. The defaults are those of the measurements of the zn540 (SPDK that polls, ten processors).

    *write_gap_ns*, *read_gap_ns*: time from an answer to the next request of the same slot. *read_fill_ns*: time from
    one read to the next while a job fills its queue; writes take *write_gap_ns* for that, too. *nr_processors*: each
    runs one job at a time; if there are more jobs, they take turns, and an answer waits until its job runs. *turn_ns*:
    length of a turn.
    """

    write_gap_ns: int = 950
    read_gap_ns: int = 500
    read_fill_ns: int = 800
    nr_processors: int = 10
    turn_ns: int = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A load on one zone after the other, from *first_zone* on by *zone_step*.

    *depth* requests of *nr_sectors* are in flight. *random*: anywhere in the zone, not in order. *rate_bytes*: limit
    per second, 0 for none.
    """

    operation: Operation
    nr_sectors: int
    depth: int = 1
    first_zone: int = 0
    zone_step: int = 1
    nr_zones: int = 1
    random: bool = False
    rate_bytes: int = 0
    name: str = ""


class Outcome:
    """The requests of a job in their order: when each was submitted and how long it took, in nanoseconds.

    *begin_ns*, *end_ns*: the time that is measured. *nr_bytes*: length of a request.
    """

    __slots__ = ("begin_ns", "begins_ns", "end_ns", "latencies_ns", "nr_bytes")

    def __init__(self, nr_bytes: int) -> None:
        self.nr_bytes = nr_bytes
        self.begins_ns: list[int] = []
        self.latencies_ns: list[int] = []
        self.begin_ns = 0
        self.end_ns = 0

    def summary(self) -> "Summary":
        """Return the figures that a load generator prints."""
        return summarize(self.latencies_ns, self.end_ns - self.begin_ns, self.nr_bytes)


class Summary(NamedTuple):
    """Rates and latencies; *bw* is bytes a second."""

    iops: float
    bw: float
    mean_ns: int
    p50_ns: int
    p95_ns: int
    p99_ns: int


def summarize(latencies_ns: Iterable[int], duration_ns: int, nr_bytes: int) -> Summary:
    """Return the figures of requests of *nr_bytes* that took *latencies_ns*, all of them within *duration_ns*."""
    ordered = sorted(latencies_ns)
    count = len(ordered)
    if not count:
        return Summary(0.0, 0.0, 0, 0, 0, 0)
    iops = count * 1e9 / max(duration_ns, 1)
    fifty, ninety_five, ninety_nine = (ordered[min(count * share // 100, count - 1)] for share in (50, 95, 99))
    return Summary(iops, iops * nr_bytes, round(sum(ordered) / count), fifty, ninety_five, ninety_nine)


class _Running:
    """A running job: its position in its zones, and when it may submit the next request."""

    __slots__ = (
        "_capacity",
        "_rng",
        "fill_ns",
        "gap_ns",
        "interval_ns",
        "job",
        "not_before_ns",
        "offset",
        "outcome",
        "slot",
        "zone",
    )

    def __init__(self, job: Job, slot: int, host: Host, capacity_sectors: int, seed: int) -> None:
        self.job = job
        self.slot = slot
        self.outcome = Outcome(job.nr_sectors << SECTOR_SHIFT)
        is_write = job.operation in _WRITES
        self.gap_ns = host.write_gap_ns if is_write else host.read_gap_ns
        self.fill_ns = host.write_gap_ns if is_write else host.read_fill_ns
        self.interval_ns = (job.nr_sectors << SECTOR_SHIFT) * 1e9 / job.rate_bytes if job.rate_bytes else 0.0
        self.not_before_ns = 0.0
        self.zone = job.first_zone
        self.offset = 0
        self._capacity = capacity_sectors
        self._rng = Random(seed)

    def place(self) -> tuple[int, int]:
        """Return the zone of the next request, and the sectors of it that are before the request."""
        job = self.job
        if job.random:
            blocks = self._capacity // job.nr_sectors
            return job.first_zone + self._rng.randrange(job.nr_zones), self._rng.randrange(blocks) * job.nr_sectors
        offset = self.offset
        if offset + job.nr_sectors > self._capacity:
            offset = 0
            self.zone = job.first_zone + (self.zone + job.zone_step - job.first_zone) % (job.nr_zones * job.zone_step)
        self.offset = offset + job.nr_sectors
        return self.zone, offset

    def submit(self, model: DriveTiming, now_ns: int, zone_sectors: int) -> int:
        """Ask *model* for the next request, and return when it completes."""
        zone, offset = self.place()
        return model.submit(
            self.job.operation,
            zone,
            zone * zone_sectors + offset,
            self.job.nr_sectors,
            now_ns,
            condition=Condition.IMP_OPEN if offset else Condition.EMPTY,
            written_sectors=offset,
        )


def run(
    model: DriveTiming,
    jobs: Sequence[Job],
    *,
    zone_sectors: int,
    capacity_sectors: int,
    count: int = 0,
    duration_ns: int = 0,
    warm_up: int = 0,
    warm_up_ns: int = 0,
    host: Host | None = None,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> list[Outcome]:
    """Run *jobs* against *model* and return the outcome of each, in their order.

    Ends after *count* requests of all jobs or after *duration_ns*, whichever is not 0. The first *warm_up* requests,
    and those submitted before *warm_up_ns*, are carried out but not counted. *progress* is called now and then with the
    number of requests that were submitted, if *count* is not 0.
    """
    host = host or Host()
    running = [_Running(job, slot, host, capacity_sectors, seed + slot) for slot, job in enumerate(jobs)]
    # (when, a number that keeps equals apart, job); requests of a new run do not come at one instant.
    queue = [
        (97 * number, number, job) for number, job in enumerate(job for job in running for _ in range(job.job.depth))
    ]
    heapq.heapify(queue)
    crowded = len(jobs) > host.nr_processors
    total = left = warm_up + count if count else -1
    while left:
        now_ns, number, job = queue[0]
        if duration_ns and now_ns >= duration_ns:
            break
        left -= 1
        if progress is not None and not left % _PROGRESS_EVERY:
            progress(total - left)
        end_ns = job.submit(model, now_ns, zone_sectors)
        if crowded:
            end_ns = _answered_ns(end_ns, job.slot, len(jobs), host)
        next_ns = end_ns + job.gap_ns
        if job.interval_ns:
            job.not_before_ns += job.interval_ns
            next_ns = max(next_ns, int(job.not_before_ns))
        heapq.heapreplace(queue, (next_ns, number, job))
        if warm_up > 0:
            warm_up -= 1
            continue
        if now_ns >= warm_up_ns:
            outcome = job.outcome
            outcome.begins_ns.append(now_ns)
            outcome.latencies_ns.append(end_ns - now_ns)
    end_ns = duration_ns or queue[0][0]
    begin_ns = min((job.outcome.begins_ns[0] for job in running if job.outcome.begins_ns), default=0)
    for job in running:
        job.outcome.begin_ns = max(begin_ns, warm_up_ns)
        job.outcome.end_ns = end_ns
    return [job.outcome for job in running]


def run_in_proportion(
    model: DriveTiming,
    jobs: Sequence[Job],
    weights: Sequence[float],
    *,
    zone_sectors: int,
    capacity_sectors: int,
    duration_ns: int,
    warm_up_ns: int = 0,
    host: Host | None = None,
    seed: int = 0,
) -> list[Outcome]:
    """Run *jobs* so that their numbers of requests stay in the proportion of *weights*; return each outcome.

    That is the option ``flow`` of fio in zoned mode. A job is one thread, which submits one request after the other
    until its depth is reached. A job that is ahead of its share waits until all of its requests are answered, and then
    until the other jobs have caught up. So fewer requests are in flight than the depths say. Requests submitted before
    *warm_up_ns* are carried out but not counted.

    Source: the manual of fio, "flow" and "flow_sleep".
    """
    host = host or Host()
    running = [_Running(job, slot, host, capacity_sectors, seed + slot) for slot, job in enumerate(jobs)]
    shares = [weight / sum(weights) for weight in weights]
    in_flight: list[list[int]] = [[] for _ in jobs]  # when the requests of each job end, heaps
    counts = [0] * len(jobs)
    total = 1  # not 0, so that each job may begin
    waiting: list[int] = []
    # The shares add up to 1, so that one job at least is not ahead of its own: they never all wait.
    queue = [(97 * slot, slot) for slot in range(len(jobs))]
    while queue[0][0] < duration_ns:
        now_ns, slot = heapq.heappop(queue)
        job, ends_ns = running[slot], in_flight[slot]
        while ends_ns and ends_ns[0] <= now_ns:
            heapq.heappop(ends_ns)
        if counts[slot] > shares[slot] * total:
            if ends_ns:
                heapq.heappush(queue, (max(ends_ns) + job.gap_ns, slot))
                ends_ns.clear()
            else:
                waiting.append(slot)
            continue
        counts[slot] += 1
        total += 1
        end_ns = job.submit(model, now_ns, zone_sectors)
        if now_ns >= warm_up_ns:
            job.outcome.begins_ns.append(now_ns)
            job.outcome.latencies_ns.append(end_ns - now_ns)
        heapq.heappush(ends_ns, end_ns)
        is_full = len(ends_ns) >= job.job.depth
        heapq.heappush(queue, (ends_ns[0] + job.gap_ns if is_full else now_ns + job.fill_ns, slot))
        for other in waiting:
            heapq.heappush(queue, (now_ns + running[other].gap_ns, other))
        waiting.clear()
    for job in running:
        job.outcome.begin_ns, job.outcome.end_ns = warm_up_ns, duration_ns
    return [job.outcome for job in running]


def _answered_ns(end_ns: int, slot: int, nr_jobs: int, host: Host) -> int:
    """Return when the job *slot* of *nr_jobs* that share too few processors sees what happened at *end_ns*.

    The jobs take turns: in each turn *nr_processors* jobs run and the others pause; the set of pausing jobs moves on by
    one job per turn.
    """
    turn = end_ns // host.turn_ns
    place = (turn + slot) % nr_jobs
    nr_resting = nr_jobs - host.nr_processors
    return (turn + nr_resting - place) * host.turn_ns if place < nr_resting else end_ns


def steady_warm_up(job: Job, nr_jobs: int) -> int:
    """Return how many requests fill the drive's buffer and the queues, so that what follows is steady."""
    in_flight = job.depth * nr_jobs
    nr_bytes = job.nr_sectors << SECTOR_SHIFT
    if job.operation in _WRITES and nr_bytes >= FILLING_BYTES:
        return 2 * in_flight + 10_000_000 // nr_bytes
    return 2 * in_flight


def run_management(
    model: DriveTiming,
    operation: Operation,
    *,
    count: int,
    capacity_sectors: int,
    written_sectors: int,
    finished: bool,
    progress: Callable[[int], object] | None = None,
) -> Outcome:
    """Submit *count* zone operations to *model*, one after the other, and return how long each took.

    Each is on another zone, with *written_sectors* written. *finished*: the zone was finished before. *progress* is
    called now and then with the number of those that were submitted.
    """
    condition = Condition.IMP_OPEN
    if written_sectors >= capacity_sectors:
        condition = Condition.FULL
    elif not written_sectors and operation == Operation.FINISH:
        condition = Condition.EMPTY
    outcome = Outcome(0)
    now_ns = 0
    for zone in range(count):
        if progress is not None and not zone % _PROGRESS_EVERY:
            progress(zone)
        before = condition
        if finished:
            now_ns = model.submit(
                Operation.FINISH, zone, 0, 0, now_ns, condition=condition, written_sectors=written_sectors
            )
            before = Condition.FULL
        end_ns = model.submit(operation, zone, 0, 0, now_ns, condition=before, written_sectors=written_sectors)
        outcome.begins_ns.append(now_ns)
        outcome.latencies_ns.append(end_ns - now_ns)
        now_ns = end_ns
    outcome.end_ns = sum(outcome.latencies_ns)
    return outcome
