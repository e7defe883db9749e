"""The messages of vfio-user as bytes and values.

May not know: sockets, and the effect of messages. Source: QEMU, docs/interop/vfio-user.rst; "Protocol Specification".
"""

import json
import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from zonefs_emu.errors import PeerError

#: Identifier, command, size with the header, flags, error number.
HEADER: Final = struct.Struct("<HHIII")
#: The longest message of a client. Registers have 8 bytes at most, and configuration space is read by words.
SIZE_MAX: Final = 1 << 16
#: The limit that QEMU proposes, and the most that it accepts.
FDS_MAX: Final = 16
DATA_MAX: Final = 4096
PAGE_BYTES: Final = 4096
#: Maps of memory that a client may have at a time: as many as with the kernel's vhost.
DMA_MAPS_MAX: Final = 509

_VERSION: Final = struct.Struct("<HH")
_DMA_MAP: Final = struct.Struct("<IIQQQ")
_DMA_UNMAP: Final = struct.Struct("<IIQQ")
_INFO: Final = struct.Struct("<IIII")
_REGION_INFO: Final = struct.Struct("<IIIIQQ")
_IRQ_SET: Final = struct.Struct("<IIIII")
_REGION_ACCESS: Final = struct.Struct("<QII")


class VfioCommand(IntEnum):
    """The command of a message."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DEVICE_RESET = 13


class MessageFlag(IntFlag):
    """Flags of a header. The lowest four bits are the type: 0 a command, 1 a reply."""

    REPLY = 1
    NO_REPLY = 1 << 4
    ERROR = 1 << 5


_TYPE_MASK: Final = 0xF


class RegionFlag(IntFlag):
    """Flags of a region of the device."""

    READ = 1
    WRITE = 2


class IrqSetFlag(IntFlag):
    """The action on interrupts, and the form of its data."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    ACTION_MASK = 8
    ACTION_UNMASK = 16
    ACTION_TRIGGER = 32


UNMAP_ALL: Final = 2


class MessageHeader(NamedTuple):
    """The head of a message; *nr_bytes* follow it."""

    message_id: int
    command: int
    flags: int
    nr_bytes: int

    @property
    def wants_reply(self) -> bool:
        """Whether an answer is expected."""
        return not self.flags & MessageFlag.NO_REPLY


class DmaMapRequest(NamedTuple):
    """Memory of the guest at *iova*: *size* bytes at *offset* of the descriptor that comes with the message."""

    flags: int
    offset: int
    iova: int
    size: int


class DmaUnmapRequest(NamedTuple):
    """Memory that is unmapped: exactly one map, or all of them."""

    argsz: int
    flags: int
    iova: int
    size: int


class IrqSetRequest(NamedTuple):
    """An action on *nr_vectors* interrupts of *kind* from *start* on."""

    flags: int
    kind: int
    start: int
    nr_vectors: int


class RegionAccess(NamedTuple):
    """*nr_bytes* at *offset* of a region, read or written."""

    offset: int
    region: int
    nr_bytes: int


def decode_header(data: bytes) -> MessageHeader:
    """Return the head of a message from its 16 bytes.

    Raises:
        PeerError: its size is impossible, or it is a reply, which nothing waits for.
    """
    message_id, command, size, flags, _ = HEADER.unpack(data)
    if not HEADER.size <= size <= SIZE_MAX:
        message = f"a message has {size} bytes; it must have {HEADER.size} to {SIZE_MAX}"
        raise PeerError(message)
    if flags & _TYPE_MASK:
        message = f"a message has type {flags & _TYPE_MASK}; only commands (type 0) are expected"
        raise PeerError(message)
    return MessageHeader(message_id, command, flags, size - HEADER.size)


def encode_reply(header: MessageHeader, payload: bytes | memoryview = b"") -> bytes:
    """Return the answer to the message of *header*."""
    size = HEADER.size + len(payload)
    return HEADER.pack(header.message_id, header.command, size, MessageFlag.REPLY, 0) + payload


def encode_error(header: MessageHeader, number: int) -> bytes:
    """Return the answer that refuses the message of *header* with an error *number* of errno."""
    flags = MessageFlag.REPLY | MessageFlag.ERROR
    return HEADER.pack(header.message_id, header.command, HEADER.size, flags, number)


def encode_command(
    message_id: int, command: VfioCommand, payload: bytes | memoryview = b"", *, flags: MessageFlag | int = 0
) -> bytes:
    """Return a message as a client sends it."""
    return HEADER.pack(message_id, command, HEADER.size + len(payload), flags, 0) + payload


def _unpack(layout: struct.Struct, payload: bytes, what: str) -> tuple[int, ...]:
    if len(payload) < layout.size:
        message = f"a {what} message has {len(payload)} bytes; at least {layout.size} are needed"
        raise PeerError(message)
    return layout.unpack_from(payload)


def decode_version(payload: bytes) -> tuple[int, int]:
    """Return the version (major, minor) that a client proposes; its capabilities are ignored.

    Raises:
        PeerError: there is none.
    """
    major, minor = _unpack(_VERSION, payload, "version")
    return major, minor


def encode_version() -> bytes:
    """Return version 0.0 and the limits of this server; QEMU expects a zero byte at the end."""
    limits = {"max_msg_fds": FDS_MAX, "max_data_xfer_size": DATA_MAX, "pgsizes": PAGE_BYTES,
              "max_dma_maps": DMA_MAPS_MAX}  # fmt: skip
    return _VERSION.pack(0, 0) + json.dumps({"capabilities": limits}).encode() + b"\0"


def decode_dma_map(payload: bytes) -> DmaMapRequest:
    """Return the request of a DMA_MAP message.

    Raises:
        PeerError: it is too short.
    """
    _, flags, offset, iova, size = _unpack(_DMA_MAP, payload, "DMA map")
    return DmaMapRequest(flags, offset, iova, size)


def encode_dma_map(request: DmaMapRequest) -> bytes:
    """Return the payload of a DMA_MAP message."""
    return _DMA_MAP.pack(_DMA_MAP.size, *request)


def decode_dma_unmap(payload: bytes) -> DmaUnmapRequest:
    """Return the request of a DMA_UNMAP message.

    Raises:
        PeerError: it is too short.
    """
    return DmaUnmapRequest(*_unpack(_DMA_UNMAP, payload, "DMA unmap"))


def encode_dma_unmap(request: DmaUnmapRequest) -> bytes:
    """Return the payload of a DMA_UNMAP message, which is that of its answer, too."""
    return _DMA_UNMAP.pack(*request)


def encode_device_info(nr_regions: int, nr_irqs: int) -> bytes:
    """Return the answer to DEVICE_GET_INFO: a PCI device that can be reset."""
    return _INFO.pack(_INFO.size, 0b11, nr_regions, nr_irqs)


def decode_index(payload: bytes) -> int:
    """Return the region or kind of interrupts on which information is requested.

    Raises:
        PeerError: it is too short.
    """
    return _unpack(_INFO, payload, "device information")[2]


def encode_index(index: int) -> bytes:
    """Return the payload of a message that asks for information on region or interrupts *index*."""
    return _INFO.pack(_REGION_INFO.size, 0, index, 0)


def encode_region_info(index: int, flags: RegionFlag, size: int) -> bytes:
    """Return the answer to DEVICE_GET_REGION_INFO."""
    return _REGION_INFO.pack(_REGION_INFO.size, flags, index, 0, size, 0)


def encode_irq_info(index: int, count: int) -> bytes:
    """Return the answer to DEVICE_GET_IRQ_INFO: interrupts by eventfd."""
    return _INFO.pack(_INFO.size, 1, index, count)


def decode_irq_set(payload: bytes) -> IrqSetRequest:
    """Return the request of a DEVICE_SET_IRQS message.

    Raises:
        PeerError: it is too short.
    """
    return IrqSetRequest(*_unpack(_IRQ_SET, payload, "interrupt")[1:])


def encode_irq_set(request: IrqSetRequest) -> bytes:
    """Return the payload of a DEVICE_SET_IRQS message without data."""
    return _IRQ_SET.pack(_IRQ_SET.size, *request)


def decode_region_access(payload: bytes) -> tuple[RegionAccess, bytes]:
    """Return which bytes of a region are accessed, and the data that follows.

    Raises:
        PeerError: it is too short, or asks for more than :data:`DATA_MAX` bytes.
    """
    access = RegionAccess(*_unpack(_REGION_ACCESS, payload, "region access"))
    if access.nr_bytes > DATA_MAX:
        message = f"an access to a region has {access.nr_bytes} bytes; the limit is {DATA_MAX}"
        raise PeerError(message)
    return access, payload[_REGION_ACCESS.size :]


def encode_region_access(access: RegionAccess, data: bytes = b"") -> bytes:
    """Return the payload of a REGION_READ or REGION_WRITE message, or of its answer."""
    return _REGION_ACCESS.pack(*access) + data
