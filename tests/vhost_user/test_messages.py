"""Golden bytes both ways, cut and damaged."""

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.errors import PeerError
from zonefs_emu.vhost_user.messages import (
    ConfigSpace,
    DeviceStateTransfer,
    Header,
    Inflight,
    LogBase,
    MemoryRegion,
    MemoryTable,
    Nothing,
    Number,
    Payload,
    ProtocolFeature,
    Request,
    Unknown,
    VringAddress,
    VringState,
    decode_header,
    decode_payload,
    decode_reply,
    encode_header,
    encode_payload,
)

REGION = MemoryRegion(guest_address=1 << 32, size=0x200000, user_address=0x7F0000000000, mmap_offset=0x1000)
GOLDEN: list[tuple[Request, Payload, str]] = [
    (Request.SET_FEATURES, Number(0x1_4000_0020), "20000040 01000000"),
    (Request.SET_VRING_NUM, VringState(1, 128), "01000000 80000000"),
    (
        Request.SET_VRING_ADDR,
        VringAddress(queue_no=1, flags=1, desc=0x11, used=0x22, avail=0x33, log=0x44),
        "01000000 01000000 1100000000000000 2200000000000000 3300000000000000 4400000000000000",
    ),
    (Request.SET_MEM_TABLE, MemoryTable(()), "00000000 00000000"),
    (
        Request.SET_MEM_TABLE,
        MemoryTable((REGION,)),
        "01000000 00000000 0000000001000000 0000200000000000 00000000007f0000 0010000000000000",
    ),
    (
        Request.ADD_MEM_REG,
        REGION,
        "0000000000000000 0000000001000000 0000200000000000 00000000007f0000 0010000000000000",
    ),
    (Request.SET_LOG_BASE, LogBase(0x1000, 0x2000), "0010000000000000 0020000000000000"),
    (Request.SET_VRING_KICK, Number(0x101), "0101000000000000"),
    (Request.GET_CONFIG, ConfigSpace(32, 1, 0, b"\1"), "20000000 01000000 00000000 01"),
    (
        Request.SET_INFLIGHT_FD,
        Inflight(mmap_size=4096, mmap_offset=0, nr_queues=2, queue_size=128),
        "0010000000000000 0000000000000000 0200 8000 00000000",
    ),
    (Request.SET_DEVICE_STATE_FD, DeviceStateTransfer(1, 0), "01000000 00000000"),
    (Request.SET_STATUS, Number(15), "0f00000000000000"),
    (Request.GET_FEATURES, Nothing(), ""),
]


@pytest.mark.parametrize(("request_no", "payload", "text"), GOLDEN, ids=[str(row[0].name) for row in GOLDEN])
def test_golden(request_no: Request, payload: Payload, text: str) -> None:
    data = bytes.fromhex(text)
    assert encode_payload(payload) == data
    assert decode_payload(request_no, data) == payload


@pytest.mark.parametrize(("request_no", "payload", "text"), GOLDEN, ids=[str(row[0].name) for row in GOLDEN])
def test_cut_or_longer(request_no: Request, payload: Payload, text: str) -> None:
    """At every length but the right one (and those that peers send all the same) a payload is refused."""
    data = bytes.fromhex(text)
    fine = {len(data)}
    if isinstance(payload, Inflight):
        fine |= {20}  # without the padding of the C structure
    if isinstance(payload, ConfigSpace):
        fine |= {12}  # only asked for
    for length in range(len(data) + 9):
        cut = data[:length].ljust(length, b"\0")
        if length in fine or isinstance(payload, Nothing) or (isinstance(payload, MemoryTable) and length >= len(data)):
            decode_payload(request_no, cut)
        else:
            with pytest.raises(PeerError, match="bytes"):
                decode_payload(request_no, cut)


def test_answers_have_their_own_forms() -> None:
    assert decode_reply(Request.GET_FEATURES, bytes(8)) == Number(0)
    assert decode_reply(Request.GET_VRING_BASE, bytes(8)) == VringState(0, 0)


def test_header() -> None:
    data = encode_header(Request.SET_MEM_TABLE, 8, 40)
    assert data == bytes.fromhex("05000000 09000000 28000000")
    assert decode_header(data) == Header(5, 9, 40)
    assert decode_header(encode_header(44, 4, 0)).request == 44, "unknown requests have headers, too"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("05000000 08000000 28000000", "has version 0"),
        ("05000000 0a000000 28000000", "has version 2"),
        ("05000000 09000000 01100000", "payload of 4097 bytes"),
        ("05000000 09000000 ffffffff", "payload of 4294967295 bytes"),
    ],
)
def test_bad_headers(text: str, sentence: str) -> None:
    with pytest.raises(PeerError, match=sentence):
        decode_header(bytes.fromhex(text))


@pytest.mark.parametrize(
    "payload",
    [
        ConfigSpace(0, 257, 0, b""),
        ConfigSpace(200, 100, 0, b""),
        ConfigSpace(0, 4, 0, b"x"),
    ],
)
def test_configuration_space_is_bounded(payload: ConfigSpace) -> None:
    with pytest.raises(PeerError, match="configuration space"):
        decode_payload(Request.GET_CONFIG, encode_payload(payload))


def test_a_memory_table_that_lies_about_its_length() -> None:
    with pytest.raises(PeerError, match="9 regions"):
        decode_payload(Request.SET_MEM_TABLE, b"\x09".ljust(8 + 9 * 32, b"\0"))
    with pytest.raises(PeerError, match="2 regions does not fit its 40 bytes"):
        decode_payload(Request.SET_MEM_TABLE, b"\x02".ljust(40, b"\0"))


def test_masks() -> None:
    assert ProtocolFeature.DEVICE_STATE.mask == 0x80000


@given(request_no=st.integers(0, 60), data=st.binary(max_size=400))
def test_any_bytes_are_a_payload_or_refused(request_no: int, data: bytes) -> None:
    try:
        payload = decode_payload(request_no, data)
    except PeerError:
        return
    if isinstance(payload, Unknown):
        assert encode_payload(payload) == data
    again = decode_payload(request_no, encode_payload(payload))
    assert again == payload
