"""Ready-made geometries, and warnings about geometries that other programs refuse.

Pure. A preset is the shape of a real drive; every option of ``create`` overrides its part of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from zonefs_emu.errors import UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.units import human_bytes, to_bytes, to_sectors

_MIB: Final = 1 << 20
#: The default zone size, or less so that a small device still has this many zones.
_ZONE_SIZE_BYTES: Final = 64 * _MIB
_NR_ZONES: Final = 16
_ZONE_SIZE_BYTES_MIN: Final = 64 << 10
_MAX_APPEND_BYTES: Final = _MIB // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The shape of a drive, in bytes. *about*: what it is, for people."""

    about: str
    size_bytes: int
    zone_size_bytes: int
    zone_capacity_bytes: int
    nr_conv: int
    block_size_bytes: int
    max_open_zones: int
    max_active_zones: int
    max_append_bytes: int


PRESETS: Final = MappingProxyType(
    {
        "small": Preset(
            about="1 GiB for trying things out: 64 zones of 16 MiB, 4 of them conventional",
            size_bytes=1024 * _MIB,
            zone_size_bytes=16 * _MIB,
            zone_capacity_bytes=16 * _MIB,
            nr_conv=4,
            block_size_bytes=4096,
            max_open_zones=8,
            max_active_zones=12,
            max_append_bytes=_MIB // 2,
        ),
        # NVMe has no conventional zones and no smaller last zone, so this shape has neither.
        "small-zns": Preset(
            about="1 GiB for trying NVMe out: 64 zones of 16 MiB with 12 MiB capacity, none of them conventional",
            size_bytes=1024 * _MIB,
            zone_size_bytes=16 * _MIB,
            zone_capacity_bytes=12 * _MIB,
            nr_conv=0,
            block_size_bytes=4096,
            max_open_zones=8,
            max_active_zones=12,
            max_append_bytes=_MIB // 2,
        ),
        # Western Digital Ultrastar DC ZN540, 1 TB: 904 zones, 14 of them open or active.
        "zn540": Preset(
            about="an NVMe ZNS drive of 1 TB: 904 zones of 2 GiB with 1077 MiB capacity, 14 open and active",
            size_bytes=904 * 2048 * _MIB,
            zone_size_bytes=2048 * _MIB,
            zone_capacity_bytes=1077 * _MIB,
            nr_conv=0,
            block_size_bytes=4096,
            max_open_zones=14,
            max_active_zones=14,
            max_append_bytes=_MIB // 8,
        ),
        # Western Digital Ultrastar DC HC620, 14 TB. (A drive of 20 TB would not fit into a file on ext4.)
        "smr-hm": Preset(
            about="a host-managed SMR drive of 14 TB: 52156 zones of 256 MiB, 524 of them conventional, 128 open",
            size_bytes=52156 * 256 * _MIB,
            zone_size_bytes=256 * _MIB,
            zone_capacity_bytes=256 * _MIB,
            nr_conv=524,
            block_size_bytes=4096,
            max_open_zones=128,
            max_active_zones=0,
            max_append_bytes=_MIB // 2,
        ),
    }
)


def default_zone_size(size_bytes: int) -> int:
    """Return the default zone size, in bytes, of a device of *size_bytes*."""
    zone_size = _ZONE_SIZE_BYTES
    while zone_size > _ZONE_SIZE_BYTES_MIN and size_bytes // zone_size < _NR_ZONES:
        zone_size //= 2
    return zone_size


def build_geometry(
    *,
    preset: Preset | None = None,
    size: int | None = None,
    zone_size: int | None = None,
    zone_capacity: int | None = None,
    conventional: tuple[tuple[int, int], ...] | None = None,
    block_size: int | None = None,
    max_open_zones: int | None = None,
    max_active_zones: int | None = None,
    max_append: int | None = None,
    extension_bytes: int = 0,
    zrwa: int = 0,
    zrwa_granularity: int | None = None,
    max_zrwa: int = 0,
    active_excursions: bool = False,
) -> Geometry:
    """Return the geometry of *preset* with each argument that is not None in place of its part; sizes in bytes.

    A zone random write area without a granularity is flushed in blocks.

    Raises:
        UsageError: the shape is impossible, or no size was given.
    """
    if preset is None:
        if size is None:
            message = f"the size of the device is missing: give --size 1G, or --preset {' or '.join(PRESETS)}"
            raise UsageError(message)
        preset = _plain(size)
    own_zones = zone_size is not None
    zone_size = _or(zone_size, preset.zone_size_bytes)
    zone_capacity = _or(zone_capacity, zone_size if own_zones else preset.zone_capacity_bytes)
    if conventional is None:
        conventional = ((0, preset.nr_conv),) if preset.nr_conv else ()
    block_size = _or(block_size, preset.block_size_bytes)
    return Geometry(
        size=_sectors("size", _or(size, preset.size_bytes)),
        zone_size=_sectors("zone size", zone_size),
        zone_capacity=_sectors("zone capacity", zone_capacity),
        conventional=conventional,
        block_size_bytes=block_size,
        max_open_zones=_or(max_open_zones, preset.max_open_zones),
        max_active_zones=_or(max_active_zones, preset.max_active_zones),
        max_append=_sectors("max-append", _or(max_append, min(preset.max_append_bytes, zone_capacity))),
        extension_bytes=extension_bytes,
        zrwa_size=_sectors("zrwa", zrwa),
        zrwa_granularity=_sectors("zrwa-granularity", _or(zrwa_granularity, block_size if zrwa else 0)),
        max_zrwa=max_zrwa,
        active_excursions=active_excursions,
    )


def _plain(size_bytes: int) -> Preset:
    """Return the default shape of a device of *size_bytes*."""
    zone_size = default_zone_size(size_bytes)
    return Preset(
        about="",
        size_bytes=size_bytes,
        zone_size_bytes=zone_size,
        zone_capacity_bytes=zone_size,
        nr_conv=0,
        block_size_bytes=4096,
        max_open_zones=0,
        max_active_zones=0,
        max_append_bytes=_MAX_APPEND_BYTES,
    )


def _or(own: int | None, preset: int) -> int:
    return preset if own is None else own


def _sectors(name: str, nr_bytes: int) -> int:
    try:
        return to_sectors(nr_bytes)
    except ValueError as error:
        message = f"{name}: {error}"
        raise UsageError(message) from None


def warnings(geometry: Geometry) -> Iterator[str]:
    """Yield a sentence for each property of *geometry* that a front-end or tool refuses or cannot express."""
    zone_size = to_bytes(geometry.zone_size)
    if zone_size & (zone_size - 1):
        yield (
            f"zone size {human_bytes(zone_size)} is not a power of two: Linux will refuse this disk in a virtual "
            "machine and through attach; a FUSE mount works"
        )
    if geometry.zone_size >= 1 << 32:
        yield (
            f"zone size {human_bytes(zone_size)} does not fit into 32 bits of sectors: Linux and virtio-blk will "
            "refuse it"
        )
    if geometry.zone_capacity < geometry.zone_size and geometry.nr_conventional < geometry.nr_zones:
        yield "zone capacity is below zone size: SCSI (ZBC) needs gap zones for that, which Linux before 5.19 refuses"
        if geometry.size % geometry.zone_size:
            yield "with gap zones Linux needs zones of equal size: it will refuse this disk, whose last zone is smaller"
    if geometry.conventional and geometry.conventional[0][0] > 0:
        yield "the first zone is not conventional but later ones are: btrfs and f2fs expect conventional zones first"
    if geometry.nr_zones < 2:
        yield "one zone only: zonefs keeps its super block in zone 0, so mkfs will find no usable zone"
    if geometry.size % geometry.zone_size:
        yield (
            "the last zone is smaller than the others: Linux accepts it on SCSI and virtio-blk; btrfs and QEMU's NVMe "
            "leave it out"
        )
