"""The bytes of VDUSE, field by field, as include/uapi/linux/vduse.h of Linux 6.12 has them."""

import pytest

from zonefs_emu.vduse import protocol
from zonefs_emu.vduse.protocol import Mapping, Message, QueueInfo, Request


def from_hex(text: str) -> bytes:
    """Bytes in hex, one field a line; what stands after # is for people."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


def test_ioctls() -> None:
    assert protocol.SET_API_VERSION == 0x40088101
    assert protocol.CREATE_DEV == 0x41508102  # 336 bytes
    assert protocol.DESTROY_DEV == 0x41008103
    assert protocol.IOTLB_GET_FD == 0xC0208110
    assert protocol.DEV_GET_FEATURES == 0x80088111
    assert protocol.VQ_SETUP == 0x40208114
    assert protocol.VQ_GET_INFO == 0xC0308115
    assert protocol.VQ_SETUP_KICKFD == 0x40088116
    assert protocol.VQ_INJECT_IRQ == 0x40048117


def test_device() -> None:
    encoded = protocol.encode_device("disk", device_id=2, features=0x1122334455667788, nr_queues=3, config=b"\xab\xcd")
    assert encoded[:256] == b"disk".ljust(256, b"\0")
    assert encoded[256:] == from_hex(
        f"""00 00 00 00               # vendor_id
            02 00 00 00               # device_id: block
            88 77 66 55 44 33 22 11   # features
            03 00 00 00               # vq_num
            00 10 00 00               # vq_align
            {"00" * 52}               # reserved
            02 00 00 00               # config_size
            ab cd                     # config"""
    )


def test_queue() -> None:
    assert protocol.encode_queue(1, 128) == from_hex(f"01 00 00 00  80 00  {'00' * 26}")
    assert protocol.encode_kick(1, -1) == from_hex("01 00 00 00  ff ff ff ff")
    assert protocol.encode_index(2) == from_hex("02 00 00 00")
    assert protocol.encode_queue_query(2) == from_hex(f"02 00 00 00 {'00' * 44}")


def test_queue_info() -> None:
    info = protocol.decode_queue_info(
        from_hex(
            """01 00 00 00               # index
               80 00 00 00               # num
               00 10 00 00 00 00 00 00   # desc_addr
               00 20 00 00 00 00 00 00   # driver_addr
               00 30 00 00 00 00 00 00   # device_addr
               07 00                     # split.avail_index
               00 00 00 00 00 00         # the rest of the union with a packed ring's state
               01                        # ready
               00 00 00 00 00 00 00      # padding"""
        )
    )
    assert info == QueueInfo(size=128, desc=0x1000, driver=0x2000, device=0x3000, avail_index=7, ready=True)


def test_mapping() -> None:
    assert protocol.encode_range(0x1000, 0x1FFF) == from_hex(
        f"{'00' * 8}  00 10 00 00 00 00 00 00  ff 1f 00 00 00 00 00 00  {'00' * 8}"
    )
    mapping = protocol.decode_mapping(
        from_hex(
            """00 40 00 00 00 00 00 00   # offset
               00 10 00 00 00 00 00 00   # start
               ff 1f 00 00 00 00 00 00   # last
               03                        # perm: read and write
               00 00 00 00 00 00 00"""
        )
    )
    assert mapping == Mapping(offset=0x4000, start=0x1000, last=0x1FFF, access=3)


@pytest.mark.parametrize(
    ("kind", "payload", "expected"),
    [
        (Message.GET_VQ_STATE, "02 00 00 00", Request(kind=0, request_id=9, queue=2)),
        (Message.SET_STATUS, "0f", Request(kind=1, request_id=9, status=15)),
        (
            Message.UPDATE_IOTLB,
            "00 10 00 00 00 00 00 00  ff ff ff ff ff ff ff ff",
            Request(kind=2, request_id=9, start=0x1000, last=(1 << 64) - 1),
        ),
        (77, "12 34", Request(kind=77, request_id=9)),
    ],
)
def test_requests(kind: int, payload: str, expected: Request) -> None:
    message = protocol.encode_request(kind, 9, from_hex(payload))
    assert message[:24] == from_hex(f"{kind:02x} 00 00 00  09 00 00 00  {'00' * 16}")
    assert len(message) == protocol.MESSAGE_BYTES == 152
    assert protocol.decode_request(message) == expected


def test_responses() -> None:
    state = protocol.encode_response(Request(kind=0, request_id=9, queue=2), protocol.RESULT_OK, avail_index=0x1234)
    assert state == from_hex(f"09 00 00 00  00 00 00 00  {'00' * 16}  02 00 00 00  34 12  {'00' * 122}")
    failed = protocol.encode_response(Request(kind=77, request_id=10), protocol.RESULT_FAILED)
    assert failed == from_hex(f"0a 00 00 00  01 00 00 00  {'00' * 144}")


@pytest.mark.parametrize("kind", [*Message, 99])
def test_a_failure_names_the_message_that_it_answers(kind: int) -> None:
    message = protocol.encode_request(kind, 7, b"\xff" * 8)
    expected = protocol.encode_response(Request(kind=99, request_id=7), protocol.RESULT_FAILED)
    assert protocol.encode_failure(message) == expected
    assert len(protocol.encode_failure(b"")) == protocol.MESSAGE_BYTES
