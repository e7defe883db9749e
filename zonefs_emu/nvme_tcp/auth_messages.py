"""Messages of DH-HMAC-CHAP and the commands that carry them: layouts and checks. Bytes in, values out.

Source: NVM Express Base Specification 2.1, 6.1 ("Authentication Receive"), 6.2 ("Authentication Send") and
8.3.4.5 ("DH-HMAC-CHAP Protocol").
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from zonefs_emu.nvme.command import Command

#: The longest message, of all that are sent and received: a reply with a value of the largest group needs 1168 bytes.
MESSAGE_BYTES_MAX: Final = 4096
#: "Security Protocol" and its two specific fields.
_SECURITY_PROTOCOL: Final = 0xE9
_SPECIFIC: Final = 0x01
_COMMON: Final = struct.Struct("<BB2xH")
_NEGOTIATE: Final = struct.Struct("<BB2xHBB")
_PROTOCOL: Final = struct.Struct("<BxBB30s30s")
_CHALLENGE: Final = struct.Struct("<BB2xHBxBBHI")
_REPLY: Final = struct.Struct("<BB2xHBxBxHI")
_SUCCESS1: Final = struct.Struct("<BB2xHBxB7x")
_SUCCESS2: Final = struct.Struct("<BB2xH10x")
_FAILURE: Final = struct.Struct("<BB2xHBB")
#: The identifier of DH-HMAC-CHAP among the protocols that a host offers.
_DHCHAP: Final = 1
_FAILED: Final = 1
_LIST_MAX: Final = 30


class Message(IntEnum):
    """Type << 8 | identifier."""

    NEGOTIATE = 0x0000
    CHALLENGE = 0x0101
    REPLY = 0x0102
    SUCCESS1 = 0x0103
    SUCCESS2 = 0x0104
    FAILURE2 = 0x00F0
    FAILURE1 = 0x00F1


class Why(IntEnum):
    """Why an exchange fails ("Failure reason code explanation")."""

    FAILED = 1
    PROTOCOL_NOT_USABLE = 2
    CONCATENATION_MISMATCH = 3
    HASH_NOT_USABLE = 4
    GROUP_NOT_USABLE = 5
    INCORRECT_PAYLOAD = 6
    INCORRECT_MESSAGE = 7


class MessageError(Exception):
    """A message breaks the protocol. *what*: how, as a part of a sentence."""

    def __init__(self, why: Why, what: str) -> None:
        super().__init__(why, what)
        self.why = why
        self.what = what


class Negotiate(NamedTuple):
    """What a host offers: identifiers of hashes and of groups, the one that it likes best first."""

    transaction: int
    concatenation: int
    hashes: bytes
    groups: bytes


class Challenge(NamedTuple):
    """The controller's challenge. *value*: its public value, empty for the group NULL."""

    transaction: int
    hash_id: int
    group_id: int
    sequence: int
    challenge: bytes
    value: bytes


class Reply(NamedTuple):
    """A host's answer. *challenge*: its own, empty if it asks for none; *value*: its public value."""

    transaction: int
    sequence: int
    response: bytes
    challenge: bytes
    value: bytes


def message_bytes(command: Command) -> int | None:
    """Return the length of the message of an Authentication Send or Receive; None if a field is wrong."""
    fields = command.cdw10
    if fields >> 24 != _SECURITY_PROTOCOL or fields >> 16 & 0xFF != _SPECIFIC or fields >> 8 & 0xFF != _SPECIFIC:
        return None
    return command.cdw11 if 0 < command.cdw11 <= MESSAGE_BYTES_MAX else None


def command_dwords(nr_bytes: int) -> tuple[int, int]:
    """Return dwords 10 and 11 of an Authentication Send or Receive with *nr_bytes*."""
    return _SECURITY_PROTOCOL << 24 | _SPECIFIC << 16 | _SPECIFIC << 8, nr_bytes


def kind_of(message: bytes) -> tuple[int, int]:
    """Return (kind, transaction) of *message*.

    Raises:
        MessageError: it is shorter than any message.
    """
    if len(message) < _COMMON.size:
        raise MessageError(Why.INCORRECT_PAYLOAD, f"a message of {len(message)} bytes")
    kind, identifier, transaction = _COMMON.unpack_from(message)
    return kind << 8 | identifier, transaction


def parse_negotiate(message: bytes) -> Negotiate:
    """Return the Negotiate *message*, with what the host offers of DH-HMAC-CHAP.

    Raises:
        MessageError: it is shorter than it says, a list is longer than its room, or DH-HMAC-CHAP is not offered.
    """
    if len(message) < _NEGOTIATE.size:
        raise MessageError(Why.INCORRECT_PAYLOAD, f"an offer of {len(message)} bytes")
    *_, transaction, concatenation, nr_protocols = _NEGOTIATE.unpack_from(message)
    if len(message) < _NEGOTIATE.size + nr_protocols * _PROTOCOL.size:
        raise MessageError(Why.INCORRECT_PAYLOAD, f"{nr_protocols} protocols in {len(message)} bytes")
    for number in range(nr_protocols):
        protocol, nr_hashes, nr_groups, hashes, groups = _PROTOCOL.unpack_from(
            message, _NEGOTIATE.size + number * _PROTOCOL.size
        )
        if protocol != _DHCHAP:
            continue
        if max(nr_hashes, nr_groups) > _LIST_MAX:
            raise MessageError(Why.INCORRECT_PAYLOAD, f"{nr_hashes} hashes and {nr_groups} groups")
        return Negotiate(transaction, concatenation, hashes[:nr_hashes], groups[:nr_groups])
    raise MessageError(Why.PROTOCOL_NOT_USABLE, "no offer of DH-HMAC-CHAP")


def parse_challenge(message: bytes) -> Challenge:
    """Return the Challenge *message*, for a host.

    Raises:
        MessageError: it is shorter than it says.
    """
    if len(message) < _CHALLENGE.size:
        raise MessageError(Why.INCORRECT_PAYLOAD, f"a challenge of {len(message)} bytes")
    *_, transaction, hash_bytes, hash_id, group_id, value_bytes, sequence = _CHALLENGE.unpack_from(message)
    challenge, value = _parts(message, _CHALLENGE.size, hash_bytes, value_bytes)
    return Challenge(transaction, hash_id, group_id, sequence, challenge, value)


def parse_reply(message: bytes) -> Reply:
    """Return the Reply *message*.

    Raises:
        MessageError: it is shorter than it says.
    """
    if len(message) < _REPLY.size:
        raise MessageError(Why.INCORRECT_PAYLOAD, f"a reply of {len(message)} bytes")
    *_, transaction, hash_bytes, has_challenge, value_bytes, sequence = _REPLY.unpack_from(message)
    response, challenge, value = _parts(message, _REPLY.size, hash_bytes, hash_bytes, value_bytes)
    return Reply(transaction, sequence, response, challenge if has_challenge & 1 else b"", value)


def parse_success1(message: bytes) -> bytes:
    """Return the response in the Success1 *message*, as a host reads it; empty if there is none.

    Raises:
        MessageError: it is shorter than it says.
    """
    if len(message) < _SUCCESS1.size:
        raise MessageError(Why.INCORRECT_PAYLOAD, f"a success of {len(message)} bytes")
    *_, hash_bytes, has_response = _SUCCESS1.unpack_from(message)
    (response,) = _parts(message, _SUCCESS1.size, hash_bytes)
    return response if has_response & 1 else b""


def parse_failure(message: bytes) -> int:
    """Return the reason in the Failure *message* of a host or a controller; 0 if it has none."""
    return int(_FAILURE.unpack_from(message)[-1]) if len(message) >= _FAILURE.size else 0


def _parts(message: bytes, at: int, *lengths: int) -> list[bytes]:
    if len(message) < at + sum(lengths):
        raise MessageError(Why.INCORRECT_PAYLOAD, f"{sum(lengths)} bytes of values in {len(message) - at}")
    parts = []
    for length in lengths:
        parts.append(message[at : at + length])
        at += length
    return parts


def encode_negotiate(negotiate: Negotiate) -> bytes:
    """Return the Negotiate message of a host."""
    return _NEGOTIATE.pack(*_header(Message.NEGOTIATE), negotiate.transaction, negotiate.concatenation, 1) + (
        _PROTOCOL.pack(_DHCHAP, len(negotiate.hashes), len(negotiate.groups), negotiate.hashes, negotiate.groups)
    )


def encode_challenge(challenge: Challenge) -> bytes:
    """Return the Challenge message."""
    return (
        _CHALLENGE.pack(
            *_header(Message.CHALLENGE), challenge.transaction, len(challenge.challenge), challenge.hash_id,
            challenge.group_id, len(challenge.value), challenge.sequence,
        )
        + challenge.challenge
        + challenge.value
    )  # fmt: skip


def encode_reply(reply: Reply) -> bytes:
    """Return the Reply message of a host."""
    hash_bytes = len(reply.response)
    return (
        _REPLY.pack(
            *_header(Message.REPLY), reply.transaction, hash_bytes, bool(reply.challenge), len(reply.value),
            reply.sequence,
        )
        + reply.response
        + reply.challenge.ljust(hash_bytes, b"\0")
        + reply.value
    )  # fmt: skip


def encode_success1(transaction: int, hash_bytes: int, response: bytes) -> bytes:
    """Return the Success1 message, with the controller's *response* if the host has asked for one."""
    header = _SUCCESS1.pack(*_header(Message.SUCCESS1), transaction, hash_bytes, bool(response))
    return header + response.ljust(hash_bytes, b"\0")


def encode_success2(transaction: int) -> bytes:
    """Return the Success2 message of a host."""
    return _SUCCESS2.pack(*_header(Message.SUCCESS2), transaction)


def encode_failure(message: Message, transaction: int, why: int) -> bytes:
    """Return a Failure *message*: 1 of a controller, 2 of a host."""
    return _FAILURE.pack(*_header(message), transaction, _FAILED, why)


def _header(message: Message) -> tuple[int, int]:
    return message >> 8, message & 0xFF
