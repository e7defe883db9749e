"""fio in a Linux guest on disks that are attached there, beside peers in that guest.

Ours are by ublk, VDUSE and NVMe over TCP. Peers are tcmu-runner's file_zbc (tcmu.py), null_blk, QEMU's emulated NVMe
ZNS drive, and the kernel's own NVMe target, nvmet, over TCP on another null_blk.

tcmu-runner does the same work in the same place as ublk and VDUSE, so their goals are relative to it. Our process runs
in the guest too, so without hardware acceleration its interpreter and its copies are emulated, instruction by
instruction. QEMU's drive is compiled code of the host, and null_blk a driver of the guest's own kernel without any
other process. Neither has a goal: they show what is left to reach. The emulated processor copies each byte of null_blk
once, as for every disk that is served inside the guest. At 128 KiB and depth 32 this copy alone takes twice QEMU's
time.
"""

import json
import shlex
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bench.harness import PROJECT, Row, program, progress, spread
from bench.tcmu import tcmu_disk
from tools.guest.kit import obtain_kit
from tools.guest.machine import Guest, zns_drive
from tools.guest.nvmet import target_script

ZONE_MIB: Final = 64
NR_ZONES: Final = 8
GOAL: Final = 1.0
NVME: Final = "QEMU's NVMe ZNS"
NULL_BLK: Final = "null_blk"
TCMU: Final = "tcmu-runner's file_zbc"
NVMET: Final = "nvmet-tcp on null_blk"
#: Which peers each of ours has.
PEERS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"ublk": (TCMU, NULL_BLK, NVME), "vduse": (TCMU, NULL_BLK, NVME), "nvme-tcp": (NVMET,)}
)
SECONDS: Final = 2
#: Filled once for the random reads; sequential writes go to the first two, which fio empties each time round.
READ_ZONE: Final = 4
MODULES: Final = ("nvme", "nvme_tcp", "nvmet_tcp", "ublk_drv", "vduse", "virtio_vdpa", "virtio_blk")

WHAT: Final = tuple(
    (f"{name}, depth {depth}", direction, f"{options} --iodepth={depth}")
    for name, direction, options in (
        ("4 KiB sequential write", "write", f"--rw=write --bs=4k --offset=0 --size={2 * ZONE_MIB}M"),
        ("128 KiB sequential write", "write", f"--rw=write --bs=128k --offset=0 --size={2 * ZONE_MIB}M"),
        (
            "4 KiB random read", "read",
            f"--rw=randread --bs=4k --offset={READ_ZONE * ZONE_MIB}M --size={ZONE_MIB}M",
        ),
    )
    for depth in (1, 32)
)  # fmt: skip

_PRELUDE: Final = f"""
export PYTHONPATH={PROJECT} PYTHONDONTWRITEBYTECODE=1
Z() {{ {sys.executable} -m zonefs_emu "$@"; }}
mkdir -p /run/bench; cd /run/bench
"""


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure sequential writes and random reads; the same figures of a peer count for both of ours."""
    plain = scratch / "zns.raw"
    with plain.open("wb") as file:
        file.truncate(NR_ZONES * ZONE_MIB << 20)
    arguments = zns_drive(plain, zone_size_mib=ZONE_MIB)
    with (
        Guest(obtain_kit(print), qemu_arguments=arguments, memory_mib=2560) as guest,
        tcmu_disk(guest, zone_mib=ZONE_MIB, nr_zones=NR_ZONES) as tcmu,
    ):
        for module in MODULES:
            guest.load(module)
        guest.load(
            "null_blk", "nr_devices=2", "zoned=1", "memory_backed=1", "bs=4096",
            "gb=1", f"zone_size={ZONE_MIB}",
        )  # fmt: skip
        guest.wait_until("test -b /dev/nvme0n1")
        peers = {TCMU: tcmu, NULL_BLK: "/dev/nullb0", NVME: "/dev/nvme0n1"}
        peers[NVMET] = guest.run(target_script("/dev/nullb1")).stdout.strip()
        ours = {via: attach(guest, via) for via in PEERS}
        for node in (*ours.values(), *peers.values()):
            fio(guest, node, f"--rw=write --bs=128k --offset={READ_ZONE * ZONE_MIB}M --size={ZONE_MIB}M", "write")
        found = []
        for what, direction, options in WHAT:
            figures: dict[str, list[float]] = {name: [] for name in (*ours, *peers)}
            for number in range(runs):
                progress(f"attach: {what}, {number + 1} of {runs}")
                for name, node in (ours | peers).items():
                    timed = f"{options} --time_based --runtime={SECONDS}"
                    figures[name].append(fio(guest, node, timed, direction))
            found += [_row(via, what, figures, peer) for via in ours for peer in PEERS[via]]
        guest.run(f"{_PRELUDE}for via in {' '.join(PEERS)}; do Z detach $via.img; done", timeout=120)
    return found


def attach(guest: Guest, via: str, *, name: str = "", change: str = "") -> str:
    """Make an image in the guest's memory, attach it, return its node. *change*: see :func:`bench.harness.program`."""
    image = f"{name or via}.img"
    shape = f"--size {NR_ZONES * ZONE_MIB}M --zone-size {ZONE_MIB}M --block-size 4096"
    script = f"{_PRELUDE}Z create {image} {shape} >&2; {shlex.join(program(change))} attach {image} --via {via}"
    return guest.run(script, timeout=120).stdout.strip()


def fio(guest: Guest, node: str, options: str, direction: str) -> float:
    """Run fio in the guest on the zoned disk *node*; requests a second."""
    fixed = "--name=bench --zonemode=zbd --direct=1 --ioengine=libaio --output-format=json"
    output = guest.run(f"fio {fixed} --filename={node} {options}", timeout=300).stdout
    job = json.loads(output[output.index("{") :])["jobs"][0]
    return float(job[direction]["iops"])


def _row(via: str, what: str, figures: Mapping[str, list[float]], peer: str) -> Row:
    return Row(
        area=via,
        what=what,
        unit="/s",
        ours=statistics.median(figures[via]),
        peer=peer,
        peers=statistics.median(figures[peer]),
        ratios=tuple(a / b for a, b in zip(figures[via], figures[peer], strict=True)),
        noise=spread(figures[peer]),
        goal=GOAL if peer == TCMU else None,
    )
