"""fio in a Linux guest on our SCSI disk and on our NVMe drive, beside QEMU's own drives in the same guest.

The driver of SCSI costs an emulated guest more than that of NVMe, with any server. So the SCSI disk is compared with
QEMU's own SCSI disk, which has no zones, as well as with QEMU's NVMe ZNS drive.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

from bench.harness import PROJECT, Row, compare, program
from tools.guest.kit import obtain_kit
from tools.guest.machine import Guest, zns_drive
from tools.guest.newer_qemu import NEWER_QEMU, find_newer_qemu
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.geometry import Geometry

ZONE_MIB: Final = 64
NR_ZONES: Final = 8
GOAL: Final = 1.0
#: Of the SCSI disk, against the drive of NVMe.
ACROSS_GOAL: Final = 1.3
PEER: Final = "QEMU's NVMe ZNS"
#: Filled once for the random reads; sequential writes go to those before it, which are emptied first.
READ_ZONE: Final = 4
WRITE_MIB: Final = READ_ZONE * ZONE_MIB

WHAT: Final = (
    ("4 KiB sequential write", "write", f"--rw=write --bs=4k --offset=0 --size={ZONE_MIB}M --iodepth=1"),
    ("128 KiB sequential write", "write", f"--rw=write --bs=128k --offset=0 --size={WRITE_MIB}M --iodepth=1"),
    ("4 KiB random read, depth 1", "read", "--rw=randread --bs=4k --iodepth=1"),
    ("4 KiB random read, depth 32", "read", "--rw=randread --bs=4k --iodepth=32"),
)


class _Disk(NamedTuple):
    """A disk in the guest at *path*. *file*: that of a disk of QEMU, which keeps what was in its zones."""

    path: str
    file: Path | None = None
    is_zoned: bool = True


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure sequential writes and random reads of a SCSI disk, and of an NVMe drive over vfio-user."""
    return _scsi_rows(scratch, runs) + _vfio_rows(scratch, runs)


def _scsi_rows(scratch: Path, runs: int) -> list[Row]:
    socket_path, plain, regular = scratch / "guest.sock", _plain(scratch / "zns.raw"), _plain(scratch / "scsi.raw")
    arguments = [
        *zns_drive(plain, zone_size_mib=ZONE_MIB),
        *("-device", "virtio-scsi-pci,id=scsi,num_queues=1"),
        *("-drive", f"file={regular},id=regular,format=raw,if=none"),
        *("-device", "scsi-hd,drive=regular,bus=scsi.0,logical_block_size=4096,physical_block_size=4096"),
    ]
    with (
        serving(scratch / "guest.img", "--vhost-user-scsi", str(socket_path)),
        Guest(obtain_kit(print), qemu_arguments=arguments) as guest,
    ):
        for module in ("nvme", "virtio_scsi", "sd_mod"):
            guest.load(module)
        guest.wait_until("test -b /dev/nvme0n1 -a -b /dev/sda")
        ours = _Disk(guest.attach("scsi", socket_path).path)
        zns, scsi = _Disk("/dev/nvme0n1", plain), _Disk("/dev/sda", regular, is_zoned=False)
        return [
            *_compared(guest, "guest", runs, ours, zns, goal=ACROSS_GOAL),
            *_compared(guest, "guest", runs, ours, scsi, peer="QEMU's SCSI disk"),
        ]


def _vfio_rows(scratch: Path, runs: int) -> list[Row]:
    """Both drives are of NVMe, and the guest's driver is the same; so is QEMU, a newer one than for the SCSI disk."""
    plain = _plain(scratch / "vfio.raw")
    with vfio_guest(scratch, {"ours": ""}, plain) as (guest, nodes):
        return _compared(guest, "vfio-user", runs, _Disk(nodes["ours"]), _Disk(nodes["zns"], plain))


@contextmanager
def vfio_guest(
    scratch: Path, drives: Mapping[str, str], plain: Path | None = None
) -> Iterator[tuple[Guest, dict[str, str]]]:
    """Yield a guest with *drives* over vfio-user, and the node of each by its serial number.

    *drives*: for each serial number the change of its daemon, see :func:`bench.harness.program`. *plain*: the file of
    QEMU's own drive, whose serial number is "zns".
    """
    kit = obtain_kit(print)
    NEWER_QEMU.obtain(print)
    newer = find_newer_qemu(kit)
    assert newer is not None, "it has just been obtained"
    arguments = [] if plain is None else zns_drive(plain, zone_size_mib=ZONE_MIB)
    nr_drives = len(drives) + (plain is not None)
    with ExitStack() as stack:
        for serial, change in drives.items():
            path = scratch / f"{serial}.sock"
            options = "--vfio-user", str(path), "--serial", serial
            stack.enter_context(serving(scratch / f"{serial}.img", *options, change=change))
            while not path.exists():
                time.sleep(0.05)
            device = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(path)}}
            arguments += ["-device", json.dumps(device)]
        guest = stack.enter_context(Guest(newer, qemu_arguments=arguments))
        guest.load("nvme")
        guest.wait_until(f"[ $(ls -d /dev/nvme*n1 | wc -l) = {nr_drives} ]")
        serials = guest.run(f"cd /sys/class/nvme; for at in $(seq 0 {nr_drives - 1}); do cat nvme$at/serial; done")
        yield guest, {serial: f"/dev/nvme{at}n1" for at, serial in enumerate(serials.stdout.split())}


def _compared(
    guest: Guest, area: str, runs: int, ours: _Disk, peers: _Disk, *, peer: str = PEER, goal: float = GOAL
) -> list[Row]:
    for disk in (ours, peers):
        if disk.is_zoned:
            guest.run(["blkzone", "reset", disk.path])
        _fio(guest, disk, f"--rw=write --bs=128k {_place(READ_ZONE)}", "write")
    return [
        compare(
            area, what, "/s", _measure(guest, ours, direction, options), peer=peer,
            peers=_measure(guest, peers, direction, options), runs=runs, goal=goal,
        )
        for what, direction, options in WHAT
    ]  # fmt: skip


def _plain(path: Path) -> Path:
    """Make the file of QEMU's drive."""
    with path.open("wb") as file:
        file.truncate(NR_ZONES * ZONE_MIB << 20)
    return path


@contextmanager
def serving(image: Path, *options: str, change: str = "") -> Iterator[None]:
    """Serve a new image; *change*: see :func:`bench.harness.program`."""
    zone = ZONE_MIB << 11
    geometry = Geometry(size=NR_ZONES * zone, zone_size=zone, zone_capacity=zone, block_size_bytes=4096)
    ZonedDevice.create(image, geometry, uuid=uuid4())
    serve = [*program(change), "serve", str(image), *options]
    with subprocess.Popen(serve, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
        try:
            yield
        finally:
            daemon.terminate()


def _place(zone_no: int) -> str:
    return f"--offset={zone_no * ZONE_MIB}M --size={ZONE_MIB}M"


def _measure(guest: Guest, disk: _Disk, direction: str, options: str) -> Callable[[], float]:
    """Return what measures one run."""

    def measure() -> float:
        if direction == "write":
            if disk.is_zoned:
                guest.run(["blkzone", "reset", "-o", "0", "-c", str(READ_ZONE), disk.path])
            if disk.file is not None:
                # As our reset does: what is overwritten in place costs less than what is new.
                place = ["--offset", "0", "--length", str(WRITE_MIB << 20)]
                subprocess.run(["fallocate", "--punch-hole", *place, str(disk.file)], check=True)
            # The cost of earlier writes and of punching holes must not be in the measured time.
            guest.run(["sync", disk.path])
            return _fio(guest, disk, options, direction)
        return _fio(guest, disk, f"{options} {_place(READ_ZONE)} --time_based --runtime=2", direction)

    return measure


def _fio(guest: Guest, disk: _Disk, options: str, direction: str) -> float:
    """Run fio in the guest on *disk*; requests a second."""
    mode = "" if disk.is_zoned else " --zonemode=none"
    return float(fio_job(guest, disk.path, f"{options}{mode}")[direction]["iops"])


def fio_job(guest: Guest, path: str, options: str) -> dict[str, Any]:
    """Run fio in the guest on the zoned disk *path*; the figures of its one job."""
    fixed = "--name=bench --zonemode=zbd --direct=1 --ioengine=libaio --output-format=json"
    output = guest.run(f"fio {fixed} --filename={path} {options}", timeout=300).stdout
    job: dict[str, Any] = json.loads(output[output.index("{") :])["jobs"][0]
    return job
