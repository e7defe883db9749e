"""The compiled walker of a queue, held equal to Python, and what it takes and what not."""

import errno
import math
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tests.requires import requires
from tests.ublk.tag_walker_rig import (
    ACTIONS,
    DEPTH,
    DISTANCES,
    LENGTHS,
    NR_ZONES,
    START,
    Kernel,
    Step,
    asks_of,
    fuzz,
    read,
    write,
)  # fmt: skip
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.errors import Status
from zonefs_emu.inflight.tag_record import BEGUN, COMMITTED, FREE
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.ublk.protocol import buffer_offset


@pytest.fixture(autouse=True)
def compiled() -> None:
    requires("walker")


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
    st.sampled_from([*ACTIONS[:2] * 5, *ACTIONS]),
    st.sampled_from(LENGTHS),
    st.sampled_from([*DISTANCES[:1] * 12, *DISTANCES]),
)


@settings(max_examples=40)
@given(
    batches=st.lists(st.lists(_STEP, min_size=1, max_size=DEPTH), min_size=1, max_size=8), slow_at_once=st.booleans()
)  # fmt: skip
def test_it_answers_as_python_does_and_takes_what_it_should(
    batches: list[list[Step]], slow_at_once: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("equal")
    kernels = [Kernel(directory, is_compiled=is_compiled, slow_at_once=slow_at_once) for is_compiled in (True, False)]
    try:
        for batch in batches:
            asks = asks_of(kernels[1], batch)
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


def test_the_fuzzer_of_the_sanitizers_works(tmp_path: Path) -> None:
    nr_requests, nr_taken = fuzz(tmp_path, random.Random(1), nr_batches=10)
    assert 0 < nr_taken < nr_requests


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


def test_a_disk_that_is_only_read_is_the_walkers_after_a_minute(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python looks whether requests may come again before a change only."""
    opened(kernel)
    kernel.walker = kernel.queue._new_walker(kernel)  # type: ignore[arg-type]  # a double
    record = kernel.record
    spare = max(record.slots) + 4
    record.words[spare] = BEGUN
    record.recoverable.append(spare)
    kernel.ask(read(START, 8))
    assert (kernel.nr_taken, record.recoverable) == (0, [spare])
    monkeypatch.setattr("zonefs_emu.inflight.tag_record.time.monotonic", lambda: math.inf)
    kernel.ask(read(START, 8))
    assert (kernel.nr_taken, record.recoverable, record.words[spare]) == (1, [], FREE)


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
