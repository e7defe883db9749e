"""A port whose answers take as long as those of a real drive: a decorator of the commands of :class:`Port`.

Commands are carried out at once, and only the answer waits. So timing does not change what is stored or answered.
Refused commands and flushes take no time.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from zonefs_emu.device.alarm import Alarm, HeldAnswer
from zonefs_emu.device.core import DeviceCore
from zonefs_emu.device.faulty_port import FaultyPort
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import Dialect, Operation, WriteRow
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import Sector

if TYPE_CHECKING:
    from typing_extensions import Buffer

_READ: Final = Operation.READ
#: How many zones of one command are timed one by one; the others take the average of these. Otherwise computing the
#: time of a reset of a million zones would take seconds.
_ZONES_MAX: Final = 1024
#: The state of a zone that does not exist; commands on it are refused.
_NO_ZONE: Final = (int(Condition.OFFLINE), 0)
#: Conditions of zones that a command on all zones does not change.
_UNTOUCHED: Final = frozenset((Condition.EMPTY, Condition.NOT_WP, Condition.READONLY, Condition.OFFLINE))


class TimedPort(FaultyPort):
    """A timed port with injected faults. An injected delay comes before the drive's own time."""

    # Looked up once: super() would take a tenth of the time that a read spends in Python.
    _faulty_read = FaultyPort.read
    _faulty_store = FaultyPort._store  # noqa: SLF001  (of its own base class)

    def clock(self) -> int:
        """Return the time on the clock of held answers, in nanoseconds."""
        return self._timing.clock()

    @property
    def alarm(self) -> Alarm:
        """The alarm that wakes a front-end that holds answers."""
        return self._timing.alarm

    def __init__(self, device: DeviceCore, name: str, dialect: Dialect, **options: Any) -> None:  # noqa: ANN401
        """Use :meth:`ZonedDevice.port`. *options* are those of the other base classes of a subclass."""
        super().__init__(device, name, dialect, **options)
        assert device.timing is not None
        self._timing = device.timing
        self._conds = device.machine.conds
        self._wps = device.machine.wps
        self._nr_zones = device.geometry.nr_zones
        #: Called with (due, arrival) on the clock, if the front-end can defer answers itself.
        self.hold: Callable[[int, int], object] | None = None
        #: For :attr:`hold`: for each thread, when its last command is to be answered.
        self.held = HeldAnswer()
        # For each thread: when the present operation had passed the faults.
        self._struck_ns = threading.local()

    def read(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> Status:
        """Read, as slowly as the drive."""
        timing = self._timing
        arrival_ns = timing.clock()
        status = self._faulty_read(sector, nr_sectors, buffers)
        if not status:
            if self._faults:
                arrival_ns = self._arrival_ns(arrival_ns)
            zone_no = sector // self._path.zone_size
            due_ns = timing.submit(
                _READ, zone_no, sector, nr_sectors,
                cond=self._conds[zone_no], written_sectors=self._wps[zone_no], arrival_ns=arrival_ns,
            )  # fmt: skip
            self._hold(due_ns, arrival_ns)
        return status

    def _store(
        self, row: WriteRow, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]"
    ) -> tuple[Status, Sector]:
        timing = self._timing
        arrival_ns = timing.clock()
        zone_no = sector // self._path.zone_size
        # As _state() does, a call of which would be a fiftieth of the time.
        cond, written_sectors = (self._conds[zone_no], self._wps[zone_no]) if zone_no < self._nr_zones else _NO_ZONE
        answer = self._faulty_store(row, sector, nr_sectors, buffers)
        if not answer[0]:
            if self._faults:
                arrival_ns = self._arrival_ns(arrival_ns)
            due_ns = timing.submit(
                row.operation, zone_no, sector, nr_sectors,
                cond=cond, written_sectors=written_sectors, arrival_ns=arrival_ns,
            )  # fmt: skip
            self._hold(due_ns, arrival_ns)
        return answer

    def _manage(self, operation: Operation, sector: Sector, nr_zones: int) -> Status:
        first = sector // self.geometry.zone_size
        end = min(first + nr_zones, self.geometry.nr_zones)
        return self._managed(operation, range(first, end), partial(super()._manage, operation, sector, nr_zones))

    def _manage_all(self, operation: Operation) -> Status:
        return self._managed(operation, self._touched(), partial(super()._manage_all, operation))

    def _allocate_zrwa(self, sector: Sector) -> Status:
        return self._managed_as(Operation.OPEN, sector, partial(super()._allocate_zrwa, sector))

    def set_extension(self, sector: Sector, data: bytes, *, zrwa: bool = False) -> Status:
        """Set a descriptor extension, as slowly as a drive opens a zone."""
        return self._managed_as(Operation.OPEN, sector, partial(super().set_extension, sector, data, zrwa=zrwa))

    def flush_zrwa(self, sector: Sector) -> Status:
        """Flush an area explicitly, as slowly as a drive closes a zone."""
        return self._managed_as(Operation.CLOSE, sector, partial(super().flush_zrwa, sector))

    def _managed_as(self, operation: Operation, sector: Sector, command: Callable[[], Status]) -> Status:
        """Do *command* in the time of *operation*: its own time was not measured."""
        zone_no = min(sector // self.geometry.zone_size, self.geometry.nr_zones)
        return self._managed(operation, (zone_no,), command)

    def _touched(self) -> Sequence[int]:
        """Return the zones that an operation on all zones may change."""
        return [zone_no for zone_no, cond in enumerate(bytes(self._machine.conds)) if cond not in _UNTOUCHED]

    def _managed(self, operation: Operation, zones: Sequence[int], command: Callable[[], Status]) -> Status:
        arrival_ns = self._timing.clock()
        states = self._states(zones)
        status = command()
        if not status and states:
            if self._faults:
                arrival_ns = self._arrival_ns(arrival_ns)
            self._hold(self._ask_zones(operation, zones, arrival_ns, states), arrival_ns)
        return status

    def _struck(
        self,
        operation: Operation,
        sector: Sector,
        nr_sectors: int,
        buffers: "Sequence[Buffer]" = (),
        *,
        nr_zones: int = 0,
    ) -> Status:
        status = super()._struck(operation, sector, nr_sectors, buffers, nr_zones=nr_zones)
        self._struck_ns.now = self._timing.clock()
        return status

    def _arrival_ns(self, arrival_ns: int) -> int:
        """Return when an operation that came at *arrival_ns* reached the drive, where faults may have delayed it."""
        # No fault strikes some operations, and then the noted time is that of an earlier one.
        return max(arrival_ns, getattr(self._struck_ns, "now", 0))

    def _state(self, zone_no: int) -> tuple[int, int]:
        """Return the condition of *zone_no* and how many sectors of it are written; without the lock, as reads do."""
        return (self._conds[zone_no], self._wps[zone_no]) if zone_no < self._nr_zones else _NO_ZONE

    def answered(self, due_ns: int, arrival_ns: int) -> None:
        """Note that an answer that was due at *due_ns* is sent now."""
        self._timing.answered(due_ns, arrival_ns, self._timing.clock())

    def _states(self, zones: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
        return [(zone_no, self._state(zone_no)) for zone_no in zones[:_ZONES_MAX]]

    def _ask_zones(
        self,
        operation: Operation,
        zones: Sequence[int],
        arrival_ns: int,
        states: Sequence[tuple[int, tuple[int, int]]],
    ) -> int:
        """Return when *operation* on *zones* is due; *states* are those of the first zones before it."""
        size = self.geometry.zone_size
        due_ns = max(
            self._timing.submit(
                operation, zone_no, zone_no * size, 0, cond=cond, written_sectors=written_sectors, arrival_ns=arrival_ns
            )
            for zone_no, (cond, written_sectors) in states
        )
        return arrival_ns + (due_ns - arrival_ns) * len(zones) // len(states)

    def _hold(self, due_ns: int, arrival_ns: int) -> None:
        """Hold the answer until *due_ns*: in the front-end if it can defer answers, otherwise by waiting."""
        if self.hold is not None:
            self.hold(due_ns, arrival_ns)
            return
        timing = self._timing
        now_ns = timing.clock()
        if now_ns < due_ns:
            if self.defer is not None:
                self.defer(due_ns - now_ns)
                now_ns = due_ns
            else:
                self.device.sleep_ns(due_ns - now_ns)
                now_ns = timing.clock()
        timing.answered(due_ns, arrival_ns, now_ns)
