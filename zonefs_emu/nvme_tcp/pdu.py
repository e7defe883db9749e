"""Protocol data units of NVMe/TCP: layouts, checks and digests. Bytes in, values out.

A PDU begins with a common header of 8 bytes: type, flags, length of the header, offset of the data, length of the PDU.
Source: NVMe over TCP Transport Specification 1.0, "Transport Specific PDUs".
"""

import struct
from collections.abc import Mapping
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import Final

import google_crc32c

from zonefs_emu.nvme.answer import RefusedError
from zonefs_emu.nvme.rules import NvmeRule

COMMON: Final = struct.Struct("<BBBBI")
COMMON_BYTES: Final = COMMON.size
DIGEST_BYTES: Final = 4
IC_BYTES: Final = 128
CAPSULE_BYTES: Final = 72
DATA_HEADER_BYTES: Final = 24
RESPONSE_BYTES: Final = 24
#: Data of one command that may come inside its capsule.
IN_CAPSULE_MAX: Final = 128 << 10
#: Data in one H2CData PDU.
H2C_DATA_MAX: Final = 128 << 10
#: The longest PDU that a host may send: header, data and both digests.
PDU_BYTES_MAX: Final = CAPSULE_BYTES + 2 * DIGEST_BYTES + max(IN_CAPSULE_MAX, H2C_DATA_MAX)
#: The first bytes of a TLS record with a part of the handshake, and the type of its first message, a ClientHello.
_TLS_RECORD: Final = b"\x16\x03"
_TLS_CLIENT_HELLO: Final = 1
#: Completion: dwords 0 and 1, queue head, queue, command, status.
_COMPLETION: Final = struct.Struct("<BBBBIQHHHH")
_DATA: Final = struct.Struct("<BBBBIHHII4x")
_IC: Final = struct.Struct("<BBBBIHBBI112x")
_TERMINATE: Final = struct.Struct("<BBBBIHI10x")


class PduType(IntEnum):
    """Kinds of PDUs; C2H goes from the controller to the host."""

    IC_REQ = 0x00
    IC_RESP = 0x01
    H2C_TERM = 0x02
    C2H_TERM = 0x03
    COMMAND = 0x04
    RESPONSE = 0x05
    H2C_DATA = 0x06
    C2H_DATA = 0x07
    R2T = 0x09


class Flag(IntFlag):
    """Flags of the common header."""

    HEADER_DIGEST = 1
    DATA_DIGEST = 2
    LAST = 4
    SUCCESS = 8


class Fatal(IntEnum):
    """Why a connection is ended ("Fatal Error Status")."""

    INVALID_HEADER = 1
    SEQUENCE = 2
    HEADER_DIGEST = 3
    OUT_OF_RANGE = 4
    LIMIT_EXCEEDED = 5
    UNSUPPORTED = 6


class PduError(Exception):
    """The host broke the protocol. *fatal* and *field*, an offset in the PDU, are for the last PDU to the host."""

    def __init__(self, fatal: Fatal, field: int, what: str) -> None:
        super().__init__(fatal, field, what)
        self.fatal = fatal
        self.field = field
        self.what = what


#: The PDUs that a host may send, with the length of their headers.
_HEADER_BYTES: Final[Mapping[int, int]] = MappingProxyType(
    {
        PduType.IC_REQ: IC_BYTES,
        PduType.H2C_TERM: DATA_HEADER_BYTES,
        PduType.COMMAND: CAPSULE_BYTES,
        PduType.H2C_DATA: DATA_HEADER_BYTES,
    }
)


class TlsUnexpectedError(PduError):
    """The host begins a TLS connection, and the drive has no key for one."""


class Framing:
    """How PDUs are framed on one connection: which digests they carry, as the first exchange has agreed."""

    def __init__(self, *, header_digest: bool = False, data_digest: bool = False) -> None:
        self.header_digest = header_digest
        self.data_digest = data_digest

    # -- what hosts send --------------------------------------------------------------------------------------

    def check(self, buffer: memoryview) -> tuple[int, int]:
        """Return (type, length) of the PDU that begins in *buffer*, of which the common header is there at least.

        Raises:
            PduError: no host may send that type, or one of the lengths.
        """
        kind, _, header_bytes, offset, length = COMMON.unpack_from(buffer)
        expected = _HEADER_BYTES.get(kind)
        if expected is None:
            if _begins_tls(buffer):
                raise TlsUnexpectedError(Fatal.INVALID_HEADER, 0, "the host speaks TLS, and this drive has no TLS key")
            raise PduError(Fatal.INVALID_HEADER, 0, f"PDU type {kind:02X}h")
        if header_bytes != expected:
            raise PduError(Fatal.INVALID_HEADER, 2, f"a header of {header_bytes} bytes in place of {expected}")
        if kind == PduType.H2C_TERM:
            # It repeats the header of a PDU of ours, and carries no digest.
            begin, longest = expected, expected + IC_BYTES
        elif kind == PduType.IC_REQ:
            begin = longest = expected
        else:
            begin, longest = expected + self._header_digest_bytes, PDU_BYTES_MAX
        if not begin <= length <= longest:
            raise PduError(Fatal.INVALID_HEADER, 4, f"a PDU of {length} bytes in place of {begin} to {longest}")
        if kind in {PduType.COMMAND, PduType.H2C_DATA} and length > begin and not begin <= offset < length:
            raise PduError(Fatal.INVALID_HEADER, 3, f"data at offset {offset} of a PDU of {length} bytes")
        return kind, length

    def data_of(self, pdu: memoryview) -> memoryview:
        """Return the data of a whole *pdu* that :meth:`check` has found good.

        Raises:
            PduError: the digest of the header is wrong.
            RefusedError: NVME_DIGEST if that of the data is; the command fails, and the host may send it again.
        """
        _, _, header_bytes, offset, _ = COMMON.unpack_from(pdu)
        if self.header_digest:
            end = header_bytes + DIGEST_BYTES
            if pdu[header_bytes:end] != digest(pdu[:header_bytes]):
                raise PduError(Fatal.HEADER_DIGEST, 0, "a wrong digest of the header")
            header_bytes = end
        if len(pdu) == header_bytes:
            return pdu[:0]
        data = pdu[offset:]
        if self.data_digest:
            data, found = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
            if len(found) < DIGEST_BYTES or found != digest(data):
                raise RefusedError(NvmeRule.NVME_DIGEST, f"{len(data)} bytes came damaged")
        return data

    # -- what hosts get ---------------------------------------------------------------------------------------

    @property
    def _header_digest_bytes(self) -> int:
        return DIGEST_BYTES if self.header_digest else 0

    def _checked(self, header: bytes) -> bytes:
        return header + digest(header) if self.header_digest else header

    def response(self, result: int, sq_head: int, sqid: int, cid: int, status_field: int) -> bytes:
        """Return a response capsule. *status_field* is without the phase tag, which fabrics do not have."""
        flags = Flag.HEADER_DIGEST if self.header_digest else 0
        length = RESPONSE_BYTES + self._header_digest_bytes
        return self._checked(
            _COMPLETION.pack(
                PduType.RESPONSE, flags, RESPONSE_BYTES, 0, length, result, sq_head, sqid, cid, status_field << 1
            )
        )

    def data(self, cid: int, payload: memoryview, *, success: bool) -> list[bytes | memoryview]:
        """Return the parts of one C2HData PDU with all data of a command; *success* stands for its response."""
        flags = Flag.LAST | (Flag.SUCCESS if success else 0) | (Flag.HEADER_DIGEST if self.header_digest else 0)
        offset = DATA_HEADER_BYTES + self._header_digest_bytes
        length = offset + len(payload)
        if self.data_digest:
            flags |= Flag.DATA_DIGEST
            length += DIGEST_BYTES
        header = _DATA.pack(PduType.C2H_DATA, flags, DATA_HEADER_BYTES, offset, length, cid, 0, 0, len(payload))
        parts: list[bytes | memoryview] = [self._checked(header), payload]
        if self.data_digest:
            parts.append(digest(payload))
        return parts

    def ready_to_transfer(self, cid: int, tag: int, length: int) -> bytes:
        """Return an R2T PDU, which asks for all *length* bytes of a command's data."""
        flags = Flag.HEADER_DIGEST if self.header_digest else 0
        total = DATA_HEADER_BYTES + self._header_digest_bytes
        return self._checked(_DATA.pack(PduType.R2T, flags, DATA_HEADER_BYTES, 0, total, cid, tag, 0, length))


def _begins_tls(buffer: memoryview) -> bool:
    """Return whether the :data:`COMMON_BYTES` in *buffer* begin a TLS connection and no PDU. Source: RFC 8446, 5.1."""
    return bytes(buffer[:2]) == _TLS_RECORD and buffer[5] == _TLS_CLIENT_HELLO


def digest(data: "bytes | bytearray | memoryview") -> bytes:
    """Return the CRC32C of *data*, as PDUs carry it."""
    found: int = google_crc32c.value(bytes(data))
    return found.to_bytes(DIGEST_BYTES, "little")


def parse_ic_request(pdu: memoryview) -> tuple[bool, bool]:
    """Return whether a host asks for digests of headers and of data, in its first PDU.

    Raises:
        PduError: it is of another version, or asks for data at offsets that we do not use.
    """
    *_, version, alignment, digests, _ = _IC.unpack_from(pdu)
    if version:
        raise PduError(Fatal.UNSUPPORTED, 8, f"version {version} of the PDU format in place of 0")
    if alignment:
        raise PduError(Fatal.UNSUPPORTED, 10, f"data aligned to {4 * (alignment + 1)} bytes in place of 4")
    return bool(digests & 1), bool(digests & 2)


def ic_response(framing: Framing) -> bytes:
    """Return the answer to a host's first PDU."""
    digests = framing.header_digest | framing.data_digest << 1
    return _IC.pack(PduType.IC_RESP, 0, IC_BYTES, 0, IC_BYTES, 0, 0, digests, H2C_DATA_MAX)


def parse_h2c_data(pdu: memoryview) -> tuple[int, int, int, int, bool]:
    """Return (command, tag, offset, length, whether it is the last) of an H2CData PDU."""
    _, flags, *_, cid, tag, offset, length = _DATA.unpack_from(pdu)
    return cid, tag, offset, length, bool(flags & Flag.LAST)


def terminate(error: PduError, pdu: bytes) -> bytes:
    """Return the last PDU of a connection, with the error and the header of the wrong *pdu*."""
    header = pdu[:IC_BYTES]
    return (
        _TERMINATE.pack(
            PduType.C2H_TERM, 0, DATA_HEADER_BYTES, 0, DATA_HEADER_BYTES + len(header), error.fatal, error.field
        )
        + header
    )
