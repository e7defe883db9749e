"""``snapshot``: keep a state of an image beside it, under a name."""

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import TEXT, image_argument, json_option, say, say_json
from zonefs_emu.cli.dump import copy
from zonefs_emu.errors import BadMagicError, CorruptImageError, UsageError, ZonedError, trying
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.metadata import read_header
from zonefs_emu.units import human_bytes

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_MARK: Final = ".snapshot-"


def snapshot_path(image: Path, name: str) -> Path:
    """Return the path of the snapshot *name* of *image*.

    Raises:
        UsageError: *name* cannot be a part of a file name.
    """
    if not _NAME.fullmatch(name):
        message = f"'{name}' cannot be the name of a snapshot: a name has up to 100 letters, digits, '_', '.' and '-'"
        raise UsageError(message)
    # Beside the file itself, and not beside a link to it.
    real = Path(os.path.realpath(image))
    return real.with_name(f"{real.name}{_MARK}{name}")


def snapshots(image: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name, file) of the snapshots of *image*, the oldest first."""
    real = Path(os.path.realpath(image))
    prefix = f"{real.name}{_MARK}"
    found = [path for path in real.parent.iterdir() if path.name.startswith(prefix) and path.is_file()]
    for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name)):
        yield path.name.removeprefix(prefix), path


def is_complete(path: Path) -> bool:
    """Return whether the snapshot in *path* has a header, which is written last; True if *path* cannot be read.

    The command that writes one without a header still runs, or was killed.
    """
    try:
        backing = FileBacking.peek(path)
        try:
            read_header(backing, backing.length)
        finally:
            backing.close()
    except (BadMagicError, CorruptImageError):
        return False
    except (OSError, ZonedError):
        pass  # whatever uses the snapshot says more of it
    return True


@click.command()
@image_argument
@click.argument("name", metavar="[NAME]", type=TEXT, required=False)
@click.option("--list", "list_", is_flag=True, help="List the snapshots of IMG, the oldest first.")
@click.option("--delete", is_flag=True, help="Delete the snapshot NAME.")
@json_option
def snapshot(*, image: Path, name: str | None, list_: bool, delete: bool, as_json: bool) -> None:
    """Keep the present state of IMG (conditions, write pointers, data) under NAME, also while IMG is in use.

    \b
    Examples:
      zonefs-emu snapshot small.img filled
      zonefs-emu snapshot small.img --list
      zonefs-emu rewind small.img filled

    A snapshot is the file IMG.snapshot-NAME, an image itself. On file systems with reflinks (btrfs, XFS) it shares its
    blocks with IMG and takes no room at first; elsewhere its data are copied, and holes stay holes.
    """
    if list_:
        if name is not None or delete:
            message = "--list needs IMG only: give no NAME and no --delete"
            raise UsageError(message)
        _list(image, as_json=as_json)
        return
    if name is None:
        message = "the name of the snapshot is missing: give NAME, or --list"
        raise UsageError(message)
    path = snapshot_path(image, name)
    if delete:
        if not path.exists():
            raise missing(image, name)
        path.unlink()
        return
    copy(image, path)
    if as_json:
        say_json({"name": name, "file": str(path)})


def missing(image: Path, name: str) -> UsageError:
    """Return the error that there is no snapshot *name* of *image*, with the names that exist."""
    names = ", ".join(each for each, _ in snapshots(image))
    there_are = f"there are {names}" if names else "there are none"
    return UsageError(f"{image} has no snapshot '{name}': {there_are}", exit_code=1)


def _list(image: Path, *, as_json: bool) -> None:
    # A missing image is an error, not an image without snapshots.
    with trying(f"open {image}"):
        image.stat()
    rows = []
    for name, path in snapshots(image):
        status = path.stat()
        time = datetime.fromtimestamp(status.st_mtime_ns / 1e9, UTC).isoformat(timespec="seconds")
        rows.append((name, time, status.st_blocks * 512, path, is_complete(path)))
    if as_json:
        say_json(
            [
                {"name": name, "time": time, "bytes": used, "file": str(path), "complete": complete}
                for name, time, used, path, complete in rows
            ]
        )
        return
    for name, time, used, _, complete in rows:
        say(f"{time}  {human_bytes(used):>10}  {name}{'' if complete else '  (incomplete)'}")
