"""The fixed shape of a device. It never changes after creation.

May not know: conditions, files, dialects.
Invariants: all lengths are multiples of the write granularity, which is a multiple of the block size; the last zone may
be smaller than the others (runt); capacity < size is for sequential zones only.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from zonefs_emu.errors import UsageError
from zonefs_emu.model.zone import Attribute
from zonefs_emu.units import SECTOR_BYTES, Sector, human_bytes, to_bytes

BLOCK_SIZES_BYTES: Final = (512, 4096)
#: In sectors: the image has 44 bits for the number of written sectors of a zone.
ZONE_SIZE_MAX: Final = 1 << 43
#: In sectors: in an image whose zones have attributes, these take 4 of the 44 bits.
ZONE_SIZE_MAX_WITH_ATTRIBUTES: Final = 1 << 39
#: Descriptor extensions are counted in units of 64 bytes, in one byte (ZDES).
EXTENSION_UNIT_BYTES: Final = 64
EXTENSION_BYTES_MAX: Final = 255 * EXTENSION_UNIT_BYTES
#: NVMe counts the blocks of a zone random write area in 16 bits (ZRWASZ, ZRWAFG).
ZRWA_BLOCKS_MAX: Final = (1 << 16) - 1
NR_ZONES_MAX: Final = 1 << 24
LIMIT_MAX: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Shape and limits of a zoned device; sectors unless a name says otherwise.

    *conventional* lists runs of conventional zones as (first zone_no, count), ascending and not touching.
    *write_granularity*: writes to sequential zones begin and end on multiples of it; 0 = a logical block, which
    replaces the 0. *max_open_zones* and *max_active_zones*: 0 = no limit. *max_append*: longest zone append.
    *extension_bytes*: length of the descriptor extension of each zone (NVMe ZNS); 0 = zones have none. *zrwa_size*:
    length of a zone random write area (NVMe ZNS); 0 = zones have none. *zrwa_granularity*: flushes of an area move the
    write pointer by multiples of it. *max_zrwa*: the most zones that have an area; 0 = no limit. *active_excursions*:
    whether the drive may finish an active zone by itself (NVMe ZNS, zone active excursion).

    Raises:
        UsageError: the shape is impossible; the sentence says which shape is possible.
    """

    size: Sector
    zone_size: Sector
    zone_capacity: Sector
    conventional: tuple[tuple[int, int], ...] = ()
    block_size_bytes: int = 512
    write_granularity: Sector = 0
    max_open_zones: int = 0
    max_active_zones: int = 0
    max_append: Sector = 1024
    extension_bytes: int = 0
    zrwa_size: Sector = 0
    zrwa_granularity: Sector = 0
    max_zrwa: int = 0
    active_excursions: bool = False

    def __post_init__(self) -> None:
        """Check everything that later code relies on."""
        if self.write_granularity == 0:
            object.__setattr__(self, "write_granularity", self.block_size_bytes // SECTOR_BYTES)
        self._check_sizes()
        self._check_conventional()
        self._check_extension()
        self._check_zrwa()
        for name in ("max_open_zones", "max_active_zones", "max_zrwa"):
            value = getattr(self, name)
            _require(0 <= value <= LIMIT_MAX, f"{name} {value} must lie between 0 (no limit) and {LIMIT_MAX}")
        _require(
            not self.max_active_zones or self.max_open_zones <= self.max_active_zones,
            f"max_open_zones {self.max_open_zones} exceeds max_active_zones {self.max_active_zones}: "
            "an open zone is active, so it must not",
        )

    def _check_sizes(self) -> None:
        block, granule = self.block_size_bytes, self.write_granularity
        _require(block in BLOCK_SIZES_BYTES, f"block size {block} must be 512 or 4096 bytes")
        _require(
            granule > 0 and to_bytes(granule) % block == 0,
            f"write granularity of {to_bytes(granule)} bytes must be a multiple of the block size of {block} bytes",
        )
        for name in ("size", "zone_size", "zone_capacity", "max_append"):
            value = getattr(self, name)
            _require(value > 0, f"{name} must be more than nothing, not {human_bytes(to_bytes(value))}")
            _require(
                value % granule == 0,
                f"{name} of {to_bytes(value)} bytes must be a multiple of {to_bytes(granule)} bytes",
            )
        _require(
            self.zone_capacity <= self.zone_size,
            f"zone capacity of {human_bytes(to_bytes(self.zone_capacity))} exceeds "
            f"the zone size of {human_bytes(to_bytes(self.zone_size))}",
        )
        _require(self.zone_size <= ZONE_SIZE_MAX, f"zone size must not exceed {human_bytes(to_bytes(ZONE_SIZE_MAX))}")
        _require(self.nr_zones <= NR_ZONES_MAX, f"{self.nr_zones} zones are more than the {NR_ZONES_MAX} supported")

    def _check_conventional(self) -> None:
        end = -1
        for first, count in self.conventional:
            _require(count > 0 and first > end, f"conventional zones {first}+{count} must ascend without touching")
            end = first + count
        _require(
            end <= self.nr_zones,
            f"conventional zones up to number {end - 1} do not exist: the device has {self.nr_zones} zones",
        )

    def _check_extension(self) -> None:
        length = self.extension_bytes
        _require(
            0 <= length <= EXTENSION_BYTES_MAX and length % EXTENSION_UNIT_BYTES == 0,
            f"zone descriptor extension of {length} bytes must be a multiple of {EXTENSION_UNIT_BYTES} up to "
            f"{EXTENSION_BYTES_MAX}",
        )
        _require(
            not self.has_attributes or self.zone_size <= ZONE_SIZE_MAX_WITH_ATTRIBUTES,
            f"zone size must not exceed {human_bytes(to_bytes(ZONE_SIZE_MAX_WITH_ATTRIBUTES))} with a zone descriptor "
            "extension, a zone random write area or zone active excursions",
        )

    def _check_zrwa(self) -> None:
        size, granule = self.zrwa_size, self.zrwa_granularity
        if not size:
            _require(
                not granule and not self.max_zrwa,
                "a granularity and a number of zone random write areas need a size: --zrwa",
            )
            return
        _require(
            0 < granule <= size and granule % self.write_granularity == 0 and size % granule == 0,
            f"zone random write area of {to_bytes(size)} bytes must be a multiple of its granularity, which must be a "
            f"multiple of {to_bytes(self.write_granularity)} bytes and not {to_bytes(granule)}",
        )
        _require(
            size <= self.zone_capacity and self.zone_capacity % granule == 0,
            f"zone capacity of {to_bytes(self.zone_capacity)} bytes must be a multiple of {to_bytes(granule)} bytes, "
            f"and at least as long as the zone random write area of {to_bytes(size)} bytes",
        )
        _require(
            size // self.block_sectors <= ZRWA_BLOCKS_MAX,
            f"zone random write area must have at most {ZRWA_BLOCKS_MAX} blocks",
        )

    @property
    def has_attributes(self) -> bool:
        """Whether zones can have attributes (:class:`zonefs_emu.model.zone.Attribute`)."""
        return bool(self.extension_bytes or self.zrwa_size or self.active_excursions)

    @property
    def possible_attributes(self) -> int:
        """The bits of :class:`zonefs_emu.model.zone.Attribute` that a zone can have."""
        return int(
            (Attribute.EXTENSION if self.extension_bytes else 0)
            | (Attribute.ZRWA if self.zrwa_size else 0)
            | (Attribute.FINISHED_BY_CONTROLLER if self.active_excursions else 0)
        )

    @property
    def nr_zones(self) -> int:
        """Number of zones, a runt last zone included."""
        return -(-self.size // self.zone_size)

    @property
    def nr_conventional(self) -> int:
        """Number of conventional zones."""
        return sum(count for _, count in self.conventional)

    @property
    def block_sectors(self) -> Sector:
        """Sectors in a logical block."""
        return self.block_size_bytes // SECTOR_BYTES

    def zone_no(self, sector: Sector) -> int:
        """Return the number of the zone that holds *sector*."""
        return sector // self.zone_size

    def end_zone_no(self, sector: Sector, nr_sectors: int) -> int:
        """Return the number of the last zone of a request, plus 1; an empty request is in the zone of *sector*."""
        return (sector + max(nr_sectors, 1) - 1) // self.zone_size + 1

    def zone_start(self, zone_no: int) -> Sector:
        """Return the first sector of zone *zone_no*."""
        return zone_no * self.zone_size

    def zone_len(self, zone_no: int) -> Sector:
        """Return the size of zone *zone_no*: the zone size, or less for a runt last zone."""
        return min(self.zone_size, self.size - zone_no * self.zone_size)

    def zone_cap(self, zone_no: int) -> Sector:
        """Return the capacity of zone *zone_no*; that of a conventional zone is its size."""
        length = self.zone_len(zone_no)
        return length if self.is_conventional(zone_no) else min(self.zone_capacity, length)

    def covered(self, zone_no: int, nr_written: Sector, attributes: int) -> Sector:
        """Return how many sectors from the start of the sequential zone *zone_no* may hold data.

        *nr_written* is the number before its write pointer. With a zone random write area, the sectors in the area
        follow; those that were not written are zeros.
        """
        if attributes & Attribute.ZRWA:
            return min(nr_written + self.zrwa_size, self.zone_cap(zone_no))
        return nr_written

    def is_conventional(self, zone_no: int) -> bool:
        """Say whether zone *zone_no* is conventional; O(log runs)."""
        index = bisect_right(self.conventional, (zone_no, LIMIT_MAX)) - 1
        if index < 0:
            return False
        first, count = self.conventional[index]
        return zone_no < first + count

    def sequential_zones(self) -> Iterator[int]:
        """Yield the numbers of all sequential zones, ascending."""
        start = 0
        for first, count in self.conventional:
            yield from range(start, first)
            start = first + count
        yield from range(start, self.nr_zones)


def merge_runs(runs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the zones of *runs* as ascending runs (first, count); touching and overlapping ones are joined."""
    merged: list[tuple[int, int]] = []
    for first, count in sorted(runs):
        if merged and first <= sum(merged[-1]):
            last_first, last_count = merged[-1]
            merged[-1] = (last_first, max(last_count, first + count - last_first))
        else:
            merged.append((first, count))
    return tuple(merged)


def _require(holds: bool, message: str) -> None:  # noqa: FBT001  (an assertion's natural shape)
    if not holds:
        raise UsageError(message)
