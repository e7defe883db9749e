"""The initiator of a zoned SCSI disk, on one request queue of a vhost-user front-end.

For tests: CDBs of 16 bytes as Linux makes them, and the answers as they come.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from zonefs_emu.errors import PeerError
from zonefs_emu.scsi.commands import CLOSE_ZONE, FINISH_ZONE, OPEN_ZONE, REPORT_ZONES, RESET_WRITE_POINTER, Opcode
from zonefs_emu.testing.vhost_frontend import FrontendQueue
from zonefs_emu.virtio.scsi import CDB_BYTES, RESPONSE_BYTES

#: The virtio-scsi host has its request queues after those for control and events.
FIRST_REQUEST_QUEUE: Final = 2
#: LUN 0 of target 0, as virtio-scsi addresses it.
_DISK: Final = b"\x01\x00\x40\x00\x00\x00\x00\x00"
#: Between the address and the CDB: tag, task attribute, priority, CRN.
_FRAME_BYTES: Final = 11
_READ_WRITE: Final = struct.Struct(">BBQIBB")
_ZONE_OUT: Final = struct.Struct(">BBQ4xBB")
_RESPONSE: Final = struct.Struct("<IIHBB")
_DESCRIPTOR: Final = struct.Struct(">BB6xQQQ32x")
_PARTIAL: Final = 0x80
_LIST_HEADER_BYTES: Final = 64
_FIXED_SENSE: Final = 0x70

CLOSE: Final = CLOSE_ZONE
FINISH: Final = FINISH_ZONE
OPEN: Final = OPEN_ZONE
RESET: Final = RESET_WRITE_POINTER


class Reply(NamedTuple):
    """The answer to a command: data, and (key, ASC, ASCQ) of its sense data, or None if it succeeded."""

    sense: tuple[int, int, int] | None
    data: bytes


class ScsiZone(NamedTuple):
    """A zone as REPORT ZONES has it; logical blocks. A gap zone has type 5."""

    type: int
    cond: int
    length: int
    start: int
    wp: int


class ScsiDriver:
    """Sends commands to the disk. Addresses and lengths are logical blocks of *block_bytes*."""

    def __init__(self, queue: FrontendQueue, block_bytes: int) -> None:
        """Use *queue*, a request queue."""
        self.queue = queue
        self.block_bytes = block_bytes

    def command(self, cdb: bytes, *, out: bytes = b"", room: int = 0) -> Reply:
        """Send *cdb* with the data *out*, and with *room* bytes for the data that it returns.

        Raises:
            PeerError: the host of the disk answers that the command did not reach the disk.
        """
        frame = _DISK + bytes(_FRAME_BYTES) + cdb.ljust(CDB_BYTES, b"\0")
        into: Sequence[int] = [RESPONSE_BYTES, *([room] if room else [])]
        _, (head, *data) = self.queue.request([frame, *([out] if out else [])], into)
        _, residual, _, status, response = _RESPONSE.unpack_from(head)
        if response:
            message = f"the virtio-scsi host answers {response} to command {cdb.hex()}"
            raise PeerError(message)
        given = b"".join(data)
        return Reply(_sense(head[_RESPONSE.size :]) if status else None, given[: room - residual] if room else b"")

    def read(self, lba: int, nr_blocks: int) -> Reply:
        """Do READ(16)."""
        cdb = _READ_WRITE.pack(Opcode.READ_16, 0, lba, nr_blocks, 0, 0)
        return self.command(cdb, room=nr_blocks * self.block_bytes)

    def write(self, lba: int, data: bytes) -> Reply:
        """Do WRITE(16) of *data*, whole blocks."""
        return self.command(_READ_WRITE.pack(Opcode.WRITE_16, 0, lba, len(data) // self.block_bytes, 0, 0), out=data)

    def manage(self, action: int, lba: int, *, all_zones: bool = False) -> Reply:
        """Do ZBC OUT: *action* is OPEN, CLOSE, FINISH or RESET."""
        return self.command(_ZONE_OUT.pack(Opcode.ZBC_OUT, action, lba, all_zones, 0))

    def flush(self) -> Reply:
        """Do SYNCHRONIZE CACHE(16) of everything."""
        return self.command(_READ_WRITE.pack(Opcode.SYNCHRONIZE_CACHE_16, 0, 0, 0, 0, 0))

    def report(self, lba: int = 0, max_zones: int = 64) -> list[ScsiZone]:
        """Return up to *max_zones* descriptors, gap zones included, from the zone that holds *lba* on.

        Raises:
            PeerError: REPORT ZONES was refused.
        """
        room = _LIST_HEADER_BYTES + max_zones * _DESCRIPTOR.size
        reply = self.command(_READ_WRITE.pack(Opcode.ZBC_IN, REPORT_ZONES, lba, room, _PARTIAL, 0), room=room)
        if reply.sense is not None:
            message = f"REPORT ZONES from block {lba} answers sense {reply.sense}"
            raise PeerError(message)
        return [
            ScsiZone(kind & 0xF, cond >> 4, *rest)
            for kind, cond, *rest in _DESCRIPTOR.iter_unpack(reply.data[_LIST_HEADER_BYTES:])
        ]


def _sense(data: bytes) -> tuple[int, int, int]:
    """Return key, ASC and ASCQ of sense data in fixed or in descriptor format."""
    if data[0] & 0x7F == _FIXED_SENSE:
        return data[2] & 0xF, data[12], data[13]
    return data[1] & 0xF, data[2], data[3]
