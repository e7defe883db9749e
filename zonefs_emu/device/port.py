"""Port: every command of a front-end on a device.

A command returns a status for an error of the host or the guest and does not raise, except :meth:`Port.power_cycle`,
which no guest can request.

May not know: front-ends, protocols, event loops, injected faults (:mod:`faulty_port`). Sync and thread safe.

A long command releases the lock in between, and keeps other commands off its zones by a hold (:mod:`holds`). So no
command has the lock for longer than some milliseconds, for any number of zones and bytes.

Reads take no lock: they look at one zone's condition and write pointer, and a read that runs beside a reset may see the
zone before or after it, as on a drive.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from zonefs_emu.device import zns_commands, zone_management
from zonefs_emu.device.buffers import carve
from zonefs_emu.device.core import DeviceCore
from zonefs_emu.device.counters import Counter
from zonefs_emu.device.holds import Hold
from zonefs_emu.device.image_access import IOV_MAX
from zonefs_emu.device.intent_log import ALL_ZONES, IntentLog, Intents
from zonefs_emu.device.refusing import Refuser
from zonefs_emu.device.zone_states import power_cycle
from zonefs_emu.errors import HOST_ERRORS, CommandError, Status
from zonefs_emu.model.scan import indices_of
from zonefs_emu.model.transitions import Dialect, Operation, WriteRow
from zonefs_emu.model.zone import Condition, Zone
from zonefs_emu.units import SECTOR_SHIFT, Sector

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Zones whose states are copied or counted while the lock is held: for less than a millisecond.
_SCAN_PORTION: Final = 1 << 16

# Looked up once: a member of an enumeration costs more than a global name, and as an index a call.
_OK: Final = Status.OK
_READS: Final = int(Counter.READS)
_READ_SECTORS: Final = int(Counter.READ_SECTORS)
_WRITES: Final = int(Counter.WRITES)
_WRITTEN_SECTORS: Final = int(Counter.WRITTEN_SECTORS)
_APPENDS: Final = int(Counter.APPENDS)


class Port:
    """The access of one front-end to the device: its name for the log, its dialect, and every command.

    Commands return a Status (OK is falsy). Sectors everywhere; *buffers* are sequences of buffers of nr_sectors · 512
    bytes in total.
    """

    def __init__(self, device: DeviceCore, name: str, dialect: Dialect) -> None:
        """Use :meth:`ZonedDevice.port`."""
        self.device = device
        self.name = name
        self.dialect = dialect
        self.geometry = device.geometry
        #: The listeners that are notified of this port's changes.
        self.audience = device.listeners.audience(name)
        #: Notes refusals, including those by rules of a front-end.
        self.refusals = Refuser(device, name)
        #: Called with the length of an injected delay if the front-end can defer answers. The command is then carried
        #: out at once. Otherwise the port waits by the device's sleep_ns.
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
            if readable == nr_sectors and len(buffers) <= IOV_MAX:
                done = access.preadv(buffers, sector << SECTOR_SHIFT)
                if done == nr_sectors << SECTOR_SHIFT:
                    return _OK
            access.read_all(sector, readable, buffers)
        except OSError as error:
            return self.refusals.failed(Operation.READ, error, sector, nr_sectors)
        return Status.OK

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
                piece = carve(views, done << SECTOR_SHIFT, (done + part) << SECTOR_SHIFT)
                self._path.access.read_all(at, readable, piece)
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
        ZRWA_WRITE, ACTIVE_RESOURCE, OPEN_RESOURCE or POISONED: nothing has changed then. NO_SPACE: wp has not moved;
        with room the same write succeeds. IO_ERROR: wp has not moved; the host failed, after which the device takes no
        further writes, or the memory of *buffers* is lost, or the request is contested (:mod:`intent_log`).
        """
        if self.intents and (answer := self.intents.answer(self.refusals, Operation.WRITE, sector, nr_sectors)):
            return answer[0]
        return self._store(self._on_write, sector, nr_sectors, buffers)[0]

    def append(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> tuple[Status, Sector]:
        """Append *buffers*, *nr_sectors* in total, to the zone that starts at *sector*.

        Returns (OK, the sector where they landed), or (status, *sector*). The status is one of :meth:`write`, or
        CONVENTIONAL, NOT_ZONE_START, APPEND_LIMIT or ZRWA_INVALID.
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
        status = _OK
        while True:
            with path.lock:
                if path.held:
                    # An append names the start of its zone, and cannot go beyond it.
                    reach = nr_sectors if row is self._on_write else 1
                    self._holds.wait(zone_no, self.geometry.end_zone_no(sector, reach))
                try:
                    if row is self._on_write:
                        nr_moved = path.begin_write(sector, nr_sectors, self.dialect)
                    else:
                        landing = path.begin_append(sector, nr_sectors, self.dialect)
                except CommandError as error:
                    if self.device.wait_to_retry(error):
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
            try:
                image.apply_pending_resets(zone_no)
            except HOST_ERRORS as host_error:
                refused = CommandError(host_error.status, zone_no)
                return self.refusals.command(row.operation, refused, sector, nr_sectors), sector
        if hold is not None:
            with self._holds.kept(hold):
                status = self._write_long(row, hold, landing, nr_sectors, nr_moved, buffers)
        if status:
            return status, sector
        if image.is_lost:
            return self.refusals.lost(row.operation, landing, nr_sectors, zone_no=zone_no), sector
        counts = path.rows.get(zone_no) or path.load_row(zone_no)
        counts[_WRITES if row is self._on_write else _APPENDS] += 1
        counts[_WRITTEN_SECTORS] += nr_sectors
        return _OK, landing

    def _write_now(  # noqa: PLR0917  (positional: keywords would cost a twentieth of a write)
        self, row: WriteRow, zone_no: int, sector: Sector, nr_sectors: int, nr_moved: int, buffers: "Sequence[Buffer]"
    ) -> Status:
        """Move the bytes, then wp by *nr_moved*; with the lock held, after the machine's check."""
        intent_log = self.intents.current.log if self.intents else None
        if intent_log:
            intent_log.begin(row.operation, sector, nr_sectors, 0)
        access = self._path.access
        try:
            done = access.pwritev(buffers, sector << SECTOR_SHIFT) if len(buffers) <= IOV_MAX else 0
            if done != nr_sectors << SECTOR_SHIFT:
                access.write_all(sector, nr_sectors, buffers, done=done)
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
                self.device.publish_and_notify(changes, audience)
            else:
                path.publish(zone_no)
                if audience.listeners:
                    self.device.listeners.notify(audience.listeners, zone_no, 1)
        except Exception:
            self.device.take_back()
            raise

    def _begin_long(self, row: WriteRow, zone_no: int, sector: Sector, nr_sectors: int) -> Hold:
        """Take a hold for a write that has passed the machine's check, and open its zone; with the lock held.

        The zone is opened now, because the commit must not fail for lack of a resource. A write that fails leaves it
        open.
        """
        intent_log = self.intent_log()
        if intent_log:
            intent_log.begin(row.operation, sector, nr_sectors, 0)
        with self.device.changing():
            self.device.publish_and_notify(self._machine.open_to_write(zone_no, row), self.audience)
        return self._holds.take(zone_no, self.geometry.end_zone_no(sector, nr_sectors), writing=True)

    def _write_long(  # noqa: PLR0917  (as above)
        self, row: WriteRow, hold: Hold, sector: Sector, nr_sectors: int, nr_moved: int, buffers: "Sequence[Buffer]"
    ) -> Status:
        """Move the bytes without the lock, under *hold*, which the caller releases; then wp."""
        intent_log = self.intent_log()
        try:
            self._path.access.write_all(sector, nr_sectors, buffers, done=0)
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

    def has_pending_reset(self, zone_no: int) -> bool:
        """Return whether the next write to *zone_no* waits for a flush, because wp moved back since the last one."""
        old_extents = self._path.old_extents
        return zone_no < len(old_extents) and old_extents[zone_no] > 0 and self._image.has_pending_reset(zone_no)

    def intent_log(self) -> IntentLog | None:
        """Return the intent log of the request that this thread carries out, if there is one."""
        return self.intents.current.log if self.intents else None

    def flush(self) -> Status:
        """Make all answered commands survive a power cut. Blocks, so not to be called on an event loop.

        Returns IO_ERROR or NO_SPACE if the host failed now, POISONED if it failed earlier.
        """
        counters = self.device.counters
        if not self._image.readonly:
            try:
                self._image.flush()
            except HOST_ERRORS as error:
                return self.refusals.command(Operation.FLUSH, CommandError(error.status))
            counters.save_sometimes()
        counters.device[Counter.FLUSHES] += 1
        return Status.OK

    # -- zones ------------------------------------------------------------------------------------------------

    def manage(self, operation: Operation, sector: Sector, nr_zones: int = 1) -> Status:
        """Open, close, finish or reset *nr_zones* zones from the one that starts at *sector*: all of them, or none.

        Returns OUT_OF_RANGE, NOT_ZONE_START, CONVENTIONAL, ZONE_READONLY, ZONE_OFFLINE, BAD_TRANSITION,
        ACTIVE_RESOURCE, OPEN_RESOURCE or POISONED; nothing has changed then. IO_ERROR: the image's file is lost, or the
        request is contested (:mod:`intent_log`).
        """
        if self.intents and (answer := self.intents.answer(self.refusals, operation, sector, 0)):
            return answer[0]
        return self._manage(operation, sector, nr_zones)

    def _manage(self, operation: Operation, sector: Sector, nr_zones: int) -> Status:
        return zone_management.manage(self, operation, sector, nr_zones)

    def manage_all(self, operation: Operation) -> Status:
        """Open, close, finish or reset all zones whose condition the ALL form acts on.

        Returns OPEN_RESOURCE or POISONED; nothing has changed then. IO_ERROR: as :meth:`manage`.
        """
        if self.intents and (answer := self.intents.answer(self.refusals, operation, 0, ALL_ZONES)):
            return answer[0]
        return self._manage_all(operation)

    def _manage_all(self, operation: Operation) -> Status:
        return zone_management.manage_all(self, operation)

    def set_cond(self, zone_no: int, cond: Condition) -> Status:
        """Put a zone into *cond* as a failing medium would; see :meth:`ZoneMachine.set_cond` for what is possible.

        Returns OUT_OF_RANGE, CONVENTIONAL, BAD_TRANSITION, ACTIVE_RESOURCE or POISONED; nothing has changed then.
        IO_ERROR: the image's file is lost.
        """
        sector = zone_no * self.geometry.zone_size
        with self.device.lock:
            self._holds.wait(zone_no, zone_no + 1)
            try:
                self.device.require_writable(zone_no)
                with self.device.changing():
                    self.device.publish_and_notify(self._machine.set_cond(zone_no, cond), self.audience)
            except CommandError as error:
                return self.refusals.command(Operation.SET_COND, error, sector)
        return self.refusals.lost(Operation.SET_COND, sector, zone_no=zone_no) if self._image.is_lost else Status.OK

    def finish_by_controller(self, zone_no: int) -> Status:
        """Do what :func:`zns_commands.finish_by_controller` does."""
        return zns_commands.finish_by_controller(self, zone_no)

    def set_extension(self, sector: Sector, data: bytes, *, zrwa: bool = False) -> Status:
        """Give the EMPTY zone that starts at *sector* the descriptor extension *data*, and close it.

        *data* has as many bytes as the geometry says, or the answer is UNSUPPORTED. *zrwa*: with a zone random write
        area. The dialect is ZNS. May wait for a flush, as a write after a reset does.

        Returns OUT_OF_RANGE, NOT_ZONE_START, CONVENTIONAL, BAD_TRANSITION, ACTIVE_RESOURCE, ZRWA_UNAVAILABLE, POISONED
        or NO_SPACE; UNSUPPORTED also where zones have no extensions or areas. Nothing has changed then. IO_ERROR: the
        host failed.
        """
        if self.intents and (answer := self.intents.answer(self.refusals, Operation.SET_EXTENSION, sector, 0)):
            return answer[0]
        return zns_commands.set_extension(self, sector, data, zrwa=zrwa)

    def allocate_zrwa(self, sector: Sector) -> Status:
        """Open the EMPTY zone that starts at *sector*, with a zone random write area. The dialect is ZNS.

        May wait for a flush, as a write after a reset does.

        Returns OUT_OF_RANGE, NOT_ZONE_START, CONVENTIONAL, ZRWA_INVALID, ACTIVE_RESOURCE, OPEN_RESOURCE,
        ZRWA_UNAVAILABLE, POISONED or NO_SPACE; UNSUPPORTED where zones have no areas. Nothing has changed then.
        IO_ERROR: the host failed.
        """
        if self.intents and (answer := self.intents.answer(self.refusals, Operation.ALLOCATE_ZRWA, sector, 0)):
            return answer[0]
        return self._allocate_zrwa(sector)

    def _allocate_zrwa(self, sector: Sector) -> Status:
        return zns_commands.allocate_zrwa(self, sector)

    def flush_zrwa(self, sector: Sector) -> Status:
        """Move wp behind the block at *sector*, which is in the zone random write area of its zone: an explicit flush.

        Returns OUT_OF_RANGE, UNALIGNED, CONVENTIONAL, ZRWA_INVALID, ZRWA_RANGE, OPEN_RESOURCE or POISONED; UNSUPPORTED
        where zones have no areas. Nothing has changed then. IO_ERROR: the host failed.
        """
        if self.intents and (answer := self.intents.answer(self.refusals, Operation.FLUSH_ZRWA, sector, 0)):
            return answer[0]
        return zns_commands.flush_zrwa(self, sector)

    def extension(self, zone_no: int) -> tuple[Status, bytes]:
        """Return (OK, the descriptor extension of zone *zone_no*, zeros if it has none).

        Returns (IO_ERROR, nothing) if the extension is damaged or the host cannot read it.
        """
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
