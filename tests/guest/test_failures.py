"""Failures on demand, in a running guest: what Linux's drivers and file systems do with them."""

import errno
import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.served import Served
from tools.guest.machine import AttachedDisk, Guest

pytestmark = pytest.mark.qemu

GEOMETRY: Final = "--size 64M --zone-size 4M --nr-conv 1 --max-open-zones 8"


def mount_zonefs(guest: Guest, disk: AttachedDisk, options: str) -> None:
    guest.load("zonefs")
    guest.run(f"mkdir -p /mnt/zonefs; mount -t zonefs -o {options} {disk.path} /mnt/zonefs")


def append(guest: Guest, number: int, blocks: int) -> str:
    """Append to a file of kernel zonefs in one write; "ok", or why not."""
    script = f"dd if=/dev/zero of=/mnt/zonefs/seq/{number} bs={blocks * 4}k count=1 oflag=append,direct conv=notrunc"
    done = guest.run(script, check=False)
    return "ok" if done.returncode == 0 else done.stderr.splitlines()[0].rpartition(": ")[2]


def sizes(guest: Guest, count: int) -> list[int]:
    names = " ".join(str(number) for number in range(count))
    return [int(size) for size in guest.run(f"cd /mnt/zonefs/seq; stat -c %s {names}").stdout.split()]


def jobs(output: str) -> list[dict[str, Any]]:
    """Return what fio says of its jobs; the first error stands before the JSON."""
    found: list[dict[str, Any]] = json.loads(output[output.index("{") :])["jobs"]
    return found


def test_zonefs_meets_failing_writes(guest: Guest, tmp_path: Path) -> None:
    """File N is zone N + 1: the first one, conventional, holds the super block."""
    served = Served(tmp_path, create=GEOMETRY)
    served.verb("mkfs")
    with served:
        disk = guest.attach("scsi", served.scsi_socket)
        mount_zonefs(guest, disk, "errors=zone-ro")
        assert [append(guest, number, 1) for number in range(4)] == ["ok"] * 4
        # One failure: sd tries again, and the program gets no error.
        served.verb("inject", "fail", "--on", "write", "--zone", "1")
        # Two blocks get there. When sd tries again, that is not wp any more.
        served.verb("inject", "partial", "--on", "write", "--zone", "2", "--size", "8K")
        served.verb("inject", "fail", "--on", "write", "--zone", "3", "--every")
        served.verb("inject", "offline", "--on", "write", "--zone", "4")
        expected = ["ok", "Remote I/O error", "Input/output error", "Remote I/O error"]
        assert [append(guest, number, 8) for number in range(4)] == expected
        # zone-ro: what failed is no longer written, an offline zone is empty.
        assert sizes(guest, 4) == [9 * 4096, 4096, 4096, 0]
        denied = "Operation not permitted"
        assert [append(guest, number, 8) for number in range(6)] == ["ok", denied, denied, denied, "ok", "ok"]
        rules = [refusal["rule"] for refusal in served.refusals()]
        assert rules == [*["INJECTED"] * 2, "UNALIGNED_WP", *["INJECTED"] * rules[3:].count("INJECTED"), "ZONE_OFFLINE"]
        guest.run("umount /mnt/zonefs")

        # errors=repair: the file is as long as what got there, and is written on.
        served.verb("inject", "--clear")
        served.verb("inject", "partial", "--on", "write", "--zone", "1", "--size", "8K")
        mount_zonefs(guest, disk, "errors=repair")
        assert sizes(guest, 4) == [17 * 4096, 3 * 4096, 4096, 0]
        assert append(guest, 0, 8) == "Remote I/O error"
        assert sizes(guest, 1) == [19 * 4096]
        assert [append(guest, number, 8) for number in range(3)] == ["ok"] * 3
        assert sizes(guest, 3) == [27 * 4096, 11 * 4096, 9 * 4096]
        guest.run("umount /mnt/zonefs")

        # errors=remount-ro: after the error of one file none is written, and all are read.
        served.verb("inject", "fail", "--on", "write", "--zone", "2", "--every")
        mount_zonefs(guest, disk, "errors=remount-ro")
        denied = "Read-only file system"
        assert [append(guest, number, 8) for number in (0, 1, 2, 1)] == ["ok", "Input/output error", denied, denied]
        assert sizes(guest, 3) == [35 * 4096, 11 * 4096, 9 * 4096]
        assert guest.run("cat /mnt/zonefs/seq/[012] | wc -c").stdout.split() == [str(55 * 4096)]
        guest.run("umount /mnt/zonefs")

        # errors=zone-offline: the file is gone as if its zone were, and only that. The next mount sees a good zone.
        mount_zonefs(guest, disk, "errors=zone-offline")
        assert [append(guest, number, 8) for number in (1, 0, 2)] == ["Input/output error", "ok", "ok"]
        assert sizes(guest, 3) == [43 * 4096, 0, 17 * 4096]
        assert append(guest, 1, 8) == "Operation not permitted"
        assert guest.run("cat /mnt/zonefs/seq/1", check=False).returncode
        assert guest.run("stat -c %a /mnt/zonefs/seq/1").stdout.split() == ["0"]
        guest.run("umount /mnt/zonefs")
        assert served.written(2) == 11 * 8
        served.verb("inject", "--clear")
        mount_zonefs(guest, disk, "errors=zone-offline")
        assert append(guest, 1, 8) == "ok"
        assert sizes(guest, 3) == [43 * 4096, 19 * 4096, 17 * 4096]
        guest.run("umount /mnt/zonefs")
        disk.detach()


def test_fio_continues_on_error(guest: Guest, tmp_path: Path) -> None:
    with Served(tmp_path, create=GEOMETRY) as served:
        disk = guest.attach("scsi", served.scsi_socket)
        fio = f"fio --filename={disk.path} --zonemode=zbd --direct=1 --bs=64k --continue_on_error=all"
        fio += " --output-format=json"
        # The 20th write of zone 4 fails and so do those after it; zone 6 is none of its business.
        served.verb("inject", "fail", "--on", "write", "--zone", "4", "--nth", "20", "--every")
        done = guest.run(
            f"{fio} --name=failing --rw=write --offset=16M --size=4M --name=sound --rw=write --offset=24M --size=4M",
            timeout=100,
            check=False,
        )
        failing, sound = jobs(done.stdout)
        assert (failing["first_error"], failing["write"]["io_kbytes"]) == (errno.EIO, 19 * 64)
        assert (sound["total_err"], sound["write"]["io_kbytes"]) == (0, 4096)
        assert served.written(4) * 512 == 19 * 65536
        assert {refusal["rule"] for refusal in served.refusals()} == {"INJECTED"}

        # A medium error of a read is final: sd does not try again. To fio ENODATA, unlike EIO, is fatal.
        served.verb("inject", "fail", "--on", "read", "--zone", "6", "--nth", "30")
        read = f"{fio} --name=reading --rw=read --offset=24M --size=4M"
        (reading,) = jobs(guest.run(read, timeout=100, check=False).stdout)
        assert (reading["total_err"], reading["first_error"]) == (1, errno.ENODATA)
        assert reading["read"]["io_kbytes"] == 29 * 64
        (reading,) = jobs(guest.run(read, timeout=100).stdout)
        assert (reading["total_err"], reading["read"]["io_kbytes"]) == (0, 4096)

        # Mended: everything can be written.
        served.verb("inject", "--clear")
        guest.run(["blkzone", "reset", disk.path])
        guest.run(f"{fio} --name=repaired --rw=write --offset=16M --size=16M", timeout=100)
        assert served.conds()[4:8] == ["fu"] * 4
        disk.detach()
