"""One queue without sockets: starting, batches, waiting, breaking."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.virtio.rings import MEMORY_BYTES, Pair
from zonefs_emu.device.intent_log import Intents
from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.errors import PeerError
from zonefs_emu.inflight.ring_record import RingRecord, record_bytes
from zonefs_emu.model.transitions import Operation
from zonefs_emu.testing.driver_rings import GUEST_BASE
from zonefs_emu.virtio import features as bits
from zonefs_emu.virtio.handler import Begin
from zonefs_emu.virtio.memory import GuestMemory, Region
from zonefs_emu.virtio.ring import BrokenRingError, Chain
from zonefs_emu.virtqueue.dirty_log import DirtyLog
from zonefs_emu.virtqueue.peer_eventfds import PeerEventfds
from zonefs_emu.virtqueue.peer_memory import PeerMemory
from zonefs_emu.virtqueue.virtqueue import BATCH, RingAddresses, Service, Virtqueue

USER = 1 << 40


class Echo:
    """Answers each request with its first byte; b"w" and b"Y" wait, b"x" breaks, b"y" and b"Y" meet a bug."""

    plain = None

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.nr_oversized = 0
        #: Called once, while a request is executed.
        self.coming: Callable[[], object] | None = None

    def step(self, chains: Sequence[Chain], index: int, lengths: list[int], begin: Begin) -> int:
        if chains[index][1][0][0] in b"wY":
            return 0
        begin(index, ())
        lengths.append(self.execute(chains[index]))
        return 1

    def execute(self, chain: Chain) -> int:
        if chain[1][0][0] == ord("x"):
            message = "x"
            raise BrokenRingError(message)
        if self.coming is not None:
            coming, self.coming = self.coming, None
            coming()
        if chain[1][0][0] in b"yY":
            raise AssertionError("a bug")
        chain[2][0][0] = chain[1][0][0]
        return 1

    def fail(self, chain: Chain) -> int:
        if not chain[2]:
            message = "no room"
            raise BrokenRingError(message)
        chain[2][0][0] = ord("!")
        return 1

    def refuse_oversized(self, chain: Chain) -> int:
        self.nr_oversized += 1
        return self.fail(chain)


class Bench:
    def __init__(self, *, is_packed: bool, size: int = 64) -> None:
        self.pair = Pair(is_packed=is_packed, size=size)
        self.memory = GuestMemory([Region(GUEST_BASE, MEMORY_BYTES, USER, self.pair.bytes)])
        self.jobs: list[tuple[Callable[[], int], Callable[[int | Exception], None]]] = []
        #: Exceptions that were contained, and where.
        self.contained: list[tuple[str, Exception]] = []
        self.echo = Echo()
        service = Service(
            lambda job, then: self.jobs.append((job, then)),
            self.pair.fence,
            lambda where, error: self.contained.append((where, error)),
            LimitedLog(logging.getLogger("zonefs_emu.virtqueue")),
            PeerEventfds(),
        )
        self.service = service
        self.intents = Intents(lambda _: False)
        self.queue = Virtqueue(0, self.intents, self.echo, service)
        desc, driver, device = (USER + area.offset for area in self.pair.areas)
        self.queue.address = RingAddresses(desc, driver, device)
        self.queue.size = size
        self.queue.base = 0x80008000 if is_packed else 0
        self.queue.call_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.queue.err_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.queue.enabled = True
        self.features = bits.EVENT_IDX | (bits.RING_PACKED if is_packed else 0)

    def start(self) -> None:
        self.queue.start(self.memory, self.features, None, None)

    def work(self) -> None:
        job, then = self.jobs.pop(0)
        try:
            outcome: int | Exception = job()
        except Exception as error:
            outcome = error
        then(outcome)


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


def test_a_batch_is_one_notification(bench: Bench) -> None:
    bench.start()
    calls(bench)
    for nr_requests in (1, 20, 3):
        bench.pair.driver.reap()
        bench.pair.driver.want_call()
        for _ in range(nr_requests):
            bench.pair.add([b"a"], [1])
        assert bench.queue.run()
        assert calls(bench) == 1


def test_a_driver_that_has_not_taken_the_last_answers_is_not_notified_again(bench: Bench) -> None:
    bench.start()
    calls(bench)
    bench.pair.driver.want_call()
    for number in range(2):
        bench.pair.add([b"a"], [1])
        assert bench.queue.run()
        assert bench.queue.has_several == bool(number)
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


def test_a_record_says_where_to_go_on_whatever_the_front_end_says(bench: Bench) -> None:
    """A process that was killed has not told the front-end how far it came. Round the ring more than once."""
    record = memoryview(bytearray(record_bytes(64)))
    base = bench.queue.base
    for _ in range(19):
        bench.queue.base = base
        bench.queue.start(bench.memory, bench.features, record, None)
        numbers = [bench.pair.add([bytes([65 + index])], [1]) for index in range(15)]
        while bench.queue.run():
            pass
        assert [done.request_id for done in bench.pair.driver.reap()] == numbers
    assert bench.queue.requests == 19 * 15


def test_requests_that_may_come_again_are_executed_one_by_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is given back as one: which of its requests was executed before is told by what was given back."""
    bench.queue.start(bench.memory, bench.features, memoryview(bytearray(record_bytes(64))), None)
    for _ in range(5):
        bench.pair.add([b"a"], [1])
    monkeypatch.setattr(RingRecord, "recovering", True)
    for number in (1, 2):
        assert bench.queue.run()
        assert bench.queue.requests == number
    monkeypatch.setattr(RingRecord, "recovering", False)
    assert bench.queue.run()
    assert bench.queue.requests == 5


@pytest.mark.parametrize("is_ours", [False, True])
def test_a_record_of_a_packed_ring_that_goes_on_outside_of_it_is_refused(*, is_ours: bool) -> None:
    bench = Bench(is_packed=True)
    record = memoryview(bytearray(record_bytes(64)))
    bench.queue.start(bench.memory, bench.features, record, None)
    words = record.cast("Q")
    words[1] = words[2] = 0x8000 | (63 if is_ours else 64)
    if is_ours:
        bench.queue.start(bench.memory, bench.features, record, None)
        assert bench.queue.stop() == 0x803F803F
    else:
        with pytest.raises(PeerError, match="the record of queue 0 continues at entry 64, but the queue has 64"):
            bench.queue.start(bench.memory, bench.features, record, None)
    bench.queue.close()


def test_the_pages_that_a_queue_writes_are_logged_while_there_is_a_log(bench: Bench) -> None:
    """What requests may write, and of the ring what is written: a packed one's descriptors, a split one's used ring."""
    fd = os.memfd_create("log")
    nr_bytes = (GUEST_BASE + MEMORY_BYTES >> 15) + 1
    os.ftruncate(fd, nr_bytes)
    is_packed = bool(bench.features & bits.RING_PACKED)
    # The tenth element of the used ring is the first on its second page.
    used = 7 * 4096 - 4 - 8 * 9
    address = bench.queue.address
    assert address is not None
    bench.queue.address = RingAddresses(address.desc, address.driver, address.device, used)
    bench.start()
    place = bench.pair.heap.take(1)
    buffers = [(GUEST_BASE + place.offset, 1, False), (GUEST_BASE + place.offset, 1, True)]

    def pages_after(nr_requests: int) -> set[int]:
        os.pwrite(fd, bytes(nr_bytes), 0)
        for _ in range(nr_requests):
            bench.pair.driver.add(buffers, None)
        bench.queue.run()
        bench.pair.driver.reap()
        data = os.pread(fd, nr_bytes, 0)
        return {page for page in range(8 * nr_bytes) if data[page >> 3] >> (page & 7) & 1}

    written = {GUEST_BASE + place.offset >> 12}
    first, last = (GUEST_BASE + bench.pair.areas[0].offset + at >> 12 for at in (0, 16 * 64 - 1))
    of_ring = {first, last} if is_packed else {6}
    assert pages_after(1) == set()
    bench.queue.set_log(DirtyLog(PeerMemory(), fd, nr_bytes, 0))
    assert pages_after(1) == written | of_ring
    assert pages_after(7) == written | of_ring
    if not is_packed:
        assert pages_after(1) == written | {6, 7}, "the index and the tenth"
        assert pages_after(5) == written | {6, 7}
        bench.queue.set_used_log_address(-1)
        assert pages_after(1) == written | {6, 7}, "no address is no change"
        bench.queue.set_used_log_address(0)
        assert pages_after(1) == written | {0}
    bench.queue.set_log(None)
    assert pages_after(1) == set()
    os.close(fd)


@pytest.mark.parametrize("texts", [(b"a", b"x", b"b"), (b"a", b"w")])
def test_broken(bench: Bench, texts: tuple[bytes, ...], expect_warning: Callable[[str], None]) -> None:
    expect_warning("queue 0 is broken: x")
    bench.start()
    for text in texts:
        bench.pair.add([text], [1])
    bench.queue.run()
    if bench.jobs:
        bench.jobs.pop()[1](BrokenRingError("x"))
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
        (64, RingAddresses(1, USER, USER), "do not lie in one memory region"),
        (64, RingAddresses(USER, USER, USER + MEMORY_BYTES - 2), "do not lie in one memory region"),
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


@pytest.mark.parametrize("text", [b"y", b"Y"], ids=["at once", "by the worker"])
def test_a_bug_costs_the_request_that_meets_it(bench: Bench, text: bytes) -> None:
    bench.start()
    numbers = [bench.pair.add([content], [1]) for content in (b"a", text, b"c", text, b"d")]
    while bench.queue.run() or bench.jobs:
        if bench.jobs:
            bench.work()
    assert [done.request_id for done in bench.pair.driver.reap()] == numbers
    assert [(where, str(error)) for where, error in bench.contained] == [("a request of queue 0", "a bug")] * 2
    assert not bench.queue.broken


def test_a_bug_that_cannot_be_answered_costs_the_ring(bench: Bench, expect_warning: Callable[[str], None]) -> None:
    expect_warning("queue 0 is broken: no room")
    bench.start()
    first = bench.pair.add([b"a"], [1])
    bench.pair.add([b"y"], [])
    bench.pair.add([b"c"], [1])
    bench.queue.run()
    assert bench.queue.broken
    assert os.eventfd_read(bench.queue.err_fd) == 1
    assert [done.request_id for done in bench.pair.driver.reap()] == [first], "what was done is given back"


@pytest.mark.parametrize("method", ["pop", "push", "needs_call", "sleep", "wake"])
def test_a_bug_in_the_ring_costs_the_ring(
    bench: Bench, method: str, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_warning("queue 0 is broken: an internal error")
    bench.start()
    bench.pair.add([b"a"], [1])
    ring = bench.queue.ring
    assert ring is not None
    real = getattr(type(ring), method)
    left = [1]

    def broken(*args: object) -> object:
        if left:
            left.pop()
            raise RuntimeError("a bug")
        return real(*args)

    monkeypatch.setattr(type(ring), method, broken)
    bench.queue.wake()
    bench.queue.run()
    assert not bench.queue.sleep()
    assert bench.queue.broken
    assert [where for where, _ in bench.contained] == ["the ring of queue 0"]
    assert os.eventfd_read(bench.queue.err_fd) == 1
    bench.queue.stop()
    bench.queue.base = 0x80008000 if bench.features & bits.RING_PACKED else 0


def test_a_chain_that_is_too_long_is_answered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ring", "split", "packed"):
        monkeypatch.setattr(f"zonefs_emu.virtio.{module}.CHAIN_BYTES_MAX", 1000)
    monkeypatch.setattr("zonefs_emu.virtio.packed._UNUSUAL", -1)
    bench.start()
    sizes = (1, 1001, 1, 400, 1001, 1001)
    numbers = [bench.pair.add([b"a"], [size] if size != 400 else [1, 400, 600]) for size in sizes]
    while bench.queue.run():
        pass
    assert [done.request_id for done in bench.pair.driver.reap()] == numbers
    assert bench.echo.nr_oversized == 4
    assert not bench.queue.broken


def test_an_answer_that_was_abandoned_is_ignored(bench: Bench) -> None:
    bench.start()
    bench.pair.add([b"w"], [1])
    bench.queue.run()
    assert bench.queue.busy
    bench.queue.abandon()
    bench.queue.base = bench.queue.stop()
    bench.start()
    assert bench.queue.run()
    job, then = bench.jobs.pop(0)
    then(job())
    assert bench.queue.busy, "the request is executed again, and that is what is waited for"
    bench.work()
    assert len(bench.pair.driver.reap()) == 1


def test_a_batch_is_given_back_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.start()
    for _ in range(20):
        bench.pair.add([b"a"], [1])
    given_back: list[int] = []
    execute = bench.echo.execute

    def counting(chain: Chain) -> int:
        given_back.append(len(bench.pair.driver.reap()))
        return execute(chain)

    monkeypatch.setattr(bench.echo, "execute", counting)
    assert bench.queue.run()
    assert given_back == [0] * 20
    assert len(bench.pair.driver.reap()) == 20


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "by the worker"])
def test_the_record_has_each_request_at_its_own_number(bench: Bench, *, waits: bool) -> None:
    """Numbers count from the first request of all, however many of a batch were given back before."""
    memory = memoryview(bytearray(record_bytes(64)))
    words = memory.cast("Q")
    bench.queue.start(bench.memory, bench.features, memory, None)
    first = words[1] >> 16 if bench.features & bits.RING_PACKED else words[1]
    for number in range(13):
        for _ in range(number):
            bench.pair.add([b"a"], [1])
        bench.pair.add([b"w" if waits else b"a"], [1])
        log = bench.queue._record
        assert log is not None
        nr_left = [number + 1]

        def note(log: RingRecord = log, nr_left: list[int] = nr_left) -> None:
            nr_left[0] -= 1
            if nr_left[0]:
                bench.echo.coming = note
            else:
                current = bench.intents.current.log
                assert current is log
                current.begin(Operation.WRITE, 4096, 8, 1)

        bench.echo.coming = note
        while bench.queue.run():
            pass
        while bench.jobs:
            bench.work()
        while bench.queue.run():
            pass
        bench.pair.driver.reap()
        first += number + 1
        assert words[8 + 4 * ((first - 1) % 64)] == first


def test_a_stopped_queue_lets_go_of_the_record(bench: Bench) -> None:
    bench.queue.start(bench.memory, bench.features, memoryview(bytearray(record_bytes(64))), None)
    bench.pair.add([b"a"], [1])
    bench.queue.run()
    assert bench.intents.current.log is not None
    bench.queue.stop()
    assert bench.intents.current.log is None


def test_a_packed_ring_goes_on_at_its_base_also_if_nothing_was_ever_given_back() -> None:
    bench = Bench(is_packed=True)
    memory = memoryview(bytearray(record_bytes(64)))
    bench.queue.base = 0x8005_8005
    bench.queue.start(bench.memory, bench.features, memory, None)
    bench.queue.base = 0
    bench.queue.start(bench.memory, bench.features, memory, None)
    assert bench.queue.stop() == 0x8005_8005
    bench.queue.close()


@pytest.mark.parametrize("was_shown", [False, True])
def test_a_packed_ring_tells_by_its_descriptors_what_was_given_back_last(*, was_shown: bool) -> None:
    """Killed between the note that a request is given back and the note that it has been; all round the ring."""
    bench = Bench(is_packed=True)
    memory = memoryview(bytearray(record_bytes(64)))
    words = memory.cast("Q")
    bench.queue.start(bench.memory, bench.features, memory, None)
    for _ in range(70):
        number = bench.pair.add([b"a"], [1])
        before = words[1]
        if was_shown:
            assert bench.queue.run()
            assert words[1] != before
            words[1] = before
        else:
            # It takes up two descriptors.
            position = (before & 0xFFFF) + 2
            words[2] = ((before >> 16) + 1) << 16 | (position if position & 0x7FFF < 64 else (position ^ 0x8000) - 64)
        bench.queue.start(bench.memory, bench.features, memory, None)
        assert bench.queue.run() is not was_shown
        assert [done.request_id for done in bench.pair.driver.reap()] == [number]
        assert words[1] == words[2]
    bench.queue.close()


def test_a_worker_that_takes_nothing_costs_the_ring(bench: Bench, expect_warning: Callable[[str], None]) -> None:
    expect_warning("queue 0 is broken: an internal error")

    def closed(_job: object, _then: object) -> None:
        raise RuntimeError("closed")

    bench.queue = Virtqueue(0, bench.intents, bench.echo, bench.service._replace(submit=closed))
    address = (USER + area.offset for area in bench.pair.areas)
    bench.queue.address = RingAddresses(*address)
    bench.queue.size, bench.queue.enabled = 64, True
    bench.queue.base = 0x80008000 if bench.features & bits.RING_PACKED else 0
    bench.start()
    bench.pair.add([b"w"], [1])
    assert not bench.queue.run()
    assert bench.queue.broken
    assert not bench.queue.busy
    assert [str(error) for _, error in bench.contained] == ["closed"]
    bench.queue.stop()


@pytest.mark.parametrize(
    ("outcome", "is_contained"), [(1, False), (PeerError("gone"), False), (RuntimeError("a bug"), True)]
)
def test_of_answers_that_are_too_late_only_bugs_are_told(
    bench: Bench, outcome: int | Exception, *, is_contained: bool
) -> None:
    bench.start()
    bench.pair.add([b"w"], [1])
    bench.queue.run()
    bench.queue.abandon()
    bench.jobs.pop()[1](outcome)
    told = [("a request of queue 0 that is answered no more", outcome)] if is_contained else []
    assert bench.contained == told
    assert bench.queue.requests == 0


@pytest.mark.parametrize("outcome", [1, RuntimeError("a bug")], ids=["a length", "an exception"])
def test_what_cannot_be_answered_is_told_with_what_the_worker_met(
    bench: Bench, outcome: int | Exception, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_warning("queue 0 is broken: an internal error")
    bench.start()
    bench.pair.add([b"w"], [1])
    bench.queue.run()
    bug = RuntimeError("another bug")

    def broken(*_: object) -> None:
        raise bug

    if isinstance(outcome, Exception):
        monkeypatch.setattr(bench.echo, "fail", broken)
    else:
        monkeypatch.setattr(type(bench.queue.ring), "push", broken)
    bench.jobs.pop()[1](outcome)
    assert bench.queue.broken
    assert bench.contained[-1] == ("the ring of queue 0", bug)
    assert bug.__context__ is (outcome if isinstance(outcome, Exception) else None)


def test_a_queue_has_no_size_until_it_is_given_one(bench: Bench) -> None:
    queue = Virtqueue(3, bench.intents, bench.echo, bench.service)
    queue.address = bench.queue.address
    with pytest.raises(PeerError, match="queue 3 is started without size or addresses"):
        queue.start(bench.memory, bench.features, None, None)
    assert not queue.is_ready
    assert not queue.run()
    assert queue.stop() == 0


def test_a_queue_whose_start_fails_is_not_started(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that contains the exception takes a queue with a ring for one that runs."""
    with monkeypatch.context() as patch:
        patch.setattr("zonefs_emu.virtqueue.virtqueue.new_walker", lambda *_, **__: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            bench.start()
    assert bench.queue.ring is None
    assert not bench.queue.is_ready
    bench.start()
    assert bench.queue.is_ready


@pytest.mark.parametrize("nr_bytes_beyond", [0, 64], ids=["up to the end of a page", "into the next page"])
def test_all_pages_of_the_descriptors_of_a_packed_ring_are_logged_and_no_more(nr_bytes_beyond: int) -> None:
    bench = Bench(is_packed=True)
    area = bench.pair.areas[0]
    # The same memory a second time, where the descriptors end at, or behind, the end of a page.
    user, guest = USER << 1, GUEST_BASE + (1 << 20)
    guest += -(guest + area.offset + area.length - nr_bytes_beyond) % 4096
    again = Region(guest, MEMORY_BYTES, user, bench.pair.bytes)
    memory = GuestMemory([*bench.memory.regions, again])
    address = bench.queue.address
    assert address is not None
    bench.queue.address = address._replace(desc=user + area.offset)
    fd = os.memfd_create("log")
    nr_bytes = (guest + MEMORY_BYTES >> 15) + 1
    os.ftruncate(fd, nr_bytes)
    bench.queue.start(memory, bench.features, None, DirtyLog(PeerMemory(), fd, nr_bytes, 0))
    bench.pair.add([b"a"], [1])
    bench.queue.run()
    data = os.pread(fd, nr_bytes, 0)
    pages = {page for page in range(8 * nr_bytes) if data[page >> 3] >> (page & 7) & 1}
    first, last = guest + area.offset >> 12, guest + area.offset + area.length - 1 >> 12
    assert {page for page in pages if page >= guest >> 12} == {first, last}
    assert (first != last) is bool(nr_bytes_beyond)
    os.close(fd)
    bench.queue.close()


def test_a_closed_queue_has_no_descriptor_open(bench: Bench) -> None:
    queue = bench.queue
    queue.kick_fd = os.eventfd(0, os.EFD_NONBLOCK)
    fds = [queue.kick_fd, queue.call_fd, queue.err_fd]
    queue.close()
    assert (queue.kick_fd, queue.call_fd, queue.err_fd) == (-1, -1, -1)
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    queue.close()
