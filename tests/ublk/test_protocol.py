"""The bytes of ublk, field by field, as include/uapi/linux/ublk_cmd.h of Linux 6.12 has them."""

import pytest

from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition, Zone, ZoneType
from zonefs_emu.ublk import protocol
from zonefs_emu.ublk.protocol import Control, DeviceInfo, DeviceState, Flag

GEOMETRY = Geometry(
    size=8 << 11, zone_size=1 << 11, zone_capacity=1500 * 8 // 8, block_size_bytes=512, write_granularity=4,
    max_open_zones=3, max_active_zones=5, max_append=1024,
)  # fmt: skip


def from_hex(text: str) -> bytes:
    """Bytes in hex, one field a line; what stands after # is for people."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


def test_opcodes() -> None:
    # Read only or both ways, structures of 32 and 16 bytes, 'u', number.
    assert protocol.control_opcode(Control.GET_DEV_INFO) == 0x80207502
    assert protocol.control_opcode(Control.ADD_DEV) == 0xC0207504
    assert protocol.control_opcode(Control.GET_FEATURES) == 0x80207513
    assert (protocol.FETCH_REQ, protocol.COMMIT_AND_FETCH_REQ) == (0xC0107520, 0xC0107521)


def test_control_command() -> None:
    assert protocol.encode_control(7, address=0x1122334455667788, length=64, data=0x99) == from_hex(
        """07 00 00 00               # dev_id
           ff ff                     # queue_id: none
           40 00                     # len
           88 77 66 55 44 33 22 11   # addr
           99 00 00 00 00 00 00 00   # data[0]
           00 00                     # dev_path_len
           00 00  00 00 00 00        # pad, reserved"""
    )


DEVICE_INFO = """
    02 00                     # nr_hw_queues
    40 00                     # queue_depth
    01 00                     # state: LIVE
    00 00                     # pad0
    00 00 10 00               # max_io_buf_bytes
    05 00 00 00               # dev_id
    d2 04 00 00               # ublksrv_pid
    00 00 00 00               # pad1
    d8 01 00 00 00 00 00 00   # flags: recovery, reissue, ioctl encoding, user copy, zoned
    88 77 66 55 44 33 22 11   # ublksrv_flags: the server's own
    00 00 00 00 00 00 00 00   # owner_uid, owner_gid
    00 00 00 00 00 00 00 00   # reserved1
    00 00 00 00 00 00 00 00   # reserved2
"""


def test_device_info_both_ways() -> None:
    flags = Flag.USER_RECOVERY | Flag.USER_RECOVERY_REISSUE | Flag.CMD_IOCTL_ENCODE | Flag.USER_COPY | Flag.ZONED
    info = DeviceInfo(
        nr_queues=2, queue_depth=64, flags=flags, max_io_bytes=1 << 20, device_id=5, state=DeviceState.LIVE,
        server_pid=1234, tag=0x1122334455667788,
    )  # fmt: skip
    assert info.encode() == from_hex(DEVICE_INFO)
    assert DeviceInfo.decode(from_hex(DEVICE_INFO)) == info


def test_a_device_of_a_later_kernel_can_be_read() -> None:
    later = bytearray(from_hex(DEVICE_INFO))
    later[4] = 9  # a state that we do not know
    later[31] = 0x80  # a flag that we do not know
    assert DeviceInfo.decode(bytes(later)).state is DeviceState.UNKNOWN
    assert DeviceInfo.decode(bytes(later)).flags & Flag.ZONED


def test_params() -> None:
    encoded = protocol.encode_params(GEOMETRY, max_io_bytes=1 << 18, readonly=True)
    assert encoded == from_hex(
        """70 00 00 00               #   0 len = 112
           09 00 00 00               #   4 types: basic, zoned
           0d 00 00 00               #   8 attrs: read-only, volatile cache, FUA
           0b 0b 0b 0b               #  12 logical, physical, io_opt, io_min shift: the write granularity, 2048
           00 02 00 00               #  16 max_sectors
           00 08 00 00               #  20 chunk_sectors: the zone size
           00 40 00 00 00 00 00 00   #  24 dev_sectors
           00 00 00 00 00 00 00 00   #  32 virt_boundary_mask
           00 00 00 00 00 00 00 00   #  40 discard: alignment, granularity
           00 00 00 00 00 00 00 00   #  48 max discard sectors, write zeroes sectors
           00 00  00 00              #  56 max discard segments, reserved
           00 00 00 00 00 00 00 00   #  60 devt: char
           00 00 00 00 00 00 00 00   #  68 disk
           03 00 00 00               #  76 max_open_zones
           05 00 00 00               #  80 max_active_zones
           00 02 00 00               #  84 max_zone_append_sectors
           00 00 00 00 00 00 00 00   #  88 reserved
           00 00 00 00 00 00 00 00   #  96
           00 00 00 00  00 00 00 00  # 104 """
    )


def test_limits_above_the_number_of_zones_are_cut() -> None:
    geometry = Geometry(size=4096, zone_size=1024, zone_capacity=1024, max_active_zones=100, max_open_zones=50)
    encoded = protocol.encode_params(geometry, max_io_bytes=1 << 20, readonly=False)
    assert encoded[76:84] == from_hex("04 00 00 00  04 00 00 00")
    assert encoded[8] == 0x0C


@pytest.mark.parametrize(
    ("cond", "wp"),
    [
        (Condition.EMPTY, 0x1000),
        (Condition.IMP_OPEN, 0x1008),
        (Condition.EXP_OPEN, 0x1008),
        (Condition.CLOSED, 0x1008),
        (Condition.FULL, 0x1800),
        (Condition.NOT_WP, (1 << 64) - 1),
        (Condition.READONLY, (1 << 64) - 1),
        (Condition.OFFLINE, (1 << 64) - 1),
    ],
)
def test_zone(cond: Condition, wp: int) -> None:
    written = 0x1000 if cond is Condition.EMPTY else 0x1008
    zone = Zone(
        zone_no=2, start=0x1000, size=0x800, capacity=0x700, wp=written, cond=cond, type=ZoneType.SWR,
        reset_recommended=True,
    )  # fmt: skip
    assert protocol.encode_zones([zone]) == from_hex(
        f"""00 10 00 00 00 00 00 00   #  0 start
            00 08 00 00 00 00 00 00   #  8 len
            {wp.to_bytes(8, "little").hex()}  # 16 wp
            02 {cond:02x} 00 01       # 24 type, cond, non_seq, reset
            00 00 00 00               # 28 resv
            00 07 00 00 00 00 00 00   # 32 capacity
            {"00" * 24}               # 40 reserved"""
    )


def test_where_data_is_read_and_written() -> None:
    assert protocol.buffer_offset(0, 0) == 0x80000000
    assert protocol.buffer_offset(3, 5) == 0x80000000 + (3 << 41) + (5 << 25)


def test_every_status_has_a_result() -> None:
    assert set(protocol.RESULTS) == set(Status)
    assert all(result < 0 for status, result in protocol.RESULTS.items() if status)
    assert protocol.RESULTS[Status.OK] == 0
