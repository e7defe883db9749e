"""``write``: data from stdin into a zone."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import click

from zonefs_emu.cli.common import SIZE, image_argument, json_option, number_of, say_json, zone_of, zone_option
from zonefs_emu.daemon.client import call
from zonefs_emu.daemon.framing import Json
from zonefs_emu.errors import UsageError, trying
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.units import SECTOR_BYTES, to_bytes, to_sectors

#: The most bytes of one command; longer data takes several commands.
CHUNK_BYTES: Final = 1 << 20


@click.command()
@image_argument
@zone_option
@click.option("--offset", type=SIZE, help="Where to write, from the start of the zone. [default: the write pointer]")
@click.option("--length", type=SIZE, help="How much of stdin to write. [default: all of it]")
@json_option
def write(
    *,
    image: Path,
    zone_no: int,
    offset: int | None,
    length: int | None,
    as_json: bool,
) -> None:
    """Write stdin into a zone of IMG, by the rules of the device: a sequential zone at its write pointer only.

    \b
    Example:
      head -c 64K /dev/urandom | zonefs-emu write small.img --zone 4

    Data must be whole blocks. More than 1 MiB is written by several commands; if one is refused, the data of
    earlier ones stays.
    """
    with open_target(image) as target:
        zone = zone_of(target, zone_no)
        # A conventional zone has no write pointer, so it is written from its start.
        sector: int | None = None if offset is None else zone.start + _sectors(offset)
        nr_written = 0
        first = sector
        for chunk in chunks(sys.stdin.buffer, length):
            request: dict[str, Json] = {"verb": "write", "zone_no": zone_no}
            if sector is not None:
                request["sector"] = sector
            try:
                reply, _ = call(target, request, chunk)
            except UsageError as error:
                if not nr_written:
                    raise
                message = f"{error} ({to_bytes(nr_written)} bytes had been written before)"
                raise UsageError(message, exit_code=error.exit_code) from None
            at, nr_sectors = number_of(reply, "sector"), number_of(reply, "nr_sectors")
            first = at if first is None else first
            nr_written += nr_sectors
            sector = at + nr_sectors
    if as_json:
        say_json({"zone_no": zone_no, "sector": first, "nr_sectors": nr_written})


def chunks(stream: BinaryIO, length: int | None) -> Iterator[bytes]:
    """Yield the data of *stream* in commands of at most CHUNK_BYTES, *length* bytes in total if given.

    Raises:
        UsageError: there is no data, or less than *length*.
    """
    left = length
    nr_read = 0
    while left is None or left:
        with trying("read stdin"):
            chunk = stream.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
        if not chunk:
            break
        nr_read += len(chunk)
        left = None if left is None else left - len(chunk)
        yield chunk
    if left or not nr_read:
        message = f"stdin ended after {nr_read} bytes" + (f" of {length}" if left else ": there is nothing to write")
        raise UsageError(message, exit_code=1)


def _sectors(offset: int) -> int:
    if offset % SECTOR_BYTES:
        message = f"offset {offset} is not a multiple of {SECTOR_BYTES} bytes"
        raise UsageError(message, exit_code=1)
    return to_sectors(offset)
