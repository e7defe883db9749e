"""``read``: data of a zone to stdout."""

import sys
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import SIZE, image_argument, zone_of, zone_option
from zonefs_emu.daemon.client import call
from zonefs_emu.errors import UsageError, trying
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.model.zone import Condition, ZoneType
from zonefs_emu.units import SECTOR_BYTES, to_bytes, to_sectors

#: The most bytes of one command; a longer read is several commands.
_CHUNK_BYTES: Final = 1 << 20


@click.command()
@image_argument
@zone_option
@click.option("--offset", type=SIZE, default=0, help="Where to begin, from the start of the zone. [default: 0]")
@click.option("--length", type=SIZE, help="How much to read. [default: what was written]")
def read(image: Path, zone_no: int, offset: int, length: int | None) -> None:
    """Write data of a zone of IMG to stdout, by the rules of the device.

    \b
    Example:
      zonefs-emu read small.img --zone 4 --offset 1M --length 4K | xxd | head

    Beyond the write pointer a zone reads as zeros.
    """
    with open_target(image, readonly=True) as target:
        zone = zone_of(target, zone_no)
        if length is None:
            # An offline zone is read in full, so that the device reports why it cannot be read.
            whole = zone.type == ZoneType.CONVENTIONAL or zone.cond == Condition.OFFLINE
            length = max(0, to_bytes(zone.capacity if whole else zone.wp - zone.start) - offset)
        if offset % SECTOR_BYTES or length % SECTOR_BYTES:
            message = f"offset {offset} and length {length} must be multiples of {SECTOR_BYTES} bytes"
            raise UsageError(message, exit_code=1)
        sector, end = zone.start + to_sectors(offset), zone.start + to_sectors(offset + length)
        if end > zone.start + zone.size:
            message = (
                f"offset {offset} and length {length} lie beyond the end of zone {zone_no}, which has "
                f"{to_bytes(zone.size)} bytes"
            )
            raise UsageError(message, exit_code=1)
        output = sys.stdout.buffer
        while sector < end:
            nr_sectors = min(end - sector, to_sectors(_CHUNK_BYTES))
            _, data = call(target, {"verb": "read", "sector": sector, "nr_sectors": nr_sectors})
            with trying("write to stdout"):
                output.write(data)
                output.flush()
            sector += nr_sectors
