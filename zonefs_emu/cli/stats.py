"""``stats``: counters of the device and its front-ends."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import image_argument, info_of, json_option, refuse_options_beside, say_json, say_lines
from zonefs_emu.cli.info import front_end_lines, observers_off
from zonefs_emu.cli.timing_lines import stats_lines
from zonefs_emu.daemon.client import call
from zonefs_emu.daemon.framing import Json
from zonefs_emu.daemon.verbs import TOP_MAX
from zonefs_emu.device.counters import Counter
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.known import open_target

COUNTERS: Final = tuple(counter.name.lower() for counter in Counter)


@click.command()
@image_argument
@click.option("--zone", "zone_no", type=click.IntRange(min=0), metavar="N", help="The counters of this zone only.")
@click.option("--top", type=click.IntRange(1, TOP_MAX), metavar="N", help="The N zones with most --by.")
@click.option(
    "--by",
    default="resets",
    show_default=True,
    type=click.Choice(COUNTERS),
    metavar="COUNTER",
    help="Counter for --top.",
)
@click.option("--openmetrics", is_flag=True, help="Print OpenMetrics text, as Prometheus reads it.")
@json_option
def stats(
    *,
    image: Path,
    zone_no: int | None,
    top: int | None,
    by: str,
    openmetrics: bool,
    as_json: bool,
) -> None:
    """Show the counters of IMG: commands by kind, refusals, implicit closes, open and active zones.

    \b
    Examples:
      zonefs-emu stats small.img --json
      zonefs-emu stats small.img --top 5 --by written_sectors
      zonefs-emu stats small.img --openmetrics

    The counters are stored in the image and count from its creation. A mounted file system adds what the kernel's
    zonefs shows in /sys/fs/zonefs: max_wro_seq_files, nr_wro_seq_files, max_active_seq_files and nr_active_seq_files.
    With --timing of mount, serve and attach: how busy the drive is, and how long commands queue and are served.
    """
    if zone_no is not None and top is not None:
        message = "--zone shows one zone and --top looks at all: give only one of them"
        raise UsageError(message)
    if openmetrics and (as_json or top is not None):
        message = "--openmetrics can be combined with --zone only"
        raise UsageError(message)
    if top is None:
        refuse_options_beside(("zone_no", "openmetrics", "as_json"), "without --top")
    request: dict[str, Json] = {"verb": "stats"}
    if zone_no is not None:
        request["zone_no"] = zone_no
    elif top is not None:
        request |= {"top": top, "by": by}
    with open_target(image, readonly=True) as target:
        reply, _ = call(target, request)
        uuid = str(info_of(target)["uuid"]) if openmetrics else ""
    if openmetrics:
        say_lines(_openmetrics(reply, uuid, zone_no))
        return
    if as_json:
        say_json(reply)
        return
    if zone_no is not None:
        say_lines(_lines(reply["zone"]))
        return
    if top is not None:
        rows = reply["top"]
        assert isinstance(rows, list)
        say_lines(f"zone {row['zone_no']:>8}  {row[by]}\n" for row in rows if isinstance(row, dict))
        return
    for text in observers_off(reply):
        click.echo(f"switched off: {text}", err=True)
    say_lines(_lines(reply["device"]))
    say_lines(front_end_lines(reply))
    if "timing" in reply:
        say_lines(stats_lines(reply["timing"]))


def _lines(counters: Json) -> Iterator[str]:
    assert isinstance(counters, dict)
    for name, value in counters.items():
        yield f"{name + ':':<26} {value}\n"


def _openmetrics(reply: dict[str, Json], uuid: str, zone_no: int | None) -> Iterator[str]:
    """Yield the counters as OpenMetrics 1.0 text: gauges for numbers that can fall, counters for others."""
    zone = "" if zone_no is None else f',zone="{zone_no}"'
    counters = reply["device" if zone_no is None else "zone"]
    assert isinstance(counters, dict)
    for name, value in counters.items():
        metric = f"zonefs_emu_{name}"
        is_gauge = name.startswith("nr_")
        yield f"# TYPE {metric} {'gauge' if is_gauge else 'counter'}\n"
        yield f'{metric}{"" if is_gauge else "_total"}{{image="{uuid}"{zone}}} {value}\n'
    timing = reply.get("timing")
    if isinstance(timing, dict) and zone_no is None:
        for name in ("busy_ns", "answers", "late_answers"):
            yield f"# TYPE zonefs_emu_timing_{name} counter\n"
            yield f'zonefs_emu_timing_{name}_total{{image="{uuid}"}} {timing[name]}\n'
    yield "# EOF\n"
