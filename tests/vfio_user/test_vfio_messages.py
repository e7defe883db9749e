"""Messages as bytes, as QEMU 11 sends and takes them."""

import json

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.errors import PeerError
from zonefs_emu.vfio_user import vfio_messages as messages
from zonefs_emu.vfio_user.vfio_messages import (
    DmaMapRequest,
    DmaUnmapRequest,
    IrqSetRequest,
    MessageHeader,
    RegionAccess,
    RegionFlag,
    VfioCommand,
)


def test_a_header() -> None:
    data = bytes.fromhex("0700 0900 20000000 00000000 00000000")
    header = messages.decode_header(data)
    assert header == MessageHeader(7, VfioCommand.REGION_READ, 0, 16)
    assert header.wants_reply
    assert not header._replace(flags=0x10).wants_reply
    assert messages.encode_reply(header, b"ab") == bytes.fromhex("0700 0900 12000000 01000000 00000000") + b"ab"
    assert messages.encode_error(header, 22) == bytes.fromhex("0700 0900 10000000 21000000 16000000")
    assert messages.encode_command(7, VfioCommand.REGION_READ, bytes(16)) == data + bytes(16)


@pytest.mark.parametrize(
    "data",
    ["0700 0900 0f000000 00000000 00000000", "0700 0900 01000100 00000000 00000000",
     "0700 0900 10000000 01000000 00000000"],
    ids=["short", "long", "reply"],
)  # fmt: skip
def test_impossible_headers(data: str) -> None:
    with pytest.raises(PeerError):
        messages.decode_header(bytes.fromhex(data))


def test_the_version() -> None:
    assert messages.decode_version(bytes.fromhex("0000 0100") + b'{"capabilities":{}}\0') == (0, 1)
    answer = messages.encode_version()
    assert answer[:4] == bytes(4)
    assert answer.endswith(b"\0"), "QEMU looks for it"
    assert json.loads(answer[4:-1])["capabilities"]["max_msg_fds"] == 16, "QEMU takes no more"


def test_memory() -> None:
    data = bytes.fromhex("20000000 03000000 0010000000000000 0000010000000000 0000400000000000")
    request = DmaMapRequest(3, 0x1000, 0x10000, 0x400000)
    assert messages.decode_dma_map(data) == request
    assert messages.encode_dma_map(request) == data
    data = bytes.fromhex("18000000 02000000 0000010000000000 0000400000000000")
    removal = DmaUnmapRequest(24, 2, 0x10000, 0x400000)
    assert messages.decode_dma_unmap(data) == removal
    assert messages.encode_dma_unmap(removal) == data


def test_information() -> None:
    assert messages.encode_device_info(9, 5) == bytes.fromhex("10000000 03000000 09000000 05000000")
    assert messages.decode_index(messages.encode_index(7)) == 7
    flags = RegionFlag.READ | RegionFlag.WRITE
    assert messages.encode_region_info(7, flags, 0x1000) == bytes.fromhex(
        "20000000 03000000 07000000 00000000 0010000000000000 0000000000000000"
    )
    assert messages.encode_irq_info(2, 17) == bytes.fromhex("10000000 01000000 02000000 11000000")


def test_interrupts_and_regions() -> None:
    data = bytes.fromhex("14000000 24000000 02000000 01000000 03000000")
    request = IrqSetRequest(0x24, 2, 1, 3)
    assert messages.decode_irq_set(data) == request
    assert messages.encode_irq_set(request) == data
    data = bytes.fromhex("1400000000000000 00000000 04000000 01004600")
    access = RegionAccess(0x14, 0, 4)
    assert messages.decode_region_access(data) == (access, bytes.fromhex("01004600"))
    assert messages.encode_region_access(access, bytes.fromhex("01004600")) == data
    with pytest.raises(PeerError, match="an access to a region has 4097 bytes"):
        messages.decode_region_access(messages.encode_region_access(RegionAccess(0, 0, 4097)))


@pytest.mark.parametrize(
    "decode",
    [
        messages.decode_version, messages.decode_dma_map, messages.decode_dma_unmap, messages.decode_index,
        messages.decode_irq_set, messages.decode_region_access,
    ],
)  # fmt: skip
@given(payload=st.binary(max_size=40))
def test_any_payload_is_decoded_or_refused(decode: object, payload: bytes) -> None:
    assert callable(decode)
    try:
        decode(payload)
    except PeerError:
        assert len(payload) < 40 or decode is messages.decode_region_access
