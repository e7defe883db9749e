"""Units, and all conversions between them.

Inside model, persist and device every address and extent is in 512-byte sectors, as in Linux and virtio,
whatever the logical block size; anything else says so at the end of its name (``_bytes``, ``_lba``, ``_ns``).
"""

from typing import Final, TypeAlias

SECTOR_SHIFT: Final = 9
SECTOR_BYTES: Final = 1 << SECTOR_SHIFT

#: An address or extent in 512-byte sectors. An alias, not a NewType: a NewType's constructor is a
#: call per request, and the read and write paths pay for every call.
Sector: TypeAlias = int

_SUFFIXES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
#: Numbers below this are read at a glance.
_SHORT: Final = 100_000


def to_bytes(nr_sectors: Sector) -> int:
    """Return the number of bytes in *nr_sectors*."""
    return nr_sectors << SECTOR_SHIFT


def to_sectors(nr_bytes: int) -> Sector:
    """Return the number of sectors in *nr_bytes*, which must be whole sectors.

    Raises:
        ValueError: *nr_bytes* is not a multiple of 512.
    """
    if nr_bytes % SECTOR_BYTES:
        message = f"{nr_bytes} bytes are not whole 512-byte sectors"
        raise ValueError(message)
    return nr_bytes >> SECTOR_SHIFT


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of *multiple* that is not below *value*."""
    return -(-value // multiple) * multiple


def human_bytes(nr_bytes: int) -> str:
    """Return *nr_bytes* for people: in the largest binary unit that it fills, or the next one if only that is exact.

    With at most one decimal, and rounded to it where nothing so short is exact.
    """
    index = min(max(nr_bytes.bit_length() - 1, 0) // 10, len(_SUFFIXES) - 1)
    unit = 1 << (10 * index)
    if not nr_bytes % unit:
        return f"{nr_bytes // unit} {_SUFFIXES[index]}"
    smaller = unit >> 10
    if 10 * nr_bytes % unit and not nr_bytes % smaller and nr_bytes // smaller < _SHORT:
        return f"{nr_bytes // smaller} {_SUFFIXES[index - 1]}"
    return f"{nr_bytes / unit:.1f} {_SUFFIXES[index]}"
