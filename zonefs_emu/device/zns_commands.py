"""Commands that only the ZNS dialect has: descriptor extensions and random write areas; zones that the drive finishes.

May not know: protocols. Each takes the port through which it comes, which has a method for it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zonefs_emu.device.counters import Counter
from zonefs_emu.errors import HOST_ERRORS, CommandError, Status
from zonefs_emu.model.machine import Changes
from zonefs_emu.model.transitions import Dialect, Operation
from zonefs_emu.model.zns_machine import ZnsMachine
from zonefs_emu.model.zone import Attribute
from zonefs_emu.model.zrwa_machine import ZrwaMachine
from zonefs_emu.persist.space import punch_zones
from zonefs_emu.units import Sector

if TYPE_CHECKING:
    from zonefs_emu.device.core import DeviceCore
    from zonefs_emu.device.port import Port


def set_extension(port: "Port", sector: Sector, data: bytes, *, zrwa: bool) -> Status:
    """Do what :meth:`Port.set_extension` does."""
    device = port.device
    machine = device.machine
    extension_bytes = device.geometry.extension_bytes
    if not isinstance(machine, ZnsMachine) or not extension_bytes or len(data) != extension_bytes:
        return _unsupported(port, Operation.SET_EXTENSION, sector)

    # A pending reset of the zone is applied first: the last checkpoint may point at the extension that it had before.
    if not zrwa:
        return _run(
            port, Operation.SET_EXTENSION, sector, machine.begin_set_extension,
            prepare=lambda zone_no: device.image.save_extension(zone_no, data),
            change=lambda zone_no: machine.set_extension(zone_no, port.dialect),
        )  # fmt: skip
    if not isinstance(machine, ZrwaMachine):
        return _unsupported(port, Operation.SET_EXTENSION, sector)

    def prepare(zone_no: int) -> None:
        _empty_area(device, zone_no)
        device.image.save_extension(zone_no, data)

    # One word of the image has both attributes, so a crash leaves both or none.
    return _run(
        port, Operation.SET_EXTENSION, sector, machine.begin_set_extension_and_zrwa,
        prepare=prepare,
        change=lambda zone_no: machine.set_extension_and_zrwa(zone_no, port.dialect),
    )  # fmt: skip


def finish_by_controller(port: "Port", zone_no: int) -> Status:
    """Finish the active zone *zone_no* as the drive does by itself: a zone active excursion. For any dialect.

    Returns OUT_OF_RANGE, CONVENTIONAL, BAD_TRANSITION or POISONED; UNSUPPORTED where the drive does not do so. Nothing
    has changed then.
    """
    # _run is not used, because it notes the change in the port's intent log, which is for requests of a host.
    device, operation = port.device, Operation.SET_COND
    sector = zone_no * device.geometry.zone_size
    machine = device.machine
    if not isinstance(machine, ZnsMachine):
        return _unsupported(port, operation, sector)
    try:
        with device.lock:
            device.holds.wait(zone_no, zone_no + 1)
            device.require_writable(zone_no)
            with device.changing():
                device.publish_and_notify(machine.finish_by_controller(zone_no), port.audience)
    except CommandError as error:
        return port.refusals.command(operation, error, sector)
    return port.refusals.lost(operation, sector, zone_no=zone_no) if device.image.is_lost else Status.OK


def allocate_zrwa(port: "Port", sector: Sector) -> Status:
    """Do what :meth:`Port.allocate_zrwa` does."""
    device = port.device
    machine = device.machine
    if not isinstance(machine, ZrwaMachine):
        return _unsupported(port, Operation.ALLOCATE_ZRWA, sector)

    status = _run(
        port, Operation.ALLOCATE_ZRWA, sector, machine.begin_allocate_zrwa,
        prepare=lambda zone_no: _empty_area(device, zone_no),
        change=lambda zone_no: machine.allocate_zrwa(zone_no, port.dialect),
    )  # fmt: skip
    if not status:
        device.counters.count(sector // device.geometry.zone_size, Counter.OPENS)
    return status


def flush_zrwa(port: "Port", sector: Sector) -> Status:
    """Do what :meth:`Port.flush_zrwa` does."""
    machine = port.device.machine
    if not isinstance(machine, ZrwaMachine):
        return _unsupported(port, Operation.FLUSH_ZRWA, sector)
    return _run(
        port, Operation.FLUSH_ZRWA, sector, machine.begin_flush_zrwa,
        change=lambda _zone_no: machine.flush_zrwa(sector, port.dialect),
    )  # fmt: skip


def _empty_area(device: "DeviceCore", zone_no: int) -> None:
    """Make the random write area that zone *zone_no* is about to get read as zeros.

    Blocks of an area that were not written since are to be zeros, and a write that failed may have left some bytes
    there. The zone is EMPTY, also in the last checkpoint, so nothing points at them.
    """
    punch_zones(device.image.backing, device.geometry, (zone_no,))


def _unsupported(port: "Port", operation: Operation, sector: Sector) -> Status:
    zone_no = sector // port.geometry.zone_size
    return port.refusals.command(operation, CommandError(Status.UNSUPPORTED, zone_no), sector)


def _run(
    port: "Port",
    operation: Operation,
    sector: Sector,
    begin: Callable[[Sector, Dialect], int],
    *,
    prepare: Callable[[int], object] | None = None,
    change: Callable[[int], Changes],
) -> Status:
    """Run a command that changes the one zone at *sector*; a pending reset of the zone is applied first.

    *begin* is the machine's check of the command, and returns the zone's number. *prepare* changes the image as the
    zone's new state needs it, and may fail as the host does. *change* is what the machine does then. Each is called
    with the lock held.
    """
    device = port.device
    zone_no = sector // device.geometry.zone_size
    try:
        while True:
            with device.lock:
                device.holds.wait(zone_no, zone_no + 1)
                device.require_writable(zone_no)
                try:
                    zone_no = begin(sector, port.dialect)
                except CommandError as error:
                    if device.wait_to_retry(error):
                        continue
                    raise
                if not device.image.has_pending_reset(zone_no):
                    with _logged(port, operation, sector):
                        if prepare is not None:
                            prepare(zone_no)
                        with device.changing():
                            device.publish_and_notify(change(zone_no), port.audience)
                    break
            device.image.apply_pending_resets()
    except CommandError as error:
        return port.refusals.command(operation, error, sector)
    except HOST_ERRORS as error:
        return port.refusals.command(operation, CommandError(error.status, zone_no), sector)
    except OSError as error:
        return port.refusals.failed(operation, error, sector)
    return port.refusals.lost(operation, sector, zone_no=zone_no) if device.image.is_lost else Status.OK


@contextmanager
def _logged(port: "Port", operation: Operation, sector: Sector) -> Iterator[None]:
    """Log the intent of a change of the zone at *sector*, which happens in the context unless that raises."""
    intent_log = port.intent_log()
    if intent_log is None:
        yield
        return
    intent_log.begin(operation, sector, 0, 0)
    try:
        yield
    except Exception:
        intent_log.abort()
        raise
    intent_log.commit()


def extension(port: "Port", zone_no: int) -> tuple[Status, bytes]:
    """Do what :meth:`Port.extension` does."""
    device = port.device
    with device.lock:
        device.holds.wait(zone_no, zone_no + 1)
        if not device.machine.attributes[zone_no] & Attribute.EXTENSION:
            return Status.OK, bytes(device.geometry.extension_bytes)
        sector = device.geometry.zone_start(zone_no)
        try:
            found = device.image.extensions.load(zone_no)
        except OSError as error:
            return port.refusals.failed(Operation.READ, error, sector), b""
    if found is None:
        return port.refusals.command(Operation.READ, CommandError(Status.IO_ERROR, zone_no), sector), b""
    return Status.OK, found
