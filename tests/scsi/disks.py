"""What the tests of this directory share: real devices in real files, an initiator, and CDBs written with comments."""

import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import ZBC
from zonefs_emu.scsi.result import ScsiResult, ScsiStatus
from zonefs_emu.scsi.target import Target

#: Sectors in a zone of the test disks: 1 MiB.
ZONE: Final = 2048

#: Two conventional and six sequential zones.
MIXED: Final = Geometry(size=8 * ZONE, zone_size=ZONE, zone_capacity=ZONE, conventional=((0, 2),), max_open_zones=3)
MIXED_4K: Final = Geometry(
    size=8 * ZONE, zone_size=ZONE, zone_capacity=ZONE, conventional=((0, 2),), block_size_bytes=4096, max_open_zones=3
)
#: One conventional zone, three with gaps, and a runt that is shorter than the capacity.
GAPS: Final = Geometry(size=4 * ZONE + 512, zone_size=ZONE, zone_capacity=1536, conventional=((0, 1),))
#: The same in blocks of 4096 bytes, without the runt.
GAPS_4K: Final = Geometry(
    size=4 * ZONE, zone_size=ZONE, zone_capacity=1536, conventional=((0, 1),), block_size_bytes=4096
)
#: A runt that has a gap itself.
GAP_IN_RUNT: Final = Geometry(size=2 * ZONE + 1792, zone_size=ZONE, zone_capacity=1536)
#: Sequential zones only, the last one a runt; writes in units of 4 KiB on 512-byte blocks.
RUNT: Final = Geometry(size=3 * ZONE + 1024, zone_size=ZONE, zone_capacity=ZONE, write_granularity=8)


def from_hex(text: str) -> bytes:
    """Return the bytes of lines such as ``00 00 00 08   # 10  TRANSFER LENGTH``."""
    return bytes.fromhex(" ".join(line.partition("#")[0] for line in text.splitlines()))


class Reply(NamedTuple):
    result: ScsiResult
    data: bytes

    @property
    def code(self) -> tuple[int, int, int] | None:
        """(key, asc, ascq) of a CHECK CONDITION in either format, None if the command was done."""
        if self.result.status == ScsiStatus.GOOD:
            assert self.result.sense == b""
            return None
        assert self.result.status == ScsiStatus.CHECK_CONDITION
        sense = self.result.sense
        if sense[0] == 0x70:
            return sense[2] & 0xF, sense[12], sense[13]
        assert sense[0] == 0x72
        return sense[1] & 0xF, sense[2], sense[3]


class ZoneDescriptor(NamedTuple):
    type: int
    cond: int
    length: int
    start: int
    wp: int


class Initiator:
    """Sends commands to a target as an initiator would, and checks what holds for every one of them."""

    def __init__(self, device: ZonedDevice, *, power_on: bool = False) -> None:
        self.device = device
        self.port: Port = device.port("scsi", ZBC)
        self.target = Target(self.port, serial="Z0001", power_on=power_on)
        self.block_bytes = device.geometry.block_size_bytes

    def send(self, cdb: bytes, *, out: bytes = b"", room: int = 0, lun: int = 0) -> Reply:
        data_in = bytearray(room)
        result = self.target.execute(lun, cdb, [out] if out else [], [data_in] if room else [])
        assert 0 <= result.residual <= len(out) + room
        return Reply(result, bytes(data_in[: room - result.residual]) if room else b"")

    def read(self, lba: int, nr_blocks: int, flags: int = 0) -> Reply:
        cdb = struct.pack(">BBQIBB", 0x88, flags, lba, nr_blocks, 0, 0)
        return self.send(cdb, room=nr_blocks * self.block_bytes)

    def write(self, lba: int, nr_blocks: int, fill: int = 0x5A, flags: int = 0) -> Reply:
        cdb = struct.pack(">BBQIBB", 0x8A, flags, lba, nr_blocks, 0, 0)
        return self.send(cdb, out=bytes((fill,)) * (nr_blocks * self.block_bytes))

    def zone_command(self, action: int, lba: int = 0, *, everywhere: bool = False, count: int = 0) -> Reply:
        return self.send(struct.pack(">BBQ2xHBB", 0x94, action, lba, count, everywhere, 0))

    def close(self, lba: int = 0, *, everywhere: bool = False) -> Reply:
        return self.zone_command(1, lba, everywhere=everywhere)

    def finish(self, lba: int = 0, *, everywhere: bool = False) -> Reply:
        return self.zone_command(2, lba, everywhere=everywhere)

    def open(self, lba: int = 0, *, everywhere: bool = False) -> Reply:
        return self.zone_command(3, lba, everywhere=everywhere)

    def reset(self, lba: int = 0, *, everywhere: bool = False) -> Reply:
        return self.zone_command(4, lba, everywhere=everywhere)

    def report(self, lba: int = 0, option: int = 0, room: int = 1 << 16) -> list[ZoneDescriptor]:
        reply = self.send(struct.pack(">BBQIBB", 0x95, 0, lba, room, option | 0x80, 0), room=room)
        assert reply.code is None
        (length,) = struct.unpack_from(">I", reply.data)
        assert length == len(reply.data) - 64
        return [
            ZoneDescriptor(kind & 0xF, cond >> 4, *rest)
            for kind, cond, *rest in struct.iter_unpack(">BB6xQQQ32x", reply.data[64:])
        ]

    def cond(self, lba: int) -> int:
        return self.report(lba, room=128)[0].cond


@contextmanager
def new_device(geometry: Geometry, *, readonly: bool = False) -> Iterator[ZonedDevice]:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "disk.img"
        ZonedDevice.create(path, geometry, uuid=uuid.UUID(int=1))
        device = ZonedDevice.open(path, readonly=readonly)
        try:
            yield device
        finally:
            device.close()


@contextmanager
def new_initiator(geometry: Geometry, *, readonly: bool = False, power_on: bool = False) -> Iterator[Initiator]:
    with new_device(geometry, readonly=readonly) as device:
        yield Initiator(device, power_on=power_on)
