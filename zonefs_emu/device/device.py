"""ZonedDevice: one image and its zone machine, behind a façade that never raises for a refused command.

May not know: front-ends, protocols, event loops. Sync and thread safe.

How a command runs: take the device's lock; let the machine decide; move the bytes; tell the machine; publish what
changed to the image; answer. Nothing is changed before everything has been checked, and nothing is answered before
it would survive the death of this process.

What takes long lets go of the lock in between, and keeps others off its zones by a hold (:mod:`holds`): no command has
the lock for longer than some milliseconds, whatever the number of zones and bytes.

Reads take no lock: they look at one zone's condition and write pointer, and a read that runs beside a reset may see the
zone before or after it, as on a drive.
"""

import errno
import logging
import sys
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar
from uuid import UUID
from weakref import WeakSet

from zonefs_emu.device.buffers import carve, total_bytes
from zonefs_emu.device.counters import Counter, Counters
from zonefs_emu.device.faults import Effect, Fault, FaultTable
from zonefs_emu.device.holds import Hold, Holds
from zonefs_emu.device.refusals import NR_HOLDERS_MAX, Refusal, RefusalLog, now_ns
from zonefs_emu.device.rules import RULE_OF_STATUS, DeviceRule, Rule
from zonefs_emu.device.switch import Switch
from zonefs_emu.device.unforeseen import UnforeseenErrors
from zonefs_emu.errors import CommandError, ImageError, NoSpaceError, PoisonedError, Status, UsageError
from zonefs_emu.model.geometry import Geometry, merge_runs
from zonefs_emu.model.machine import Changes, ZoneMachine
from zonefs_emu.model.scan import indices_of
from zonefs_emu.model.transitions import Dialect, Operation, WriteRow
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, OPEN_CONDITIONS, Condition, Zone
from zonefs_emu.persist.backing import is_full
from zonefs_emu.persist.codec.words import check_words, pack_words, unpack_words
from zonefs_emu.persist.image import LOST, Image
from zonefs_emu.persist.metadata import create_image
from zonefs_emu.persist.pending_resets import PORTION_ZONES
from zonefs_emu.units import SECTOR_SHIFT, Sector

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from zonefs_emu.device.intent_log import Intents

_T = TypeVar("_T")

#: Called with (first zone_no, number of zones) after a change of zones by another port is in the image: quick, thread
#: safe. The device's lock is held: a listener notes what it was told and calls nothing of the device. One that raises
#: is an observer that failed, and is not called again.
Listener: TypeAlias = Callable[[int, int], None]

#: Called with (byte offset, bytes) of what is about to be written to the image, with the device's lock held.
WriteHook: TypeAlias = Callable[[int, int], None]

#: What an intent log is told instead of a number of sectors for a change of all zones at once.
ALL_ZONES: Final = (1 << 32) - 1

#: The host failed, or is full: both carry the status of the answer.
_HOST_ERRORS: Final = (PoisonedError, NoSpaceError)
#: A longer write moves its bytes without the lock.
_LONG_WRITE_SECTORS: Final = 2048
_LIMITS: Final = frozenset((Status.OPEN_RESOURCE, Status.ACTIVE_RESOURCE))
#: The most buffers that preadv and pwritev take at once (UIO_MAXIOV); with more they fail.
_IOV_MAX: Final = 1024
#: Listeners are told of every run of changed zones, or where more zones than this changed, of all that lies between.
_RUNS_MAX: Final = 64
#: Zones whose states are copied or counted while the lock is held: for less than a millisecond.
_SCAN_PORTION: Final = 1 << 16
#: What is stored where a read finds no data.
_ZEROS: Final = memoryview(bytes(1 << 20))

#: The order in which many zones are published: those first that give resources back.
_PUBLISHING_ORDER: Final = {
    cond: 2 if cond in OPEN_CONDITIONS else 1 if cond in ACTIVE_CONDITIONS else 0 for cond in Condition
}
_MANAGEMENT_COUNTER: Final = {
    Operation.OPEN: Counter.OPENS,
    Operation.CLOSE: Counter.CLOSES,
    Operation.FINISH: Counter.FINISHES,
    Operation.RESET: Counter.RESETS,
}
# Looked up once: a member of an enumeration costs more than a global name, and as an index a call.
_OK: Final = Status.OK
_READS: Final = int(Counter.READS)
_READ_SECTORS: Final = int(Counter.READ_SECTORS)
_WRITES: Final = int(Counter.WRITES)
_WRITTEN_SECTORS: Final = int(Counter.WRITTEN_SECTORS)
_APPENDS: Final = int(Counter.APPENDS)


def _unreadable(sector: Sector, nr_sectors: int, dialect: Dialect) -> int:  # noqa: ARG001  (the machine's signature)
    """Stand in for the machine's check_read once the device is closed."""
    raise CommandError(Status.IO_ERROR)


log = logging.getLogger(__name__)


class ZonedDevice:
    """One image, opened by one process. Front-ends work through :meth:`port`."""

    def __init__(self, image: Image) -> None:
        """Take over *image*."""
        self.image = image
        self.geometry: Geometry = image.geometry
        self.machine = ZoneMachine(image.geometry, image.conds, image.wps)
        self.lock = image.lock
        self.holds = Holds(image.lock)
        self.machine.writing = self.holds.writing.values()
        image.before_closing = partial(self.holds.wait, 0, image.geometry.nr_zones)
        self.counters = Counters(image.backing, image.header, readonly=image.readonly)
        self.refusals = RefusalLog(image.refusals)
        self.unforeseen = UnforeseenErrors(image, self.refusals, self.counters)
        for switch in (self.counters.switch, self.refusals.switch, self.refusals.listener_switch):
            switch.report_to(self.unforeseen.observer_failed)
        self.faults = FaultTable.decode(image.load_faults(), image.faults_version)
        self._saving_faults = threading.Lock()
        self._delays_cut = threading.Event()
        #: The clock that injected delays wait on; tests drive their own.
        self.sleep_ns: Callable[[int], None] = self._sleep_ns
        # Weak: who makes a port for one request need not give it back. The lock is for this and the listeners.
        self._ports: WeakSet[Port] = WeakSet()
        self._subscribing = threading.Lock()
        self._is_loss_noticed = False
        #: How the ports write to the image; see :meth:`add_write_hook`.
        self.pwritev = image.backing.pwritev
        self._write_hooks: list[tuple[WriteHook, Switch, Callable[[Exception], None]]] = []
        #: What :meth:`port` makes: an operation log puts its recording ports here.
        self.port_factory: Callable[[str, Dialect], Port] = partial(Port, self)
        self._listeners: list[tuple[Port | None, Listener]] = []

    @classmethod
    def create(cls, path: Path, geometry: Geometry, *, uuid: UUID, label: str = "") -> None:
        """Create the image *path*; see :func:`zonefs_emu.persist.metadata.create_image`."""
        create_image(path, geometry, uuid=uuid, label=label)

    @classmethod
    def open(
        cls, path: Path, *, readonly: bool = False, alone: bool = False, owner: str = "zonefs-emu"
    ) -> "ZonedDevice":
        """Open the image *path*; see :meth:`zonefs_emu.persist.image.Image.open`."""
        image = Image.open(path, readonly=readonly, alone=alone, owner=owner)
        try:
            return cls(image)
        except BaseException as error:
            # Whatever it is: the lock goes, and the image is left as after a stop in order.
            with suppress(ImageError):
                image.close()
            if isinstance(error, ImageError):
                error.path = str(path)
            raise

    @property
    def uuid(self) -> UUID:
        """The image's own UUID, drawn at creation."""
        return self.image.header.uuid

    @property
    def label(self) -> str:
        """The image's label."""
        return self.image.header.label

    @property
    def nr_open(self) -> int:
        """Number of open zones."""
        return self.machine.nr_open

    @property
    def nr_active(self) -> int:
        """Number of active zones: open or CLOSED."""
        return self.machine.nr_active

    def port(self, name: str, dialect: Dialect) -> "Port":
        """Return a hold on the device for the front-end *name* (up to 24 bytes), which speaks *dialect*."""
        port = self.port_factory(name, dialect)
        with self._subscribing:
            self._ports.add(port)
            self._spread_listeners()
        if self.image.is_lost:
            port.let_go()
        return port

    def subscribe(self, listener: Listener, *, port: "Port | None" = None) -> None:
        """Call *listener* after any port but *port* changed zones, until it raises or :meth:`unsubscribe`."""
        with self._subscribing:
            self._listeners.append((port, listener))
            self._spread_listeners()

    def unsubscribe(self, listener: Listener) -> None:
        """Stop calling *listener*."""
        with self._subscribing:
            self._listeners = [entry for entry in self._listeners if entry[1] != listener]
            self._spread_listeners()

    def tell(self, listeners: Sequence[Listener], zone_no: int, nr_zones: int) -> None:
        """Tell *listeners* that *nr_zones* zones from *zone_no* on have changed; with the lock held. Never raises."""
        for listener in listeners:
            try:
                listener(zone_no, nr_zones)
            except Exception as error:  # the boundary of observers
                owners = [port.name for port, other in self._listeners if other == listener and port is not None]
                self.unsubscribe(listener)
                self.unforeseen.observer_failed(f"the zone listener of {owners[0] if owners else 'the device'}", error)

    def _tell_all(self) -> None:
        """Tell every listener that all zones may have changed; with the lock held."""
        self.tell([listener for _, listener in self._listeners], 0, self.geometry.nr_zones)

    def add_write_hook(
        self,
        hook: WriteHook,
        *,
        observer: str,
        failed: Callable[[Exception], None],
        begin: Callable[[], None] | None = None,
    ) -> None:
        """Call *hook* before each write to the image, until :meth:`remove_write_hook`.

        Both *hook* and *begin*, which is called after the last write that *hook* does not see, are called with the lock
        held, for long writes too. A hook looks at what is about to be overwritten. If it raises, the write goes on,
        *hook* is not called again, *observer* is reported as switched off, and *failed* is called with the error.
        """
        switch = Switch(observer)
        switch.report_to(self.unforeseen.observer_failed)
        with self.lock:
            self.holds.wait(0, self.geometry.nr_zones)
            with self._subscribing:
                if begin is not None:
                    begin()
                self._write_hooks.append((hook, switch, failed))
                self._spread_write_hooks()

    def remove_write_hook(self, hook: WriteHook) -> None:
        """Have ports write past *hook* again; without it, do nothing."""
        with self.lock, self._subscribing:
            self._write_hooks = [entry for entry in self._write_hooks if entry[0] != hook]
            self._spread_write_hooks()

    def _spread_write_hooks(self) -> None:
        self.pwritev = self._pwritev_hooked if self._write_hooks else self.image.backing.pwritev
        for port in self._ports:
            port.pwritev = self.pwritev
            port.short_sectors = self._short_sectors

    @property
    def _short_sectors(self) -> int:
        """The longest write that moves its bytes with the lock held: any, while there are hooks."""
        return sys.maxsize if self._write_hooks else _LONG_WRITE_SECTORS

    def _pwritev_hooked(self, buffers: "Sequence[Buffer]", offset: int) -> int:
        """Stand in for the image's pwritev while there are hooks."""
        for hook, switch, failed in reversed(self._write_hooks):
            if switch.error is None:
                try:
                    hook(offset, sum(memoryview(buffer).nbytes for buffer in buffers))
                except Exception as error:  # the boundary of observers
                    switch.put_off(error)
                    failed(error)
        return self.image.backing.pwritev(buffers, offset)

    def _spread_listeners(self) -> None:
        for port in self._ports:
            # A new tuple: another thread may be going through the old one.
            port.listeners = tuple(listener for owner, listener in self._listeners if owner is not port)

    def statistics(self) -> dict[str, int]:
        """Return nr_open and nr_active, and what was counted since the image was created, by the counters' names."""
        return {"nr_open": self.nr_open, "nr_active": self.nr_active, **self.counters.totals()}

    def inject(self, fault: Fault) -> Fault:
        """Add *fault*, from now on and across restarts; returns it with its id.

        Raises:
            UsageError: there are too many. PoisonedError: the host failed to write. NoSpaceError: it is full.
        """
        self.faults.add(fault)
        try:
            self.save_faults()
        except UsageError:  # it does not fit beside what is kept of a later version
            self.faults.remove(fault.id)
            raise
        return fault

    def remove_fault(self, fault_id: int) -> None:
        """Remove a fault.

        Raises:
            UsageError: there is none of that id. PoisonedError: the host failed to write. NoSpaceError: it is full.
        """
        self.faults.remove(fault_id)
        self.save_faults()

    def save_faults(self, *, durably: bool = True) -> None:
        """Keep the faults, and how often each has matched, in the image: *durably*, or through a kill only.

        Raises:
            PoisonedError: the host failed to write. NoSpaceError: it is full.
        """
        # Of two threads the one that counted later must not be the first to write.
        with self._saving_faults:
            self.image.faults_version = self.faults.version
            self.image.save_faults(self.faults.encode(), durably=durably)

    def power_cycle(self) -> None:
        """Do what cutting and restoring power does to a drive that had flushed: open zones come back closed, or empty.

        Raises:
            PoisonedError: the host failed to write. NoSpaceError: it is full.
        """
        self.image.flush()
        with self._holding_all():
            for _, changes in self._each_under_lock(self.machine.begin_power_cycle()):
                self.publish(changes)
            with self.lock:
                self._tell_all()
        self.counters.device[Counter.POWER_CYCLES] += 1
        self.image.flush()

    @contextmanager
    def _holding_all(self) -> Iterator[None]:
        """Keep all commands that change something off, without the lock.

        Raises:
            PoisonedError: the image takes no changes.
        """
        nr_zones = self.geometry.nr_zones
        with self.lock:
            self.holds.wait(0, nr_zones)
            if self.image.poison:
                raise PoisonedError(self.image.poison)
            hold = self.holds.take(0, nr_zones)
        try:
            yield
        finally:
            with self.lock:
                self.holds.give_back(hold)

    def _each_under_lock(self, portions: Iterator[_T]) -> Iterator[_T]:
        """Go through *portions*: each, and what the caller does after it, with the lock held; let others in between."""
        while True:
            with self.lock, self.changing():
                portion = next(portions, None)
                if portion is None:
                    return
                yield portion
            self.image.let_others_in()

    def save_zones(self) -> bytes:
        """Return the state of all zones at one instant: for each 8 bytes, sectors with data · 16 + condition."""
        nr_zones = self.geometry.nr_zones
        # Memory that was touched before: only copying is done under the lock.
        conds, wps = bytearray(b"\1") * nr_zones, array("Q", b"\1" * 8 * nr_zones)
        with self.lock:
            conds[:] = self.machine.conds
            wps[:] = self.machine.wps
        return pack_words(conds, wps)

    def load_zones(self, words: bytes) -> None:
        """Put all zones into the states that :meth:`save_zones` gave, of a device of the same geometry.

        For other commands that is one instant. Waits for a checkpoint and for commands that are under way.

        Raises:
            CorruptImageError: a state is impossible in this geometry; nothing has changed.
            CommandError: more zones are open or active than may be; nothing has changed.
            PoisonedError: the image takes no changes.
        """
        conds, wps = unpack_words(words)
        check_words(self.geometry, conds, wps, what="zone states to load", offset=0)
        loaded = self.machine.loaded(conds, wps)
        # Between checkpoints: at its end each gives back the space of zones that had been reset when it began, and here
        # they may get their data back.
        with self.image.between_checkpoints(), self._holding_all():
            # Nothing changes meanwhile, so no lock is needed to look.
            machine = self.machine
            changed = [
                zone_no
                for zone_no, (cond, wp) in enumerate(zip(conds, wps, strict=True))
                if machine.conds[zone_no] != cond or machine.wps[zone_no] != wp
            ]
            # If the process is killed while they are published, no more zones are open or active than may be.
            changed.sort(key=lambda zone_no: _PUBLISHING_ORDER[Condition(conds[zone_no])])
            with self.lock, self.changing():
                machine.take_over(loaded)
            for _ in self._each_under_lock(self._publishing(changed)):
                pass
            with self.lock:
                self._tell_all()

    def _publishing(self, zone_numbers: Sequence[int]) -> Iterator[int]:
        """Publish in portions, each of which yields how many are done."""
        for first in range(0, len(zone_numbers), PORTION_ZONES):
            self.image.publish_all(zone_numbers[first : first + PORTION_ZONES])
            yield first

    def _sleep_ns(self, duration_ns: int) -> None:
        """Wait for *duration_ns*, or until :meth:`stop_waiting`."""
        self._delays_cut.wait(duration_ns / 1e9)

    def stop_waiting(self) -> None:
        """Cut injected delays short from now on, those under way and those to come: the process is about to end.

        A delay may be an hour long, and the end of a daemon waits for the commands that are under way.
        """
        self._delays_cut.set()

    def look_after_image(self) -> None:
        """Notice it if another program cut or overwrote the image's file; a daemon calls this now and then."""
        self.image.look_after()
        if self.image.is_lost:
            self.notice_loss()

    def notice_loss(self) -> None:
        """Say once that the image's file is lost, and let reads fail as well as writes."""
        with self._subscribing:
            is_news, self._is_loss_noticed = not self._is_loss_noticed, True
        if not is_news:
            return
        log.error("%s", LOST)
        self.counters.switch.close()
        for port in list(self._ports):
            port.let_go()

    def close(self) -> None:
        """Flush and let the image go; a second time does nothing. Injected delays under way are cut short.

        Raises:
            PoisonedError: the last flush failed.
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
            # Also where the faults could not be kept: the lock is not to outlive this call.
            try:
                self.image.close()
            finally:
                for port in self._ports:
                    port.let_go()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Change the machine and publish that in the context, with the lock held; see :meth:`take_back`."""
        try:
            yield
        except CommandError:
            raise  # a refused command has changed nothing
        except Exception:
            self.take_back()
            raise

    def take_back(self) -> None:
        """Bring the machine back to what the image has: after an exception in mid-change, with the lock held.

        The machine may be half changed: a zone open that no limit counts, a write pointer that a kill would lose. Every
        later command of any front-end would meet that. What the image has is what a kill at this instant leaves, and
        that is a legal state between any two lines (docs/concurrency.md). With a million zones it takes a fraction of a
        second, for which a bug holds up other commands.
        """
        machine = self.machine
        machine.take_over(machine.loaded(*self.image.published()))

    def publish(self, changes: Changes) -> None:
        """Copy what the machine has changed to the image; with the lock held."""
        self.image.publish_all(changes.zones)
        for zone_no in changes.closed:
            self.counters.note(zone_no, Counter.IMPLICIT_CLOSES)


class Port:
    """One front-end's hold on the device: its name for the log, its dialect, and every command.

    Commands return a Status (OK is falsy) and never raise for what a host does wrong. Sectors everywhere; *buffers* are
    sequences of buffers of nr_sectors · 512 bytes in total.
    """

    def __init__(self, device: ZonedDevice, name: str, dialect: Dialect) -> None:
        """Use :meth:`ZonedDevice.port`."""
        self.device = device
        self.name = name
        self.dialect = dialect
        self.geometry = device.geometry
        self.listeners: tuple[Listener, ...] = ()
        self.last_refusal: Refusal | None = None
        #: Called in place of the device's sleep_ns with the length of an injected delay, where the front-end is itself
        #: able to answer later; the command is carried out at once then.
        self.defer: Callable[[int], None] | None = None
        #: Who keeps a record of this port's changes, where requests come again after a crash.
        self.intents: Intents | None = None
        # What the read and write paths need, so that they look up one name where a chain would be three.
        self._lock: threading.Lock = device.lock
        self._holds = device.holds
        self._held = device.holds.held
        self._image = device.image
        self._machine = device.machine
        self._zone_size = device.geometry.zone_size
        self._nr_zones = device.geometry.nr_zones
        self._faults = device.faults.faults
        self._rows = device.counters.rows
        self._load_row = device.counters.load
        self._on_write = dialect.on_write
        self._on_append = dialect.on_append
        self._old_extents = device.image.old_extents
        self._publish = device.image.publish
        self._tell = device.tell
        self._check_read = device.machine.check_read
        self._begin_write = device.machine.begin_write
        self._commit_write = device.machine.commit_write
        self._preadv = device.image.backing.preadv
        self.pwritev = device.pwritev
        #: The longest write that moves its bytes with the lock held.
        self.short_sectors = _LONG_WRITE_SECTORS

    def let_go(self) -> None:
        """Refuse reads from now on: the device is closed. Writes are refused by the image."""
        self._check_read = _unreadable

    # -- data -------------------------------------------------------------------------------------------------

    def read(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> Status:
        """Fill *buffers* with *nr_sectors* from *sector*; what lies beyond a write pointer reads as zeros.

        Returns OUT_OF_RANGE, UNALIGNED, ZONE_OFFLINE, READ_BOUNDARY or IO_ERROR; *buffers* are then undefined.
        """
        if self._faults and (status := self._injected(Operation.READ, sector, nr_sectors)):
            return status
        try:
            readable = self._check_read(sector, nr_sectors, self.dialect)
        except CommandError as error:
            return self._refused(Operation.READ, error, sector, nr_sectors)
        if readable < 0:
            return self._read_across(sector, nr_sectors, buffers)
        try:
            zone_no = sector // self._zone_size
            row = self._rows.get(zone_no) or self._load_row(zone_no)
            row[_READS] += 1
            row[_READ_SECTORS] += nr_sectors
            if readable == nr_sectors and len(buffers) <= _IOV_MAX:
                done = self._preadv(buffers, sector << SECTOR_SHIFT)
                if done == nr_sectors << SECTOR_SHIFT:
                    return _OK
            self._read_slowly(sector, readable, buffers)
        except OSError as error:
            return self._failed(Operation.READ, error, sector, nr_sectors)
        return Status.OK

    def _read_slowly(self, sector: Sector, readable: int, buffers: "Sequence[Buffer]") -> None:
        """Fill *buffers* piece by piece: *readable* sectors from the image, zeros after them."""
        offset = sector << SECTOR_SHIFT
        end = offset + (readable << SECTOR_SHIFT)
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            while view and offset < end:
                done = self._preadv([view[: end - offset]], offset)
                if not done:
                    raise OSError(errno.EIO, "the image ended early")
                view = view[done:]
                offset += done
            while view:
                count = min(len(view), len(_ZEROS))
                view[:count] = _ZEROS[:count]
                view = view[count:]

    def _read_across(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> Status:
        """Read zone by zone; each counts as a read of its own."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        done = 0
        while done < nr_sectors:
            at = sector + done
            zone_no, offset = divmod(at, self._zone_size)
            part = min(self._zone_size - offset, nr_sectors - done)
            try:
                readable = self._machine.check_read(at, part, self.dialect)
                row = self._rows.get(zone_no) or self._load_row(zone_no)
                row[_READS] += 1
                row[_READ_SECTORS] += part
                self._read_slowly(at, readable, carve(views, done << SECTOR_SHIFT, (done + part) << SECTOR_SHIFT))
            except CommandError as error:
                return self._refused(Operation.READ, error, at, part)
            except OSError as error:
                return self._failed(Operation.READ, error, at, part)
            done += part
        return Status.OK

    def write(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> Status:
        """Write *buffers*, *nr_sectors* in total, at *sector*.

        Returns OUT_OF_RANGE, UNALIGNED, ZONE_READONLY, ZONE_OFFLINE, ZONE_FULL, ZONE_BOUNDARY, UNALIGNED_WP,
        ACTIVE_RESOURCE, OPEN_RESOURCE: nothing has changed then. NO_SPACE: wp has not moved; with room the same write
        succeeds. IO_ERROR, POISONED: wp has not moved, and the device takes no further writes.
        """
        if self.intents and (answer := self.intents.answer(self, Operation.WRITE, sector, nr_sectors)):
            return answer[0]
        if self._faults and (status := self._injected(Operation.WRITE, sector, nr_sectors, buffers)):
            return status
        return self._write(sector, nr_sectors, buffers)

    def _write(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> Status:
        hold: Hold | None = None
        while True:
            with self._lock:
                if self._held:
                    self._wait_for_zones(sector, nr_sectors)
                try:
                    zone_no = self._begin_write(sector, nr_sectors, self.dialect)
                except CommandError as error:
                    if self._held and self._may_change(error):
                        continue
                    return self._refused(Operation.WRITE, error, sector, nr_sectors)
                if self._image.poison:
                    return self._refused(Operation.WRITE, CommandError(Status.POISONED, zone_no), sector, nr_sectors)
                if not nr_sectors:  # an empty write is checked like any other, and then there is nothing to do
                    return _OK
                if not self._old_extents[zone_no] or not self._image.has_pending_reset(zone_no):
                    if nr_sectors <= self.short_sectors:
                        status = self._write_now(self._on_write, zone_no, sector, nr_sectors, buffers)
                    else:
                        hold = self._begin_long(self._on_write, zone_no, sector, nr_sectors)
                    break
            # The zone was reset, and its old data must not be overwritten before that is durable. Settling takes the
            # lock itself, so the command starts again after it.
            if status := self._apply_pending_resets(Operation.WRITE, sector, nr_sectors):
                return status
        if hold is not None:
            try:
                status = self._write_long(self._on_write, hold, sector, nr_sectors, buffers)
            finally:
                with self._lock:
                    self._holds.give_back(hold)
        if not status:
            if self._image.is_lost:
                return self._lost(Operation.WRITE, sector, nr_sectors, zone_no)
            row = self._rows.get(zone_no) or self._load_row(zone_no)
            row[_WRITES] += 1
            row[_WRITTEN_SECTORS] += nr_sectors
        return status

    def append(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> tuple[Status, Sector]:
        """Append *buffers*, *nr_sectors* in total, to the zone that starts at *sector*.

        Returns (OK, the sector where they landed), or a status as :meth:`write` gives, and CONVENTIONAL,
        NOT_ZONE_START, APPEND_LIMIT, with *sector*.
        """
        if self.intents and (answer := self.intents.answer(self, Operation.APPEND, sector, nr_sectors)):
            return answer
        if self._faults and (status := self._injected(Operation.APPEND, sector, nr_sectors, buffers)):
            return status, sector
        return self._append(sector, nr_sectors, buffers)

    def _append(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> tuple[Status, Sector]:
        zone_no = sector // self._zone_size
        hold: Hold | None = None
        while True:
            with self._lock:
                if self._held:
                    self._holds.wait(zone_no, zone_no + 1)
                try:
                    landing = self._machine.begin_append(sector, nr_sectors, self.dialect)
                except CommandError as error:
                    if self._held and self._may_change(error):
                        continue
                    return self._refused(Operation.APPEND, error, sector, nr_sectors), sector
                if self._image.poison:
                    poisoned = CommandError(Status.POISONED, zone_no)
                    return self._refused(Operation.APPEND, poisoned, sector, nr_sectors), sector
                if not nr_sectors:
                    return _OK, landing
                if not self._old_extents[zone_no] or not self._image.has_pending_reset(zone_no):
                    if nr_sectors <= self.short_sectors:
                        status = self._write_now(self._on_append, zone_no, landing, nr_sectors, buffers)
                    else:
                        hold = self._begin_long(self._on_append, zone_no, landing, nr_sectors)
                    break
            if status := self._apply_pending_resets(Operation.APPEND, sector, nr_sectors):
                return status, sector
        if hold is not None:
            try:
                status = self._write_long(self._on_append, hold, landing, nr_sectors, buffers)
            finally:
                with self._lock:
                    self._holds.give_back(hold)
        if not status:
            if self._image.is_lost:
                return self._lost(Operation.APPEND, landing, nr_sectors, zone_no), sector
            row = self._rows.get(zone_no) or self._load_row(zone_no)
            row[_APPENDS] += 1
            row[_WRITTEN_SECTORS] += nr_sectors
        return status, landing

    def _write_now(
        self,
        row: WriteRow,
        zone_no: int,
        sector: Sector,
        nr_sectors: int,
        buffers: "Sequence[Buffer]",
    ) -> Status:
        """Move the bytes, then wp: with the lock held, after the machine has agreed."""
        intent_log = self.intents.current.log if self.intents else None
        if intent_log:
            intent_log.begin(row.operation, sector, nr_sectors, 0)
        try:
            done = self.pwritev(buffers, sector << SECTOR_SHIFT) if len(buffers) <= _IOV_MAX else 0
            if done != nr_sectors << SECTOR_SHIFT:
                self._write_rest(sector, nr_sectors, buffers, done)
        except OSError as error:
            if intent_log:
                intent_log.abort()
            return self._failed(row.operation, error, sector, nr_sectors)
        self._commit(row, zone_no, nr_sectors)
        if intent_log:
            intent_log.commit()
        return _OK

    def _commit(self, row: WriteRow, zone_no: int, nr_sectors: int) -> None:
        """Advance wp over what was written; with the lock held."""
        try:  # device.changing(), which a write cannot afford
            changes = self._commit_write(zone_no, nr_sectors, row)
            if changes is not None:  # zone_no is among them
                self._publish_and_notify(changes)
            else:
                self._publish(zone_no)
                if self.listeners:
                    self._tell(self.listeners, zone_no, 1)
        except Exception:
            self.device.take_back()
            raise

    def _begin_long(self, row: WriteRow, zone_no: int, sector: Sector, nr_sectors: int) -> Hold:
        """Take a hold for a write that the machine has agreed to, and open its zone; with the lock held.

        Open already, as the commit must not need a resource that is then gone. A write that fails leaves it open.
        """
        intent_log = self.intents.current.log if self.intents else None
        if intent_log:
            intent_log.begin(row.operation, sector, nr_sectors, 0)
        with self.device.changing():
            self._publish_and_notify(self._machine.open_to_write(zone_no, row))
        return self._holds.take(zone_no, self._end_of(sector, nr_sectors), writing=True)

    def _write_long(
        self,
        row: WriteRow,
        hold: Hold,
        sector: Sector,
        nr_sectors: int,
        buffers: "Sequence[Buffer]",
    ) -> Status:
        """Move the bytes without the lock, under *hold*, which the caller gives back; then wp."""
        intent_log = self.intents.current.log if self.intents else None
        try:
            self._write_rest(sector, nr_sectors, buffers, 0)
        except OSError as error:
            status = self._failed(row.operation, error, sector, nr_sectors)
            with self._lock:
                if intent_log:
                    intent_log.abort()
            return status
        with self._lock:
            self._commit(row, hold[0], nr_sectors)
            if intent_log:
                intent_log.commit()
        return _OK

    def _write_rest(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]", done: int) -> None:
        """Write what is left after *done* bytes: it is long, or of many buffers, or the host is almost full."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        length = total_bytes(views)
        assert length == nr_sectors << SECTOR_SHIFT, f"{length} bytes given for {nr_sectors} sectors"
        while done < length:
            written = self.pwritev(carve(views, done, length)[:_IOV_MAX], (sector << SECTOR_SHIFT) + done)
            if not written:
                raise OSError(errno.EIO, "the host writes nothing")
            done += written

    def _wait_for_zones(self, sector: Sector, nr_sectors: int) -> None:
        """Wait until no other command holds the zones of a write; with the lock held, which is let go meanwhile."""
        self._holds.wait(sector // self._zone_size, self._end_of(sector, nr_sectors))

    def _end_of(self, sector: Sector, nr_sectors: int) -> int:
        return (sector + max(nr_sectors, 1) - 1) // self._zone_size + 1

    def _may_change(self, error: CommandError) -> bool:
        """Say whether a command that met *error* is to be judged again, after waiting for other commands under way.

        A zone that is being written to cannot be closed for another one: after that write it can.
        """
        if error.status is not Status.OPEN_RESOURCE:
            return False
        self._holds.wait_for_change()
        return True

    def _apply_pending_resets(self, operation: Operation, sector: Sector, nr_sectors: int) -> Status:
        try:
            self._image.apply_pending_resets()
        except _HOST_ERRORS as poisoned:
            error = CommandError(poisoned.status, sector // self.geometry.zone_size)
            return self._refused(operation, error, sector, nr_sectors)
        return Status.OK

    def has_pending_reset(self, zone_no: int) -> bool:
        """Say whether the next write to *zone_no* first waits for a flush: wp moved back since the last."""
        return zone_no < self._nr_zones and self._old_extents[zone_no] > 0 and self._image.has_pending_reset(zone_no)

    def flush(self) -> Status:
        """Make everything answered so far survive a power cut. Blocks: call it off the event loop.

        Returns IO_ERROR or NO_SPACE if the host failed now, POISONED if it did earlier.
        """
        if self._faults and (status := self._injected(Operation.FLUSH, 0, 0, nr_zones=self.geometry.nr_zones)):
            return status
        counters = self.device.counters
        if not self._image.readonly:
            try:
                self._image.flush()
            except _HOST_ERRORS as error:
                return self._refused(Operation.FLUSH, CommandError(error.status), 0, 0)
            counters.save_sometimes()
        counters.device[Counter.FLUSHES] += 1
        return Status.OK

    # -- zones ------------------------------------------------------------------------------------------------

    def manage(self, operation: Operation, sector: Sector, nr_zones: int = 1) -> Status:
        """Open, close, finish or reset *nr_zones* zones from the one that starts at *sector*: all of them, or none.

        Returns OUT_OF_RANGE, NOT_ZONE_START, CONVENTIONAL, ZONE_READONLY, ZONE_OFFLINE, BAD_TRANSITION,
        ACTIVE_RESOURCE, OPEN_RESOURCE or POISONED; nothing has changed then.
        """
        if self.intents and (answer := self.intents.answer(self, operation, sector, 0)):
            return answer[0]
        if self._faults and (status := self._injected(operation, sector, 0, nr_zones=nr_zones)):
            return status
        first = sector // self._zone_size
        end = first + nr_zones
        whole = self._needs_all(operation) and nr_zones > PORTION_ZONES
        reach = (0, self.geometry.nr_zones) if whole else (first, end)
        hold: Hold | None = None
        while True:
            with self._lock:
                if self._held:
                    self._holds.wait(*reach)
                intent_log = self.intents.current.log if self.intents else None
                if intent_log and 0 <= sector < self.geometry.size:
                    intent_log.begin(operation, sector, 0, self._machine.conds[first])
                try:
                    self._require_writable(sector)
                    portions = self._machine.begin_manage(operation, sector, nr_zones, self.dialect)
                except CommandError as error:
                    if self._held and self._may_change(error):
                        continue
                    if intent_log:
                        intent_log.abort()
                    return self._refused(operation, error, sector, 0)
                if nr_zones <= PORTION_ZONES:
                    with self.device.changing():
                        for _, changes in portions:
                            self._publish_and_notify(changes)
                    if intent_log:
                        intent_log.commit()
                else:
                    hold = self._holds.take(*reach)
                break
        if hold is None:
            self.device.counters.count_all(range(first, end), _MANAGEMENT_COUNTER[operation])
        else:
            try:
                for done, at, _ in self._in_portions(portions, hold, end, shrinking=not whole):
                    self.device.counters.count_all(range(max(done, first), at), _MANAGEMENT_COUNTER[operation])
            finally:
                with self._lock:
                    self._holds.give_back(hold)
        return self._lost(operation, sector, 0, first) if self._image.is_lost else Status.OK

    def _needs_all(self, operation: Operation) -> bool:
        """Say whether *operation* on many zones needs resources, which no other command may take before its end."""
        limited = self.geometry.max_open_zones or self.geometry.max_active_zones
        return bool(limited) and operation in (Operation.OPEN, Operation.FINISH)

    def _in_portions(
        self, portions: Iterator[tuple[int, Changes]], hold: Hold, end: int, *, shrinking: bool
    ) -> Iterator[tuple[int, int, Sequence[int]]]:
        """Go through the *portions* of a command on zones up to *end*, under *hold*, which the caller gives back.

        Yields (first, end of a portion, the zones of it that were asked for and have changed), without the lock. With
        *shrinking*, the zones of a portion are given back with it.
        """
        at = hold[0]
        is_first = True
        while at < end:
            if not is_first:
                self._image.let_others_in()
            is_first = False
            done = at
            with self._lock:
                with self.device.changing():
                    at, changes = next(portions)
                    self._publish_and_notify(changes)
                if at >= end:
                    if self.intents and (intent_log := self.intents.current.log):
                        intent_log.commit()
                elif shrinking:
                    self._holds.advance(hold, at)
            yield done, at, changes.changed

    def manage_all(self, operation: Operation) -> Status:
        """Open, close, finish or reset all zones whose condition the ALL form acts on.

        Returns ACTIVE_RESOURCE or OPEN_RESOURCE (nothing has changed then), or POISONED.
        """
        if self.intents and (answer := self.intents.answer(self, operation, 0, ALL_ZONES)):
            return answer[0]
        nr_zones = self.geometry.nr_zones
        if self._faults and (status := self._injected(operation, 0, 0, nr_zones=nr_zones)):
            return status
        with self._lock:
            self._holds.wait(0, nr_zones)
            intent_log = self.intents.current.log if self.intents else None
            if intent_log:
                intent_log.begin(operation, 0, ALL_ZONES, 0)
            try:
                self._require_writable(0)
                portions = self._machine.begin_manage_all(operation, self.dialect)
            except CommandError as error:
                if intent_log:
                    intent_log.abort()
                return self._refused(operation, error, 0, 0)
            hold = self._holds.take(0, nr_zones)
        try:
            for _, _, asked in self._in_portions(portions, hold, nr_zones, shrinking=not self._needs_all(operation)):
                self.device.counters.count_all(asked, _MANAGEMENT_COUNTER[operation])
        finally:
            with self._lock:
                self._holds.give_back(hold)
        return self._lost(operation, 0, 0) if self._image.is_lost else Status.OK

    def set_cond(self, zone_no: int, cond: Condition) -> Status:
        """Put a zone into *cond* as a failing medium would; see :meth:`ZoneMachine.set_cond` for what is possible."""
        with self._lock:
            self._holds.wait(zone_no, zone_no + 1)
            sector = zone_no * self.geometry.zone_size
            try:
                self._require_writable(sector)
                with self.device.changing():
                    self._publish_and_notify(self._machine.set_cond(zone_no, cond))
            except CommandError as error:
                return self._refused(Operation.SET_COND, error, sector, 0)
        return self._lost(Operation.SET_COND, sector, 0, zone_no) if self._image.is_lost else Status.OK

    def power_cycle(self) -> None:
        """Do what :meth:`ZonedDevice.power_cycle` does.

        Raises:
            PoisonedError: the host failed to write. NoSpaceError: it is full.
        """
        self.device.power_cycle()

    def _require_writable(self, sector: Sector) -> None:
        if self._image.poison:
            raise CommandError(Status.POISONED, sector // self.geometry.zone_size)

    def _publish_and_notify(self, changes: Changes) -> None:
        changed = changes.zones
        if not changed:
            return
        self.device.publish(changes)
        if not self.listeners:
            return
        if len(changed) > _RUNS_MAX:
            first = min(changed)
            self._tell(self.listeners, first, max(changed) + 1 - first)
        else:
            for first, count in merge_runs([(zone_no, 1) for zone_no in changed]):
                self._tell(self.listeners, first, count)

    def zone(self, zone_no: int) -> Zone:
        """Return a snapshot of zone *zone_no* (0 to nr_zones - 1)."""
        with self._lock:
            zone = self._machine.zone(zone_no)
        return self.device.faults.reported(zone) if self._faults else zone

    def report(self, zone_no: int, max_zones: int, conds: frozenset[Condition] | None = None) -> list[Zone]:
        """Return up to *max_zones* zones from number *zone_no* on, those in *conds* only if given.

        The lock is held while the states of a portion are copied, so a long report stops no other command.
        """
        machine, nr_zones = self._machine, self.geometry.nr_zones
        zones: list[Zone] = []
        while zone_no < nr_zones and (left := max_zones - len(zones)) > 0:
            end = min(zone_no + (_SCAN_PORTION if conds else min(left, _SCAN_PORTION)), nr_zones)
            with self._lock:
                cond_codes, wps = machine.conds[zone_no:end], machine.wps[zone_no:end]
            found = range(len(cond_codes)) if conds is None else islice(indices_of(conds, cond_codes), left)
            zones += [machine.snapshot(zone_no + index, cond_codes[index], wps[index]) for index in found]
            zone_no = end
        return [self.device.faults.reported(zone) for zone in zones] if self._faults else zones

    # -- faults -----------------------------------------------------------------------------------------------

    def _injected(
        self,
        operation: Operation,
        sector: Sector,
        nr_sectors: int,
        buffers: "Sequence[Buffer]" = (),
        *,
        nr_zones: int = 0,
    ) -> Status:
        """Do what the faults say that fire at this operation; returns OK if it is to be carried out after all.

        *nr_zones*: how many it is on, where *nr_sectors* does not say so.
        """
        first = sector // self._zone_size
        nr_zones = nr_zones or (sector + max(nr_sectors, 1) - 1) // self._zone_size + 1 - first
        try:
            fired = self.fired(operation, first, nr_zones)
        except _HOST_ERRORS as error:
            return self._refused(operation, CommandError(error.status, first), sector, nr_sectors)
        for fault, zone_no in fired:
            match fault.effect:
                case Effect.DELAY:
                    (self.defer or self.device.sleep_ns)(fault.delay_ns())
                case Effect.COND:
                    self.set_cond(zone_no, fault.cond)
                case Effect.FAIL:
                    return self._fail(operation, fault.status, sector, nr_sectors, zone_no)
                case Effect.PARTIAL:
                    self._write_part(operation, sector, min(fault.nr_sectors, nr_sectors), buffers)
                    return self._fail(operation, fault.status, sector, nr_sectors, zone_no)
                case _:  # faults that change reports never fire
                    raise AssertionError(fault)
        return Status.OK

    def fired(self, operation: Operation, zone_no: int, nr_zones: int) -> list[tuple[Fault, int]]:
        """Count *operation* on the *nr_zones* zones from *zone_no* on; the counts survive a kill.

        Returns the faults that fire at it, each with the zone at which it does.

        Raises:
            PoisonedError: the host failed to write the counts.
        """
        faults = self.device.faults
        nr_counted = faults.nr_counted
        fired = faults.fired(operation, zone_no, nr_zones)
        if faults.nr_counted != nr_counted and not self._image.poison:
            # That a fault has fired must last. At other matches a sync would take longer than most delays.
            durably = any(not fault.every or fault.seen == fault.nth for fault, _ in fired)
            self.device.save_faults(durably=durably)
        return fired

    def _fail(self, operation: Operation, status: Status, sector: Sector, nr_sectors: int, zone_no: int) -> Status:
        # A flush is of no zone.
        place = -1 if operation is Operation.FLUSH else zone_no
        return self.refuse(DeviceRule.INJECTED, operation, status, sector, nr_sectors, zone_no=place)

    def _write_part(self, operation: Operation, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> None:
        """Write the first *nr_sectors* of *buffers*, as a drive does that fails half way; refusals are noted.

        A request that ends beyond the device may come without its data, as the device refuses it before it needs them.
        """
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        nr_sectors = min(nr_sectors, total_bytes(views) >> SECTOR_SHIFT)
        data = carve(views, 0, nr_sectors << SECTOR_SHIFT)
        if operation is Operation.WRITE:
            self._write(sector, nr_sectors, data)
        else:
            self._append(sector, nr_sectors, data)

    def count(self, zone_no: int, conds: frozenset[Condition]) -> int:
        """Count the zones from number *zone_no* on whose condition is in *conds*; at the speed of a memory scan."""
        found = self._machine.conds
        nr_found = 0
        for first in range(zone_no, self.geometry.nr_zones, _SCAN_PORTION):
            with self._lock:
                nr_found += sum(found.count(cond, first, first + _SCAN_PORTION) for cond in conds)
        return nr_found

    # -- refusals ---------------------------------------------------------------------------------------------

    def refuse(
        self,
        rule: Rule,
        operation: Operation | None,
        status: Status,
        sector: Sector = 0,
        nr_sectors: int = 0,
        *,
        zone_no: int = -1,
        request: str = "",
    ) -> Status:
        """Note that this port refused an operation, by *rule*; returns *status*.

        For the device's own refusals and for front-ends that have rules of their own. *request* is for requests that
        are malformed or unknown: what it was, for people; *operation* is None if it is none.
        """
        machine = self._machine
        log = self.device.refusals
        cond = Condition.NOT_WP
        wp = 0
        if not 0 <= zone_no < self.geometry.nr_zones:
            zone_no = -1
        else:
            cond = Condition(machine.conds[zone_no])
            wp = zone_no * self.geometry.zone_size + machine.wps[zone_no]
        holders: tuple[int, ...] = ()
        if status in _LIMITS:
            resources = machine.resources
            holding = resources.open_zones if status is Status.OPEN_RESOURCE else resources.active_zones
            # A copy first, in one step: an injected failure comes without the lock, and the set may change meanwhile.
            holders = tuple(sorted(islice(tuple(holding), NR_HOLDERS_MAX)))
        refusal = Refusal(
            seq=log.next_seq(), time_ns=now_ns(), front_end=self.name, operation=operation, status=status, rule=rule,
            zone_no=zone_no, cond=cond, wp=wp, sector=sector, nr_sectors=nr_sectors, nr_open=machine.nr_open,
            nr_active=machine.nr_active, holders=holders, request=request,
        )  # fmt: skip
        self.last_refusal = refusal
        if self._image.is_closed:  # the log and the counters are gone
            return status
        if not self._image.readonly:
            log.add(refusal)
        counters = self.device.counters
        if zone_no >= 0:
            counters.count(zone_no, Counter.REFUSED)
        else:
            counters.device[Counter.REFUSED] += 1
        return status

    def _lost(self, operation: Operation, sector: Sector, nr_sectors: int, zone_no: int = -1) -> Status:
        """Refuse an operation because the image's file is lost: nothing that is done now would last."""
        self.device.notice_loss()
        return self.refuse(DeviceRule.LOST, operation, Status.IO_ERROR, sector, nr_sectors, zone_no=zone_no)

    def _refused(self, operation: Operation, error: CommandError, sector: Sector, nr_sectors: int) -> Status:
        if self._image.is_lost:
            return self._lost(operation, sector, nr_sectors, error.zone_no)
        return self.refuse(
            RULE_OF_STATUS[error.status], operation, error.status, sector, nr_sectors, zone_no=error.zone_no
        )

    def _failed(self, operation: Operation, error: OSError, sector: Sector, nr_sectors: int) -> Status:
        """Turn a failure of the host into a status.

        One that concerns writing poisons the image, unless the host is full or the buffers were at fault: the kernel
        answers EFAULT where a peer has cut the file of the memory that it shares.
        """
        status = Status.NO_SPACE if is_full(error) else Status.IO_ERROR
        zone_no = sector // self.geometry.zone_size
        self._image.look_after()
        if self._image.is_lost:
            return self._lost(operation, sector, nr_sectors, zone_no)
        rule = DeviceRule.LOST_BUFFER if error.errno == errno.EFAULT else RULE_OF_STATUS[status]
        if operation is not Operation.READ:
            if status is Status.NO_SPACE or rule is DeviceRule.LOST_BUFFER:
                self._give_back(zone_no, sector, nr_sectors)
            else:
                self._image.fail(error, "the image could not be written")
        return self.refuse(rule, operation, status, sector, nr_sectors, zone_no=zone_no)

    def _give_back(self, zone_no: int, sector: Sector, nr_sectors: int) -> None:
        """Give back the space of what a write that failed half-way had written beyond wp; no checkpoint points there.

        An EMPTY zone would else keep it for ever, as resetting it changes nothing. In a conventional zone each sector
        is old or new.
        """
        if not self.geometry.is_conventional(zone_no):
            # A host that cannot even do that keeps the space, and reads of it are zeros all the same.
            with suppress(OSError):
                self._image.backing.punch(sector << SECTOR_SHIFT, nr_sectors << SECTOR_SHIFT)
