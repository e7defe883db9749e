"""The disks that suites run on, in one guest: ours by each way in for virtual machines, and the peers."""

import json
import subprocess
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a disk looks like; no limit of open zones."""

    nr_zones: int
    zone_mib: int
    nr_conv: int
    """The conventional zones, the first ones; a ZNS drive has none."""
    block_bytes: int

    @property
    def mib(self) -> int:
        """The size of the disk."""
        return self.nr_zones * self.zone_mib

    def words(self, *, conventional: bool) -> str:
        """Return the shape in words."""
        of_these = f", {self.nr_conv} of them conventional" if conventional and self.nr_conv else ""
        return f"{self.nr_zones} zones of {self.zone_mib} MiB{of_these}, blocks of {self.block_bytes} bytes"


SHAPES: Final[Mapping[str, Shape]] = MappingProxyType(
    {
        "small": Shape(nr_zones=256, zone_mib=1, nr_conv=16, block_bytes=4096),
        # What QEMU's test expects: null_blk without parameters.
        "large": Shape(nr_zones=1000, zone_mib=256, nr_conv=0, block_bytes=512),
    }
)


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
OURS: Final = tuple(_FRONT_ENDS)
PEERS: Final = ("null_blk", "scsi_debug", "nvme-ns")


@contextmanager
def machine(kit: Kit, names: tuple[str, ...], shape: Shape, directory: Path) -> Iterator[tuple[Guest, list[Device]]]:
    """Yield a guest with the disks *names* of one shape.

    scsi_debug keeps its data in memory that is taken at once, so it is left out where that is more than the guest has.
    """
    with ExitStack() as stack:
        served: dict[str, Served] = {}
        create = f"--size {shape.mib}M --zone-size {shape.zone_mib}M --block-size {shape.block_bytes}"
        for name, front_end in _FRONT_ENDS.items():
            if name in names:
                conv = f" --nr-conv {shape.nr_conv}" if shape.nr_conv and name != "NVMe" else ""
                place = directory / name
                place.mkdir()
                options = ["--serial", "ours"] if name == "NVMe" else []
                one = Served(place, create=create + conv, front_ends=[front_end], options=options)
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
        guest = stack.enter_context(Guest(kit, qemu_arguments=arguments, memory_mib=1536))
        yield guest, [_device(guest, name, shape, served) for name in names]


def _device(guest: Guest, name: str, shape: Shape, served: Mapping[str, Served]) -> Device:
    match name:
        case "SCSI":
            node = guest.attach("scsi", served[name].scsi_socket, timeout=120).path
        case "virtio":
            guest.load("virtio_blk")
            guest.wait_until("[ -b /dev/vda ]", timeout=60)
            node = "/dev/vda"
        case "NVMe":
            node = _nvme(guest, "ours")
        case "nvme-ns":
            node = _nvme(guest, "peer")
        case "null_blk":
            node = _null_blk(guest, shape)
        case "scsi_debug":
            node = _scsi_debug(guest, shape)
        case _:
            message = f"no device is called {name}"
            raise AssertionError(message)
    return Device(name=name, ours=name in OURS, node=node, conventional=name not in {"NVMe", "nvme-ns"})


def _nvme(guest: Guest, serial: str) -> str:
    guest.load("nvme")
    find = f"grep -lw {serial} /sys/class/nvme/nvme*/serial"
    guest.wait_until(f"grep -qw {serial} /sys/class/nvme/nvme*/serial", timeout=60)
    number = guest.run(find).stdout.strip().removeprefix("/sys/class/nvme/nvme").removesuffix("/serial")
    guest.wait_until(f"[ -b /dev/nvme{number}n1 ]", timeout=60)
    return f"/dev/nvme{number}n1"


def _nvme_ns(image: Path, shape: Shape) -> list[str]:
    with image.open("wb") as file:
        file.truncate(shape.mib << 20)
    blocks = f"logical_block_size={shape.block_bytes},physical_block_size={shape.block_bytes}"
    return [
        *("-drive", f"file={image},id=zns,format=raw,if=none", "-device", "nvme,serial=peer,id=nvme"),
        *("-device", f"nvme-ns,drive=zns,bus=nvme,{blocks},zoned=true,zoned.zone_size={shape.zone_mib}M"),
    ]


def _null_blk(guest: Guest, shape: Shape) -> str:
    guest.load("null_blk", "nr_devices=0")
    guest.run(
        f"""mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
        cd /sys/kernel/config/nullb; mkdir nullb0; cd nullb0
        echo 1 >zoned; echo {shape.block_bytes} >blocksize; echo {shape.mib} >size; echo {shape.zone_mib} >zone_size
        echo {shape.nr_conv} >zone_nr_conv; echo 1 >memory_backed; echo 1 >power"""
    )
    return "/dev/nullb0"


def _scsi_debug(guest: Guest, shape: Shape) -> str:
    before = guest.disks()
    guest.load("sd_mod")
    guest.load(
        "scsi_debug", "zbc=managed", f"dev_size_mb={shape.mib}", f"sector_size={shape.block_bytes}",
        f"zone_size_mb={shape.zone_mib}", f"zone_nr_conv={shape.nr_conv}", "zone_max_open=0",
    )  # fmt: skip
    guest.wait_until('[ "$(ls /sys/block | wc -l)" -gt ' + str(len(before)) + " ]", timeout=60)
    (name,) = guest.disks() - before
    return f"/dev/{name}"


def commit() -> str:
    """Return the commit that is checked out, with a mark if files differ from it."""
    root = Path(__file__).parents[2]
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=root, check=True, capture_output=True, text=True
    )
    return found.stdout.strip()
