"""``mount``: the zonefs on an image as a directory."""

import errno
import logging
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
from zonefs_emu.errors import UsageError
from zonefs_emu.fs.options import MountOptions, parse_options
from zonefs_emu.model.presets import build_geometry


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


def _require_directory(directory: Path) -> None:
    """Raise UsageError unless *directory* can be mounted on."""
    try:
        is_directory = stat.S_ISDIR(directory.stat().st_mode)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            msg = f"{directory} is still the mount of a process that is gone: 'zonefs-emu umount {directory}' ends it"
            raise UsageError(msg, exit_code=1) from None
        is_directory = False
    if not is_directory:
        msg = f"{directory} is no directory to mount on"
        raise UsageError(msg, exit_code=1)


@click.command(short_help="Mount the zonefs on an image.")
@image_argument
@click.argument("directory", metavar="DIR", type=FILE)
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="OPTIONS",
    help="errors=remount-ro|zone-ro|zone-offline|repair, explicit-open, ro, allow_other, async_dio "
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
    SIGINT). All other verbs work on IMG meanwhile.
    """
    mount_options = parse_options(",".join(options))
    _require_directory(directory)
    if size is not None and not image.exists():
        create_image(image, build_geometry(size=size), "")
        with open_target(image) as target:
            list(format_image(target, image, features="", label="", force=False))
    # The process in the background has / as its directory.
    image, directory = image.resolve(strict=True), directory.resolve()
    record_file = record_file and record_file.absolute()

    def serve(ready: Callable[[], None]) -> None:
        # A daemon's log is read later, so its lines say when.
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
        front_end = ZonefsFrontEnd(directory, mount_options)
        session.run(image, [front_end], ready=ready, owner="zonefs-emu mount", record_file=record_file)

    if foreground:
        serve(lambda: say(f"{image} is mounted at {directory}", err=True))
    else:
        run_in_background(serve, log=rendezvous.log_path(image))
