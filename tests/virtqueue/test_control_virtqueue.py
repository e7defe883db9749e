"""The control queue waits for requests that came before its own: in the loop, turned by hand, and over a socket."""

import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vhost_user.serving import create, serving
from tests.virtqueue.test_queue_server import Bench
from tests.virtqueue.test_scsi_host import DISK, command, rw
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.scsi.medium import Medium
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.virtqueue.control_virtqueue import ControlVirtqueue
from zonefs_emu.virtqueue.scsi_host import ScsiHost

LUN_RESET = struct.pack("<II8sQ", 0, 5, DISK, 0)


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def bench(device: ZonedDevice, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The first of the two queues is for control."""
    bench = Bench(device, is_packed=request.param, first=ControlVirtqueue)
    control, requests = (line.queue for line in bench.lines)
    assert isinstance(control, ControlVirtqueue)
    control.earlier = [requests]
    yield bench
    bench.close()


def test_it_waits_for_the_worker_and_for_what_waits_behind_it(bench: Bench) -> None:
    control, requests = bench.lines
    numbers = [requests.submit(content) for content in (b"w", b"a")]
    bench.turn()
    number = control.submit(b"c")
    bench.turn()
    assert control.reap() == requests.reap() == []
    assert control.queue.is_waiting
    bench.echo.go_on.set()
    answered: list[int] = []
    while not answered:
        bench.turn()
        answered = control.reap()
    assert answered == [number]
    assert requests.reap() == numbers


def test_it_waits_for_a_request_whose_kick_comes_later(bench: Bench) -> None:
    control, requests = bench.lines
    earlier = requests.pair.add([b"a"], [1])
    number = control.submit(b"c")
    bench.turn()
    assert control.reap() == []
    os.eventfd_write(requests.queue.kick_fd, 1)
    bench.turn()
    assert requests.reap() == [earlier]
    assert control.reap() == [number]


def test_requests_that_come_later_do_not_delay_it_for_ever(bench: Bench) -> None:
    control, requests = bench.lines
    number = control.pair.add([b"c"], [1])
    requests.pair.add([b"a"], [1])
    for _ in range(requests.queue.size):
        assert not control.queue.run()
        assert requests.queue.run()
        requests.reap()
        requests.pair.add([b"a"], [1])
    assert control.queue.run()
    assert control.reap() == [number]


def test_each_control_request_waits_for_itself(bench: Bench) -> None:
    control, requests = bench.lines
    numbers = [control.pair.add([b"c"], [1]) for _ in range(2)]
    assert control.queue.run()
    assert control.reap() == numbers[:1]
    requests.pair.add([b"a"], [1])
    assert not control.queue.run()
    assert requests.queue.run()
    assert control.queue.run()
    assert control.reap() == numbers[1:]


@pytest.mark.parametrize("state", ["broken", "disabled"])
def test_it_does_not_wait_for_a_queue_that_answers_nothing(bench: Bench, state: str) -> None:
    control, requests = bench.lines
    requests.pair.add([b"a"], [1])
    number = control.pair.add([b"c"], [1])
    assert not control.queue.run()
    if state == "broken":
        requests.queue.broken = True
    else:
        requests.queue.enabled = False
    assert control.queue.run()
    assert control.reap() == [number]


def test_a_queue_that_is_stopped_waits_no_more(bench: Bench) -> None:
    control, requests = bench.lines
    requests.pair.add([b"a"], [1])
    control.pair.add([b"c"], [1])
    assert not control.queue.run()
    control.queue.base = control.queue.stop()
    assert not control.queue.is_waiting
    control.start()


@pytest.mark.parametrize("is_timed", [False, True], ids=["", "timed"])
def test_a_reset_is_answered_after_a_flush_that_the_hosts_disk_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_timed: bool
) -> None:
    device = ZonedDevice.open(create(tmp_path / "image"))
    if is_timed:
        device.start_timing("zn540", scale=1e9)
    go_on, flush = threading.Event(), Medium.flush

    def blocked(medium: Medium) -> None:
        assert go_on.wait(20)
        flush(medium)

    monkeypatch.setattr(Medium, "flush", blocked)
    with (
        serving(device, ScsiHost(device, serial="serial", nr_request_queues=2), tmp_path / "socket"),
        Frontend(tmp_path / "socket", nr_queues=4) as frontend,
    ):
        frontend.start()
        control, _, requests, _ = frontend.queues
        frame = DISK + bytes(11)
        earlier = [
            requests.submit([frame + rw(0x91, 0, 0).ljust(32, b"\0")], [108]),  # SYNCHRONIZE CACHE(16)
            requests.submit([frame + rw(0x88, 0, 1).ljust(32, b"\0")], [108, 512]),
        ]
        reset = control.submit([LUN_RESET], [1])
        assert command(frontend, bytes(6), queue=3) == (0, b""), "the loop goes on"
        for queue in (control, requests):
            queue.reap()
            assert queue.order == []
        go_on.set()
        assert control.wait(reset)[1] == [b"\0"]
        requests.reap()
        assert sorted(requests.order) == sorted(earlier)
    device.close()


def test_a_reset_gives_what_fills_a_timed_queue(tmp_path: Path) -> None:
    """The driver has as many reads under way as the ring has entries, and all answers are due in years."""
    device = ZonedDevice.open(create(tmp_path / "image"))
    device.start_timing("zn540", scale=1e9)
    with (
        serving(device, ScsiHost(device, serial="serial"), tmp_path / "socket"),
        Frontend(tmp_path / "socket", nr_queues=3, queue_size=8, indirect=True) as frontend,
    ):
        frontend.start()
        control, _, requests = frontend.queues
        frame = DISK + bytes(11) + rw(0x88, 0, 1).ljust(32, b"\0")
        earlier = [requests.submit([frame], [108, 512]) for _ in range(8)]
        assert control.request([LUN_RESET], [1])[1] == [b"\0"]
        requests.reap()
        assert sorted(requests.order) == sorted(earlier)
    device.close()
