"""A virtqueue whose requests take as long as on a real drive.

The request is held up, and not its answer: it is carried out at the time when a real drive would answer it, and is then
answered at once. So no more than one request of a queue is carried out and not answered, which is all that the record
of requests in flight can express. A stopped queue leaves the requests that it holds to the next back-end, as if it had
never taken them. For the same reason a queue gives requests back in order: a request that a real drive would answer
sooner waits for those before it.
"""

from collections import deque
from collections.abc import Callable, Iterable

from zonefs_emu.device.port import Port
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.virtio.ring import BrokenRingError, Chain, OversizedChainError
from zonefs_emu.virtqueue.virtqueue import BATCH, Virtqueue


def time_queues(queues: Iterable[Virtqueue], port: Port, wake: Callable[[], object]) -> None:
    """Time *queues* by *port*, if it is timed; *wake* has them served, from any thread."""
    if isinstance(port, TimedPort):
        port.is_held = False  # the requests are
        for queue in queues:
            assert isinstance(queue, TimedVirtqueue)
            queue.time_by(port, wake)


class TimedVirtqueue(Virtqueue):
    """A virtqueue that holds requests; :meth:`time_by` says how long, before it is started."""

    _port: TimedPort | None = None
    _wake: Callable[[], object]

    def time_by(self, port: TimedPort, wake: Callable[[], object]) -> None:
        """Hold requests for as long as the drive of *port* takes; *wake* makes this queue run, from any thread."""
        self._port = port
        self._wake = wake
        #: (chain, when it is due, when it arrived) of each request that is held, in order.
        self._held: deque[tuple[Chain, int, int]] = deque()
        self._alarm_ns = 0

    def run(self) -> bool:
        """Execute the requests that are due; True if there were any, or new ones."""
        port, ring, handler = self._port, self.ring, self._handler
        if port is None or ring is None or handler is None or self.busy or self.broken or not self.enabled:
            return super().run()
        if self._backlog:
            return super().run()
        try:  # the boundary of a ring
            is_busy = self._take(port)
            chains = self._due(port)
            if chains:
                self._run_batch(chains)
                is_busy = True
        except OversizedChainError as error:
            return self._refuse_oversized(error)
        except Exception as error:
            self._break(error)
            return False
        self._notify()
        return is_busy

    def _take(self, port: TimedPort) -> bool:
        """Take new requests and compute when they are due; True if there were any."""
        ring, handler, held = self.ring, self._handler, self._held
        assert ring is not None
        assert handler is not None
        record = self._record
        # A driver that made more requests available than the ring has entries would have them held without a bound:
        # the available index is compared with the requests that were taken, and not with those given back.
        room = self.size - len(held)
        if room <= 0:
            return False
        chains = ring.pop(1 if record is not None and record.recovering else min(room, BATCH))
        for chain in chains:
            arrival_ns = port.clock()
            try:
                due_ns = handler.due_ns(chain, arrival_ns)
            except BrokenRingError:
                due_ns = arrival_ns  # its execution says what is wrong
            if held:
                due_ns = max(due_ns, held[-1][1])
            held.append((chain, due_ns, arrival_ns))
        return bool(chains)

    def _due(self, port: TimedPort) -> list[Chain]:
        """Return the requests that are due, and set the alarm for the next one."""
        held = self._held
        chains: list[Chain] = []
        now_ns = port.clock()
        while held and held[0][1] <= now_ns and len(chains) < BATCH:
            chain, due_ns, arrival_ns = held.popleft()
            chains.append(chain)
            port.answered(due_ns, arrival_ns)
        if held and held[0][1] != self._alarm_ns:
            self._alarm_ns = held[0][1]
            port.alarm.at(self._alarm_ns, self._wake)
        return chains

    def sleep(self) -> bool:
        """Do the same as for any queue; True also if a request that is held is due.

        Its alarm may have come while the queue was being served, between the look at the clock and this call. No
        second one comes.
        """
        has_work = super().sleep()
        if has_work or self._port is None or not self._held or not self.is_ready:
            return has_work
        return self._held[0][1] <= self._port.clock()

    def stop(self) -> int:
        """Stop; requests that are held were not executed, and the next back-end takes them again."""
        if self._port is not None:
            self._held.clear()
        return super().stop()
