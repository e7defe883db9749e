"""vhost-user messages as bytes. Pure: no socket, no file descriptor is touched here.

A message is a header (request, flags, size; native endian, which is little endian on all supported machines), a
payload, and file descriptors that are sent with it. The request determines the form of the payload. All forms are in
this module, for encoding and decoding.

Source: QEMU, docs/interop/vhost-user.rst.
"""

import struct
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from zonefs_emu.errors import PeerError

HEADER: Final = struct.Struct("<III")
VERSION: Final = 1
VERSION_MASK: Final = 3
FLAG_REPLY: Final = 1 << 2
FLAG_NEED_REPLY: Final = 1 << 3

#: The largest payload that is accepted. The largest that this module knows, a memory table or a configuration space,
#: has less than 300 bytes.
PAYLOAD_BYTES_MAX: Final = 4096
FDS_MAX: Final = 8
CONFIG_BYTES_MAX: Final = 256
#: A Number that names a queue has the queue's index in bits 0 to 7. With bit 8, no file descriptor comes with it.
VRING_INDEX_MASK: Final = 0xFF
VRING_NO_FD: Final = 1 << 8
VRING_LOG: Final = 1  # flag of SET_VRING_ADDR


class Request(IntEnum):
    """Requests of the front-end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class BackendRequest(IntEnum):
    """Requests of the back-end, on the socket that the front-end passes with SET_BACKEND_REQ_FD."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5


class ProtocolFeature(IntEnum):
    """Bit numbers of the protocol features."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    NET_MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    XEN_MMAP = 17
    SHARED_OBJECT = 18
    DEVICE_STATE = 19

    @property
    def mask(self) -> int:
        """The feature's bit in the payloads of GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES."""
        return 1 << self


class Header(NamedTuple):
    """The header of a message. *flags* include the version; *size* is that of the payload in bytes."""

    request: int
    flags: int
    size: int


class Number(NamedTuple):
    """One 64-bit number."""

    value: int = 0


class VringState(NamedTuple):
    """The index of a queue, and a number whose meaning depends on the request: size, base, or 1 for enabled."""

    queue_no: int
    number: int


class VringAddress(NamedTuple):
    """The addresses of the parts of a queue: user addresses, except *log*, which is the guest address of the used ring.

    *flags*: VRING_LOG if writes to the used ring are to be logged.
    """

    queue_no: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int


class MemoryRegion(NamedTuple):
    """A run of *size* bytes of guest memory, at byte *mmap_offset* of the file that is sent with the message."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int


class MemoryTable(NamedTuple):
    """All of guest memory."""

    regions: tuple[MemoryRegion, ...]


class LogBase(NamedTuple):
    """The dirty log: *size* bytes, at byte *offset* of the file that is sent with the message."""

    size: int
    offset: int


class ConfigSpace(NamedTuple):
    """*size* bytes at *offset* of the configuration space. *data* is empty where only the place is asked for."""

    offset: int
    size: int
    flags: int
    data: bytes


class Inflight(NamedTuple):
    """The in-flight region for *nr_queues* queues of up to *queue_size* entries.

    It has *mmap_size* bytes, at byte *mmap_offset* of the file that is sent with the message.
    """

    mmap_size: int
    mmap_offset: int
    nr_queues: int
    queue_size: int


class DeviceStateTransfer(NamedTuple):
    """The start of a transfer of the device's state. *direction*: 0 save, 1 load; *phase*: 0 (device stopped)."""

    direction: int
    phase: int


class Nothing(NamedTuple):
    """No payload."""


class Unknown(NamedTuple):
    """The payload of an unknown request."""

    data: bytes


Payload: TypeAlias = (
    Nothing
    | Number
    | VringState
    | VringAddress
    | MemoryRegion
    | MemoryTable
    | LogBase
    | ConfigSpace
    | Inflight
    | DeviceStateTransfer
    | Unknown
)

_NUMBER: Final = struct.Struct("<Q")
_STATE: Final = struct.Struct("<II")
_ADDRESS: Final = struct.Struct("<IIQQQQ")
_TABLE_HEAD: Final = struct.Struct("<I4x")
_REGION: Final = struct.Struct("<QQQQ")
_PADDED_REGION: Final = struct.Struct("<8xQQQQ")
_LOG: Final = struct.Struct("<QQ")
_CONFIG: Final = struct.Struct("<III")
_INFLIGHT: Final = struct.Struct("<QQHH")
#: QEMU sends the C structure with the padding at its end.
_INFLIGHT_PADDED_BYTES: Final = 24

_FORMS: Final[Mapping[int, type[Payload]]] = MappingProxyType(
    {
        Request.SET_FEATURES: Number,
        Request.SET_PROTOCOL_FEATURES: Number,
        Request.SET_MEM_TABLE: MemoryTable,
        Request.SET_LOG_BASE: LogBase,
        Request.SET_VRING_NUM: VringState,
        Request.SET_VRING_ADDR: VringAddress,
        Request.SET_VRING_BASE: VringState,
        Request.GET_VRING_BASE: VringState,
        Request.SET_VRING_KICK: Number,
        Request.SET_VRING_CALL: Number,
        Request.SET_VRING_ERR: Number,
        Request.SET_VRING_ENABLE: VringState,
        Request.GET_CONFIG: ConfigSpace,
        Request.SET_CONFIG: ConfigSpace,
        Request.GET_INFLIGHT_FD: Inflight,
        Request.SET_INFLIGHT_FD: Inflight,
        Request.VRING_KICK: VringState,
        Request.ADD_MEM_REG: MemoryRegion,
        Request.REM_MEM_REG: MemoryRegion,
        Request.SET_STATUS: Number,
        Request.SET_DEVICE_STATE_FD: DeviceStateTransfer,
        Request.GET_FEATURES: Nothing,
        Request.SET_OWNER: Nothing,
        Request.RESET_OWNER: Nothing,
        Request.GET_PROTOCOL_FEATURES: Nothing,
        Request.GET_QUEUE_NUM: Nothing,
        Request.SET_BACKEND_REQ_FD: Nothing,
        Request.RESET_DEVICE: Nothing,
        Request.GET_MAX_MEM_SLOTS: Nothing,
        Request.GET_STATUS: Nothing,
        Request.CHECK_DEVICE_STATE: Nothing,
    }
)
#: The form of the answer where it is not a Number.
_REPLY_FORMS: Final[Mapping[int, type[Payload]]] = MappingProxyType(
    {
        Request.GET_VRING_BASE: VringState,
        Request.GET_CONFIG: ConfigSpace,
        Request.GET_INFLIGHT_FD: Inflight,
    }
)


def encode_header(request: int, flags: int, size: int) -> bytes:
    """Return the 12 bytes of a header."""
    return HEADER.pack(request, flags | VERSION, size)


def decode_header(data: bytes) -> Header:
    """Return the header in *data* (12 bytes).

    Raises:
        PeerError: another version, or a payload that is too long.
    """
    request, flags, size = HEADER.unpack(data)
    if flags & VERSION_MASK != VERSION:
        message = f"message {request} has version {flags & VERSION_MASK}, not {VERSION}"
        raise PeerError(message)
    if size > PAYLOAD_BYTES_MAX:
        message = f"message {request} has a payload of {size} bytes; at most {PAYLOAD_BYTES_MAX} are allowed"
        raise PeerError(message)
    return Header(request, flags, size)


def decode_payload(request: int, data: bytes) -> Payload:
    """Return the payload of a request of the front-end; :class:`Unknown` if the form is not known.

    Raises:
        PeerError: *data* does not fit the form: its length, its number of regions, or its place in the configuration.
    """
    return _decode(_FORMS.get(request, Unknown), request, data)


def decode_reply(request: int, data: bytes) -> Payload:
    """Return the payload of the answer to *request*.

    Raises:
        PeerError: as :func:`decode_payload`.
    """
    return _decode(_REPLY_FORMS.get(request, Number), request, data)


def _decode(form: type[Payload], request: int, data: bytes) -> Payload:
    try:
        if form is Nothing:
            return Nothing()  # some front-ends send a payload without a meaning
        if form is Number:
            return Number(*_NUMBER.unpack(data))
        if form is VringState:
            return VringState(*_STATE.unpack(data))
        if form is VringAddress:
            return VringAddress(*_ADDRESS.unpack(data))
        if form is MemoryTable:
            return _decode_table(data)
        if form is MemoryRegion:
            return MemoryRegion(*_PADDED_REGION.unpack(data))
        if form is LogBase:
            return LogBase(*_LOG.unpack(data))
        if form is ConfigSpace:
            return _decode_config(data)
        if form is Inflight:
            if len(data) == _INFLIGHT_PADDED_BYTES:
                data = data[: _INFLIGHT.size]
            return Inflight(*_INFLIGHT.unpack(data))
        if form is DeviceStateTransfer:
            return DeviceStateTransfer(*_STATE.unpack(data))
    except struct.error:
        message = f"message {request} has a payload of {len(data)} bytes, which does not fit this kind of message"
        raise PeerError(message) from None
    return Unknown(data)


def _decode_table(data: bytes) -> MemoryTable:
    (count,) = _TABLE_HEAD.unpack_from(data)
    body = data[_TABLE_HEAD.size :]
    if count > FDS_MAX or len(body) < count * _REGION.size:
        message = (
            f"a memory table of {count} regions does not fit its {len(data)} bytes, or has more than {FDS_MAX} regions"
        )
        raise PeerError(message)
    regions = _REGION.iter_unpack(body[: count * _REGION.size])
    return MemoryTable(tuple(MemoryRegion(*fields) for fields in regions))


def _decode_config(data: bytes) -> ConfigSpace:
    offset, size, flags = _CONFIG.unpack_from(data)
    content = data[_CONFIG.size :]
    if size > CONFIG_BYTES_MAX or offset + size > CONFIG_BYTES_MAX or len(content) not in (0, size):
        message = f"{size} bytes at {offset} with {len(content)} bytes of data do not fit the configuration space"
        raise PeerError(message)
    return ConfigSpace(offset, size, flags, content)


def encode_payload(payload: Payload) -> bytes:
    """Return the bytes of *payload*."""
    match payload:
        case Nothing():
            return b""
        case Number(value):
            return _NUMBER.pack(value)
        case VringState() | DeviceStateTransfer():
            return _STATE.pack(*payload)
        case VringAddress():
            return _ADDRESS.pack(*payload)
        case MemoryRegion():
            return _PADDED_REGION.pack(*payload)
        case MemoryTable(regions):
            return _TABLE_HEAD.pack(len(regions)) + b"".join(_REGION.pack(*region) for region in regions)
        case LogBase():
            return _LOG.pack(*payload)
        case ConfigSpace(offset, size, flags, data):
            return _CONFIG.pack(offset, size, flags) + data
        case Inflight():
            return _INFLIGHT.pack(*payload).ljust(_INFLIGHT_PADDED_BYTES, b"\0")
        case Unknown(data):
            return data
