"""A thread for jobs that may wait for the host's disk; results return to the thread that submitted the jobs."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, Generic, TypeAlias, TypeVar

T = TypeVar("T")
#: A callback that receives the result of a job, or the exception that the job raised.
Then: TypeAlias = Callable[[T | Exception], None]

log = logging.getLogger(__name__)

#: The longest wait of :meth:`Worker.wait` for the host's disk, and of all waits together after the end has begun.
_WAIT_S: Final = 30.0
_END_S: Final = 2.0


class Worker(Generic[T]):
    """Runs jobs (functions) one after the other on a thread of its own; *wake_fd* is readable when results are there.

    A job can defer its result (:meth:`defer`). The result then waits on a thread of its own, and the next job runs.

    Invariant: each job's callback is called, unless the worker is closed before. An exception of a job is its result.
    """

    def __init__(self, name: str, sleep_ns: Callable[[int], None]) -> None:
        """Start the thread, called *name*. *sleep_ns* waits for a number of nanoseconds, for deferred results."""
        self._sleep_ns = sleep_ns
        #: Deferred results, by the thread that waits for each.
        self._deferred: dict[threading.Thread, tuple[T, Then[T]]] = {}
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._jobs: SimpleQueue[tuple[Callable[[], T], Then[T]] | None] = SimpleQueue()
        self._results: deque[tuple[T | Exception, Then[T]]] = deque()
        #: Guards everything that the threads share; notified when there are results, and when the end begins.
        self._changed = threading.Condition()
        self._end_at = float("inf")
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T], then: Then[T]) -> None:
        """Run *job* on the thread; :meth:`collect` later runs *then* with its result, or the exception it raised."""
        self._jobs.put((job, then))

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, then = entry
            try:  # the boundary of a job: what it raises goes to where its result would go
                self._late_ns = 0  # what the job's calls of defer() add up to
                result = job()
                if self._late_ns:
                    self._hold_back(self._late_ns, result, then)
                else:
                    self._deliver(result, then)
            except Exception as error:
                self._deliver(error, then)

    def _hold_back(self, duration_ns: int, result: T, then: Then[T]) -> None:
        deferred = threading.Thread(target=self._deliver_deferred, args=(duration_ns,), daemon=True)
        with self._changed:
            self._deferred[deferred] = result, then
            self._changed.notify_all()  # wait() may have begun before
        deferred.start()

    def _deliver(self, result: T | Exception, then: Then[T]) -> None:
        with self._changed:
            if not self._is_closed:
                self._results.append((result, then))
                self._changed.notify_all()
                os.eventfd_write(self.wake_fd, 1)

    def _deliver_deferred(self, duration_ns: int) -> None:
        try:
            self._sleep_ns(duration_ns)
        finally:
            with self._changed:
                held_back = self._deferred.pop(threading.current_thread(), None)
            if held_back is not None:  # else wait() has delivered it
                self._deliver(*held_back)

    def defer(self, duration_ns: int) -> None:
        """Defer the result of the running job by *duration_ns*; on any other thread, wait for that time."""
        if threading.current_thread() is self._thread:
            self._late_ns += duration_ns
        else:
            self._sleep_ns(duration_ns)

    def collect(self) -> bool:
        """Run the callbacks of finished jobs on the caller's thread; True if there were some."""
        found = False
        while self._results:
            result, then = self._results.popleft()
            found = True
            try:  # the boundary of an answer: if the result cannot be delivered, the exception is delivered instead
                then(result)
            except Exception as error:
                if isinstance(result, Exception):
                    error.__context__ = result  # both tracebacks are logged
                then(error)
        return found

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Collect results until *condition* holds; False if the host's disk blocks a job for 30 s.

        Deferred results are delivered at once: a delay may be an hour long, and the caller resets a device for a guest
        or ends a daemon. After :meth:`end_waiting`, all waits together take 2 s at most.
        """
        deadline = time.monotonic() + _WAIT_S
        while not condition():
            with self._changed:
                while self._deferred:
                    self._results.append(self._deferred.popitem()[1])
                if not self._results:
                    left = min(deadline, self._end_at) - time.monotonic()
                    if left <= 0:
                        return False
                    self._changed.wait(left)
            self.collect()
        return True

    def end_waiting(self) -> None:
        """Limit :meth:`wait` and :meth:`close` to 2 s together from now on; from any thread."""
        with self._changed:
            self._end_at = min(self._end_at, time.monotonic() + _END_S)
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread after all submitted jobs; drop deferred results. Abandon the thread if the host blocks a job.

        The callbacks of the other results run before the method returns.
        """
        self.end_waiting()
        self._jobs.put(None)
        self._thread.join(max(0.0, self._end_at - time.monotonic()))
        if self._thread.is_alive():
            log.warning("a request that waits for the host's disk is abandoned")
        self.collect()  # no queue takes a result any more, but exceptions are to be logged
        with self._changed:
            self._is_closed = True
            self._deferred.clear()
            os.close(self.wake_fd)
