"""The complete zone state as one stream: from the daemon that a guest leaves to the one that it arrives at.

The data of the zones is not in it: that lies on storage that both see, or is moved by other means. The stream is
checked before anything is taken over, and taken over as a whole or not at all.

::

    offset size   little endian
         0    8   magic "ZFEMUDS" and a zero byte
         8    4   version = 1
        12    4   number of zones
        16   16   SHA-256 of the geometry's words, cut
        32  8·n   one word a zone: condition, and sectors written from its start (wp · 16 + condition)
      32+…   4    CRC-32 of everything before
"""

import hashlib
import os
import select
import struct
import zlib
from typing import Final

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import CommandError, ImageError, PeerError
from zonefs_emu.model.geometry import Geometry

MAGIC: Final = b"ZFEMUDS\0"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sII16s")
_CRC: Final = struct.Struct("<I")
_CHUNK_BYTES: Final = 1 << 16
#: A front-end that neither reads nor writes for this long has given up.
_TIMEOUT_MS: Final = 30_000


def geometry_digest(geometry: Geometry) -> bytes:
    """Return 16 bytes that are equal exactly for equal geometries."""
    fields = (
        geometry.size, geometry.zone_size, geometry.zone_capacity, geometry.block_size_bytes,
        geometry.write_granularity, geometry.max_open_zones, geometry.max_active_zones, geometry.max_append,
        *(number for run in geometry.conventional for number in run),
    )  # fmt: skip
    return hashlib.sha256(struct.pack(f"<{len(fields)}Q", *fields)).digest()[:16]


def encode(device: ZonedDevice) -> bytes:
    """Return the stream of *device* as it is now."""
    geometry = device.geometry
    head = _HEAD.pack(MAGIC, _VERSION, geometry.nr_zones, geometry_digest(geometry))
    body = head + device.save_zones()
    return body + _CRC.pack(zlib.crc32(body))


def load(device: ZonedDevice, stream: bytes) -> None:
    """Take over the zone state in *stream*.

    Raises:
        PeerError: it is cut, damaged, or of a device of another shape; nothing has changed.
    """
    if len(stream) < _HEAD.size + _CRC.size or not stream.startswith(MAGIC):
        msg = f"a device state of {len(stream)} bytes is none of ours"
        raise PeerError(msg)
    body = stream[: -_CRC.size]
    _, version, nr_zones, digest = _HEAD.unpack_from(body)
    if version != _VERSION:
        msg = f"a device state of version {version}, not {_VERSION}"
        raise PeerError(msg)
    if _CRC.unpack(stream[-_CRC.size :])[0] != zlib.crc32(body):
        msg = f"the device state of {len(stream)} bytes is cut or damaged"
        raise PeerError(msg)
    if digest != geometry_digest(device.geometry) or nr_zones != device.geometry.nr_zones:
        msg = "the device state is of a device with another geometry"
        raise PeerError(msg)
    if len(stream) != stream_bytes(device.geometry):
        msg = f"a device state of {len(stream)} bytes, where {nr_zones} zones take {stream_bytes(device.geometry)}"
        raise PeerError(msg)
    try:
        device.load_zones(body[_HEAD.size :])
    except (CommandError, ImageError) as error:
        msg = f"the device state cannot be taken over: {error}"
        raise PeerError(msg) from None


def _wait(fd: int, events: int) -> None:
    poll = select.poll()
    poll.register(fd, events)
    if not poll.poll(_TIMEOUT_MS):
        msg = "the front-end stopped moving the device state"
        raise PeerError(msg)


def write_all(fd: int, stream: bytes) -> None:
    """Write *stream* to *fd* in chunks, waiting for the reader; interrupted calls go on by themselves (PEP 475).

    Raises:
        PeerError: the reader is gone or rests for too long.
    """
    os.set_blocking(fd, False)
    view = memoryview(stream)
    while view:
        try:
            view = view[os.write(fd, view[:_CHUNK_BYTES]) :]
        except BlockingIOError:
            _wait(fd, select.POLLOUT)
        except OSError as error:
            msg = f"the device state could not be written: {error.strerror}"
            raise PeerError(msg) from None


def read_all(fd: int, nr_bytes_max: int) -> bytes:
    """Read *fd* to its end, *nr_bytes_max* at most.

    Raises:
        PeerError: there is more, or the writer rests for too long.
    """
    os.set_blocking(fd, False)
    chunks = bytearray()
    while True:
        try:
            chunk = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            _wait(fd, select.POLLIN)
            continue
        except OSError as error:
            msg = f"the device state could not be read: {error.strerror}"
            raise PeerError(msg) from None
        if not chunk:
            return bytes(chunks)
        chunks += chunk
        if len(chunks) > nr_bytes_max:
            msg = f"a device state of more than {nr_bytes_max} bytes"
            raise PeerError(msg)


def stream_bytes(geometry: Geometry) -> int:
    """Return the length of the stream of a device with *geometry*."""
    return _HEAD.size + 8 * geometry.nr_zones + _CRC.size
