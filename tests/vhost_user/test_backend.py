import gc
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.readable import is_readable
from tests.vhost_user.serving import ZONE, Daemon, blk_device, create, serving, still_serves
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import PeerError
from zonefs_emu.model.transitions import Operation
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.driver_rings import GUEST_BASE
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.vhost_user.backend import Backend, serve_in_thread
from zonefs_emu.vhost_user.connection import Connection
from zonefs_emu.vhost_user.dispatcher import Dispatcher
from zonefs_emu.vhost_user.memory_map import MemoryMap
from zonefs_emu.vhost_user.messages import Request
from zonefs_emu.vhost_user.migration import Migration
from zonefs_emu.vhost_user.rings import Rings
from zonefs_emu.virtio import blk_codec, scsi
from zonefs_emu.virtqueue.queue_server import QueueServer
from zonefs_emu.virtqueue.scsi_host import ScsiHost


def test_one_front_end_after_the_other(device: ZonedDevice, tmp_path: Path) -> None:
    with serving(device, blk_device(device), tmp_path / "socket"):
        for number in range(4):
            with Frontend(tmp_path / "socket") as frontend:
                frontend.start()
                assert BlkDriver(frontend.queues[0]).write(2 * ZONE + number, bytes(512)) == 0


def test_a_second_front_end_waits_for_the_first_to_leave(device: ZonedDevice, tmp_path: Path) -> None:
    with serving(device, blk_device(device), tmp_path / "socket"):
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
    thread = serve_in_thread(Backend(device, blk_device(device), connected=ours), "backend")
    with Frontend(connected=theirs) as frontend:
        frontend.start()
        assert BlkDriver(frontend.queues[0]).read(0, 512)[0] == 0
    thread.join(20)
    assert not thread.is_alive()


def test_several_front_ends_see_one_truth(device: ZonedDevice, tmp_path: Path) -> None:
    with (
        serving(device, blk_device(device), tmp_path / "a"),
        serving(device, blk_device(device), tmp_path / "b"),
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
        with serving(device, blk_device(device), path):
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
    virtio_device = blk_device(device, nr_queues=2)
    entered, leave = threading.Event(), threading.Event()
    real_flush = virtio_device.port.flush

    def slow_flush() -> object:
        entered.set()
        assert leave.wait(20)
        return real_flush()

    monkeypatch.setattr(virtio_device.port, "flush", slow_flush)
    with serving(device, virtio_device, tmp_path / "socket"), Frontend(tmp_path / "socket", nr_queues=2) as frontend:
        frontend.start()
        first, second = frontend.queues
        flush = first.submit([BlkDriver.header(blk_codec.T_FLUSH, 0)], [1])
        after = first.submit([BlkDriver.header(blk_codec.T_IN, 0)], [512, 1])
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
    virtio_device = blk_device(device, nr_queues=2)
    with serving(device, virtio_device, tmp_path / "socket"), Frontend(tmp_path / "socket", nr_queues=2) as frontend:
        frontend.start()
        first, second = (BlkDriver(queue) for queue in frontend.queues)
        late = first.submit_write(2 * ZONE, b"a" * 512)
        # The other queue's are with the same worker, because there are faults; the write is done by now.
        while second.read(2 * ZONE, 512) != (0, b"a" * 512):
            time.sleep(0.01)
        assert second.write(2 * ZONE + 1, bytes(512)) == blk_codec.S_OK
        first.queue.reap()
        assert (slept, first.queue.order) == ([7], [])
        leave.set()
        assert first.status(late) == blk_codec.S_OK


def test_the_event_queue_of_a_scsi_host(device: ZonedDevice, tmp_path: Path) -> None:
    """Its buffers are kept, its kicks cost nothing, and what others change is told through it."""
    virtio_device = ScsiHost(device, serial="serial")
    with serving(device, virtio_device, tmp_path / "socket"), Frontend(tmp_path / "socket", nr_queues=3) as frontend:
        frontend.start()
        _, events, requests = frontend.queues
        buffers = [events.submit([], [16]) for _ in range(4)]
        inquiry = b"\x01\0\x40" + bytes(5) + bytes(11) + bytes.fromhex("12 00 00 0024 00").ljust(32, b"\0")
        _, parts = requests.request([inquiry], [108, 36])
        assert parts[1][0] == 0x14  # a host-managed zoned block device
        events.reap()
        assert not events.order
        other = device.port("command line", virtio_device.port.dialect)
        other.write(4 * ZONE, 1, [bytes(512)])
        assert is_readable(events.call_fd, 10)
        _, parts = events.wait(buffers[0])
        assert parts[0][:4] == b"\3\0\0\0"


@pytest.mark.parametrize("packed", [False, True])
def test_a_buffer_for_events_that_is_too_long_breaks_its_queue_alone(
    *, device: ZonedDevice, tmp_path: Path, packed: bool, expect_warning: Callable[[str], None]
) -> None:
    """It is no request, so there is nothing to answer."""
    expect_warning("queue 1 is broken: a chain has more than .* bytes")
    virtio_device = ScsiHost(device, serial="serial")
    with (
        serving(device, virtio_device, tmp_path / "socket"),
        Frontend(tmp_path / "socket", nr_queues=3, queue_size=256, packed=packed) as frontend,
    ):
        frontend.start()
        _, events, requests = frontend.queues
        events.ring.add([(GUEST_BASE, frontend.memory.nbytes, True)] * 100, None)
        events.kick()
        device.port("command line", virtio_device.port.dialect).write(4 * ZONE, 1, [bytes(512)])
        assert is_readable(events.err_fd, 10)
        inquiry = b"\x01\0\x40" + bytes(5) + bytes(11) + bytes.fromhex("12 00 00 0024 00").ljust(32, b"\0")
        assert requests.request([inquiry], [108, 36])[1][1][0] == 0x14
    assert device.statistics()["internal_errors"] == 0


# -- boundaries --------------------------------------------------------------------------------------------------------


def raise_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Let the function *name* of *owner* meet a bug the next time."""
    real = getattr(owner, name)
    left = [1]

    def broken(*args: Any, **options: Any) -> Any:
        if left:
            left.pop()
            raise RuntimeError("a bug")
        return real(*args, **options)

    monkeypatch.setattr(owner, name, broken)


@pytest.mark.parametrize(
    ("kind", "readable", "writable"),
    [(blk_codec.T_IN, [], [512]), (blk_codec.T_FLUSH, [], []), (blk_codec.T_OUT, [512], [])],
)
def test_a_bug_costs_the_request_that_meets_it(
    *, device: ZonedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, readable: list[int],
    writable: list[int], expect_warning: Callable[[str], None],
) -> None:  # fmt: skip
    """At once, by the worker, or in a write: that one is answered with IOERR, noted and counted."""
    expect_warning("internal error in vhost-user-blk, a request of queue 0: RuntimeError: a bug")
    name = {blk_codec.T_IN: "_port_read", blk_codec.T_FLUSH: "_execute", blk_codec.T_OUT: "_port_write"}[kind]
    virtio_device = blk_device(device)
    with serving(device, virtio_device, tmp_path / "socket"), Frontend(tmp_path / "socket") as frontend:
        frontend.start()
        queue = frontend.queues[0]
        raise_once(monkeypatch, virtio_device._blk, name)
        parts = [BlkDriver.header(kind, 0), *map(bytes, readable)]
        numbers = [queue.submit(parts, [*writable, 1], kick=False) for _ in range(3)]
        queue.kick()
        assert [queue.wait(number)[1][-1][0] for number in numbers] == [
            blk_codec.S_IOERR,
            blk_codec.S_OK,
            blk_codec.S_OK,
        ]
    assert device.statistics()["internal_errors"] == 1
    assert device.refusals.last(1)[0].rule == DeviceRule.INTERNAL


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Dispatcher, "_get_queue_num"),
        (Dispatcher, "handle"),
        (Connection, "receive"),
        (Connection, "fileno"),
        (Backend, "_connect"),
        (Dispatcher, "__init__"),
        (Backend, "_take_messages"),
        (QueueServer, "_take_events"),
        (QueueServer, "serve"),
    ],
)
def test_a_bug_outside_of_requests_costs_the_connection(
    *, device: ZonedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str,
    expect_warning: Callable[[str], None],
) -> None:  # fmt: skip
    expect_warning("internal error in vhost-user-blk, the connection: RuntimeError: a bug")
    raise_once(monkeypatch, owner, name)
    with serving(device, blk_device(device), tmp_path / "socket"):
        # The loop may meet it before there is a connection.
        with suppress(PeerError, OSError), Frontend(tmp_path / "socket") as frontend:
            frontend.start()
            frontend.ask_number(Request.GET_QUEUE_NUM)
        with Frontend(tmp_path / "socket") as frontend:
            frontend.start()
            assert BlkDriver(frontend.queues[0]).read(0, 512)[0] == 0
        assert device.statistics()["internal_errors"] == 1


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Backend, "_count"),
        (Rings, "_let_go"),
        (MemoryMap, "close"),
        (Migration, "close"),
        (QueueServer, "unwatch"),
        (QueueServer, "watch"),
        (QueueServer, "watch_kicks"),
    ],
)
def test_a_bug_at_the_end_of_a_connection_leaves_nothing_behind(
    *, device: ZonedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str,
    expect_warning: Callable[[str], None],
) -> None:  # fmt: skip
    expect_warning("RuntimeError: a bug")
    with serving(device, blk_device(device), tmp_path / "socket") as backend:
        with Frontend(tmp_path / "socket") as frontend:
            frontend.start()
            assert backend._dispatcher is not None
            queues = backend._dispatcher.queues
            raise_once(monkeypatch, owner, name)
        for _ in range(2):
            with Frontend(tmp_path / "socket") as frontend:
                frontend.start()
                assert BlkDriver(frontend.queues[0]).read(0, 512)[0] == 0
            assert all(queue.ring is None for queue in queues), "no ring of the first one is served beside the next"


def test_a_front_end_that_fills_its_eventfd_holds_the_socket_up_for_a_while_only(
    device: ZonedDevice, tmp_path: Path
) -> None:
    with serving(device, blk_device(device), tmp_path / "socket") as backend:
        with Frontend(tmp_path / "socket") as frontend:
            frontend.start()
            queue = frontend.queues[0]
            assert BlkDriver(queue).read(0, 512)[0] == 0
            with suppress(BlockingIOError):
                os.eventfd_read(queue.call_fd)
            os.set_blocking(queue.call_fd, True)
            os.eventfd_write(queue.call_fd, (1 << 64) - 2)
            queue.ring.want_call()
            queue.submit([BlkDriver.header(blk_codec.T_IN, 0)], [512, 1])
            while backend._server.service.eventfds._write is None:
                time.sleep(0.001)
        while backend.is_connected:
            backend.look_after()
            time.sleep(0.001)
        still_serves(tmp_path / "socket")


def test_the_end_waits_neither_for_a_delay_nor_for_a_guest_that_meets_one(device: ZonedDevice, tmp_path: Path) -> None:
    hour = 3600 * 1_000_000_000
    flushes = frozenset((Operation.FLUSH,))
    device.inject(Fault(effect=Effect.DELAY, operations=flushes, every=True, delay_min_ns=hour, delay_max_ns=hour))
    with serving(device, blk_device(device), tmp_path / "socket"):
        for nr_flushes in range(2):  # the first goes, and the second is there at the end
            frontend = Frontend(tmp_path / "socket")
            frontend.start()
            number = frontend.queues[0].submit([BlkDriver.header(blk_codec.T_FLUSH, 0)], [1])
            while device.statistics()["flushes"] == nr_flushes:
                time.sleep(0.01)
            frontend.stop_queue(frontend.queues[0])
            assert frontend.queues[0].wait(number)[1] == [b"\0"], "a queue that is stopped has nothing under way"
            frontend.close()
    device.stop_waiting()


# -- lengths -----------------------------------------------------------------------------------------------------------

_MIB: Final = 1 << 20
#: Where the buffers lie that all name the same memory, in a guest of 16 MiB.
_DATA: Final = GUEST_BASE + 4 * _MIB
LENGTHS = st.sampled_from([1, 16, 511, 512, 4096, _MIB - 1, _MIB, 8 * _MIB])
RUNS = st.lists(st.tuples(LENGTHS, st.sampled_from([1, 2, 130, 500])), max_size=2)
BLK_HEADERS = st.tuples(
    st.sampled_from([blk_codec.T_IN, blk_codec.T_OUT, blk_codec.T_FLUSH, blk_codec.T_GET_ID, blk_codec.T_WRITE_ZEROES,
                     blk_codec.T_SCSI_CMD, blk_codec.T_ZONE_APPEND, blk_codec.T_ZONE_REPORT,
                     blk_codec.T_ZONE_RESET_ALL, 77]),
    st.sampled_from([0, 2 * ZONE, 31 * ZONE, (1 << 64) - 1]),
).map(lambda pair: BlkDriver.header(*pair))  # fmt: skip
CDBS = st.sampled_from(
    [
        "00", "12 00 00 ffff", "88 00 0000000000000000 00000008", "8a 00 0000000000001000 00000008",
        "88 00 0000000000000000 ffffffff", "2f 02 00001000 00 ffff", "8f 02 0000000000001000 00010000",
        "95 00 0000000000000000 ffffffff", "94 14 0000000000000000 0000 01", "55 10 00000000 00 ffff", "35",
        "a3 0c 00 00 0000 ffffffff", "a0 00 00 000000 ffffffff", "ee",
    ]
)  # fmt: skip
SCSI_HEADERS = CDBS.map(lambda cdb: b"\x01\0\x40" + bytes(16) + bytes.fromhex(cdb).ljust(32, b"\0"))
CONTROL_HEADERS = st.tuples(st.integers(0, 3), st.integers(0, 9)).map(
    lambda pair: struct.pack("<II8sQ", *pair, b"\x01\0\x40" + bytes(5), 0)
)


@pytest.fixture(params=["blk", "scsi"])
def served(request: pytest.FixtureRequest, device: ZonedDevice, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    virtio_device = blk_device(device, nr_queues=2) if request.param == "blk" else ScsiHost(device, serial="x")
    with serving(device, virtio_device, tmp_path / "socket"):
        yield request.param, tmp_path / "socket"


def answers(kind: str, frontend: Frontend) -> None:
    """The last queue is served."""
    if kind == "blk":
        assert BlkDriver(frontend.queues[-1]).read(0, 512)[0] == 0
    else:
        header = b"\x01\0\x40" + bytes(16) + bytes(32)
        _, parts = frontend.queues[-1].request([header], [108])
        assert parts[0][11] == scsi.Response.OK  # its status may be a unit attention


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_any_lengths_cost_their_ring_at_most(served: tuple[str, Path], packed: bool, data: st.DataObject) -> None:
    """Chains whose descriptors all name the same memory; each is answered, or its ring broken, and the others go on."""
    kind, path = served
    with pytest.MonkeyPatch.context() as patch:
        # A broken ring is allowed. A buffer for events is looked at when the server comes to it, which may be after
        # this connection; the answer to the next connection shows that it has been.
        patch.setattr(LimitedLog, "warning", lambda *_: None)
        with Frontend(
            path, nr_queues=2 if kind == "blk" else 3, queue_size=1024, packed=packed, indirect=True
        ) as frontend:
            frontend.start()
            index = 0 if kind == "blk" else data.draw(st.integers(0, 2))
            queue = frontend.queues[index]
            headers = BLK_HEADERS if kind == "blk" else SCSI_HEADERS if index == 2 else CONTROL_HEADERS
            numbers = []
            for _ in range(data.draw(st.integers(1, 3))):
                header, out, into = data.draw(headers), data.draw(RUNS), data.draw(RUNS)
                place = frontend.heap.take(len(header))
                frontend.memory[place.offset : place.offset + len(header)] = header
                answer = frontend.heap.take(108)
                room = [(GUEST_BASE + answer.offset, 1 if kind == "blk" else 108, True)]
                chain = [
                    (GUEST_BASE + place.offset, len(header), False),
                    *((_DATA, length, False) for length, count in out for _ in range(count)),
                    *(room if kind == "scsi" else ()),
                    *((_DATA, length, True) for length, count in into for _ in range(count)),
                    *(room if kind == "blk" and data.draw(st.booleans()) else ()),
                ]
                table = frontend.heap.take(16 * len(chain)) if data.draw(st.booleans()) else None
                if queue.ring.nr_free < (1 if table else len(chain)):
                    break
                numbers.append(queue.ring.add(chain, table))
                queue.kick(always=True)
            broken = False
            if index != 1 or kind == "blk":
                while not broken and set(numbers) - set(queue.order):
                    broken = queue.is_broken
                    queue.reap()
                    time.sleep(0.001)
            if kind == "blk" or index != 2:
                answers(kind, frontend)
            elif not broken:
                queue._done.clear()
                answers(kind, frontend)
        with Frontend(path, nr_queues=2 if kind == "blk" else 3) as frontend:
            frontend.start()
            answers(kind, frontend)
