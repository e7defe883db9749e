"""``map``: the picture of all zones."""

import os
import shutil
import sys
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import (
    FILE_OR_STREAM,
    STREAM,
    image_argument,
    info_of,
    json_option,
    number_of,
    say_json,
    say_lines,
    zones_of,
)
from zonefs_emu.cli.conditions import COND_CODES
from zonefs_emu.cli.page import ZONE_COUNTERS, page
from zonefs_emu.cli.picture import aggregate, svg, terminal
from zonefs_emu.cli.picture_file import write_picture
from zonefs_emu.daemon.client import Target, call
from zonefs_emu.daemon.framing import Json
from zonefs_emu.errors import UsageError, printable
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.units import human_bytes, to_bytes

_JSON_CELLS: Final = 4096
#: How many zones have their counters in a page.
_BUSIEST: Final = 1000


@click.command("map")
@image_argument
@click.option(
    "--svg", "svg_file", type=FILE_OR_STREAM, metavar="FILE", help="Write the picture to FILE as SVG ('-' for stdout)."
)
@click.option(
    "--html", "html_file", type=FILE_OR_STREAM, metavar="FILE",
    help="Write FILE, a page for a browser that needs nothing else: zoom, details of each zone, filter by condition.",
)  # fmt: skip
@json_option
def map_(
    *,
    image: Path,
    svg_file: Path | None,
    html_file: Path | None,
    as_json: bool,
) -> None:
    """Draw all zones of IMG in the terminal, each with its condition and fill.

    \b
    Examples:
      zonefs-emu map small.img
      zonefs-emu map small.img --svg zones.svg
      zonefs-emu map small.img --html zones.html

    If there are more zones than fit, a character stands for several zones. Colours appear on a terminal only, and not
    if NO_COLOR is set.
    """
    if (svg_file is not None) + (html_file is not None) + as_json > 1:
        message = "--svg, --html and --json are different pictures: give one of them"
        raise UsageError(message)
    with open_target(image, readonly=True) as target:
        info = info_of(target)
        nr_zones = number_of(info, "nr_zones")
        zones = zones_of(target)
        drive = f"{printable(image.name)}: {nr_zones} zones of {human_bytes(to_bytes(number_of(info, 'zone_size')))}"
        title = f"{drive}, {_limit(info, 'open')}, {_limit(info, 'active')}"
        if as_json:
            picture = aggregate(zones, nr_zones=nr_zones, max_cells=_JSON_CELLS)
            cells: list[Json] = [
                {"zone_no": c.first, "count": c.count, "cond": COND_CODES[c.cond], "fill": round(c.fill, 4)}
                for c in picture.cells
            ]
            counts: dict[str, Json] = {COND_CODES[cond]: count for cond, count in picture.counts.items()}
            say_json({"nr_zones": nr_zones, "counts": counts, "cells": cells})
        elif html_file is not None:
            text = page(zones, info, title=drive, counters=busiest(target), live=False)
            if html_file is STREAM:
                click.echo(text, nl=False)
            else:
                write_picture(html_file, text)
        elif svg_file is not None and svg_file is not STREAM:
            write_picture(svg_file, "".join(svg(zones, nr_zones=nr_zones, title=title)))
        elif svg_file is not None:
            say_lines(svg(zones, nr_zones=nr_zones, title=title))
        else:
            colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
            click.echo(title)
            say_lines(terminal(zones, nr_zones=nr_zones, width=shutil.get_terminal_size().columns, colour=colour))


def busiest(target: Target) -> dict[int, dict[str, int]]:
    """Return the counters of the zones that were used most, by zone number; none if the counters are switched off."""
    found: dict[int, dict[str, int]] = {}
    for name in ZONE_COUNTERS:
        try:
            top = call(target, {"verb": "stats", "top": _BUSIEST, "by": name})[0]["top"]
        except UsageError:
            return {}
        assert isinstance(top, list)
        for row in top:
            assert isinstance(row, dict)
            zone_no, value = row["zone_no"], row[name]
            assert isinstance(zone_no, int)
            assert isinstance(value, int)
            if value:
                found.setdefault(zone_no, {})[name] = value
    return found


def _limit(info: dict[str, Json], kind: str) -> str:
    limit = number_of(info, f"max_{kind}_zones")
    return f"{info[f'nr_{kind}']} of {limit} {kind}" if limit else f"{info[f'nr_{kind}']} {kind}"
