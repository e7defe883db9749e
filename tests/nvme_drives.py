"""What a kernel and nvme-cli must find of our drive, whichever way and whichever kernel it is reached by.

The drives have 16 zones of 4 MiB with a capacity of 3 MiB, blocks of 4096 bytes, and descriptor extensions.
"""

import base64
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.attaching import Place, zonefs_super_block
from tools.guest.machine import Completed

SHAPE: Final = (
    "--size 64M --zone-size 4M --zone-capacity 3M --max-open-zones 3 --max-active-zones 5 --zone-extension 64"
)
#: Logical blocks in a zone.
ZONE: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """A node of a guest, how to run a script there, and how to run a verb on the drive's image."""

    node: str
    sh: Callable[..., Completed]
    verb: Callable[..., str]

    @property
    def controller(self) -> str:
        """The node of the controller."""
        return self.node.removesuffix("n1")

    def assert_reports_agree(self) -> None:
        """Compare what the kernel says of the zones with what we say."""
        assert self.sh(f"blkzone report {self.node}").stdout == self.verb("report", "--format", "blkzone")

    def nvme(self, words: str) -> Any:
        """Return what nvme-cli prints as JSON."""
        return json.loads(self.sh(f"nvme {words} -o json").stdout)


def drive_of(place: Place, image: str, node: str) -> Drive:
    """Return the drive *node*, which is served in the guest itself."""

    def verb(name: str, *options: str) -> str:
        return place.sh(f"Z {name} {image} {' '.join(options)}").stdout

    return Drive(node=node, sh=place.sh, verb=verb)


def check_limits(drive: Drive) -> None:
    """The kernel has a host-managed disk with the limits of the image."""
    names = "zoned nr_zones chunk_sectors max_open_zones max_active_zones zone_append_max_bytes logical_block_size"
    text = drive.sh(f"cd /sys/block/{drive.node.removeprefix('/dev/')}/queue; cat {names} write_cache").stdout
    assert text.splitlines() == ["host-managed", "16", "8192", "3", "5", str(512 << 10), "4096", "write back"]


def check_zone_management(drive: Drive) -> None:
    """nvme-cli does all that it has for zones; leaves all zones empty."""
    node = drive.node
    assert drive.nvme(f"zns id-ctrl {drive.controller}")["zasl"] == 7
    identified = drive.nvme(f"zns id-ns {node}")
    assert (identified["mar"], identified["mor"]) == (4, 2)
    assert identified["lbafe"][0] == {"zsze": ZONE, "zdes": 1}
    drive.sh(
        f"""nvme zns reset-zone {node} -a; head -c 8192 /dev/urandom >two; head -c 64 /dev/urandom >extension
        nvme zns open-zone {node} -s {ZONE}
        nvme zns zone-append {node} -s {2 * ZONE} -z 8192 -d two
        nvme zns close-zone {node} -s {2 * ZONE}
        nvme zns finish-zone {node} -s {3 * ZONE}
        nvme zns open-zone {node} -s {4 * ZONE}; nvme zns reset-zone {node} -s {4 * ZONE}
        nvme zns set-zone-desc {node} -s {5 * ZONE} -d extension
        # The binary output has a line before the report; the extension follows the descriptor of its zone.
        nvme zns report-zones {node} -s {5 * ZONE} -d 1 -e -o binary | tail -n +2 | tail -c +129 >found
        cmp -n 64 found extension
        nvme read {node} -s {2 * ZONE} -c 1 -z 8192 -d found; cmp found two"""
    )
    drive.verb("set-cond", "--zone", "6", "ro")
    changed = [drive.sh(f"nvme zns changed-zone-list {node}").stdout.split() for _ in range(2)]
    assert changed[0][-5:] == ["nrzid:", "1", "zid", "000:", str(6 * ZONE)]
    assert changed[1][-2:] == ["nrzid:", "0"], "the first look has cleared the list"
    drive.sh(f"nvme zns offline-zone {node} -s {6 * ZONE}")
    zones = drive.nvme(f"zns report-zones {node}")["zone_list"]
    expected = ["EMPTY", "EXP_OPENED", "CLOSED", "FULL", "EMPTY", "CLOSED", "OFFLINE", "EMPTY"]
    assert [zone["state"] for zone in zones[:8]] == expected
    assert (zones[2]["wp"], zones[5]["wp"]) == (2 * ZONE + 2, 5 * ZONE)
    drive.assert_reports_agree()
    wrong = drive.sh(f"nvme write {node} -s {7 * ZONE + 1} -c 0 -z 4096 -d /dev/zero", check=False)
    assert "Zone Invalid Write" in wrong.stderr + wrong.stdout
    assert "1BCh ZONE_INVALID_WRITE" in drive.verb("why", "-n", "1")
    drive.verb("set-cond", "--zone", "6", "em")
    drive.sh(f"nvme zns reset-zone {node} -a")


def make_zonefs(drive: Drive) -> None:
    """Make a zonefs as mkzonefs does: all zones are reset, and the super block goes to the first one."""
    encoded = base64.b64encode(zonefs_super_block(label="drive")).decode()
    drive.sh(
        f"""blkzone reset {drive.node}; echo {encoded} | base64 -d >super
        dd if=super of={drive.node} bs=4k oflag=direct status=none"""
    )


def check_zonefs(drive: Drive) -> None:
    """The kernel mounts the zonefs on *drive*, and reads what it wrote."""
    drive.sh(
        f"""modprobe zonefs; mkdir -p mnt; mount -t zonefs {drive.node} mnt
        dd if=/dev/urandom of=data bs=64k count=20 status=none
        dd if=data of=mnt/seq/3 bs=64k oflag=direct conv=notrunc,fsync status=none
        cmp mnt/seq/3 data; umount mnt"""
    )
    drive.assert_reports_agree()


def check_fio(drive: Drive) -> None:
    """fio verifies what it wrote."""
    drive.sh(
        # Not by nvme-cli: the kernel knows the write pointers, and does not see what passes it by.
        f"blkzone reset {drive.node}\n"
        f"fio --name=x --filename={drive.node} --zonemode=zbd --direct=1 --ioengine=libaio --iodepth=4"
        " --max_open_zones=3 --rw=randwrite --bs=32k --size=6M --verify=crc32c --do_verify=1 --verify_fatal=1"
    )
    drive.assert_reports_agree()


def check_passthrough(drive: Drive) -> None:
    """Commands of io_uring reach the drive past the block layer: fio verifies, and appends land one after the other.

    fio has no zone append, so a program of our own appends.
    """
    node, character = drive.node, drive.node.replace("nvme", "ng")
    drive.sh(
        # One write at a time: past the block layer, nothing keeps the writes to a zone in order.
        f"blkzone reset {node}\n"
        f"fio --name=x --filename={character} --zonemode=zbd --ioengine=io_uring_cmd --cmd_type=nvme --iodepth=1"
        " --rw=write --bs=32k --size=4M --verify=crc32c --do_verify=1 --verify_fatal=1"
    )
    program = Path(__file__).parent / "uring_append.py"
    zone = 5 * ZONE
    done = drive.sh(
        f"nvme zns reset-zone {node} -a >&2; {sys.executable} {program} {character} 1 {zone} 32 4096"
    ).stdout
    appended = [tuple(map(int, line.split())) for line in done.splitlines()]
    assert sorted(number for number, _, _ in appended) == list(range(32))
    assert {status for _, status, _ in appended} == {0}
    assert sorted(where for _, _, where in appended) == list(range(zone, zone + 32))
    # The kernel does not see what passes it by, so nvme-cli reads.
    found = drive.sh(
        f"""nvme read {node} -s {zone} -c 31 -z {32 << 12} -d found >&2
        od -An -v -w4096 -tu1 found | awk '{{ for (i = 2; i <= NF; i++) if ($i != $1) exit 1; print $1 }}'"""
    )
    assert found.stdout.split() == [str(number + 1) for number, _, _ in sorted(appended, key=lambda each: each[2])]
    drive.assert_reports_agree()
    drive.sh(f"blkzone reset {node}")
