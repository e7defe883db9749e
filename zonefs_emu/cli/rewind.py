"""``rewind``: go back to a snapshot."""

from pathlib import Path

import click

from zonefs_emu.cli.common import TEXT, image_argument
from zonefs_emu.cli.snapshot import missing, snapshot_path
from zonefs_emu.daemon.client import call
from zonefs_emu.front_ends.known import open_target


@click.command()
@image_argument
@click.argument("name", metavar="NAME", type=TEXT)
def rewind(*, image: Path, name: str) -> None:
    """Make IMG what it was when the snapshot NAME was taken; what was written since is lost, the snapshot stays.

    \b
    Example:
      zonefs-emu rewind small.img filled

    IMG may be mounted or served meanwhile: all zones then change at one moment, as if by another host. A mount of ours
    goes on as after a reset by another; a file system in a guest should not be mounted. Injected faults stay. A rewind
    that was killed leaves the sequential zones empty; do it again.
    """
    path = snapshot_path(image, name)
    if not path.exists():
        raise missing(image, name)
    with open_target(image) as target:
        call(target, {"verb": "rewind", "path": str(path)})
