"""The conformance suite: the same zone scenarios through the device itself, virtio-blk, SCSI and zonefs.

    expected = run(shape, DeviceAdapter, directory)
    for adapter in (BlkAdapter, ScsiAdapter, FuseAdapter):
        assert not differences(expected, run(shape, adapter, directory))

A *scenario* is data: steps, each an operation on a zone and the status that the standards want for it. An *adapter*
translates a step into its own protocol, and an answer back into the statuses that it can mean. Protocols have fewer
codes (SCSI has one for four statuses, zonefs has EIO for most), so an answer is right if the expected status is one of
its meanings. After each step the zones must equal those behind the device's own adapter, as the daemon has them and as
the protocol reports them. After each scenario the data must be equal too.

The meanings are stated here, from the standards. They are not taken from the tables of the front-ends, because these
tables are tested.

A step that a protocol cannot express (zonefs has no "close") is done by the command line, through the daemon that
serves. So every scenario also mixes two front-ends.
"""

import errno
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, cast
from uuid import uuid4

from zonefs_emu.daemon.client import call
from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status, UsageError
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.fs.mkfs import examine, format_device, parse_features
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition, Zone, ZoneType
from zonefs_emu.testing import scsi_driver
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.scenarios import (
    CAPACITY,
    CONVENTIONAL,
    CONVENTIONAL_ZONE,
    NR_CONVENTIONAL,
    SCENARIOS,
    Step,
    manage_step,
    read_step,
)
from zonefs_emu.testing.scsi_driver import FIRST_REQUEST_QUEUE, ScsiDriver
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.testing.zoned_device import DeviceUnderTest
from zonefs_emu.units import SECTOR_BYTES, Sector, to_bytes

_S = Status
_O = Operation
_C = Condition


# -- adapters --------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """The answer to a step: the statuses that it can mean, its code as text, data read, and the sector of an append."""

    meanings: frozenset[Status]
    code: str
    data: bytes = b""
    landed: Sector = -1


class View(NamedTuple):
    """A zone as a protocol shows it, in sectors; None for what it does not show."""

    zone_no: int
    type: int
    capacity: Sector
    cond: int | None
    written: Sector | None


class Place(NamedTuple):
    """A step with its numbers, absolute; *data* is what it writes."""

    step: Step
    zone_no: int
    sector: Sector
    nr_sectors: Sector
    data: bytes


class Adapter(Protocol):
    """A way to the device. *device* is served or not, as the adapter needs it, and has a zonefs."""

    name: str

    def __init__(self, device: DeviceUnderTest, stack: ExitStack) -> None:
        """Connect to the device; what has to be undone goes to *stack*."""
        ...

    def do(self, place: Place) -> Answer | None:
        """Do a step, or return None if the protocol cannot express it."""
        ...

    def views(self) -> list[View]:
        """Return all zones that the protocol shows."""
        ...


_OK: Final = frozenset((_S.OK,))


class DeviceAdapter:
    """The device's own port: what the others are compared with."""

    name = "device"

    def __init__(self, device: DeviceUnderTest, stack: ExitStack) -> None:
        """See :class:`Adapter`."""
        del stack
        self._port: Port = device.port

    def do(self, place: Place) -> Answer:
        """See :class:`Adapter`."""
        port, step, buffer, landed = self._port, place.step, bytearray(), -1
        match step.operation:
            case Operation.READ:
                buffer = bytearray(to_bytes(place.nr_sectors))
                status = port.read(place.sector, place.nr_sectors, [buffer])
            case Operation.WRITE:
                status = port.write(place.sector, place.nr_sectors, [place.data])
            case Operation.APPEND:
                status, landed = port.append(place.sector, place.nr_sectors, [place.data])
            case _:
                status = (
                    port.manage_all(step.operation) if step.everywhere else port.manage(step.operation, place.sector)
                )
        return Answer(frozenset((status,)), status.name, bytes(buffer) if not status else b"", landed)

    def views(self) -> list[View]:
        """See :class:`Adapter`."""
        return [view_of(zone) for zone in self._port.report(0, self._port.geometry.nr_zones)]


#: Source: virtio 1.4, block device, "Device Operation".
_BLK_MEANINGS: Final[Mapping[int, frozenset[Status]]] = MappingProxyType(
    {
        0: _OK,
        1: frozenset((_S.OUT_OF_RANGE, _S.UNALIGNED, _S.IO_ERROR, _S.NO_SPACE, _S.POISONED)),
        2: frozenset((_S.UNSUPPORTED,)),
        3: frozenset(
            (
                _S.OUT_OF_RANGE, _S.ZONE_BOUNDARY, _S.READ_BOUNDARY, _S.ZONE_FULL, _S.ZONE_READONLY, _S.ZONE_OFFLINE,
                _S.NOT_ZONE_START, _S.CONVENTIONAL, _S.BAD_TRANSITION, _S.APPEND_LIMIT,
            )
        ),
        4: frozenset((_S.UNALIGNED_WP,)),
        5: frozenset((_S.OPEN_RESOURCE,)),
        6: frozenset((_S.ACTIVE_RESOURCE,)),
    }
)  # fmt: skip
_BLK_KINDS: Final[Mapping[Operation, int]] = MappingProxyType(
    {Operation.OPEN: 18, Operation.CLOSE: 20, Operation.FINISH: 22, Operation.RESET: 24}
)
_BLK_RESET_ALL: Final = 26


class BlkAdapter:
    """virtio-blk: requests on a ring that a daemon serves."""

    name = "blk"

    def __init__(self, device: DeviceUnderTest, stack: ExitStack) -> None:
        """See :class:`Adapter`."""
        frontend = stack.enter_context(Frontend(device.serve("blk")))
        frontend.start()
        self._driver = BlkDriver(frontend.queues[0])
        self._geometry = device.geometry

    def do(self, place: Place) -> Answer | None:
        """See :class:`Adapter`."""
        driver, step, data, landed = self._driver, place.step, b"", -1
        match step.operation:
            case Operation.READ:
                status, data = driver.read(place.sector, to_bytes(place.nr_sectors))
            case Operation.WRITE:
                status = driver.write(place.sector, place.data)
            case Operation.APPEND:
                status, landed = driver.append(place.sector, place.data)
            case operation if not step.everywhere:
                status = driver.manage(_BLK_KINDS[operation], place.sector)
            case Operation.RESET:
                status = driver.manage(_BLK_RESET_ALL, 0)
            case _:
                return None
        return Answer(_BLK_MEANINGS[status], f"virtio-blk {status}", data if not status else b"", landed)

    def views(self) -> list[View]:
        """See :class:`Adapter`."""
        status, zones = self._driver.report(0, self._geometry.nr_zones)
        assert not status, f"a report answers virtio-blk {status}"
        return [
            View(zone_no, zone.type, zone.capacity, zone.cond, _written(zone.cond, zone.wp - zone.start))
            for zone_no, zone in enumerate(zones)
            if zone.start == zone_no * self._geometry.zone_size
        ]


#: Source: ZBC-2, "Write pointer zones", and the sense codes of its commands.
_SCSI_MEANINGS: Final[Mapping[tuple[int, int, int] | None, frozenset[Status]]] = MappingProxyType(
    {
        None: _OK,
        (0x5, 0x21, 0x00): frozenset((_S.OUT_OF_RANGE,)),
        (0x5, 0x21, 0x04): frozenset((_S.UNALIGNED_WP,)),
        (0x5, 0x21, 0x05): frozenset((_S.ZONE_BOUNDARY,)),
        (0x5, 0x21, 0x07): frozenset((_S.READ_BOUNDARY,)),
        (0x5, 0x21, 0x09): frozenset((_S.READ_BOUNDARY, _S.ZONE_BOUNDARY)),
        (0x5, 0x24, 0x00): frozenset((_S.ZONE_FULL, _S.NOT_ZONE_START, _S.CONVENTIONAL, _S.BAD_TRANSITION)),
        (0x7, 0x27, 0x08): frozenset((_S.ZONE_READONLY,)),
        (0x7, 0x2C, 0x0E): frozenset((_S.ZONE_OFFLINE,)),
        (0x7, 0x55, 0x0E): frozenset((_S.OPEN_RESOURCE, _S.ACTIVE_RESOURCE)),
    }
)
_SCSI_ACTIONS: Final[Mapping[Operation, int]] = MappingProxyType(
    {
        Operation.OPEN: scsi_driver.OPEN,
        Operation.CLOSE: scsi_driver.CLOSE,
        Operation.FINISH: scsi_driver.FINISH,
        Operation.RESET: scsi_driver.RESET,
    }
)
_GAP: Final = 5


class ScsiAdapter:
    """SCSI commands in virtio-scsi requests on a ring that a daemon serves."""

    name = "scsi"

    def __init__(self, device: DeviceUnderTest, stack: ExitStack) -> None:
        """See :class:`Adapter`."""
        frontend = stack.enter_context(Frontend(device.serve("scsi"), nr_queues=FIRST_REQUEST_QUEUE + 1))
        frontend.start()
        self._geometry = device.geometry
        self._unit = device.geometry.block_sectors
        self._driver = ScsiDriver(frontend.queues[FIRST_REQUEST_QUEUE], device.geometry.block_size_bytes)

    def do(self, place: Place) -> Answer:
        """See :class:`Adapter`."""
        driver, step, landed = self._driver, place.step, -1
        lba = place.sector // self._unit
        match step.operation:
            case Operation.READ:
                reply = driver.read(lba, place.nr_sectors // self._unit)
            case Operation.WRITE:
                reply = driver.write(lba, place.data)
            case Operation.APPEND:
                # Linux translates an append into a write at wp, which it knows.
                (zone,) = driver.report(lba, 1)
                landed = zone.wp * self._unit
                reply = driver.write(zone.wp, place.data)
            case operation:
                reply = driver.manage(_SCSI_ACTIONS[operation], lba, all_zones=step.everywhere)
        code = "GOOD" if reply.sense is None else "sense {:X}h/{:02X}h/{:02X}h".format(*reply.sense)
        return Answer(_SCSI_MEANINGS.get(reply.sense, frozenset()), code, reply.data, landed)

    def views(self) -> list[View]:
        """See :class:`Adapter`."""
        unit, zone_size = self._unit, self._geometry.zone_size
        zones = self._driver.report(0, 2 * self._geometry.nr_zones)
        # They cover the disk, gaps included.
        assert [zone.start for zone in zones[1:]] == [zone.start + zone.length for zone in zones[:-1]]
        return [
            View(
                zone.start * unit // zone_size, zone.type, zone.length * unit, zone.cond,
                _written(zone.cond, (zone.wp - zone.start) * unit),
            )
            for zone in zones
            if zone.type != _GAP
        ]  # fmt: skip


#: The errno of zonefs, and of the block layer below it, for each refusal.
#: Source: Documentation/filesystems/zonefs.rst; Linux block/blk-core.c, blk_errors.
_FUSE_MEANINGS: Final[Mapping[int, frozenset[Status]]] = MappingProxyType(
    {
        0: _OK,
        errno.EINVAL: frozenset((_S.UNALIGNED_WP, _S.UNALIGNED, _S.CONVENTIONAL)),
        errno.EFBIG: frozenset((_S.ZONE_BOUNDARY, _S.ZONE_FULL)),
        errno.EPERM: frozenset((_S.ZONE_READONLY, _S.ZONE_OFFLINE, _S.CONVENTIONAL)),
        errno.EIO: frozenset((_S.ZONE_READONLY, _S.ZONE_OFFLINE)),
        errno.ETOOMANYREFS: frozenset((_S.OPEN_RESOURCE,)),
        errno.EOVERFLOW: frozenset((_S.ACTIVE_RESOURCE,)),
    }
)


class FuseAdapter:
    """zonefs, mounted: files are zones, their sizes are write pointers."""

    name = "fuse"

    def __init__(self, device: DeviceUnderTest, stack: ExitStack) -> None:
        """See :class:`Adapter`."""
        del stack  # the device unmounts
        self._root = device.mount("errors=repair")
        self._geometry = device.geometry

    def _path(self, zone_no: int) -> Path:
        # Zone 0 has the super block and is no file.
        if zone_no < NR_CONVENTIONAL:
            return self._root / "cnv" / str(zone_no - 1)
        return self._root / "seq" / str(zone_no - NR_CONVENTIONAL)

    def do(self, place: Place) -> Answer | None:
        """See :class:`Adapter`."""
        operation, landed, data = place.step.operation, -1, b""
        if operation in (Operation.OPEN, Operation.CLOSE):
            return None
        path = self._path(place.zone_no)
        try:
            match operation:
                case Operation.READ:
                    data = _direct_read(path, place.sector % self._geometry.zone_size, place.nr_sectors)
                case Operation.WRITE:
                    _direct_write(path, place.data, place.sector % self._geometry.zone_size)
                case Operation.APPEND:
                    landed = place.sector + _direct_write(path, place.data, None)
                case Operation.RESET if place.step.everywhere:
                    for file in (self._root / "seq").iterdir():
                        if file.stat().st_mode & 0o222:
                            os.truncate(file, 0)
                case Operation.RESET:
                    os.truncate(path, 0)
                case _:  # FINISH
                    os.truncate(path, to_bytes(self._geometry.zone_cap(place.zone_no)))
        except OSError as error:
            number = error.errno or 0
            return Answer(_FUSE_MEANINGS.get(number, frozenset()), errno.errorcode.get(number, str(number)))
        return Answer(_OK, "done", data, landed)

    def views(self) -> list[View]:
        """See :class:`Adapter`."""
        views = []
        for zone_no in range(1, self._geometry.nr_zones):
            status = self._path(zone_no).stat()
            sequential = zone_no >= NR_CONVENTIONAL
            capacity = status.st_blocks * 512 // SECTOR_BYTES
            size = status.st_size // SECTOR_BYTES
            full = sequential and size == capacity
            # The size of a file that may not be written says nothing about its zone.
            hidden = not sequential or full or not status.st_mode & 0o222
            views.append(
                View(
                    zone_no, ZoneType.SWR if sequential else ZoneType.CONVENTIONAL, capacity,
                    Condition.FULL if full and status.st_mode & 0o222 else None, None if hidden else size,
                )
            )  # fmt: skip
        return views


def _direct_read(path: Path, sector: Sector, nr_sectors: Sector) -> bytes:
    """Read past the page cache. Bytes beyond the end of the file are zeros, as those beyond wp of a zone."""
    length = to_bytes(nr_sectors)
    with mmap.mmap(-1, length) as buffer:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            done = os.preadv(fd, [buffer], to_bytes(sector))
        finally:
            os.close(fd)
        return buffer[:done].ljust(length, b"\0")


def _direct_write(path: Path, data: bytes, sector: Sector | None) -> Sector:
    """Write past the page cache at *sector* of the file, or append; return where it landed.

    Raises:
        OSError: as the file system says; EFBIG for a write that was cut short.
    """
    with mmap.mmap(-1, len(data)) as buffer:
        buffer[:] = data
        fd = os.open(path, os.O_WRONLY | os.O_DIRECT | (os.O_APPEND if sector is None else 0))
        try:
            done = os.pwritev(fd, [buffer], to_bytes(sector)) if sector is not None else os.writev(fd, [buffer])
            if done != len(data):
                raise OSError(errno.EFBIG, "a short write")
            # Only the size afterwards says where an O_APPEND write landed.
            return os.fstat(fd).st_size // SECTOR_BYTES - len(data) // SECTOR_BYTES
        finally:
            os.close(fd)


ADAPTERS: Final[tuple[type[Adapter], ...]] = (DeviceAdapter, BlkAdapter, ScsiAdapter, FuseAdapter)


# -- running ----------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """The result of one step: its place, the answer, and all zones after it as the daemon has them."""

    where: str
    step: Step
    answer: Answer | None
    zones: Sequence[Zone]
    views: Sequence[View]


def _written(cond: int, wp_offset: Sector) -> Sector | None:
    """Return *wp_offset* where wp has a meaning."""
    return wp_offset if cond in (_C.EMPTY, _C.IMP_OPEN, _C.EXP_OPEN, _C.CLOSED) else None


def view_of(zone: Zone) -> View:
    """Return *zone* as a protocol that shows everything would."""
    return View(zone.zone_no, zone.type, zone.capacity, zone.cond, _written(zone.cond, zone.wp - zone.start))


class _Run:
    """One adapter and all scenarios, on one new device."""

    def __init__(self, device: DeviceUnderTest, adapter: Adapter) -> None:
        self._device = device
        self._adapter = adapter
        self._geometry = device.geometry
        self._next_zone = NR_CONVENTIONAL
        self._nr_steps = 0

    def results(self) -> Iterator[Result]:
        """Yield the results of all steps of all scenarios, and of the cleaning up between them."""
        for scenario in SCENARIOS:
            if scenario.block_size_bytes not in (0, self._geometry.block_size_bytes):
                continue
            first = self._next_zone
            self._next_zone += scenario.nr_zones
            for number, step in enumerate(scenario.steps):
                if step.zone == CONVENTIONAL and not self._geometry.conventional:
                    continue
                yield self._do(f"{scenario.name}, step {number} ({step.operation.name})", step, first)
            # The data is compared, and the zones are reset, so that the next scenario has all resources.
            for number, zone in enumerate(self._device.report()[first : self._next_zone]):
                lost = _S.ZONE_OFFLINE if zone.cond is _C.OFFLINE else _S.OK
                yield self._do(f"after {scenario.name}", read_step(number, expected=lost), first)
                if zone.cond not in (_C.READONLY, _C.OFFLINE):
                    yield self._do(f"after {scenario.name}", manage_step(_O.RESET, number), first)

    def _do(self, where: str, step: Step, first: int) -> Result:
        self._nr_steps += 1
        answer = None
        if self._adapter.name not in step.cannot:
            place = self._place(step, first)
            answer = self._by_hand(place) if step.operation is _O.SET_COND else self._adapter.do(place)
            if answer is None:
                answer = self._by_hand(place)
        return Result(where, step, answer, self._device.report(), self._adapter.views())

    def _place(self, step: Step, first: int) -> Place:
        geometry = self._geometry
        match step.zone:
            case -1:  # CONVENTIONAL
                zone_no = CONVENTIONAL_ZONE
            case -2:  # BEYOND
                zone_no = geometry.nr_zones
            case _:
                zone_no = first + step.zone
        capacity = geometry.zone_cap(zone_no) if zone_no < geometry.nr_zones else geometry.zone_size
        sector = geometry.zone_start(zone_no) + (capacity if step.from_end else 0) + step.at
        nr_sectors = capacity if step.nr_sectors == CAPACITY else step.nr_sectors
        data = b""
        if step.operation in (_O.WRITE, _O.APPEND):
            # Each sector has data of its own, different in each step.
            data = b"".join(
                (self._nr_steps << 32 | number).to_bytes(8, "little") * (SECTOR_BYTES // 8)
                for number in range(nr_sectors)
            )
        return Place(step, zone_no, sector, nr_sectors, data)

    def _by_hand(self, place: Place) -> Answer:
        """Do a step that the adapter cannot express, through the daemon's control socket."""
        operation = place.step.operation
        if operation is _O.SET_COND:
            self._device.set_cond(place.zone_no, place.step.cond)
            return Answer(_OK, "done by hand")
        with open_target(self._device.image) as target:
            try:
                call(target, {"verb": "manage", "operation": operation.name.lower(), "zone_no": place.zone_no})
            except UsageError:
                (refusal,) = cast("list[dict[str, str]]", call(target, {"verb": "why"})[0]["refusals"])
                return Answer(frozenset((Status[refusal["status"]],)), f"{refusal['status']} by hand")
        return Answer(_OK, "done by hand")


def run(
    shape: Geometry, make_adapter: Callable[[DeviceUnderTest, ExitStack], Adapter], directory: Path
) -> list[Result]:
    """Run all scenarios on a new device of *shape* in *directory* through the adapter that *make_adapter* makes.

    Raises:
        UsageError: the adapter cannot be opened here; says why (FUSE needs /dev/fuse).
    """
    directory.mkdir()
    device = DeviceUnderTest(directory, shape)
    try:
        if shape.conventional:
            examine(device.port)
            format_device(device.port, parse_features("", uuid=uuid4(), label=""))
        with ExitStack() as stack:
            return list(_Run(device, make_adapter(device, stack)).results())
    finally:
        device.close()


def differences(expected: Sequence[Result], found: Sequence[Result], adapter: str) -> list[str]:
    """Return a sentence for each difference between *adapter* and the device's own adapter."""
    sentences = []
    for ours, theirs in zip(expected, found, strict=False):
        sentences += [f"{theirs.where}: {what}" for what in _differences(ours, theirs, adapter)]
    if len(expected) != len(found):
        # A zone that is READONLY or OFFLINE is not reset at the end of its scenario.
        sentences.append(f"it took {len(found)} steps, not {len(expected)}")
    return sentences


def _differences(ours: Result, theirs: Result, adapter: str) -> Iterator[str]:
    step, answer = ours.step, theirs.answer
    assert ours.answer is not None
    if answer is not None:
        wanted = step.unlike.get(adapter, step.expected)
        if wanted not in answer.meanings:
            yield f"{answer.code} does not mean {wanted.name}"
        if answer.data != ours.answer.data:
            yield f"other data was read: {_first_difference(ours.answer.data, answer.data)}"
        if step.operation is _O.APPEND and not step.expected and answer.landed != ours.answer.landed:
            yield f"the append landed at sector {answer.landed}, not {ours.answer.landed}"
    for zone, other in zip(ours.zones, theirs.zones, strict=True):
        if zone != other:
            yield f"the zone is {other}, not {zone}"
    for view in theirs.views:
        zone = theirs.zones[view.zone_no]
        for name, shown, true in zip(View._fields, view, view_of(zone), strict=True):
            if shown is not None and true is not None and shown != true:
                yield f"{name} of zone {zone.zone_no} is shown as {shown}, not {true}"


def _first_difference(ours: bytes, theirs: bytes) -> str:
    if len(ours) != len(theirs):
        return f"{len(theirs)} bytes, not {len(ours)}"
    at = next(at for at, (left, right) in enumerate(zip(ours, theirs, strict=True)) if left != right)
    return f"first at byte {at}"
