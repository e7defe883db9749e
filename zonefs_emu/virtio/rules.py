"""The rules of the virtio block device, by which it refuses requests itself instead of the port."""

from enum import unique

from zonefs_emu.device.rules import Rule


@unique
class BlkRule(Rule):
    """The rules of the virtio block device."""

    BLK_TYPE = (
        200,
        "the type of a request must be one that the device knows and whose feature was accepted",
        "virtio 1.4 blk, Device Operation, VIRTIO_BLK_S_UNSUPP",
    )
    BLK_NOT_ZONED = (
        201,
        "requests of the zoned kind are for drivers that accepted VIRTIO_BLK_F_ZONED",
        "virtio 1.4 blk, Feature bits, VIRTIO_BLK_F_ZONED",
    )
    BLK_SEGMENT = (
        202,
        "WRITE_ZEROES has one segment of 16 bytes, of at most max_write_zeroes_sectors",
        "virtio 1.4 blk, max_write_zeroes_seg and max_write_zeroes_sectors",
    )
    BLK_SEGMENT_FLAGS = (
        203,
        "a segment of WRITE_ZEROES has no other flag than unmap",
        "virtio 1.4 blk, struct virtio_blk_discard_write_zeroes",
    )
    BLK_APPEND_ROOM = (
        204,
        "an append has 8 writable bytes for the sector at which the data landed",
        "virtio 1.4 blk, VIRTIO_BLK_T_ZONE_APPEND",
    )
    BLK_REPORT_ROOM = (
        205,
        "a zone report has room for its header and one zone, 128 bytes",
        "virtio 1.4 blk, VIRTIO_BLK_T_ZONE_REPORT",
    )
    BLK_OVERSIZED = (
        206,
        "one request moves at most 1 GiB, which is enough for seg_max segments of size_max",
        "virtio 1.4 blk, size_max and seg_max",
    )
