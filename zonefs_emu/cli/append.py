"""``append``: data from stdin to the end of a zone, wherever that is."""

import sys
from pathlib import Path

import click

from zonefs_emu.cli.common import SIZE, image_argument, info_of, json_option, number_of, say_json, zone_option
from zonefs_emu.daemon.client import call
from zonefs_emu.daemon.verbs import TRANSFER_BYTES_MAX
from zonefs_emu.errors import UsageError, trying
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.units import to_bytes


@click.command()
@image_argument
@zone_option
@click.option("--length", type=SIZE, help="Length of the data to append from stdin. [default: all of it]")
@json_option
def append(
    *,
    image: Path,
    zone_no: int,
    length: int | None,
    as_json: bool,
) -> None:
    """Append stdin to a sequential zone of IMG with one zone append, and print the sector of the data.

    \b
    Example:
      head -c 8K /dev/urandom | zonefs-emu append small.img --zone 4

    One append is at most max_append long.
    """
    with open_target(image) as target:
        limit = min(to_bytes(number_of(info_of(target), "max_append")), TRANSFER_BYTES_MAX)
        # One byte more than the limit is read, so that longer input is noticed.
        wanted = limit + 1 if length is None else length
        if wanted > limit and length is not None:
            message = f"one append is at most {limit} bytes long on this device, not {length}"
            raise UsageError(message, exit_code=1)
        with trying("read stdin"):
            data = sys.stdin.buffer.read(wanted)
        if len(data) > limit:
            message = f"one append is at most {limit} bytes long on this device, and stdin has more"
            raise UsageError(message, exit_code=1)
        if length is not None and len(data) < length:
            message = f"stdin ended after {len(data)} bytes of {length}"
            raise UsageError(message, exit_code=1)
        reply, _ = call(target, {"verb": "append", "zone_no": zone_no}, data)
    if as_json:
        say_json({"zone_no": zone_no, **reply})
    else:
        click.echo(reply["append_sector"])
