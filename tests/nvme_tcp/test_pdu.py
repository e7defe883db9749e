"""PDUs byte by byte: what hosts send is checked, what they get is what Linux expects."""

import struct

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.nvme.answer import RefusedError
from zonefs_emu.nvme_tcp import pdu
from zonefs_emu.nvme_tcp.pdu import COMMON, PDU_BYTES_MAX, Fatal, Framing, PduError, PduType

PLAIN, CHECKED = Framing(), Framing(header_digest=True, data_digest=True)


def header(kind: int, header_bytes: int, offset: int, length: int, flags: int = 0) -> memoryview:
    return memoryview(COMMON.pack(kind, flags, header_bytes, offset, length).ljust(128, b"\0"))


@pytest.mark.parametrize(
    "framing_and_pdu",
    [
        (PLAIN, (0x00, 128, 0, 128)),
        (PLAIN, (0x02, 24, 0, 24)),
        (PLAIN, (0x02, 24, 0, 152)),
        (PLAIN, (0x04, 72, 0, 72)),
        (PLAIN, (0x04, 72, 72, 72 + 4096)),
        (PLAIN, (0x04, 72, 80, 80 + 512)),
        (CHECKED, (0x04, 72, 0, 76)),
        (CHECKED, (0x04, 72, 76, 76 + 4096 + 4)),
        (CHECKED, (0x00, 128, 0, 128)),
        (PLAIN, (0x06, 24, 24, PDU_BYTES_MAX)),
    ],
)
def test_what_hosts_may_send(framing_and_pdu: tuple[Framing, tuple[int, int, int, int]]) -> None:
    framing, fields = framing_and_pdu
    assert framing.check(header(*fields)) == (fields[0], fields[3])


@pytest.mark.parametrize("version", [1, 3])
def test_a_tls_handshake_is_known(version: int) -> None:
    """The beginning of a record: type, version, length; and of its message: type, length."""
    hello = memoryview(bytes((0x16, 3, version, 0, 200, 1, 0, 0, 196)))
    with pytest.raises(pdu.TlsUnexpectedError) as caught:
        PLAIN.check(hello)
    assert (caught.value.fatal, caught.value.field) == (Fatal.INVALID_HEADER, 0)
    for other in (b"\x16\4\1\0\0\1\0\0", b"\x16\3\1\0\0\2\0\0"):
        with pytest.raises(PduError, match="PDU type 16h"):
            PLAIN.check(memoryview(other))


@pytest.mark.parametrize(
    ("framing", "fields", "field"),
    [
        (PLAIN, (0x01, 128, 0, 128), 0),
        (PLAIN, (0x05, 24, 0, 24), 0),
        (PLAIN, (0x08, 24, 0, 24), 0),
        (PLAIN, (0xFF, 24, 0, 24), 0),
        (PLAIN, (0x04, 71, 0, 72), 2),
        (PLAIN, (0x00, 127, 0, 128), 2),
        (PLAIN, (0x00, 128, 0, 129), 4),
        (PLAIN, (0x04, 72, 0, 71), 4),
        (PLAIN, (0x04, 72, 0, 0xFFFFFFFF), 4),
        (PLAIN, (0x06, 24, 24, PDU_BYTES_MAX + 1), 4),
        (PLAIN, (0x02, 24, 0, 153), 4),
        (CHECKED, (0x04, 72, 0, 72), 4),
        (PLAIN, (0x04, 72, 0, 100), 3),
        (PLAIN, (0x04, 72, 71, 100), 3),
        (PLAIN, (0x04, 72, 100, 100), 3),
        (CHECKED, (0x04, 72, 72, 200), 3),
    ],
)
def test_what_no_host_may_send(framing: Framing, fields: tuple[int, int, int, int], field: int) -> None:
    with pytest.raises(PduError) as caught:
        framing.check(header(*fields))
    assert (caught.value.fatal, caught.value.field) == (Fatal.INVALID_HEADER, field)
    last = pdu.terminate(caught.value, bytes(header(*fields)[:24]))
    assert struct.unpack_from("<BBBBIHI", last) == (3, 0, 24, 0, 48, 1, field)
    assert last[24:] == bytes(header(*fields)[:24])


@given(st.binary(min_size=8, max_size=128))
def test_any_bytes_are_a_pdu_or_an_error(data: bytes) -> None:
    for framing in (PLAIN, CHECKED):
        try:
            kind, length = framing.check(memoryview(data))
        except PduError:
            pass
        else:
            assert kind in {0, 2, 4, 6}
            assert 24 <= length <= PDU_BYTES_MAX


def with_digests(kind: int, header_bytes: int, payload: bytes) -> bytearray:
    begin = header_bytes + 4
    head = COMMON.pack(kind, 3, header_bytes, begin, begin + len(payload) + 4).ljust(header_bytes, b"\x11")
    return bytearray(head + pdu.digest(head) + payload + pdu.digest(payload))


def test_digests_are_crc32c() -> None:
    assert pdu.digest(b"123456789") == bytes.fromhex("839206e3")


def test_damage_is_noticed_by_digests() -> None:
    whole = with_digests(PduType.COMMAND, 72, b"data" * 100)
    assert bytes(CHECKED.data_of(memoryview(whole))) == b"data" * 100
    for place in (8, 71, 72, 75):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        with pytest.raises(PduError) as caught:
            CHECKED.data_of(memoryview(damaged))
        assert caught.value.fatal is Fatal.HEADER_DIGEST
    for place in (76, 300, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        with pytest.raises(RefusedError, match="NVME_DIGEST"):
            CHECKED.data_of(memoryview(damaged))
    empty = COMMON.pack(PduType.COMMAND, 1, 72, 0, 76).ljust(72, b"\0")
    assert bytes(CHECKED.data_of(memoryview(empty + pdu.digest(empty)))) == b""


def test_first_pdus() -> None:
    request = bytearray(COMMON.pack(0, 0, 128, 0, 128).ljust(128, b"\0"))
    assert pdu.parse_ic_request(memoryview(request)) == (False, False)
    request[11] = 3
    assert pdu.parse_ic_request(memoryview(request)) == (True, True)
    for place, field in ((8, 8), (10, 10)):
        wrong = bytearray(request)
        wrong[place] = 1
        with pytest.raises(PduError) as caught:
            pdu.parse_ic_request(memoryview(wrong))
        assert (caught.value.fatal, caught.value.field) == (Fatal.UNSUPPORTED, field)
    answer = pdu.ic_response(CHECKED)
    assert struct.unpack_from("<BBBBIHBBI", answer) == (1, 0, 128, 0, 128, 0, 0, 3, pdu.H2C_DATA_MAX)
    assert len(answer) == 128


def test_answers() -> None:
    assert PLAIN.response(0x1122334455667788, 5, 2, 7, 0x41BC).hex() == (
        "050018001800000088776655443322110500020007007883"
    )
    parts = PLAIN.data(7, memoryview(b"abcd"), success=True)
    assert b"".join(parts).hex() == "070c18181c0000000700000000000000040000000000000061626364"
    assert PLAIN.ready_to_transfer(7, 9, 512).hex() == ("090018001800000007000900000000000002000000000000")
    checked = CHECKED.data(7, memoryview(b"abcd"), success=False)
    assert (checked[0][1], len(checked[0]), checked[-1]) == (4 | 3, 28, pdu.digest(b"abcd"))
    assert checked[0][24:] == pdu.digest(checked[0][:24])
    assert struct.unpack_from("<I", checked[0], 4)[0] == sum(map(len, checked))
    assert len(CHECKED.response(0, 0, 0, 0, 0)) == len(CHECKED.ready_to_transfer(0, 0, 0)) == 28


def test_data_of_a_host() -> None:
    data = struct.pack("<BBBBIHHII4x", 6, 4, 24, 24, 28, 7, 9, 512, 4)
    assert pdu.parse_h2c_data(memoryview(data)) == (7, 9, 512, 4, True)
