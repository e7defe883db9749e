"""Fabrics commands, by which a host connects a queue, and reads and sets the properties of its controller.

Source: NVM Express Base Specification 2.0, "Fabrics Commands".
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

CONNECT_DATA_BYTES: Final = 1024
#: In a Connect command: the host requests a new controller.
DYNAMIC: Final = 0xFFFF
#: In the result of a Connect command: the host is to prove its name on this queue (AUTHREQ, ATR).
AUTHENTICATION_REQUIRED: Final = 1 << 17
_CONNECT: Final = struct.Struct("<HHHBxI")
_CONNECT_DATA: Final = struct.Struct("<16sH238x256s256s256x")
_PROPERTY: Final = struct.Struct("<B3xIQ")


class FabricsType(IntEnum):
    """The kinds of fabrics commands, in byte 4 of the entry."""

    PROPERTY_SET = 0x00
    CONNECT = 0x01
    PROPERTY_GET = 0x04
    AUTHENTICATION_SEND = 0x05
    AUTHENTICATION_RECEIVE = 0x06
    DISCONNECT = 0x08


class Connect(NamedTuple):
    """A Connect command. *sq_size*: entries, less one."""

    record_format: int
    qid: int
    sq_size: int
    attributes: int
    keep_alive_ms: int
    host_id: bytes
    cntlid: int
    subsystem_nqn: str
    host_nqn: str


class Property(NamedTuple):
    """A Property Get or Set command; *is_wide*: of 8 bytes."""

    is_wide: bool
    offset: int
    value: int


def parse_connect(entry: memoryview, data: memoryview) -> Connect:
    """Return the Connect command in *entry*, of 64 bytes, and its *data*, of :data:`CONNECT_DATA_BYTES`."""
    record_format, qid, sq_size, attributes, keep_alive_ms = _CONNECT.unpack_from(entry, 40)
    host_id, cntlid, subsystem, host = _CONNECT_DATA.unpack_from(data)
    return Connect(
        record_format, qid, sq_size, attributes, keep_alive_ms, host_id, cntlid, _text(subsystem), _text(host)
    )


def encode_connect_data(connect: Connect) -> bytes:
    """Return the data of a Connect command, as a host sends them."""
    return _CONNECT_DATA.pack(
        connect.host_id, connect.cntlid, connect.subsystem_nqn.encode(), connect.host_nqn.encode()
    )


def parse_property(entry: memoryview) -> Property:
    """Return the Property Get or Set command in *entry*, of 64 bytes."""
    attributes, offset, value = _PROPERTY.unpack_from(entry, 40)
    return Property(bool(attributes & 1), offset, value)


def _text(field: bytes) -> str:
    """Return a name that ends at the first zero; bytes that are no UTF-8 cannot be equal to any name."""
    return field.partition(b"\0")[0].decode("utf-8", "replace")
