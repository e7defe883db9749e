"""The common part of the ports of a device: machine, image, and the way of a change from one to the other.

May not know: ports, front-ends, protocols.

How a command runs: take the device's lock; let the machine decide; move the bytes; commit the change to the machine;
publish what changed to the image; answer. Nothing is changed before everything has been checked, and nothing is
answered before it would survive the death of this process.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from zonefs_emu.device.counters import Counter, Counters
from zonefs_emu.device.faults import FaultTable
from zonefs_emu.device.holds import Holds
from zonefs_emu.device.hot_path import HotPath
from zonefs_emu.device.image_access import ImageAccess
from zonefs_emu.device.listeners import Audience, Listeners
from zonefs_emu.device.refusals import RefusalLog
from zonefs_emu.device.timing import Timing
from zonefs_emu.device.unforeseen import UnforeseenErrors
from zonefs_emu.errors import CommandError, PoisonedError, Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.machine import Changes
from zonefs_emu.model.zrwa_machine import make_machine
from zonefs_emu.persist.image import LOST, Image

_T = TypeVar("_T")

log = logging.getLogger(__name__)


def _boot_time_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class DeviceCore:
    """One image, its zone machine, and the observers of both."""

    def __init__(self, image: Image) -> None:
        """Take over *image*."""
        self.image = image
        self.geometry: Geometry = image.geometry
        self.machine = make_machine(image.geometry, *image.states)
        self.lock = image.lock
        self.holds = Holds(image.lock)
        self.machine.writing = self.holds.writing.values()
        image.before_closing = partial(self.holds.wait, 0, image.geometry.nr_zones)
        self.counters = Counters(image.backing, image.header, readonly=image.readonly)
        self.refusals = RefusalLog(image.refusals)
        self.unforeseen = UnforeseenErrors(image, self.refusals, self.counters)
        for switch in (self.counters.switch, self.refusals.switch, self.refusals.listener_switch):
            switch.report_to(self.unforeseen.observer_failed)
        self.listeners = Listeners(self.unforeseen.observer_failed)
        image.poison_listener = self.listeners.notify_failure
        self.access = ImageAccess(image, self.machine, self.unforeseen.observer_failed)
        self.hot_path = HotPath(
            lock=self.lock, access=self.access, image=image, held=self.holds.held, old_extents=image.old_extents,
            rows=self.counters.rows, load_row=self.counters.load, begin_write=self.machine.begin_write,
            begin_append=self.machine.begin_append, commit_write=self.machine.commit_write, publish=image.publish,
            zone_size=self.geometry.zone_size,
        )  # fmt: skip
        self.faults = FaultTable.decode(image.load_faults(), image.faults_version)
        self._saving_faults = threading.Lock()
        self._delays_cut = threading.Event()
        #: The timing of commands, if they take as long as those of a real drive.
        self.timing: Timing | None = None
        #: Waits for an injected delay. Tests replace it.
        self.sleep_ns: Callable[[int], None] = self._sleep_ns
        #: Time in nanoseconds, the same for all processes, which counts on while the machine sleeps; tests drive their
        #: own.
        self.clock_ns: Callable[[], int] = _boot_time_ns
        self._noticing_loss = threading.Lock()
        self._is_loss_noticed = False

    # -- changing zones ---------------------------------------------------------------------------------------

    def require_writable(self, zone_no: int) -> None:
        """Raise CommandError (POISONED) if the image takes no changes. *zone_no*: of the command, -1 for all zones."""
        if self.image.poison:
            raise CommandError(Status.POISONED, zone_no)

    def wait_to_retry(self, error: CommandError) -> bool:
        """Wait for a command under way if that may help a command that was refused by *error*; with the lock held.

        Returns whether it has waited, so that the refused command is to be checked again. A zone that is being written
        to cannot be closed to make room for another one, and after its write it can.
        """
        if not self.holds.held or error.status is not Status.OPEN_RESOURCE:
            return False
        self.holds.wait_for_change()
        return True

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Return a context in which the caller changes the machine and publishes the change, with the lock held.

        An exception in it calls :meth:`take_back`, except a CommandError, which comes before any change.
        """
        try:
            yield
        except CommandError:
            raise  # a refused command has changed nothing
        except Exception:
            self.take_back()
            raise

    def take_back(self) -> None:
        """Load the machine's state from the image, after an exception in the middle of a change; with the lock held.

        The machine may be half changed: a zone may be open that no limit counts, or a write pointer may be further than
        in the image. Later commands of all front-ends would meet that. The image is in the state that a kill at this
        instant leaves, which is legal between any two lines (docs/concurrency.md). With a million zones this takes a
        fraction of a second, for which other commands wait.
        """
        machine = self.machine
        machine.take_over(machine.loaded(*self.image.published()))

    def publish(self, changes: Changes) -> None:
        """Copy the *changes* of the machine to the image; with the lock held."""
        self.image.publish_all(changes.zones)
        for zone_no in changes.closed:
            self.counters.note(zone_no, Counter.IMPLICIT_CLOSES)

    def publish_and_notify(self, changes: Changes, audience: Audience) -> None:
        """Do what :meth:`publish` does, and then notify *audience*; with the lock held."""
        changed = changes.zones
        if changed:
            self.publish(changes)
            if audience.listeners:
                self.listeners.notify_of(audience.listeners, changed)

    @contextmanager
    def holding_all(self) -> Iterator[None]:
        """Let no other command change a zone in the context, without the lock.

        Raises:
            PoisonedError: the image takes no changes.
        """
        nr_zones = self.geometry.nr_zones
        with self.lock:
            self.holds.wait(0, nr_zones)
            if self.image.poison:
                raise PoisonedError(self.image.poison)
            hold = self.holds.take(0, nr_zones)
        with self.holds.kept(hold):
            yield

    def each_under_lock(self, portions: Iterator[_T]) -> Iterator[_T]:
        """Yield *portions*, each with the lock held until the next one; let other commands run in between."""
        while True:
            with self.lock, self.changing():
                portion = next(portions, None)
                if portion is None:
                    return
                yield portion
            self.image.let_others_in()

    # -- injected faults --------------------------------------------------------------------------------------

    def save_faults(self, *, durably: bool = True) -> None:
        """Store the faults and their counts in the image: *durably*, or so that they survive a kill only.

        Raises:
            UsageError: they do not fit. PoisonedError: the host failed to write. NoSpaceError: it is full.
        """
        # Without the lock, a thread could write its older counts over the newer ones of another thread.
        with self._saving_faults:
            self.image.faults_version = self.faults.version
            self.image.save_faults(self.faults.encode(), durably=durably)

    def _sleep_ns(self, duration_ns: int) -> None:
        """Wait for *duration_ns*, or until :meth:`stop_waiting`."""
        self._delays_cut.wait(min(duration_ns / 1e9, threading.TIMEOUT_MAX))

    def stop_waiting(self) -> None:
        """Cut short injected delays and answers that a timing holds, because the process is about to end.

        This is for present and later ones. A delay may be an hour long, and the end of a daemon waits for the commands
        that are under way.
        """
        self._delays_cut.set()
        if self.timing is not None:
            self.timing.alarm.cut()

    @property
    def is_ending(self) -> bool:
        """Whether :meth:`stop_waiting` was called."""
        return self._delays_cut.is_set()

    # -- the end ----------------------------------------------------------------------------------------------

    def notice_loss(self) -> None:
        """Log once that the image's file is lost, and let reads fail as well as writes."""
        with self._noticing_loss:
            is_news, self._is_loss_noticed = not self._is_loss_noticed, True
        if not is_news:
            return
        log.error("%s", LOST)
        self.listeners.notify_failure()
        self.counters.switch.close()
        self.access.let_go()

    def look_after_image(self) -> None:
        """Check whether another program cut or overwrote the image's file; a daemon calls this periodically."""
        self.image.look_after()
        if self.image.is_lost:
            self.notice_loss()

    def require_whole(self) -> None:
        """Make sure that all bytes that were read from the image's file until now were the image's: it is not lost.

        Raises:
            PoisonedError: another program has cut or overwritten the file.
        """
        self.look_after_image()
        if self.image.is_lost:
            raise PoisonedError(LOST)

    def close(self) -> None:
        """Flush and close the image; a second call does nothing. Injected delays under way are cut short.

        Raises:
            PoisonedError: the last flush failed. NoSpaceError: the host has no room for it. The image is released.
        """
        if self.image.is_closed:
            return
        self.stop_waiting()
        self.counters.close()
        self.refusals.switch.close()
        try:
            if self.faults and not self.image.poison:
                self.save_faults()
        finally:
            # Even if the faults could not be saved: the lock of the image must not outlive this call.
            try:
                self.image.close()
            finally:
                self.access.let_go()
