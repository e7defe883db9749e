"""The disks that suites run on, in one guest: ours by each way in for virtual machines, ours attached in it, and peers.

A suite can also run on a mount of this machine, without a guest (mounted.py).
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from tests.served import Served
from tools.guest.kit import Kit
from tools.guest.machine import Guest
from zonefs_emu.front_ends.vhost_user import BLK_CONFIG_BYTES

_ROOT: Final = Path(__file__).parents[2]
#: For a boot, a disk to appear, and two starts of Python: on a machine with other work an emulated processor is slow,
#: and a run that takes hours may wait for it.
_GUEST_SECONDS: Final = 1200


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The shape of a disk."""

    nr_zones: int
    zone_mib: int
    nr_conv: int
    """The conventional zones, the first ones; a ZNS drive has none."""
    block_bytes: int
    max_open_zones: int = 0
    """0 = no limit."""
    max_active_zones: int = 0
    """0 = no limit. A SCSI disk has none: ZBC knows no active zones."""
    capacity_mib: int = 0
    """The capacity of a sequential zone; 0 = its size."""
    fits_in_memory: bool = True
    """Whether scsi_debug can have it, which takes the memory for all of it at once."""

    @property
    def mib(self) -> int:
        """The size of the disk."""
        return self.nr_zones * self.zone_mib

    def words(self, *, conventional: bool) -> str:
        """Return the shape in words."""
        of_these = f", {self.nr_conv} of them conventional" if conventional and self.nr_conv else ""
        capacity = f" with a capacity of {self.capacity_mib} MiB" if self.capacity_mib else ""
        limit = f", at most {self.max_open_zones} open" if self.max_open_zones else ""
        limit += f" and {self.max_active_zones} active" if self.max_active_zones else ""
        zones = f"{self.nr_zones} zones of {self.zone_mib} MiB{capacity}{of_these}"
        return f"{zones}, blocks of {self.block_bytes} bytes{limit}"


SHAPES: Final[Mapping[str, Shape]] = MappingProxyType(
    {
        # Its limit is that of real disks.
        "small": Shape(nr_zones=256, zone_mib=1, nr_conv=16, block_bytes=4096, max_open_zones=128),
        # What QEMU's test expects: null_blk without parameters.
        "large": Shape(nr_zones=1000, zone_mib=256, nr_conv=0, block_bytes=512, fits_in_memory=False),
        # What a ZBC disk looks like, whose limits libzbc's tests go to.
        "limited": Shape(nr_zones=128, zone_mib=2, nr_conv=8, block_bytes=4096, max_open_zones=16),
        # As ZNS drives are: a capacity below the zone size, two limits.
        "capacity": Shape(
            nr_zones=64, zone_mib=4, nr_conv=0, block_bytes=512, max_open_zones=12, max_active_zones=14, capacity_mib=3
        ),
        # btrfs wants zones of 4 MiB or more; f2fs keeps its metadata in the conventional ones.
        "medium": Shape(nr_zones=128, zone_mib=16, nr_conv=16, block_bytes=4096, fits_in_memory=False),
        # XFS has its metadata in conventional zones, 300 MiB of them at least.
        "xfs": Shape(nr_zones=64, zone_mib=32, nr_conv=12, block_bytes=4096, fits_in_memory=False),
    }
)


def place_of(suite: str, name: str, shape: str) -> tuple[str, str, str]:
    """Return the place, as runs have it, of a suite on the disk *name* of the shape with the name *shape*."""
    return suite, name, SHAPES[shape].words(conventional=name not in ZNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A disk of a shape in the guest."""

    name: str
    ours: bool
    node: str
    conventional: bool
    """Whether it has the conventional zones of its shape."""


_FRONT_ENDS: Final[Mapping[str, Literal["scsi", "blk", "vfio"]]] = MappingProxyType(
    {"SCSI": "scsi", "virtio": "blk", "NVMe": "vfio"}
)
#: Devices of the guest's own kernel, whose daemon runs in the guest: the way in, and the modules that it needs.
_ATTACHED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "NVMe/TCP": ("nvme-tcp", "nvme_tcp"),
        "ublk": ("ublk", "ublk_drv"),
        "VDUSE": ("vduse", "vduse", "virtio_vdpa", "virtio_blk"),
    }
)
#: A zonefs that is mounted on this machine, without a guest and without a disk.
MOUNT: Final = "mount"
OURS: Final = (*_FRONT_ENDS, *_ATTACHED, MOUNT)
#: A ZNS drive has no conventional zones.
ZNS: Final = frozenset({"NVMe", "NVMe/TCP", "nvme-ns"})
PEERS: Final = ("null_blk", "scsi_debug", "nvme-ns")


@contextmanager
def machine(kit: Kit, names: tuple[str, ...], shape: Shape, directory: Path) -> Iterator[tuple[Guest, list[Device]]]:
    """Yield a guest with the disks *names* of one shape."""
    with ExitStack() as stack:
        served: dict[str, Served] = {}
        for name, front_end in _FRONT_ENDS.items():
            if name in names:
                place = directory / name
                place.mkdir()
                options = ["--serial", "ours"] if name == "NVMe" else []
                one = Served(place, create=create_options(name, shape), front_ends=[front_end], options=options)
                served[name] = stack.enter_context(one)
                one.wait_until_ready()
        arguments: list[str] = []
        if "NVMe" in names:
            socket = {"type": "unix", "path": str(served["NVMe"].vfio_socket)}
            arguments += ["-device", json.dumps({"driver": "vfio-user-pci", "socket": socket})]
        if "virtio" in names:
            # vhost-user-blk-pci of every QEMU hides the zones; the device that knows no kind of device does not.
            arguments += ["-chardev", f"socket,id=blk,path={served['virtio'].blk_socket}", "-device"]
            arguments += [
                f"vhost-user-test-device-pci,chardev=blk,virtio-id=2,num_vqs=1,config_size={BLK_CONFIG_BYTES}"
            ]
        if "nvme-ns" in names:
            arguments += _nvme_ns(directory / "nvme-ns.raw", shape)
        guest = stack.enter_context(Guest(kit, qemu_arguments=arguments, memory_mib=2048, timeout=_GUEST_SECONDS))
        yield guest, [_device(guest, name, shape, served) for name in names]


def _device(guest: Guest, name: str, shape: Shape, served: Mapping[str, Served]) -> Device:
    match name:
        case "SCSI":
            node = guest.attach("scsi", served[name].scsi_socket, timeout=_GUEST_SECONDS).path
        case "virtio":
            guest.load("virtio_blk")
            guest.wait_until("[ -b /dev/vda ]", timeout=_GUEST_SECONDS)
            node = "/dev/vda"
        case "NVMe":
            node = _nvme(guest, "ours")
        case "NVMe/TCP" | "ublk" | "VDUSE":
            node = _attached(guest, name, shape)
        case "nvme-ns":
            node = _nvme(guest, "peer")
        case "null_blk":
            node = _null_blk(guest, shape)
        case "scsi_debug":
            node = _scsi_debug(guest, shape)
        case _:
            message = f"no device is called {name}"
            raise AssertionError(message)
    return Device(name=name, ours=name in OURS, node=node, conventional=name not in ZNS)


def create_options(name: str, shape: Shape) -> str:
    """Return the options of ``zonefs-emu create``."""
    options = f"--size {shape.mib}M --zone-size {shape.zone_mib}M --block-size {shape.block_bytes}"
    if shape.nr_conv and name not in ZNS:
        options += f" --nr-conv {shape.nr_conv}"
    if shape.capacity_mib:
        options += f" --zone-capacity {shape.capacity_mib}M"
    if shape.max_open_zones:
        options += f" --max-open-zones {shape.max_open_zones}"
    # A ZBC disk has no limit of active zones.
    if shape.max_active_zones and name != "SCSI":
        options += f" --max-active-zones {shape.max_active_zones}"
    return options


def _attached(guest: Guest, name: str, shape: Shape) -> str:
    via, *modules = _ATTACHED[name]
    for module in modules:
        guest.load(module)
    command = f"{shlex.quote(sys.executable)} -m zonefs_emu"
    # The image lies in the guest's memory: its daemon is a process of the guest.
    script = f"""ip link set lo up
        export PYTHONPATH={shlex.quote(str(_ROOT))} PYTHONDONTWRITEBYTECODE=1 XDG_RUNTIME_DIR=/run/runtime
        mkdir -m 700 /run/runtime; mkdir /run/image; cd /run/image
        {command} create disk.img {create_options(name, shape)} >&2
        {command} attach disk.img --via {via}"""
    return guest.run(script, timeout=_GUEST_SECONDS).stdout.strip()


def _nvme(guest: Guest, serial: str) -> str:
    guest.load("nvme")
    find = f"grep -lw {serial} /sys/class/nvme/nvme*/serial"
    guest.wait_until(f"grep -qw {serial} /sys/class/nvme/nvme*/serial", timeout=_GUEST_SECONDS)
    number = guest.run(find).stdout.strip().removeprefix("/sys/class/nvme/nvme").removesuffix("/serial")
    guest.wait_until(f"[ -b /dev/nvme{number}n1 ]", timeout=_GUEST_SECONDS)
    return f"/dev/nvme{number}n1"


def _nvme_ns(image: Path, shape: Shape) -> list[str]:
    with image.open("wb") as file:
        file.truncate(shape.mib << 20)
    blocks = f"logical_block_size={shape.block_bytes},physical_block_size={shape.block_bytes}"
    zones = f"zoned=true,zoned.zone_size={shape.zone_mib}M"
    if shape.capacity_mib:
        zones += f",zoned.zone_capacity={shape.capacity_mib}M"
    # It wants a limit of active zones with every limit of open ones.
    max_active = shape.max_active_zones or shape.max_open_zones
    limits = f"zoned.max_open={shape.max_open_zones},zoned.max_active={max_active}"
    return [
        *("-drive", f"file={image},id=zns,format=raw,if=none", "-device", "nvme,serial=peer,id=nvme"),
        *("-device", f"nvme-ns,drive=zns,bus=nvme,{blocks},{zones},{limits}"),
    ]


def _null_blk(guest: Guest, shape: Shape) -> str:
    guest.load("null_blk", "nr_devices=0")
    guest.run(
        f"""mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
        cd /sys/kernel/config/nullb; mkdir nullb0; cd nullb0
        echo 1 >zoned; echo {shape.block_bytes} >blocksize; echo {shape.mib} >size; echo {shape.zone_mib} >zone_size
        echo {shape.capacity_mib or shape.zone_mib} >zone_capacity; echo {shape.max_active_zones} >zone_max_active
        echo {shape.nr_conv} >zone_nr_conv; echo {shape.max_open_zones} >zone_max_open
        echo 1 >memory_backed; echo 1 >power"""
    )
    return "/dev/nullb0"


def _scsi_debug(guest: Guest, shape: Shape) -> str:
    before = guest.disks()
    guest.load("sd_mod")
    guest.load(
        "scsi_debug", "zbc=managed", f"dev_size_mb={shape.mib}", f"sector_size={shape.block_bytes}",
        f"zone_size_mb={shape.zone_mib}", f"zone_nr_conv={shape.nr_conv}", f"zone_max_open={shape.max_open_zones}",
        f"zone_cap_mb={shape.capacity_mib or shape.zone_mib}",
    )  # fmt: skip
    guest.wait_until('[ "$(ls /sys/block | wc -l)" -gt ' + str(len(before)) + " ]", timeout=_GUEST_SECONDS)
    (name,) = guest.disks() - before
    return f"/dev/{name}"


def commit() -> str:
    """Return the last commit that changed the emulator, with a mark if files of it differ from what is committed."""
    package = str(_ROOT / "zonefs_emu")
    found = _git("log", "-1", "--format=%h", "--", package).strip()
    return found + ("-dirty" if _git("status", "--porcelain", "--", package) else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=_ROOT, check=True, capture_output=True, text=True).stdout
