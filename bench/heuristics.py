"""The gain of each heuristic: the same server with and without it.

* Virtqueues: a vhost-user server over libblkio.
* zonefs: a mount, with fio.
* ublk and vhost-user: two devices and two SCSI disks in one guest, with fio there.
* vfio-user: three drives in one guest, with fio there.

The servers run side by side and are measured in turn. A server without a heuristic runs the same code with one name
changed before it begins, so the product has no switch for the benchmark. A heuristic that stays below its goal, here
and in a guest, should be removed.
"""

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from bench.attach import READ_ZONE, ZONE_MIB, attach, fio
from bench.fuse import fio_job, mounted_zonefs
from bench.guest import serving, vfio_guest
from bench.harness import Row, compare
from bench.vhost import Disk, compile_loop, our_disk
from tools.guest.kit import obtain_kit
from tools.guest.machine import Guest

GOAL: Final = 1.05
_RANDOM_READ: Final = "4 KiB random read, depth {}"
_SLEEPING: Final = "sleeping at once"
_EACH_AT_ONCE: Final = "each at once"

#: Heuristics of virtqueues: the depth at which the gain should show, what the server without it does, and the
#: statements that make it do so.
HEURISTICS: Final = (
    (1, _SLEEPING, "import zonefs_emu.virtqueue.queue_server as module\nmodule._LOOK_NS_MAX = 0"),
    (4, _SLEEPING, "import zonefs_emu.virtqueue.queue_server as module\nmodule._LOOK_NS_MAX = 0"),
)
_FUSE_SLEEPING: Final = "import zonefs_emu.fs.waiting as module\nmodule._LOOK_NS_MAX = 0"
_VFIO_SLEEPING: Final = "import zonefs_emu.vfio_user.pci_drive as module\nmodule._LOOK_NS_MAX = 0"
_AT_ONCE: Final = "import zonefs_emu.polling as module\nmodule.Gathering.begin = lambda self: None"
_UBLK_SLEEPING: Final = "import zonefs_emu.ublk.io_queue as module\nmodule._LOOK_NS_MAX = 0"


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure reads with and without each heuristic."""
    return [
        *_virtqueues(scratch, runs),
        *_fuse(scratch, runs),
        *_stock_guest(scratch, runs),
        *_vfio_user(scratch, runs),
    ]


def _virtqueues(scratch: Path, runs: int) -> list[Row]:
    library, loop = obtain_kit(print).library("libblkio.so.1"), compile_loop(scratch)
    found = []
    with ExitStack() as stack:
        ours = stack.enter_context(our_disk(scratch, library, loop, name="all"))
        ours.fill()
        for number, (depth, without, change) in enumerate(HEURISTICS):
            with our_disk(scratch, library, loop, name=f"without-{number}", change=change) as peer:
                peer.fill()
                os.sync()  # the host would otherwise write back while others are measured

                def measure(disk: Disk, depth: int = depth) -> float:
                    return disk.read(15_000 if depth == 1 else 60_000, depth)

                row = compare(
                    "heuristics", _RANDOM_READ.format(depth), "/s", partial(measure, ours), peer=without,
                    peers=partial(measure, peer), runs=runs, goal=GOAL,
                )  # fmt: skip
                found.append(row)
    return found


def _fuse(scratch: Path, runs: int) -> list[Row]:
    with (
        mounted_zonefs(scratch, name="looking") as ours,
        mounted_zonefs(scratch, name="sleeping", change=_FUSE_SLEEPING) as peer,
    ):
        return [
            compare(
                "heuristics", f"zonefs: 4k sequential {direction}", "KiB/s",
                fio_job(ours, direction, "4k", zoned=True), peer=_SLEEPING,
                peers=fio_job(peer, direction, "4k", zoned=True), runs=runs, goal=GOAL,
            )
            for direction in ("write", "read")
        ]  # fmt: skip


def _stock_guest(scratch: Path, runs: int) -> list[Row]:
    """Measure ublk, which needs root and its module, and SCSI disks of the guest."""
    disks = {"gathering": "", "at-once": _AT_ONCE}
    with ExitStack() as stack:
        for name, change in disks.items():
            options = "--vhost-user-scsi", str(scratch / f"{name}.sock")
            stack.enter_context(serving(scratch / f"{name}.img", *options, change=change))
        guest = stack.enter_context(Guest(obtain_kit(print), memory_mib=2048))
        guest.load("ublk_drv")
        looking = attach(guest, "ublk", name="looking")
        sleeping = attach(guest, "ublk", name="sleeping", change=_UBLK_SLEEPING)
        gathering, at_once = (guest.attach("scsi", scratch / f"{name}.sock").path for name in disks)
        return [
            _in_guest("ublk", guest, looking, sleeping, runs=runs),
            _in_guest("vhost-user SCSI", guest, gathering, at_once, runs=runs, depth=32, without=_EACH_AT_ONCE),
        ]


def _vfio_user(scratch: Path, runs: int) -> list[Row]:
    drives = {"drive": "", "drive-sleeping": _VFIO_SLEEPING, "drive-at-once": _AT_ONCE}
    with vfio_guest(scratch, drives) as (guest, nodes):
        drive, sleeping, at_once = (nodes[serial] for serial in drives)
        return [
            _in_guest("vfio-user", guest, drive, sleeping, runs=runs),
            _in_guest("vfio-user", guest, drive, at_once, runs=runs, depth=32, without=_EACH_AT_ONCE),
        ]


def _in_guest(
    via: str, guest: Guest, node: str, other: str, *, runs: int, depth: int = 1, without: str = _SLEEPING
) -> Row:
    """Compare the device at *node* with that at the node *other*, which does what *without* says."""
    place = f"--offset={READ_ZONE * ZONE_MIB}M --size={ZONE_MIB}M"
    read = f"--rw=randread --bs=4k --iodepth={depth} {place} --time_based --runtime=2"
    for each in (node, other):
        fio(guest, each, f"--rw=write --bs=128k {place}", "write")
    return compare(
        "heuristics", f"{via}: {_RANDOM_READ.format(depth)}", "/s", partial(fio, guest, node, read, "read"),
        peer=without, peers=partial(fio, guest, other, read, "read"), runs=runs, goal=GOAL,
    )  # fmt: skip
