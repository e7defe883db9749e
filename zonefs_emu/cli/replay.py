"""``replay``: carry a recorded operation log out again."""

import sys
from pathlib import Path

import click

from zonefs_emu.cli.common import FILE, image_argument, json_option, say_json
from zonefs_emu.daemon.framing import Json
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.oplog import replay as replay_log
from zonefs_emu.errors import UsageError


@click.command()
@click.argument("file", metavar="FILE", type=FILE)
@image_argument
@json_option
def replay(*, file: Path, image: Path, as_json: bool) -> None:
    """Carry out on IMG what FILE says, up to the first answer that differs.

    \b
    Example:
      zonefs-emu mount small.img mnt --record bug.log
      zonefs-emu create again.img --preset small && zonefs-emu replay bug.log again.img

    FILE is what mount or serve wrote with --record. No process may hold IMG. It may have another geometry: where
    zone sizes differ, zone number and offset in the zone count. Written data is the sectors' numbers. Exit code 1 if an
    answer differs.
    """
    with file.open(encoding="utf-8", errors="replace") as lines:
        device = ZonedDevice.open(image, owner="zonefs-emu replay")
        try:
            done = replay_log(lines, device, progress=_progress)
        finally:
            device.close()
            _progress(0)
    difference = done.difference
    if as_json:
        found: Json = None
        if difference is not None:
            found = {
                "line_no": difference.line_no,
                "line": difference.line,
                "expected": difference.expected,
                "found": difference.found,
            }
        say_json({"operations": done.nr_operations, "difference": found})
    if difference is not None:
        message = (
            f"{file}, line {difference.line_no}: the log says {difference.expected}, this device says "
            f"{difference.found}: {difference.line}"
        )
        raise UsageError(message, exit_code=1)
    if not as_json:
        click.echo(f"{done.nr_operations} operations, all answered as in the log")


def _progress(nr_operations: int) -> None:
    """Show progress on a terminal; 0 clears it."""
    if sys.stderr.isatty() and not nr_operations % 1000:
        text = f"{nr_operations} operations" if nr_operations else ""
        click.echo(f"\r\033[K{text}", nl=False, err=True)
