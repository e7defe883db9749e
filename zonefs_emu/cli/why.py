"""``why``: the last refused operations, explained."""

import sys
import time
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import (
    image_argument,
    json_option,
    json_text,
    number_of,
    refuse_options_beside,
    say_json,
    say_lines,
)
from zonefs_emu.daemon.client import call
from zonefs_emu.daemon.framing import Json
from zonefs_emu.daemon.verbs import REFUSALS_MAX
from zonefs_emu.device.timing import SLOWEST_MAX
from zonefs_emu.front_ends.known import open_target

_POLL_S: Final = 0.5


@click.command()
@image_argument
@click.option(
    "-n",
    "count",
    metavar="N",
    type=click.IntRange(1, REFUSALS_MAX),
    default=1,
    show_default=True,
    help="Number of operations, oldest first.",
)
@click.option(
    "--slow",
    metavar="N",
    type=click.IntRange(1, SLOWEST_MAX),
    help="The N slowest operations instead, and what they waited for; with --timing of mount, serve or attach.",
)
@click.option("--follow", is_flag=True, help="Show each new refusal too, until interrupted.")
@json_option
def why(
    *,
    image: Path,
    count: int,
    slow: int | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Explain the last refused operations on IMG: the request, the rule that it broke, and the source of the rule.

    \b
    Examples:
      zonefs-emu why small.img -n 3
      zonefs-emu why small.img --follow
      zonefs-emu why small.img --slow 5

    Front-ends report few kinds of errors (a file system says EIO or EINVAL). The device remembers the reason,
    also after a restart. With --json and --follow, each line is one object.
    """
    if slow is not None:
        refuse_options_beside(("slow", "as_json"), "beside --slow, which shows the slowest operations once")
        _say_slowest(image, slow, as_json=as_json)
        return
    if follow:
        _follow(image, count, as_json=as_json)
        return
    with open_target(image, readonly=True) as target:
        reply, _ = call(target, {"verb": "why", "count": count})
    if as_json:
        say_json(reply)
        return
    refusals = reply["refusals"]
    assert isinstance(refusals, list)
    if not refusals:
        click.echo("nothing was refused", err=True)
    for refusal in refusals:
        assert isinstance(refusal, dict)
        _say(refusal)


def _say_slowest(image: Path, count: int, *, as_json: bool) -> None:
    with open_target(image, readonly=True) as target:
        reply, _ = call(target, {"verb": "why", "slow": count})
    if as_json:
        say_json(reply)
        return
    slowest = reply["slow"]
    assert isinstance(slowest, list)
    say_lines(f"{done['sentence']}\n" for done in slowest if isinstance(done, dict))


def _say(refusal: dict[str, Json]) -> None:
    click.echo(f"{refusal['time']} {refusal['sentence']}")


def _follow(image: Path, count: int, *, as_json: bool) -> None:
    """Print the last *count* refusals and then each new one. The image is closed in between, for other verbs."""
    after = 0
    while True:
        with open_target(image, readonly=True) as target:
            reply, _ = call(target, {"verb": "why", "count": REFUSALS_MAX if after else count, "after": after})
        refusals = reply["refusals"]
        assert isinstance(refusals, list)
        for refusal in refusals:
            assert isinstance(refusal, dict)
            after = number_of(refusal, "seq")
            if as_json:
                click.echo(json_text(refusal))
            else:
                _say(refusal)
        sys.stdout.flush()
        time.sleep(_POLL_S)
