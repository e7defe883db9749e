"""``create``: a new image."""

import re
from array import array
from pathlib import Path
from typing import Final, TypeVar
from uuid import uuid4

import click

from zonefs_emu.cli.common import FILE, SIZE, TEXT, json_option, say, say_json
from zonefs_emu.cli.templates import read_template, zone_states
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.model.geometry import Geometry, merge_runs
from zonefs_emu.model.presets import PRESETS, build_geometry, warnings
from zonefs_emu.units import human_bytes, to_bytes

_T = TypeVar("_T")

_RANGE: Final = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def parse_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """Return the runs (first, count) of zones in *text*: numbers and ranges, as in 0-3,60,62-63.

    Raises:
        UsageError: not such a list.
    """
    runs: list[tuple[int, int]] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        first = int(found[1]) if found else 0
        last = int(found[2] or first) if found else -1
        if last < first:
            message = f"'{part}' is not a range of zones: write numbers and ranges, as in 0-3,60,62-63"
            raise UsageError(message)
        runs.append((first, last - first + 1))
    return merge_runs(runs)


def _conventional(nr_conv: int | None, ranges: str | None) -> tuple[tuple[int, int], ...] | None:
    """Return the runs of conventional zones: the first *nr_conv*, or *ranges*; None if neither was given."""
    if nr_conv is None:
        return None if ranges is None else parse_ranges(ranges)
    if ranges is not None:
        message = "--nr-conv and --conv exclude each other: give only one of them"
        raise UsageError(message)
    return ((0, nr_conv),) if nr_conv else ()


def _or(own: _T | None, templates: _T) -> _T:
    return templates if own is None else own


def summary(geometry: Geometry) -> str:
    """Return one line on *geometry*, for people."""
    size, zone_size = human_bytes(to_bytes(geometry.size)), human_bytes(to_bytes(geometry.zone_size))
    parts = [f"{size}, {geometry.nr_zones} zones of {zone_size}"]
    if geometry.zone_capacity < geometry.zone_size:
        parts.append(f"capacity {human_bytes(to_bytes(geometry.zone_capacity))}")
    if geometry.nr_conventional:
        parts.append(f"{geometry.nr_conventional} conventional")
    parts.append(f"blocks of {geometry.block_size_bytes} bytes")
    for name, limit in (("open", geometry.max_open_zones), ("active", geometry.max_active_zones)):
        parts.append(f"at most {limit} {name}" if limit else f"any number {name}")
    return ", ".join(parts)


def create_image(
    image: Path, geometry: Geometry, label: str, states: "tuple[bytearray, array[int]] | None" = None
) -> None:
    """Create *image*, with the zone *states* if given, and print warnings about its geometry.

    Raises:
        UsageError: it exists, or the label or the conventional zones do not fit into the header.
        CorruptImageError: *states* are impossible in *geometry*. OSError: the host refuses.
    """
    try:
        ZonedDevice.create(image, geometry, uuid=uuid4(), label=label, states=states)
    except FileExistsError:
        message = f"{image} exists, and create never overwrites: remove it first, or choose another name"
        raise UsageError(message, exit_code=1) from None
    except OSError as error:
        # "No space left" comes without a name.
        error.filename = error.filename or str(image)
        raise
    for warning in warnings(geometry):
        click.echo(f"warning: {warning}", err=True)


_PRESET_HELP: Final = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())


@click.command()
@click.argument("image", metavar="IMG", type=FILE)
@click.option("--size", type=SIZE, help="Size of the device. The last zone may be smaller than the others.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help=f"{_PRESET_HELP}. Other options override its parts.")
@click.option("--like", type=FILE, multiple=True, metavar="SOURCE",
              help="The shape of another drive: a block device, a file with a report of its zones (blkzone, zbd, "
                   "zbd -csv, nvme -o json with id-ns, zbc_report_zones, zrp, lsblk -z), or a directory of zloop. "
                   "Other options override its parts. May be given again for a further file on the same "
                   "drive.")  # fmt: skip
@click.option(
    "--with-state", is_flag=True, help="Also take the conditions and write pointers of --like; the data are zeros."
)
@click.option("--zone-size", type=SIZE, help="Size of a zone. [default: 64M, less for a small device]")
@click.option("--zone-capacity", type=SIZE, help="Writable part of a sequential zone. [default: the zone size]")
@click.option(
    "--nr-conv", metavar="N", type=click.IntRange(min=0), help="Number of conventional zones, the first ones."
)
@click.option("--conv", metavar="RANGES", help="Conventional zones anywhere: 0-3,60,62-63.")
@click.option("--block-size", type=SIZE, help="Logical block size: 512 or 4096. [default: 4096]")
@click.option(
    "--max-open-zones", metavar="N", type=click.IntRange(min=0), help="Limit of open zones, 0 for none. [default: 0]"
)
@click.option(
    "--max-active-zones",
    metavar="N",
    type=click.IntRange(min=0),
    help="Limit of open and closed zones, 0 for none. [default: 0]",
)
@click.option("--max-append", type=SIZE, help="Longest zone append. [default: 512K]")
@click.option("--zone-extension", type=SIZE, default="0",
              help="Descriptor extension of each zone, for NVMe: a multiple of 64 bytes. [default: none]")  # fmt: skip
@click.option("--zrwa", type=SIZE, default="0",
              help="Zone random write area that a zone can have, for NVMe. [default: none]")  # fmt: skip
@click.option("--zrwa-granularity", type=SIZE, help="What a flush of such an area is a multiple of. [default: a block]")
@click.option("--max-zrwa", metavar="N", type=click.IntRange(min=0), default=0,
              help="Limit of zones with such an area, 0 for none. [default: 0]")  # fmt: skip
@click.option("--zone-active-excursions", is_flag=True,
              help="The drive may finish zones by itself, for NVMe: see inject. Linux refuses such a "
                   "drive.")  # fmt: skip
@click.option("--label", type=TEXT, default="", help="A name that is kept in the image.")
@json_option
def create(
    *,
    image: Path,
    size: int | None,
    preset: str | None,
    like: tuple[Path, ...],
    with_state: bool,
    zone_size: int | None,
    zone_capacity: int | None,
    nr_conv: int | None,
    conv: str | None,
    block_size: int | None,
    max_open_zones: int | None,
    max_active_zones: int | None,
    max_append: int | None,
    zone_extension: int,
    zrwa: int,
    zrwa_granularity: int | None,
    max_zrwa: int,
    zone_active_excursions: bool,
    label: str,
    as_json: bool,
) -> None:
    """Create the image IMG: a sparse file that takes little room until it is written to.

    \b
    Examples:
      zonefs-emu create small.img --preset small
      zonefs-emu create zns.img --size 8G --zone-size 128M --zone-capacity 96M --max-active-zones 14
      zonefs-emu create smr.img --size 4G --nr-conv 8 --max-open-zones 16
      blkzone report /dev/sda >zones.txt && zonefs-emu create same.img --like zones.txt --with-state

    An existing file is never overwritten. A geometry that Linux or a front-end refuses is created, with a warning
    that names what refuses it.
    """
    conventional = _conventional(nr_conv, conv)
    if like and preset:
        message = "--like and --preset exclude each other: give only one of them"
        raise UsageError(message)
    if with_state and not like:
        message = "--with-state takes the states of zones from --like, which is not given"
        raise UsageError(message)
    template = read_template(like, block_size=block_size, zone_size=zone_size) if like else None
    if template is not None:
        size = _or(size, template.size)
        zone_size = _or(zone_size, template.zone_size)
        zone_capacity = _or(zone_capacity, min(template.zone_capacity, zone_size))
        conventional = _or(conventional, template.conventional)
        block_size = _or(block_size, template.block_size)
        max_open_zones = _or(max_open_zones, template.max_open_zones)
        max_active_zones = _or(max_active_zones, template.max_active_zones)
        if max_append is None and template.max_append:
            max_append = min(template.max_append, zone_capacity)
    geometry = build_geometry(
        preset=PRESETS[preset] if preset else None,
        size=size,
        zone_size=zone_size,
        zone_capacity=zone_capacity,
        conventional=conventional,
        block_size=block_size,
        max_open_zones=max_open_zones,
        max_active_zones=max_active_zones,
        max_append=max_append,
        extension_bytes=zone_extension,
        zrwa=zrwa,
        zrwa_granularity=zrwa_granularity,
        max_zrwa=max_zrwa,
        active_excursions=zone_active_excursions,
    )
    create_image(image, geometry, label, zone_states(template, geometry) if template and with_state else None)
    if as_json:
        say_json(
            {
                "image": str(image),
                "size": geometry.size,
                "nr_zones": geometry.nr_zones,
                "zone_size": geometry.zone_size,
                "zone_capacity": geometry.zone_capacity,
                "warnings": list(warnings(geometry)),
            }
        )
    else:
        say(f"{image}: {summary(geometry)}")
