"""The operation log: the commands of all front-ends, with their answers; and replaying such a log.

It has one JSON object in each line, so that a bug report can be read, cut and edited. The first line has the format and
the geometry. Data is not recorded, because the rules of zones do not depend on it; a replayed write stores the numbers
of its sectors.

The line of an operation has the injected faults that fired at it, with their effects, and not the conditions by which
they fire. So they fire again in a replay of a log that was cut, and independently of the order in which threads
counted.

The log is an observer: a command is recorded after it has been carried out, and an error of the log (a full disk, a
bug) ends the log and changes no answer.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Final

from zonefs_emu.device.core import DeviceCore
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.faulty_port import FaultyPort
from zonefs_emu.device.port import Port
from zonefs_emu.device.switch import Switch
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.errors import Status, UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import DIALECTS, Dialect, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import SECTOR_BYTES, SECTOR_SHIFT, Sector

if TYPE_CHECKING:
    from typing_extensions import Buffer

FORMAT: Final = "zonefs-emu operations 1"
_SET_COND: Final = "set-cond"
_EXCURSION: Final = "excursion"
_SET_EXTENSION: Final = "set-extension"
_ALLOCATE_ZRWA: Final = "allocate-zrwa"
_FLUSH_ZRWA: Final = "flush-zrwa"
_POWER_CYCLE: Final = "power-cycle"
_LINE_BYTES_MAX: Final = 4096
#: The longest first line, which has each run of conventional zones.
_HEAD_CHARACTERS_MAX: Final = 1 << 28
#: Sectors of a command in a log, at most.
NR_SECTORS_MAX: Final = 1 << 21
_NUMBER_MASK: Final = (1 << 64) - 1
#: The parts of a fault that are in the line of the operation at which it fired.
_TOLD: Final = {
    Effect.FAIL: ("status",),
    Effect.PARTIAL: ("status", "nr_sectors"),
    Effect.COND: ("cond",),
    Effect.EXCURSION: (),
    Effect.DELAY: ("delay_min_ns", "delay_max_ns"),
}
#: The effects that are replayed. A zone that failed or that the drive finished has a line of its own, and a replay does
#: not wait for delays.
_STRIKING: Final = frozenset((Effect.FAIL, Effect.PARTIAL))


class OpLog:
    """A log that is written to the text file *file*. After the first line, no method raises."""

    def __init__(self, file: IO[str], device: ZonedDevice) -> None:
        """Write the first line.

        Raises:
            OSError: it cannot be written.
        """
        self.switch = Switch("the operation log")
        self.switch.report_to(device.unforeseen.observer_failed)
        self._file = file
        self._lock = threading.Lock()  # lines of several threads do not mix
        self._started_ns = time.monotonic_ns()
        self._write({"format": FORMAT, "uuid": str(device.uuid), "geometry": asdict(device.geometry)})

    def record(
        self,
        port: Port,
        operation: str,
        status: Status,
        *,
        struck: Sequence[tuple[Fault, int]] = (),
        **facts: object,
    ) -> None:
        """Add one operation, with the faults that *struck* it and the zone of each, unless the log is off."""
        if self.switch.error is not None:
            return
        try:
            if struck:
                facts["faults"] = [_struck(fault, zone_no) for fault, zone_no in struck]
            self._write(
                {"ns": time.monotonic_ns() - self._started_ns, "port": port.name, "dialect": port.dialect.name,
                 "op": operation, **facts, "status": status.name}
            )  # fmt: skip
        except Exception as error:  # the boundary of observers
            self.switch.put_off(error)

    def close(self) -> None:
        """Close the file. If that fails, it is an error of the log as well."""
        try:
            self._file.close()
        except Exception as error:  # the boundary of observers
            self.switch.put_off(error)

    def _write(self, entry: dict[str, object]) -> None:
        line = json.dumps(entry) + "\n"
        with self._lock:
            self._file.write(line)


def _struck(fault: Fault, zone_no: int) -> dict[str, object]:
    told = {name: value for name, value in fault.as_dict().items() if name in _TOLD[fault.effect]}
    return {"effect": fault.effect.value, "zone_no": zone_no} | told


class RecordingPort(FaultyPort):
    """A port that notes every operation in a log."""

    def __init__(self, device: DeviceCore, name: str, dialect: Dialect, *, log: OpLog) -> None:
        """Use :func:`record`."""
        super().__init__(device, name, dialect)
        self._log = log
        # Per thread: the faults of the operation that the thread carries out.
        self._met = threading.local()

    def fired(self, operation: Operation, zone_no: int, nr_zones: int) -> list[tuple[Fault, int]]:
        """Note the faults that fire, for the line of the operation."""
        self._met.faults = fired = super().fired(operation, zone_no, nr_zones)
        return fired

    def _record(self, operation: str, status: Status, **facts: object) -> None:
        struck, self._met.faults = getattr(self._met, "faults", ()), ()
        self._log.record(self, operation, status, struck=struck, **facts)

    def read(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> Status:
        """Read and record."""
        status = super().read(sector, nr_sectors, buffers)
        self._record("read", status, sector=sector, nr_sectors=nr_sectors)
        return status

    def write(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> Status:
        """Write and record."""
        status = super().write(sector, nr_sectors, buffers)
        self._record("write", status, sector=sector, nr_sectors=nr_sectors)
        return status

    def append(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]") -> tuple[Status, Sector]:
        """Append and record."""
        status, landed = super().append(sector, nr_sectors, buffers)
        self._record("append", status, sector=sector, nr_sectors=nr_sectors, landed=landed)
        return status, landed

    def manage(self, operation: Operation, sector: Sector, nr_zones: int = 1) -> Status:
        """Manage zones and record."""
        status = super().manage(operation, sector, nr_zones)
        self._record(operation.name.lower(), status, sector=sector, nr_zones=nr_zones)
        return status

    def manage_all(self, operation: Operation) -> Status:
        """Manage all zones and record."""
        status = super().manage_all(operation)
        self._record(operation.name.lower(), status, all=True)
        return status

    def set_cond(self, zone_no: int, cond: Condition) -> Status:
        """Set a condition and record."""
        status = super().set_cond(zone_no, cond)
        # Without _record: a fault may set a condition in the middle of an operation.
        self._log.record(self, _SET_COND, status, zone_no=zone_no, cond=cond.name)
        return status

    def finish_by_controller(self, zone_no: int) -> Status:
        """Finish a zone as the drive does by itself and record, as :meth:`set_cond` does."""
        status = super().finish_by_controller(zone_no)
        self._log.record(self, _EXCURSION, status, zone_no=zone_no)
        return status

    def set_extension(self, sector: Sector, data: bytes, *, zrwa: bool = False) -> Status:
        """Set a descriptor extension and record, with its bytes in hexadecimal."""
        status = super().set_extension(sector, data, zrwa=zrwa)
        self._record(_SET_EXTENSION, status, sector=sector, data=data.hex(), **({"zrwa": True} if zrwa else {}))
        return status

    def allocate_zrwa(self, sector: Sector) -> Status:
        """Open a zone with a random write area and record."""
        status = super().allocate_zrwa(sector)
        self._record(_ALLOCATE_ZRWA, status, sector=sector)
        return status

    def flush_zrwa(self, sector: Sector) -> Status:
        """Flush a random write area and record."""
        status = super().flush_zrwa(sector)
        self._record(_FLUSH_ZRWA, status, sector=sector)
        return status

    def power_cycle(self) -> None:
        """Cycle the power and record."""
        super().power_cycle()
        self._record(_POWER_CYCLE, Status.OK)

    def flush(self) -> Status:
        """Flush and record."""
        status = super().flush()
        self._record("flush", status)
        return status


class TimedRecordingPort(TimedPort, RecordingPort):
    """A port that notes every operation, timed.

    If the port itself waits until an answer is due, a write, an append or zone management is noted after the wait, and
    any other operation before it.
    """


def record(device: ZonedDevice, file: IO[str]) -> OpLog:
    """Record the operations of all ports that *device* makes from now on in *file*; return the log, to be closed.

    Raises:
        OSError: the first line cannot be written.
    """
    log = OpLog(file, device)

    def recording_port(name: str, dialect: Dialect) -> Port:
        port_type = RecordingPort if device.timing is None else TimedRecordingPort
        return port_type(device, name, dialect, log=log)

    device.port_factory = recording_port
    return log


class ReplayingPort(FaultyPort):
    """A port at which the faults of a log fire again."""

    def __init__(self, device: DeviceCore, name: str, dialect: Dialect) -> None:
        """Use :func:`replay`."""
        super().__init__(device, name, dialect)
        self._script: list[Fault] = []

    def strike(self, faults: list[Fault]) -> None:
        """Let *faults* fire at the next operation, and only there."""
        self._script = faults
        self._faults = faults or self.device.faults.faults

    def fired(self, operation: Operation, zone_no: int, nr_zones: int) -> list[tuple[Fault, int]]:
        """Return the faults of the log that fire at this operation, and then those of the device."""
        script, self._script = self._script, []
        return [(fault, zone_no) for fault in script] + super().fired(operation, zone_no, nr_zones)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first difference of a replay: the line of the log, its answer, and the answer now."""

    line_no: int
    line: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The outcome of a replay."""

    nr_operations: int
    difference: Difference | None


def replay(lines: Iterable[str], device: ZonedDevice, *, progress: Callable[[int], None] = lambda _: None) -> Replayed:
    """Carry out the operations of *lines* on *device*, up to the first different answer.

    If the zone sizes differ, a sector is translated by its zone's number and its offset in the zone.

    Raises:
        UsageError: not an operation log, or a line of it is damaged; names the line.
    """
    make_port, device.port_factory = device.port_factory, partial(ReplayingPort, device)
    try:
        return _replay(lines, device, progress)
    finally:
        device.port_factory = make_port


def _replay(lines: Iterable[str], device: ZonedDevice, progress: Callable[[int], None]) -> Replayed:
    ports: dict[tuple[str, str], Port] = {}
    source: Geometry | None = None
    nr_operations = 0
    for line_no, line in enumerate(lines, 1):
        try:
            entry = parse_line(line, line_no)
        except UsageError as error:
            message = f"{error}{_carried_out(nr_operations)}"
            raise UsageError(message) from None
        if source is None:
            source = source_geometry(entry)
            continue
        try:
            dialect = next(dialect for dialect in DIALECTS if dialect.name == entry["dialect"])
            name = str(entry["port"])
            port = ports.get((name, dialect.name)) or ports.setdefault((name, dialect.name), device.port(name, dialect))
            assert isinstance(port, ReplayingPort)
            port.strike(_faults(entry))
            expected, found = _carry_out(entry, port, source)
        except (KeyError, StopIteration, TypeError, ValueError) as error:
            message = f"line {line_no} of the log is not an operation ({error!r}){_carried_out(nr_operations)}"
            raise UsageError(message) from None
        except UsageError as error:
            message = f"line {line_no} of the log: {error}{_carried_out(nr_operations)}"
            raise UsageError(message) from None
        nr_operations += 1
        progress(nr_operations)
        if expected != found:
            difference = Difference(line_no=line_no, line=line.rstrip("\n"), expected=expected, found=found)
            return Replayed(nr_operations=nr_operations, difference=difference)
    if source is None:
        message = "the log is empty: its first line should name the format"
        raise UsageError(message)
    return Replayed(nr_operations=nr_operations, difference=None)


def read_lines(file: IO[str]) -> Iterator[str]:
    """Yield the lines of the log *file*; of a line that is too long, a piece, which :func:`parse_line` refuses.

    So a file without line ends takes no more memory than one line of a log.
    """
    limit = _HEAD_CHARACTERS_MAX
    while line := file.readline(limit):
        yield line
        limit = _LINE_BYTES_MAX + 1


def _carried_out(nr_operations: int) -> str:
    return f"; the operations before it, {nr_operations}, were carried out" if nr_operations else ""


def parse_line(line: str, line_no: int) -> dict[str, object]:
    """Return the object in line *line_no* of a log.

    Raises:
        UsageError: it is damaged.
    """
    try:
        entry = json.loads(line) if len(line) <= _LINE_BYTES_MAX or line_no == 1 else None
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        message = f"line {line_no} of the log is not a JSON object on one line"
        raise UsageError(message)
    return entry


def source_geometry(entry: dict[str, object]) -> Geometry:
    """Return the geometry in *entry*, the first line of a log.

    Raises:
        UsageError: it is not the first line of a log.
    """
    geometry = entry.get("geometry")
    if entry.get("format") != FORMAT or not isinstance(geometry, dict):
        message = f"not an operation log: its first line should have the format '{FORMAT}'"
        raise UsageError(message)
    try:
        runs = tuple((int(first), int(count)) for first, count in geometry.pop("conventional"))
        return Geometry(conventional=runs, **geometry)
    except (KeyError, TypeError, ValueError) as error:
        message = f"the log's geometry is damaged ({error!r})"
        raise UsageError(message) from None


def _faults(entry: dict[str, object]) -> list[Fault]:
    """Return the faults that fired at the operation of *entry*, to fire again."""
    told = entry.get("faults", [])
    if not isinstance(told, list):
        raise TypeError(told)
    found = []
    for fault in told:
        effect = Effect(fault["effect"])
        if effect in _STRIKING:
            parts = {name: fault[name] for name in _TOLD[effect]}
            found.append(Fault.from_dict({"effect": effect.value, "operations": [entry["op"]], **parts}))
    return found


#: What a drive does to a zone without being asked.
_OF_DRIVE: Final[Mapping[str, Callable[[Port, int, Mapping[str, object]], Status]]] = MappingProxyType(
    {
        _SET_COND: lambda port, zone_no, entry: port.set_cond(zone_no, Condition[str(entry["cond"])]),
        _EXCURSION: lambda port, zone_no, _: port.finish_by_controller(zone_no),
    }
)
#: The commands that only the ZNS dialect has.
_OF_ZNS: Final[Mapping[str, Callable[[Port, Sector, Mapping[str, object]], Status]]] = MappingProxyType(
    {
        _ALLOCATE_ZRWA: lambda port, sector, _: port.allocate_zrwa(sector),
        _FLUSH_ZRWA: lambda port, sector, _: port.flush_zrwa(sector),
        _SET_EXTENSION: lambda port, sector, entry: port.set_extension(
            sector, bytes.fromhex(str(entry["data"])), zrwa=entry.get("zrwa") is True
        ),
    }
)


def _carry_out(entry: dict[str, object], port: Port, source: Geometry) -> tuple[str, str]:
    """Return the answer in the log, and the answer now."""

    def number(name: str) -> int:
        value = entry[name]
        if not isinstance(value, int):
            raise TypeError(name)
        return value

    def translated(sector: Sector) -> Sector:
        if source.zone_size == port.geometry.zone_size:
            return sector
        zone_no, offset = divmod(sector, source.zone_size)
        return port.geometry.zone_start(zone_no) + offset

    expected = Status[str(entry["status"])].name
    operation = str(entry["op"])
    if operation == "flush":
        return expected, port.flush().name
    if operation == _POWER_CYCLE:
        port.power_cycle()
        return expected, Status.OK.name
    if operation in _OF_DRIVE:
        return expected, _OF_DRIVE[operation](port, number("zone_no"), entry).name
    if entry.get("all"):
        return expected, port.manage_all(Operation[operation.upper()]).name
    sector = translated(number("sector"))
    if operation in ("open", "close", "finish", "reset"):
        return expected, port.manage(Operation[operation.upper()], sector, number("nr_zones")).name
    if operation in _OF_ZNS:
        return expected, _OF_ZNS[operation](port, sector, entry).name
    nr_sectors = number("nr_sectors")
    if not 0 <= nr_sectors <= NR_SECTORS_MAX:
        raise ValueError(nr_sectors)
    if operation == "read":
        return expected, port.read(sector, nr_sectors, (bytearray(nr_sectors << SECTOR_SHIFT),)).name
    data = (pattern(sector, nr_sectors),)
    if operation == "write":
        return expected, port.write(sector, nr_sectors, data).name
    if operation == "append":
        status, landed = port.append(sector, nr_sectors, data)
        if status:
            return expected, status.name
        return f"{expected} at sector {translated(number('landed'))}", f"{status.name} at sector {landed}"
    raise ValueError(operation)


def pattern(sector: Sector, nr_sectors: int) -> bytes:
    """Return *nr_sectors* sectors that each carry their own number, counted from *sector*, in 8 bytes."""
    # The sector may be invalid, as a guest may request any number.
    return b"".join((sector + i & _NUMBER_MASK).to_bytes(8, "little") * (SECTOR_BYTES // 8) for i in range(nr_sectors))
