"""``watch``: the live picture of the zones."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import (
    NumberRange,
    image_argument,
    info_of,
    number_of,
    refuse_options_beside,
    say_lines,
    zones_of,
)
from zonefs_emu.cli.picture import terminal
from zonefs_emu.cli.timing_lines import watch_line
from zonefs_emu.daemon.client import Target, call
from zonefs_emu.daemon.framing import Json
from zonefs_emu.errors import printable
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.units import human_bytes, to_bytes

#: Home and clear to the end of each line and of the screen: the picture stays in place and does not flicker.
_HOME: Final = "\033[H"
_CLEAR_LINE: Final = "\033[K"
_CLEAR_BELOW: Final = "\033[J"
_RATES: Final = (
    ("writes", "write"),
    ("appends", "append"),
    ("reads", "read"),
    ("resets", "reset"),
    ("flushes", "flush"),
)


@click.command()
@image_argument
@click.option(
    "--interval", type=NumberRange(0.1, 3600), default=1.0, show_default=True, metavar="SECONDS",
    help="Time between two pictures.",
)  # fmt: skip
@click.option("--frames", type=click.IntRange(min=1), metavar="N", help="End after N pictures.")
@click.option(
    "--http", "place", is_flag=False, flag_value="127.0.0.1:0", metavar="[ADDRESS:PORT]",
    help="Serve the picture as a page to browsers of this machine instead, and print its address.",
)  # fmt: skip
def watch(*, image: Path, interval: float, frames: int | None, place: str | None) -> None:
    """Draw the zones of IMG again and again: condition, fill, open and active zones, commands and bytes per second.

    \b
    Examples:
      zonefs-emu watch small.img
      zonefs-emu watch small.img --http

    Ctrl-C ends it. IMG may be mounted or served. The page of --http cannot change anything, and opens only by its
    address, which contains a token.
    """
    if place is not None:
        refuse_options_beside(("interval", "place"), "beside --http, whose page is served until Ctrl-C")
        # Imported here because it loads an event loop, which a terminal does not need.
        from zonefs_emu.cli.page_server import serve  # noqa: PLC0415

        serve(image, place, interval_s=interval, ready=click.echo)
        return
    is_terminal = sys.stdout.isatty()
    before: tuple[float, dict[str, Json]] | None = None
    number = 0
    while True:
        with open_target(image, readonly=True) as target:
            now = time.monotonic()
            counters, lines = _frame(
                target, image.name, before, now, colour=is_terminal and not os.environ.get("NO_COLOR")
            )
        before = now, counters
        if is_terminal:
            click.echo(
                _HOME + "".join(line.rstrip("\n") + _CLEAR_LINE + "\n" for line in lines) + _CLEAR_BELOW, nl=False
            )
        else:
            say_lines([*lines, "\n"])
        sys.stdout.flush()
        number += 1
        if number == frames:
            return
        time.sleep(interval)


def _frame(
    target: Target, name: str, before: tuple[float, dict[str, Json]] | None, now: float, *, colour: bool
) -> tuple[dict[str, Json], list[str]]:
    """Return the counters now, and the lines of one picture."""
    info = info_of(target)
    reply = call(target, {"verb": "stats"})[0]
    counters = reply["device"]
    assert isinstance(counters, dict)
    timing = reply.get("timing")
    nr_zones = number_of(info, "nr_zones")
    size = shutil.get_terminal_size()
    lines = [f"{printable(name)}  {_limit(info, 'open')}, {_limit(info, 'active')}\n", *_rates(counters, before, now)]
    if timing is not None:
        counters["timing"] = timing
        lines.append(watch_line(timing, before[1]["timing"]) if before is not None and "timing" in before[1] else "\n")
    lines.extend(terminal(zones_of(target), nr_zones=nr_zones, width=size.columns, colour=colour))
    return counters, lines


def _rates(counters: dict[str, Json], before: tuple[float, dict[str, Json]] | None, now: float) -> Iterator[str]:
    if before is None:
        yield "rates: after the next look\n"
        return
    if "reads" not in counters or "reads" not in before[1]:
        yield "rates: unknown, as the counters are switched off\n"
        return
    elapsed = max(now - before[0], 1e-3)

    def rate(counter: str) -> float:
        return (number_of(counters, counter) - number_of(before[1], counter)) / elapsed

    commands = "  ".join(f"{rate(counter):.0f} {word}/s" for counter, word in _RATES)
    written, read = rate("written_sectors"), rate("read_sectors")
    yield (
        f"{commands}  {human_bytes(to_bytes(int(written)))}/s written  {human_bytes(to_bytes(int(read)))}/s read  "
        f"{number_of(counters, 'refused')} refused\n"
    )


def _limit(info: dict[str, Json], kind: str) -> str:
    limit = number_of(info, f"max_{kind}_zones")
    return f"{info[f'nr_{kind}']} of {limit} {kind}" if limit else f"{info[f'nr_{kind}']} {kind}"
