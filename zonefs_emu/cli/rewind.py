"""``rewind``: go back to a snapshot."""

from pathlib import Path

import click

from zonefs_emu.cli.common import TEXT, image_argument
from zonefs_emu.cli.snapshot import is_complete, missing, snapshot_path
from zonefs_emu.daemon.client import call
from zonefs_emu.errors import UsageError, printable
from zonefs_emu.front_ends.known import open_target


@click.command()
@image_argument
@click.argument("name", metavar="NAME", type=TEXT)
def rewind(*, image: Path, name: str) -> None:
    """Give IMG the state of the snapshot NAME. Later changes are lost; the snapshot stays.

    \b
    Example:
      zonefs-emu rewind small.img filled

    IMG may be mounted or served meanwhile: all zones then change at one moment, as if another host had changed
    them. A mount of zonefs-emu continues as after a reset by another host; a file system in a guest should be
    unmounted first. Injected faults stay. A rewind that is killed leaves the sequential zones empty: repeat it.
    """
    path = snapshot_path(image, name)
    if not path.exists():
        raise missing(image, name)
    if not is_complete(path):
        message = (
            f"the snapshot '{name}' is incomplete: the command that makes it still runs, or was killed, or the file "
            f"was damaged; delete it with 'snapshot {printable(image)} {name} --delete'"
        )
        raise UsageError(message, exit_code=1)
    with open_target(image) as target:
        call(target, {"verb": "rewind", "path": str(path)})
