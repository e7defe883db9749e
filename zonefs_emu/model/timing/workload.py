"""Workloads in virtual time: jobs with mixes of operations and sizes on ranges of zones, and what each request took.

The zones have write pointers here and nothing else, so that a workload may be any size. Writes and appends go to where
a zone's write pointer is. A job goes on in its next zone when one is full, and resets a full zone before it writes to
it again, as fio does (``zonemode=zbd``); the reset is one of the job's operations. If the number of zones that are
written at once is limited, a write goes to one of these zones, and waits if none of them belongs to its job. Reads go
to sectors that are written. If the zones that a job is to read hold no data, they count as full from the beginning.
"""

import heapq
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from zonefs_emu.model.timing.closed_loop import Host
from zonefs_emu.model.timing.waits import DriveTiming
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import SECTOR_SHIFT

_WRITES: Final = frozenset((Operation.WRITE, Operation.APPEND))
#: Requests between two calls of *progress*.
_PROGRESS_EVERY: Final = 1024
#: Zones that a read tries before it takes the next one in which something is written.
_TRIES: Final = 8
#: A simulation ends after this many requests of all jobs together: some minutes of computing.
REQUESTS_MAX: Final = 10_000_000
#: No request begins later than this, which is 146 years: the times are numbers of 64 bits.
TIME_MAX_NS: Final = 1 << 62
#: In place of a number of zones: those that are neither empty nor conventional.
ALL_ZONES: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadJob:
    """A job of a workload.

    *mix*: operations, each with its weight. *sizes*: sectors of a request, each with its weight. *zones*: first and
    number. *random*: reads anywhere in the zones, writes in a random zone; else in order. *rate_bytes* and
    *rate_requests*: limits per second, 0 for none. It ends after *count* requests, *nr_bytes* or *duration_ns*,
    whichever comes first and is not 0. *begin_ns*: how long after its group begins. *group*: those of one number run
    together, and after all groups of lower numbers. *think_ns*: between an answer and the next request of its slot.
    *open_zones*: how many zones it writes at once, those that it has begun and not filled; *open_zones_together*: how
    many all jobs may be writing when this one begins another; 0 for any number. *skip_zones*: those that are left out
    between two zones that it goes through in order.
    """

    name: str
    mix: tuple[tuple[Operation, float], ...]
    sizes: tuple[tuple[int, float], ...]
    zones: tuple[int, int]
    depth: int = 1
    random: bool = False
    rate_bytes: int = 0
    rate_requests: int = 0
    count: int = 0
    nr_bytes: int = 0
    duration_ns: int = 0
    begin_ns: int = 0
    think_ns: int = 0
    group: int = 0
    open_zones: int = 0
    open_zones_together: int = 0
    skip_zones: int = 0


class Requests:
    """The requests of one kind of a job, in the order in which they were asked for; times in nanoseconds."""

    __slots__ = ("begins_ns", "latencies_ns", "nr_bytes")

    def __init__(self) -> None:
        self.begins_ns = array("q")
        self.latencies_ns = array("q")
        self.nr_bytes = 0

    def add(self, begin_ns: int, latency_ns: int, nr_bytes: int) -> None:
        """Add one."""
        self.begins_ns.append(begin_ns)
        self.latencies_ns.append(latency_ns)
        self.nr_bytes += nr_bytes


class JobOutcome:
    """What a job did: its requests by operation, and the time from its first request to its last answer."""

    __slots__ = ("begin_ns", "end_ns", "name", "of")

    def __init__(self, name: str) -> None:
        self.name = name
        self.of: dict[Operation, Requests] = {}
        self.begin_ns = -1
        self.end_ns = 0

    def add(self, operation: Operation, begin_ns: int, end_ns: int, nr_bytes: int) -> None:
        """Add a request."""
        requests = self.of.get(operation)
        if requests is None:
            requests = self.of[operation] = Requests()
        requests.add(begin_ns, end_ns - begin_ns, nr_bytes)
        if self.begin_ns < 0:
            self.begin_ns = begin_ns
        self.end_ns = max(self.end_ns, end_ns)


class ZoneStates:
    """How many sectors of each zone are written, and what follows from that.

    *is_conventional* says of a zone number whether it has no write pointer: all of such a zone counts as written.
    """

    def __init__(
        self,
        nr_zones: int,
        zone_sectors: int,
        capacity_sectors: int,
        *,
        written: Iterable[tuple[int, int]] = (),
        is_conventional: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """*written*: (zone, sectors) of zones that are not empty."""
        self.nr_zones = nr_zones
        self.zone_sectors = zone_sectors
        self.capacity_sectors = capacity_sectors
        self.is_conventional = is_conventional
        self._written = dict(written)
        self._closed: set[int] = set()

    def written(self, zone: int) -> int:
        """Return how many sectors of *zone* are written."""
        found = self._written.get(zone)
        if found is None:
            found = self._written[zone] = self.capacity_sectors if self.is_conventional(zone) else 0
        return found

    def all_written(self) -> list[int]:
        """Return, in order, the zones that an operation on all zones changes."""
        return sorted(zone for zone, written in self._written.items() if written and not self.is_conventional(zone))

    def condition(self, zone: int) -> Condition:
        """Return the condition of *zone*."""
        written = self.written(zone)
        if written >= self.capacity_sectors:
            return Condition.FULL
        if zone in self._closed:
            return Condition.CLOSED
        return Condition.IMP_OPEN if written else Condition.EMPTY

    def note(self, operation: Operation, zone: int, nr_sectors: int) -> None:
        """Apply *operation* to the state of *zone*."""
        if operation in _WRITES:
            self._written[zone] = min(self.written(zone) + nr_sectors, self.capacity_sectors)
            self._closed.discard(zone)
        elif operation == Operation.RESET:
            self._written[zone] = 0
            self._closed.discard(zone)
        elif operation == Operation.FINISH:
            self._written[zone] = self.capacity_sectors
        elif operation == Operation.CLOSE and self.written(zone):
            self._closed.add(zone)


class _Place(NamedTuple):
    """Where a request goes. *resets*: the zone has to be reset first."""

    zone: int
    offset: int
    resets: bool = False


#: The place of a write that has to wait until one of the zones that are written is full.
_NOWHERE_YET: Final = _Place(-1, 0)


class _OpenZones:
    """The zones that are being written: begun and not filled, each with the job that began it."""

    def __init__(self) -> None:
        self._jobs: dict[int, _RunningJob] = {}
        #: Whether the writing of a zone has ended, so that a job that waits for that may go on.
        self.has_closed = False

    def find(self, each: "_RunningJob", zone: int, rng: Random) -> int:
        """Return where a write of *each* to *zone* goes: there, to a zone that is open already, or nowhere (-1)."""
        jobs, job = self._jobs, each.job
        if zone in jobs:
            return zone
        if (job.open_zones and each.nr_open >= job.open_zones) or (
            job.open_zones_together and len(jobs) >= job.open_zones_together
        ):
            first, count = job.zones
            found = [candidate for candidate in jobs if first <= candidate < first + count]
            return rng.choice(found) if found else -1
        jobs[zone] = each
        each.nr_open += 1
        return zone

    def close(self, zone: int) -> None:
        """Note that *zone* is not written any more, if it was."""
        each = self._jobs.pop(zone, None)
        if each is not None:
            each.nr_open -= 1
            self.has_closed = True


class _RunningJob:
    """A running job."""

    def __init__(self, job: WorkloadJob, host: Host, states: ZoneStates, open_zones: _OpenZones, seed: int) -> None:
        self.job = job
        #: Zones that it has begun to write, where there is a limit.
        self.nr_open = 0
        self._open_zones = open_zones
        self._is_limited = bool(job.open_zones or job.open_zones_together)
        self.outcome = JobOutcome(job.name)
        self.left = job.count or -1
        self.left_bytes = job.nr_bytes or -1
        self.not_before_ns = 0.0
        self.deadline_ns = 0
        self._states = states
        self._rng = Random(seed)
        self._operations = [operation for operation, _ in job.mix]
        self._weights = [weight for _, weight in job.mix]
        self._writes = [operation for operation in self._operations if operation in _WRITES]
        #: The request that a slot makes after the reset of its zone, by the number of the slot.
        self.waiting: dict[int, tuple[Operation, int]] = {}
        self._sizes = [size for size, _ in job.sizes]
        self._size_weights = [weight for _, weight in job.sizes]
        #: A zone with less room than this is written no more; as in fio, which compares with the least of its sizes.
        self.least_sectors = min(self._sizes, default=1)
        self._write_index = self._read_index = self._managed = 0
        self._read_offset = self._write_offset = 0
        self._gaps = {
            operation: host.write_gap_ns if operation in _WRITES else host.read_gap_ns for operation in self._operations
        }

    def next(self, slot: int) -> tuple[Operation, int, "_Place | None"]:
        """Return the next operation of *slot*, its sectors if it moves data, and where; None if there is nothing to do.

        A write that has to wait stays the next request of its slot, in *waiting*. A read that finds no data becomes a
        write if the job has writes, so a mix continues in zones that were just reset.
        """
        operation, nr_sectors = self.waiting.pop(slot) if slot in self.waiting else self._draw()
        place = self._place(operation, nr_sectors)
        if place is None and self._writes:
            operation = self._writes[0]
            place = self._place(operation, nr_sectors)
        if place is _NOWHERE_YET:
            self.waiting[slot] = operation, nr_sectors
        return operation, nr_sectors, place

    def _draw(self) -> tuple[Operation, int]:
        operations, sizes = self._operations, self._sizes
        operation = operations[0] if len(operations) == 1 else self._rng.choices(operations, self._weights)[0]
        if operation not in _WRITES and operation != Operation.READ:
            return operation, 0
        return operation, sizes[0] if len(sizes) == 1 else self._rng.choices(sizes, self._size_weights)[0]

    def next_ns(self, operation: Operation, nr_bytes: int, end_ns: int) -> int:
        """Note a request of *nr_bytes* that is answered at *end_ns*; return when its slot asks for the next one."""
        job = self.job
        self.left -= 1
        if self.left_bytes > 0:
            self.left_bytes = max(self.left_bytes - nr_bytes, 0)
        next_ns = end_ns + self._gaps[operation] + job.think_ns
        by_bytes = nr_bytes * 1e9 / job.rate_bytes if job.rate_bytes else 0.0
        self.not_before_ns += max(by_bytes, 1e9 / job.rate_requests if job.rate_requests else 0.0)
        return max(next_ns, int(self.not_before_ns))

    def _place(self, operation: Operation, nr_sectors: int) -> _Place | None:
        """Return where the next request goes; None if there is nothing to read."""
        if operation == Operation.READ:
            return self._read_place(nr_sectors)
        if operation in _WRITES:
            return self._write_place(nr_sectors)
        first, count = self.job.zones
        if operation == Operation.FINISH:  # of the zone that is being written, and then of the next
            zone = first + self._write_index
            self._write_index = (self._write_index + 1) % count
        else:
            zone = first + self._managed
            self._managed = (self._managed + 1) % count
        return _Place(zone, 0)

    def _write_place(self, nr_sectors: int) -> _Place:
        states = self._states
        first, count = self.job.zones
        if self.job.random:
            zone = first + self._rng.randrange(count)
            if states.is_conventional(zone):
                return _Place(zone, self._rng.randrange(states.capacity_sectors // nr_sectors) * nr_sectors)
        else:
            zone = first + self._write_index
            is_conventional = states.is_conventional(zone)
            written = self._write_offset if is_conventional else states.written(zone)
            if written + nr_sectors > states.capacity_sectors:
                self._open_zones.close(zone)  # what is left of it is too small
                self._write_index = (self._write_index + 1 + self.job.skip_zones) % count
                self._write_offset = 0
                zone = first + self._write_index
                is_conventional = states.is_conventional(zone)
            if is_conventional:
                offset = self._write_offset
                self._write_offset += nr_sectors
                return _Place(zone, offset)
        if self._is_limited:
            zone = self._open_zones.find(self, zone, self._rng)
            if zone < 0:
                return _NOWHERE_YET
            self._write_index = zone - first
        offset = states.written(zone)
        return _Place(zone, 0, resets=True) if offset + nr_sectors > states.capacity_sectors else _Place(zone, offset)

    def _read_place(self, nr_sectors: int) -> _Place | None:
        states = self._states
        first, count = self.job.zones
        if self.job.random:
            for _ in range(_TRIES):
                zone = first + self._rng.randrange(count)
                blocks = states.written(zone) // nr_sectors
                if blocks:
                    return _Place(zone, self._rng.randrange(blocks) * nr_sectors)
        stride = 1 + self.job.skip_zones
        for step in range(count + 1):
            zone = first + (self._read_index + step * stride) % count
            offset = 0 if step else self._read_offset
            if offset + nr_sectors <= states.written(zone):
                self._read_index = zone - first
                self._read_offset = offset + nr_sectors
                return _Place(zone, offset)
        return None


class _Run:
    """A model with the states of its zones, and the number of requests so far, up to *limit*."""

    def __init__(
        self, model: DriveTiming, states: ZoneStates, progress: Callable[[int], object] | None, limit: int
    ) -> None:
        self.open_zones = _OpenZones()
        self._submit_to_model = model.submit
        self._limit = limit
        self.states = states
        self._progress = progress
        self._nr_done = 0

    @property
    def is_over(self) -> bool:
        """Say whether the limit is reached."""
        return self._nr_done >= self._limit

    def submit(
        self,
        outcome: JobOutcome,
        operation: Operation,
        place: _Place,
        nr_sectors: int,
        now_ns: int,
        *,
        least_sectors: int = 1,
    ) -> int:
        """Submit a request, apply its effect, and return when it is answered.

        *least_sectors*: less room than this makes a zone one that is written no more.
        """
        states, zone = self.states, place.zone
        end_ns = self._submit_to_model(
            operation, zone, zone * states.zone_sectors + place.offset, nr_sectors, now_ns,
            condition=states.condition(zone), written_sectors=states.written(zone),
        )  # fmt: skip
        states.note(operation, zone, nr_sectors)
        if (operation != Operation.READ and states.written(zone) + least_sectors > states.capacity_sectors) or (
            operation == Operation.RESET and not place.resets
        ):
            self.open_zones.close(zone)
        outcome.add(operation, now_ns, end_ns, nr_sectors << SECTOR_SHIFT)
        self._nr_done += 1
        if self._progress is not None and not self._nr_done % _PROGRESS_EVERY:
            self._progress(self._nr_done)
        return end_ns

    def group(self, running: Sequence[_RunningJob], begin_ns: int) -> int:
        """Run jobs that begin together at *begin_ns*; return when the last of their requests is answered."""
        queue: list[tuple[int, int, _RunningJob]] = []
        number = 0
        for each in running:
            each.not_before_ns = start_ns = begin_ns + each.job.begin_ns
            each.deadline_ns = min(start_ns + (each.job.duration_ns or TIME_MAX_NS), TIME_MAX_NS)
            for _ in range(each.job.depth):
                queue.append((start_ns + 97 * number, number, each))
                number += 1
        heapq.heapify(queue)
        last_ns = begin_ns
        waiting: list[tuple[int, _RunningJob]] = []
        self.open_zones.has_closed = False
        while queue and not self.is_over:
            now_ns, number, each = queue[0]
            place = None
            operation, nr_sectors = Operation.READ, 0
            if each.left and each.left_bytes and now_ns < each.deadline_ns:
                operation, nr_sectors, place = each.next(number)
            if place is None or place is _NOWHERE_YET:
                heapq.heappop(queue)
                if place is not None:
                    waiting.append((number, each))
                continue
            if place.resets:
                # The slot comes again with the same request when the zone is empty.
                each.waiting[number] = operation, nr_sectors
                next_ns = end_ns = self.submit(each.outcome, Operation.RESET, place, 0, now_ns)
            else:
                end_ns = self.submit(
                    each.outcome, operation, place, nr_sectors, now_ns, least_sectors=each.least_sectors
                )
                next_ns = each.next_ns(operation, nr_sectors << SECTOR_SHIFT, end_ns)
            last_ns = max(last_ns, end_ns)
            heapq.heapreplace(queue, (next_ns, number, each))
            if self.open_zones.has_closed:
                self.open_zones.has_closed = False
                for entry in waiting:
                    heapq.heappush(queue, (end_ns, *entry))
                waiting.clear()
        return last_ns


def run_workload(
    model: DriveTiming,
    jobs: Sequence[WorkloadJob],
    states: ZoneStates,
    *,
    host: Host | None = None,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
    limit: int = REQUESTS_MAX,
) -> list[JobOutcome]:
    """Run *jobs* against *model*, from *states* on, and return what each did, in their order.

    *progress* is called now and then with the number of requests so far. All end after *limit* requests together.
    """
    host = host or Host()
    run = _Run(model, states, progress, limit)
    running = [_RunningJob(job, host, states, run.open_zones, seed + number) for number, job in enumerate(jobs)]
    now_ns = 0
    for group in sorted({job.group for job in jobs}):
        of_group = [each for each in running if each.job.group == group]
        for each in of_group:
            _fill_to_read(each.job, states)
        now_ns = run.group(of_group, now_ns)
    return [each.outcome for each in running]


def _fill_to_read(job: WorkloadJob, states: ZoneStates) -> None:
    """Make the zones that *job* reads full if none of them holds data."""
    first, count = job.zones
    if any(operation == Operation.READ for operation, _ in job.mix):
        zones = range(first, first + count)
        if not any(states.written(zone) for zone in zones):
            for zone in zones:
                states.note(Operation.FINISH, zone, 0)


class Arrival(NamedTuple):
    """A request of an operation log: its time, its front-end, and the operation.

    *nr_zones*: of zone management; may be ALL_ZONES.
    """

    begin_ns: int
    name: str
    operation: Operation
    zone: int
    offset: int
    nr_sectors: int
    nr_zones: int = 1


def run_arrivals(
    model: DriveTiming,
    arrivals: Iterable[Arrival],
    states: ZoneStates,
    *,
    progress: Callable[[int], object] | None = None,
    limit: int = REQUESTS_MAX,
) -> list[JobOutcome]:
    """Submit *arrivals*, in their order and at their times; return the outcome of each front-end of the log.

    A command on several zones is one request for each zone. At most *limit* requests are submitted.
    """
    run = _Run(model, states, progress, limit)
    outcomes: dict[str, JobOutcome] = {}
    now_ns = 0
    for arrival in arrivals:
        outcome = outcomes.get(arrival.name)
        if outcome is None:
            outcome = outcomes[arrival.name] = JobOutcome(arrival.name)
        now_ns = max(now_ns, arrival.begin_ns)
        zones: Iterable[int] = (
            states.all_written()
            if arrival.nr_zones == ALL_ZONES
            else range(arrival.zone, min(arrival.zone + arrival.nr_zones, states.nr_zones))
        )
        for zone in zones:
            if run.is_over:
                return list(outcomes.values())
            run.submit(outcome, arrival.operation, _Place(zone, arrival.offset), arrival.nr_sectors, now_ns)
    return list(outcomes.values())
