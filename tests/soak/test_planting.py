"""An unforeseen exception in any function below a boundary costs the request that meets it and no other."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tools.soak.crowd import Crowd
from tools.soak.planting import PACKAGE, PLANTED_VARIABLE, boundaries
from zonefs_emu.device.unforeseen import REPORT_VARIABLE

#: Which front-end's name the exceptions of a load's requests are contained under.
FRONT_ENDS = {
    "files": "zonefs", "verbs": "cli", "blk": "vhost-user-blk", "scsi": "vhost-user-scsi",
    "nvme": "nvme", "vfio": "nvme",
}  # fmt: skip
#: An observer that is off reports nothing more, nor does a second one of its name, such as the zone listener of another
#: controller. The methods are those that zone listeners call.
OBSERVERS = re.compile(
    r"device/(refusals|counters|oplog)\.py|virtqueue/changes\.py|.* (QueueServer|Waker)\.wake$"
    r"|.* ChangedZones\.(touched|_lasting)$|.* Controller\.(_zones_changed|_wants_events)$"
)
#: So many requests of every load without a new exception: there is none left to meet.
NR_QUIET_REQUESTS = 60


def test_boundaries_are_found_in_the_source() -> None:
    """One for each kind of request, at the least."""
    found = {Path(path).relative_to(PACKAGE).as_posix() for path in boundaries()}
    assert {
        "daemon/control.py",
        "fs/boundary.py",
        "virtqueue/virtqueue.py",
        "virtqueue/worker.py",
        "ublk/io_queue.py",
        "vduse/vduse_device.py",
        "nvme_tcp/queue_connection.py",
        "nvme_tcp/server.py",
        "vfio_user/pci_drive.py",
        "vfio_user/vfio_server.py",
    } <= found


def contained(planted: Path, reported: Path) -> Counter[str]:
    """Return how many exceptions the boundaries of each front-end have contained; everything planted must be there."""
    reports = "\n".join(reported.read_text().split("\0"))
    names = set(re.findall(r"^\S*PlantedError: (\S+)$", reports, re.MULTILINE))
    lines = planted.read_text().splitlines()
    lost = [line for line in lines if line.split(" ", 1)[1] not in names and not OBSERVERS.match(line)]
    assert not lost, "planted, and caught by something that is no boundary"
    return Counter(re.findall(r"^ERROR \S+ internal error in ([^,]+),", reports, re.MULTILINE))


def run_until_nothing_new(crowd: Crowd) -> None:
    """Run all loads until each has made many requests since the last exception."""
    deadline = time.monotonic() + 500
    planted, done = -1, {load.name: 0 for load in crowd.loads}
    while True:
        crowd.check_alive()
        now = crowd.daemon.nr_planted
        if now != planted:
            planted, done = now, {load.name: load.nr_done for load in crowd.loads}
        elif all(load.nr_done >= done[load.name] + NR_QUIET_REQUESTS for load in crowd.loads):
            return
        assert time.monotonic() < deadline, {load.name: load.nr_done for load in crowd.loads}
        time.sleep(0.2)


@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_exception_in_any_function_costs_one_request(tmp_path: Path) -> None:
    """Under load of a mount, four disks and the control socket; and what is left is what was answered."""
    crowd = Crowd(tmp_path, seed=1, planting="once")
    try:
        crowd.begin(faulty=False)
        run_until_nothing_new(crowd)
        crowd.end()  # by a signal, with exit code 0; compares the image with all that was answered
    finally:
        if crowd.daemon.is_running:
            crowd.daemon.kill()
    assert len(crowd.daemon.planted.read_text().splitlines()) > 350
    by_front_end = contained(crowd.daemon.planted, crowd.daemon.contained)
    felt: Counter[str] = Counter()
    for load, front_end in FRONT_ENDS.items():
        felt[front_end] += crowd.refused[load] + crowd.lost[load]
    for front_end, nr_failed in felt.items():
        assert nr_failed <= by_front_end[front_end], f"{front_end} felt {nr_failed} errors; {by_front_end}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_exception_in_any_function_below_a_kernel_costs_one_request(tmp_path: Path) -> None:
    """Under load of ublk, VDUSE and NVMe/TCP; what plays the kernel is in the process of the front-ends."""
    planted, reported = tmp_path / "planted", tmp_path / "contained"
    done = subprocess.run(
        [sys.executable, "-m", "tools.soak.kernels", str(tmp_path)], check=False, capture_output=True, text=True,
        env=os.environ | {PLANTED_VARIABLE: str(planted), REPORT_VARIABLE: str(reported)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(planted.read_text().splitlines()) > 300
    by_front_end = contained(planted, reported)
    felt: Counter[str] = Counter()
    for load, (nr_done, nr_failed) in json.loads(done.stdout).items():
        assert nr_done
        felt[load.partition("-")[0]] += nr_failed
    for front_end, nr_failed in felt.items():
        assert nr_failed <= by_front_end[front_end], f"{front_end} felt {nr_failed} errors; {by_front_end}"
