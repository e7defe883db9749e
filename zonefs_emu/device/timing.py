"""How long the commands of a device take: a timing model (:mod:`zonefs_emu.model.timing`) that follows a clock.

May not know: ports, commands, front-ends. The caller gives the clock, the host's or a virtual one, in nanoseconds. With
a *scale*, the drive is slower than the model by that factor.
"""

import heapq
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeAlias

from zonefs_emu.device.alarm import Alarm
from zonefs_emu.model.timing.waits import DriveTiming, Wait
from zonefs_emu.model.transitions import Operation
from zonefs_emu.units import Sector

#: How many operations are kept: of the slowest ones, and of the last ones.
SLOWEST_MAX: Final = 64
LAST_MAX: Final = 16
#: An answer is late if it is sent later than due by more than this share of its latency.
_LATE_SHARE: Final = 0.05
#: There is a warning if more than this share of the answers were late, after this many answers.
_WARNING_SHARE: Final = 0.05
_WARNING_ANSWERS: Final = 1000

log = logging.getLogger(__name__)


class TimedOperation(NamedTuple):
    """An operation and its times, in nanoseconds of the drive; *begin_ns* counts from the start of the timing.

    *waited_for* is the longest of its waits, and *waited_ns* the length of that.
    """

    latency_ns: int
    begin_ns: int
    operation: Operation
    zone_no: int
    nr_sectors: int
    waited_for: Wait
    waited_ns: int

    def __str__(self) -> str:
        """Return it in words."""
        size = f" of {self.nr_sectors} sectors" if self.nr_sectors else ""
        waited = f", of which {self.waited_ns / 1e3:.1f} us for {self.waited_for}" if self.waited_ns else ""
        return (
            f"{self.operation.name.lower()}{size}, zone {self.zone_no}, at {self.begin_ns / 1e6:.3f} ms: "
            f"{self.latency_ns / 1e3:.1f} us{waited}"
        )


#: A TimedOperation as a plain tuple, which takes an eighth of the time to make; one is made for every operation.
_Noted: TypeAlias = tuple[int, int, Operation, int, int, Wait, int]


class OperationTimes:
    """The times of the operations of one kind, in nanoseconds of the drive: sums, and the longest."""

    __slots__ = ("count", "longest_ns", "total_ns", "waited_ns")

    def __init__(self) -> None:
        self.count = 0
        self.total_ns = 0
        self.waited_ns = 0
        self.longest_ns = 0

    def as_dict(self) -> dict[str, int]:
        """Return sums, means and the longest; the mean latency is that of queueing and service together."""
        count = max(self.count, 1)
        return {
            "count": self.count,
            "total_ns": self.total_ns,
            "waited_ns": self.waited_ns,
            "mean_ns": self.total_ns // count,
            "queueing_ns": self.waited_ns // count,
            "service_ns": (self.total_ns - self.waited_ns) // count,
            "longest_ns": self.longest_ns,
        }


class Timing:
    """A drive of the timing preset *name*, whose requests arrive on *clock*. Thread safe."""

    def __init__(self, name: str, model: DriveTiming, *, clock: Callable[[], int], scale: float = 1.0) -> None:
        self.name = name
        self.scale = scale
        #: Returns the time in nanoseconds.
        self.clock = clock
        #: Wakes front-ends that hold answers, if the clock is the host's.
        self.alarm = Alarm()
        self._model = model
        self._lock = threading.Lock()
        self._origin_ns = clock()
        self._arrived_ns = 0  # of the drive: requests are submitted to the model in the order of their arrival
        self._times: dict[Operation, OperationTimes] = {}
        self._slowest: list[_Noted] = []  # a heap: the fastest of them is first
        self._slow_ns = -1  # an operation that took longer belongs to them
        self._last: deque[_Noted] = deque(maxlen=LAST_MAX)  # oldest first
        self._nr_answers = 0
        self._nr_late = 0
        self._late_ns = 0
        self._latest_ns = 0
        self._warned = False

    def submit(
        self,
        operation: Operation,
        zone_no: int,
        sector: Sector,
        nr_sectors: int,
        *,
        cond: int,
        written_sectors: int,
        arrival_ns: int,
    ) -> int:
        """Return when the operation that arrived at *arrival_ns* is due, both on the clock.

        *cond* and *written_sectors* are those of the zone before the operation.
        """
        # A "with" takes twice as long.
        self._lock.acquire()
        try:
            begin_ns = arrival_ns - self._origin_ns
            if self.scale != 1:
                begin_ns = int(begin_ns / self.scale)
            # A thread whose request arrived first may get here second.
            if begin_ns < self._arrived_ns:
                begin_ns = self._arrived_ns
            self._arrived_ns = begin_ns
            model = self._model
            end_ns = model.submit(
                operation, zone_no, sector, nr_sectors, begin_ns, condition=cond, written_sectors=written_sectors
            )
            latency_ns = end_ns - begin_ns
            waited_ns = model.waited_ns
            if waited_ns > latency_ns:
                waited_ns = latency_ns
            times = self._times.get(operation)
            if times is None:
                times = self._times[operation] = OperationTimes()
            times.count += 1
            times.total_ns += latency_ns
            times.waited_ns += waited_ns
            if latency_ns > times.longest_ns:
                times.longest_ns = latency_ns
            done = (latency_ns, begin_ns, operation, zone_no, nr_sectors, model.waited_for, waited_ns)
            self._last.append(done)
            if latency_ns > self._slow_ns:
                self._note_slow(done)
        finally:
            self._lock.release()
        return self._origin_ns + (end_ns if self.scale == 1 else int(end_ns * self.scale))

    def _note_slow(self, done: _Noted) -> None:
        """Note an operation that belongs to the slowest so far."""
        slowest = self._slowest
        if len(slowest) < SLOWEST_MAX:
            heapq.heappush(slowest, done)
        else:
            heapq.heapreplace(slowest, done)
        if len(slowest) == SLOWEST_MAX:
            self._slow_ns = slowest[0][0]

    def answered(self, due_ns: int, arrival_ns: int, now_ns: int) -> None:
        """Note that an operation that was due at *due_ns* was answered at *now_ns*, all on the clock."""
        # Atomic for other threads, because no call is between reading and storing it: so no lock if it is not late.
        self._nr_answers += 1
        late_ns = now_ns - due_ns
        if late_ns > (due_ns - arrival_ns) * _LATE_SHARE:
            self._note_late(late_ns)

    def _note_late(self, late_ns: int) -> None:
        with self._lock:
            self._nr_late += 1
            self._late_ns += late_ns
            self._latest_ns = max(self._latest_ns, late_ns)
            warns = (
                not self._warned
                and self._nr_answers >= _WARNING_ANSWERS
                and self._nr_late > self._nr_answers * _WARNING_SHARE
            )
            self._warned = self._warned or warns
        if warns:
            log.warning(
                "the host is too slow for the timing %s: %d of %d answers were late, by %.0f us on average; "
                "a --time-scale above %g gives it more time",
                self.name, self._nr_late, self._nr_answers, self._late_ns / self._nr_late / 1e3, self.scale,
            )  # fmt: skip

    # -- looking ----------------------------------------------------------------------------------------------

    def times(self) -> dict[Operation, OperationTimes]:
        """Return the times of the operations of each kind."""
        with self._lock:
            return dict(self._times)

    def slowest(self, count: int) -> list[TimedOperation]:
        """Return the *count* slowest operations, at most SLOWEST_MAX, the slowest first."""
        with self._lock:
            return [TimedOperation(*done) for done in heapq.nlargest(count, self._slowest)]

    def last(self) -> list[TimedOperation]:
        """Return the last operations, at most LAST_MAX, oldest first."""
        with self._lock:
            return [TimedOperation(*done) for done in self._last]

    def statistics(self) -> Mapping[str, str | float | Mapping[str, Mapping[str, int]]]:
        """Return all figures by name; times in nanoseconds of the drive, those of late answers of the clock.

        *busy_ns* of *elapsed_ns* is the utilisation; it may be ahead of the time, as work is counted when it begins.
        """
        with self._lock:
            elapsed_ns = self.clock() - self._origin_ns
            return {
                "preset": self.name,
                "scale": self.scale,
                "elapsed_ns": elapsed_ns if self.scale == 1 else int(elapsed_ns / self.scale),
                "busy_ns": self._model.busy_ns,
                "answers": self._nr_answers,
                "late_answers": self._nr_late,
                "late_mean_ns": self._late_ns // max(self._nr_late, 1),
                "late_max_ns": self._latest_ns,
                "operations": {
                    operation.name.lower(): times.as_dict() for operation, times in sorted(self._times.items())
                },
            }
