"""An unforeseen exception in any function below a boundary costs the request that meets it and no other."""

import re
import time
from collections import Counter
from pathlib import Path

import pytest

from tools.soak.crowd import Crowd
from tools.soak.planting import PACKAGE, boundaries

#: Which front-end's name the exceptions of a load's requests are contained under.
FRONT_ENDS = {"files": "zonefs", "verbs": "cli", "blk": "vhost-user-blk", "scsi": "vhost-user-scsi", "nvme": "nvme"}
#: An observer that is off reports nothing more. The last is what a zone listener of a queue server calls.
OBSERVERS = re.compile(r"device/(refusals|counters|oplog)\.py|virtqueue/changes\.py|.* QueueServer\.wake$")
#: So many requests of every load without a new exception: there is none left to meet.
NR_QUIET_REQUESTS = 150


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
    } <= found


def run_until_nothing_new(crowd: Crowd) -> None:
    """Run all loads until each has made many requests since the last exception."""
    deadline = time.monotonic() + 170
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
@pytest.mark.timeout(300)
def test_an_exception_in_any_function_costs_one_request(tmp_path: Path) -> None:
    """Under load of a mount, three disks and the control socket; and what is left is what was answered."""
    crowd = Crowd(tmp_path, seed=1, planting="once")
    try:
        crowd.begin(faulty=False)
        run_until_nothing_new(crowd)
        crowd.end()  # by a signal, with exit code 0; compares the image with all that was answered
    finally:
        if crowd.daemon.is_running:
            crowd.daemon.kill()
    planted = crowd.daemon.planted.read_text().splitlines()
    assert len(planted) > 350
    reports = crowd.daemon.contained.read_text().split("\0")
    names = set(re.findall(r"^\S*PlantedError: (\S+)$", "\n".join(reports), re.MULTILINE))
    lost = [line for line in planted if line.split(" ", 1)[1] not in names and not OBSERVERS.match(line)]
    assert not lost, "planted, and caught by something that is no boundary"
    by_front_end = Counter(re.findall(r"^ERROR \S+ internal error in ([^,]+),", "\n".join(reports), re.MULTILINE))
    for load, front_end in FRONT_ENDS.items():
        felt = crowd.refused[load] + crowd.lost[load]
        assert felt <= by_front_end[front_end], f"{load} felt {felt} errors, of which {by_front_end} were its own"
