"""Requests and descriptors of the block device as bytes and as values."""

import struct

import pytest

from tests.scsi.disks import from_hex
from zonefs_emu.errors import Status
from zonefs_emu.model.zone import Condition, Zone, ZoneType
from zonefs_emu.virtio import blk_codec as codec
from zonefs_emu.virtio.ring import BrokenRingError, Chain
from zonefs_emu.virtio.rules import BlkRule


def test_every_status_has_its_answer() -> None:
    for table in (codec.ZONE_STATUS, codec.DATA_STATUS, codec.PLAIN_STATUS):
        assert set(table) == set(Status)
    assert set(codec.PLAIN_STATUS.values()) <= {codec.S_OK, codec.S_IOERR, codec.S_UNSUPP}
    assert codec.ZONE_STATUS[Status.ACTIVE_RESOURCE] == 6
    assert codec.ZONE_STATUS[Status.OPEN_RESOURCE] == 5
    assert codec.ZONE_STATUS[Status.UNALIGNED_WP] == 4


def test_every_rule_of_its_own_has_a_status() -> None:
    assert set(codec.STATUS_OF_RULE) == set(BlkRule)


@pytest.mark.parametrize(
    ("cond", "wp"),
    [
        (Condition.NOT_WP, 0x1800),
        (Condition.EMPTY, 0x1123),
        (Condition.IMP_OPEN, 0x1123),
        (Condition.EXP_OPEN, 0x1123),
        (Condition.CLOSED, 0x1123),
        # Undefined, says the standard; Linux has these numbers for every kind of disk.
        (Condition.READONLY, (1 << 64) - 1),
        (Condition.FULL, 0x1800),
        (Condition.OFFLINE, (1 << 64) - 1),
    ],
)
def test_zone_descriptor(cond: Condition, wp: int) -> None:
    zone_type = ZoneType.SWR if cond else ZoneType.CONVENTIONAL
    zone = Zone(zone_no=2, start=0x1000, size=0x800, capacity=0x700, wp=0x1123, cond=cond, type=zone_type)
    assert codec.encode_zone(zone) == from_hex(
        f"""00 07 00 00 00 00 00 00   #  0 z_cap, sectors
            00 10 00 00 00 00 00 00   #  8 z_start
            {wp.to_bytes(8, "little").hex()}  # 16 z_wp
            {zone_type:02x} {cond:02x}               # 24 z_type, z_state
            {"00" * 38}               # 26 reserved"""
    )


def chain(readable: list[int], writable: list[int], *, kind: int = codec.T_OUT, sector: int = 0x1234) -> Chain:
    """A request whose parts have these numbers of bytes."""
    memory = memoryview(bytearray(struct.pack("<IIQ", kind, 7, sector).ljust(sum(readable), b"d")))
    parts = []
    for nr_bytes in readable:
        parts.append(memory[:nr_bytes])
        memory = memory[nr_bytes:]
    return 0, parts, [memoryview(bytearray(nr_bytes)) for nr_bytes in writable]


@pytest.mark.parametrize("readable", [[16, 1024], [16, 512, 512], [3, 13, 1024], [20, 1020], [1040]])
@pytest.mark.parametrize("writable", [[21], [20, 1], [19, 2]])
def test_a_request_is_decoded_however_it_is_cut(readable: list[int], writable: list[int]) -> None:
    whole = chain(readable, writable)
    assert codec.decode_header(whole) == (codec.T_OUT, 0x1234)
    request = codec.decode(whole, codec.T_OUT, 0x1234, legacy=False)
    assert (request.kind, request.sector) == (codec.T_OUT, 0x1234)
    assert b"".join(request.data_out) == b"d" * 1024
    assert (request.nr_out_bytes, request.nr_in_bytes, sum(map(len, request.data_in))) == (1024, 20, 20)
    request.status[0] = 5
    assert whole[2][-1][-1] == 5


def test_what_was_decoded_does_not_change_with_the_memory() -> None:
    whole = chain([16], [1], kind=codec.T_FLUSH)
    request = codec.decode(whole, *codec.decode_header(whole), legacy=False)
    whole[1][0][:] = bytes(16)
    assert (request.kind, request.sector) == (codec.T_FLUSH, 0x1234)


@pytest.mark.parametrize(("legacy", "kind"), [(True, codec.T_OUT), (False, codec.T_OUT | 1 << 31)])
def test_the_barrier_is_a_bit_of_legacy_drivers_only(*, legacy: bool, kind: int) -> None:
    assert codec.decode(chain([16], [1]), codec.T_OUT | 1 << 31, 0, legacy=legacy).kind == kind


@pytest.mark.parametrize(("readable", "writable"), [([], [1]), ([15], [1]), ([16], [])])
def test_without_header_or_room_for_a_status_there_is_no_request(readable: list[int], writable: list[int]) -> None:
    with pytest.raises(BrokenRingError, match="bytes of header"):
        codec.decode_header(chain(readable, writable))
