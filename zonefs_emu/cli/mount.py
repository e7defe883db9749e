"""``mount``: the zonefs on an image as a directory."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import click

from zonefs_emu.cli.common import FILE, SIZE, image_argument, record_option, say, timing_options
from zonefs_emu.cli.create import create_image
from zonefs_emu.cli.mkfs import format_image
from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.background import run_in_background
from zonefs_emu.errors import UsageError, host_sentence
from zonefs_emu.front_ends import known
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.front_ends.zonefs import ZonefsFrontEnd
from zonefs_emu.model.presets import build_geometry


@click.command()
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
@click.option("--foreground", is_flag=True, help="Stay in the foreground, and report on stderr when the mount is up.")
@record_option
@timing_options
@click.option("--create", "size", type=SIZE, help="If IMG does not exist, create it with this size and make a zonefs.")
def mount(
    *,
    image: Path,
    directory: Path,
    options: tuple[str, ...],
    foreground: bool,
    record_file: Path | None,
    timing: str,
    time_scale: float,
    size: int | None,
) -> None:
    """Mount the zonefs on IMG at the directory DIR: each zone is a file, by the rules of Linux' zonefs.

    \b
    Examples:
      zonefs-emu mount small.img mnt -o errors=repair,explicit-open
      zonefs-emu mount scratch.img mnt --create 1G

    Returns when the mount is up; a process in the background serves it until "zonefs-emu umount DIR" (or SIGTERM, or
    SIGINT). All other verbs work on IMG meanwhile. A mount that a killed process has left at DIR is unmounted first.

    Other options: ro, allow_other, allow_root, auto_unmount (unmount when the process dies), and those of
    mount(8) for every file system: noatime, nodev, noexec, nosuid, sync, nofail, _netdev, user, x-* and the like.
    """
    front_end = ZonefsFrontEnd(directory, ",".join(options))
    if size is not None and not image.exists():
        create_image(image, build_geometry(size=size), "")
        with open_target(image) as target:
            list(format_image(target, image, features="", label="", force=False))
    # The working directory of the process in the background is /.
    image = Path(os.path.realpath(image, strict=True))
    record_file = record_file and record_file.absolute()

    def serve(ready: Callable[[], None]) -> None:
        # A daemon's log is read later, so its lines have the time.
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
        try:
            known.run(
                image, [front_end], ready=ready, owner="zonefs-emu mount", record_file=record_file,
                readonly=front_end.readonly, timing=(timing, time_scale),
            )  # fmt: skip
        except OSError as error:
            if error.filename == str(image) and os.access(image, os.R_OK) and not os.access(image, os.W_OK):
                message = f"{host_sentence(error)}; an image that cannot be written can be mounted with -o ro"
                raise UsageError(message, exit_code=1) from None
            raise

    if foreground:
        serve(lambda: say(f"{image} is mounted at {front_end.place}", err=True))
    else:
        run_in_background(serve, log=rendezvous.log_path(image))
