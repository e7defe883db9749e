"""Commands that only the ZNS dialect has: descriptor extensions and random write areas of zones.

May not know: protocols. Each takes the port through which it comes, which has a method for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zonefs_emu.device.counters import Counter
from zonefs_emu.errors import CommandError, NoSpaceError, PoisonedError, Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zns_machine import ZnsMachine
from zonefs_emu.model.zone import Attribute
from zonefs_emu.model.zrwa_machine import ZrwaMachine
from zonefs_emu.persist.space import punch_zones
from zonefs_emu.units import Sector

if TYPE_CHECKING:
    from zonefs_emu.device.port import Port


def set_extension(port: "Port", sector: Sector, data: bytes) -> Status:
    """Do what :meth:`Port.set_extension` does."""
    device, operation = port.device, Operation.SET_EXTENSION
    machine = device.machine
    zone_no = sector // device.geometry.zone_size
    extension_bytes = device.geometry.extension_bytes
    if not isinstance(machine, ZnsMachine) or not extension_bytes or len(data) != extension_bytes:
        return port.refusals.command(operation, CommandError(Status.UNSUPPORTED, zone_no), sector, 0)
    try:
        while True:
            with device.lock:
                device.holds.wait(zone_no, zone_no + 1)
                device.require_writable(sector)
                zone_no = machine.begin_set_extension(sector, port.dialect)
                if not device.image.has_pending_reset(zone_no):
                    with _logged(port, operation, sector):
                        device.image.save_extension(zone_no, data)
                        with device.changing():
                            device.publish_and_tell(machine.set_extension(zone_no, port.dialect), port.audience)
                    break
            # The last checkpoint may still point at the extension that the zone had before it was reset.
            device.image.apply_pending_resets()
    except CommandError as error:
        return port.refusals.command(operation, error, sector, 0)
    except (PoisonedError, NoSpaceError) as error:
        return port.refusals.command(operation, CommandError(error.status, zone_no), sector, 0)
    return port.refusals.lost(operation, sector, 0, zone_no) if device.image.is_lost else Status.OK


@contextmanager
def _logged(port: "Port", operation: Operation, sector: Sector) -> Iterator[None]:
    """Log the intent of a change of the zone at *sector*, which happens in the context unless that raises."""
    intent_log = port.intents.current.log if port.intents else None
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
            return port.refusals.failed(Operation.READ, error, sector, 0), b""
    if found is None:
        return port.refusals.command(Operation.READ, CommandError(Status.IO_ERROR, zone_no), sector, 0), b""
    return Status.OK, found


def allocate_zrwa(port: "Port", sector: Sector) -> Status:
    """Do what :meth:`Port.allocate_zrwa` does."""
    device, operation = port.device, Operation.ALLOCATE_ZRWA
    machine = device.machine
    zone_no = sector // device.geometry.zone_size
    if not isinstance(machine, ZrwaMachine):
        return port.refusals.command(operation, CommandError(Status.UNSUPPORTED, zone_no), sector, 0)
    try:
        while True:
            with device.lock:
                device.holds.wait(zone_no, zone_no + 1)
                device.require_writable(sector)
                try:
                    zone_no = machine.begin_allocate_zrwa(sector, port.dialect)
                except CommandError as error:
                    if device.holds.held and port.may_change(error):
                        continue
                    raise
                if not device.image.has_pending_reset(zone_no):
                    # What an area holds and was not written since is zeros, and a write that failed may have left some
                    # bytes there. The zone is EMPTY, also in the last checkpoint, so nothing points at them.
                    punch_zones(device.image.backing, device.geometry, (zone_no,))
                    with _logged(port, operation, sector), device.changing():
                        device.publish_and_tell(machine.allocate_zrwa(zone_no, port.dialect), port.audience)
                    break
            device.image.apply_pending_resets()
    except CommandError as error:
        return port.refusals.command(operation, error, sector, 0)
    except (PoisonedError, NoSpaceError) as error:
        return port.refusals.command(operation, CommandError(error.status, zone_no), sector, 0)
    except OSError as error:
        return port.refusals.failed(operation, error, sector, 0)
    if device.image.is_lost:
        return port.refusals.lost(operation, sector, 0, zone_no)
    device.counters.count(zone_no, Counter.OPENS)
    return Status.OK


def flush_zrwa(port: "Port", sector: Sector) -> Status:
    """Do what :meth:`Port.flush_zrwa` does."""
    device, operation = port.device, Operation.FLUSH_ZRWA
    machine = device.machine
    zone_no = sector // device.geometry.zone_size
    if not isinstance(machine, ZrwaMachine):
        return port.refusals.command(operation, CommandError(Status.UNSUPPORTED, zone_no), sector, 0)
    try:
        with device.lock:
            device.holds.wait(zone_no, zone_no + 1)
            device.require_writable(sector)
            machine.begin_flush_zrwa(sector, port.dialect)
            with _logged(port, operation, sector), device.changing():
                device.publish_and_tell(machine.flush_zrwa(sector, port.dialect), port.audience)
    except CommandError as error:
        return port.refusals.command(operation, error, sector, 0)
    return port.refusals.lost(operation, sector, 0, zone_no) if device.image.is_lost else Status.OK
