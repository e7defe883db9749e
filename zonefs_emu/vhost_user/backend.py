"""The back-end: one thread that serves one device on one socket, rings and messages alike.

One thread, because Python's interpreter runs one at a time anyway: several would hand the interpreter to each other at
every system call, which costs more than the call (docs/vhost-user.md has the measurement). What may wait for the host's
disk goes to a worker.

The thread sleeps in epoll. Once awake it serves rings until they are empty. Where requests came soon lately, it looks
at them a little longer before it asks the drivers for kicks and sleeps again; where they did not, it sleeps at once:
whoever is to take the answer may be waiting for this very processor.
"""

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import PeerError
from zonefs_emu.vhost_user.atomic import make_fence
from zonefs_emu.vhost_user.connection import Connection
from zonefs_emu.vhost_user.model import DeviceModel
from zonefs_emu.vhost_user.queue import Queue
from zonefs_emu.vhost_user.session import Session
from zonefs_emu.vhost_user.worker import Worker
from zonefs_emu.virtio.ring import BrokenRingError

log = logging.getLogger(__name__)

#: Bounds of how long empty rings are looked at, if at all: no longer than what a sleep and a kick cost.
_SPIN_NS_MIN: Final = 4_000
_SPIN_NS_MAX: Final = 32_000
#: Rounds of looking at rings after which descriptors are looked at as well, and other threads get a chance to run.
_POLL_EVERY: Final = 16


class Backend:
    """Serves *model* to one front-end after the other. All methods but stop() belong to the thread of run().

    *listener*: a listening socket; or *connected*: a socket whose front-end is there already, after whose end run()
    returns. The sockets are closed at the end.
    """

    def __init__(
        self,
        device: ZonedDevice,
        model: DeviceModel,
        *,
        listener: socket.socket | None = None,
        connected: socket.socket | None = None,
    ) -> None:
        """Serve, once :meth:`run` is called."""
        self._device = device
        self._model = model
        self._listener = listener
        self._connected = connected
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._worker: Worker[int | BrokenRingError] = Worker(f"{model.name}-worker", device.sleep_ns)
        # An injected delay of one request is not to hold up the queues of others.
        model.port.hold_up = self._worker.hold_up
        self._fence = make_fence()
        self._session: Session | None = None
        self._connection: Connection | None = None
        self._queues: dict[int, Queue] = {}
        self._active: list[Queue] = []
        self._stopping = False
        self._ending = threading.Lock()
        self._spin_ns = _SPIN_NS_MAX
        self._nr_requests = 0

    def stop(self) -> None:
        """Make :meth:`run` return; from any thread."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        """Wake the thread, from any other, unless it has ended."""
        with self._ending:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    @property
    def is_connected(self) -> bool:
        """Whether a front-end is there; from any thread."""
        return self._session is not None

    def count_requests(self) -> int:
        """Return how many requests have been answered; from any thread."""
        session = self._session
        return self._nr_requests + (sum(queue.requests for queue in session.queues) if session is not None else 0)

    def run(self) -> None:
        """Serve until :meth:`stop`, or until the one connection ends."""
        self._model.changes.wake = self._wake
        epoll = self._epoll
        epoll.register(self._wake_fd, select.EPOLLIN)
        epoll.register(self._worker.wake_fd, select.EPOLLIN)
        try:
            if self._connected is not None:
                self._connect(self._connected)
            elif self._listener is not None:
                self._listener.settimeout(0)
                epoll.register(self._listener, select.EPOLLIN)
            while not self._stopping and (self._listener is not None or self._session is not None):
                asleep_ns = time.monotonic_ns()
                self._take_events(self._timeout())
                if self._active:
                    self._adapt_spin(time.monotonic_ns() - asleep_ns)
                self._tell_changes()
                if self._active:
                    self._serve()
        finally:
            self._model.changes.wake = lambda: None
            self._disconnect()
            self._worker.close()
            epoll.close()
            with self._ending:
                os.close(self._wake_fd)
                self._wake_fd = -1
            if self._listener is not None:
                self._listener.close()

    # -- events -----------------------------------------------------------------------------------------------

    def _timeout(self) -> float:
        if self._active:
            return 0
        due_ns = self._model.changes.due_ns() if self._session is not None else None
        return -1 if due_ns is None else due_ns / 1e9 + 0.001

    def _take_events(self, timeout: float) -> bool:
        """Take what epoll has; True if there was something."""
        events = self._epoll.poll(timeout)
        for fd, _ in events:
            queue = self._queues.get(fd)
            if queue is not None:
                self._activate(queue)
            elif fd == self._wake_fd:
                os.eventfd_read(fd)
            elif fd == self._worker.wake_fd:
                os.eventfd_read(fd)
                self._collect()
            elif self._connection is not None and fd == self._connection.fileno():
                self._take_messages(self._connection)
            elif self._listener is not None and fd == self._listener.fileno():
                self._accept(self._listener)
        return bool(events)

    def _collect(self) -> None:
        if self._worker.collect() and self._session is not None:
            for queue in self._session.queues:
                if queue.is_ready:
                    self._activate(queue)

    def _activate(self, queue: Queue) -> None:
        if queue not in self._active and queue.ring is not None:
            self._active.append(queue)
            queue.ring.wake()

    def _tell_changes(self) -> None:
        if self._session is not None and self._model.changes.take():
            self._session.zones_changed()
            for queue in self._session.queues:
                self._activate(queue)

    # -- connections ------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        try:
            connected, _ = listener.accept()
        except OSError as error:
            log.info("a front-end went away before it was accepted: %s", error)
            return
        self._connect(connected)

    def _connect(self, connected: socket.socket) -> None:
        """Serve a front-end. Others wait in the socket's queue until it is gone."""
        connection = Connection(connected)
        session = Session(connection, self._device, self._model, self._worker.submit, self._fence)
        session.kick_changed = self._kick_changed
        session.wait_idle = lambda queue: self._worker.wait(lambda: not queue.busy)
        self._connection, self._session = connection, session
        self._epoll.register(connection, select.EPOLLIN)
        if self._listener is not None:
            self._epoll.unregister(self._listener)
        log.info("%s: a front-end has connected", self._model.name)

    def _disconnect(self) -> None:
        session, connection = self._session, self._connection
        if session is None or connection is None:
            return
        self._epoll.unregister(connection)
        self._active.clear()
        session.close()
        self._count(session)
        self._queues.clear()
        self._session = self._connection = None
        if self._listener is not None and not self._stopping:
            self._epoll.register(self._listener, select.EPOLLIN)

    def _count(self, session: Session) -> None:
        for queue in session.queues:
            self._nr_requests += queue.requests
            queue.requests = 0

    def _take_messages(self, connection: Connection) -> None:
        session = self._session
        assert session is not None
        try:
            while (message := connection.receive()) is not None:
                session.handle(message)
        except (PeerError, OSError) as error:  # OSError: a descriptor that is not what the message says
            log.info("%s: the connection ends: %s", self._model.name, error)
            self._disconnect()

    def _kick_changed(self, queue: Queue, old: int) -> None:
        """Watch the queue's kick descriptor; it is also served once, as a kick may have come while nobody watched."""
        if old >= 0 and old in self._queues and old != queue.kick_fd:
            del self._queues[old]
            self._epoll.unregister(old)
        if queue.ring is None and queue in self._active:
            self._active.remove(queue)
        fd = queue.kick_fd
        if fd >= 0:
            if fd not in self._queues:
                try:
                    # Edge triggered, so that the counter need not be read: each kick is an edge.
                    self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
                except OSError as error:
                    msg = f"the kick descriptor of queue {queue.index} cannot be waited for: {error.strerror}"
                    raise PeerError(msg) from None
                self._queues[fd] = queue
            self._activate(queue)

    # -- rings ------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Serve the active rings until they are empty and stay so for the time of a spin."""
        active = self._active
        clock: Callable[[], int] = time.monotonic_ns
        deadline = 0
        rounds = 0
        while active:
            busy = False
            for queue in tuple(active):
                if queue.run():
                    busy = True
            rounds += 1
            if rounds % _POLL_EVERY == 0:
                self._take_events(0)
                if self._stopping:
                    return
            if busy:
                deadline = 0
            elif self._spin_ns and not deadline:
                deadline = clock() + self._spin_ns
            elif not self._spin_ns or clock() >= deadline:
                if not self._sleep():
                    return
                deadline = 0

    def _adapt_spin(self, slept_ns: int) -> None:
        """Choose how long to look at empty rings from now on, after a sleep of *slept_ns* that a kick has ended."""
        if slept_ns <= _SPIN_NS_MAX:
            self._spin_ns = min(max(2 * self._spin_ns, _SPIN_NS_MIN), _SPIN_NS_MAX)
        else:
            self._spin_ns = self._spin_ns // 2 if self._spin_ns >= 2 * _SPIN_NS_MIN else 0

    def _sleep(self) -> bool:
        """Ask the drivers of the active rings for kicks; True if a request came meanwhile after all."""
        for queue in tuple(self._active):
            if queue.ring is not None and queue.sleep():
                queue.ring.wake()
                if queue.run():
                    return True
                # A ring that has something it cannot be served for (an event queue): its kicks mean nothing.
            self._active.remove(queue)
        return False


def serve_in_thread(backend: Backend, name: str) -> threading.Thread:
    """Run *backend* on a thread of its own."""
    thread = threading.Thread(target=backend.run, name=name)
    thread.start()
    return thread
