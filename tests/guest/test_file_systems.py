"""What people run on a zoned disk, in a real Linux guest on a served image: zonefs, btrfs, fio."""

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.requires import requires
from tests.served import Served
from tools.guest.machine import AttachedDisk, Guest

pytestmark = pytest.mark.qemu

KIB: Final = 1024
MIB: Final = 1024 * KIB
ZONEFS: Final = "--size 128M --zone-size 4M --zone-capacity 3M --nr-conv 3"

# Sequential files of kernel zonefs are written past the page cache, in whole blocks. Pieces of many sizes.
WRITE_FILE: Final = """
import mmap, os, sys
source, target = sys.argv[1:]
data = open(source, "rb").read()
fd = os.open(target, os.O_WRONLY | os.O_DIRECT)
at = os.fstat(fd).st_size if "/seq/" in target else 0
sizes = [4096, 65536, 8192, 196608, 12288, 524288]
while data:
    part = data[: sizes[0]]
    sizes = sizes[1:] + sizes[:1]
    buffer = mmap.mmap(-1, len(part))
    buffer[:] = part
    assert os.pwritev(fd, [buffer], at) == len(part)
    at += len(part)
    data = data[len(part) :]
os.fsync(fd)
"""


@contextmanager
def mounted_by_fuse(served: Served) -> Iterator[Path]:
    """Mount the image, which no process serves, by the file system of this package."""
    served.verb("mount", str(served.mount_point))
    try:
        yield served.mount_point
    finally:
        served.cli("umount", str(served.mount_point))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_files(guest: Guest, contents: dict[str, bytes]) -> None:
    for path, data in contents.items():
        source = guest.share / "source"
        source.write_bytes(data)
        guest.run_python(WRITE_FILE, str(source), f"/mnt/zonefs/{path}")


def write_on_host(source: Path, data: bytes, target: Path) -> None:
    source.write_bytes(data)
    command = [sys.executable, "-c", WRITE_FILE, str(source), str(target)]
    subprocess.run(command, check=True, capture_output=True)


def mount_zonefs(guest: Guest, disk: AttachedDisk, options: str = "explicit-open") -> None:
    guest.load("zonefs")
    guest.run(f"mkdir -p /mnt/zonefs; mount -t zonefs -o {options} {disk.path} /mnt/zonefs")


def test_zonefs_is_one_for_the_kernel_and_for_fuse(guest: Guest, tmp_path: Path) -> None:
    requires("fuse")
    random_bytes = random.Random(1).randbytes
    by_guest = {"seq/0": random_bytes(300 * KIB), "seq/5": random_bytes(3 * MIB), "cnv/1": random_bytes(64 * KIB)}
    by_host = {"seq/1": random_bytes(508 * KIB), "seq/6": random_bytes(3 * MIB), "cnv/0": random_bytes(32 * KIB)}
    more = {"seq/0": random_bytes(128 * KIB), "seq/1": random_bytes(4 * KIB)}

    served = Served(tmp_path, create=ZONEFS)
    served.verb("mkfs")
    with served:
        disk = guest.attach("scsi", served.scsi_socket)
        mount_zonefs(guest, disk)
        assert guest.run("cd /mnt/zonefs; ls cnv | wc -l; ls seq | wc -l").stdout.split() == ["2", "29"]
        write_files(guest, by_guest)
        guest.run("umount /mnt/zonefs")
        disk.detach()

    with mounted_by_fuse(served) as directory:
        for path, data in by_guest.items():
            assert sha256((directory / path).read_bytes()[: len(data)]) == sha256(data), path
        assert (directory / "seq/0").stat().st_size == 300 * KIB
        assert (directory / "seq/2").stat().st_size == 0
        for path, data in by_host.items():
            write_on_host(tmp_path / "source", data, directory / path)

    with served:
        disk = guest.attach("scsi", served.scsi_socket)
        mount_zonefs(guest, disk)
        sizes = guest.run("cd /mnt/zonefs/seq; stat -c %s 0 1 2 5 6").stdout.split()
        assert sizes == [str(size) for size in (300 * KIB, 508 * KIB, 0, 3 * MIB, 3 * MIB)]
        for path, data in by_host.items():
            found = guest.run(f"head -c {len(data)} /mnt/zonefs/{path} | sha256sum").stdout.split()[0]
            assert found == sha256(data), path
        write_files(guest, more)
        guest.run("truncate -s 0 /mnt/zonefs/seq/5; truncate -s 3M /mnt/zonefs/seq/7; umount /mnt/zonefs")
        disk.detach()
        assert served.refusals() == []

    with mounted_by_fuse(served) as directory:
        assert sha256((directory / "seq/0").read_bytes()) == sha256(by_guest["seq/0"] + more["seq/0"])
        assert sha256((directory / "seq/1").read_bytes()) == sha256(by_host["seq/1"] + more["seq/1"])
        assert [(directory / "seq" / name).stat().st_size for name in "57"] == [0, 3 * MIB]


def test_guest_mount_and_command_line_see_one_truth(guest: Guest, tmp_path: Path) -> None:
    """All at once, on one image under one lock. File N is zone N + 3."""
    requires("fuse")
    data = random.Random(2).randbytes(96 * KIB)
    served = Served(tmp_path, create=ZONEFS, front_ends=["scsi", "mount"])
    served.verb("mkfs")
    with served:
        disk = guest.attach("scsi", served.scsi_socket)
        served.wait_until_ready()
        seq = served.mount_point / "seq"
        write_on_host(tmp_path / "source", data, seq / "5")
        source = guest.share / "source"
        source.write_bytes(data)
        guest.run(f"dd if={source} of={disk.path} bs=4k seek={7 * 1024} oflag=direct status=none")
        served.verb("finish", "--zone", "9")
        assert guest.run(["blkzone", "report", disk.path]).stdout == served.blkzone_report()
        assert served.conds()[6:10] == ["em", "oi", "oi", "fu"]
        read = f"dd if={disk.path} bs=4k skip={8 * 1024} count={len(data) // 4096} iflag=direct status=none | sha256sum"
        assert guest.run(read).stdout.split()[0] == sha256(data)
        assert served.cli("read", str(served.image), "--zone", "7", "--length", str(len(data))) == data
        assert served.refusals() == []
        # zonefs keeps sizes of its own, as the kernel's does, until an error makes it look.
        with pytest.raises(subprocess.CalledProcessError):
            write_on_host(tmp_path / "source", data, seq / "4")
        (refusal,) = served.refusals()
        assert (refusal["rule"], refusal["zone_no"]) == ("UNALIGNED_WP", 7)
        disk.detach()


@pytest.mark.parametrize(
    ("geometry", "capacity_mib"),
    [
        ("--size 128M --zone-size 4M --nr-conv 4 --block-size 512 --max-open-zones 4", 4),
        ("--size 128M --zone-size 4M --zone-capacity 3M --max-open-zones 4", 3),
    ],
    ids=["512", "capacity"],
)
def test_fio_writes_and_verifies(guest: Guest, tmp_path: Path, geometry: str, capacity_mib: int) -> None:
    """Six zones in random order, as many at a time as may be open; twice, so that full zones are reset."""
    with Served(tmp_path, create=geometry) as served:
        disk = guest.attach("scsi", served.scsi_socket)
        completed = guest.run(
            f"fio --name=zones --filename={disk.path} --zonemode=zbd --direct=1 --ioengine=libaio --iodepth=16"
            " --rw=randwrite --bs=16k --offset=16M --size=24M --loops=2 --max_open_zones=4"
            " --verify=crc32c --verify_fatal=1 --randseed=7 --output-format=json",
            timeout=200,
        )
        (job,) = json.loads(completed.stdout)["jobs"]
        assert job["error"] == 0
        assert job["write"]["io_kbytes"] == 2 * 6 * capacity_mib * KIB
        assert job["read"]["total_ios"] > 0
        assert served.refusals() == []
        assert guest.run(["blkzone", "report", disk.path]).stdout == served.blkzone_report()
        disk.detach()


def test_btrfs(guest: Guest, tmp_path: Path) -> None:
    """A tree copied to btrfs is the same after a scrub and another mount."""
    tree = json.__path__[0].rpartition("/")[0]
    before = len(guest.console)  # the guest is shared
    with Served(tmp_path, create="--size 1G --zone-size 16M --nr-conv 4 --max-open-zones 32") as served:
        disk = guest.attach("scsi", served.scsi_socket)
        guest.run(
            f"""
            mkfs.btrfs -q -O zoned -m single -d single {disk.path}
            mkdir -p /mnt/btrfs
            mount {disk.path} /mnt/btrfs
            for part in json email; do cp -a {tree}/$part /mnt/btrfs; done
            sync
            btrfs scrub start -B /mnt/btrfs
            umount /mnt/btrfs
            mount {disk.path} /mnt/btrfs
            for part in json email; do diff -r {tree}/$part /mnt/btrfs/$part; done
            umount /mnt/btrfs
            btrfs check {disk.path}
            """,
            timeout=250,
        )
        assert served.refusals() == []
        disk.detach()
        assert "BTRFS error" not in guest.console[before:]
