"""``attach``: an image as a block device of this host, or as a device for a virtual machine."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import FILE, TEXT, info_of, json_option, say, say_json
from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.background import run_in_background
from zonefs_emu.daemon.client import live_infos
from zonefs_emu.daemon.framing import Json
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends import known
from zonefs_emu.front_ends.known import open_target

_QEMU: Final = (
    "qemu-system-x86_64 -machine q35,memory-backend=mem -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on "
    "-device vhost-vdpa-device-pci,vhostdev={node}"
)


@click.command()
@click.argument("image", metavar="[IMG]", type=FILE, required=False)
@click.option(
    "--via",
    type=click.Choice(["auto", "ublk", "vduse"]),
    default="auto",
    show_default=True,
    help="By which of the kernel's drivers; auto takes ublk if it is there.",
)
@click.option("--name", type=TEXT, help="The device's name: a number for ublk (3 is /dev/ublkb3), a word for vduse.")
@click.option(
    "--for", "user", type=click.Choice(["host", "vm"]), default="host", show_default=True, help="Who uses it."
)
@click.option("--queues", "nr_queues", metavar="N", type=click.IntRange(1, 16), default=1, help="Number of queues.")
@click.option("--foreground", is_flag=True, help="Stay in the foreground, and say on stderr when the device is there.")
@click.option("--list", "list_", is_flag=True, help="List what is attached.")
@json_option
def attach(
    *,
    image: Path | None,
    via: str,
    name: str | None,
    user: str,
    nr_queues: int,
    foreground: bool,
    list_: bool,
    as_json: bool,
) -> None:
    """Attach IMG as a zoned block device, and print its node.

    \b
    Examples:
      zonefs-emu attach small.img
      zonefs-emu attach small.img --via vduse --for vm
      zonefs-emu attach --list

    Needs root and Linux 6.6 or later with the module ublk_drv, or 6.4 with vduse. A process in the background serves
    the device until "zonefs-emu detach". If that process is killed, attach IMG again: the device goes on where it was,
    with the requests that were in flight.
    """
    if list_:
        _list(as_json=as_json)
        return
    if image is None:
        msg = "name the image to attach, or ask for --list"
        raise UsageError(msg)
    # What these load takes a while, and no other verb needs it.
    from zonefs_emu.front_ends.block_device import (  # noqa: PLC0415
        BlockFrontEnd,
        check_name,
        choose,
        geometry_of,
        left_behind,
    )
    from zonefs_emu.vduse.vdpa_bus import Driver  # noqa: PLC0415

    driver = Driver.VM if user == "vm" else Driver.HOST
    if driver is Driver.VM and via == "ublk":
        msg = (
            "ublk makes devices of the host only: give its node to QEMU with -blockdev host_device, or use --via vduse"
        )
        raise UsageError(msg)
    with open_target(image, readonly=True) as target:
        info = info_of(target)
        if target.live:
            msg = f"{image} is held by process {info['pid']} already"
            raise UsageError(msg, exit_code=1)
    left = left_behind(image, str(info["uuid"]))
    way = left[0][0].via if left else choose(via, driver, geometry_of(info))
    check_name(way, name)
    # The process in the background has / as its directory.
    image = Path(os.path.realpath(image, strict=True))
    front_end = left[0][0] if left else BlockFrontEnd(way, name=name, driver=driver, nr_queues=nr_queues)

    def serve(ready: Callable[[], None]) -> None:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        known.run(image, [front_end], ready=ready, owner="zonefs-emu attach")

    if foreground:
        serve(lambda: say(f"{image} is attached as {front_end.node}", err=True))
        return
    run_in_background(serve, log=rendezvous.log_path(image))
    with open_target(image, readonly=True) as target:
        node = attached_nodes(info_of(target))[0]
    if "vhost-vdpa" in node:
        click.echo(_QEMU.format(node=node))
    else:
        click.echo(node)


def attached_nodes(info: dict[str, Json]) -> list[str]:
    """Return the nodes of the devices in *info*, a daemon's answer."""
    front_ends = info["front_ends"]
    assert isinstance(front_ends, list)
    return [str(each["where"]) for each in front_ends if isinstance(each, dict) and each["name"] in ("ublk", "vduse")]


def _list(*, as_json: bool) -> None:
    rows: list[dict[str, Json]] = []
    for info in live_infos():
        front_ends = info["front_ends"]
        assert isinstance(front_ends, list)
        rows += [
            {"node": each["where"], "via": each["name"], "image": info["path"], "pid": info["pid"]}
            for each in front_ends
            if isinstance(each, dict) and each["name"] in ("ublk", "vduse")
        ]
    if as_json:
        say_json(list(rows))
        return
    for row in rows:
        say(f"{row['node']:<20} {row['via']:<6} {row['pid']:>8}  {row['image']}")
