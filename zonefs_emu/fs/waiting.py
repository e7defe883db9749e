"""Waiting for the kernel's next request: by looking for a while, then by sleeping.

A request that an application waits for is followed by the next within microseconds, and a sleep of this process and its
wake-up cost more than all the rest of a request. pyfuse3 takes what it knows of trio from a module variable of its own;
there, :class:`RequestWaiter` stands in place of trio, with a lock and a ``wait_readable`` of its own.

* ``wait_readable`` polls without giving up the thread, for as long as :mod:`zonefs_emu.polling` says, 50 µs at most; a
  mount that is idle sleeps. Other tasks run when it sleeps, and every 32nd request at the latest.
* pyfuse3 starts another worker when a request comes and none waits for the next. The new one runs only when this one
  gives up the thread, so it does that as long as no other waits.
* The lock is not fair. trio's gives itself to the next of pyfuse3's workers each time, which are two switches of tasks
  a request. Here a worker that comes back with the lock free has it again; another one, woken once, gets it when this
  one waits for something else than a request.
"""

import os
import select
import time
from types import SimpleNamespace, TracebackType
from typing import Final

import pyfuse3
import trio

from zonefs_emu.polling import AdaptivePolling

#: The longest look for the next request, and the longest wait, look included, that may count as short.
_LOOK_NS_MAX: Final = 50_000
_SOON_NS: Final = 2 * _LOOK_NS_MAX
#: Requests in a row after which other tasks of the event loop get their turn.
_REQUESTS_IN_A_ROW: Final = 32


class RequestWaiter:
    """What one mount knows of how soon requests come."""

    def __init__(self) -> None:
        self.lock = WorkerLock()
        self._poller = select.poll()
        self._fd = -1
        self.polling = AdaptivePolling(
            max_ns=_LOOK_NS_MAX, soon_ns=_SOON_NS, nr_processors=len(os.sched_getaffinity(0))
        )
        self._in_a_row = 0
        #: How often a look was not enough.
        self.nr_sleeps = 0

    def install(self) -> None:
        """Stand in place of trio in pyfuse3, which has one mount in a process."""
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
        #: The workers that want the lock, those included that have been woken and not run yet.
        self.nr_waiting = 0

    async def __aenter__(self) -> None:
        """Take the lock."""
        self.nr_waiting += 1
        try:
            while self._held:
                await self._waiting.park()
        finally:
            self.nr_waiting -= 1
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the lock up. One of the others is woken, which runs as soon as this worker waits for anything."""
        self._held = False
        self._waiting.unpark()
