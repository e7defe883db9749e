"""``report``: the zones, in our format or another tool's."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import (
    SIZE,
    ConditionsType,
    image_argument,
    info_of,
    number_of,
    packed_zones_of,
    refuse_options_beside,
    say_lines,
)
from zonefs_emu.cli.formats import FORMATS, ReportContext
from zonefs_emu.daemon.framing import nr_packed_zones, unpack_zones
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import SECTOR_BYTES, human_bytes, to_bytes

#: Formats that begin with the number of zones, which a filter of conditions makes known only after the last one.
_COUNTED: Final = frozenset({"nvme", "nvme-json", "json"})


@click.command()
@image_argument
@click.option(
    "--format",
    "format_name",
    type=click.Choice(list(FORMATS)),
    default="table",
    show_default=True,
    help="Formats of other tools equal their output to the byte.",
)
@click.option("-o", "--offset", type=SIZE, default=0, help="Start with the zone that contains this offset (64M, 8s).")
@click.option("-c", "--count", metavar="N", type=click.IntRange(min=1), help="Report at most N zones.")
@click.option("--cond", "conds", type=ConditionsType(), help="Only zones in these conditions: em,oi,oe,cl,fu,ro,ol,nw.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def report(
    *,
    image: Path,
    format_name: str,
    offset: int,
    count: int | None,
    conds: frozenset[Condition] | None,
    as_json: bool,
) -> None:
    """List the zones of IMG.

    \b
    Examples:
      zonefs-emu report small.img --cond oi,oe
      zonefs-emu report small.img --format blkzone -o 64M -c 2

    Sectors are 512 bytes. JSON gives wp in sectors from the start of the device, and null where it has no meaning.
    """
    if as_json and format_name != "json":
        refuse_options_beside(("offset", "count", "conds", "as_json"), "beside --json, which is a format")
    with open_target(image, readonly=True) as target:
        info = info_of(target)
        nr_zones, size = number_of(info, "nr_zones"), number_of(info, "size")
        sector = offset // SECTOR_BYTES
        if sector >= size:
            message = f"offset {human_bytes(offset)} lies beyond the device, which has {human_bytes(to_bytes(size))}"
            raise UsageError(message, exit_code=1)
        first = sector // number_of(info, "zone_size")
        count = min(count or nr_zones, nr_zones - first)
        name = "json" if as_json else format_name
        packed: Iterable[bytes] = packed_zones_of(target, first, count, conds)
        if conds is not None and name in _COUNTED:
            packed = list(packed)
            count = sum(map(nr_packed_zones, packed))
        zones = chain.from_iterable(map(unpack_zones, packed))
        context = ReportContext(nr_zones=count, block_size_bytes=number_of(info, "block_size_bytes"))
        say_lines(FORMATS[name](zones, context))
