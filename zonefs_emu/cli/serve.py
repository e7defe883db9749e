"""``serve``: an image as a disk for virtual machines."""

import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import (
    FILE,
    record_option,
    refuse_options_beside,
    refuse_options_without,
    say,
    timing_options,
)
from zonefs_emu.daemon.session import FrontEnd
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends import known
from zonefs_emu.front_ends.nvme_tcp import LOOPBACK, NvmeTcpFrontEnd, exposed_key_files, make_access, safe_address
from zonefs_emu.front_ends.vfio_user import VfioUserFrontEnd
from zonefs_emu.front_ends.vhost_user import (
    BLK_CONFIG_BYTES,
    MakeVirtioDevice,
    VhostUserFrontEnd,
    make_blk_device,
    make_scsi_host,
)
from zonefs_emu.front_ends.zonefs import ZonefsFrontEnd

_MEMORY: Final = [
    "-m",
    "1G",
    "-object",
    "memory-backend-memfd,id=memory,size=1G,share=on",
    "-machine",
    "q35,memory-backend=memory",
]
#: Parameters that concern some front-ends only, the parameters that ask for these, and what the user knows them by.
_CONCERNS: Final = (
    (("hosts", "host_keys", "controller_key", "tls_keys", "insecure"), ("nvme",), "--nvme-tcp"),
    (("nqn", "serial"), ("nvme", "vfio"), "an NVMe drive"),
    (("msi",), ("vfio",), "--vfio-user"),
    (("mount_options",), ("directory",), "--mount"),
    (("device",), ("socket_path", "fd"), "--socket-path or --fd"),
)
#: The types for managers such as libvirt. Source: QEMU, docs/interop/vhost-user.json.
_TYPES: Final = {"scsi": "scsi", "blk": "block"}


def qemu_command(scsi: Path | None, blk: Path | None, vfio: Path | None, nr_queues: int) -> str:
    """Return a QEMU command line that uses the sockets, ready to paste."""
    words = ["qemu-system-x86_64", "-accel", "kvm", "-accel", "tcg", *_MEMORY]
    if scsi is not None:
        # The guest continues when the back-end is started again.
        words += ["-chardev", f"socket,id=scsi0,path={_escape(scsi)},reconnect-ms=1000"]
        words += ["-device", "vhost-user-scsi-pci,chardev=scsi0"]
    if blk is not None:
        words += ["-chardev", f"socket,id=blk0,path={_escape(blk)}"]
        words += [
            "-device",
            f"vhost-user-test-device-pci,chardev=blk0,virtio-id=2,num_vqs={nr_queues},config_size={BLK_CONFIG_BYTES}",
        ]
    if vfio is not None:
        socket = {"path": str(vfio.absolute()), "type": "unix"}
        words += ["-device", json.dumps({"driver": "vfio-user-pci", "socket": socket})]
    return shlex.join(words)


def _escape(path: Path) -> str:
    """Return *path* as the value of a QEMU option: a comma is doubled."""
    return str(path.absolute()).replace(",", ",,")


def capabilities(kind: str) -> str:
    """Return the capabilities of this program for a manager. Source: vhost-user.rst, "Backend programs"."""
    return json.dumps({"type": _TYPES[kind], "features": ["blk-file"] if kind == "blk" else []})


def descriptor(kind: str) -> str:
    """Return the file that describes this program to managers."""
    return json.dumps(
        {
            "description": f"zonefs-emu: a zoned {_TYPES[kind]} device",
            "type": _TYPES[kind],
            "binary": str(_program(f"zonefs-emu-vhost-user-{kind}")),
            "tags": ["zoned", "host-managed"],
        },
        indent=2,
    )


def _program(name: str) -> Path:
    """Return the path of the program *name* of this package: beside this program or its interpreter, or by PATH."""
    beside = Path(sys.argv[0]).absolute().with_name(name)
    for path in (beside, Path(sys.executable).with_name(name)):
        if path.exists():
            return path
    return Path(shutil.which(name) or beside)


def _images_to_serve(images: Sequence[Path], blk_file: Path | None, *, only_nvme: bool) -> Sequence[Path]:
    """Return the images to be served: *images*, or *blk_file*, the manager's option for one image.

    Raises:
        UsageError: both or neither were given, one is given twice, or several are not served over NVMe only.
    """
    if bool(images) == (blk_file is not None):
        message = "give one image: IMG, or --blk-file IMG"
        raise UsageError(message)
    if len(images) > 1 and not only_nvme:
        message = (
            "several images can only be served as namespaces of an NVMe drive: give --nvme-tcp, --vfio-user, or both"
        )
        raise UsageError(message)
    if (image := _repeated(images)) is not None:
        message = f"{image} is given twice: each namespace needs an image of its own"
        raise UsageError(message)
    return images if blk_file is None else (blk_file,)


def _repeated(paths: Iterable[Path]) -> Path | None:
    """Return the first of *paths* that is the same file as one before it, or None."""
    seen: set[str] = set()
    for path in paths:
        # Not Path.resolve(), which raises RuntimeError for a loop of links. Opening the file reports the loop.
        resolved = os.path.realpath(path)
        if resolved in seen:
            return path
        seen.add(resolved)
    return None


@click.command()
@click.argument("images", metavar="[IMG]...", type=FILE, nargs=-1)
@click.option("--vhost-user-scsi", "scsi", type=FILE, multiple=True, metavar="SOCK",
              help="Offer a virtio-scsi host with a ZBC disk; may be given for each of several guests.")  # fmt: skip
@click.option("--vhost-user-blk", "blk", type=FILE, multiple=True, metavar="SOCK",
              help="Offer a virtio-blk disk with zones; may be given for each of several guests.")  # fmt: skip
@click.option("--vfio-user", "vfio", type=FILE, multiple=True, metavar="SOCK",
              help="Offer an NVMe ZNS drive to a guest of QEMU; may be given for each of several guests.")  # fmt: skip
@click.option("--msi", is_flag=True,
              help="Give the drives of --vfio-user MSI interrupts instead of MSI-X, so that QEMU 11.1 can unplug them; "
              "Linux then uses one queue.")  # fmt: skip
@click.option("--nvme-tcp", "nvme", is_flag=False, flag_value=LOOPBACK, multiple=True, metavar="[ADDRESS[:PORT]]",
              help=f"Offer an NVMe ZNS drive over TCP; at {LOOPBACK} if no address is given.")  # fmt: skip
@click.option("--nqn", metavar="NQN", default="", help="Name of the NVMe subsystem. [default: from the image's UUID]")
@click.option("--serial", metavar="TEXT", default="", help="Serial number of the NVMe drive. [default: from the UUID]")
@click.option("--allow-host", "hosts", multiple=True, metavar="NQN",
              help="Host that may connect over NVMe/TCP; may be given several times. [default: all hosts]")  # fmt: skip
@click.option("--host-key", "host_keys", multiple=True, metavar="NQN=@FILE",
              help="Host that may connect if it has the key in FILE (DH-HMAC-CHAP); may be given several times. "
              "NQN=KEY gives the key itself, which all users can then see in ps.")  # fmt: skip
@click.option("--controller-key", metavar="@FILE", default="",
              help="Key with which the drive proves its name to hosts that have a key and ask for proof.")  # fmt: skip
@click.option("--tls-key", "tls_keys", multiple=True, metavar="[NQN=]@FILE",
              help="Encrypt NVMe/TCP by TLS, with the key in FILE for the host NQN or for all hosts; may be given "
              "several times. Needs Python 3.13.")  # fmt: skip
@click.option("--insecure", is_flag=True, help="Let other machines connect over NVMe/TCP, without authentication.")
@click.option("--mount", "directory", type=FILE, metavar="DIR", help="Also mount the zonefs on IMG at DIR.")
@record_option
@timing_options
@click.option("--mount-options", default="", metavar="OPTIONS", help="Options of that mount; see mount.")
@click.option("--queues", "nr_queues", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N",
              help="Queues of the virtio-blk disk.")  # fmt: skip
@click.option("--strict-features", "strict", is_flag=True,
              help="Drop a virtio-blk driver that does not accept zones, instead of tolerating it.")  # fmt: skip
@click.option("--device", type=click.Choice(["scsi", "blk"]), default="scsi", show_default=True,
              help="What --socket-path and --fd offer.")  # fmt: skip
@click.option("--socket-path", type=FILE, metavar="SOCK", help="For managers: the socket of --device.")
@click.option("--fd", type=click.IntRange(min=0), metavar="N", help="For managers: an open socket for --device.")
@click.option("--blk-file", type=FILE, metavar="IMG", help="For managers: another way to give IMG.")
@click.option(
    "--print-capabilities",
    "show_capabilities",
    is_flag=True,
    help="For managers: print the capabilities of --device, as JSON.",
)
@click.option(
    "--print-descriptor",
    "show_descriptor",
    is_flag=True,
    help="Print the JSON file by which managers find --device; its place is share/qemu/vhost-user/.",
)
def serve(
    *, images: tuple[Path, ...], scsi: tuple[Path, ...], blk: tuple[Path, ...], vfio: tuple[Path, ...], msi: bool,
    nvme: tuple[str, ...], nqn: str, serial: str, hosts: tuple[str, ...], host_keys: tuple[str, ...],
    controller_key: str, tls_keys: tuple[str, ...], insecure: bool, directory: Path | None,
    record_file: Path | None, timing: str, time_scale: float, mount_options: str, nr_queues: int, strict: bool,
    device: str,
    socket_path: Path | None, fd: int | None, blk_file: Path | None, show_capabilities: bool, show_descriptor: bool,
) -> None:  # fmt: skip
    """Offer IMG to virtual machines at the socket SOCK, or to hosts over TCP, by any number of front-ends at once.

    Several images become one NVMe drive with a namespace for each, in their order.

    \b
    Examples:
      zonefs-emu serve small.img --vhost-user-scsi /tmp/zoned.sock
      zonefs-emu serve small.img --vhost-user-scsi /tmp/zoned.sock --mount mnt
      zonefs-emu serve zns.img --nvme-tcp
      zonefs-emu serve zns.img --nvme-tcp 0.0.0.0 --host-key nqn.2014-08.org.example:host=@key
      zonefs-emu serve zns.img --nvme-tcp 0.0.0.0 --tls-key nqn.2014-08.org.example:host=@tls.key
      zonefs-emu serve one.img two.img --nvme-tcp --nqn nqn.2014-08.org.example:drive
      zonefs-emu serve zns.img --vfio-user /tmp/zns.sock

    Prints the QEMU command line of each guest and the commands with which a host connects, and stays in the foreground
    until SIGTERM or SIGINT. After a kill and a restart, requests that a guest had in flight are executed exactly
    once; an NVMe/TCP host sends its commands again. Any QEMU has vhost-user-scsi. The zones of virtio-blk reach the
    guest with QEMU from 11.1 on, crosvm and libkrun. All other verbs work on IMG meanwhile.
    """
    if show_capabilities or show_descriptor:
        refuse_options_beside(
            ("device", "show_capabilities", "show_descriptor"),
            "beside --print-capabilities and --print-descriptor, which serve nothing",
        )
        click.echo(capabilities(device) if show_capabilities else descriptor(device))
        return
    for parameters, ways, what in _CONCERNS:
        refuse_options_without(parameters, ways, what)
    if device != "blk" and not blk:
        refuse_options_without(("nr_queues", "strict"), (), "a virtio-blk disk")
    only_nvme = not any((scsi, blk, socket_path, fd is not None, directory, record_file))
    images = tuple(_images_to_serve(images, blk_file, only_nvme=only_nvme))
    front_ends: list[FrontEnd] = []
    make_blk = partial(make_blk_device, nr_queues=nr_queues, strict=strict)
    makers: dict[str, MakeVirtioDevice] = {"scsi": make_scsi_host, "blk": make_blk}
    if socket_path is not None and fd is not None:
        message = "--socket-path and --fd exclude each other"
        raise UsageError(message)
    if fd is not None:
        front_ends.append(VhostUserFrontEnd(makers[device], fd=fd))
    if socket_path is not None:
        scsi, blk = ((*scsi, socket_path), blk) if device == "scsi" else (scsi, (*blk, socket_path))
    if (socket := _repeated((*scsi, *blk, *vfio))) is not None:
        message = f"the socket {socket} is given twice: each guest needs a socket of its own"
        raise UsageError(message)
    front_ends += [VhostUserFrontEnd(make_scsi_host, path=path.absolute()) for path in scsi]
    front_ends += [VhostUserFrontEnd(make_blk, path=path.absolute()) for path in blk]
    access = make_access(hosts, host_keys, controller_key, tls_keys)
    exposed = exposed_key_files(host_keys, controller_key, tls_keys)
    drives = [
        NvmeTcpFrontEnd(safe_address(place, access, insecure=insecure), nqn=nqn, serial=serial, access=access)
        for place in nvme
    ]
    front_ends += drives
    front_ends += [VfioUserFrontEnd(path.absolute(), nqn=nqn, serial=serial, is_msi=msi) for path in vfio]
    if not front_ends:
        message = (
            "there is nothing to serve: give --vhost-user-scsi SOCK, --vhost-user-blk SOCK, --vfio-user SOCK "
            "or --nvme-tcp"
        )
        raise UsageError(message)
    if directory is not None:
        front_ends.append(ZonefsFrontEnd(directory, mount_options))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)

    def ready() -> None:
        say(f"{', '.join(map(str, images))} is served; stop with Ctrl-C", err=True)
        for file in exposed:
            say(f"warning: every user of this machine can read the key in {file}: see chmod", err=True)
        for names in access.names_of_one_key():
            say(f"warning: {' and '.join(names)} have the same key: each can pose as the other", err=True)
        for sockets in zip_longest(scsi, blk, vfio):  # of each guest
            click.echo(qemu_command(*sockets, nr_queues))
        for drive in drives:
            for command in drive.host_commands():
                click.echo(shlex.join(command))

    path, *others = images
    known.run(
        path,
        front_ends,
        ready=ready,
        owner="zonefs-emu serve",
        record_file=record_file,
        others=others,
        timing=(timing, time_scale),
    )
