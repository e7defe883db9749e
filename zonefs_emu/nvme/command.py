"""A submission queue entry as a value, and the numbers of commands.

The entry is in memory that the host may change, so it is parsed once, and the values that were checked are executed.

Source: NVM Express Base Specification 2.0, "Submission Queue Entry"; the fields of each command are those of its own
section.
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

ENTRY_BYTES: Final = 64
_ENTRY: Final = struct.Struct("<BBHI8xQQQ6I")
#: "All namespaces" in the namespace identifier.
ALL_NAMESPACES: Final = 0xFFFFFFFF


class AdminOpcode(IntEnum):
    """Source: Base Specification, "Admin Command Set"."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT = 0x0C
    KEEP_ALIVE = 0x18
    DOORBELL_BUFFER = 0x7C
    FABRICS = 0x7F


class IoOpcode(IntEnum):
    """Source: NVM and Zoned Namespace Command Sets, "I/O Commands"."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    COPY = 0x19
    ZONE_SEND = 0x79
    ZONE_RECEIVE = 0x7A
    ZONE_APPEND = 0x7D


class SendAction(IntEnum):
    """Zone Send Action. Source: ZNS 1.1, "Zone Management Send command"."""

    CLOSE = 0x01
    FINISH = 0x02
    OPEN = 0x03
    RESET = 0x04
    OFFLINE = 0x05
    SET_DESCRIPTOR = 0x10
    FLUSH_ZRWA = 0x11


class ReceiveAction(IntEnum):
    """Zone Receive Action. Source: ZNS 1.1, "Zone Management Receive command"."""

    REPORT = 0x00
    EXTENDED_REPORT = 0x01


class Command(NamedTuple):
    """One submission queue entry. *flags* holds the fused operation and the kind of data pointer (PSDT)."""

    opcode: int
    flags: int
    cid: int
    nsid: int
    mptr: int
    #: PRP entry 1 and 2, or the first SGL descriptor in both.
    prp1: int
    prp2: int
    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int

    @property
    def slba(self) -> int:
        """The first logical block, of reads, writes and zone commands."""
        return self.cdw10 | self.cdw11 << 32

    @property
    def nr_blocks(self) -> int:
        """The number of logical blocks of reads and writes; the entry has one less."""
        return (self.cdw12 & 0xFFFF) + 1

    @property
    def sgl_bytes(self) -> int:
        """How many bytes the SGL descriptor describes. Source: NVMe Base 2.0, "SGL Data Block descriptor"."""
        return self.prp2 & 0xFFFFFFFF


def parse(entry: "bytes | bytearray | memoryview", offset: int = 0) -> Command:
    """Return the command in the 64 bytes at *offset* of *entry*."""
    return Command._make(_ENTRY.unpack_from(entry, offset))


def encode(command: Command) -> bytes:
    """Return *command* as the 64 bytes of a submission queue entry."""
    return _ENTRY.pack(*command)


def name_of(opcode: int, *, admin: bool) -> str:
    """Return the name of a command for messages. Fabrics commands belong to queues of both kinds."""
    try:
        if opcode == AdminOpcode.FABRICS:
            return "fabrics command"
        name = (AdminOpcode if admin else IoOpcode)(opcode).name
    except ValueError:
        return f"opcode {opcode:02X}h"
    return name.lower().replace("_", " ")
