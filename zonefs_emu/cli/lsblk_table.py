"""The shape of a disk in the output of ``lsblk -z``, as a table or, with ``-J``, as JSON. Pure: text in, shape out.

lsblk has the number and size of zones, and nothing on a single zone. It rounds sizes for people. A rounded size is
refused, because an image of another zone size would be another drive.

Source: util-linux misc-utils/lsblk.c, the columns of ``-z``; lib/strutils.c, size_to_human_string.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from zonefs_emu.errors import UsageError, printable

_NEEDED: Final = ("ZONED", "ZONE-SZ", "ZONE-NR")
_SIZE: Final = re.compile(r"(\d+)([BKMGTP]?)")
_POWERS: Final = "BKMGTP"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskShape:
    """A host-managed disk; sizes in bytes, None for missing columns. A limit of 0 means none."""

    zone_size: int
    nr_zones: int
    max_open_zones: int | None
    max_active_zones: int | None
    max_append: int | None
    write_granularity: int | None


def parse_lsblk(text: str, name: str) -> DiskShape | None:
    """Return the one host-managed disk in *text*, the content of *name*; None if it is no output of lsblk -z.

    Raises:
        UsageError: it has no such disk or several, or a rounded size; names the line.
    """
    rows = _json_rows(text) if text.lstrip().startswith("{") else list(_table_rows(text, name))
    if not rows:
        return None
    found = [(where, row) for where, row in rows if row.get("ZONED") == "host-managed"]
    if not found:
        message = f"{name} lists no host-managed disk"
        raise UsageError(message)
    if len(found) > 1:
        places = " and ".join(where for where, _ in found[:2])
        message = f"{places} of {name} are both host-managed disks: keep only one of them"
        raise UsageError(message)
    where, row = found[0]
    return _shape(row, f"{where} of {name}")


def _table_rows(text: str, name: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the rows below a header of lsblk; nothing if there is none."""
    columns: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not columns:
            if set(_NEEDED) <= set(words) or ("ZONED" in words and words[0] == "NAME"):
                columns = words
            continue
        if not words or "ZONED" in words:
            # The table ends here: other text or another table follows.
            return
        if len(words) != len(columns):
            message = f"line {number} of {name} has {len(words)} of {len(columns)} columns: the output was cut"
            raise UsageError(message)
        yield f"line {number}", dict(zip(columns, words, strict=True))


def _json_rows(text: str) -> list[tuple[str, Mapping[str, str]]] | None:
    """Return the disks of ``lsblk -J``, with the columns' names in capitals; None if it is other JSON."""
    try:
        listed = json.loads(text).get("blockdevices")
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(listed, list):
        return None
    return [
        (f"disk {number}", {str(key).upper(): str(value) for key, value in disk.items() if value is not None})
        for number, disk in enumerate(listed, 1)
        if isinstance(disk, dict)
    ]


def _shape(row: Mapping[str, str], where: str) -> DiskShape:
    missing = [column for column in _NEEDED if column not in row]
    if missing:
        message = f"{where} lacks the columns {', '.join(missing)}, which lsblk -z of util-linux 2.38 or later prints"
        raise UsageError(message)
    append = _SIZE.fullmatch(row.get("ZONE-APP", ""))
    return DiskShape(
        zone_size=_size(row["ZONE-SZ"], where),
        nr_zones=_count(row["ZONE-NR"], where),
        max_open_zones=_count(row["ZONE-OMAX"], where) if "ZONE-OMAX" in row else None,
        max_active_zones=_count(row["ZONE-AMAX"], where) if "ZONE-AMAX" in row else None,
        # A rounded value is left out: it does not belong to the shape of the disk.
        max_append=(_size(append[0], where) or None) if append else None,
        write_granularity=(_size(row["ZONE-WGRAN"], where) or None) if "ZONE-WGRAN" in row else None,
    )


def _size(text: str, where: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        message = f"{where} has the size {printable(text)}, which is rounded or not a size: use lsblk -z -b"
        raise UsageError(message)
    return int(found[1]) << (10 * _POWERS.index(found[2] or "B"))


def _count(text: str, where: str) -> int:
    if not text.isascii() or not text.isdecimal():
        message = f"{where} has {printable(text)} where a number belongs"
        raise UsageError(message)
    return int(text)
