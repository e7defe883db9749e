"""The states of all zones as one stream, from the daemon that a guest leaves to the daemon that receives it.

The stream does not contain the data of the zones, which is on storage that both daemons use, or is copied by other
means. A stream is checked completely before it is taken over, so it is taken over as a whole or not at all.

::

    offset size   little endian
         0    8   magic "ZFEMUDS" and a zero byte
         8    4   version = 1
        12    4   number of zones
        16   16   the first 16 bytes of the SHA-256 of the geometry (geometry_digest)
        32  8·n   one word a zone, as in the image: condition, sectors written from the zone's start, attributes
      32+8n   4   CRC-32 of all bytes before it
"""

import hashlib
import os
import select
import struct
import threading
import zlib
from contextlib import suppress
from typing import Final

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import CommandError, ImageError, PeerError
from zonefs_emu.model.geometry import Geometry

MAGIC: Final = b"ZFEMUDS\0"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sII16s")
_CRC: Final = struct.Struct("<I")
_CHUNK_BYTES: Final = 1 << 16
#: The longest wait of a transfer for a front-end that neither reads nor writes, in milliseconds.
_TIMEOUT_MS: Final = 30_000


def geometry_digest(geometry: Geometry) -> bytes:
    """Return 16 bytes that are equal for two geometries if virtio and SCSI see the same zones and limits.

    What only NVMe sees (descriptor extensions, zone random write areas, active excursions) is left out. States that
    need it are refused by :func:`load`, where the device does not have it.
    """
    fields = (
        geometry.size, geometry.zone_size, geometry.zone_capacity, geometry.block_size_bytes,
        geometry.write_granularity, geometry.max_open_zones, geometry.max_active_zones, geometry.max_append,
        *(number for run in geometry.conventional for number in run),
    )  # fmt: skip
    return hashlib.sha256(struct.pack(f"<{len(fields)}Q", *fields)).digest()[:16]


def encode(device: ZonedDevice) -> bytes:
    """Return the stream with the present zone states of *device*."""
    geometry = device.geometry
    head = _HEAD.pack(MAGIC, _VERSION, geometry.nr_zones, geometry_digest(geometry))
    body = head + device.save_zones()
    return body + _CRC.pack(zlib.crc32(body))


def load(device: ZonedDevice, stream: bytes) -> None:
    """Put all zones of *device* into the states in *stream*.

    Raises:
        PeerError: *stream* is cut, damaged, of another version, of a device of another geometry, or has states that are
            not possible on *device*: nothing has changed. Or the image takes no changes.
    """
    if len(stream) < _HEAD.size + _CRC.size or not stream.startswith(MAGIC):
        message = f"a device state of {len(stream)} bytes was not made by zonefs_emu"
        raise PeerError(message)
    body = stream[: -_CRC.size]
    _, version, nr_zones, digest = _HEAD.unpack_from(body)
    if version != _VERSION:
        message = f"the device state has version {version}, not {_VERSION}"
        raise PeerError(message)
    if _CRC.unpack(stream[-_CRC.size :])[0] != zlib.crc32(body):
        message = f"the device state of {len(stream)} bytes is cut or damaged"
        raise PeerError(message)
    if digest != geometry_digest(device.geometry) or nr_zones != device.geometry.nr_zones:
        message = "the device state is of a device with another geometry"
        raise PeerError(message)
    if len(stream) != stream_bytes(device.geometry):
        message = f"the device state has {len(stream)} bytes, but {nr_zones} zones take {stream_bytes(device.geometry)}"
        raise PeerError(message)
    try:
        device.load_zones(body[_HEAD.size :])
    except (CommandError, ImageError) as error:
        message = f"the device state cannot be taken over: {error}"
        raise PeerError(message) from None


class Transfer:
    """The transfer of one stream through a pipe, on a thread of its own, until it is complete or cancelled.

    The thread only moves bytes. The thread that serves the connection takes over a received stream (:func:`load`) when
    the front-end sends CHECK_DEVICE_STATE. So a stream of a connection that has ended is never taken over.
    """

    def __init__(self, fd: int, *, outgoing: bytes | None, nr_bytes_max: int) -> None:
        """Take over *fd*. Write *outgoing* to it; or, if that is None, read at most *nr_bytes_max* bytes from it."""
        self._fd = fd
        self._cancel_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._nr_bytes_max = nr_bytes_max
        self.outgoing = outgoing
        #: The received bytes.
        self.arrived = b""
        #: The error that ended the transfer, or None.
        self.error: Exception | None = None
        #: Set at the end of the thread.
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device-state", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:  # the boundary of a transfer: CHECK_DEVICE_STATE answers that it failed
            if self.outgoing is not None:
                write_all(self._fd, self.outgoing, cancel_fd=self._cancel_fd)
            else:
                self.arrived = read_all(self._fd, self._nr_bytes_max, cancel_fd=self._cancel_fd)
        except Exception as error:
            self.error = error
        finally:
            os.close(self._fd)
            self.done.set()

    def end(self) -> None:
        """Cancel the transfer if it is not complete, and end the thread. To be called once."""
        os.eventfd_write(self._cancel_fd, 1)
        self._thread.join()
        os.close(self._cancel_fd)


def _wait(fd: int, events: int, cancel_fd: int) -> None:
    poll = select.poll()
    poll.register(fd, events)
    if cancel_fd >= 0:
        poll.register(cancel_fd, select.POLLIN)
    ready = poll.poll(_TIMEOUT_MS)
    if not ready:
        message = "the front-end has stopped moving the device state"
        raise PeerError(message)
    if any(found == cancel_fd for found, _ in ready):
        message = "the connection that the device state belongs to has ended"
        raise PeerError(message)


def write_all(fd: int, stream: bytes, *, cancel_fd: int = -1) -> None:
    """Write *stream* to *fd* in chunks, waiting for the reader. Python resumes calls after signals (PEP 475).

    Raises:
        PeerError: the reader is gone, has not read for 30 s, or *cancel_fd* has become readable.
    """
    view = memoryview(stream)
    try:
        os.set_blocking(fd, False)
        while view:
            _wait(fd, select.POLLOUT, cancel_fd)
            with suppress(BlockingIOError):
                view = view[os.write(fd, view[:_CHUNK_BYTES]) :]
    except OSError as error:
        message = f"the device state could not be written: {error.strerror}"
        raise PeerError(message) from None


def read_all(fd: int, nr_bytes_max: int, *, cancel_fd: int = -1) -> bytes:
    """Read *fd* to its end, and return the bytes.

    Raises:
        PeerError: there are more than *nr_bytes_max*, *fd* cannot be read, the writer has not written for 30 s, or
            *cancel_fd* has become readable.
    """
    chunks = bytearray()
    try:
        os.set_blocking(fd, False)
        while len(chunks) <= nr_bytes_max:
            _wait(fd, select.POLLIN, cancel_fd)
            with suppress(BlockingIOError):
                chunk = os.read(fd, _CHUNK_BYTES)
                if not chunk:
                    return bytes(chunks)
                chunks += chunk
    except OSError as error:
        message = f"the device state could not be read: {error.strerror}"
        raise PeerError(message) from None
    message = f"the device state has more than {nr_bytes_max} bytes"
    raise PeerError(message)


def stream_bytes(geometry: Geometry) -> int:
    """Return the length in bytes of the stream of a device with *geometry*."""
    return _HEAD.size + 8 * geometry.nr_zones + _CRC.size
