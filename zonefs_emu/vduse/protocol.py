"""VDUSE's structures as bytes, both ways.

Pure: bytes in, values out. Source: include/uapi/linux/vduse.h (Linux 6.12), Documentation/userspace-api/vduse.rst.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

NAME_BYTES: Final = 256
_NAME: Final = struct.Struct("256s")
#: name, vendor_id, device_id, features, vq_num, vq_align, reserved, config_size; then the configuration space.
_DEV_CONFIG: Final = struct.Struct("<256sIIQII52xI")
_IOTLB_ENTRY: Final = struct.Struct("<QQQB7x")
_VQ_CONFIG: Final = struct.Struct("<IH26x")
_VQ_INFO: Final = struct.Struct("<IIQQQHHHHB7x")
_VQ_EVENTFD: Final = struct.Struct("<Ii")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
#: type, request_id, reserved; then 128 bytes that depend on the type.
_REQUEST: Final = struct.Struct("<II16x")
_RESPONSE: Final = struct.Struct("<II16x")
_RANGE: Final = struct.Struct("<QQ")
MESSAGE_BYTES: Final = 152
RESULT_OK: Final = 0
RESULT_FAILED: Final = 1
ACCESS_RO: Final = 1
API_VERSION: Final = 0


def _ioctl(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | 0x81 << 8 | number


_WRITE, _READ = 1, 2
SET_API_VERSION: Final = _ioctl(_WRITE, 0x01, _U64.size)
CREATE_DEV: Final = _ioctl(_WRITE, 0x02, _DEV_CONFIG.size)
DESTROY_DEV: Final = _ioctl(_WRITE, 0x03, NAME_BYTES)
IOTLB_GET_FD: Final = _ioctl(_READ | _WRITE, 0x10, _IOTLB_ENTRY.size)
DEV_GET_FEATURES: Final = _ioctl(_READ, 0x11, _U64.size)
VQ_SETUP: Final = _ioctl(_WRITE, 0x14, _VQ_CONFIG.size)
VQ_GET_INFO: Final = _ioctl(_READ | _WRITE, 0x15, _VQ_INFO.size)
VQ_SETUP_KICKFD: Final = _ioctl(_WRITE, 0x16, _VQ_EVENTFD.size)
VQ_INJECT_IRQ: Final = _ioctl(_WRITE, 0x17, _U32.size)


class Message(IntEnum):
    """The kinds of messages of the kernel (VDUSE_GET_VQ_STATE and so on)."""

    GET_VQ_STATE = 0
    SET_STATUS = 1
    UPDATE_IOTLB = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The fields of struct vduse_dev_request. *kind* decides which of the fields after *request_id* are used."""

    kind: int
    request_id: int
    queue: int = 0
    status: int = 0
    start: int = 0
    last: int = 0


def decode_request(data: bytes) -> Request:
    """Return the message in *data*, which has MESSAGE_BYTES."""
    kind, request_id = _REQUEST.unpack_from(data)
    if kind == Message.GET_VQ_STATE:
        return Request(kind=kind, request_id=request_id, queue=_U32.unpack_from(data, _REQUEST.size)[0])
    if kind == Message.SET_STATUS:
        return Request(kind=kind, request_id=request_id, status=data[_REQUEST.size])
    if kind == Message.UPDATE_IOTLB:
        start, last = _RANGE.unpack_from(data, _REQUEST.size)
        return Request(kind=kind, request_id=request_id, start=start, last=last)
    return Request(kind=kind, request_id=request_id)


def encode_request(kind: int, request_id: int, payload: bytes = b"") -> bytes:
    """Return a message of the kernel; for tests with a double of the kernel."""
    return (_REQUEST.pack(kind, request_id) + payload).ljust(MESSAGE_BYTES, b"\0")


def encode_response(request: Request, result: int, *, avail_index: int = 0) -> bytes:
    """Return the answer to *request*, MESSAGE_BYTES. *avail_index* answers GET_VQ_STATE for a split ring."""
    payload = b""
    if request.kind == Message.GET_VQ_STATE:
        payload = struct.pack("<IH", request.queue, avail_index)
    return (_RESPONSE.pack(request.request_id, result) + payload).ljust(MESSAGE_BYTES, b"\0")


def encode_failure(message: bytes) -> bytes:
    """Return the answer that *message* has failed. Only its request_id is read, so *message* may be malformed."""
    return message[4:8].ljust(4, b"\0") + RESULT_FAILED.to_bytes(4, "little") + bytes(MESSAGE_BYTES - 8)


def encode_name(name: str) -> bytes:
    """Return a device's name in the form for DESTROY_DEV."""
    return _NAME.pack(name.encode())


def encode_device(name: str, *, device_id: int, features: int, nr_queues: int, config: bytes) -> bytes:
    """Return struct vduse_dev_config with the configuration space *config* behind it."""
    # vq_align is the alignment of rings. Every driver aligns them to a page.
    return _DEV_CONFIG.pack(name.encode(), 0, device_id, features, nr_queues, 4096, len(config)) + config


def encode_queue(index: int, size: int) -> bytes:
    """Return struct vduse_vq_config for queue *index* with up to *size* entries."""
    return _VQ_CONFIG.pack(index, size)


def encode_kick(index: int, fd: int) -> bytes:
    """Return struct vduse_vq_eventfd for queue *index*; *fd* -1 removes its eventfd."""
    return _VQ_EVENTFD.pack(index, fd)


def encode_index(index: int) -> bytes:
    """Return the number of a queue in the form for VQ_INJECT_IRQ."""
    return _U32.pack(index)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """The fields of struct vduse_vq_info for a split ring: entries, addresses, and the next available index."""

    size: int
    desc: int
    driver: int
    device: int
    avail_index: int
    ready: bool


def encode_queue_query(index: int) -> bytearray:
    """Return the structure that VQ_GET_INFO fills in."""
    return bytearray(_VQ_INFO.pack(index, 0, 0, 0, 0, 0, 0, 0, 0, 0))


def decode_queue_info(data: bytes | bytearray) -> QueueInfo:
    """Return the values that VQ_GET_INFO has filled in."""
    _, size, desc, driver, device, avail_index, _, _, _, ready = _VQ_INFO.unpack(data)
    return QueueInfo(
        size=size, desc=desc, driver=driver, device=device, avail_index=avail_index, ready=bool(ready)
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """The fields of struct vduse_iotlb_entry: device addresses *start* to *last* are a file from byte *offset* on.

    *access* is ACCESS_RO for memory that may only be read.
    """

    offset: int
    start: int
    last: int
    access: int


def encode_range(start: int, last: int) -> bytearray:
    """Return the structure that IOTLB_GET_FD fills in, with the range to be searched."""
    return bytearray(_IOTLB_ENTRY.pack(0, start, last, 0))


def decode_mapping(data: bytes | bytearray) -> Mapping:
    """Return the values that IOTLB_GET_FD has filled in."""
    offset, start, last, access = _IOTLB_ENTRY.unpack(data)
    return Mapping(offset=offset, start=start, last=last, access=access)
