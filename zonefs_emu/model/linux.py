"""Checks of Linux's block layer on a zoned disk, as sentences about a geometry.

All drivers of zoned disks use these checks, so they hold for ublk, virtio-blk and SCSI alike. Geometry itself allows
more, because a shape that Linux refuses works everywhere else. Properties that Geometry guarantees are not checked
again: capacity within size, appends of at least one write granule, max_open_zones within max_active_zones.

Source: block/blk-zoned.c (blk_revalidate_disk_zones), block/blk-settings.c (blk_validate_zoned_limits), Linux 6.12.
"""

from typing import Final

from zonefs_emu.model.geometry import Geometry
from zonefs_emu.units import human_bytes, to_bytes

_CHUNK_SECTORS_MAX: Final = (1 << 32) - 1
#: The page size, except in some configurations of arm64 and ppc64, which allow larger blocks.
_PAGE_BYTES: Final = 4096


def refusals(geometry: Geometry) -> list[str]:
    """Return one sentence for each rule of the block layer that *geometry* breaks."""
    found = []
    zone = human_bytes(to_bytes(geometry.zone_size))
    if geometry.zone_size & (geometry.zone_size - 1):
        found.append(f"Linux wants zones of a power of two, and these have {zone}")
    if geometry.zone_size > _CHUNK_SECTORS_MAX:
        found.append(f"Linux wants zones below 2 TiB, and these have {zone}")
    if geometry.nr_conventional == geometry.nr_zones:
        found.append("Linux wants at least one sequential zone on a zoned disk, and all of these are conventional")
    granularity = to_bytes(geometry.write_granularity)
    if granularity & (granularity - 1):
        found.append(f"Linux wants a write granularity of a power of two, and this is {granularity} bytes")
    return found


def block_refusals(block_bytes: int) -> list[str]:
    """Return a sentence if *block_bytes* is no logical block size of Linux.

    This is for a driver that has no write granularity, so that the device shows it as the logical block size.
    """
    if block_bytes > _PAGE_BYTES:
        return [
            f"Linux wants logical blocks of at most {_PAGE_BYTES} bytes, and the write granularity is {block_bytes}"
        ]
    return []
