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

    While IMG is mounted, served or attached, the front-ends and their counters are shown too. JSON gives sizes in
    sectors of 512 bytes.
    """
    with open_target(image, readonly=True) as target:
        reply = info_of(target)
        if not target.live:
            reply["poison"] = None  # it is read here only, which says nothing of the image
    if as_json:
        say_json({"image": str(image), **reply})
    else:
        say_lines(_lines(image, reply))


def _lines(image: Path, reply: dict[str, Json]) -> Iterator[str]:
    def size(name: str) -> str:
        return human_bytes(to_bytes(number_of(reply, name)))

    def zones(kind: str) -> str:
        limit = reply[f"max_{kind}_zones"]
        return f"{reply[f'nr_{kind}']} of at most {limit}" if limit else f"{reply[f'nr_{kind}']}, no limit"

    rows = [
        ("image", printable(image)),
        ("uuid", reply["uuid"]),
        ("label", printable(reply["label"] or "-")),
        ("size", size("size")),
        ("zones", f"{reply['nr_zones']}, {reply['nr_conventional']} of them conventional"),
        ("zone size", size("zone_size")),
        ("zone capacity", size("zone_capacity")),
        ("block size", f"{reply['block_size_bytes']} B"),
        ("write granularity", size("write_granularity")),
        ("longest append", size("max_append")),
        ("open zones", zones("open")),
        ("active zones", zones("active")),
        ("held by", "no process" if reply["pid"] is None else f"process {reply['pid']}"),
    ]
    # The reply of a daemon of an earlier version lacks the fields of later features.
    if reply.get("extension_bytes"):
        rows.append(("zone extensions", f"{reply['extension_bytes']} B each"))
    if reply.get("zrwa_size"):
        limit = f", at most {reply['max_zrwa']} zones" if reply["max_zrwa"] else ""
        rows.append(("random write area", f"{size('zrwa_size')} in steps of {size('zrwa_granularity')}{limit}"))
    if reply.get("active_excursions"):
        rows.append(("active excursions", "the drive may finish zones by itself"))
    if reply.get("poison"):
        rows.append(("refuses changes", reply["poison"]))
    if reply.get("recovery"):
        rows.append(("recovered", reply["recovery"]))
    rows.extend(("switched off", text) for text in observers_off(reply))
    yield from (f"{name + ':':<19} {value}\n" for name, value in rows)
    yield from front_end_lines(reply)
    ended = reply["ended_front_ends"]
    assert isinstance(ended, list)
    for front_end in ended:
        assert isinstance(front_end, dict)
        reason = front_end["reason"]
        yield f"{front_end['name']} at {front_end['where']} has ended{f': {reason}' if reason else ''}\n"


def observers_off(reply: dict[str, Json]) -> Iterator[str]:
    """Yield the observers that are switched off, with the reason: "the counters (bad sector)"."""
    off = reply.get("observers_off", {})
    assert isinstance(off, dict)
    yield from (f"{observer} ({reason})" for observer, reason in off.items())


def front_end_lines(reply: dict[str, Json]) -> Iterator[str]:
    """Yield lines on the running front-ends, with their counters."""
    front_ends = reply["front_ends"]
    assert isinstance(front_ends, list)
    for front_end in front_ends:
        assert isinstance(front_end, dict)
        yield f"{front_end['name']} at {printable(front_end['where'])}\n"
        counters = front_end["statistics"]
        assert isinstance(counters, dict)
        yield from (f"  {name + ':':<24} {value}\n" for name, value in counters.items())
