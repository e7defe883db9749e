"""Waiting for the kernel's next request: polling for a while, then sleeping.

An application that waits for a request sends the next one within microseconds, and putting this process to sleep and
waking it costs more than the rest of a request. pyfuse3 reaches trio through a module variable of its own, in which
:class:`RequestWaiter` takes the place of trio, with another lock and another ``wait_readable``.

* ``wait_readable`` polls without letting other tasks run, for as long as :mod:`zonefs_emu.polling` says, 50 µs at most.
  Then it sleeps. Other tasks run while it sleeps, and after every 32nd request at the latest.
* pyfuse3 starts another worker when a request comes and no worker waits for the next one. The new worker runs only when
  the present one lets other tasks run, so the present one does that as long as no other worker waits.
* The lock is not fair. trio's lock passes to the next of pyfuse3's workers each time, which costs two task switches for
  each request. Here a worker that returns and finds the lock free takes it again. Another worker, which is woken once,
  gets the lock when the first one waits for anything but a request.
"""

import os
import select
import time
from types import SimpleNamespace, TracebackType
from typing import Final

import pyfuse3
import trio

from zonefs_emu.polling import AdaptivePolling

#: The longest polling for the next request, and the longest wait, with polling, that counts as short.
_LOOK_NS_MAX: Final = 50_000
_SOON_NS: Final = 2 * _LOOK_NS_MAX
#: Requests in a row after which other tasks of the event loop run.
_REQUESTS_IN_A_ROW: Final = 32


class RequestWaiter:
    """Waits for the requests of one mount, and measures how soon they come."""

    def __init__(self) -> None:
        self.lock = WorkerLock()
        self._poller = select.poll()
        self._fd = -1
        self.polling = AdaptivePolling(
            max_ns=_LOOK_NS_MAX, soon_ns=_SOON_NS, nr_processors=len(os.sched_getaffinity(0))
        )
        self._in_a_row = 0
        #: How often polling found no request.
        self.nr_sleeps = 0

    def install(self) -> None:
        """Take the place of trio in pyfuse3. A process has at most one mount of pyfuse3."""
        pyfuse3.trio = SimpleNamespace(  # type: ignore[attr-defined]  # not in the stub; pyfuse3.asyncio sets it, too
            Lock=lambda: self.lock,
            open_nursery=trio.open_nursery,
            ClosedResourceError=trio.ClosedResourceError,
            lowlevel=SimpleNamespace(
                wait_readable=self.wait_readable,
                current_task=trio.lowlevel.current_task,
                current_trio_token=trio.lowlevel.current_trio_token,
                notify_closing=trio.lowlevel.notify_closing,
            ),
        )

    async def wait_readable(self, fd: int) -> None:
        """Wait until *fd*, always the same, can be read."""
        if fd != self._fd:
            self._fd = fd
            self._poller.register(fd, select.POLLIN)
        self._in_a_row += 1
        if self._in_a_row >= _REQUESTS_IN_A_ROW or not self.lock.nr_waiting:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
        poll = self._poller.poll
        if poll(0):
            return
        clock = time.monotonic_ns
        began = clock()
        if look_ns := self.polling.look_ns:
            deadline = began + look_ns
            while clock() < deadline:
                if poll(0):
                    return
        self._in_a_row = 0
        self.nr_sleeps += 1
        await trio.lowlevel.wait_readable(fd)
        self.polling.waited(clock() - began)


class WorkerLock:
    """The lock that a worker holds while it waits for a request; see the head of this module."""

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()
        #: The number of workers that want the lock, with those that have been woken and have not run yet.
        self.nr_waiting = 0

    async def __aenter__(self) -> None:
        """Take the lock."""
        while self._held:
            self.nr_waiting += 1
            try:
                await self._waiting.park()
            finally:
                self.nr_waiting -= 1
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock, and wake one other worker, which runs as soon as this worker lets other tasks run."""
        self._held = False
        if self._waiting:  # most often none waits, and unpark() takes five times as long to find that out
            self._waiting.unpark()
