"""``attach``: an image as a block device of this host, or as a device for a virtual machine."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import (
    FILE,
    TEXT,
    info_of,
    json_option,
    refuse_options_beside,
    refuse_options_without,
    say,
    say_json,
    timing_options,
)
from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.background import run_in_background
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends import known
from zonefs_emu.front_ends.attached import attached, attached_nodes
from zonefs_emu.front_ends.known import open_target

_QEMU: Final = (
    "qemu-system-x86_64 -machine q35,memory-backend=mem -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on "
    "-device vhost-vdpa-device-pci,vhostdev={node}"
)


@click.command()
@click.argument("image", metavar="[IMG]", type=FILE, required=False)
@click.option(
    "--via",
    type=click.Choice(["auto", "ublk", "vduse", "nvme-tcp"]),
    default="auto",
    show_default=True,
    help="The kernel's driver to use; auto takes ublk if it is available.",
)
@click.option("--name", type=TEXT, help="The device's name: a number for ublk (3 is /dev/ublkb3), a word for vduse.")
@click.option(
    "--for",
    "user",
    type=click.Choice(["host", "vm"]),
    default="host",
    show_default=True,
    help="The user of the device: this host, or a virtual machine.",
)
@click.option("--queues", "nr_queues", metavar="N", type=click.IntRange(1, 16), default=1, help="Number of queues.")
@click.option("--foreground", is_flag=True, help="Stay in the foreground, and report on stderr when the device exists.")
@timing_options
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
    timing: str,
    time_scale: float,
    list_: bool,
    as_json: bool,
) -> None:
    """Attach IMG as a zoned block device, and print its node.

    \b
    Examples:
      zonefs-emu attach small.img
      zonefs-emu attach small.img --via vduse --for vm
      zonefs-emu attach zns.img --via nvme-tcp
      zonefs-emu attach --list

    Needs root and Linux 6.6 or later with the module ublk_drv, 6.4 with vduse, or 6.0 with nvme_tcp. A process in the
    background serves the device until "zonefs-emu detach". If that process is killed, attach IMG again: the device
    continues, with the requests that were in flight. An NVMe host sends these again.
    """
    if list_:
        if image is not None:
            message = "--list lists what is attached of all images: give no IMG with it"
            raise UsageError(message)
        refuse_options_beside(("list_", "as_json"), "beside --list")
        _list(as_json=as_json)
        return
    if image is None:
        message = "the image is missing: name the image to attach, or give --list"
        raise UsageError(message)
    refuse_options_without(("as_json",), ("list_",), "--list")
    # Imported here because it loads all ways to the kernel, which --list does not need.
    from zonefs_emu.front_ends.block_device import make_front_end  # noqa: PLC0415

    front_end = make_front_end(image, via, name=name, for_vm=user == "vm", nr_queues=nr_queues)
    # The process in the background has / as its directory.
    image = Path(os.path.realpath(image, strict=True))

    def serve(ready: Callable[[], None]) -> None:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        known.run(image, [front_end], ready=ready, owner="zonefs-emu attach", timing=(timing, time_scale))

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


def _list(*, as_json: bool) -> None:
    devices = list(attached())
    if as_json:
        say_json([{"node": each.node, "via": each.via, "image": each.image, "pid": each.pid} for each in devices])
        return
    for each in devices:
        say(f"{each.node:<20} {each.via:<8} {each.pid:>8}  {each.image}")
