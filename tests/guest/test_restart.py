"""The daemon dies, QEMU dies: what a guest that is at work notices of it, which is nothing but a pause."""

import random
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

from tests.served import Served
from tools.guest.kit import find_kit
from tools.guest.machine import AttachedDisk, Guest, Job

pytestmark = pytest.mark.qemu

RECORD_BYTES: Final = 4096
ZONE_BYTES: Final = 4 << 20
#: Fewer would hardly meet a request in the middle; more would only take time.
MIN_KILLS: Final = 3
MAX_KILLS: Final = 8
#: How many zones are filled with records meanwhile.
NR_ZONES: Final = 2
#: On a loaded machine a record may take a while; one that was lost takes for ever.
STUCK_SECONDS: Final = 60

# Writes numbered records one after the other, a zone after the other, and says when one of them has not been written.
WRITE_RECORDS: Final = """
import mmap, os, struct, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT)
start, nr_zones, per_zone, zone_bytes, pause = *map(int, sys.argv[2:6]), float(sys.argv[6])
buffer = mmap.mmap(-1, 4096)
for number in range(nr_zones * per_zone):
    zone_no, index = divmod(number, per_zone)
    buffer[:] = struct.pack("<Q", number) * 512
    assert os.pwritev(fd, [buffer], start + zone_no * zone_bytes + index * 4096) == 4096
    if not number:
        print("writing", flush=True)
    time.sleep(pause)
print("all written")
"""


def start_records(
    guest: Guest, disk: AttachedDisk, first_zone: int, nr_zones: int, per_zone: int, *, pause: float = 0
) -> Job:
    numbers = (first_zone * ZONE_BYTES, nr_zones, per_zone, ZONE_BYTES, pause)
    return guest.start_python(WRITE_RECORDS, disk.path, *map(str, numbers))


def wait_while_records_come(writing: Job, served: Served, zones: Iterable[int]) -> None:
    """Wait for the end of *writing*, for as long as it gets on: a request that is lost would be waited for in vain."""
    written, deadline = -1, 0.0
    while writing.poll() is None:
        found = sum(served.written(zone_no) for zone_no in zones)
        if found != written:
            written, deadline = found, time.monotonic() + STUCK_SECONDS
        assert time.monotonic() < deadline, f"no record has come for {STUCK_SECONDS} s after {written} sectors"
        time.sleep(0.2)


def records(served: Served, zone_no: int, nr_records: int) -> list[int]:
    """Return the numbers of the records in a zone; data first: the image's offsets are the device's."""
    with served.image.open("rb") as image:
        image.seek(zone_no * ZONE_BYTES)
        found = image.read(nr_records * RECORD_BYTES)
    return [number for (number,) in struct.iter_unpack("<Q4088x", found)]


@pytest.mark.parametrize(
    ("shape", "capacity_bytes"),
    [
        ("--block-size 512", ZONE_BYTES),
        ("--block-size 4096", ZONE_BYTES),
        ("--block-size 512 --zone-capacity 3M", 3 << 20),
    ],
    ids=["512", "4096", "capacity"],
)
def test_killed_daemon_loses_and_doubles_nothing(guest: Guest, tmp_path: Path, shape: str, capacity_bytes: int) -> None:
    """Killed again and again under full load, while data is written and while it is read back and verified."""
    create = f"--size 512M --zone-size {ZONE_BYTES} --nr-conv 2 --max-open-zones 8 {shape}"
    with Served(tmp_path, create=create) as served:
        disk = guest.attach("scsi", served.scsi_socket)
        # A slow medium: of the requests that a kill meets some are done and not yet answered.
        served.verb("inject", "delay", "--on", "write", "--every", "--delay", "0ms-2ms")
        verify = guest.start(
            f"fio --name=verify --filename={disk.path} --zonemode=zbd --direct=1 --ioengine=libaio --iodepth=16"
            f" --rw=randwrite --bs=4k --offset=16M --size={2 * ZONE_BYTES} --max_open_zones=4"
            " --verify=crc32c --verify_fatal=1"
        )
        per_zone = capacity_bytes // RECORD_BYTES
        writing = start_records(guest, disk, 64, NR_ZONES, per_zone)
        kills = 0
        # Not in step with anything: each kill meets the requests at another instant.
        pauses = random.Random(3)
        while (verify.poll() is None or writing.poll() is None) and kills < MAX_KILLS:
            served.wait_until_ready()
            time.sleep(pauses.uniform(0.1, 1.0))
            served.kill()
            served.start()
            kills += 1
        assert kills >= MIN_KILLS
        served.wait_until_ready()
        verify.wait(120)
        wait_while_records_come(writing, served, range(64, 64 + NR_ZONES))
        assert writing.wait().stdout == "writing\nall written\n"
        assert served.refusals() == []
        report = guest.run(["blkzone", "report", disk.path]).stdout
        assert report == served.blkzone_report()
        disk.detach()
    found = [number for zone_no in range(64, 64 + NR_ZONES) for number in records(served, zone_no, per_zone)]
    assert found == list(range(NR_ZONES * per_zone))


def test_another_qemu_finds_what_the_last_one_wrote(guest: Guest, tmp_path: Path) -> None:
    """The daemon stays, and takes the next connection as it took the first."""
    kit = find_kit()
    assert kit is not None
    with Served(tmp_path, create=f"--size 64M --zone-size {ZONE_BYTES} --max-open-zones 8") as served:
        with Guest(kit, memory_mib=512) as other:
            disk = other.attach("scsi", served.scsi_socket)
            other.run(
                f"echo before | dd of={disk.path} bs=4k conv=sync oflag=direct; blkzone open -o 8192 -c 1 {disk.path}"
            )
            # Cut off in the middle of writing.
            job = start_records(other, disk, 4, 1, 1024, pause=0.01)
            other.wait_until(f"grep -q writing {job.directory}/stdout")
            time.sleep(0.5)
            assert job.poll() is None
        disk = guest.attach("scsi", served.scsi_socket)
        read = f"dd if={disk.path} bs=4k count=1 iflag=direct status=none | tr -d '\\0'"
        assert guest.run(read).stdout == "before\n"
        assert guest.run(["blkzone", "report", disk.path]).stdout == served.blkzone_report()
        assert served.conds()[:5] == ["oi", "oe", "em", "em", "oi"]
        written = served.written(4) * 512
        guest.run(f"echo after | dd of={disk.path} bs=4k seek=1 conv=sync oflag=direct")
        assert served.refusals() == []
        disk.detach()
    found = records(served, 4, written // RECORD_BYTES)
    assert found
    assert found == list(range(len(found)))
