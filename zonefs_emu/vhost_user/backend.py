"""The back-end: one thread that serves the rings and the messages of one device at one socket.

Each turn of the loop is a boundary (docs/errors.md): an exception that no queue has contained ends the connection. The
socket then accepts the next front-end.
"""

import logging
import socket
import threading
from contextlib import ExitStack
from functools import partial
from typing import Final

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.errors import PeerError
from zonefs_emu.vhost_user.connection import Connection
from zonefs_emu.vhost_user.dispatcher import Dispatcher
from zonefs_emu.virtqueue.peer_memory import LOST
from zonefs_emu.virtqueue.queue_server import QueueServer
from zonefs_emu.virtqueue.virtio_device import VirtioDevice

#: After this many failed turns in a row without a connection that could be given up, the loop ends.
_FAILED_STEPS_MAX: Final = 10


class Backend:
    """Serves *virtio_device* to one front-end after the other.

    Its methods belong to the thread of run() unless they say otherwise. Front-ends connect to *listener*, a listening
    socket. Or one front-end has connected to *connected*, and run() returns when it is gone. The back-end closes the
    socket at the end.
    """

    def __init__(
        self,
        device: ZonedDevice,
        virtio_device: VirtioDevice,
        *,
        listener: socket.socket | None = None,
        connected: socket.socket | None = None,
    ) -> None:
        """Prepare to serve *virtio_device*, which belongs to *device*; :meth:`run` serves it."""
        self._device = device
        self._virtio_device = virtio_device
        self._listener = listener
        self._connected = connected
        self._server = QueueServer(virtio_device)
        self._log = LimitedLog(logging.getLogger(__name__))
        self._dispatcher: Dispatcher | None = None
        self._connection: Connection | None = None
        self._nr_requests = 0
        #: How many turns in a row have failed without a connection that could be given up.
        self._nr_failed_steps = 0

    def stop(self) -> None:
        """Make :meth:`run` return; from any thread."""
        self._server.stop()

    def look_after(self) -> None:
        """Keep the front-end from holding up the thread of :meth:`run`; from any thread, every few seconds."""
        self._server.look_after()

    @property
    def is_connected(self) -> bool:
        """Whether a front-end is there; from any thread."""
        return self._dispatcher is not None

    def count_requests(self) -> int:
        """Return how many requests have been answered; from any thread."""
        dispatcher = self._dispatcher
        return self._nr_requests + (sum(queue.requests for queue in dispatcher.queues) if dispatcher is not None else 0)

    def run(self) -> None:
        """Serve until :meth:`stop`, or until the one connection ends.

        Raises:
            Exception: that of the last of 10 turns of the loop that failed in a row.
        """
        server = self._server
        self._virtio_device.changes.wake = server.wake
        try:
            if self._connected is not None:
                self._connect(self._connected)
            elif self._listener is not None:
                self._listener.settimeout(0)
                self._listen()
            while not server.stopping and (self._listener is not None or self._dispatcher is not None):
                self._step()
        finally:
            self._virtio_device.changes.wake = lambda: None
            with ExitStack() as ending:  # each step is done, whatever the others raise
                if self._listener is not None:
                    ending.callback(self._listener.close)
                ending.callback(server.close)
                ending.callback(self._disconnect)

    def _step(self) -> None:
        """Do one turn of the loop: wait for events, and handle them."""
        server = self._server
        try:  # the boundary of a connection
            server.wait(self._timeout())
            self._tell_changes()
            server.serve()
            if self._dispatcher is not None and self._dispatcher.shared.is_lost:
                self._log.warning("%s: the connection ends: %s by the front-end", self._virtio_device.name, LOST)
                self._disconnect()
        except Exception as error:
            if self._dispatcher is None:
                self._nr_failed_steps += 1
                if self._nr_failed_steps >= _FAILED_STEPS_MAX:
                    raise  # a loop that fails again and again would use up a processor
            server.service.contain("the connection", error)
            for _ in range(2):  # again if it fails, because in an open connection the peer may wait for an answer
                try:
                    self._disconnect()
                except Exception as another:
                    server.service.contain("the end of the connection", another)
                else:
                    break
            else:
                self._dispatcher = self._connection = None
        else:
            self._nr_failed_steps = 0

    def _timeout(self) -> float:
        due_ns = self._virtio_device.changes.due_ns() if self._dispatcher is not None else None
        return -1 if due_ns is None else due_ns / 1e9 + 0.001

    def _tell_changes(self) -> None:
        if self._dispatcher is not None and self._virtio_device.changes.take():
            self._dispatcher.zones_changed()
            for queue in self._dispatcher.queues:
                self._server.activate(queue)

    # -- connections ------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        try:
            connected, _ = listener.accept()
        except OSError as error:
            self._log.info("a front-end went away before it was accepted: %s", error)
            return
        try:  # the boundary of a connection that begins
            self._connect(connected)
        except Exception as error:
            if self._connection is not None:
                raise  # _step() gives the connection up
            connected.close()
            self._server.service.contain("the connection", error)

    def _connect(self, connected: socket.socket) -> None:
        """Begin to serve a front-end. Other front-ends wait in the queue of the socket until this one is gone."""
        connection = Connection(connected)
        server = self._server
        dispatcher = Dispatcher(connection, self._device, self._virtio_device, server)
        self._connection, self._dispatcher = connection, dispatcher
        server.queues = dispatcher.queues
        server.watch(connection.fileno(), partial(self._take_messages, connection))
        if self._listener is not None:
            server.unwatch(self._listener.fileno())
        self._log.info("%s: a front-end has connected", self._virtio_device.name)

    def _disconnect(self) -> None:
        """End the connection, if there is one, and accept the next front-end."""
        dispatcher, connection = self._dispatcher, self._connection
        if dispatcher is None or connection is None:
            self._listen()
            return
        with ExitStack() as ending:  # each step is done, whatever the others raise
            ending.callback(self._listen)
            ending.callback(self._count, dispatcher)
            ending.callback(dispatcher.close)
            ending.callback(self._server.unwatch, connection.fileno())
            self._server.queues = ()
        # Cleared last: if an exception ends this method, it is called again, and then stops the remaining rings.
        self._dispatcher = self._connection = None

    def _listen(self) -> None:
        """Accept the next front-end, if there is a listening socket and it is not watched already."""
        listener, server = self._listener, self._server
        if listener is not None and not server.stopping and not server.is_watched(listener.fileno()):
            server.watch(listener.fileno(), partial(self._accept, listener))

    def _count(self, dispatcher: Dispatcher) -> None:
        for queue in dispatcher.queues:
            self._nr_requests += queue.requests
            queue.requests = 0

    def _take_messages(self, connection: Connection) -> None:
        dispatcher = self._dispatcher
        assert dispatcher is not None
        try:
            while (message := connection.receive()) is not None:
                dispatcher.handle(message)
        except (PeerError, OSError) as error:  # OSError: a descriptor that is not what the message says
            self._log.info("%s: the connection ends: %s", self._virtio_device.name, error)
            self._disconnect()


def serve_in_thread(backend: Backend, name: str) -> threading.Thread:
    """Run *backend* on a thread of its own called *name*, and return the thread."""
    thread = threading.Thread(target=backend.run, name=name)
    thread.start()
    return thread
