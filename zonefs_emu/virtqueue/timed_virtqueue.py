"""A virtqueue whose answers take as long as those of a real drive.

A request is carried out when it arrives, and its answer is held until a real drive would give it. Answers that are due
sooner overtake it. The record of requests in flight has the answers that are held
(:mod:`zonefs_emu.inflight.holding_record`). So a process that takes over after a kill gives them, and carries no
request out again. A queue that is stopped gives all held answers at once, because the driver's reset, or another
back-end, waits for that.

The answer to a request with an injected delay is held in the same way.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from zonefs_emu.device.port import Port
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.inflight.holding_record import HoldingRecord
from zonefs_emu.virtio.handler import Deferred
from zonefs_emu.virtio.memory import GuestMemory
from zonefs_emu.virtio.packed import PackedRing, position_of
from zonefs_emu.virtio.ring import Chain, OversizedChainError
from zonefs_emu.virtio.scsi import ControlQueue
from zonefs_emu.virtio.split import SplitRing
from zonefs_emu.virtqueue.dirty_log import DirtyLog
from zonefs_emu.virtqueue.virtqueue import Virtqueue


def time_queues(queues: Iterable[Virtqueue], port: Port, wake: Callable[[], object]) -> None:
    """Let *queues* hold answers as the drive of *port* does, if *port* is timed.

    *wake* is called, by any thread, when an answer is due, and is to have the queues served.
    """
    if isinstance(port, TimedPort):
        port.hold = port.held.hold
        port.defer = port.held.delay
        timed = [queue for queue in queues if isinstance(queue, TimedVirtqueue)]
        for queue in timed:
            queue.time_by(port, wake, timed)


class TimedVirtqueue(Virtqueue):
    """A virtqueue that holds answers. Before it is started, :meth:`time_by` says as which drive."""

    _port: TimedPort | None = None
    _wake: Callable[[], object]

    #: The queues whose held answers are all given before one of this queue, which is then the control queue. After a
    #: driver was told that a task was aborted or the disk reset, it takes no answer to an earlier request any more.
    _managed: Sequence["TimedVirtqueue"] = ()

    def time_by(self, port: TimedPort, wake: Callable[[], object], queues: Sequence["TimedVirtqueue"]) -> None:
        """Hold answers for as long as the drive of *port* takes. An event queue holds nothing.

        *wake* is called, by any thread, when an answer is due, and is to have the queue run. *queues*: all queues of
        the device.
        """
        if self._events is not None:
            return  # events do not answer requests
        if isinstance(self._handler, ControlQueue):
            self._managed = [queue for queue in queues if queue is not self]
        self._port = port
        self._wake = wake
        #: A heap of the held answers: when it is due, a number that orders those that are due together, when the
        #: request arrived (-1: the request is not timed), its chain, the bytes written, and its number in the record.
        #: Times are in nanoseconds of the port's clock.
        self._held: list[tuple[int, int, int, Chain, int, int]] = []
        self._nr_held = 0
        #: The times at which alarms come, the soonest last. Alarms for answers that :meth:`stop` has given come, too.
        self._alarms_ns: list[int] = []
        #: When the answer to the request that the worker has carried out is due, and when that request arrived.
        self._worked: tuple[int, int] | None = None
        #: In a packed ring, the place after the requests that were carried out.
        self._executed_place = 0

    # -- starting and stopping --------------------------------------------------------------------------------

    def start(
        self, memory: GuestMemory, features: int, record_memory: memoryview | None, dirty: DirtyLog | None
    ) -> None:
        """Begin to serve, with no held answers; see :meth:`Virtqueue.start`."""
        super().start(memory, features, record_memory, dirty)
        if self._port is not None:
            self._held.clear()
            self._worked = None
            ring = self.ring
            if isinstance(ring, PackedRing):
                self._executed_place = ring.used_place
            if self._record is not None:
                self._begin_holding(self._record)

    def _begin_holding(self, record: HoldingRecord) -> None:
        ring = self.ring
        record.begin_holding(position_of(ring.used_place, ring.size) if isinstance(ring, PackedRing) else 0)

    def stop(self) -> int:
        """Give all held answers, and stop; see :meth:`Virtqueue.stop`."""
        ring = self.ring
        if self._port is not None and ring is not None and (self.shared is None or not self.shared.is_lost):
            try:  # the boundary of a ring
                while self._held:
                    self._give_next(self._port, ring)
                if self._record is not None:
                    self._record.end_holding()
            except Exception as error:
                self._break(error)
        return super().stop()

    def give_all(self) -> bool:
        """Give all held answers, if the queue runs; return whether there were any. Never raises."""
        port, ring = self._port, self.ring
        if port is None or ring is None or not self.is_ready:
            return False
        had_held = bool(self._held)
        try:  # the boundary of a ring
            while self._held:
                self._give_next(port, ring)
        except Exception as error:
            self._break(error)
        return had_held

    # -- serving ----------------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether the queue is to be served. It is also while it waits for the worker, because answers may be due."""
        return super().is_ready or (self._port is not None and self.busy and self.ring is not None and not self.broken)

    @property
    def has_several(self) -> bool:
        """Whether requests may gather. Where answers are held they may not, because an answer may be due meanwhile."""
        return self._port is None and super().has_several

    def sleep(self) -> bool:
        """Do what :meth:`Virtqueue.sleep` does; return True also if a held answer is due.

        The alarm for the answer may have come while the queue was being served, after the clock was read there. Without
        this check the answer would stay, because no second alarm comes.
        """
        has_work = not self.busy and super().sleep()
        if has_work or self._port is None or not self._held or not self.is_ready:
            return has_work
        return self._held[0][0] <= self._port.clock()

    def run(self) -> bool:
        """Give the answers that are due, and carry out new requests; True if there were some. Never raises."""
        port, ring = self._port, self.ring
        if port is None or ring is None or self.broken or not self.enabled:
            return super().run()
        try:  # the boundary of a ring
            is_busy = self._give_due(port, ring)
            if not self.busy:
                chains, self._backlog = self._backlog or self._take(ring), ()
                if chains:
                    self._run_batch(chains)
                    is_busy = True
        except OversizedChainError as error:
            return self._refuse_oversized(error)
        except Exception as error:
            self._break(error)
            return False
        return is_busy

    def _take(self, ring: SplitRing | PackedRing) -> Sequence[Chain]:
        """Take new requests, as many as there is room for."""
        if not self._has_room:
            return ()
        record = self._record
        # A correct driver makes no more requests available than the ring has entries. Without this limit, a faulty one
        # could have any number held, because a ring compares the available index with the requests that were taken and
        # not with those that were given back.
        room = min(self.size - len(self._held), self._batch)
        return ring.pop(1 if record is not None and record.recovering else room)

    @property
    def _has_room(self) -> bool:
        record = self._record
        return len(self._held) < self.size and (record is None or record.can_hold or not self._held)

    def _run_batch(self, chains: Sequence[Chain]) -> None:
        """Carry out the requests one by one: merged writes would take the time of one write."""
        handler, faults = self._handler, self._faults
        assert handler is not None
        self._intents.current.log = self._intent_log
        for index in range(len(chains)):
            if not self._has_room:
                self._backlog = chains[index:]
                return
            one = chains[index : index + 1]
            lengths: list[int] = []
            try:
                done = None if faults else handler.step(one, 0, lengths, self._begin)
            except Exception as error:  # the boundary of a request
                done = self._answer_failed(one, 0, lengths, error)
            if not done:
                self._hand_over(chains, index, done if isinstance(done, Deferred) else None)
                return
            self._give_back(one, lengths)

    def _begin(self, index: int, spans: Sequence[tuple[int, int]]) -> None:
        if self._port is not None and self._record is not None:
            self._record.make_way()
        super()._begin(index, spans)

    def _hand_over(self, chains: Sequence[Chain], index: int, deferred: Deferred | None) -> None:
        port, handler = self._port, self._handler
        if port is not None:
            assert handler is not None
            execute = partial(handler.execute, chains[index]) if deferred is None else deferred.execute
            deferred = Deferred(partial(self._work, port, execute))
        super()._hand_over(chains, index, deferred)

    def _work(self, port: TimedPort, execute: Callable[[], int]) -> int:
        """Carry a request out on the worker's thread, and note when its answer is due."""
        try:
            return execute()
        finally:
            self._worked = port.held.take_delayed(port.clock())

    # -- answers ----------------------------------------------------------------------------------------------

    def _give_back(self, chains: Sequence[Chain], lengths: Sequence[int]) -> None:
        """Hold the answers of requests that were carried out until they are due."""
        port, ring, record = self._port, self.ring, self._record
        if port is None:
            super()._give_back(chains, lengths)
            return
        assert ring is not None
        due_ns, arrival_ns = self._worked or port.held.take_delayed(port.clock())
        self._worked = None
        for chain, nr_bytes in zip(chains, lengths, strict=True):
            self._executed_place += chain[0] >> 16
            if record is not None and not record.can_hold:
                # The record has no room: the ring has one entry, or all records are of requests that an earlier process
                # has begun. No answer is held then, so this one is given at once.
                record.end_holding()
                super()._give_back((chain,), (nr_bytes,))
                self._begin_holding(record)
                continue
            number = 0
            if record is not None:
                position = position_of(self._executed_place, ring.size) if isinstance(ring, PackedRing) else 0
                number = record.hold(chain[0] & 0xFFFFFFFF | nr_bytes << 32, 0, position)
            self._nr_held += 1
            heapq.heappush(self._held, (due_ns, self._nr_held, arrival_ns, chain, nr_bytes, number))
        self._give_due(port, ring)

    def _give_due(self, port: TimedPort, ring: SplitRing | PackedRing) -> bool:
        """Give the answers that are due, or all at the daemon's end; set an alarm for the next one. True if one was."""
        held = self._held
        if not held:
            return False
        now_ns = port.clock()
        is_cut = port.alarm.is_cut
        found = False
        while held and (is_cut or held[0][0] <= now_ns):
            self._give_next(port, ring)
            found = True
        alarms_ns = self._alarms_ns
        while alarms_ns and alarms_ns[-1] <= now_ns:
            alarms_ns.pop()
        # No alarm is added while a sooner one is to come, because that one calls this method, too. An alarm for each
        # new first answer was rejected: each request that overtakes an answer due in an hour would leave one for that
        # hour.
        if held and (not alarms_ns or held[0][0] < alarms_ns[-1]):
            alarms_ns.append(held[0][0])
            port.alarm.at(held[0][0], self._wake)
        return found

    def _give_next(self, port: TimedPort, ring: SplitRing | PackedRing) -> None:
        for queue in self._managed:
            queue.give_all()
        due_ns, _, arrival_ns, chain, nr_bytes, number = heapq.heappop(self._held)
        if arrival_ns >= 0:
            port.answered(due_ns, arrival_ns)
        self._give_held(ring, chain, nr_bytes, number)
        self._note_given_back(1)
