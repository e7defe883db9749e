"""``info``: what the image is, and which process uses it."""

from collections.abc import Iterator
from pathlib import Path

import click

from zonefs_emu.cli.common import image_argument, info_of, json_option, number_of, say_json, say_lines
from zonefs_emu.daemon.framing import Json
from zonefs_emu.errors import printable
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.units import human_bytes, to_bytes


@click.command()
@image_argument
@json_option
def info(
    *,
    image: Path,
    as_json: bool,
) -> None:
    """Show the geometry and limits of IMG, how many zones are open and active, and which process uses it.

    \b
    Example:
      zonefs-emu info small.img

    While a file system is mounted this shows its counters too. JSON gives sizes in sectors of 512 bytes.
    """
    with open_target(image, readonly=True) as target:
        record = info_of(target)
    if as_json:
        say_json({"image": str(image), **record})
    else:
        say_lines(_lines(image, record))


def _lines(image: Path, record: dict[str, Json]) -> Iterator[str]:
    def size(name: str) -> str:
        return human_bytes(to_bytes(number_of(record, name)))

    def zones(kind: str) -> str:
        limit = record[f"max_{kind}_zones"]
        return f"{record[f'nr_{kind}']} of at most {limit}" if limit else f"{record[f'nr_{kind}']}, no limit"

    rows = [
        ("image", printable(image)),
        ("uuid", record["uuid"]),
        ("label", printable(record["label"] or "-")),
        ("size", size("size")),
        ("zones", f"{record['nr_zones']}, {record['nr_conventional']} of them conventional"),
        ("zone size", size("zone_size")),
        ("zone capacity", size("zone_capacity")),
        ("block size", f"{record['block_size_bytes']} B"),
        ("write granularity", size("write_granularity")),
        ("longest append", size("max_append")),
        ("open zones", zones("open")),
        ("active zones", zones("active")),
        ("held by", "no process" if record["pid"] is None else f"process {record['pid']}"),
    ]
    if record["poison"] and record["pid"] is not None:
        rows.append(("refuses changes", record["poison"]))
    if record["recovery"]:
        rows.append(("recovered", record["recovery"]))
    rows.extend(("switched off", text) for text in observers_off(record))
    yield from (f"{name + ':':<19} {value}\n" for name, value in rows)
    yield from front_end_lines(record)
    ended = record["ended_front_ends"]
    assert isinstance(ended, list)
    for front_end in ended:
        assert isinstance(front_end, dict)
        reason = front_end["reason"]
        yield f"{front_end['name']} at {front_end['where']} has ended{f': {reason}' if reason else ''}\n"


def observers_off(record: dict[str, Json]) -> Iterator[str]:
    """Yield what observes the device and met an error of its own, with the reason: "the counters (bad sector)"."""
    off = record["observers_off"]
    assert isinstance(off, dict)
    yield from (f"{observer} ({reason})" for observer, reason in off.items())


def front_end_lines(record: dict[str, Json]) -> Iterator[str]:
    """Yield lines on the front-ends at work, with their counters."""
    front_ends = record["front_ends"]
    assert isinstance(front_ends, list)
    for front_end in front_ends:
        assert isinstance(front_end, dict)
        yield f"{front_end['name']} at {printable(front_end['where'])}\n"
        counters = front_end["statistics"]
        assert isinstance(counters, dict)
        yield from (f"  {name + ':':<24} {value}\n" for name, value in counters.items())
