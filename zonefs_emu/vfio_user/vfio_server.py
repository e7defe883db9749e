"""The thread that serves one drive at one socket, to one client after the other.

The loop is a boundary (docs/errors.md): an exception in a turn of it that no command has contained costs the
connection. The socket then accepts the next client.
"""

import contextlib
import logging
import select
import socket
import time
from collections.abc import Callable, Container
from typing import Protocol

from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.device.unforeseen import UnforeseenErrors
from zonefs_emu.device.waker import Waker
from zonefs_emu.errors import PeerError
from zonefs_emu.vfio_user.pci_drive import PciDrive


class ServedClient(Protocol):
    """A client that is connected, and its drive."""

    drive: PciDrive

    def watch(self, poller: select.epoll) -> None:
        """Have *poller* look for what :meth:`step` has to do, from now on."""
        ...

    def step(self, ready: Container[int]) -> bool:
        """Handle messages and serve queues; True if more work is left. *ready*: the readable descriptors.

        Raises:
            PeerError: the client is gone, or breaks the protocol.
        """
        ...

    def close(self) -> None:
        """Close the connection and release the client's memory."""
        ...


class VfioServer:
    """Serves clients at *listener*, a listening socket, which is closed at the end.

    *make_client* takes over the socket of a client that has connected. It may block until its second argument, a
    descriptor, is readable, which says that :meth:`stop` was called. *client* is connected already.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_client: Callable[[socket.socket, int], ServedClient],
        unforeseen: UnforeseenErrors,
        client: ServedClient | None = None,
    ) -> None:
        self._make_client = make_client
        self._listener = listener
        self._unforeseen = unforeseen
        self._log = LimitedLog(logging.getLogger(__name__))
        self._client = client
        self._nr_commands = 0
        self._stopping = False
        self._waker = Waker()

    def stop(self) -> None:
        """End :meth:`run`; called from any thread."""
        self._stopping = True
        self._waker.wake()

    def look_after(self) -> None:
        """Keep the client from holding up the thread of :meth:`run`; from any thread, every few seconds."""
        client = self._client
        if client is not None:
            client.drive.interrupts.eventfds.free()

    def statistics(self) -> dict[str, int]:
        """Return the counters of the front-end."""
        client = self._client
        commands = self._nr_commands + (client.drive.nr_commands if client is not None else 0)
        return {"connected": int(client is not None), "commands": commands}

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        self._listener.settimeout(0)
        try:
            while not self._stopping:
                if self._client is None:
                    self._wait(self._listener.fileno())
                    self._accept()
                else:
                    self._serve(self._client)
        finally:
            with contextlib.ExitStack() as ending:
                ending.callback(self._waker.close)
                ending.callback(self._listener.close)
                ending.callback(self._disconnect)

    def _wait(self, *fds: int) -> None:
        poller = select.poll()
        for fd in (self._waker.fd, *fds):
            poller.register(fd, select.POLLIN)
        poller.poll()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            self._log.info("a client went away before it was accepted: %s", error)
            return
        try:  # the boundary of a connection that begins
            self._client = self._make_client(sock, self._waker.fd)
        except PeerError as error:
            self._log.info("a client went away at once: %s", error)
        except OSError as error:
            self._log.warning("no keeper can be started for a client: %s", error)
        except Exception as error:
            sock.close()
            self._unforeseen.contain("nvme", "a connection that begins", error)

    def _serve(self, client: ServedClient) -> None:
        poller = select.epoll()
        try:  # the boundary of a connection
            poller.register(self._waker.fd, select.EPOLLIN)
            client.watch(poller)
            ready: list[int] = []
            while not self._stopping:
                is_busy = client.step(ready)
                asleep_ns = time.monotonic_ns()
                ready = [fd for fd, _ in poller.poll(0 if is_busy else None)]
                if not is_busy:
                    client.drive.polling.waited(time.monotonic_ns() - asleep_ns)
        except PeerError as error:
            self._log.info("the connection ends: %s", error)
        except Exception as error:
            self._unforeseen.contain("nvme", "a connection", error)
        finally:
            poller.close()
            self._disconnect()

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        self._nr_commands += client.drive.nr_commands
        try:  # the boundary of a connection that ends
            client.close()
        except Exception as error:
            self._unforeseen.contain("nvme", "the end of a connection", error)
