"""A port with injected faults: a decorator of :class:`Port`, whose commands know nothing of faults.

A request that an earlier process has carried out is answered from its record, and no fault applies to it. So the faults
are asked after that look-up, and before the command is carried out. Without faults, a command costs one look at a list.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zonefs_emu.device.buffers import carve, total_bytes
from zonefs_emu.device.core import DeviceCore
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.port import Port
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import HOST_ERRORS, CommandError, Status
from zonefs_emu.model.transitions import Dialect, Operation, WriteRow
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, Condition, Zone
from zonefs_emu.units import SECTOR_SHIFT, Sector

if TYPE_CHECKING:
    from typing_extensions import Buffer


class FaultyPort(Port):
    """A port that asks the fault table before it carries out a command or reports zones."""

    # Looked up once: super() would take a tenth of the time that a read spends in Python.
    _plain_read = Port.read
    _plain_store = Port._store  # noqa: SLF001  (of its own base class)

    def __init__(self, device: DeviceCore, name: str, dialect: Dialect) -> None:
        """Use :meth:`ZonedDevice.port`."""
        super().__init__(device, name, dialect)
        #: The faults that may strike; empty where there are none.
        self._faults: Sequence[Fault] = device.faults.faults

    def read(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> Status:
        """Read, unless a fault fails it."""
        if self._faults and (status := self._struck(Operation.READ, sector, nr_sectors)):
            return status
        return self._plain_read(sector, nr_sectors, buffers)

    def _store(
        self, row: WriteRow, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]"
    ) -> tuple[Status, Sector]:
        if self._faults and (status := self._struck(row.operation, sector, nr_sectors, buffers)):
            return status, sector
        return self._plain_store(row, sector, nr_sectors, buffers)

    def flush(self) -> Status:
        """Flush, unless a fault fails it."""
        if self._faults and (status := self._struck(Operation.FLUSH, 0, 0, nr_zones=self.geometry.nr_zones)):
            return status
        return super().flush()

    def _manage(self, operation: Operation, sector: Sector, nr_zones: int) -> Status:
        if self._faults and (status := self._struck(operation, sector, 0, nr_zones=nr_zones)):
            return status
        return super()._manage(operation, sector, nr_zones)

    def _allocate_zrwa(self, sector: Sector) -> Status:
        if self._faults and (status := self._struck(Operation.OPEN, sector, 0)):
            return status
        return super()._allocate_zrwa(sector)

    def _manage_all(self, operation: Operation) -> Status:
        if self._faults and (status := self._struck(operation, 0, 0, nr_zones=self.geometry.nr_zones)):
            return status
        return super()._manage_all(operation)

    def zone(self, zone_no: int) -> Zone:
        """Return a snapshot of zone *zone_no*, changed as the faults say."""
        zone = super().zone(zone_no)
        return self.device.faults.reported(zone) if self._faults else zone

    def report(self, zone_no: int, max_zones: int, conds: frozenset[Condition] | None = None) -> list[Zone]:
        """Report zones, changed as the faults say."""
        zones = super().report(zone_no, max_zones, conds)
        return [self.device.faults.reported(zone) for zone in zones] if self._faults else zones

    def _struck(
        self,
        operation: Operation,
        sector: Sector,
        nr_sectors: int,
        buffers: "Sequence[Buffer]" = (),
        *,
        nr_zones: int = 0,
    ) -> Status:
        """Apply the faults that fire at this operation; return OK if the operation is then to be carried out.

        *nr_zones*: the number of zones that it is on, if *nr_sectors* does not say so.
        """
        first = self.geometry.zone_no(sector)
        nr_zones = nr_zones or self.geometry.end_zone_no(sector, nr_sectors) - first
        try:
            fired = self.fired(operation, first, nr_zones)
        except HOST_ERRORS as error:
            return self.refusals.command(operation, CommandError(error.status, first), sector, nr_sectors)
        for fault, zone_no in fired:
            match fault.effect:
                case Effect.DELAY:
                    (self.defer or self.device.sleep_ns)(fault.delay_ns())
                case Effect.COND:
                    self.set_cond(zone_no, fault.cond)
                case Effect.EXCURSION:
                    if self.device.machine.conds[zone_no] in ACTIVE_CONDITIONS:
                        self.finish_by_controller(zone_no)
                case Effect.FAIL:
                    return self._fail(operation, fault.status, sector, nr_sectors, zone_no)
                case Effect.PARTIAL:
                    self._store_part(operation, sector, min(fault.nr_sectors, nr_sectors), buffers)
                    return self._fail(operation, fault.status, sector, nr_sectors, zone_no)
                case _:  # faults that change reports never fire
                    raise AssertionError(fault)
        return Status.OK

    def fired(self, operation: Operation, zone_no: int, nr_zones: int) -> list[tuple[Fault, int]]:
        """Count *operation* on the *nr_zones* zones from *zone_no* on; the counts survive a kill.

        Returns the faults that fire, each with its zone.

        Raises:
            PoisonedError: the host failed to write the counts. NoSpaceError: it is full.
        """
        faults = self.device.faults
        nr_counted = faults.nr_counted
        fired = faults.fired(operation, zone_no, nr_zones)
        if faults.nr_counted != nr_counted and not self._image.poison:
            # The firing of a fault must be durable. At other matches, a sync would take longer than most delays.
            durably = any(not fault.every or fault.seen == fault.nth for fault, _ in fired)
            self.device.save_faults(durably=durably)
        return fired

    def _fail(self, operation: Operation, status: Status, sector: Sector, nr_sectors: int, zone_no: int) -> Status:
        # A flush has no zone.
        place = -1 if operation is Operation.FLUSH else zone_no
        return self.refusals.refuse(DeviceRule.INJECTED, operation, status, sector, nr_sectors, zone_no=place)

    def _store_part(self, operation: Operation, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> None:
        """Write the first *nr_sectors* of *buffers*, like a drive that fails half way; refusals are noted.

        A request that ends beyond the device may come without its data, because the device refuses it before it needs
        the data.
        """
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        nr_sectors = min(nr_sectors, total_bytes(views) >> SECTOR_SHIFT)
        row = self._on_write if operation is Operation.WRITE else self._on_append
        super()._store(row, sector, nr_sectors, carve(views, 0, nr_sectors << SECTOR_SHIFT))
