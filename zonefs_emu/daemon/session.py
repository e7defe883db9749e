"""A session: one process, one image, any set of front-ends, one control socket.

Order of things. Start: lock the image, open the control socket, start the front-ends one after the other, be ready.
End, by a signal (SIGTERM, SIGINT, SIGHUP), by the last front-end coming to its end (an unmount), or by an error: cancel
the front-ends and wait for them, take the socket away, close the image. So as long as the socket answers, the image is
there.
"""

import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import trio

from zonefs_emu.daemon.answers import answers, sentence
from zonefs_emu.daemon.client import BUSY_S
from zonefs_emu.daemon.control import ControlServer
from zonefs_emu.daemon.framing import Json
from zonefs_emu.daemon.rendezvous import connect, listen
from zonefs_emu.daemon.verbs import Verbs
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.oplog import record
from zonefs_emu.device.refusals import Refusal
from zonefs_emu.device.rules import Rule
from zonefs_emu.errors import ImageBusyError
from zonefs_emu.model.transitions import Operation

#: Refusals are the news that users of a daemon look for in its log, and nothing that a person must act on.
refusal_log = logging.getLogger("zonefs_emu.refused")
refusal_log.setLevel(logging.INFO)

_POLL_S: Final = 0.02
#: How often a daemon writes its counters: what a kill may cost of them.
_COUNTERS_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A front-end at work. *where* it can be found (a mount point, a socket); its counters."""

    name: str
    where: str
    statistics: Callable[[], Mapping[str, int]]


class Session:
    """What a front-end gets: the device, and the place where it makes itself known."""

    def __init__(self, device: ZonedDevice, path: Path) -> None:
        self.device = device
        self.path = path
        self._running: list[Running] = []

    @contextmanager
    def register(self, name: str, where: str, statistics: Callable[[], Mapping[str, int]]) -> Iterator[None]:
        """Show a front-end in ``info`` and its counters in ``stats`` for the time of the context."""
        running = Running(name=name, where=where, statistics=statistics)
        self._running.append(running)
        try:
            yield
        finally:
            self._running.remove(running)

    def front_ends(self) -> list[Json]:
        """Return the front-ends at work, with their counters."""
        return [
            {"name": running.name, "where": running.where, "statistics": dict(running.statistics())}
            for running in self._running
        ]


class FrontEnd(Protocol):
    """Something that serves the device until it ends by itself or is cancelled.

    It calls ``task_status.started()`` once it can be used, cleans up when cancelled, and raises a ZonedError or OSError
    for what a user can mend.
    """

    def __call__(self, session: Session, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]:
        """Serve."""
        ...


def run(
    path: Path,
    front_ends: Sequence[FrontEnd],
    *,
    ready: Callable[[], None],
    owner: str,
    record_file: Path | None = None,
) -> None:
    """Open the image *path* and run *front_ends* until they end or a signal comes; without any, until the signal.

    *ready* is called when all can be used. *owner* is what others are told who find the image busy. What is asked of
    the device, and answered, goes to the new file *record_file*, for ``replay``.

    Raises:
        ImageError: the image cannot be opened, or its last flush failed.
        ZonedError, OSError: what a front-end raised, or *record_file* cannot be written or exists.
    """
    with ExitStack() as held:
        device = _open(path, owner)
        held.callback(device.close)
        device.refusals.listener = _CauseLog(device).hear
        if record_file is not None:
            # Line by line, so that all is there of a daemon that was killed.
            record(device, held.enter_context(record_file.open("x", encoding="utf-8", buffering=1)))
        try:
            trio.run(_run, Session(device, path), front_ends, ready)
        except BaseExceptionGroup as group:
            raise _innermost(group) from None


class _CauseLog:
    """Says why *device* refused something, once for each front-end, operation and rule.

    An application in a loop says it only once, and ``why`` knows the others.
    """

    def __init__(self, device: ZonedDevice) -> None:
        self._device = device
        self._heard: set[tuple[str, Operation | None, Rule]] = set()

    def hear(self, refusal: Refusal) -> None:
        """Log *refusal* if it is the first of its cause; called by any thread."""
        cause = (refusal.front_end, refusal.operation, refusal.rule)
        if cause not in self._heard:
            self._heard.add(cause)
            refusal_log.info("%s; %s", self._device.explain(refusal), sentence(answers(refusal)))


def _open(path: Path, owner: str) -> ZonedDevice:
    """Open the image, waiting for a short command that holds it, but not for another daemon."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            return ZonedDevice.open(path, owner=owner)
        except ImageBusyError:
            peer = connect(path)
            if peer is not None:
                peer.close()
                raise
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_S)


def _innermost(error: BaseException) -> BaseException:
    """Return the first exception that is not a group: several front-ends can fail, one sentence is shown."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _run(session: Session, front_ends: Sequence[FrontEnd], ready: Callable[[], None]) -> None:
    listener, socket_path = listen(session.path, backlog=16)
    server = ControlServer(listener, Verbs(session.device, session.front_ends, pid=os.getpid(), path=session.path))
    try:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
                nursery.start_soon(keep_counters, session.device)
                await nursery.start(server.run)
                async with trio.open_nursery() as workers:
                    for front_end in front_ends:
                        await workers.start(front_end, session)
                    ready()
                    if not front_ends:
                        await trio.sleep_forever()
                nursery.cancel_scope.cancel()
    finally:
        with suppress(FileNotFoundError):
            socket_path.unlink()


async def keep_counters(device: ZonedDevice) -> None:
    """Write the counters of *device* now and then, until cancelled: a daemon may be killed, and they are to last."""
    while True:
        await trio.sleep(_COUNTERS_S)
        await trio.to_thread.run_sync(device.counters.save)


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
