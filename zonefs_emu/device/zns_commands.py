"""Commands that only the ZNS dialect has: descriptor extensions of zones.

May not know: protocols. Each takes the port through which it comes, which has a method for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zonefs_emu.errors import CommandError, NoSpaceError, PoisonedError, Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zns_machine import ZnsMachine
from zonefs_emu.model.zone import Attribute
from zonefs_emu.units import Sector

if TYPE_CHECKING:
    from zonefs_emu.device.port import Port


def set_extension(port: "Port", sector: Sector, data: bytes) -> Status:
    """Do what :meth:`Port.set_extension` does."""
    device, operation = port.device, Operation.SET_EXTENSION
    machine = device.machine
    zone_no = sector // device.geometry.zone_size
    if not isinstance(machine, ZnsMachine) or len(data) != device.geometry.extension_bytes:
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
