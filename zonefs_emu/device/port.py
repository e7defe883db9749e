"""Port: every command of a front-end on a device. A command never raises for what a host does wrong.

May not know: front-ends, protocols, event loops, injected faults (:mod:`faulty_port`). Sync and thread safe.

A long command lets go of the lock in between, and keeps other commands off its zones by a hold (:mod:`holds`): no
command has the lock for longer than some milliseconds, whatever the number of zones and bytes.

Reads take no lock: they look at one zone's condition and write pointer, and a read that runs beside a reset may see the
zone before or after it, as on a drive.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

from zonefs_emu.device import zns_commands
from zonefs_emu.device.buffers import carve, total_bytes
from zonefs_emu.device.core import DeviceCore
from zonefs_emu.device.counters import Counter
from zonefs_emu.device.holds import Hold
from zonefs_emu.device.intent_log import ALL_ZONES, IntentLog, Intents
from zonefs_emu.device.refusing import Refuser
from zonefs_emu.device.zone_states import power_cycle
from zonefs_emu.errors import CommandError, NoSpaceError, PoisonedError, Status
from zonefs_emu.model.machine import Changes
from zonefs_emu.model.scan import indices_of
from zonefs_emu.model.transitions import Dialect, Operation, WriteRow
from zonefs_emu.model.zone import Condition, Zone
from zonefs_emu.persist.pending_resets import PORTION_ZONES
from zonefs_emu.units import SECTOR_SHIFT, Sector

if TYPE_CHECKING:
    from typing_extensions import Buffer

_Portions: TypeAlias = Iterator[tuple[int, Changes]]

#: The host failed, or is full: both carry the status of the answer.
HOST_ERRORS: Final = (PoisonedError, NoSpaceError)
#: The most buffers that preadv and pwritev take at once (UIO_MAXIOV); with more they fail.
_IOV_MAX: Final = 1024
#: Zones whose states are copied or counted while the lock is held: for less than a millisecond.
_SCAN_PORTION: Final = 1 << 16
#: What is stored where a read finds no data.
_ZEROS: Final = memoryview(bytes(1 << 20))

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


class Port:
    """One front-end's hold on the device: its name for the log, its dialect, and every command.

    Commands return a Status (OK is falsy). Sectors everywhere; *buffers* are sequences of buffers of nr_sectors · 512
    bytes in total.
    """

    def __init__(self, device: DeviceCore, name: str, dialect: Dialect) -> None:
        """Use :meth:`ZonedDevice.port`."""
        self.device = device
        self.name = name
        self.dialect = dialect
        self.geometry = device.geometry
        #: The listeners that are told of what this port changes.
        self.audience = device.listeners.audience(name)
        #: What is refused is noted here, also by a front-end that has rules of its own.
        self.refusals = Refuser(device, name)
        #: Called in place of the device's sleep_ns with the length of an injected delay, where the front-end is itself
        #: able to answer later; the command is carried out at once then.
        self.defer: Callable[[int], None] | None = None
        #: Keeps the record of this port's changes, where requests come again after a crash.
        self.intents: Intents | None = None
        self._path = device.hot_path
        self._on_write = dialect.on_write
        self._on_append = dialect.on_append
        self._holds = device.holds
        self._image = device.image
        self._machine = device.machine

    # -- reading ----------------------------------------------------------------------------------------------

    def read(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> Status:
        """Fill *buffers* with *nr_sectors* from *sector*; what lies beyond a write pointer reads as zeros.

        Returns OUT_OF_RANGE, UNALIGNED, ZONE_OFFLINE, READ_BOUNDARY or IO_ERROR; *buffers* are then undefined.
        """
        path = self._path
        access = path.access
        try:
            readable = access.check_read(sector, nr_sectors, self.dialect)
        except CommandError as error:
            return self.refusals.command(Operation.READ, error, sector, nr_sectors)
        if readable < 0:
            return self._read_across(sector, nr_sectors, buffers)
        try:
            zone_no = sector // path.zone_size
            row = path.rows.get(zone_no) or path.load_row(zone_no)
            row[_READS] += 1
            row[_READ_SECTORS] += nr_sectors
            if readable == nr_sectors and len(buffers) <= _IOV_MAX:
                done = access.preadv(buffers, sector << SECTOR_SHIFT)
                if done == nr_sectors << SECTOR_SHIFT:
                    return _OK
            self._read_slowly(sector, readable, buffers)
        except OSError as error:
            return self.refusals.failed(Operation.READ, error, sector, nr_sectors)
        return Status.OK

    def _read_slowly(self, sector: Sector, readable: int, buffers: "Sequence[Buffer]") -> None:
        """Fill *buffers* piece by piece: *readable* sectors from the image, zeros after them."""
        offset = sector << SECTOR_SHIFT
        end = offset + (readable << SECTOR_SHIFT)
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            while view and offset < end:
                done = self._path.access.preadv([view[: end - offset]], offset)
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
        zone_size = self.geometry.zone_size
        done = 0
        while done < nr_sectors:
            at = sector + done
            zone_no, offset = divmod(at, zone_size)
            part = min(zone_size - offset, nr_sectors - done)
            try:
                readable = self._machine.check_read(at, part, self.dialect)
                row = self._path.load_row(zone_no)
                row[_READS] += 1
                row[_READ_SECTORS] += part
                self._read_slowly(at, readable, carve(views, done << SECTOR_SHIFT, (done + part) << SECTOR_SHIFT))
            except CommandError as error:
                return self.refusals.command(Operation.READ, error, at, part)
            except OSError as error:
                return self.refusals.failed(Operation.READ, error, at, part)
            done += part
        return Status.OK

    # -- writing ----------------------------------------------------------------------------------------------

    def write(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> Status:
        """Write *buffers*, *nr_sectors* in total, at *sector*.

        Returns OUT_OF_RANGE, UNALIGNED, ZONE_READONLY, ZONE_OFFLINE, ZONE_FULL, ZONE_BOUNDARY, UNALIGNED_WP,
        ACTIVE_RESOURCE, OPEN_RESOURCE: nothing has changed then. NO_SPACE: wp has not moved; with room the same write
        succeeds. IO_ERROR, POISONED: wp has not moved, and the device takes no further writes.
        """
        if self.intents and (answer := self.intents.answer(self.refusals, Operation.WRITE, sector, nr_sectors)):
            return answer[0]
        return self._store(self._on_write, sector, nr_sectors, buffers)[0]

    def append(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> tuple[Status, Sector]:
        """Append *buffers*, *nr_sectors* in total, to the zone that starts at *sector*.

        Returns (OK, the sector where they landed), or a status as :meth:`write` gives, and CONVENTIONAL,
        NOT_ZONE_START, APPEND_LIMIT, with *sector*.
        """
        if self.intents and (answer := self.intents.answer(self.refusals, Operation.APPEND, sector, nr_sectors)):
            return answer
        return self._store(self._on_append, sector, nr_sectors, buffers)

    def _store(
        self, row: WriteRow, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]"
    ) -> tuple[Status, Sector]:
        """Write or append, as *row* says; returns what :meth:`append` does."""
        path = self._path
        image = path.image
        zone_no = sector // path.zone_size
        landing, nr_moved = sector, nr_sectors
        hold: Hold | None = None
        while True:
            with path.lock:
                if path.held:
                    self._wait_for_zones(row, sector, nr_sectors)
                try:
                    if row is self._on_write:
                        nr_moved = path.begin_write(sector, nr_sectors, self.dialect)
                    else:
                        landing = path.begin_append(sector, nr_sectors, self.dialect)
                except CommandError as error:
                    if path.held and self.may_change(error):
                        continue
                    return self.refusals.command(row.operation, error, sector, nr_sectors), sector
                if image.poison:
                    poisoned = CommandError(Status.POISONED, zone_no)
                    return self.refusals.command(row.operation, poisoned, sector, nr_sectors), sector
                if not nr_sectors:  # an empty write is checked like any other, and then there is nothing to do
                    return _OK, landing
                if not path.old_extents[zone_no] or not image.has_pending_reset(zone_no):
                    if nr_sectors <= path.access.short_sectors:
                        status = self._write_now(row, zone_no, landing, nr_sectors, nr_moved, buffers)
                    else:
                        hold = self._begin_long(row, zone_no, landing, nr_sectors)
                    break
            # The zone was reset, and its old data must not be overwritten before that is durable. Applying the reset
            # takes the lock itself, so the command starts again after it.
            if status := self._apply_pending_resets(row.operation, sector, nr_sectors):
                return status, sector
        if hold is not None:
            with self._holds.kept(hold):
                status = self._write_long(row, hold, landing, nr_sectors, nr_moved, buffers)
        if status:
            return status, sector
        if image.is_lost:
            return self.refusals.lost(row.operation, landing, nr_sectors, zone_no), sector
        counts = path.rows.get(zone_no) or path.load_row(zone_no)
        counts[_WRITES if row is self._on_write else _APPENDS] += 1
        counts[_WRITTEN_SECTORS] += nr_sectors
        return _OK, landing

    def _write_now(  # noqa: PLR0917  (positional: keywords would cost a twentieth of a write)
        self, row: WriteRow, zone_no: int, sector: Sector, nr_sectors: int, nr_moved: int, buffers: "Sequence[Buffer]"
    ) -> Status:
        """Move the bytes, then wp by *nr_moved*: with the lock held, after the machine has agreed."""
        intent_log = self.intents.current.log if self.intents else None
        if intent_log:
            intent_log.begin(row.operation, sector, nr_sectors, 0)
        try:
            done = self._path.access.pwritev(buffers, sector << SECTOR_SHIFT) if len(buffers) <= _IOV_MAX else 0
            if done != nr_sectors << SECTOR_SHIFT:
                self._write_rest(sector, nr_sectors, buffers, done)
        except OSError as error:
            if intent_log:
                intent_log.abort()
            return self.refusals.failed(row.operation, error, sector, nr_sectors)
        self.commit(row, zone_no, nr_moved)
        if intent_log:
            intent_log.commit()
        return _OK

    def commit(self, row: WriteRow, zone_no: int, nr_moved: int) -> None:
        """Advance wp over what was written; with the lock held. The compiled ring walker calls it as well."""
        path, audience = self._path, self.audience
        try:  # device.changing(), which a write cannot afford
            changes = path.commit_write(zone_no, nr_moved, row)
            if changes is not None:  # zone_no is among them
                self.device.publish_and_tell(changes, audience)
            else:
                path.publish(zone_no)
                if audience.listeners:
                    self.device.listeners.tell(audience.listeners, zone_no, 1)
        except Exception:
            self.device.take_back()
            raise

    def _begin_long(self, row: WriteRow, zone_no: int, sector: Sector, nr_sectors: int) -> Hold:
        """Take a hold for a write that the machine has agreed to, and open its zone; with the lock held.

        The zone is opened already, as the commit must not need a resource that is then gone. A write that fails leaves
        it open.
        """
        intent_log = self._intent_log()
        if intent_log:
            intent_log.begin(row.operation, sector, nr_sectors, 0)
        with self.device.changing():
            self.device.publish_and_tell(self._machine.open_to_write(zone_no, row), self.audience)
        return self._holds.take(zone_no, self._end_of(sector, nr_sectors), writing=True)

    def _write_long(  # noqa: PLR0917  (as above)
        self, row: WriteRow, hold: Hold, sector: Sector, nr_sectors: int, nr_moved: int, buffers: "Sequence[Buffer]"
    ) -> Status:
        """Move the bytes without the lock, under *hold*, which the caller gives back; then wp."""
        intent_log = self._intent_log()
        try:
            self._write_rest(sector, nr_sectors, buffers, 0)
        except OSError as error:
            status = self.refusals.failed(row.operation, error, sector, nr_sectors)
            with self.device.lock:
                if intent_log:
                    intent_log.abort()
            return status
        with self.device.lock:
            self.commit(row, hold[0], nr_moved)
            if intent_log:
                intent_log.commit()
        return _OK

    def _write_rest(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]", done: int) -> None:
        """Write what is left after *done* bytes: it is long, or of many buffers, or the host is almost full."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        length = total_bytes(views)
        assert length == nr_sectors << SECTOR_SHIFT, f"{length} bytes given for {nr_sectors} sectors"
        while done < length:
            part = carve(views, done, length)[:_IOV_MAX]
            written = self._path.access.pwritev(part, (sector << SECTOR_SHIFT) + done)
            if not written:
                raise OSError(errno.EIO, "the host writes nothing")
            done += written

    def _wait_for_zones(self, row: WriteRow, sector: Sector, nr_sectors: int) -> None:
        """Wait until no other command holds the zones of a write; with the lock held, which is let go meanwhile."""
        # An append names the start of its zone, and cannot go beyond it.
        nr_sectors = nr_sectors if row is self._on_write else 1
        self._holds.wait(sector // self.geometry.zone_size, self._end_of(sector, nr_sectors))

    def _end_of(self, sector: Sector, nr_sectors: int) -> int:
        return (sector + max(nr_sectors, 1) - 1) // self.geometry.zone_size + 1

    def may_change(self, error: CommandError) -> bool:
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
        except HOST_ERRORS as poisoned:
            error = CommandError(poisoned.status, sector // self.geometry.zone_size)
            return self.refusals.command(operation, error, sector, nr_sectors)
        return Status.OK

    def has_pending_reset(self, zone_no: int) -> bool:
        """Say whether the next write to *zone_no* first waits for a flush: wp moved back since the last."""
        if zone_no >= self.geometry.nr_zones:
            return False
        return self._image.old_extents[zone_no] > 0 and self._image.has_pending_reset(zone_no)

    def _intent_log(self) -> IntentLog | None:
        return self.intents.current.log if self.intents else None

    def flush(self) -> Status:
        """Make everything answered so far survive a power cut. Blocks: call it off the event loop.

        Returns IO_ERROR or NO_SPACE if the host failed now, POISONED if it did earlier.
        """
        counters = self.device.counters
        if not self._image.readonly:
            try:
                self._image.flush()
            except HOST_ERRORS as error:
                return self.refusals.command(Operation.FLUSH, CommandError(error.status), 0, 0)
            counters.save_sometimes()
        counters.device[Counter.FLUSHES] += 1
        return Status.OK

    # -- zones ------------------------------------------------------------------------------------------------

    def manage(self, operation: Operation, sector: Sector, nr_zones: int = 1) -> Status:
        """Open, close, finish or reset *nr_zones* zones from the one that starts at *sector*: all of them, or none.

        Returns OUT_OF_RANGE, NOT_ZONE_START, CONVENTIONAL, ZONE_READONLY, ZONE_OFFLINE, BAD_TRANSITION,
        ACTIVE_RESOURCE, OPEN_RESOURCE or POISONED; nothing has changed then.
        """
        if self.intents and (answer := self.intents.answer(self.refusals, operation, sector, 0)):
            return answer[0]
        return self._manage(operation, sector, nr_zones)

    def _manage(self, operation: Operation, sector: Sector, nr_zones: int) -> Status:
        first = sector // self.geometry.zone_size
        end = first + nr_zones
        counter = _MANAGEMENT_COUNTER[operation]
        is_long = nr_zones > PORTION_ZONES
        whole = is_long and self._needs_all(operation)
        reach = (0, self.geometry.nr_zones) if whole else (first, end)
        hold: Hold | None = None
        with self.device.lock:
            try:
                portions = self._begin_managing(
                    operation, sector, 0, reach,
                    partial(self._machine.begin_manage, operation, sector, nr_zones, self.dialect),
                )  # fmt: skip
            except CommandError as error:
                return self.refusals.command(operation, error, sector, 0)
            if is_long:
                hold = self._holds.take(*reach)
            else:
                with self.device.changing():
                    for _, changes in portions:
                        self.device.publish_and_tell(changes, self.audience)
                self._commit_intent()
        if hold is None:
            self.device.counters.count_all(range(first, end), counter)
        else:
            with self._holds.kept(hold):
                for done, at, _ in self._in_portions(portions, hold, end, shrinking=not whole):
                    self.device.counters.count_all(range(max(done, first), at), counter)
        return self.refusals.lost(operation, sector, 0, first) if self._image.is_lost else Status.OK

    def manage_all(self, operation: Operation) -> Status:
        """Open, close, finish or reset all zones whose condition the ALL form acts on.

        Returns ACTIVE_RESOURCE or OPEN_RESOURCE (nothing has changed then), or POISONED.
        """
        if self.intents and (answer := self.intents.answer(self.refusals, operation, 0, ALL_ZONES)):
            return answer[0]
        return self._manage_all(operation)

    def _manage_all(self, operation: Operation) -> Status:
        reach = (0, self.geometry.nr_zones)
        with self.device.lock:
            try:
                portions = self._begin_managing(
                    operation, 0, ALL_ZONES, reach, partial(self._machine.begin_manage_all, operation, self.dialect)
                )
            except CommandError as error:
                return self.refusals.command(operation, error, 0, 0)
            hold = self._holds.take(*reach)
        with self._holds.kept(hold):
            shrinking = not self._needs_all(operation)
            for _, _, asked in self._in_portions(portions, hold, reach[1], shrinking=shrinking):
                self.device.counters.count_all(asked, _MANAGEMENT_COUNTER[operation])
        return self.refusals.lost(operation, 0, 0) if self._image.is_lost else Status.OK

    def _needs_all(self, operation: Operation) -> bool:
        """Say whether *operation* on many zones needs resources, which no other command may take before its end."""
        limited = self.geometry.max_open_zones or self.geometry.max_active_zones
        return bool(limited) and operation in (Operation.OPEN, Operation.FINISH)

    def _begin_managing(
        self,
        operation: Operation,
        sector: Sector,
        nr_sectors: int,
        reach: tuple[int, int],
        begin: Callable[[], _Portions],
    ) -> _Portions:
        """Wait for the zones of *reach* and return what *begin* does; with the lock held.

        *nr_sectors* is what the intent log is told: 0, or ALL_ZONES.

        Raises:
            CommandError: the image takes no changes, or the machine refuses.
        """
        while True:
            self._holds.wait(*reach)
            intent_log = self._intent_log()
            if intent_log and 0 <= sector < self.geometry.size:
                cond = 0 if nr_sectors else self._machine.conds[sector // self.geometry.zone_size]
                intent_log.begin(operation, sector, nr_sectors, cond)
            try:
                self.device.require_writable(sector)
                return begin()
            except CommandError as error:
                if self._path.held and self.may_change(error):
                    continue
                if intent_log:
                    intent_log.abort()
                raise

    def _commit_intent(self) -> None:
        if intent_log := self._intent_log():
            intent_log.commit()

    def _in_portions(
        self, portions: _Portions, hold: Hold, end: int, *, shrinking: bool
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
            with self.device.lock:
                with self.device.changing():
                    at, changes = next(portions)
                    self.device.publish_and_tell(changes, self.audience)
                if at >= end:
                    self._commit_intent()
                elif shrinking:
                    self._holds.advance(hold, at)
            yield done, at, changes.changed

    def set_cond(self, zone_no: int, cond: Condition) -> Status:
        """Put a zone into *cond* as a failing medium would; see :meth:`ZoneMachine.set_cond` for what is possible."""
        sector = zone_no * self.geometry.zone_size
        with self.device.lock:
            self._holds.wait(zone_no, zone_no + 1)
            try:
                self.device.require_writable(sector)
                with self.device.changing():
                    self.device.publish_and_tell(self._machine.set_cond(zone_no, cond), self.audience)
            except CommandError as error:
                return self.refusals.command(Operation.SET_COND, error, sector, 0)
        return self.refusals.lost(Operation.SET_COND, sector, 0, zone_no) if self._image.is_lost else Status.OK

    def set_extension(self, sector: Sector, data: bytes) -> Status:
        """Give the EMPTY zone that starts at *sector* the descriptor extension *data*, and close it.

        *data* has as many bytes as the geometry says, or the answer is UNSUPPORTED. The dialect is ZNS. May wait for a
        flush, as a write after a reset does.

        Returns OUT_OF_RANGE, NOT_ZONE_START, BAD_TRANSITION, ACTIVE_RESOURCE, POISONED or NO_SPACE; nothing has changed
        then.
        """
        if self.intents and (answer := self.intents.answer(self.refusals, Operation.SET_EXTENSION, sector, 0)):
            return answer[0]
        return zns_commands.set_extension(self, sector, data)

    def allocate_zrwa(self, sector: Sector) -> Status:
        """Open the EMPTY zone that starts at *sector*, with a zone random write area. The dialect is ZNS.

        May wait for a flush, as a write after a reset does.

        Returns OUT_OF_RANGE, NOT_ZONE_START, ZRWA_INVALID, ACTIVE_RESOURCE, OPEN_RESOURCE, ZRWA_UNAVAILABLE, POISONED
        or NO_SPACE; UNSUPPORTED where zones have no areas. Nothing has changed then.
        """
        if self.intents and (answer := self.intents.answer(self.refusals, Operation.ALLOCATE_ZRWA, sector, 0)):
            return answer[0]
        return self._allocate_zrwa(sector)

    def _allocate_zrwa(self, sector: Sector) -> Status:
        return zns_commands.allocate_zrwa(self, sector)

    def flush_zrwa(self, sector: Sector) -> Status:
        """Move wp behind the block at *sector*, which is in the zone random write area of its zone: an explicit flush.

        Returns OUT_OF_RANGE, UNALIGNED, ZRWA_INVALID, ZRWA_RANGE, OPEN_RESOURCE or POISONED; UNSUPPORTED where zones
        have no areas. Nothing has changed then.
        """
        if self.intents and (answer := self.intents.answer(self.refusals, Operation.FLUSH_ZRWA, sector, 0)):
            return answer[0]
        return zns_commands.flush_zrwa(self, sector)

    def extension(self, zone_no: int) -> tuple[Status, bytes]:
        """Return the descriptor extension of zone *zone_no*, zeros if it has none; IO_ERROR if it is damaged."""
        return zns_commands.extension(self, zone_no)

    def power_cycle(self) -> None:
        """Do what :func:`zone_states.power_cycle` does.

        Raises:
            PoisonedError: the host failed to write. NoSpaceError: it is full.
        """
        power_cycle(self.device)

    # -- looking ----------------------------------------------------------------------------------------------

    def zone(self, zone_no: int) -> Zone:
        """Return a snapshot of zone *zone_no* (0 to nr_zones - 1)."""
        with self.device.lock:
            return self._machine.zone(zone_no)

    def report(self, zone_no: int, max_zones: int, conds: frozenset[Condition] | None = None) -> list[Zone]:
        """Return up to *max_zones* zones from number *zone_no* on, those in *conds* only if given.

        The lock is held while the states of a portion are copied, so a long report stops no other command.
        """
        machine, nr_zones = self._machine, self.geometry.nr_zones
        zones: list[Zone] = []
        while zone_no < nr_zones and (left := max_zones - len(zones)) > 0:
            end = min(zone_no + (_SCAN_PORTION if conds else min(left, _SCAN_PORTION)), nr_zones)
            with self.device.lock:
                cond_codes, wps = machine.conds[zone_no:end], machine.wps[zone_no:end]
                bits = machine.attributes[zone_no:end]
            found = range(len(cond_codes)) if conds is None else islice(indices_of(conds, cond_codes), left)
            zones += [machine.snapshot(zone_no + index, cond_codes[index], wps[index], bits[index]) for index in found]
            zone_no = end
        return zones

    def count(self, zone_no: int, conds: frozenset[Condition]) -> int:
        """Count the zones from number *zone_no* on whose condition is in *conds*; at the speed of a memory scan."""
        found = self._machine.conds
        nr_found = 0
        for first in range(zone_no, self.geometry.nr_zones, _SCAN_PORTION):
            with self.device.lock:
                nr_found += sum(found.count(cond, first, first + _SCAN_PORTION) for cond in conds)
        return nr_found
