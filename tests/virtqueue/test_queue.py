"""One queue without sockets: starting, batches, waiting, breaking."""

import os
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.virtio.rings import MEMORY_BYTES, Pair
from zonefs_emu.device.witness import Witnessing
from zonefs_emu.errors import PeerError
from zonefs_emu.testing.vhost_frontend import GUEST_BASE
from zonefs_emu.virtio import features as bits
from zonefs_emu.virtio.handler import Begin
from zonefs_emu.virtio.memory import GuestMemory, Region
from zonefs_emu.virtio.ring import BrokenRingError, Chain
from zonefs_emu.virtqueue.queue import BATCH, Queue, RingAddresses

USER = 1 << 40


class Echo:
    """Answers each request with its first byte; b"w" waits, b"x" breaks."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        #: Called once, while a request is executed.
        self.coming: Callable[[], object] | None = None

    def step(self, chains: Sequence[Chain], index: int, lengths: list[int], begin: Begin) -> int:
        if chains[index][1][0][0] == ord("w"):
            return 0
        begin(index, ())
        lengths.append(self.execute(chains[index]))
        return 1

    def execute(self, chain: Chain) -> int:
        if chain[1][0][0] == ord("x"):
            msg = "x"
            raise BrokenRingError(msg)
        if self.coming is not None:
            coming, self.coming = self.coming, None
            coming()
        chain[2][0][0] = chain[1][0][0]
        return 1


class Bench:
    def __init__(self, *, is_packed: bool) -> None:
        self.pair = Pair(is_packed=is_packed, size=64)
        self.memory = GuestMemory([Region(GUEST_BASE, MEMORY_BYTES, USER, self.pair.bytes)])
        self.jobs: list[tuple[Callable[[], int | BrokenRingError], Callable[[int | BrokenRingError], None]]] = []
        self.queue = Queue(
            0, Witnessing(lambda _: False), Echo(), lambda job, then: self.jobs.append((job, then)), self.pair.fence
        )
        desc, driver, device = (USER + area.offset for area in self.pair.areas)
        self.queue.address = RingAddresses(desc, driver, device)
        self.queue.size = 64
        self.queue.base = 0x80008000 if is_packed else 0
        self.queue.call_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.queue.err_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.queue.enabled = True
        self.features = bits.EVENT_IDX | (bits.RING_PACKED if is_packed else 0)

    def start(self) -> None:
        self.queue.start(self.memory, self.features, None, None)

    def work(self) -> None:
        job, then = self.jobs.pop(0)
        then(job())


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(is_packed=request.param)
    yield bench
    bench.queue.close()


def test_a_batch(bench: Bench) -> None:
    bench.start()
    numbers = [bench.pair.add([bytes([65 + index])], [1]) for index in range(20)]
    assert bench.queue.run()
    assert [done.request_id for done in bench.pair.driver.reap()] == numbers
    assert not bench.queue.run()
    assert bench.queue.requests == 20
    assert os.eventfd_read(bench.queue.call_fd) >= 1
    assert BATCH >= 32


def calls(bench: Bench) -> int:
    """Return how often the driver was called since the last time."""
    try:
        return os.eventfd_read(bench.queue.call_fd)
    except BlockingIOError:
        return 0


def send(bench: Bench, nr_requests: int) -> None:
    """Let the driver send requests, one after the other, with all that is there reaped before each."""
    for _ in range(nr_requests):
        bench.pair.driver.reap()
        bench.pair.driver.want_call()
        bench.pair.add([b"a"], [1])
        assert bench.queue.run()


def test_who_sends_one_after_the_other_is_told_of_each(bench: Bench) -> None:
    bench.start()
    calls(bench)
    for _ in range(20):
        send(bench, 1)
        assert calls(bench) == 1


def test_who_goes_on_untold_is_told_of_many_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [0]
    monkeypatch.setattr("zonefs_emu.virtqueue.queue.monotonic_ns", lambda: now_ns[0])
    bench.start()
    calls(bench)
    # Something has come before the first was given back: there is more than one under way.
    bench.queue._handler.coming = lambda: bench.pair.add([b"b"], [1])  # type: ignore[union-attr]
    send(bench, 1)
    assert calls(bench) == 0
    assert bench.queue.run()
    assert calls(bench) == 1
    send(bench, 400)
    assert 400 / 16 <= calls(bench) <= 60
    send(bench, 16 * 3)
    assert calls(bench) == 3
    # It waits for those that it was not told of.
    send(bench, 5)
    assert not bench.queue.run()
    assert calls(bench) == 0
    now_ns[0] += 60_000
    assert not bench.queue.run()
    assert calls(bench) == 1
    for _ in range(8):
        send(bench, 1)
        now_ns[0] += 60_000
        assert not bench.queue.run()
    calls(bench)
    send(bench, 3)
    assert calls(bench) == 3, "one after the other again"


@pytest.mark.parametrize("end", ["sleep", "stop", "wait", "break"])
def test_what_was_not_told_yet_is_told_before_anything_that_takes_long(
    bench: Bench, end: str, expect_warning: Callable[[str], None]
) -> None:
    bench.start()
    bench.queue._handler.coming = lambda: bench.pair.add([b"b"], [1])  # type: ignore[union-attr]
    send(bench, 1)
    bench.queue.run()
    calls(bench)
    send(bench, 1)
    assert calls(bench) == 0
    match end:
        case "sleep":
            assert not bench.queue.sleep()
        case "stop":
            bench.queue.stop()
        case "wait":
            bench.pair.add([b"w"], [1])
            bench.queue.run()
        case _:
            expect_warning("queue 0 is broken: x")
            bench.pair.add([b"x"], [1])
            bench.queue.run()
            assert bench.queue.broken
    assert calls(bench) == 1


def test_one_that_waits_holds_up_those_behind_it(bench: Bench) -> None:
    bench.start()
    numbers = [bench.pair.add([text], [1]) for text in (b"a", b"w", b"b", b"w", b"c")]
    assert bench.queue.run()
    assert [done.request_id for done in bench.pair.driver.reap()] == numbers[:1]
    assert bench.queue.busy
    assert not bench.queue.run()
    assert not bench.queue.sleep()
    bench.work()
    assert [done.request_id for done in bench.pair.driver.reap()] == numbers[1:2]
    assert bench.queue.sleep(), "those behind it were taken from the ring: no kick will tell of them"
    assert bench.queue.run()
    bench.work()
    while bench.queue.run():
        pass
    assert [done.request_id for done in bench.pair.driver.reap()] == numbers[2:]
    assert not bench.queue.sleep()
    bench.pair.add([b"d"], [1])
    assert bench.queue.sleep()


def test_stopped_in_the_middle_it_goes_on_there(bench: Bench) -> None:
    bench.start()
    numbers = [bench.pair.add([text], [1]) for text in (b"a", b"w", b"b", b"c")]
    bench.queue.run()
    bench.work()
    base = bench.queue.stop()
    assert not bench.queue.is_ready
    bench.queue.base = base
    bench.start()
    while bench.queue.run():
        pass
    assert [done.request_id for done in bench.pair.driver.reap()] == numbers


@pytest.mark.parametrize("texts", [(b"a", b"x", b"b"), (b"a", b"w")])
def test_broken(bench: Bench, texts: tuple[bytes, ...], expect_warning: Callable[[str], None]) -> None:
    expect_warning("queue 0 is broken: x")
    bench.start()
    for text in texts:
        bench.pair.add([text], [1])
    bench.queue.run()
    if bench.jobs:
        bench.jobs = [(lambda: BrokenRingError("x"), then) for _, then in bench.jobs]
        bench.work()
    assert bench.queue.broken
    assert os.eventfd_read(bench.queue.err_fd) == 1
    bench.pair.add()
    assert not bench.queue.run()
    bench.queue.base = bench.queue.stop()


@pytest.mark.parametrize(
    ("size", "address", "sentence"),
    [
        (0, RingAddresses(USER, USER, USER), "without size"),
        (64, None, "without size or addresses"),
        (64, RingAddresses(1, USER, USER), "no one memory region"),
        (64, RingAddresses(USER, USER, USER + MEMORY_BYTES - 2), "no one memory region"),
    ],
)
def test_what_cannot_be_started(bench: Bench, size: int, address: RingAddresses | None, sentence: str) -> None:
    bench.queue.size, bench.queue.address = size, address
    with pytest.raises(PeerError, match=sentence):
        bench.start()


def test_injected_faults_are_for_the_worker(bench: Bench) -> None:
    faults: list[object] = []
    bench.queue._faults = faults
    bench.start()
    faults.append("a delay")
    number = bench.pair.add([b"a"], [1])
    bench.queue.run()
    assert bench.queue.busy
    bench.work()
    assert [done.request_id for done in bench.pair.driver.reap()] == [number]
