"""A device of twelve small zones, two of them conventional, for tests of power cuts."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry

ZONE = 128
CAPACITY = 96
GEOMETRY = Geometry(
    size=ZONE * 12, zone_size=ZONE, zone_capacity=CAPACITY, conventional=((0, 2),), block_size_bytes=4096
)


def opened(tmp_path: Path) -> Iterator[ZonedDevice]:
    """Yield the device, new, and close it: what a fixture does."""
    ZonedDevice.create(tmp_path / "z.img", GEOMETRY, uuid=UUID(int=1))
    device = ZonedDevice.open(tmp_path / "z.img")
    yield device
    device.close()


def put(port: Port, sector: int, letter: bytes, nr_sectors: int = 16) -> None:
    assert port.write(sector, nr_sectors, (letter * (nr_sectors * 512),)) is Status.OK


def content(port: Port, sector: int, nr_sectors: int) -> bytes:
    data = bytearray(nr_sectors * 512)
    assert port.read(sector, nr_sectors, (data,)) is Status.OK
    return bytes(data)
