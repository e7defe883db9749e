"""A thread for what may wait for the host's disk, and the way back to the thread that asked."""

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Worker(Generic[T]):
    """Runs functions one after the other on a thread of its own; *wake_fd* is readable when results are there.

    A result may be held back (:meth:`hold_up`): it waits on a thread of its own, and the next function runs meanwhile.
    """

    def __init__(self, name: str, sleep_ns: Callable[[int], None]) -> None:
        """Start the thread. *sleep_ns* is the clock that results are held back by."""
        self._sleep_ns = sleep_ns
        self._late_ns = 0
        self._late: set[threading.Thread] = set()
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._jobs: SimpleQueue[tuple[Callable[[], T], Callable[[T], None]] | None] = SimpleQueue()
        self._results: deque[tuple[T, Callable[[T], None]]] = deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T], then: Callable[[T], None]) -> None:
        """Run *job* on the thread; :meth:`collect` later runs *then* with its result."""
        self._jobs.put((job, then))

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, then = entry
            self._late_ns = 0
            result = job()
            if not self._late_ns:
                self._deliver(result, then)
                continue
            late = threading.Thread(target=self._deliver_late, args=(self._late_ns, result, then), daemon=True)
            self._late.add(late)
            late.start()

    def _deliver(self, result: T, then: Callable[[T], None]) -> None:
        with self._changed:
            self._results.append((result, then))
            self._changed.notify_all()
        os.eventfd_write(self.wake_fd, 1)

    def _deliver_late(self, duration_ns: int, result: T, then: Callable[[T], None]) -> None:
        self._sleep_ns(duration_ns)
        self._deliver(result, then)
        self._late.discard(threading.current_thread())

    def hold_up(self, duration_ns: int) -> None:
        """Hold the result of the function that runs back for *duration_ns*; on any other thread, wait."""
        if threading.current_thread() is self._thread:
            self._late_ns += duration_ns
        else:
            self._sleep_ns(duration_ns)

    def collect(self) -> bool:
        """Run the callbacks of what is done, on the caller's thread; True if there were some."""
        found = False
        while self._results:
            result, then = self._results.popleft()
            then(result)
            found = True
        return found

    def wait(self, condition: Callable[[], bool]) -> None:
        """Collect until *condition* holds."""
        while not condition():
            with self._changed:
                while not self._results:
                    self._changed.wait()
            self.collect()

    def close(self) -> None:
        """Finish what was submitted and end the thread."""
        self._jobs.put(None)
        self._thread.join()
        for late in tuple(self._late):
            late.join()
        os.close(self.wake_fd)
