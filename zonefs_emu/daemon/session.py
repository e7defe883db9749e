"""A session: one process, one image, any set of front-ends, one control socket.

The start: lock the image, open the control socket, start the front-ends one after the other, report that all are ready.
The end, by a signal (SIGTERM, SIGINT, SIGHUP) or after the last front-end has ended (an unmount): cancel the front-ends
and wait for them, remove the socket, close the image. So the image is open as long as the socket answers.

A front-end is a boundary. If it ends after its start, by itself or by any error, the log says so, ``info`` lists it as
ended, and the others go on. The control socket and the periodic tasks are boundaries as well.
"""

import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import trio

from zonefs_emu.daemon.client import BUSY_S
from zonefs_emu.daemon.control import ControlServer
from zonefs_emu.daemon.ending import EndBySignal, bounded_flush
from zonefs_emu.daemon.explainer import Explainer
from zonefs_emu.daemon.extensions import Extensions
from zonefs_emu.daemon.framing import Json
from zonefs_emu.daemon.rendezvous import connect, listen, listen_everywhere
from zonefs_emu.daemon.service_manager import notify_ready, notify_status, notify_stopping
from zonefs_emu.daemon.verbs import Verbs
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.oplog import record
from zonefs_emu.device.refusals import Refusal
from zonefs_emu.errors import ImageBusyError, UsageError, ZonedError, host_sentence
from zonefs_emu.model.transitions import Operation

#: Refusals are logged at INFO: users look for them in the log of a daemon, but need not act on them.
refusal_log = logging.getLogger("zonefs_emu.refused")
refusal_log.setLevel(logging.INFO)

#: The end of a front-end by itself is logged at INFO too, and its failure as a warning.
ended_log = logging.getLogger("zonefs_emu.ended")
ended_log.setLevel(logging.INFO)

_POLL_S: Final = 0.02
#: The mode is given with each file that a daemon creates, because its umask removes no bits.
_RECORD_MODE: Final = 0o644
#: The errors of opening a file for writing that can only be read, by its mode, file system or attributes.
_UNWRITABLE: Final = frozenset((errno.EACCES, errno.EROFS, errno.EPERM))
#: How often a daemon writes its counters. A kill loses the changes since the last time.
_COUNTERS_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A running front-end: its name, *where* it is (a mount point, a socket), and its counters."""

    name: str
    where: str
    statistics: Callable[[], Mapping[str, int]]


class FrontEnds:
    """The front-ends of a session: those that run, and those that have ended."""

    def __init__(self) -> None:
        self.running: list[Running] = []
        self.ended: list[dict[str, Json]] = []
        #: The error of the last front-end that failed.
        self.failure: Exception | None = None

    def list_running(self) -> list[Json]:
        """Return the running front-ends, with their counters."""
        return [
            {"name": running.name, "where": running.where, "statistics": dict(running.statistics())}
            for running in tuple(self.running)
        ]

    def list_ended(self) -> list[Json]:
        """Return the front-ends that have ended, with the reason of those that failed."""
        return [*self.ended]

    def sentence(self, path: Path) -> str:
        """Return the status of a session of the image *path*, as a service manager shows it."""
        running = ", ".join(f"{running.name} at {running.where}" for running in tuple(self.running))
        ended = "".join(
            f"; {each['name']} at {each['where']} has ended" + (f": {each['reason']}" if each["reason"] else "")
            for each in self.ended
        )
        return f"{path}: {running or 'no front-end'}{ended}"


class Session:
    """The argument of a front-end: the device, and the place where the front-end registers."""

    def __init__(
        self,
        device: ZonedDevice,
        path: Path,
        front_ends: FrontEnds | None = None,
        others: Sequence[ZonedDevice] = (),
    ) -> None:
        """Serve one front-end, which is one of *front_ends*."""
        self.device = device
        self.path = path
        #: The devices of further images, for a front-end that can offer several.
        self.others = others
        self._all = FrontEnds() if front_ends is None else front_ends
        #: The name and place with which the front-end registered.
        self.name, self.where = "a front-end", "nowhere"

    @contextmanager
    def register(self, name: str, where: str, statistics: Callable[[], Mapping[str, int]]) -> Iterator[None]:
        """Show a front-end in ``info`` and its counters in ``stats`` while the context lasts."""
        self.name, self.where = name, where
        running = Running(name=name, where=where, statistics=statistics)
        self._all.running.append(running)
        try:
            yield
        finally:
            self._all.running.remove(running)


class FrontEnd(Protocol):
    """Something that serves the device until it ends by itself or is cancelled.

    It calls ``task_status.started()`` once it can be used, cleans up when cancelled, and raises ZonedError or OSError
    for errors that a user can repair. An error before the start ends the session; a later one ends this front-end.
    """

    def __call__(self, session: Session, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]:
        """Serve."""
        ...


def run(
    path: Path,
    front_ends: Sequence[FrontEnd],
    extensions: Extensions,
    *,
    ready: Callable[[], None],
    owner: str,
    record_file: Path | None = None,
    readonly: bool = False,
    others: Sequence[Path] = (),
    timing: tuple[str, float] = ("none", 1.0),
) -> None:
    """Open the image *path* and run *front_ends* until they end or a signal comes; without any, until the signal.

    *others* are further images, which are opened in the same way, each with a control socket of its own.

    *readonly*: no front-end writes, so the image need not be writable for this user.

    *timing*: the preset of a drive whose times commands take, and the factor by which they are longer.

    *ready* is called when all front-ends can be used. *owner* is the name of this process in the errors of processes
    that find the image busy. The operations of the device and their answers are recorded in the new file *record_file*,
    for ``replay``. *extensions*: the rules and verbs of the front-ends of this program.

    After a signal, tasks have END_S to end, and then the last flush has FLUSH_S. If the host blocks one for longer, the
    process exits without it (:mod:`zonefs_emu.daemon.ending`).

    Raises:
        ImageError: the image cannot be opened, or its last flush failed.
        UsageError: there is no such timing preset, or no place for the control socket.
        ZonedError, OSError: the error of the last front-end that failed; or *record_file* exists or cannot be written.
    """
    with EndBySignal() as ending, ExitStack() as held:
        devices: dict[Path, ZonedDevice] = {}
        for place in (path, *others):
            opened = devices[place] = _open(place, owner, readonly=readonly)
            held.callback(_close, opened, ending)
            opened.start_timing(timing[0], scale=timing[1])
            opened.refusals.listener = _CauseLog(opened, extensions.explainer()).hear
        device = devices[path]
        if record_file is not None:
            # Line buffered, so that the file is complete after a kill.
            record_file.touch(_RECORD_MODE, exist_ok=False)
            file = record_file.open("w", encoding="utf-8", buffering=1)
            try:
                held.callback(record(device, file).close)
            except BaseException:
                file.close()
                raise
        try:
            trio.run(partial(_run, devices, front_ends, ready, ending, extensions=extensions))
        except BaseExceptionGroup as group:
            raise _innermost(group) from None


def _close(device: ZonedDevice, ending: EndBySignal) -> None:
    with bounded_flush(bounded=ending.came):
        device.close()


class _CauseLog:
    """Logs why *device* refused a request, once for each front-end, operation and rule.

    So an application that repeats a request in a loop adds one line; ``why`` shows every refusal.
    """

    def __init__(self, device: ZonedDevice, explainer: Explainer) -> None:
        self._device = device
        self._explainer = explainer
        self._heard: set[tuple[str, Operation | None, int]] = set()

    def hear(self, refusal: Refusal) -> None:
        """Log *refusal* if it is the first of its cause; called by any thread."""
        cause = (refusal.front_end, refusal.operation, refusal.rule)
        if cause not in self._heard:
            self._heard.add(cause)
            refusal_log.info("%s", self._explainer.explain_all(refusal, self._device.geometry))


def _open(path: Path, owner: str, *, readonly: bool) -> ZonedDevice:
    """Open the image, waiting for a short command that holds it, but not for another daemon.

    With *readonly*, an image that can be written is opened for writing all the same: other verbs may change it
    meanwhile.
    """
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            try:
                return ZonedDevice.open(path, owner=owner)
            except OSError as error:
                if not readonly or error.errno not in _UNWRITABLE:
                    raise
            # The lock is exclusive all the same: an image has one daemon, through which other processes use it.
            return ZonedDevice.open(path, owner=owner, readonly=True, alone=True)
        except ImageBusyError:
            peer = connect(path)
            if peer is not None:
                peer.close()
                raise
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_S)


def _innermost(error: BaseException) -> BaseException:
    """Return the first exception that is not a group: several front-ends can fail, and one sentence is shown."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _control(
    device: ZonedDevice, path: Path, known: FrontEnds, extensions: Extensions, held: ExitStack
) -> ControlServer:
    """Open the control socket of *device*; leaving *held* removes it again."""
    listener, socket_path = listen(path, backlog=16)
    held.callback(socket_path.unlink, missing_ok=True)
    verbs = Verbs(
        device, known.list_running, ended_front_ends=known.list_ended, pid=os.getpid(), path=path, extensions=extensions
    )
    verbs.import_all()
    held.callback(verbs.close)
    everywhere = listen_everywhere(path, backlog=16)
    return ControlServer(listener, verbs, *([everywhere] if everywhere else []))


async def _run(
    devices: Mapping[Path, ZonedDevice],
    front_ends: Sequence[FrontEnd],
    ready: Callable[[], None],
    ending: EndBySignal,
    *,
    extensions: Extensions,
) -> None:
    (path, device), *others = devices.items()
    known = FrontEnds()
    token = trio.lowlevel.current_trio_token()
    all_of_it = trio.CancelScope()

    def end() -> None:
        for each in devices.values():
            each.stop_waiting()
        token.run_sync_soon(all_of_it.cancel)

    with ExitStack() as held:
        servers = {each: _control(each, place, known, extensions, held) for place, each in devices.items()}
        held.callback(notify_stopping)
        with ending.watching(end), all_of_it:
            async with trio.open_nursery() as nursery:
                for each, server in servers.items():
                    nursery.start_soon(keep_counters, each)
                    await nursery.start(_serve_control, server, each)
                async with trio.open_nursery() as workers:
                    for front_end in front_ends:
                        session = Session(device, path, known, [each for _, each in others])
                        await workers.start(_serve, front_end, session, known, ending)
                    ready()
                    notify_ready(known.sentence(path))
                    if not front_ends:
                        await trio.sleep_forever()
                nursery.cancel_scope.cancel()
            if known.failure is not None:
                raise known.failure


class _Started(trio.TaskStatus[None]):
    """Reports that a front-end has started, and keeps the fact."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status
        self.done = False

    def started(self, value: None = None) -> None:
        """Report it."""
        self.done = True
        self._task_status.started(value)


async def _serve(
    front_end: FrontEnd, session: Session, known: FrontEnds, ending: EndBySignal, *, task_status: trio.TaskStatus[None]
) -> None:
    """Run *front_end*. If it fails after its start, the others go on."""
    started = _Started(task_status)
    try:
        await front_end(session, task_status=started)
    except Exception as error:  # the boundary of a front-end
        if not started.done:
            raise
        failure = known.failure = _failure_of(session, error)
        reason = host_sentence(failure) if isinstance(failure, OSError) else str(failure)
        ended_log.warning("%s at %s is not served any more: %s", session.name, session.where, reason)
        known.ended.append({"name": session.name, "where": session.where, "reason": reason})
        if ending.came:
            # After a signal, an error of a front-end's end is reported as the error of the session.
            raise failure from None
    else:
        ended_log.info("%s at %s has ended", session.name, session.where)
        known.ended.append({"name": session.name, "where": session.where, "reason": None})
    notify_status(known.sentence(session.path))


def _failure_of(session: Session, error: Exception) -> ZonedError | OSError:
    """Return the error to report for a front-end that ended by *error*; an unforeseen one is noted as such."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        if not isinstance(leaf, ZonedError | OSError):
            session.device.unforeseen.contain(session.name, f"front-end at {session.where}", leaf)
            message = f"internal error: {type(leaf).__name__}: {leaf}; the daemon's log has the traceback"
            return UsageError(message, exit_code=1)
    failure = leaves[0]
    assert isinstance(failure, ZonedError | OSError)
    return failure


def _leaves(error: Exception) -> Iterator[Exception]:
    """Yield *error*, or the exceptions in it if it is a group."""
    if isinstance(error, ExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


async def _serve_control(server: ControlServer, device: ZonedDevice, *, task_status: trio.TaskStatus[object]) -> None:
    try:
        await server.run(task_status=task_status)
    except Exception as error:  # the boundary of the control socket: the front-ends go on without it
        for leaf in _leaves(error):
            device.unforeseen.contain("cli", "the control socket", leaf)


def _look_after(device: ZonedDevice) -> None:
    device.look_after_image()
    device.counters.save()


async def keep_counters(device: ZonedDevice) -> None:
    """Write the counters of *device* periodically until cancelled, so that a kill loses few changes of them.

    The image's file is checked as well, so that a change by another program is noticed without a request.
    """
    while True:
        await trio.sleep(_COUNTERS_S)
        try:
            await trio.to_thread.run_sync(_look_after, device)
        except Exception as error:  # the boundary of a periodic task
            device.unforeseen.contain("daemon", "writing the counters", error)
