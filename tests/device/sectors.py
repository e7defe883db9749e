"""A device of eight zones, and data whose sectors each say which they are."""

from collections.abc import Callable
from typing import Final
from uuid import UUID

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import MANAGEMENT
from zonefs_emu.model.zone import Condition

OPEN, CLOSE, FINISH, RESET = MANAGEMENT
UUID_HERE: Final = UUID("12345678-1234-5678-1234-567812345678")
#: Eight zones of 64 sectors, 48 of them writable; the last has 32; zones 0, 1 and 4 are conventional.
MIXED: Final = Geometry(
    size=480,
    zone_size=64,
    zone_capacity=48,
    conventional=((0, 2), (4, 1)),
    max_open_zones=2,
    max_active_zones=3,
    max_append=16,
)

Maker = Callable[..., ZonedDevice]


def pattern(sector: int, nr_sectors: int, generation: int = 0) -> bytes:
    """Return sectors that each say which they are."""
    return b"".join(b"%011d %011d;" % (n, generation) * 21 + b"12345678" for n in range(sector, sector + nr_sectors))


def write(port: Port, sector: int, nr_sectors: int, generation: int = 0) -> Status:
    return port.write(sector, nr_sectors, [pattern(sector, nr_sectors, generation)])


def read(port: Port, sector: int, nr_sectors: int) -> bytes:
    buffer = bytearray(b"\xee") * (nr_sectors * 512)
    assert port.read(sector, nr_sectors, [buffer]) == Status.OK
    return bytes(buffer)


def cond(port: Port, zone_no: int) -> Condition:
    return port.zone(zone_no).cond
