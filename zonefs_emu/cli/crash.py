"""``crash``: the images that a power cut could have left."""

import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import FILE, image_argument, json_option, refuse_options_beside, say, say_json
from zonefs_emu.cli.progress import progress
from zonefs_emu.daemon.client import Target, call
from zonefs_emu.daemon.fault_verbs import NR_IMAGES_MAX
from zonefs_emu.daemon.framing import Json
from zonefs_emu.errors import PeerError, UsageError, ZonedError
from zonefs_emu.front_ends.known import open_target

_POLL_S: Final = 0.1
_AFTER: Final = re.compile(r"after\s+([0-9]{1,18})\s+writes?")
_ALL_COUNT: Final = 1000


@click.command()
@image_argument
@click.option("--at", default="now", show_default=True, metavar="WHEN", help="now, 'after N writes', or 'every flush'.")
@click.option("--out", "directory", type=FILE, metavar="DIR", help="Directory for the images: cut-0000.img, ...")
@click.option(
    "--watch/--no-watch", "watch", default=None, help="Begin to record each write, for later cuts; or end it."
)
@click.option(
    "--count",
    type=click.IntRange(1, NR_IMAGES_MAX),
    metavar="N",
    help="How many images: 1, or with --all at most 1000.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Seed of the first image."
)
@click.option("--torn", is_flag=True, help="The write at the cut may be there in part, in whole blocks.")
@click.option("--reorder", is_flag=True, help="Each zone, and each conventional write, is kept or lost by itself.")
@click.option("--all", "every", is_flag=True, help="Every outcome in order instead of random ones.")
@json_option
def crash(
    *,
    image: Path,
    at: str,
    directory: Path | None,
    watch: bool | None,
    count: int | None,
    seed: int,
    torn: bool,
    reorder: bool,
    every: bool,
    as_json: bool,
) -> None:
    """Write images that a power cut could have left of IMG. IMG itself is not changed.

    \b
    Examples:
      zonefs-emu crash small.img --watch
      zonefs-emu crash small.img --out cuts --count 20 --torn --reorder
      zonefs-emu crash small.img --at 'after 100 writes' --out cuts --all
      zonefs-emu crash small.img --at 'every flush' --out cuts --count 50

    Each image has everything that was flushed, and the writes after that up to some moment (or zone by zone, with
    --reorder). Write pointers never lie beyond data, and open zones are closed. 'every flush' cuts at the beginning of
    each flush, one image each. Only an image that is mounted or served can lose anything.

    The single writes, and the earlier content of conventional zones, are known from --watch on, or from the beginning
    of this command. All earlier writes to a zone since the last flush count as one. Watching costs time with each write
    and memory until the next flush.
    """
    if watch is not None:
        refuse_options_beside(("watch", "as_json"), f"beside --{'' if watch else 'no-'}watch, which writes no images")
        _watch(image, on=watch)
        return
    if directory is None:
        message = "the directory for the images is missing: give --out DIR"
        raise UsageError(message)
    moment, nr_writes = _moment(at)
    if every:
        refuse_options_beside(
            ("directory", "at", "count", "torn", "every", "as_json"), "beside --all, which takes the outcomes in order"
        )
        if moment == "every-flush":
            message = "--all writes all outcomes of one moment, and --at 'every flush' one outcome of each: give one"
            raise UsageError(message)
    request: dict[str, Json] = {
        "verb": "crash",
        "directory": str(directory.absolute()),
        "at": moment,
        "nr_writes": nr_writes,
        "count": count or (_ALL_COUNT if every else 1),
        "seed": seed,
        "torn": torn,
        "reorder": reorder,
        "every": every,
    }
    with open_target(image, readonly=True) as target:
        if moment != "now":
            _require_live(target, image, "leave --at away")
        # The number of outcomes of --all is not known before.
        total = None if every else count or 1
        with _ended(target, image), progress(total, lambda number: f"{number} images") as show:
            reply, _ = call(target, request)
            images = _images(reply)
            while not reply["done"]:
                reply, _ = call(target, {"verb": "crash-results", "after": len(images)})
                further = _images(reply)
                images += further
                show(len(images))
                if not further:
                    time.sleep(_POLL_S)
    if as_json:
        say_json({"images": images})
        return
    for made in images:
        assert isinstance(made, dict)
        say(f"{made['path']}: {_sentence(made)}")


def _images(reply: dict[str, Json]) -> list[Json]:
    images = reply["images"]
    assert isinstance(images, list)
    return images


def _watch(image: Path, *, on: bool) -> None:
    with open_target(image) as target:
        _require_live(target, image, "there is nothing to watch")
        call(target, {"verb": "crash-watch", "on": on})


def _require_live(target: Target, image: Path, otherwise: str) -> None:
    if not target.live:
        message = f"nothing writes to {image}: mount or serve it, or {otherwise}"
        raise UsageError(message, exit_code=1)


@contextmanager
def _ended(target: Target, image: Path) -> Iterator[None]:
    """End the plan of *target* when the context is left.

    A daemon that is gone, or answers nonsense, has none. One that refuses has none either, or that of another client.
    """
    try:
        yield
    except (PeerError, UsageError):
        raise
    except BaseException:
        # Over a further connection, because an interrupt may have come before a reply was read.
        with suppress(ZonedError), _again(target, image) as another:
            _end(another)
        raise
    _end(target)


def _again(target: Target, image: Path) -> AbstractContextManager[Target]:
    return open_target(image) if target.live else nullcontext(target)


def _end(target: Target) -> None:
    call(target, {"verb": "crash-end"})


def _moment(at: str) -> tuple[str, int]:
    words = " ".join(at.split())
    if words == "now":
        return "now", 1
    if words == "every flush":
        return "every-flush", 1
    if (match := _AFTER.fullmatch(words)) and int(match[1]):
        return "after-writes", int(match[1])
    message = f"--at '{at}' is not known: give now, 'after 100 writes' or 'every flush'"
    raise UsageError(message)


def _sentence(made: dict[str, Json]) -> str:
    if not made["writes"]:
        return "nothing was unflushed"
    torn = f", and {made['torn']} sectors of others" if made["torn"] else ""
    return f"{made['kept']} of {made['writes']} unflushed writes are there{torn}"
