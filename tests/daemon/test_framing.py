import struct
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.daemon import framing
from zonefs_emu.daemon.framing import Json
from zonefs_emu.daemon.verbs import Verbs
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import PeerError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition, Zone, ZoneType

# Small: what can go wrong with many values goes wrong with a few, and drawing them is what takes the time.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=3), st.binary(max_size=100))
def test_what_goes_in_comes_out(obj: dict[str, Json], payload: bytes) -> None:
    message = framing.encode(obj, payload)
    object_bytes, payload_bytes = framing.decode_header(message[: framing.HEADER_BYTES])
    body = message[framing.HEADER_BYTES :]
    assert len(body) == object_bytes + payload_bytes
    assert framing.decode_object(body[:object_bytes]) == obj
    assert body[object_bytes:] == payload


def test_bytes_on_the_wire() -> None:
    assert framing.encode({"verb": "info"}, b"\x01\x02") == (
        b"ZFE1"  # magic
        b"\x0f\0\0\0"  # length of the object = 15
        b"\x02\0\0\0"  # length of the payload = 2
        b'{"verb":"info"}'
        b"\x01\x02"
    )


def test_nothing_too_long_is_sent_or_taken() -> None:
    with pytest.raises(ValueError, match="too long"):
        framing.encode({}, bytes(framing.PAYLOAD_BYTES_MAX + 1))
    with pytest.raises(ValueError, match="too long"):
        framing.encode({"x": "y" * framing.OBJECT_BYTES_MAX})
    for lengths in ((framing.OBJECT_BYTES_MAX + 1, 0), (0, framing.PAYLOAD_BYTES_MAX + 1), (0xFFFFFFFF, 0xFFFFFFFF)):
        with pytest.raises(PeerError, match="too long"):
            framing.decode_header(struct.pack("<4sII", b"ZFE1", *lengths))


@given(st.binary(min_size=12, max_size=12).filter(lambda header: header[:4] != b"ZFE1"))
def test_another_protocol_is_named(header: bytes) -> None:
    with pytest.raises(PeerError, match=f"begins with {header[:4].hex()}"):
        framing.decode_header(header)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"1", b"{", b"\xff\xfe", b"[" * 100_000, b"{" + b'"a":' * 100, b'"x"', b"null"]
)
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(PeerError, match="not a JSON object"):
        framing.decode_object(text)


def test_the_geometry_of_a_device_travels(tmp_path: Path) -> None:
    geometry = Geometry(
        size=8 * 2048, zone_size=2048, zone_capacity=1536, conventional=((0, 1), (4, 2)), block_size_bytes=4096,
        write_granularity=16, max_open_zones=3, max_active_zones=4, max_append=512, extension_bytes=128, zrwa_size=64,
        zrwa_granularity=32, max_zrwa=2, active_excursions=True,
    )  # fmt: skip
    ZonedDevice.create(tmp_path / "a.img", geometry, uuid=uuid4())
    device = ZonedDevice.open(tmp_path / "a.img")
    try:
        ((info, _),) = Verbs(device).execute({"verb": "info"}, b"")
    finally:
        device.close()
    info = framing.decode_object(framing.encode(info)[framing.HEADER_BYTES :])
    assert framing.geometry_of(info) == geometry


def test_a_daemon_of_an_earlier_version_says_less_of_its_geometry() -> None:
    info: dict[str, Json] = {
        "size": 8 * 2048, "zone_size": 2048, "zone_capacity": 1536, "conventional": [[0, 1], [4, 2]],
        "block_size_bytes": 512, "write_granularity": 1, "max_open_zones": 3, "max_active_zones": 4, "max_append": 1024,
        "uuid": "u",
    }  # fmt: skip
    assert framing.geometry_of(info) == Geometry(
        size=8 * 2048, zone_size=2048, zone_capacity=1536, conventional=((0, 1), (4, 2)), max_open_zones=3,
        max_active_zones=4,
    )  # fmt: skip


def test_zones_travel() -> None:
    zones = [
        Zone(0, 0, 2048, 2048, 0, Condition.NOT_WP, ZoneType.CONVENTIONAL),
        Zone(
            (1 << 24) - 1,
            1 << 60,
            1 << 43,
            1,
            (1 << 60) + 1,
            Condition.OFFLINE,
            ZoneType.SWR,
            reset_recommended=True,
            attributes=1,
        ),
    ]
    payload = framing.pack_zones(zones)
    assert framing.unpack_zones(payload) == zones
    for damaged in (payload[:-1], payload[:-4] + b"\x07\x02\0\0", payload[:-3] + b"\x09\0\0"):
        with pytest.raises(PeerError, match="cannot be read"):
            framing.unpack_zones(damaged)
