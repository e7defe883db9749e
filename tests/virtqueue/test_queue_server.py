"""The loop, turned by hand: what makes a queue active, and that no wake-up is lost."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.vhost_user.serving import blk_device
from tests.virtio.rings import MEMORY_BYTES, Pair
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.intent_log import Intents
from zonefs_emu.errors import PeerError
from zonefs_emu.polling import AdaptivePolling
from zonefs_emu.testing.driver_rings import GUEST_BASE, PackedDriver
from zonefs_emu.virtio import features as bits, packed, split
from zonefs_emu.virtio.handler import Begin
from zonefs_emu.virtio.memory import GuestMemory, Region
from zonefs_emu.virtio.ring import Chain
from zonefs_emu.virtqueue import queue_server
from zonefs_emu.virtqueue.queue_server import QueueServer
from zonefs_emu.virtqueue.virtqueue import RingAddresses, Virtqueue

USER = 1 << 40


class Echo:
    """Answers each request with its first byte; b"w" goes to the worker, which waits until it may go on."""

    plain = None

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def step(self, chains: Sequence[Chain], index: int, lengths: list[int], begin: Begin) -> int:
        if chains[index][1][0][0] == ord("w"):
            return 0
        begin(index, ())
        lengths.append(self._answer(chains[index]))
        return 1

    def execute(self, chain: Chain) -> int:
        assert self.go_on.wait(20)
        return self._answer(chain)

    def fail(self, chain: Chain) -> int:
        chain[2][0][0] = ord("!")
        return 1

    def refuse_oversized(self, chain: Chain) -> int:
        return self.fail(chain)

    def _answer(self, chain: Chain) -> int:
        chain[2][0][0] = chain[1][0][0]
        return 1


class Line:
    """A queue and its driver."""

    def __init__(
        self, server: QueueServer, index: int, echo: Echo, *, is_packed: bool, queue_type: type[Virtqueue]
    ) -> None:
        self.pair = Pair(is_packed=is_packed, size=64, event_idx=False)
        service = server.service._replace(fence=self.pair.fence)
        self.queue = queue_type(index, Intents(lambda _: False), echo, service)
        desc, driver, device = (USER + area.offset for area in self.pair.areas)
        self.queue.address = RingAddresses(desc, driver, device)
        self.queue.size = 64
        self.queue.base = 0x80008000 if is_packed else 0
        self.queue.kick_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.queue.enabled = True
        self.features = bits.RING_PACKED if is_packed else 0
        server.watch_kicks(self.queue)

    def start(self) -> None:
        memory = GuestMemory([Region(GUEST_BASE, MEMORY_BYTES, USER, self.pair.bytes)])
        self.queue.start(memory, self.features, None, None)

    def submit(self, content: bytes) -> int:
        """Make a request available; a driver kicks only if it is asked to."""
        number = self.pair.add([content], [1])
        if self.pair.driver.needs_kick():
            os.eventfd_write(self.queue.kick_fd, 1)
        return number

    def refuse_calls(self) -> None:
        """Do as a driver that has not taken all answers."""
        driver = self.pair.driver
        if isinstance(driver, PackedDriver):
            driver._driver_event[1] = packed.EVENT_DISABLE
        else:
            driver._avail[0] = split._NO_INTERRUPT

    def reap(self) -> list[int]:
        return [done.request_id for done in self.pair.driver.reap()]


class Bench:
    """A server of two queues."""

    def __init__(self, device: ZonedDevice, *, is_packed: bool, first: type[Virtqueue] = Virtqueue) -> None:
        self.server = QueueServer(blk_device(device))
        self.echo = Echo()
        self.lines = [
            Line(self.server, index, self.echo, is_packed=is_packed, queue_type=queue_type)
            for index, queue_type in enumerate((first, Virtqueue))
        ]
        self.server.queues = [line.queue for line in self.lines]
        for line in self.lines:
            line.start()
            self.server.activate(line.queue)
        self.serve()

    def turn(self) -> None:
        """Go once through the loop; what should wake it comes soon."""
        self.server.wait(20)
        self.serve()

    def serve(self) -> None:
        """Serve until all queues sleep. On a busy machine, the server returns before that, when its time is over."""
        self.server.serve()
        while self.server._active and not self.server.stopping:
            self.server.serve()

    def close(self) -> None:
        self.echo.go_on.set()
        for line in self.lines:
            self.server.wait_idle(line.queue)
            line.queue.stop()
            line.queue.close()
        self.server.close()


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def bench(device: ZonedDevice, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(device, is_packed=request.param)
    yield bench
    bench.close()


def test_a_kick_is_for_its_queue_and_the_driver_is_asked_for_the_next(bench: Bench) -> None:
    first, second = bench.lines
    for _ in range(3):
        number = first.submit(b"a")
        unseen = second.pair.add([b"b"], [1])
        bench.turn()
        assert first.reap() == [number]
        assert second.reap() == []
        os.eventfd_write(second.queue.kick_fd, 1)
        bench.turn()
        assert second.reap() == [unseen]


def test_what_came_before_the_kick_descriptor_is_served(bench: Bench) -> None:
    first, _ = bench.lines
    number = first.pair.add([b"a"], [1])
    old, first.queue.kick_fd = first.queue.kick_fd, os.eventfd(0, os.EFD_NONBLOCK)
    bench.server.watch_kicks(first.queue, old)
    os.close(old)
    bench.turn()
    assert first.reap() == [number]
    number = first.submit(b"a")
    bench.turn()
    assert first.reap() == [number]


def test_a_kick_descriptor_that_is_none(bench: Bench, tmp_path: Path) -> None:
    first, _ = bench.lines
    old, first.queue.kick_fd = first.queue.kick_fd, os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with pytest.raises(PeerError, match="kick descriptor of queue 0 cannot be waited for"):
        bench.server.watch_kicks(first.queue, old)
    os.close(old)


def test_those_behind_a_request_of_the_worker_need_no_kick(bench: Bench) -> None:
    first, second = bench.lines
    numbers = [first.pair.add([content], [1]) for content in (b"a", b"w", b"b", b"w", b"c")]
    os.eventfd_write(first.queue.kick_fd, 1)
    bench.turn()
    assert first.reap() == numbers[:1]
    other = second.submit(b"d")
    bench.turn()
    assert second.reap() == [other], "the other queue goes on"
    bench.echo.go_on.set()
    found: list[int] = []
    while len(found) < 4:
        bench.turn()
        found += first.reap()
    assert found == numbers[1:]


def test_a_queue_whose_answer_came_while_another_was_waited_for_goes_on(bench: Bench) -> None:
    first, second = bench.lines
    for line in bench.lines:
        line.submit(b"w")
    while not all(line.queue.busy for line in bench.lines):
        bench.turn()
    behind = [second.pair.add([content], [1]) for content in (b"x", b"y")]
    bench.echo.go_on.set()
    bench.server.wait_idle(second.queue)
    assert not first.queue.busy, "the worker's answers come in order"
    bench.turn()
    assert second.reap()[1:] == behind


def test_a_queue_that_is_stopped_while_it_is_served_is_dropped(bench: Bench) -> None:
    first, _ = bench.lines
    first.submit(b"a")
    bench.server.wait(20)
    first.queue.stop()
    bench.server.serve()
    assert first.reap() == []
    first.start()
    bench.server.activate(first.queue)
    bench.server.serve()
    assert len(first.reap()) == 1


def test_descriptors_of_others(bench: Bench) -> None:
    seen: list[str] = []
    left, right = (os.eventfd(1, os.EFD_NONBLOCK) for _ in range(2))

    def end(mine: int, other: int) -> Callable[[], None]:
        def react() -> None:
            seen.append("seen")
            bench.server.unwatch(mine)
            bench.server.unwatch(other)

        return react

    bench.server.watch(left, end(left, right))
    bench.server.watch(right, end(right, left))
    bench.turn()
    assert seen == ["seen"], "a queue that the first look has ended is not asked again"
    bench.server.wake()
    bench.turn()
    for fd in (left, right):
        os.close(fd)


def test_empty_rings_are_looked_at_only_where_requests_come_soon(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The length of a look follows how long the server has slept before a request came."""
    server = bench.server
    line, _ = bench.lines
    real, now_ns, looks = server._epoll, [0], []

    def clock() -> int:
        now_ns[0] += 1_000
        return now_ns[0]

    with monkeypatch.context() as patch:
        patch.setattr("zonefs_emu.virtqueue.queue_server.time.monotonic_ns", clock)
        for slept_ns in (10_000, 1_000_000, 1_000_000, 150_000):

            def poll(timeout: float, slept_ns: int = slept_ns) -> list[tuple[int, int]]:
                now_ns[0] += slept_ns if timeout else 0
                return real.poll(timeout)

            patch.setattr(server, "_epoll", SimpleNamespace(poll=poll))
            line.submit(b"a")
            server.wait(60)
            looks.append(server._polling.look_ns)
            server.serve()
            assert not server._active
    assert looks == [200_000, 100_000, 50_000, 100_000]


@pytest.fixture
def pauses(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What the drivers do in the next halves of pauses, which take no time."""
    todo: list[Callable[[], object]] = []
    clock = SimpleNamespace(sleep=lambda seconds: todo.pop(0)(), monotonic_ns=time.monotonic_ns)
    monkeypatch.setattr(queue_server, "time", clock)
    bench.server._polling = AdaptivePolling(max_ns=0, soon_ns=0, nr_processors=2)
    return todo


def nothing() -> None:
    """Send no request."""


def call_count(line: Line) -> int:
    try:
        return os.eventfd_read(line.queue.call_fd)
    except BlockingIOError:
        return 0


def test_requests_gather_where_a_driver_has_several_under_way(bench: Bench, pauses: list[Callable[[], object]]) -> None:
    """The server would find them one by one otherwise, and send a notification for each."""
    line, _ = bench.lines
    line.queue.call_fd = os.eventfd(0, os.EFD_NONBLOCK)
    numbers = [line.submit(b"a")]
    bench.turn()
    assert line.reap() == numbers
    assert call_count(line) == 1
    assert not pauses, "one request after the other"
    line.refuse_calls()

    def send() -> None:
        numbers.extend(line.submit(b"a") for _ in range(3))

    def want() -> None:
        line.pair.driver.want_call()
        send()

    pauses += [send, want, nothing, nothing]
    numbers = [line.submit(b"a")]
    bench.turn()
    assert line.reap() == numbers
    assert len(numbers) == 7
    assert call_count(line) == 1
    assert pauses == [], "they end where nothing comes"


def test_a_kick_of_another_queue_waits_for_one_pause(bench: Bench, pauses: list[Callable[[], object]]) -> None:
    line, other = bench.lines
    line.refuse_calls()
    kicked: list[int] = []
    answered: list[int] = []

    def send() -> None:
        line.submit(b"a")
        line.submit(b"a")

    def kick() -> None:
        send()
        kicked.append(other.submit(b"b"))

    pauses += [send, kick, lambda: answered.extend(other.reap()), nothing]
    line.submit(b"a")
    bench.turn()
    assert answered == kicked
    assert len(kicked) == 1


def test_nothing_gathers_while_the_worker_has_a_request(bench: Bench, pauses: list[Callable[[], object]]) -> None:
    line, other = bench.lines
    other.submit(b"w")
    bench.turn()
    line.refuse_calls()
    number = line.submit(b"a")
    bench.turn()
    assert line.reap() == [number]
    assert not pauses, "a pause would have met an empty list"


def test_stopped_from_another_thread_under_load(bench: Bench) -> None:
    first, _ = bench.lines
    first.queue.run = lambda: True  # type: ignore[method-assign]  # it always has more
    first.submit(b"a")
    stopper = threading.Timer(0.1, bench.server.stop)
    stopper.start()
    bench.turn()
    stopper.join()
    assert bench.server.stopping
    bench.server.wait()


def test_the_transport_gets_its_turn_while_a_ring_is_never_empty(bench: Bench) -> None:
    first, second = bench.lines
    first.queue.run = lambda: True  # type: ignore[method-assign]  # it always has more
    first.submit(b"a")
    number = second.submit(b"b")
    bench.server.wait(20)
    bench.server.serve()
    assert not bench.server.stopping
    assert second.reap() == [number]


def test_what_is_due_is_served_without_a_kick(bench: Bench) -> None:
    """A queue that holds requests has taken them long ago, so that no kick comes."""
    number = bench.lines[1].pair.add([b"a"], [1])
    bench.server.ring_due()
    bench.turn()
    assert bench.lines[1].reap() == [number]


def test_a_wake_after_the_end_is_nothing(device: ZonedDevice) -> None:
    server = QueueServer(blk_device(device))
    server.close()
    server.stop()


def test_only_a_sleep_that_a_request_ends_changes_the_length_of_a_look(bench: Bench) -> None:
    server = bench.server
    first, _ = bench.lines
    polling = server._polling = AdaptivePolling(max_ns=9_000, soon_ns=60_000_000_000, nr_processors=2)
    polling.look_ns = 0
    server.wake()
    server.wait(20)
    assert polling.look_ns == 0, "nothing has come"
    server.activate(first.queue)
    server.wait(20)
    assert polling.look_ns == 0, "it did not sleep"
    server.serve()
    first.submit(b"a")
    server.wait(20)
    assert polling.look_ns == 4_000
    server.serve()
    assert len(first.reap()) == 1


def test_a_queue_that_does_not_run_is_not_served(bench: Bench) -> None:
    first, second = bench.lines
    first.queue.stop()
    bench.server.activate(first.queue)
    first.submit(b"a")
    second.submit(b"b")
    bench.turn()
    assert first.reap() == []
    assert len(second.reap()) == 1
    first.start()
    bench.server.watch_kicks(first.queue, first.queue.kick_fd)
    bench.server.serve()
    assert len(first.reap()) == 1, "the descriptor was watched already, and is no less so"


def test_a_request_that_the_host_keeps_is_abandoned(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("queue 0 is stopped while one of its requests waits for the host's disk")
    first, _ = bench.lines
    first.submit(b"w")
    while not first.queue.busy:
        bench.turn()
    with monkeypatch.context() as patched:
        patched.setattr("zonefs_emu.virtqueue.worker._WAIT_S", 0.01)
        assert not bench.server.wait_idle(first.queue)
    first.queue.stop()
    bench.echo.go_on.set()
    bench.turn()
    assert first.reap() == [], "the answer that comes after all is ignored"


def test_the_number_of_a_kick_descriptor_that_was_replaced_may_be_that_of_another_queue(bench: Bench) -> None:
    first, second = bench.lines
    old, first.queue.kick_fd = first.queue.kick_fd, os.eventfd(0, os.EFD_NONBLOCK)
    bench.server.watch_kicks(first.queue, old)
    # What the front-end sends next gets the number that has become free.
    before = second.queue.kick_fd
    new = os.eventfd(0, os.EFD_NONBLOCK)
    os.dup2(new, old)
    os.close(new)
    second.queue.kick_fd = old
    bench.server.watch_kicks(second.queue, before)
    os.close(before)
    bench.turn()
    number = second.submit(b"a")
    bench.turn()
    assert second.reap() == [number]


def test_what_comes_while_the_driver_is_asked_for_kicks_is_all_served(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one batch of it: nothing is left for the next turn."""
    first, _ = bench.lines
    sleep = first.queue.sleep
    numbers: list[int] = []

    def late() -> bool:
        if not numbers:
            numbers.extend(first.pair.add([b"a"], [1]) for _ in range(20))
        return sleep()

    monkeypatch.setattr("zonefs_emu.virtqueue.virtqueue.Virtqueue._batch", 8)
    monkeypatch.setattr(first.queue, "sleep", late)
    bench.server.activate(first.queue)
    bench.server.serve()
    assert first.reap() == numbers


def test_a_turn_that_failed_loses_no_event(bench: Bench) -> None:
    """Of two kicks that are taken together the first is acted upon with an exception."""
    bench.server.watch(bench.lines[0].queue.kick_fd, lambda: 1 // 0, edges=True)
    numbers = [line.submit(b"a") for line in bench.lines]
    with pytest.raises(ZeroDivisionError):
        bench.turn()
    bench.server.look_again()
    bench.turn()
    assert [line.reap() for line in bench.lines] == [[number] for number in numbers]


def test_a_turn_that_failed_loses_no_result_of_the_worker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    line = bench.lines[0]
    number = line.submit(b"w")
    bench.turn()
    assert line.queue.busy
    bench.echo.go_on.set()
    with monkeypatch.context() as patch:
        patch.setattr(bench.server.worker, "collect", lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            bench.turn()
    bench.server.look_again()
    while not (found := line.reap()):
        bench.turn()
    assert found == [number]
