"""``replay``: carry a recorded operation log out again."""

from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import FILE, image_argument, json_option, say_json
from zonefs_emu.cli.progress import progress
from zonefs_emu.daemon.framing import Json
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.oplog import read_lines, replay as replay_log
from zonefs_emu.errors import UsageError

#: Operations between two updates of the bar.
_STEP: Final = 1000


@click.command()
@click.argument("file", metavar="FILE", type=FILE)
@image_argument
@json_option
def replay(*, file: Path, image: Path, as_json: bool) -> None:
    """Execute the operations of the log FILE on IMG, up to the first answer that differs.

    \b
    Example:
      zonefs-emu mount small.img mnt --record bug.log
      zonefs-emu create again.img --preset small && zonefs-emu replay bug.log again.img

    FILE is a log that mount or serve wrote with --record. No process may use IMG. Its geometry may differ: if
    zone sizes differ, an operation goes to the same offset in the zone of the same number. The log has no data,
    so each sector is written with its number. Exits with 1 if an answer differs.
    """
    with file.open(encoding="utf-8", errors="replace") as log:
        device = ZonedDevice.open(image, owner="zonefs-emu replay")
        try:
            with progress(None, lambda count: f"{count} operations") as at:

                def show(count: int) -> None:
                    if count % _STEP == 0:
                        at(count)

                done = replay_log(read_lines(log), device, progress=show)
        finally:
            device.close()
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
