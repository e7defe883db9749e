"""The loop of the one thread that serves a device: virtqueues, and other descriptors of the transport.

There is one thread, because Python's interpreter runs one thread at a time. Several threads would pass the interpreter
to each other at every system call, which costs more than the call (docs/vhost-user.md has the measurement). Requests
that may wait for the host's disk go to a worker.

The thread sleeps in epoll. Once awake it serves rings until they are empty. Then it polls the empty rings for as long
as :mod:`zonefs_emu.polling` says, before it asks the drivers for kicks and sleeps again. Where drivers have several
requests under way, it lets them gather before it serves the rings again.

An error of one ring or one request ends in its queue. Any other exception of a method reaches the transport, which
gives up its connection (docs/errors.md, boundaries).

No wake-up is lost, because a queue that can be served is active, or its driver was asked for kicks and its ring was
seen empty after that. So code that makes it possible to serve a queue (by starting it, enabling it, or giving back the
request that it waited for) activates it.
"""

import logging
import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.device.waker import Waker
from zonefs_emu.errors import PeerError
from zonefs_emu.polling import AdaptivePolling, Gathering
from zonefs_emu.virtqueue.atomic import make_fence
from zonefs_emu.virtqueue.peer_eventfds import PeerEventfds
from zonefs_emu.virtqueue.virtio_device import VirtioDevice
from zonefs_emu.virtqueue.virtqueue import Service, Virtqueue
from zonefs_emu.virtqueue.worker import Worker

#: The longest polling of empty rings, and the longest sleep that counts as short. An answer's way through a guest's
#: driver and the next request's way back take about 100 µs; a sleep meanwhile costs the guest a kick. KVM polls for the
#: same time.
_LOOK_NS_MAX: Final = 200_000
#: After so many rounds over the rings the descriptors are polled as well, and other threads get a chance to run.
_POLL_EVERY: Final = 16
#: The transport gets control back after this time, even where rings are never empty.
_SERVE_NS_MAX: Final = 100_000_000


class QueueServer:
    """Serves the queues of *virtio_device*.

    One thread, that of the transport, calls :meth:`wait` and :meth:`serve` in turn until the server is
    :attr:`stopping`, stops the queues, and calls :meth:`close`. Any thread may call stop(), wake(), look_after() and
    ring_due(); all other methods belong to that one thread.
    """

    def __init__(self, virtio_device: VirtioDevice) -> None:
        """Start the worker."""
        #: All queues, whether they run or not.
        self.queues: Sequence[Virtqueue] = ()
        self.worker: Worker[int] = Worker(f"{virtio_device.name}-worker", virtio_device.port.device.sleep_ns)
        # An injected delay of one request must not delay the other queues.
        virtio_device.port.defer = self.worker.defer
        contain = partial(virtio_device.port.device.unforeseen.contain, virtio_device.port.name)
        #: The part of this server that the queues use.
        self.service = Service(
            self.worker.submit, make_fence(), contain, LimitedLog(logging.getLogger("zonefs_emu.virtqueue")),
            PeerEventfds(),
        )  # fmt: skip
        #: Set by :meth:`stop`.
        self.stopping = False
        self._active: list[Virtqueue] = []
        #: The queues whose abandoned requests the worker may still have. Their connections may have ended.
        self._abandoned: list[Virtqueue] = []
        self._polling = AdaptivePolling(
            max_ns=_LOOK_NS_MAX, soon_ns=_LOOK_NS_MAX, nr_processors=len(os.sched_getaffinity(0))
        )
        self._gathering = Gathering()
        self._epoll = select.epoll()
        self._reactions: dict[int, Callable[[], object]] = {}
        self._waker = Waker()
        self.watch(self._waker.fd, partial(os.eventfd_read, self._waker.fd))
        self.watch(self.worker.wake_fd, self._collect)
        self._due = Waker()
        self.watch(self._due.fd, self._activate_due)

    # -- from any thread --------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Make :meth:`wait` and :meth:`serve` return, from now on."""
        self.stopping = True
        self.worker.end_waiting()
        self.wake()

    def wake(self) -> None:
        """Make :meth:`wait` return, unless the server is closed."""
        self._waker.wake()

    def look_after(self) -> None:
        """End a write to a full eventfd of the peer if the thread waits in it. To be called every few seconds."""
        self.service.eventfds.free()

    def ring_due(self) -> None:
        """Have all queues served, because an answer that one of them holds is due."""
        self._due.wake()

    # -- events -----------------------------------------------------------------------------------------------

    def watch(self, fd: int, react: Callable[[], object], *, edges: bool = False) -> None:
        """Call *react* whenever *fd* is readable; with *edges*, only when it becomes readable or more data comes.

        Raises:
            OSError: epoll does not take the descriptor.
        """
        self.unwatch(fd)
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET if edges else select.EPOLLIN)
        self._reactions[fd] = react

    def is_watched(self, fd: int) -> bool:
        """Return whether *fd* is watched."""
        return fd in self._reactions

    def unwatch(self, fd: int) -> None:
        """End watching *fd*, before it is closed; do nothing if it is not watched."""
        if self._reactions.pop(fd, None) is not None:
            # After an exception at the end of a connection, a watched descriptor may have been closed, and its number
            # may belong to another file by now.
            with suppress(FileNotFoundError):
                self._epoll.unregister(fd)

    def watch_kicks(self, queue: Virtqueue, old: int = -1) -> None:
        """Watch the kick descriptor of *queue* instead of the *old* one, and serve the requests that are there already.

        Raises:
            PeerError: the descriptor cannot be waited for.
        """
        fd = queue.kick_fd
        if old != fd:
            self.unwatch(old)
        if fd >= 0:
            try:
                # Edge-triggered: each kick is an event, so the counter need not be read.
                self.watch(fd, partial(self.activate, queue), edges=True)
            except OSError as error:
                message = f"the kick descriptor of queue {queue.index} cannot be waited for: {error.strerror}"
                raise PeerError(message) from None
            self.activate(queue)

    def activate(self, queue: Virtqueue) -> None:
        """Have *queue* served until it is empty, if it runs."""
        if queue.ring is not None:
            queue.wake()
            if queue not in self._active:
                self._active.append(queue)

    def wait_idle(self, queue: Virtqueue) -> bool:
        """Wait until the worker has no request of *queue*; False if the host's disk blocks one for 30 s.

        Such a request is abandoned: the queue can be stopped, but it is unknown whether the request takes effect.
        """
        # Results of other queues that are collected here are not lost: the worker's descriptor stays readable, and all
        # queues are activated then.
        if self.worker.wait(lambda: not queue.busy):
            return True
        self.service.log.warning("queue %d is stopped while one of its requests waits for the host's disk", queue.index)
        self.abandon(queue)
        return False

    def abandon(self, queue: Virtqueue) -> None:
        """Abandon the request of *queue* that the worker has, if there is one."""
        if queue.busy:
            self._abandoned.append(queue)
        queue.abandon()

    def wait_abandoned(self) -> bool:
        """Wait until all abandoned requests have ended; False if the host's disk blocks one for 30 s.

        A ring is started only after that, because the driver may have made the same request available again, with the
        same memory for its record. Without the wait, the request could be executed twice, or be recorded as another.
        """
        if not self.worker.wait(lambda: not any(queue.nr_abandoned for queue in self._abandoned)):
            return False
        self._abandoned.clear()
        return True

    def wait(self, timeout: float = -1) -> None:
        """Sleep until there is something to do, or for *timeout* seconds."""
        asleep_ns = time.monotonic_ns()
        rested = not self._active
        self._take_events(0 if self._active or self.stopping else timeout)
        if rested and self._active:
            self._polling.waited(time.monotonic_ns() - asleep_ns)

    def _take_events(self, timeout: float) -> None:
        for fd, _ in self._epoll.poll(timeout):
            # The reaction to an earlier event may have unwatched this descriptor.
            react = self._reactions.get(fd)
            if react is not None:
                react()

    def _activate_due(self) -> None:
        os.eventfd_read(self._due.fd)
        self._activate_ready()

    def _collect(self) -> None:
        os.eventfd_read(self.worker.wake_fd)
        self.worker.collect()
        self._activate_ready()

    def _activate_ready(self) -> None:
        for queue in self.queues:
            if queue.is_ready:
                self.activate(queue)

    def look_again(self) -> None:
        """Make the next :meth:`wait` collect all results and serve all queues, after an exception in a turn.

        The turn may have consumed events without acting on them: a kick, or a result of the worker.
        """
        os.eventfd_write(self.worker.wake_fd, 1)

    # -- rings ------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve the active queues until they have been empty for the time of polling, or for a tenth of a second."""
        active, polling = self._active, self._polling
        clock: Callable[[], int] = time.monotonic_ns
        limit = clock() + _SERVE_NS_MAX
        deadline = 0
        rounds = 0
        while active:
            busy = False
            for queue in tuple(active):
                if queue.run():
                    busy = True
            rounds += 1
            if self.stopping:
                return
            if rounds % _POLL_EVERY == 0:
                self._take_events(0)
                if clock() >= limit:
                    return
            if busy:
                deadline = 0
            elif not deadline and self._gather():
                continue
            elif polling.look_ns and not deadline:
                deadline = clock() + polling.look_ns
            elif not polling.look_ns or clock() >= deadline:
                if not self._sleep():
                    return
                deadline = 0

    def _gather(self) -> bool:
        """Let requests gather if the drivers have several under way; return whether there are some afterwards.

        The worker's answer must not wait for that, so nothing gathers while it has a request.
        """
        active, gathering = self._active, self._gathering
        if not gathering.pause_ns and any(queue.has_several for queue in active):
            gathering.begin()
        if not gathering.pause_ns or any(queue.busy for queue in self.queues):
            return False
        nr_found = gathering.gather(time.sleep, lambda: sum(queue.nr_available for queue in active))
        # Kicks of other queues, and messages, must not wait for several pauses.
        self._take_events(0)
        return nr_found > 0

    def _sleep(self) -> bool:
        """Ask the drivers of the active queues for kicks, and make the queues inactive; True if a request has come."""
        for queue in tuple(self._active):
            if queue.ring is not None and queue.sleep():
                queue.wake()
                if queue.run():
                    return True
                # An event queue that has buffers but no event needs no kicks.
            self._active.remove(queue)
        for queue in self.queues:
            # The requests for which such a queue waits may have been answered after its last turn.
            if queue.is_waiting and queue.run():
                self.activate(queue)
                return True
        return False

    # -- end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the worker, epoll and the wakers, after the queues were stopped.

        A request that the host's disk blocks for 2 s more is abandoned.
        """
        self.worker.close()
        self._epoll.close()
        self._waker.close()
        self._due.close()
