"""A clock that moves only when a test moves it, and the commands that are under way on it.

    clock = VirtualClock()
    device.start_timing("zn540", clock=clock.now)
    device.sleep_ns = clock.advance
    port.append(sector, 8, (data,))                               # the clock is then at its end
    many = [clock.submit(port.append, sector, 8, (data,)) for _ in range(32)]
    clock.run_until_idle()                                        # ... and many[31].latency_ns is how long it took

A call of a command moves the clock to the time of its answer. A submitted command is carried out at once, and answered
when the clock reaches that time, so many commands can be under way. For one thread.
"""

import heapq
from collections.abc import Callable
from typing import Any, Final, Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Submitted(Generic[T]):
    """A command that was submitted at *begin_ns* and is answered at *end_ns*. *result*: what it returned."""

    __slots__ = ("begin_ns", "end_ns", "result")

    def __init__(self, result: T, begin_ns: int, end_ns: int) -> None:
        self.result: Final = result
        self.begin_ns: Final = begin_ns
        self.end_ns: Final = end_ns

    @property
    def latency_ns(self) -> int:
        """The time from submission to answer, with injected delays."""
        return self.end_ns - self.begin_ns


class VirtualClock:
    """A clock in nanoseconds that begins at 0."""

    def __init__(self) -> None:
        #: The present time. While a command is being submitted, that includes the time which it takes.
        self.now_ns = 0
        self._is_submitting = False
        self._queue: list[tuple[int, int, Submitted[Any], Callable[[Submitted[Any]], object] | None]] = []
        self._nr_submitted = 0

    def now(self) -> int:
        """Return the present time."""
        return self.now_ns

    @property
    def nr_in_flight(self) -> int:
        """How many commands were submitted and are not answered yet."""
        return len(self._queue)

    def submit(self, command: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> Submitted[T]:
        """Carry *command* out without moving the clock; it is answered when the clock reaches its time."""
        return self._submit(None, command, arguments, options)

    def submit_then(self, then: Callable[[Submitted[T]], object], command: Callable[[], T]) -> Submitted[T]:
        """Do as :meth:`submit`, and call *then* when the command is answered; it may submit the next one."""
        return self._submit(then, command, (), {})

    def _submit(
        self,
        then: Callable[[Submitted[T]], object] | None,
        command: Callable[..., T],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Submitted[T]:
        begin_ns = self.now_ns
        self._is_submitting = True
        try:
            submitted = Submitted(command(*arguments, **options), begin_ns, self.now_ns)
        finally:
            self._is_submitting = False
            self.now_ns = begin_ns
        self._nr_submitted += 1
        heapq.heappush(self._queue, (submitted.end_ns, self._nr_submitted, submitted, then))
        return submitted

    def advance(self, duration_ns: int) -> None:
        """Move the clock by *duration_ns* (at least 0), and answer the commands that become due."""
        end_ns = self.now_ns + duration_ns
        if not self._is_submitting:
            while self._queue and self._queue[0][0] <= end_ns:
                self._answer_next()
        # A function that is called at an answer may have moved the clock further.
        if end_ns > self.now_ns:
            self.now_ns = end_ns

    def run_until_idle(self) -> None:
        """Move the clock until all commands are answered, with those that are submitted meanwhile."""
        while self._queue:
            self._answer_next()

    def _answer_next(self) -> None:
        end_ns, _, submitted, then = heapq.heappop(self._queue)
        if end_ns > self.now_ns:
            self.now_ns = end_ns
        if then is not None:
            then(submitted)
