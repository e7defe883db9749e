"""A served image in a real Linux guest: what the kernel's sd driver and blkzone make of it, and what is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.served import Served
from tools.guest.machine import AttachedDisk, Guest

pytestmark = pytest.mark.qemu

MIB: Final = 2048  # sectors

GEOMETRIES: Final = {
    "512": "--size 256M --zone-size 4M --nr-conv 2 --block-size 512 --max-open-zones 6",
    "4096": "--size 256M --zone-size 4M --nr-conv 2 --block-size 4096 --max-open-zones 6",
    "capacity": "--size 256M --zone-size 4M --zone-capacity 3M --nr-conv 2 --max-open-zones 6",
    "scattered": "--size 257M --zone-size 4M --conv 3-5,63 --block-size 512",
}

# Reads and writes past the page cache, and says with which errno each one fails: "w SECTOR NR_SECTORS BYTE",
# "r SECTOR NR_SECTORS", which prints the bytes that occur.
DIRECT_IO: Final = """
import errno, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
for word in sys.argv[2:]:
    operation, sector, nr_sectors, *rest = word.split()
    buffer = mmap.mmap(-1, int(nr_sectors) * 512)
    try:
        if operation == "w":
            buffer[:] = bytes((int(rest[0]),)) * len(buffer)
            done = os.pwritev(fd, [buffer], int(sector) * 512)
            print("ok" if done == len(buffer) else f"only {done} bytes")
        else:
            done = os.preadv(fd, [buffer], int(sector) * 512)
            print(*sorted(set(buffer[:done])))
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def direct_io(guest: Guest, disk: AttachedDisk, *operations: str) -> list[str]:
    return guest.run_python(DIRECT_IO, disk.path, *operations).stdout.splitlines()


def queue_limits(guest: Guest, disk: AttachedDisk, names: Sequence[str]) -> dict[str, str]:
    found = guest.run(["grep", "-H", ".", *(f"/sys/block/{disk.name}/queue/{name}" for name in names)]).stdout
    return {path.rpartition("/")[2]: value for path, _, value in (line.partition(":") for line in found.splitlines())}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_disk_is_the_image(guest: Guest, tmp_path: Path, geometry: str) -> None:
    block = "512" if "512" in GEOMETRIES[geometry] else "4096"
    before = len(guest.console)  # the guest is shared
    with Served(tmp_path, create=GEOMETRIES[geometry]) as served:
        disk = guest.attach("scsi", served.scsi_socket)
        expected = {
            "zoned": "host-managed",
            "chunk_sectors": str(4 * MIB),
            "nr_zones": str(len(served.conds())),
            "max_open_zones": "0" if geometry == "scattered" else "6",
            "max_active_zones": "0",
            "logical_block_size": block,
            "physical_block_size": block,
            "zone_write_granularity": block,
            "write_cache": "write back",
            "fua": "1",
            "rotational": "0",
        }
        assert queue_limits(guest, disk, list(expected)) == expected
        # Zones in every condition that there is.
        guest.run(
            f"""
            zone() {{ blkzone $1 -o $(($2 * {4 * MIB})) -c ${{3:-1}} {disk.path}; }}
            put() {{ dd if=/dev/zero of={disk.path} oflag=direct bs=4k count=$2 seek=$(($1 * 1024)) status=none; }}
            put 10 3
            put 11 1; zone close 11
            zone open 12 2
            put 13 7
            zone finish 14
            put 15 1; zone finish 15
            put 16 {768 if geometry == "capacity" else 1024}
            put 17 5; put 18 5
            put 19 2; zone reset 19
            """
        )
        served.verb("set-cond", "--zone", "17", "readonly")
        served.verb("set-cond", "--zone", "18", "offline")
        report = guest.run(["blkzone", "report", disk.path]).stdout
        assert report == served.blkzone_report()
        conds = served.conds()
        assert conds[10:20] == ["oi", "cl", "oe", "oe", "fu", "fu", "fu", "ro", "ol", "em"]
        assert {conds[3], conds[5], conds[63]} == ({"nw"} if geometry == "scattered" else {"em"})
        assert served.refusals() == []
        disk.detach()
        assert "I/O error" not in guest.console[before:]


def test_rules_of_sequential_zones(guest: Guest, tmp_path: Path) -> None:
    """Which rule stood behind an error is told by the command line.

    The errors are those of every ZBC disk in Linux: it turns most refusals into BLK_STS_TARGET, which is EREMOTEIO.
    """
    zone = 4 * MIB
    with Served(tmp_path, create=GEOMETRIES["capacity"]) as served:
        disk = guest.attach("scsi", served.scsi_socket)
        assert direct_io(
            guest,
            disk,
            *(f"w {8 * zone} 8 65", f"w {8 * zone + 8} 16 66", f"r {8 * zone} 8", f"r {8 * zone + 8} 16"),
            f"r {8 * zone + 24} 8",  # beyond wp
            *(f"w {zone + 800} 8 67", f"w {zone + 80} 8 68", f"r {zone + 80} 8"),  # conventional: in any order
        ) == ["ok", "ok", "65", "66", "0", "ok", "ok", "68"]
        assert served.refusals() == []

        # Linux 6.10 and later answers a write beside wp itself; a raw command gets through.
        assert direct_io(guest, disk, f"w {8 * zone + 64} 8 69") == ["EIO"]
        assert served.refusals() == []
        lba = f"{8 * zone // 8 + 8:016x}"
        write_16 = " ".join(["8a 00", *(lba[at : at + 2] for at in range(0, 16, 2)), "00 00 00 01 00 00"])
        raw = guest.run(f"sg_raw --send 4096 --infile=/dev/zero {disk.path} {write_16}", check=False)
        assert "Unaligned write command" in raw.stdout + raw.stderr
        assert [refusal["rule"] for refusal in served.refusals()] == ["UNALIGNED_WP"]

        # To the end of the capacity and beyond: what lies there is a gap zone, which is read as zeros.
        fill = [f"w {9 * zone + at} 256 1" for at in range(0, 3 * MIB - 256, 256)]
        assert set(direct_io(guest, disk, *fill)) == {"ok"}
        end = 9 * zone + 3 * MIB
        assert direct_io(guest, disk, f"w {end - 256} 512 2", f"w {end - 256} 256 2", f"r {end - 256} 256") == [
            "EREMOTEIO", "ok", "2",
        ]  # fmt: skip
        assert direct_io(guest, disk, f"r {end} 8", f"r {end - 8} 16", f"r {end - 8} 8") == ["0", "0 2", "2"]
        assert direct_io(guest, disk, f"r {end + MIB - 8} 16") == ["0"]  # into the next zone
        # Linux hides gap zones and takes commands to them for errors of its own; sg_raw asks the disk.
        gap_zone = " ".join(f"{end // 8:016x}"[at : at + 2] for at in range(0, 16, 2))
        raw = guest.run(f"sg_raw {disk.path} 94 04 {gap_zone} 00 00 00 00 00 00", check=False)
        assert "Additional sense: Attempt to access gap zone" in raw.stdout + raw.stderr
        usage = guest.run(f"sg_opcodes -o 0x94,4 --mask {disk.path}", check=False)
        assert "94 04" in usage.stdout, usage
        assert served.conds()[9] == "fu"

        for number in (10, 11):
            assert direct_io(guest, disk, f"w {number * zone} 8 7") == ["ok"]
        served.verb("set-cond", "--zone", "10", "readonly")
        served.verb("set-cond", "--zone", "11", "offline")
        assert direct_io(guest, disk, f"r {10 * zone} 8", f"w {10 * zone + 8} 8 9") == ["7", "EREMOTEIO"]
        assert direct_io(guest, disk, f"r {11 * zone} 8", f"w {11 * zone + 8} 8 9") == ["EREMOTEIO"] * 2
        rules = [str(refusal["rule"]) for refusal in served.refusals()]
        assert list(dict.fromkeys(rules)) == [
            "UNALIGNED_WP", "ZONE_BOUNDARY", "SCSI_GAP", "ZONE_READONLY", "ZONE_OFFLINE",
        ]  # fmt: skip

        # The limit: six open zones. Two are open by writes and give way to those that are opened explicitly.
        opened = guest.run(
            f"blkzone open -o {20 * zone} -c 6 {disk.path}; blkzone open -o {30 * zone} -c 1 {disk.path}", check=False
        )
        assert opened.returncode != 0
        assert served.refusals(1)[0]["rule"] == "OPEN_RESOURCE"
        assert direct_io(guest, disk, f"w {31 * zone} 8 7") == ["ETOOMANYREFS"]
        guest.run(f"blkzone close -o {20 * zone} -c 6 {disk.path}; blkzone report {disk.path}")
        assert direct_io(guest, disk, f"w {31 * zone} 8 7") == ["ok"]
        disk.detach()


def test_zones_change_behind_the_guest(guest: Guest, tmp_path: Path) -> None:
    zone = 4 * MIB
    with Served(tmp_path, create=GEOMETRIES["4096"]) as served:
        disk = guest.attach("scsi", served.scsi_socket)
        assert direct_io(guest, disk, f"w {8 * zone} 64 1", f"w {9 * zone} 64 1", f"w {10 * zone} 64 1") == ["ok"] * 3
        served.verb("reset", "--zone", "8")
        served.verb("finish", "--zone", "9")
        served.verb("write", "--zone", "10", data=b"\2" * 4096)
        assert guest.run(["blkzone", "report", disk.path]).stdout == served.blkzone_report()
        assert direct_io(guest, disk, f"r {8 * zone} 64", f"r {9 * zone} 64", f"r {10 * zone + 64} 8") == [
            "0",
            "1",
            "2",
        ]
        # The guest keeps wp itself. A write that fails makes it doubt that, and the next report corrects it.
        stale = [f"w {number * zone + 64} 8 3" for number in (8, 9, 10)]
        assert direct_io(guest, disk, *stale) == ["EREMOTEIO", "EREMOTEIO", "EREMOTEIO"]
        rules = [refusal["rule"] for refusal in served.refusals()]
        assert rules == ["UNALIGNED_WP", "ZONE_FULL", "UNALIGNED_WP"]
        guest.run(["blkzone", "report", disk.path])
        writes = (f"w {8 * zone} 8 4", f"w {9 * zone} 8 4", f"w {10 * zone + 72} 8 4")
        assert direct_io(guest, disk, *writes) == ["ok", "EREMOTEIO", "ok"]
        disk.detach()


def test_stock_qemu_makes_a_plain_disk_of_virtio_blk(guest: Guest, tmp_path: Path) -> None:
    """QEMU 10 filters ZONED: what the driver sees is a disk, on which each zone takes what it takes."""
    zone = 4 * MIB
    with Served(tmp_path, create=GEOMETRIES["4096"], front_ends=["blk"]) as served:
        disk = guest.attach("blk", served.blk_socket, num_queues=1)
        assert queue_limits(guest, disk, ["zoned", "logical_block_size"]) == {
            "zoned": "none",
            "logical_block_size": "4096",
        }
        assert int(guest.run(["cat", f"/sys/block/{disk.name}/size"]).stdout) == 256 * MIB
        assert direct_io(
            guest, disk, "w 800 8 1", "r 800 8", f"w {8 * zone} 8 2", f"w {8 * zone + 64} 8 3", f"r {8 * zone} 16"
        ) == ["ok", "1", "ok", "EIO", "0 2"]
        assert [refusal["rule"] for refusal in served.refusals()] == ["UNALIGNED_WP"]
        disk.detach()
