"""Attached devices in the guest: our command line runs there, as root, on images in its memory.

Without hardware acceleration a start of Python takes seconds, so one process loads the command line and forks for every
command; it stays for the other tests. What the two ways to attach must have in common is checked by functions here.
"""

import json
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.forking import IMPORTS, LOOP, client
from tools.guest.machine import Completed, Guest

_CHECKOUT: Final = Path(__file__).parents[1]
_PLACE: Final = "/run/attaching"
_ZYGOTE: Final = Path("/run/zygote")
#: It stays when the script that starts it ends.
_SERVER: Final = f"""
{IMPORTS}
import zonefs_emu.cli.serve
if os.fork():
    os._exit(0)
os.setsid()
{LOOP}
"""
_PRELUDE: Final = f"""
{client(_ZYGOTE)}
mkdir -p {_PLACE}
cd {_PLACE}
"""
_START: Final = f"""
[ -d /run/zygote ] || {{
    mkdir -m 700 /run/zygote /run/runtime
    mkfifo /run/zygote/requests
    export PYTHONPATH={_CHECKOUT} PYTHONDONTWRITEBYTECODE=1 XDG_RUNTIME_DIR=/run/runtime
    cat >/run/zygote/server.py
    {sys.executable} /run/zygote/server.py /run/zygote/requests </dev/null >/run/zygote/log 2>&1
}} <<'END'
{_SERVER}
END
"""
MODULES: Final = {"nvme-tcp": ("nvme_tcp",), "ublk": ("ublk_drv",), "vduse": ("vduse", "virtio_vdpa", "virtio_blk")}
#: 16 zones of 4 MiB with a capacity of 3 MiB, the first two conventional.
SHAPE: Final = "--size 64M --zone-size 4M --zone-capacity 3M --nr-conv 2 --max-open-zones 5 --max-active-zones 7"
ZONE_SECTORS: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A guest with a directory for images."""

    guest: Guest

    def sh(self, script: str, *, timeout: float = 90, check: bool = True) -> Completed:
        """Run *script*, in which Z is our command line."""
        return self.guest.run(_PRELUDE + script, timeout=timeout, check=check)

    def start(self, command: str, output: str) -> None:
        """Start a command line; what it prints is in the file *output*, and at its end its status in *output*.code."""
        self.sh(
            f"""d=$(mktemp -d {_ZYGOTE}/XXXXXX); set -- {command}; printf '%s\\n' "$@" >$d/words
            touch $d/in $d/out; ln $d/out $d/err; ln -sf $d/out {output}; ln -sf $d/code {output}.code
            echo "$d $PWD" >{_ZYGOTE}/requests"""
        )

    def refusal(self, command: str) -> str:
        """Run a command line that must fail in one sentence; returns the sentence."""
        completed = self.sh(f"Z {command}", check=False)
        assert completed.returncode == 1, completed
        assert len(completed.stderr.splitlines()) == 1, completed.stderr
        return completed.stderr

    def create(self, image: str, shape: str = SHAPE) -> None:
        """Make an image, without its warnings."""
        self.sh(f"Z create {image} {shape} 2>&1")

    def attach(self, image: str, via: str, *options: str) -> str:
        """Attach *image*; returns the node."""
        for module in MODULES[via]:
            self.guest.load(module)
        return self.sh(f"Z attach {image} --via {via} {' '.join(options)}").stdout.strip()

    def super_block(self, name: str, *, label: str) -> None:
        """Put the first 4096 bytes of a zonefs into the file *name*."""
        (self.guest.share / name).write_bytes(zonefs_super_block(label=label))
        self.sh(f"cp {self.guest.share / name} {name}")

    def kill_server(self, image: str) -> None:
        """Kill the process that serves *image*, without warning."""
        self.sh(self.killing(self.server_pid(image)))

    def server_pid(self, image: str) -> int:
        """Return the number of the process that serves *image*."""
        pid: int = json.loads(self.sh(f"Z info {image} --json").stdout)["pid"]
        return pid

    @staticmethod
    def killing(pid: int) -> str:
        """Return the script that kills the process *pid* and waits until it is gone."""
        # Process 1 takes its time to wait for those who died.
        return f"kill -9 {pid}; while grep -q 'State:.[^Z]' /proc/{pid}/status 2>/dev/null; do sleep 0.05; done"

    def assert_reports_agree(self, node: str, image: str) -> None:
        """Compare what the kernel says of the zones with what we say."""
        self.sh(f"Z report {image} --format blkzone >ours; blkzone report {node} >theirs; diff ours theirs")

    def wait_until_written_or_read(self, node: str, nr_requests: int) -> None:
        """Wait until the disk has done so many requests more than now, which shows that its user is at work."""
        self.sh(self.waiting(node, nr_requests))

    @staticmethod
    def waiting(node: str, nr_requests: int) -> str:
        """Return the script that does :meth:`wait_until_written_or_read`."""
        # The first and the fifth number are reads and writes that were completed.
        stat = f"/sys/block/{node.removeprefix('/dev/')}/stat"
        return f"""count() {{ awk '{{print $1 + $5}}' {stat}; }}
            end=$(($(count) + {nr_requests}))
            until [ $(count) -ge $end ]; do sleep 0.05; done
            """

    def limits(self, node: str) -> dict[str, str]:
        """Return what sysfs says of the disk's queue."""
        names = (
            "zoned nr_zones chunk_sectors max_open_zones max_active_zones zone_append_max_bytes "
            "zone_write_granularity logical_block_size write_cache"
        )
        text = self.sh(f"cd /sys/block/{node.removeprefix('/dev/')}/queue; grep -H '' {names}").stdout
        return dict(line.split(":", 1) for line in text.splitlines())


def zonefs_super_block(*, label: str) -> bytes:
    """Return the first 4096 bytes of a zonefs, as mkzonefs of zonefs-tools writes them."""
    # Source: Linux, fs/zonefs/zonefs.h: magic, crc, label, uuid, features, uid, gid, perm.
    fields = (label.encode(), bytes(range(16)), 0, 0, 0, 0o640)
    block = bytearray(struct.pack("<II64s16sQIII", 0x5A4F4653, 0, *fields).ljust(4096, b"\0"))
    struct.pack_into("<I", block, 4, zlib.crc32(block) ^ 0xFFFFFFFF)
    return bytes(block)


@contextmanager
def attaching(guest: Guest) -> Iterator[Place]:
    """Give a place, and leave nothing attached."""
    guest.run(_START, timeout=120)
    place = Place(guest=guest)
    try:
        yield place
    finally:
        place.sh(
            f"""umount mnt 2>/dev/null || true
            for image in *.img
            do [ ! -e $image ] || Z detach --force $image 2>/dev/null || true
            done
            cd /; rm -rf {_PLACE}""",
            check=False,
        )


def check_kernel_zonefs(place: Place, via: str, *, front_end: str) -> None:
    """The kernel's zonefs on our mkfs, detached and attached again; what is off wp is refused and explained."""
    place.create("a.img", f"{SHAPE} --block-size 4096")
    place.sh("Z mkfs a.img")
    node = place.attach("a.img", via)
    limits = place.limits(node)
    assert limits["zoned"] == "host-managed"
    assert (limits["nr_zones"], limits["chunk_sectors"]) == ("16", "8192")
    assert (limits["max_open_zones"], limits["max_active_zones"]) == ("5", "7")
    assert limits["zone_append_max_bytes"] == str(512 << 10)
    assert (limits["logical_block_size"], limits["zone_write_granularity"]) == ("4096", "4096")
    assert limits["write_cache"] == "write back"
    assert re.search(r"host-managed +4M +16 +7 +5 +512K +4K", place.sh(f"lsblk -z {node}").stdout)
    (row,) = json.loads(place.sh("Z attach --list --json").stdout)
    assert (row["node"], row["via"], row["image"]) == (node, via, f"{_PLACE}/a.img")
    place.guest.load("zonefs")
    place.sh(
        f"""mkdir -p mnt; mount -t zonefs {node} mnt
        [ $(stat -c %s mnt/cnv/0) = {4 << 20} ]
        dd if=/dev/urandom of=data bs=64k count=20 status=none
        dd if=data of=mnt/seq/3 bs=64k oflag=direct conv=notrunc status=none
        dd if=data of=mnt/seq/13 bs=64k oflag=direct conv=notrunc,fsync status=none"""
    )
    assert f"{node} is in use: unmount it" in place.refusal(f"detach {node}")
    place.sh("umount mnt")
    place.assert_reports_agree(node, "a.img")
    # The kernel itself refuses what it knows to be wrong; of a zone that was not written since it was attached it
    # learns the write pointer from the first write, which we then refuse.
    off_wp = place.sh(f"dd if=data of={node} bs=4k count=1 seek={8 * ZONE_SECTORS // 8 + 1} oflag=direct", check=False)
    assert "Input/output error" in off_wp.stderr
    why = place.sh("Z why a.img").stdout
    assert f"{front_end}: write of 8 sectors at sector {8 * ZONE_SECTORS + 8} was refused" in why
    assert "a sequential zone is written at its write pointer only" in why
    place.sh(f'Z detach {node}; [ ! -e {node} ]; Z check a.img; [ -z "$(Z attach --list)" ]')
    again = place.attach("a.img", via)
    place.sh(
        f"""mount -t zonefs {again} mnt
        head -c {20 << 16} mnt/seq/3 | cmp - data; head -c {20 << 16} mnt/seq/13 | cmp - data
        umount mnt"""
    )
    # mkzonefs of zonefs-tools: all sequential zones are reset, the super block goes to the first conventional one.
    place.super_block("super", label="others")
    place.sh(
        f"""blkzone reset {again}; dd if=super of={again} bs=4k oflag=direct status=none
        mount -t zonefs {again} mnt; [ $(stat -c %s mnt/seq/3) = 0 ]
        dd if=data of=mnt/seq/0 bs=64k oflag=direct conv=notrunc status=none; umount mnt"""
    )
    place.assert_reports_agree(again, "a.img")
    place.sh("Z detach a.img")


def check_zone_operations(place: Place, via: str) -> None:
    """Blocks of 512 bytes, two queues, every condition and operation, limits."""
    place.create("b.img", f"{SHAPE} --block-size 512")
    place.sh("Z set-cond b.img --zone 6 ol; Z set-cond b.img --zone 7 ro")
    node = place.attach("b.img", via, "--queues", "2")
    assert place.limits(node)["logical_block_size"] == "512"
    assert place.sh(f"ls /sys/block/{node.removeprefix('/dev/')}/mq").stdout.split() == ["0", "1"]
    place.assert_reports_agree(node, "b.img")

    def zone(command: str, number: int) -> str:
        return f"blkzone {command} -o {number * ZONE_SECTORS} -l {ZONE_SECTORS} {node}\n"

    place.sh(
        f"""dd if=/dev/zero of={node} bs=512 count=3 seek={5 * ZONE_SECTORS} oflag=direct status=none
        {zone("open", 2)} {zone("open", 4)} {zone("close", 4)} {zone("finish", 15)}
        dd if={node} of=/dev/null bs=4k count=1 skip={6 * ZONE_SECTORS // 8} iflag=direct 2>/dev/null && exit 1
        dd if=/dev/zero of={node} bs=4k count=1 seek={7 * ZONE_SECTORS // 8} oflag=direct 2>/dev/null && exit 1
        dd if={node} of=/dev/null bs=4k count=1 skip={7 * ZONE_SECTORS // 8} iflag=direct status=none"""
    )
    place.assert_reports_agree(node, "b.img")
    conds = re.findall(r"zcond:\s*\d+\((\w+)\)", place.sh(f"blkzone report {node}").stdout)
    assert conds[:8] == ["nw", "nw", "oe", "em", "em", "oi", "of", "ro"]
    assert conds[15] == "fu"
    # A drive like the one that the kernel knows, states and all.
    place.sh(f"Z create like.img --like {node} --with-state >/dev/null 2>&1")
    place.assert_reports_agree(node, "like.img")
    assert json.loads(place.sh("Z info like.img --json").stdout)["max_active_zones"] == 7
    place.sh("rm like.img")
    # Five may be open. The implicitly open zone is closed for the fifth; no zone can be closed for the sixth.
    place.sh("".join(zone("open", number) for number in (8, 9, 10, 11)))
    assert place.sh(zone("open", 12), check=False).returncode
    assert "max_open_zones zones are open" in place.sh("Z why b.img").stdout
    place.sh(f"blkzone reset {node}")
    place.assert_reports_agree(node, "b.img")
    place.sh("Z detach b.img")


def check_killed_while_btrfs_writes(place: Place, via: str) -> None:
    """The server is killed twice while btrfs, which appends, writes; nothing is lost and nothing doubled."""
    place.create("c.img", "--size 512M --zone-size 16M --max-active-zones 14 --block-size 4096")
    node = place.attach("c.img", via)
    place.guest.load("btrfs")
    place.sh(f"mkfs.btrfs -q -O zoned -m single -d single {node} 2>&1; mkdir -p mnt; mount {node} mnt")
    writer = place.guest.start(
        f"""cd {_PLACE}
        for copy in 0 1 2 3 4; do dd if=/dev/urandom of=data.$copy bs=1M count=6 status=none; done
        for copy in 0 1 2 3; do cp data.$copy mnt/$copy; sync mnt/$copy; done"""
    )
    for copy in (0, 2):
        place.guest.wait_until(f"[ -e {_PLACE}/mnt/{copy} ]", timeout=180)
        place.kill_server("c.img")
        assert place.sh("Z attach c.img").stdout.strip() == node
    writer.wait(timeout=240)
    place.sh(
        f"""cp data.4 mnt/4
        sync mnt/4
        for copy in 0 1 2 3 4; do cmp data.$copy mnt/$copy; done
        btrfs scrub start -B mnt | grep 'no errors found'
        umount mnt
        btrfs check {node} 2>&1 | grep 'no error found'
        dmesg | grep -E 'BTRFS (error|critical)' && false
        Z detach c.img; Z check c.img"""
    )
    # The last copy's alone: a killed server loses the last second's counts.
    assert json.loads(place.sh("Z stats c.img --json").stdout)["device"]["appends"] >= 12


def check_detached_with_requests_in_flight(place: Place, via: str) -> None:
    """A reader gets data, errors or the end in time; then the node is gone and the image is whole."""
    place.create("d.img")
    node = place.attach("d.img", via)
    reader = place.guest.start(
        f"fio --name=x --filename={node} --direct=1 --rw=randread --bs=4k --ioengine=libaio --iodepth=32 --time_based "
        "--runtime=100 --size=64m --zonemode=none || true"
    )
    place.wait_until_written_or_read(node, 1000)
    place.sh(f"Z detach --force {node}; [ ! -e {node} ]; Z check d.img")
    reader.kill()
    reader.wait(check=False)


def check_detached_after_a_kill(place: Place, via: str) -> None:
    """A device whose server was killed can be detached; what was asked for is answered first."""
    place.create("e.img")
    node = place.attach("e.img", via)
    place.kill_server("e.img")
    reader = place.guest.start(
        f"echo $$ >{_PLACE}/reader; exec dd if={node} of=/dev/null bs=4k count=1 iflag=direct status=none"
    )
    assert place.sh("Z attach --list").stdout == ""
    place.guest.wait_until(f"grep -q blkdev_direct_IO /proc/$(cat {_PLACE}/reader)/stack")
    place.sh(f"Z detach --force e.img; [ ! -e {node} ]")
    assert reader.wait().returncode == 0
    assert "e.img is not attached" in place.refusal("detach e.img")
