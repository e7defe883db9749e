"""Messages of an authentication to the byte; short and overlong ones."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.nvme.command import Command
from zonefs_emu.nvme_tcp import auth_messages
from zonefs_emu.nvme_tcp.auth_messages import Challenge, Message, MessageError, Negotiate, Reply, Why


def octets(text: str) -> bytes:
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


OFFER = octets(
    """
    00 00 00 00     # common message, negotiate
    07 00 00 01     # transaction 7, no secure channel, one protocol
    01 00 03 02     # DH-HMAC-CHAP, three hashes, two groups
    01 02 03"""
    + "00" * 27
    + "\n00 02"
    + "00" * 28
)
CHALLENGE = octets(
    """
    01 01 00 00
    07 00 20 00     # transaction 7, a hash of 32 bytes
    01 01 02 00     # SHA-256, the second group; two bytes of value
    78 56 34 12     # sequence
    """
    + "aa" * 32
    + "bb cc"
)
REPLY = octets(
    """
    01 02 00 00
    07 00 20 00
    01 00 02 00     # with a challenge
    05 00 00 00"""
    + "aa" * 32
    + "cc" * 32
    + "dd ee"
)


def test_what_hosts_send_to_the_byte() -> None:
    negotiate = Negotiate(7, 0, b"\1\2\3", b"\0\2")
    assert auth_messages.parse_negotiate(OFFER) == negotiate
    assert auth_messages.encode_negotiate(negotiate) == OFFER
    reply = Reply(7, 5, b"\xaa" * 32, b"\xcc" * 32, b"\xdd\xee")
    assert auth_messages.parse_reply(REPLY) == reply
    assert auth_messages.encode_reply(reply) == REPLY
    without = auth_messages.encode_reply(reply._replace(challenge=b"", sequence=0))
    assert auth_messages.parse_reply(without).challenge == b""
    assert auth_messages.encode_success2(7) == octets("01 04 00 00 07 00" + "00" * 10)
    assert auth_messages.encode_failure(Message.FAILURE2, 7, 1) == octets("00 f0 00 00 07 00 01 01")


def test_what_controllers_send_to_the_byte() -> None:
    challenge = Challenge(7, 1, 1, 0x12345678, b"\xaa" * 32, b"\xbb\xcc")
    assert auth_messages.encode_challenge(challenge) == CHALLENGE[:9] + b"\1" + CHALLENGE[10:]
    assert auth_messages.parse_challenge(CHALLENGE) == challenge
    assert auth_messages.encode_success1(7, 32, b"") == octets("01 03 00 00 07 00 20 00 00" + "00" * 39)
    proof = auth_messages.encode_success1(7, 32, b"\xab" * 32)
    assert proof == octets("01 03 00 00 07 00 20 00 01" + "00" * 7 + "ab" * 32)
    assert auth_messages.parse_success1(proof) == b"\xab" * 32
    assert auth_messages.encode_failure(Message.FAILURE1, 7, Why.HASH_NOT_USABLE) == octets("00 f1 00 00 07 00 01 04")
    assert auth_messages.parse_failure(octets("00 f1 00 00 07 00 01 04")) == Why.HASH_NOT_USABLE
    assert auth_messages.parse_failure(octets("00 f1 00 00 07 00")) == 0


@pytest.mark.parametrize(
    ("parse", "message"),
    [
        (auth_messages.parse_negotiate, OFFER),
        (auth_messages.parse_challenge, CHALLENGE),
        (auth_messages.parse_reply, REPLY),
        (auth_messages.parse_success1, auth_messages.encode_success1(7, 32, b"")),
        (auth_messages.kind_of, OFFER[:6]),
    ],
)
def test_every_shorter_message_is_refused(parse: Callable[[bytes], object], message: bytes) -> None:
    parse(message)
    for length in range(len(message)):
        with pytest.raises(MessageError) as caught:
            parse(message[:length])
        assert caught.value.why == Why.INCORRECT_PAYLOAD


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (7, 0, Why.PROTOCOL_NOT_USABLE),
        (7, 2, Why.INCORRECT_PAYLOAD),
        (8, 2, Why.PROTOCOL_NOT_USABLE),
        (10, 31, Why.INCORRECT_PAYLOAD),
        (11, 255, Why.INCORRECT_PAYLOAD),
    ],
)
def test_offers_that_say_too_much(offset: int, value: int, why: Why) -> None:
    message = bytearray(OFFER)
    message[offset] = value
    with pytest.raises(MessageError) as caught:
        auth_messages.parse_negotiate(bytes(message))
    assert caught.value.why == why


def test_a_protocol_that_we_do_not_have_is_passed_over() -> None:
    other = struct.pack("<B63x", 2)
    message = OFFER[:7] + b"\2" + other + OFFER[8:]
    assert auth_messages.parse_negotiate(message).hashes == b"\1\2\3"


@given(message=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_are_refused(message: bytes) -> None:
    for parse in (
        auth_messages.kind_of, auth_messages.parse_negotiate, auth_messages.parse_challenge, auth_messages.parse_reply,
        auth_messages.parse_success1,
    ):  # fmt: skip
        try:
            parse(message)
        except MessageError:
            continue


def command(cdw10: int, cdw11: int) -> Command:
    return Command(0x7F, 0, 1, 5, 0, 0, 0, cdw10, cdw11, 0, 0, 0, 0)


def test_the_commands_that_carry_messages() -> None:
    assert auth_messages.command_dwords(16) == (0xE9010100, 16)
    assert auth_messages.message_bytes(command(0xE9010100, 16)) == 16
    assert auth_messages.message_bytes(command(0xE90101FF, 4096)) == 4096, "the first byte is reserved"
    for cdw10 in (0xE8010100, 0xE9020100, 0xE9010200, 0):
        assert auth_messages.message_bytes(command(cdw10, 16)) is None
    for nr_bytes in (0, 4097, 0xFFFFFFFF):
        assert auth_messages.message_bytes(command(0xE9010100, nr_bytes)) is None
