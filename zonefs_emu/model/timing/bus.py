"""A bus that carries one transfer at a time, for transfers that are announced in another order than they are ready."""

from bisect import bisect_left, bisect_right


class Bus:
    """The busy periods of a bus, in nanoseconds.

    A request is submitted before its data are ready, and data do not become ready in the order of submission. If the
    model kept only the time from which the bus is free, a transfer would wait for another one that is ready later. So
    it keeps the busy periods. A transfer takes the idle time that it needs from when it is ready, in several pieces if
    necessary.
    """

    __slots__ = ("_begins", "_ends", "free_ns")

    def __init__(self) -> None:
        # Period i is [_begins[i], _ends[i]); they are in order and do not overlap.
        self._begins: list[int] = []
        self._ends: list[int] = []
        #: When the last transfer ends.
        self.free_ns = 0

    def transfer(self, ready_ns: int, service_ns: int) -> int:
        """Occupy the bus for *service_ns* from *ready_ns* on, and return when the transfer ends."""
        begins, ends = self._begins, self._ends
        if ready_ns > self.free_ns or not ends:
            end = self.free_ns = ready_ns + service_ns
            begins.append(ready_ns)
            ends.append(end)
            return end
        first = bisect_left(ends, ready_ns)  # the first period that is not over at ready_ns
        after = first
        begin = end = ready_ns
        if begins[first] <= ready_ns:
            begin, end = begins[first], ends[first]
            after += 1
        while after < len(begins) and begins[after] - end < service_ns:
            service_ns -= begins[after] - end
            end = ends[after]
            after += 1
        end += service_ns
        begins[first:after] = [begin]
        ends[first:after] = [end]
        if end > self.free_ns:
            self.free_ns = end
        return end

    def idle_ns(self, ready_ns: int) -> int:
        """Return when the bus is idle, *ready_ns* or later."""
        begins, ends = self._begins, self._ends
        if ready_ns >= self.free_ns:
            return ready_ns
        at = bisect_right(ends, ready_ns)  # the first period that is not over at ready_ns
        while at < len(begins) and begins[at] <= ready_ns:
            ready_ns = ends[at]
            at += 1
        return ready_ns

    def forget(self, before_ns: int) -> None:
        """Drop the periods that end by *before_ns*; no later transfer may be ready earlier."""
        index = bisect_right(self._ends, before_ns)
        del self._begins[:index], self._ends[:index]
