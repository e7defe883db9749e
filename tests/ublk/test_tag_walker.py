"""The compiled walker of a queue, held equal to Python, and what it takes and what not.

A file plays the character device, and memory of the test the two rings.
"""

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given, settings, strategies as st

from tests.requires import requires
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.intent_log import Intents
from zonefs_emu.errors import Status
from zonefs_emu.inflight.tag_record import BEGUN, COMMITTED, FREE, TagRecord
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.plain_rules import is_plain_read, is_plain_write
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.ublk.io_queue import IoQueue
from zonefs_emu.ublk.protocol import IO_DESC, IO_RES_ABORT, Request, buffer_offset
from zonefs_emu.ublk.uring import COMMAND_OFFSET, SQE_BYTES, Places

ZONE: Final = 256
CAPACITY: Final = 200
NR_ZONES: Final = 8
GEOMETRY: Final = Geometry(
    size=NR_ZONES * ZONE, zone_size=ZONE, zone_capacity=CAPACITY, conventional=((0, 1),), max_open_zones=3,
    max_active_zones=5,
)  # fmt: skip
DEPTH: Final = 16
#: The first sequential zone.
START: Final = ZONE
FUA: Final = 1 << 13
#: Where the rings are in the memory: three indices, the array of 32 entries, 64 completions.
_SQ_TAIL, _CQ_HEAD, _CQ_TAIL, _ARRAY, _COMPLETIONS = 0, 4, 8, 64, 256
_NR_ENTRIES, _NR_COMPLETIONS = 32, 64


@pytest.fixture(autouse=True)
def compiled() -> None:
    requires("walker")


class Ask(NamedTuple):
    """A request of the kernel: operation and flags, sectors, where."""

    operation: int
    nr_sectors: int
    sector: int


def write(sector: int, nr_sectors: int) -> Ask:
    return Ask(Request.WRITE, nr_sectors, sector)


def read(sector: int, nr_sectors: int) -> Ask:
    return Ask(Request.READ, nr_sectors, sector)


class Kernel:
    """The rings of a queue, and the kernel behind them, which asks for one batch of requests at once."""

    def __init__(self, directory: Path, *, is_compiled: bool) -> None:
        name = "compiled" if is_compiled else "pure"
        ZonedDevice.create(directory / f"{name}.img", GEOMETRY, uuid=UUID(int=1))
        self.device = ZonedDevice.open(directory / f"{name}.img")
        self.port = self.device.port("ublk", VIRTIO)
        intents = self.port.intents = Intents(contested=lambda _: False)
        self.record = TagRecord(directory / f"{name}.records", device_tag=1, nr_tags=DEPTH, go_on=False)
        self.fd = os.open(directory / f"{name}.node", os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.fd, buffer_offset(0, DEPTH))
        self.queue = IoQueue(
            self.port, intents, self.fd, self.record, number=0, depth=DEPTH, ended=lambda: None
        )  # fmt: skip
        self.queue._executor.begin()
        self.queue._slow_thread.start()
        self.memory = mmap.mmap(-1, 4096)
        self.words = memoryview(self.memory).cast("I")
        self.entries = mmap.mmap(-1, SQE_BYTES * (DEPTH + 1))
        self.pending = 0
        self.submitted = 0
        self.answers: dict[int, tuple[int, int, bytes]] = {}
        self.slots: list[list[int]] = []
        self._asks: list[Ask] = []
        self._number = 0
        self.walker = self.queue._new_walker(self) if is_compiled else None  # type: ignore[arg-type]  # a double

    @property
    def nr_taken(self) -> int:
        return self.walker.nr_taken if self.walker is not None else 0

    def close(self) -> None:
        self.queue._end_slow_thread()
        self.words.release()
        self.record.close()
        self.device.close()
        os.close(self.fd)

    def ask(self, *asks: Ask) -> list[tuple[int, int, bytes]]:
        """Ask for all *asks* at once, a tag each; return result, place and data read of each."""
        self.answers, self._asks = {}, list(asks)
        for tag, ask in enumerate(asks):
            self._number += 1
            os.pwrite(self.fd, IO_DESC.pack(ask.operation, ask.nr_sectors, ask.sector, 0), IO_DESC.size * tag)
            data = bytes((self._number + index) & 0xFF for index in range(512)) * min(ask.nr_sectors, ZONE)
            if ask.operation & 0xFF in (Request.WRITE, Request.ZONE_APPEND):
                os.pwrite(self.fd, data, buffer_offset(0, tag))
            self._complete(tag, 0)
        with memoryview(self.entries) as raw, raw.cast("i") as results, raw.cast("Q") as landed:
            self.queue._serve_requests(self, results, landed, self.walker)  # type: ignore[arg-type]  # as above
        return [self.answers[tag] for tag in range(len(asks))]

    def _complete(self, tag: int, result: int) -> None:
        tail = self.words[_CQ_TAIL // 4]
        at = (_COMPLETIONS + 16 * (tail % _NR_COMPLETIONS)) // 4
        self.words[at] = tag
        self.words[at + 2] = result & 0xFFFFFFFF
        self.words[_CQ_TAIL // 4] = tail + 1

    def _take_answers(self) -> None:
        while self.submitted != self.words[_SQ_TAIL // 4]:
            tag = self.words[_ARRAY // 4 + self.submitted % _NR_ENTRIES]
            self.submitted += 1
            if tag == DEPTH:
                continue
            at = SQE_BYTES * tag + COMMAND_OFFSET + 4
            result = int.from_bytes(self.entries[at : at + 4], "little", signed=True)
            where = int.from_bytes(self.entries[at + 4 : at + 12], "little")
            ask = self._asks[tag]
            is_read = ask.operation == Request.READ and result > 0
            self.answers[tag] = result, where, os.pread(self.fd, result, buffer_offset(0, tag)) if is_read else b""
            self.slots.append([self.record.words[at] for at in self.record.slots])
        self.pending = 0

    # -- what the queue uses of a ring --------------------------------------------------------------------------------

    def places(self) -> Places:
        return Places(
            self.memory, len(self.memory), self.entries, _SQ_TAIL, _NR_ENTRIES - 1, _ARRAY, _CQ_HEAD, _CQ_TAIL,
            _NR_COMPLETIONS - 1, _COMPLETIONS,
        )  # fmt: skip

    def catch_up(self, nr_pushed: int) -> None:
        self.pending += nr_pushed

    def push(self, tag: int) -> None:
        tail = self.words[_SQ_TAIL // 4]
        self.words[_ARRAY // 4 + tail % _NR_ENTRIES] = tag
        self.words[_SQ_TAIL // 4] = tail + 1
        self.pending += 1

    def enter(self, nr_wanted: int) -> None:
        self._take_answers()
        if not nr_wanted or self.has_completions():
            return
        if len(self.answers) < len(self._asks):
            # The rest is with the slow thread, which says so when it is done.
            while True:
                try:
                    os.eventfd_read(self.queue._slow_wake)
                    break
                except BlockingIOError:
                    threading.Event().wait(0.001)
            self._complete(DEPTH, 0)
        else:
            for tag in range(DEPTH):
                self._complete(tag, IO_RES_ABORT)

    def has_completions(self) -> bool:
        return self.words[_CQ_HEAD // 4] != self.words[_CQ_TAIL // 4]

    def spin(self, _duration_ns: int) -> bool:
        return self.has_completions()

    def reap(self) -> list[tuple[int, int]]:
        found = []
        while self.has_completions():
            head = self.words[_CQ_HEAD // 4]
            at = _COMPLETIONS + 16 * (head % _NR_COMPLETIONS)
            result = int.from_bytes(self.memory[at + 8 : at + 12], "little", signed=True)
            found.append((self.words[at // 4], result))
            self.words[_CQ_HEAD // 4] = head + 1
        return found

    # -- what is compared ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        device = self.device
        return {
            "zones": [device.machine.zone(zone_no) for zone_no in range(NR_ZONES)],
            "open": device.nr_open,
            "oldest": list(device.machine.resources.recency.oldest()),
            "counters": device.counters.totals(),
            "refusals": [
                (refusal.rule, refusal.status, refusal.zone_no, refusal.wp, refusal.sector, refusal.nr_sectors)
                for refusal in device.refusals.last(50)
            ],
            "record": self.record.words.tolist(),
            "requests": self.queue.requests,
        }

    def count_plain(self, asks: list[Ask]) -> int:
        """Return how many of *asks*, from the first one on, are plain as the zones are now."""
        machine = self.device.machine
        wps, conds = list(machine.wps), list(machine.conds)
        old = list(self.device.image.old_extents)
        for count, (operation, nr_sectors, sector) in enumerate(asks):
            zone_no, offset = divmod(sector, ZONE)
            if not 0 <= zone_no < NR_ZONES:
                return count
            is_open = conds[zone_no] in (Condition.IMP_OPEN, Condition.EXP_OPEN)
            if operation == Request.READ:
                if not is_plain_read(True, wps[zone_no], sector, offset, nr_sectors, 0):
                    return count
            elif (
                operation == Request.WRITE
                and zone_no < NR_ZONES - 1
                and wps[zone_no] >= old[zone_no]
                and is_plain_write(is_open, wps[zone_no], offset, nr_sectors, CAPACITY, 1)
            ):
                wps[zone_no] += nr_sectors
                if wps[zone_no] == CAPACITY:
                    conds[zone_no] = Condition.FULL
            else:
                return count
        return len(asks)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path, is_compiled=True)
    assert made.walker is not None
    yield made
    made.close()


def opened(kernel: Kernel) -> Kernel:
    """Open the first zone, which is no plain write, and write plainly to it: the walker is known to work then."""
    assert [answer[0] for answer in kernel.ask(write(START, 8))] == [4096]
    assert kernel.nr_taken == 0
    assert [answer[0] for answer in kernel.ask(write(START + 8, 8))] == [4096]
    assert kernel.nr_taken == 1
    return kernel


def test_it_takes_plain_reads_and_runs_of_plain_writes(kernel: Kernel) -> None:
    opened(kernel)
    answers = kernel.ask(*(write(START + 16 + 4 * index, 4) for index in range(DEPTH)))
    assert [answer[:2] for answer in answers] == [(2048, 0)] * DEPTH
    assert kernel.nr_taken == 1 + DEPTH
    assert kernel.device.machine.zone(1).wp == START + 80
    assert kernel.device.counters.totals()["writes"] == 2 + DEPTH
    found = kernel.ask(*(read(START + 16 + 4 * index, 4) for index in range(DEPTH)))
    assert [len(data) for _, _, data in found] == [2048] * DEPTH
    assert len({data for _, _, data in found}) == DEPTH
    assert kernel.nr_taken == 1 + 2 * DEPTH
    assert kernel.queue.requests == 2 + 2 * DEPTH


_STEP = st.tuples(
    st.integers(1, NR_ZONES - 1),
    st.sampled_from(["write"] * 6 + ["read"] * 5 + ["reset", "finish", "open", "flush", "fua", "append", "unknown"]),
    st.sampled_from([1, 2, 3, 8, 16, 32]),
    st.sampled_from([0] * 12 + [1, -1, ZONE, 1 << 40]),
)
_OTHERS: Final = {
    "reset": Request.ZONE_RESET, "finish": Request.ZONE_FINISH, "open": Request.ZONE_OPEN, "unknown": Request.DISCARD,
}  # fmt: skip


def asks_of(kernel: Kernel, steps: list[tuple[int, str, int, int]]) -> list[Ask]:
    """Return requests of which most are plain as the zones are now; *steps*: zone, what, sectors, how far away."""
    asks = []
    wps = list(kernel.device.machine.wps)
    for zone_no, what, nr_sectors, away in steps:
        start = zone_no * ZONE
        if what in ("write", "fua"):
            at = max(start + wps[zone_no] + away, 0)
            asks.append(Ask(Request.WRITE | (FUA if what == "fua" else 0), nr_sectors, at))
            wps[zone_no] += nr_sectors
        elif what == "read":
            length = max(min(nr_sectors, wps[zone_no]), 1)
            asks.append(read(max(start + max(wps[zone_no] - length, 0) + away, 0), length))
        elif what == "append":
            asks.append(Ask(Request.ZONE_APPEND, nr_sectors, start))
            wps[zone_no] += nr_sectors
        elif what == "flush":
            asks.append(Ask(Request.FLUSH, 0, 0))
        else:
            asks.append(Ask(_OTHERS[what], 0, start))
    return asks


@settings(max_examples=40)
@given(batches=st.lists(st.lists(_STEP, min_size=1, max_size=DEPTH), min_size=1, max_size=8))
def test_it_answers_as_python_does_and_takes_what_it_should(
    batches: list[list[tuple[int, str, int, int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("equal")
    kernels = [Kernel(directory, is_compiled=is_compiled) for is_compiled in (True, False)]
    try:
        for batch in batches:
            asks = asks_of(kernels[1], batch)
            slow = next((at for at, ask in enumerate(asks) if is_slow(kernels[1], ask)), len(asks) - 1)
            # What follows a request of the slow thread is carried out beside it, in either order.
            asks = asks[: slow + 1]
            before, nr_plain = kernels[0].nr_taken, kernels[1].count_plain(asks)
            answers = [kernel.ask(*asks) for kernel in kernels]
            assert answers[0] == answers[1]
            one, other = (kernel.state() for kernel in kernels)
            assert one == other
            assert kernels[0].nr_taken - before >= nr_plain
        assert kernels[1].nr_taken == 0
    finally:
        for kernel in kernels:
            kernel.close()


def is_slow(kernel: Kernel, ask: Ask) -> bool:
    """Say whether the slow thread carries a request out, now or after those before it in its batch."""
    if ask.operation in (Request.ZONE_RESET, Request.ZONE_FINISH) or ask.operation & FUA:
        return True  # a write after a reset waits until that is durable
    return (
        ask.operation != Request.READ
        and ask.sector < GEOMETRY.size
        and kernel.queue._may_wait(ask.operation, ask.nr_sectors, ask.sector)
    )


def test_intents_are_stored_and_freed_when_the_kernel_has_the_answers(kernel: Kernel) -> None:
    opened(kernel)
    kernel.slots.clear()
    kernel.ask(write(START + 16, 8), write(START + 24, 8))
    assert [slots[:3] for slots in kernel.slots] == [[COMMITTED, COMMITTED, FREE]] * 2
    record = kernel.record
    assert [record.words[at] for at in record.slots] == [FREE] * DEPTH
    assert record.intent(record.slots[1])[:3] == (Operation.WRITE, START + 24, 8)


# -- what it does not take ------------------------------------------------------------------------------------------


def test_an_armed_fault_is_pythons(kernel: Kernel) -> None:
    opened(kernel)
    fault = kernel.device.inject(
        Fault(operations=frozenset({Operation.READ}), effect=Effect.FAIL, status=Status.IO_ERROR)
    )
    assert kernel.ask(read(START, 8))[0][0] == -errno.EIO
    kernel.device.remove_fault(fault.id)
    assert kernel.nr_taken == 1
    assert kernel.ask(read(START, 8))[0][0] == 4096
    assert kernel.nr_taken == 2


def test_writes_are_pythons_while_there_is_a_write_hook(kernel: Kernel) -> None:
    opened(kernel)
    seen: list[tuple[int, int]] = []

    def hook(offset: int, length: int) -> None:
        seen.append((offset, length))

    kernel.device.add_write_hook(hook, observer="a test", failed=lambda _: None)
    kernel.ask(write(START + 16, 8))
    assert (seen, kernel.nr_taken) == ([((START + 16) * 512, 4096)], 1)
    kernel.device.remove_write_hook(hook)


def test_requests_that_may_come_again_are_pythons(kernel: Kernel) -> None:
    """As after a restart: a slot is of an earlier process."""
    record = kernel.record
    kernel.ask(write(START, 8))
    kernel.ask(write(START + 8, 8))
    assert kernel.nr_taken == 1
    kernel.walker = kernel.queue._new_walker(kernel)  # type: ignore[arg-type]  # a double
    spare = max(record.slots) + 4
    record.words[spare], record.words[spare + 1], record.words[spare + 2] = BEGUN, START + 16, 8 | Operation.WRITE << 32
    record.recoverable.append(spare)
    kernel.ask(write(START + 16, 8))
    assert kernel.nr_taken == 0
    record.recoverable.clear()
    kernel.ask(write(START + 24, 8))
    assert kernel.nr_taken == 1


def test_data_that_the_kernel_does_not_give_or_take_is_pythons(kernel: Kernel) -> None:
    opened(kernel)
    os.ftruncate(kernel.fd, buffer_offset(0, 0) + 4096)
    plain = os.pwrite

    def shorter(fd: int, data: bytes, offset: int) -> int:
        return 0 if offset == buffer_offset(0, 1) else plain(fd, data, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.pwrite", shorter)
        answers = kernel.ask(write(START + 16, 8), write(START + 24, 8))
    assert [answer[0] for answer in answers] == [4096, -errno.EIO]
    assert kernel.nr_taken == 1
    assert kernel.device.machine.zone(1).wp == START + 24


def test_a_bug_of_the_machine_costs_one_request(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("internal error in ublk, write of 8 sectors at sector 272: AssertionError: a bug")
    opened(kernel)
    whole = kernel.port.commit
    calls = [0]

    def broken(*arguments: object) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise AssertionError("a bug")
        whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel.port, "commit", broken)
    answers = kernel.ask(write(START + 16, 8), write(START + 16, 8), write(START + 24, 8))
    assert [answer[0] for answer in answers] == [-errno.EIO, 4096, 4096]
    assert kernel.device.machine.zone(1).wp == START + 32
    record = kernel.record
    assert [record.words[at] for at in record.slots] == [FREE] * DEPTH


def test_a_port_whose_answers_wait_has_no_walker(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, is_compiled=False)
    kernel.device.start_timing("zn540")
    kernel.queue._port = kernel.device.port("timed", VIRTIO)
    assert kernel.queue._new_walker(kernel) is None  # type: ignore[arg-type]  # a double
    kernel.close()
