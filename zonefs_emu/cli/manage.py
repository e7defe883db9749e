"""``open``, ``close``, ``finish``, ``reset``: the zone management verbs."""

from pathlib import Path

import click

from zonefs_emu.cli.common import image_argument
from zonefs_emu.daemon.client import call
from zonefs_emu.daemon.framing import Json
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.known import open_target


def _command(name: str, text: str) -> click.Command:
    """Build the verb *name*; *text* is its help, without the example."""

    @image_argument
    @click.option(
        "--zone", "zone_no", metavar="N", type=click.IntRange(min=0), help="Number of the first zone, from 0."
    )
    @click.option("--count", metavar="N", type=click.IntRange(min=1), help="Number of zones. [default: 1]")
    @click.option("--all", "every", is_flag=True, help="All zones that the operation applies to.")
    def verb(
        *,
        image: Path,
        zone_no: int | None,
        count: int | None,
        every: bool,
    ) -> None:
        if every == (zone_no is not None):
            message = f"the zones to {name} are missing: give --zone N [--count N], or --all"
            raise UsageError(message)
        if every and count is not None:
            message = "--all cannot be combined with --count"
            raise UsageError(message)
        request: dict[str, Json] = {"verb": "manage", "operation": name}
        request.update({"all": True} if every else {"zone_no": zone_no, "count": count or 1})
        with open_target(image) as target:
            call(target, request)

    examples = f"\b\nExamples:\n  zonefs-emu {name} small.img --zone 4 --count 2\n  zonefs-emu {name} small.img --all"
    return click.command(name, help=f"{text}\n\n{examples}")(verb)


open_ = _command(
    "open",
    "Open zones of IMG explicitly. They hold an open resource until they are closed, finished or reset. With "
    "--count, either all zones are opened or none. --all opens all closed zones.",
)
close = _command(
    "close",
    "Close open zones of IMG. They keep their data and write pointer and stay active; a zone without data "
    "becomes empty. --all closes all open zones.",
)
finish = _command(
    "finish",
    "Make zones of IMG full: nothing can be written to them until they are reset. --all finishes all open and "
    "closed zones.",
)
reset = _command(
    "reset",
    "Reset the write pointers of zones of IMG. Their data is lost, and its space on the host is "
    "freed. --all resets all zones except read-only, offline and conventional ones.",
)
