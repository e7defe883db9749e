"""Exactly once: a back-end that is killed at any instant, and goes on, has done every request once.

First every instant: a process killed is one whose stores end somewhere, so every store into memory that outlives it
(rings, in-flight record, live table) and every system call that moves data is counted, and the k-th of them never
happens, for all k. Then the real thing: SIGKILL under load.
"""

import gc
import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from tests.killing import Clock, Killed, Mortal, close_as_killed, make_mortal
from tests.refused import last_refusal
from tests.vhost_user import serving
from tests.vhost_user.serving import Daemon, blk_device, create
from zonefs_emu.device import image_access
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import PeerError
from zonefs_emu.inflight.ring_record import record_bytes
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import ZNS, Operation
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.driver_rings import GUEST_BASE, Heap
from zonefs_emu.testing.vhost_frontend import USER_BASE, Frontend, FrontendQueue
from zonefs_emu.virtio import blk_codec, features as bits
from zonefs_emu.virtio.memory import GuestMemory, Region
from zonefs_emu.virtqueue.atomic import make_fence
from zonefs_emu.virtqueue.peer_eventfds import PeerEventfds
from zonefs_emu.virtqueue.timed_virtqueue import TimedVirtqueue, time_queues
from zonefs_emu.virtqueue.virtqueue import RingAddresses, Service, Virtqueue

QUEUE_SIZE = 64
MEMORY_BYTES = 1 << 18
#: Small: all of it is compared after each of some thousand lives.
ZONE = 64
GEOMETRY = Geometry(
    size=8 * ZONE, zone_size=ZONE, zone_capacity=ZONE, conventional=((0, 2),), max_open_zones=6, max_active_zones=8
)


class MortalMemory(GuestMemory):
    """A guest's memory: each store into the part of the ring at *address* is an instant."""

    def __init__(self, regions: Sequence[Region], address: int, clock: Clock) -> None:
        super().__init__(regions)
        self._address = address
        self._clock = clock

    def at_user_address(self, address: int, length: int) -> Any:
        found = super().at_user_address(address, length)
        return Mortal(found, self._clock) if address == self._address else found


class Guest:
    """Memory, a ring and an in-flight region, as they outlive back-ends. The driver's part is the front-end's."""

    features = bits.EVENT_IDX

    def __init__(self, *, packed: bool) -> None:
        self.packed = packed
        self.indirect = False
        self.queue_size = QUEUE_SIZE
        self.memory = memoryview(mmap.mmap(-1, MEMORY_BYTES))
        self.heap = Heap(0, MEMORY_BYTES)
        self.queue = FrontendQueue(self, 0)  # type: ignore[arg-type]  # as much of a front-end as a queue looks at
        self.record = memoryview(bytearray(record_bytes(QUEUE_SIZE)))
        self.regions = GuestMemory([Region(GUEST_BASE, MEMORY_BYTES, USER_BASE, self.memory)])

    def submit(self, requests: Sequence[tuple[int, int, bytes, Sequence[int]]]) -> list[int]:
        """Make (kind, sector, data, writable lengths) available."""
        return [
            self.queue.submit([BlkDriver.header(kind, sector), *([data] if data else [])], [*into, 1], kick=False)
            for kind, sector, data, into in requests
        ]

    def close(self) -> None:
        self.queue.close()


class Life:
    """One process: an opened image and a queue on the guest's ring; dies at instant *fatal*, if it gets there.

    A *timed* one holds its answers, and its start is a part of its life.
    """

    def __init__(self, path: Path, guest: Guest, fatal: int, *, timed: bool = False) -> None:
        self.clock = clock = Clock(fatal)
        self.device = device = ZonedDevice.open(path)
        self.timed = timed
        self.now_ns = 0
        if timed:
            device.start_timing("zn540", clock=lambda: self.now_ns)
            assert device.timing is not None
            device.timing.alarm.at = lambda *_: None  # type: ignore[method-assign]  # _wait does its work
        self.virtio_device = blk_device(device)
        make_mortal(device, clock)
        service = Service(
            self._submit, make_fence(), self._contain, LimitedLog(logging.getLogger("zonefs_emu")), PeerEventfds()
        )
        kind = TimedVirtqueue if timed else Virtqueue
        self.queue = kind(0, self.virtio_device.intents, self.virtio_device.handler(0), service)
        time_queues([self.queue], self.virtio_device.port, lambda: None)
        areas = guest.queue.areas
        desc, driver, used = (USER_BASE + area.offset for area in areas)
        self.queue.size = QUEUE_SIZE
        self.queue.address = RingAddresses(desc, driver, used)
        self.queue.base = 0x8000_8000 if guest.packed else 0
        self._guest = guest
        if not timed:
            self._start(guest.regions, guest.record)
            ring, record = self.queue.ring, self.queue._record
            assert record is not None
            record._words = Mortal(record._words, clock)  # type: ignore[assignment]
            for name in ("_elements", "_used") if not guest.packed else ("_desc",):
                setattr(ring, name, Mortal(getattr(ring, name), clock))

    def _start(self, regions: Any, record: Any) -> None:
        self.queue.start(regions, bits.EVENT_IDX | (bits.RING_PACKED if self._guest.packed else 0), record, None)
        self.queue.enabled = True

    def _start_timed(self) -> None:
        """Start the ring, with each store into it or the record an instant."""
        guest = self._guest
        area = guest.queue.areas[0 if guest.packed else 2]
        regions = MortalMemory(guest.regions.regions, USER_BASE + area.offset, self.clock)
        self._start(regions, Mortal(guest.record, self.clock))

    def _submit(self, job: Callable[[], int], then: Callable[[int | Exception], None]) -> None:
        then(job())

    def _contain(self, _where: str, error: Exception) -> None:
        raise error

    def run(self) -> bool:
        """Serve until nothing is left; False if killed. A timed life goes from one answer that is due to the next."""
        try:
            if self.timed and self.queue.ring is None:
                self._start_timed()
            while self.queue.run() or self._wait():
                pass
        except Killed:
            return False
        return True

    def _wait(self) -> bool:
        """Wait for the next answer that is held; False if none is."""
        held = self.queue._held if isinstance(self.queue, TimedVirtqueue) else []
        self.now_ns = held[0][0] if held else self.now_ns
        return bool(held)

    def end(self) -> None:
        """What the kernel does with a dead process: the files are closed, nothing is flushed."""
        close_as_killed(self.device, self.clock)
        del self.queue
        gc.collect()


def contents(path: Path) -> tuple[list[Any], bytes]:
    device = ZonedDevice.open(path)
    try:
        port = device.port("look", ZNS)
        data = bytearray(8 * ZONE * 512)
        assert not port.read(0, 8 * ZONE, [data])
        return port.report(0, GEOMETRY.nr_zones), bytes(data)
    finally:
        device.close()


def pattern(number: int, nr_sectors: int) -> bytes:
    return bytes([number]) * (512 * nr_sectors)


def workload() -> list[list[tuple[int, int, bytes, Sequence[int]]]]:
    """Batches of requests: all that change zones, in one queue.

    No answer of a request that changes nothing depends on later requests of its batch: see
    :func:`test_a_refusal_that_was_not_shown_may_be_another_after_a_kill`.
    """
    z = [number * ZONE for number in range(8)]
    return [
        [
            *((blk_codec.T_OUT, z[2] + 2 * index, pattern(1 + index, 2), ()) for index in range(5)),  # merged
            (blk_codec.T_OUT, z[6] + 8, pattern(9, 1), ()),  # refused: not at wp
            (blk_codec.T_ZONE_APPEND, z[3], pattern(10, 3), (8,)),
            (blk_codec.T_ZONE_APPEND, z[3], pattern(11, 3), (8,)),
            (blk_codec.T_IN, z[3], b"", (3072,)),
            (blk_codec.T_OUT, z[0] + 4, pattern(12, 2), ()),  # conventional
            (blk_codec.T_ZONE_OPEN, z[4], b"", ()),
            (blk_codec.T_ZONE_CLOSE, z[4], b"", ()),  # without data: EMPTY
            (blk_codec.T_ZONE_CLOSE, z[4], b"", ()),  # refused
            (blk_codec.T_ZONE_FINISH, z[3], b"", ()),
            (blk_codec.T_OUT, z[2] + 10, pattern(13, 1), ()),
        ],
        [
            (blk_codec.T_FLUSH, 0, b"", ()),
            (blk_codec.T_ZONE_RESET, z[2], b"", ()),
            (blk_codec.T_ZONE_APPEND, z[2], pattern(14, 2), (8,)),  # into a zone just reset
            (blk_codec.T_OUT, z[2] + 2, pattern(15, 1), ()),
            (blk_codec.T_ZONE_REPORT, 0, b"", (64 + 64 * 8,)),
            (blk_codec.T_ZONE_RESET_ALL, 0, b"", ()),
            (blk_codec.T_OUT, z[5], pattern(16, 4), ()),
            (blk_codec.T_OUT, z[5] + 4, pattern(17, 4), ()),
        ],
    ]


def play(
    path: Path, guest: Guest, fatal: Sequence[int], timed: Sequence[bool] = (False,)
) -> tuple[list[list[bytes]], list[int]]:
    """Run the workload in lives that die at *fatal* (each counted in its own life); return answers and instants.

    *timed* says which lives hold their answers; those that it does not name are as its last.
    """
    deaths, kinds = list(fatal), list(timed)

    def next_life() -> Life:
        is_timed = kinds.pop(0) if len(kinds) > 1 else kinds[0]
        return Life(path, guest, deaths.pop(0) if deaths else -1, timed=is_timed)

    instants: list[int] = []
    answers: list[list[bytes]] = []
    life = next_life()
    for batch in workload():
        numbers = guest.submit(batch)
        while not life.run():
            life.end()
            life = next_life()
        guest.queue.reap()
        for number in numbers:
            _, parts = guest.queue._collect(number)
            answers.append(parts)
    instants.append(life.clock.now)
    life.device.close()
    return answers, instants


@pytest.fixture(autouse=True)
def no_power_cuts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page cache survives a kill, so waiting for the medium proves nothing here and takes most of the time."""
    monkeypatch.setattr("os.fdatasync", lambda _fd: None)


@pytest.fixture(scope="module", autouse=True)
def only_our_garbage() -> Iterator[None]:
    """Each life ends with a collection, which would go through all that the tests before us have left in memory."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", params=[False, True], ids=["split", "packed"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Answers, instants and final contents of a process that is not killed."""
    packed: bool = request.param
    return undisturbed_life(tmp_path_factory.mktemp("undisturbed"), packed=packed)


def undisturbed_life(directory: Path, *, packed: bool, timed: bool = False) -> Any:
    path = create(directory / "image", GEOMETRY)
    guest = Guest(packed=packed)
    answers, instants = play(path, guest, (), [timed])
    guest.close()
    statuses = [parts[-1][0] for parts in answers]
    assert statuses[:5] == [0] * 5
    assert statuses.count(blk_codec.S_ZONE_UNALIGNED_WP) == 1
    assert statuses.count(blk_codec.S_ZONE_INVALID_CMD) == 1
    return packed, answers, instants[0], contents(path)


def check_life(tmp_path: Path, undisturbed: Any, fatal: Sequence[int], timed: Sequence[bool] = (False,)) -> None:
    packed, answers, _, expected = undisturbed
    path = create(tmp_path / "-".join(map(str, fatal)), GEOMETRY)
    guest = Guest(packed=packed)
    found, _ = play(path, guest, fatal, timed)
    guest.close()
    assert [parts[-1] for parts in found] == [parts[-1] for parts in answers], f"statuses, killed at {fatal}"
    assert found == answers, f"answers, killed at {fatal}"
    zones, data = contents(path)
    assert zones == expected[0], f"zones, killed at {fatal}"
    assert data == expected[1], f"data, killed at {fatal}"
    path.unlink()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_every_instant(tmp_path: Path, undisturbed: Any) -> None:
    for fatal in range(undisturbed[2] + 1):
        check_life(tmp_path, undisturbed, [fatal])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_killed_at_every_instant_of_writes_without_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, packed: bool
) -> None:
    """Long writes open their zone, move their bytes without the lock, and then the write pointer; here all are long."""
    monkeypatch.setattr(image_access, "LONG_WRITE_SECTORS", 0)
    undisturbed = undisturbed_life(tmp_path, packed=packed)
    for fatal in range(undisturbed[2] + 1):
        check_life(tmp_path, undisturbed, [fatal])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_again_while_it_recovers(tmp_path: Path, undisturbed: Any) -> None:
    for fatal in range(0, undisturbed[2], 7):
        for again in range(0, 60, 11):
            check_life(tmp_path, undisturbed, [fatal, again])


@pytest.fixture(scope="module", params=[False, True], ids=["split", "packed"])
def undisturbed_timed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same of a life that holds its answers, which come in another order."""
    packed: bool = request.param
    return undisturbed_life(tmp_path_factory.mktemp("timed"), packed=packed, timed=True)


def test_held_answers_change_nothing_but_their_order(undisturbed_timed: Any, tmp_path: Path) -> None:
    packed, answers, _, found = undisturbed_timed
    _, expected_answers, _, expected = undisturbed_life(tmp_path, packed=packed)
    assert answers == expected_answers
    assert found == expected


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_every_instant_while_answers_are_held(tmp_path: Path, undisturbed_timed: Any) -> None:
    for fatal in range(undisturbed_timed[2] + 1):
        check_life(tmp_path, undisturbed_timed, [fatal], [True])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_that_holds_no_answers_goes_on_where_they_were_held(tmp_path: Path, undisturbed_timed: Any) -> None:
    """The daemon is started without timing, or with it, under a guest that goes on."""
    for fatal in range(0, undisturbed_timed[2] + 1, 5):
        check_life(tmp_path, undisturbed_timed, [fatal], [True, False])
        check_life(tmp_path, undisturbed_timed, [fatal], [False, True])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_again_while_it_recovers_held_answers(tmp_path: Path, undisturbed_timed: Any) -> None:
    for fatal in range(0, undisturbed_timed[2], 17):
        for again in range(0, 60, 11):
            check_life(tmp_path, undisturbed_timed, [fatal, again], [True])


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_refusal_that_was_not_shown_may_be_another_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, packed: bool
) -> None:
    """A refused write and a FINISH of its zone are made before either is answered, so each order is right."""
    z = 3 * ZONE
    batch = [(blk_codec.T_OUT, z + 8, pattern(1, 1), ()), (blk_codec.T_ZONE_FINISH, z, b"", ())]
    monkeypatch.setattr("tests.vhost_user.test_exactly_once.workload", lambda: [batch])
    path = create(tmp_path / "undisturbed", GEOMETRY)
    guest = Guest(packed=packed)
    _, (nr_instants,) = play(path, guest, ())
    guest.close()
    expected = contents(path)
    refusals = set()
    for fatal in range(nr_instants + 1):
        path = create(tmp_path / str(fatal), GEOMETRY)
        guest = Guest(packed=packed)
        ((refusal,), (finished,)), _ = play(path, guest, [fatal])
        guest.close()
        assert finished == b"\0"
        assert contents(path) == expected
        refusals.add(refusal[0])
    assert refusals == {blk_codec.S_ZONE_UNALIGNED_WP, blk_codec.S_ZONE_INVALID_CMD}


def test_a_zone_that_others_changed_is_not_guessed_at(tmp_path: Path) -> None:
    """A kill between begin and commit, and then a write of another front-end: whether the first write was done is
    unknown."""
    path = create(tmp_path / "image", GEOMETRY)
    guest = Guest(packed=False)
    start = 3 * ZONE
    for fatal in range(200):  # the instant right before wp is published
        life = Life(path, guest, -1)
        life.clock.fatal = fatal
        (number,) = guest.submit([(blk_codec.T_ZONE_APPEND, start, pattern(1, 2), (8,))])
        published = life.device.image._live
        if life.run():
            life.device.close()
            break
        intent = life.queue._record._words._memory  # type: ignore[union-attr]
        ambiguous = any(intent[8 + 4 * slot] for slot in range(QUEUE_SIZE)) and not intent[3]
        del published, intent
        life.end()
        if ambiguous:
            life = Life(path, guest, -1)
            other = life.device.port("other", ZNS)
            assert not other.append(start, 1, [bytes(512)])[0]
            assert life.run()
            guest.queue.reap()
            assert guest.queue._collect(number)[1][-1][0] == blk_codec.S_IOERR
            assert last_refusal(life.virtio_device.port).rule == DeviceRule.CONTESTED
            life.device.close()
            guest.close()
            return
        life = Life(path, guest, -1)
        assert life.run()
        guest.queue.reap()
        guest.queue._collect(number)
        life.device.close()
        path.unlink()
        create(path, GEOMETRY)
        guest.close()
        guest = Guest(packed=False)
    pytest.fail("no instant was ambiguous")


# -- the real thing ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(960)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_sigkill_under_write_load(tmp_path: Path, packed: bool) -> None:
    """Appends and writes in flight, the daemon killed again and again: each block is there once, in its place."""
    unlimited = Geometry(size=32 * ZONE, zone_size=ZONE, zone_capacity=ZONE, conventional=((0, 2),))
    daemon = Daemon(create(tmp_path / "image", unlimited), tmp_path / "socket")
    landed: dict[int, int] = {}
    try:
        with Frontend(tmp_path / "socket", packed=packed) as frontend:
            frontend.start()
            queue = frontend.queues[0]
            number = 0
            for life in range(8):
                zone = (2 + life) * ZONE
                waiting: dict[int, int] = {}
                wp = zone
                writes: dict[int, int] = {}
                for _ in range(24):
                    number += 1
                    data = number.to_bytes(8, "little") * 128  # two sectors
                    request = queue.submit([BlkDriver.header(blk_codec.T_ZONE_APPEND, zone), data], [8, 1], kick=False)
                    waiting[request] = number
                queue.kick()
                other = zone + 10 * ZONE
                for _ in range(8):
                    number += 1
                    data = number.to_bytes(8, "little") * 128
                    request = queue.submit([BlkDriver.header(blk_codec.T_OUT, other), data], [1], kick=False)
                    writes[request] = number
                    landed[other] = number
                    other += 2
                queue.kick()
                os.sched_yield()
                for _ in range(life * 40):
                    queue.ring.want_call()  # a little time, another amount in each life
                daemon.kill()
                daemon.restart()
                frontend.reconnect()
                for request, what in waiting.items():
                    _, (where, status) = queue.wait(request)
                    assert status == b"\0"
                    sector = int.from_bytes(where, "little")
                    assert sector not in landed
                    landed[sector] = what
                for request in writes:
                    assert queue.wait(request)[1] == [b"\0"]
                driver = BlkDriver(queue)
                status_code, zones = driver.report(zone, 1)
                assert status_code == 0
                wp = zones[0].wp
                assert wp == zone + 2 * 24, "an append was doubled or lost"
            driver = BlkDriver(queue)
            for sector, what in landed.items():
                assert driver.read(sector, 1024) == (0, what.to_bytes(8, "little") * 128)
        daemon.stop()
    finally:
        daemon.process.kill()
        daemon.process.wait()


# -- a record that is none --------------------------------------------------------------------------------------------

#: Words as a record has them, at their limits, and anything.
words = st.one_of(
    st.integers(0, 20),
    st.integers(0, 20).map(lambda position: position << 16 | 1),
    st.builds(
        lambda nr_sectors, operation, cond: nr_sectors | operation << 32 | cond << 40,
        st.sampled_from((0, 1, 2, 3, (1 << 32) - 1)),
        st.integers(0, 9),
        st.integers(0, 16),
    ),
    st.sampled_from([*(number * ZONE for number in range(10)), (1 << 64) - 1, 1 << 63, (1 << 48) - 1, 1 << 48]),
    st.integers(0, (1 << 64) - 1),
)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@given(
    header=st.tuples(st.just(0) | words, words, words),
    # None: the position that belongs there, without which an entry says nothing.
    entries=st.lists(st.tuples(st.none() | words, words, words, words), max_size=16),
)
# The append of the workload, as if it had been about to land far beyond the device.
@example(header=(0, 0, 0), entries=[(0, 0, 0, 0)] * 6 + [(None, 1 << 60, 3 | Operation.APPEND << 32 | 1 << 40, 0)])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_record_of_anything_does_no_harm(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
    header: tuple[int, ...],
    entries: list[tuple[int | None, int, int, int]],
) -> None:
    """The front-end keeps the record, and what comes back may be anything: it is used, or not, or refused."""
    monkeypatch.setattr("zonefs_emu.device.limited_log.LimitedLog.warning", lambda *_: None)  # a broken ring is allowed
    path = tmp_path / "image"
    path.unlink(missing_ok=True)
    create(path, GEOMETRY)
    guest = Guest(packed=packed)
    try:
        # One that is ours, so that the rest is looked at.
        life = Life(path, guest, -1)
        life.device.close()
        record = guest.record.cast("Q")
        for at, word in enumerate(header, start=1):
            record[at] = word
        for slot, (position, sector, what, ordinal) in enumerate(entries):
            right = slot + 1 if position is None else position
            for at, word in enumerate((right, sector, what, ordinal), start=8 + 4 * slot):
                record[at] = word
        try:
            life = Life(path, guest, -1)
        except PeerError:
            return
        numbers = guest.submit(workload()[0])
        assert life.run()
        guest.queue.reap()
        # A packed ring may have been told to go on where there is nothing.
        for number in guest.queue._done.keys() & set(numbers):
            assert guest.queue._collect(number)[1][-1][0] <= blk_codec.S_ZONE_ACTIVE_RESOURCE
        life.device.close()
    finally:
        guest.close()


def test_an_abandoned_request_ends_before_it_is_taken_again(
    device: ZonedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    """The host's disk keeps a flush, behind which an append waits. The connection ends, and both are taken again."""
    for queue_no in range(2):
        expect_warning(f"queue {queue_no} is stopped while one of its requests waits for the host's disk")
    is_kept, go_on = threading.Event(), threading.Event()
    flush = device.image.flush

    def keep() -> None:
        is_kept.set()
        assert go_on.wait(30)
        flush()

    start = 3 * serving.ZONE
    with (
        serving.serving(device, blk_device(device, nr_queues=2), tmp_path / "socket") as backend,
        Frontend(tmp_path / "socket", nr_queues=2) as frontend,
    ):
        frontend.start()
        first, second = frontend.queues
        driver = BlkDriver(first)
        assert driver.write(start, bytes(512)) == 0
        assert driver.manage(blk_codec.T_ZONE_RESET, start) == 0  # an append may wait for the disk now
        with monkeypatch.context() as patch:
            patch.setattr("zonefs_emu.virtqueue.worker._WAIT_S", 0.01)
            patch.setattr(device.image, "flush", keep)
            flushing = first.submit([BlkDriver.header(blk_codec.T_FLUSH, 0)], [1])
            assert is_kept.wait(30)
            appending = second.submit([BlkDriver.header(blk_codec.T_ZONE_APPEND, start), bytes(512)], [8, 1])
            while backend._dispatcher is None or not backend._dispatcher.queues[1].busy:
                os.sched_yield()
            flush()  # by another front-end: the append that is taken again would wait for nothing
            with pytest.raises((PeerError, OSError)):
                frontend.reconnect()
        go_on.set()
        frontend.reconnect()
        assert first.wait(flushing)[1] == [b"\0"]
        assert second.wait(appending)[1] == [start.to_bytes(8, "little"), b"\0"]
        assert driver.report(start, 1)[1][0].wp == start + 1
