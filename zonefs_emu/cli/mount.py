"""``mount``: the zonefs on an image as a directory."""

import errno
import logging
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import trio

from zonefs_emu.cli.common import FILE, SIZE, image_argument, record_option, say
from zonefs_emu.cli.create import create_image
from zonefs_emu.cli.mkfs import format_image
from zonefs_emu.daemon import rendezvous, session
from zonefs_emu.daemon.background import run_in_background
from zonefs_emu.daemon.client import open_target
from zonefs_emu.daemon.session import Session
from zonefs_emu.errors import UsageError, host_sentence
from zonefs_emu.fs.kernel import take_away
from zonefs_emu.fs.mount_table import mount_at
from zonefs_emu.fs.options import MountOptions, parse_options
from zonefs_emu.model.presets import build_geometry
from zonefs_emu.persist.backing import user_name


class ZonefsFrontEnd:
    """The front-end of a session that mounts the image at *directory*."""

    def __init__(self, directory: Path, options: MountOptions) -> None:
        self._directory = directory
        self._options = options

    async def __call__(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        """Mount, and serve until unmounted or cancelled."""
        # Loads libfuse, which nothing but a mount needs.
        from zonefs_emu.fs.mount import serve  # noqa: PLC0415

        start = partial(serve, session.device, self._directory, self._options, source=str(session.path))
        with ExitStack() as registered:
            async with trio.open_nursery() as nursery:
                mount = await nursery.start(start)
                registered.enter_context(session.register("zonefs", str(self._directory), mount.statistics))
                task_status.started()


def mountable(directory: Path) -> Path:
    """Return *directory* without links, ready to be mounted on: what killed processes of ours left there is gone.

    Raises:
        UsageError: it cannot be mounted on; says why.
    """
    place = Path(os.path.realpath(directory))
    while True:
        try:
            # Attributes come from the kernel's cache; this is asked of the file system, if it is FUSE.
            os.statvfs(directory)
            if not stat.S_ISDIR(directory.stat().st_mode):
                msg = f"{directory} is no directory to mount on"
                raise UsageError(msg, exit_code=1)
        except OSError as error:
            # What a FUSE mount answers whose process is gone; the second to requests that the process had been asked.
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                msg = f"{directory} is no directory to mount on: {error.strerror}"
                raise UsageError(msg, exit_code=1) from None
        else:
            return place
        _take_away_dead(directory, place)


def _take_away_dead(directory: Path, place: Path) -> None:
    entry = mount_at(place)
    if entry is None:
        msg = f"{directory} is the mount of a process that is gone, and no zonefs of ours: 'umount {directory}' ends it"
        raise UsageError(msg, exit_code=1)
    if os.geteuid() not in (0, entry.uid):
        msg = f"{directory} is what is left of a mount of {user_name(entry.uid)}: only they and root can unmount it"
        raise UsageError(msg, exit_code=1)
    # Lazily: for those who still have something open in it, nothing becomes worse.
    take_away(place, lazy=True)


@click.command(short_help="Mount the zonefs on an image.")
@image_argument
@click.argument("directory", metavar="DIR", type=FILE)
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="OPTIONS",
    help="errors=remount-ro|zone-ro|zone-offline|repair, explicit-open, async_dio "
    "(queued libaio reads; a queued write across the capacity is then EIO, not short); separated by commas.",
)
@click.option("--foreground", is_flag=True, help="Stay in the foreground, and say on stderr when the mount is up.")
@record_option
@click.option("--create", "size", type=SIZE, help="If IMG does not exist, create it with this size and make a zonefs.")
def mount(
    *,
    image: Path,
    directory: Path,
    options: tuple[str, ...],
    foreground: bool,
    record_file: Path | None,
    size: int | None,
) -> None:
    """Mount the zonefs on IMG at the directory DIR: each zone is a file, by the rules of Linux' zonefs.

    \b
    Examples:
      zonefs-emu mount small.img mnt -o errors=repair,explicit-open
      zonefs-emu mount scratch.img mnt --create 1G

    Returns when the mount is up; a process in the background serves it until "zonefs-emu umount DIR" (or SIGTERM, or
    SIGINT). All other verbs work on IMG meanwhile. What a killed process left mounted at DIR is unmounted first.

    Also taken: ro, allow_other, allow_root, auto_unmount (unmount when the process dies), and what mount(8) takes for
    every file system: noatime, nodev, noexec, nosuid, sync, nofail, _netdev, user, x-* and the like.
    """
    mount_options = parse_options(",".join(options))
    place = mountable(directory)
    if size is not None and not image.exists():
        create_image(image, build_geometry(size=size), "")
        with open_target(image) as target:
            list(format_image(target, image, features="", label="", force=False))
    # The process in the background has / as its directory.
    image = Path(os.path.realpath(image, strict=True))
    record_file = record_file and record_file.absolute()

    def serve(ready: Callable[[], None]) -> None:
        # A daemon's log is read later, so its lines say when.
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
        front_end = ZonefsFrontEnd(place, mount_options)
        try:
            session.run(
                image, [front_end], ready=ready, owner="zonefs-emu mount", record_file=record_file,
                readonly=mount_options.readonly,
            )  # fmt: skip
        except OSError as error:
            if error.filename == str(image) and os.access(image, os.R_OK) and not os.access(image, os.W_OK):
                msg = f"{host_sentence(error)}; an image that cannot be written can be mounted with -o ro"
                raise UsageError(msg, exit_code=1) from None
            raise

    if foreground:
        serve(lambda: say(f"{image} is mounted at {place}", err=True))
    else:
        run_in_background(serve, log=rendezvous.log_path(image))
