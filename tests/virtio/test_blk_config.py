"""What a block device offers and shows, byte by byte."""

from dataclasses import replace

import pytest

from tests.vhost_user.serving import GEOMETRY, ZONE
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.virtio import blk_config, features as bits
from zonefs_emu.virtio.blk_config import BlkOptions, ConfigSpace


def test_configuration_space() -> None:
    config = ConfigSpace(GEOMETRY, BlkOptions(serial="x"), readonly=False).encode()
    assert len(config) == 96
    assert config[0:8] == (32 * ZONE).to_bytes(8, "little")  # capacity
    assert config[8:12] == (8 << 20).to_bytes(4, "little")  # size_max
    assert config[12:16] == (126).to_bytes(4, "little")  # seg_max
    assert config[20:24] == (512).to_bytes(4, "little")  # blk_size
    assert config[24:28] == b"\0\0\1\0"  # exponent, alignment, min_io_size
    assert config[32] == 1  # writeback
    assert config[34:36] == b"\1\0"  # num_queues
    assert config[36:72] == bytes(36)  # discard, write zeroes, secure erase
    assert config[72:76] == ZONE.to_bytes(4, "little")  # zone_sectors
    assert config[76:80] == b"\6\0\0\0"  # max_open_zones
    assert config[80:84] == b"\x08\0\0\0"  # max_active_zones
    assert config[84:88] == (1024).to_bytes(4, "little")  # max_append_sectors
    assert config[88:92] == (512).to_bytes(4, "little")  # write_granularity, bytes
    assert config[92] == 1  # host-managed
    assert config[93:96] == bytes(3)


def test_configuration_of_large_blocks() -> None:
    geometry = replace(GEOMETRY, block_size_bytes=4096, write_granularity=16)
    config = ConfigSpace(geometry, BlkOptions(serial="x"), readonly=False).encode()
    assert config[20:24] == (4096).to_bytes(4, "little")
    assert config[24:28] == b"\1\0\2\0"  # two logical blocks are a physical one
    assert config[88:92] == (8192).to_bytes(4, "little")


def test_features() -> None:
    offered = ConfigSpace(GEOMETRY, BlkOptions(serial="x"), readonly=False).offered
    assert offered & blk_config.F_ZONED
    assert offered & bits.VERSION_1
    assert not offered & 1 << 13, "DISCARD must not be offered by a host-managed device"
    assert not offered & (blk_config.F_MQ | blk_config.F_RO)
    plain = Geometry(size=4 * ZONE, zone_size=ZONE, zone_capacity=ZONE, conventional=((0, 4),))
    other = ConfigSpace(plain, BlkOptions(serial="x", nr_queues=4, write_zeroes=True), readonly=True)
    assert not other.is_zoned
    assert not other.offered & blk_config.F_ZONED
    assert other.offered & blk_config.F_MQ
    assert other.offered & blk_config.F_RO
    assert other.offered & blk_config.F_WRITE_ZEROES
    assert other.encode()[72:96] == bytes(24)


@pytest.mark.parametrize(
    ("offset", "data", "wce"),
    [(32, b"\0", False), (0, bytes(60), False), (30, b"\1\1\0\1", False), (33, bytes(27), True), (0, bytes(32), True)],
)
def test_the_driver_writes_the_cache_mode_and_nothing_else(*, offset: int, data: bytes, wce: bool) -> None:
    space = ConfigSpace(GEOMETRY, BlkOptions(serial="x"), readonly=False)
    before = space.encode()
    space.take(offset, data)
    assert space.wce is wce
    assert space.encode() == before[:32] + bytes((wce,)) + before[33:]
