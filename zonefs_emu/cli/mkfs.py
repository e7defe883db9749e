"""``mkfs``: make a zonefs, as mkzonefs does."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Final

import click

from zonefs_emu.cli.common import TEXT, image_argument, say, say_lines, zones_of
from zonefs_emu.daemon.client import Target
from zonefs_emu.daemon.framing import Json
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.model.zone import Condition, Zone, ZoneType

_TYPE_WORDS: Final = MappingProxyType(
    {
        ZoneType.CONVENTIONAL: "Conventional",
        ZoneType.SWR: "Sequential-write-required",
        ZoneType.SWP: "Sequential-write-preferred",
    }
)
_COND_WORDS: Final = MappingProxyType(
    {
        Condition.NOT_WP: "Not-write-pointer",
        Condition.EMPTY: "Empty",
        Condition.IMP_OPEN: "Implicit-open",
        Condition.EXP_OPEN: "Explicit-open",
        Condition.CLOSED: "Closed",
        Condition.READONLY: "Read-only",
        Condition.FULL: "Full",
        Condition.OFFLINE: "Offline",
    }
)


class _Mkzonefs(click.Command):
    """A command that fails with exit code 1 for every error, as mkzonefs does."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        """Parse the options."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            message = f"{error.format_message().rstrip('.')} (see 'zonefs-emu mkfs --help')"
            raise UsageError(message, exit_code=1) from None


def format_image(target: Target, image: Path, *, features: str, label: str, force: bool) -> Iterator[str]:
    """Format *image*, opened as *target*, and yield the lines of mkzonefs, each at its step.

    Raises:
        UsageError: it is mounted, has a file system already, or refuses; always with exit code 1.
    """
    request: dict[str, Json] = {
        "verb": "mkfs",
        "features": features,
        "label": label,
        "force": force,
        "name": str(Path(os.path.realpath(image))),
    }
    try:
        for reply, _ in target.stream(request):
            lines = reply.get("lines", [])
            assert isinstance(lines, list)
            yield from map(str, lines)
    except UsageError as error:
        raise UsageError(str(error), exit_code=1) from None


@click.command(cls=_Mkzonefs)
@image_argument
@click.option(
    "-f", "force", is_flag=True, help="Overwrite an existing file system or partition table, as blkid knows them."
)
@click.option("-L", "label", type=TEXT, default="", metavar="LABEL", help="Label of the file system, at most 64 bytes.")
@click.option(
    "-o",
    "features",
    multiple=True,
    metavar="FEATURES",
    help="aggr_cnv (one file for neighbouring conventional zones), uid=N, gid=N, perm=OCTAL; separated by commas.",
)
@click.option("-v", "verbose", is_flag=True, help="List the zones first.")
def mkfs(*, image: Path, force: bool, label: str, features: tuple[str, ...], verbose: bool) -> None:
    """Make a zonefs on IMG: reset all sequential zones, write the super block, finish zone 0 if it is sequential.

    \b
    Examples:
      zonefs-emu mkfs small.img
      zonefs-emu mkfs small.img -f -L scratch -o aggr_cnv,uid=1000,gid=1000,perm=0644

    Options and output are those of mkzonefs. The exit code is 1 for every failure, as with mkzonefs, except for a
    label that is not UTF-8 text (2). Linux can mount the result.
    """
    with open_target(image) as target:
        if verbose:
            say_lines(map(_zone_line, zones_of(target)))
        for line in format_image(target, image, features=",".join(features), label=label, force=force):
            say(line)


def _zone_line(zone: Zone) -> str:
    """Return the line of ``mkzonefs -v`` on *zone*. Source: zonefs-tools, src/zonefs_dev.c, zonefs_print_zone."""
    name = f"Zone {zone.zone_no:05}: "
    kind = _TYPE_WORDS[zone.type]
    if zone.cond in (Condition.READONLY, Condition.OFFLINE):
        return f"{name}{'readonly' if zone.cond is Condition.READONLY else 'offline'} {kind} zone\n"
    extent = f"sector {zone.start}, {zone.size} sectors"
    if zone.type is ZoneType.CONVENTIONAL:
        return f"{name}{kind}, {extent}\n"
    # In Linux, the wp of a FULL zone is the end of the zone.
    wp = zone.start + zone.size if zone.cond is Condition.FULL else zone.wp
    cond = f"cond 0x{zone.cond:x} ({_COND_WORDS[zone.cond]})"
    return f"{name}type 0x{zone.type:x} ({kind}), {cond}, {extent}, wp sector {wp}\n"
