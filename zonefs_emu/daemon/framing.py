"""Messages on the control socket.

Pure. A message is a header of 12 bytes, a JSON object, and a payload of raw bytes:

    0  4  magic 5A 46 45 31 ("ZFE1")
    4  4  length of the JSON object in bytes, little endian, at most 1 MiB
    8  4  length of the payload in bytes, little endian, at most 16 MiB

A client first sends a hello, which names no verb. The answer shows that the daemon serves, and that it will answer the
next request as well.

Every length is checked before that many bytes are read, so a peer that sends garbage costs the memory of one message.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import fields
from typing import Final, TypeAlias

from zonefs_emu.errors import PeerError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition, Zone, ZoneType

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Message: TypeAlias = tuple[dict[str, Json], bytes]

MAGIC: Final = b"ZFE1"
#: The first message of a client; the answer is an empty object.
HELLO: Final[Mapping[str, Json]] = {"hello": True}
_HEADER: Final = struct.Struct("<4sII")
HEADER_BYTES: Final = _HEADER.size
OBJECT_BYTES_MAX: Final = 1 << 20
PAYLOAD_BYTES_MAX: Final = 16 << 20
#: zone_no, start, size, capacity, wp, cond, type, reset_recommended, attributes
_ZONE: Final = struct.Struct("<I4Q2B?B")
# A report has a million zones: a look-up costs a tenth of what calling the enumeration does.
_CONDITIONS: Final = {int(cond): cond for cond in Condition}
_ZONE_TYPES: Final = {int(zone_type): zone_type for zone_type in ZoneType}


def encode(obj: Mapping[str, Json], payload: bytes = b"") -> bytes:
    """Return the message of *obj* and *payload*.

    Raises:
        ValueError: longer than a message may be.
    """
    text = json.dumps(obj, separators=(",", ":")).encode()
    if len(text) > OBJECT_BYTES_MAX or len(payload) > PAYLOAD_BYTES_MAX:
        message = f"a message of {len(text)} + {len(payload)} bytes is too long"
        raise ValueError(message)
    return _HEADER.pack(MAGIC, len(text), len(payload)) + text + payload


def decode_header(header: bytes) -> tuple[int, int]:
    """Return (length of the object, length of the payload) in bytes.

    Raises:
        PeerError: not the header of a message.
    """
    magic, object_bytes, payload_bytes = _HEADER.unpack(header)
    if magic != MAGIC:
        message = (
            f"the peer does not speak zonefs_emu's protocol: a message begins with {magic.hex()}, not {MAGIC.hex()}"
        )
        raise PeerError(message)
    if object_bytes > OBJECT_BYTES_MAX or payload_bytes > PAYLOAD_BYTES_MAX:
        message = f"the peer announced a message of {object_bytes} + {payload_bytes} bytes, which is too long"
        raise PeerError(message)
    return object_bytes, payload_bytes


def decode_object(text: bytes) -> dict[str, Json]:
    """Return the JSON object in *text*.

    Raises:
        PeerError: not a JSON object.
    """
    try:
        obj = json.loads(text)
    except (ValueError, RecursionError):
        obj = None
    if not isinstance(obj, dict):
        message = "the peer sent a message that is not a JSON object"
        raise PeerError(message)
    return obj


def geometry_of(info: Mapping[str, Json]) -> Geometry:
    """Return the geometry in *info*, the reply of the verb ``info``.

    A part that a daemon of an earlier version does not send has its default.
    """
    parts = {part.name: info[part.name] for part in fields(Geometry) if part.name in info}
    runs = parts.pop("conventional")
    assert isinstance(runs, list)
    conventional = tuple((int(run[0]), int(run[1])) for run in runs)  # type: ignore[index,arg-type]  # pairs of numbers
    return Geometry(conventional=conventional, **parts)  # type: ignore[arg-type]  # each is a number or a bool


def pack_zones(zones: list[Zone]) -> bytes:
    """Return *zones* as a payload."""
    return b"".join([_ZONE.pack(*zone) for zone in zones])


def nr_packed_zones(payload: bytes) -> int:
    """Return how many zones are in *payload*, without decoding them."""
    return len(payload) // _ZONE.size


def unpack_zones(payload: bytes) -> list[Zone]:
    """Return the zones in *payload*.

    Raises:
        PeerError: not what :func:`pack_zones` makes.
    """
    try:
        return [
            Zone(zone_no, start, size, capacity, wp, _CONDITIONS[cond], _ZONE_TYPES[zone_type], reset, bits)
            for zone_no, start, size, capacity, wp, cond, zone_type, reset, bits in _ZONE.iter_unpack(payload)
        ]
    except (struct.error, KeyError):
        message = "the peer sent a zone report that cannot be read"
        raise PeerError(message) from None
