"""``set-cond``: put a zone into a condition, as a failing medium would."""

from pathlib import Path

import click

from zonefs_emu.cli.common import ConditionType, image_argument, zone_option
from zonefs_emu.daemon.client import call
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.model.zone import Condition


@click.command("set-cond")
@image_argument
@zone_option
@click.argument("cond", metavar="CONDITION", type=ConditionType())
def set_cond(image: Path, zone_no: int, cond: Condition) -> None:
    """Put a zone of IMG into CONDITION, as a failing or repaired medium would.

    \b
    Examples:
      zonefs-emu set-cond small.img --zone 5 readonly
      zonefs-emu set-cond small.img --zone 5 empty

    readonly, offline, closed and full keep the data, but the data of an offline zone cannot be read. empty
    discards the data. nw repairs a conventional zone. The names of other tools are understood too: ro, READONLY,
    ZND_STATE_RONLY, 0xd.
    """
    with open_target(image) as target:
        call(target, {"verb": "set-cond", "zone_no": zone_no, "cond": int(cond)})
