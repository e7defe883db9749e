import struct

from hypothesis import given, strategies as st

from zonefs_emu.nvme_tcp import fabrics
from zonefs_emu.nvme_tcp.fabrics import Connect


def test_layout_of_connect() -> None:
    """Base Specification, "Connect command": queue 2 of 128 entries, keep alive after 5 s."""
    entry = bytearray(64)
    struct.pack_into("<HHHBxI", entry, 40, 0, 2, 127, 4, 5000)
    data = bytearray(1024)
    data[:16] = bytes(range(16))
    struct.pack_into("<H", data, 16, 9)
    data[256:261] = b"nqn.a"
    data[512:517] = b"nqn.h"
    found = fabrics.parse_connect(memoryview(entry), memoryview(data))
    assert found == Connect(0, 2, 127, 4, 5000, bytes(range(16)), 9, "nqn.a", "nqn.h")
    assert fabrics.encode_connect_data(found) == data


@given(st.binary(min_size=64, max_size=64), st.binary(min_size=1024, max_size=1024))
def test_any_bytes_can_be_parsed(entry: bytes, data: bytes) -> None:
    found = fabrics.parse_connect(memoryview(entry), memoryview(data))
    assert "\0" not in found.subsystem_nqn + found.host_nqn
    assert fabrics.parse_property(memoryview(entry)).offset < 1 << 32


def test_layout_of_properties() -> None:
    entry = bytearray(64)
    struct.pack_into("<B3xIQ", entry, 40, 1, 0x14, 0x460061)
    assert fabrics.parse_property(memoryview(entry)) == (True, 0x14, 0x460061)
