import gc
import select
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.vhost_user.serving import ZONE, Daemon, blk_model, create, serving
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.model.transitions import Operation
from zonefs_emu.testing.vhost_frontend import BlkDriver, Frontend
from zonefs_emu.vhost_user.backend import Backend, serve_in_thread
from zonefs_emu.virtio import blk
from zonefs_emu.virtqueue.scsi import ScsiModel


def test_one_front_end_after_the_other(device: ZonedDevice, tmp_path: Path) -> None:
    with serving(device, blk_model(device), tmp_path / "socket"):
        for number in range(4):
            with Frontend(tmp_path / "socket") as frontend:
                frontend.start()
                assert BlkDriver(frontend.queues[0]).write(2 * ZONE + number, bytes(512)) == 0


def test_a_second_front_end_waits_for_the_first_to_leave(device: ZonedDevice, tmp_path: Path) -> None:
    with serving(device, blk_model(device), tmp_path / "socket"):
        with Frontend(tmp_path / "socket") as first:
            first.start()
            second = Frontend(tmp_path / "socket")
            thread = threading.Thread(target=second.start)
            thread.start()
            assert BlkDriver(first.queues[0]).read(0, 512)[0] == 0
            assert thread.is_alive()
        thread.join(20)
        assert BlkDriver(second.queues[0]).read(0, 512)[0] == 0
        second.close()


def test_a_socket_that_is_connected_already_is_served_once(device: ZonedDevice) -> None:
    ours, theirs = socket.socketpair()
    thread = serve_in_thread(Backend(device, blk_model(device), connected=ours), "backend")
    with Frontend(connected=theirs) as frontend:
        frontend.start()
        assert BlkDriver(frontend.queues[0]).read(0, 512)[0] == 0
    thread.join(20)
    assert not thread.is_alive()


def test_several_front_ends_see_one_truth(device: ZonedDevice, tmp_path: Path) -> None:
    with (
        serving(device, blk_model(device), tmp_path / "a"),
        serving(device, blk_model(device), tmp_path / "b"),
        Frontend(tmp_path / "a") as first,
        Frontend(tmp_path / "b") as second,
    ):
        first.start()
        second.start()
        one, two = BlkDriver(first.queues[0]), BlkDriver(second.queues[0])
        for number in range(20):
            assert (one, two)[number % 2].append(2 * ZONE, bytes([number]) * 512) == (0, 2 * ZONE + number)
        assert one.report() == two.report()
        assert one.read(2 * ZONE, 10240) == two.read(2 * ZONE, 10240)


def test_idle_costs_no_processor_time(tmp_path: Path) -> None:
    daemon = Daemon(create(tmp_path / "image"), tmp_path / "socket")
    try:
        with Frontend(tmp_path / "socket", event_idx=True) as frontend:
            frontend.start()
            driver = BlkDriver(frontend.queues[0])
            for _ in range(100):
                driver.read(0, 512)
            time.sleep(0.2)
            before = daemon.cpu_seconds()
            time.sleep(1)
            # The test's own daemon looks ten times a second whether its thread lives.
            assert daemon.cpu_seconds() - before <= 0.02
            assert driver.read(0, 512)[0] == 0
        daemon.stop()
    finally:
        daemon.process.kill()
        daemon.process.wait()


def test_nothing_is_left_behind(device: ZonedDevice, tmp_path: Path) -> None:
    """Descriptors and threads of connections that have ended."""

    def descriptors() -> dict[str, str]:
        gc.collect()  # the front-ends of this test are cycles, and so are those of earlier ones
        found = {}
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # the one of this directory
                found[entry.name] = str(entry.readlink())
        return found

    def use(path: Path) -> None:
        with serving(device, blk_model(device), path):
            for _ in range(3):
                with Frontend(path) as frontend:
                    frontend.start()
                    BlkDriver(frontend.queues[0]).flush()

    descriptors_before, threads_before = descriptors(), set(threading.enumerate())
    for round_no in range(3):
        use(tmp_path / f"socket{round_no}")
    assert descriptors() == descriptors_before
    # Not their number: threads that earlier tests left in trio's pool end by themselves after ten idle seconds.
    assert set(threading.enumerate()) <= threads_before


def test_requests_that_wait_do_not_stop_other_queues(
    device: ZonedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = blk_model(device, nr_queues=2)
    entered, leave = threading.Event(), threading.Event()
    real_flush = model.port.flush

    def slow_flush() -> object:
        entered.set()
        assert leave.wait(20)
        return real_flush()

    monkeypatch.setattr(model.port, "flush", slow_flush)
    with serving(device, model, tmp_path / "socket"), Frontend(tmp_path / "socket", nr_queues=2) as frontend:
        frontend.start()
        first, second = frontend.queues
        flush = first.submit([BlkDriver.header(blk.T_FLUSH, 0)], [1])
        after = first.submit([BlkDriver.header(blk.T_IN, 0)], [512, 1])
        assert entered.wait(20)
        assert BlkDriver(second).read(0, 512)[0] == 0
        first.reap()
        assert not first.order, "requests of a queue stay in order"
        leave.set()
        assert first.wait(after)[1][1] == b"\0"
        assert first.wait(flush)[1] == [b"\0"]
        assert first.order == [flush, after]


def test_an_injected_delay_keeps_its_own_answer_back_and_no_other_queues(device: ZonedDevice, tmp_path: Path) -> None:
    leave = threading.Event()
    slept: list[int] = []

    def clock(duration_ns: int) -> None:
        slept.append(duration_ns)
        assert leave.wait(20)

    device.sleep_ns = clock
    writes = frozenset((Operation.WRITE,))
    device.inject(Fault(effect=Effect.DELAY, operations=writes, delay_min_ns=7, delay_max_ns=7))
    model = blk_model(device, nr_queues=2)
    with serving(device, model, tmp_path / "socket"), Frontend(tmp_path / "socket", nr_queues=2) as frontend:
        frontend.start()
        first, second = (BlkDriver(queue) for queue in frontend.queues)
        late = first.submit_write(2 * ZONE, b"a" * 512)
        # The other queue's are with the same worker, because there are faults; the write is done by now.
        while second.read(2 * ZONE, 512) != (0, b"a" * 512):
            time.sleep(0.01)
        assert second.write(2 * ZONE + 1, bytes(512)) == blk.S_OK
        first.queue.reap()
        assert (slept, first.queue.order) == ([7], [])
        leave.set()
        assert first.status(late) == blk.S_OK


def test_the_event_queue_of_a_scsi_host(device: ZonedDevice, tmp_path: Path) -> None:
    """Its buffers are kept, its kicks cost nothing, and what others change is told through it."""
    model = ScsiModel(device, serial="serial")
    with serving(device, model, tmp_path / "socket"), Frontend(tmp_path / "socket", nr_queues=3) as frontend:
        frontend.start()
        _, events, requests = frontend.queues
        buffers = [events.submit([], [16]) for _ in range(4)]
        inquiry = b"\x01\0\x40" + bytes(5) + bytes(11) + bytes.fromhex("12 00 00 0024 00").ljust(32, b"\0")
        _, parts = requests.request([inquiry], [108, 36])
        assert parts[1][0] == 0x14  # a host-managed zoned block device
        events.reap()
        assert not events.order
        other = device.port("command line", model.port.dialect)
        other.write(4 * ZONE, 1, [bytes(512)])
        assert select.select([events.call_fd], [], [], 10)[0]
        _, parts = events.wait(buffers[0])
        assert parts[0][:4] == b"\3\0\0\0"
