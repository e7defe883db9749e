"""Front-ends that hold answers, on the host's clock: by the daemon's own record none comes early, and in what order.

Nothing is said of how late answers are: that is the machine's.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.nvme.conftest import new_device
from tests.nvme_tcp import conftest as nvme_tcp
from tests.vhost_user import serving as vhost_user
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.nvme.command import IoOpcode
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.virtio import blk_codec

ZONE = 2048
BLOCK = 4096
#: Of a drive that is so much slower, a finish takes a minute or so, and a read less than a tenth of a second.
SCALE = 1000
#: So many reads are answered before the finish.
NR_READS = 24


class Given(NamedTuple):
    """An answer that was given: when it was due, when its request arrived, and when it was given."""

    due_ns: int
    arrival_ns: int
    now_ns: int


@pytest.fixture
def device(tmp_path: Path) -> Iterator[ZonedDevice]:
    with new_device(tmp_path) as device:
        yield device


@contextmanager
def noted(device: ZonedDevice) -> Iterator[list[Given]]:
    """Time *device*, and note its answers until its waiting is stopped; none of them may be early."""
    device.start_timing("zn540", scale=SCALE)
    timing = device.timing
    assert timing is not None
    given: list[Given] = []
    answered = timing.answered

    def note(due_ns: int, arrival_ns: int, now_ns: int) -> None:
        if not timing.alarm.is_cut:
            given.append(Given(due_ns, arrival_ns, now_ns))
        answered(due_ns, arrival_ns, now_ns)

    timing.answered = note  # type: ignore[method-assign]
    yield given
    assert all(each.arrival_ns < each.due_ns <= each.now_ns for each in given)
    dues = [each.due_ns for each in given]
    assert dues == sorted(dues), "what is due first is answered first"
    statistics = timing.statistics()
    operations = statistics["operations"]
    assert isinstance(operations, dict)
    assert sum(times["count"] for times in operations.values()) == statistics["answers"] == len(given) + 1


def test_a_virtio_queue(device: ZonedDevice, tmp_path: Path) -> None:
    with ExitStack() as stack:
        given = stack.enter_context(noted(device))
        stack.enter_context(vhost_user.serving(device, vhost_user.blk_device(device), tmp_path / "socket"))
        frontend = stack.enter_context(Frontend(tmp_path / "socket"))
        frontend.start()
        queue = frontend.queues[0]
        assert BlkDriver(queue).write(ZONE, bytes(BLOCK)) == 0
        slow = queue.submit([BlkDriver.header(blk_codec.T_ZONE_FINISH, ZONE)], [1])
        quick = [queue.submit([BlkDriver.header(blk_codec.T_IN, ZONE)], [BLOCK, 1]) for _ in range(NR_READS)]
        for number in quick:
            assert queue.wait(number)[1][-1] == b"\0"
        queue.reap()
        assert slow not in queue._done, "the finish was submitted first"
        assert len(given) == NR_READS + 1
        device.stop_waiting()
        assert queue.wait(slow)[1] == [b"\0"]


def test_an_nvme_host(device: ZonedDevice) -> None:
    with ExitStack() as stack:
        given = stack.enter_context(noted(device))
        target = stack.enter_context(nvme_tcp.serving(device))
        queue = stack.enter_context(target.host()).queue(1)
        assert queue.write(1, ZONE // 8, bytes(BLOCK), BLOCK).status == 0
        slow = queue.send(IoOpcode.ZONE_SEND, nsid=1, cdws=(ZONE // 8, 0, 0, 2))
        quick = [queue.send(IoOpcode.READ, nsid=1, cdws=(ZONE // 8, 0, 0), room=BLOCK) for _ in range(NR_READS)]
        replies = [queue.receive() for _ in range(NR_READS)]
        assert not any(reply.status for reply in replies)
        assert sorted(reply.cid for reply in replies) == sorted(quick), "the finish was submitted first"
        assert len(given) == NR_READS + 1
        device.stop_waiting()
        assert queue.receive().cid == slow
