"""The compiled walker of a submission queue, held equal to Python, and what it takes and what not."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies as st

from tests.nvme.conftest import BLOCK, CAPACITY, ZONE
from tests.requires import requires
from tests.vfio_user.conftest import Served
from tests.vfio_user.queue_walker_rig import (
    ACTIONS,
    DISTANCES,
    FUA,
    NR_BLOCKS,
    Step,
    compare,
    nr_taken,
    one_of_two,
    pattern,
    served_queue,
)
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.errors import Status
from zonefs_emu.inflight.ring_record import HEADER_WORDS, SLOT_WORDS
from zonefs_emu.model.transitions import Operation
from zonefs_emu.nvme.command import AdminOpcode, IoOpcode
from zonefs_emu.nvme.controller import Feature
from zonefs_emu.testing.vfio_client import MEMORY_BYTES, MEMORY_START, NvmeGuest, PciQueue

WRITE_FAULT = 0x280


@pytest.fixture(autouse=True)
def compiled() -> None:
    requires("walker")


@pytest.fixture
def queue(guest: NvmeGuest) -> PciQueue:
    """Return a queue; zone 0 is open, which no plain write does, and has a block."""
    queue = guest.queue(1)
    assert queue.write(1, 0, pattern(1), BLOCK).status == 0
    return queue


@pytest.mark.parametrize("offset", [0, 512, 4092])
def test_it_takes_plain_reads_and_writes(served: Served, queue: PciQueue, offset: int) -> None:
    assert nr_taken(served) == 0
    slba, sizes = 1, (1, 2, 3, 32, 33, 31)
    for nr_blocks in sizes:
        data, cdws = pattern(nr_blocks, nr_blocks), (slba, 0, nr_blocks - 1)
        assert queue.call(IoOpcode.WRITE, nsid=1, cdws=cdws, data=data, offset=offset).status == 0
        assert queue.call(IoOpcode.READ, nsid=1, cdws=cdws, room=len(data), offset=offset).data == data
        slba += nr_blocks
    assert nr_taken(served) == 2 * len(sizes)
    assert served.device.counters.totals()["writes"] == 1 + len(sizes)
    assert served.server.statistics()["commands"] >= 1 + 2 * len(sizes)


def test_pages_anywhere_in_the_guest(served: Served, queue: PciQueue) -> None:
    pages = [queue.data + 4096 * page for page in (9, 8, 3, 4, 5, 1)]
    for number, page in enumerate(pages):
        queue.client.view(page, 4096)[:] = bytes((number,)) * 4096
    view = queue.client.view(queue.pages, 4096)
    for first, listed in ((pages[0], pages[1:]), (pages[5], pages[4::-1])):
        view[: 8 * len(listed)] = struct.pack(f"<{len(listed)}Q", *listed)
        slba = served.device.machine.zone(0).wp * 512 // BLOCK
        command = queue.entry(IoOpcode.WRITE, nsid=1, cdws=(slba, 0, 5))._replace(prp1=first, prp2=queue.pages)
        queue.push(command)
        assert queue.wait().status == 0
    assert nr_taken(served) == 2
    found = queue.read(1, 1, 12, BLOCK).data
    assert [found[at] for at in range(0, len(found), BLOCK)] == [*range(6), *reversed(range(6))]


def test_many_commands_and_a_small_completion_queue(served: Served, guest: NvmeGuest, queue: PciQueue) -> None:
    for number in range(1, 100):
        queue.push(queue.entry(IoOpcode.WRITE, nsid=1, cdws=(number, 0, 0), nr_bytes=BLOCK), ring=False)
        if number % 20 == 0 or number == 99:
            queue.ring(2, queue.tail)
            replies = [queue.wait() for _ in range(20 if number % 20 == 0 else 19)]
            assert {reply.status for reply in replies} == {0}
    assert nr_taken(served) == 99


# -- equal to Python ------------------------------------------------------------------------------------------------

_STEP = st.tuples(
    st.sampled_from([*ACTIONS[:2] * 5, *ACTIONS[2:]]),
    st.integers(0, 3),
    st.sampled_from([1, *NR_BLOCKS]),
    st.sampled_from([*[0] * 10, *DISTANCES]),
)


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(_STEP, min_size=1, max_size=40))
def test_it_answers_as_python_does(steps: list[Step], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("equal")
    with (
        one_of_two(directory / "a", is_compiled=True) as ours,
        one_of_two(directory / "b", is_compiled=False) as pythons,
    ):
        for step in steps:
            compare(ours, pythons, step)


# -- what it leaves behind, and does not take -----------------------------------------------------------------------


def test_a_write_is_in_the_record_before_it_is_answered(served: Served, queue: PciQueue) -> None:
    ring = served_queue(served).ring
    assert ring is not None
    assert queue.write(1, 1, pattern(2), BLOCK).status == 0
    assert queue.read(1, 0, 1, BLOCK).status == 0
    assert nr_taken(served) == 2
    words = ring._words
    assert (words[1], ring.finished) == (3, 3)
    assert words[3] == 1 << 16 | 1, "the second command has made one change"
    slot = HEADER_WORDS + SLOT_WORDS
    assert (words[slot], words[slot + 1], words[slot + 2] & 0xFFFF) == (2, 8, 16)
    completions = served_queue(served).completions
    assert completions.tails[1] == completions.word == 3 << 1 | 1


@pytest.mark.parametrize("what", ["fua", "write through", "fault"])
def test_what_may_wait_is_pythons(served: Served, guest: NvmeGuest, queue: PciQueue, what: str) -> None:
    flags = FUA if what == "fua" else 0
    if what == "write through":
        assert guest.ask(AdminOpcode.SET_FEATURES, cdws=(Feature.WRITE_CACHE, 0)).status == 0
    if what == "fault":
        fault = Fault(operations=frozenset({Operation.WRITE}), effect=Effect.FAIL, status=Status.IO_ERROR)
        served.device.inject(fault)
    reply = queue.write(1, 1, pattern(1), BLOCK, flags=flags)
    assert reply.status == (WRITE_FAULT if what == "fault" else 0)
    assert nr_taken(served) == 0


def test_a_zone_that_is_full_or_empty_is_pythons(served: Served, queue: PciQueue) -> None:
    assert queue.write(1, ZONE, pattern(1), BLOCK).status == 0
    assert nr_taken(served) == 0
    for slba in range(1, CAPACITY, 32):
        nr_blocks = min(32, CAPACITY - slba)
        assert queue.write(1, slba, pattern(nr_blocks), BLOCK).status == 0
    taken = nr_taken(served)
    assert queue.write(1, CAPACITY, pattern(1), BLOCK).status == 0x1B9
    assert nr_taken(served) == taken


def test_memory_that_moves(served: Served, guest: NvmeGuest, queue: PciQueue) -> None:
    """A walker has the memory of its time; a new one takes its place."""
    old = served_queue(served).walker
    guest.client.map(iova=MEMORY_START + MEMORY_BYTES, size=4096)
    assert queue.write(1, 1, pattern(1), BLOCK).status == 0
    assert served_queue(served).walker is not old
    command = queue.entry(IoOpcode.READ, nsid=1, cdws=(1, 0, 0))._replace(prp1=MEMORY_START + MEMORY_BYTES)
    queue.push(command)
    assert queue.wait().status == 0
    assert nr_taken(served) == 2
    assert guest.client.view(MEMORY_START, 4096)[:] == pattern(1)


def test_a_bug_costs_the_command_that_met_it(
    served: Served, queue: PciQueue, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("internal error in nvme, a command: ZeroDivisionError")
    client = served.server._client
    assert client is not None
    (namespace,) = client.drive._io.namespaces.values()
    with monkeypatch.context() as patch:
        patch.setattr(type(namespace.port), "commit", lambda *_: 1 / 0)
        assert queue.write(1, 1, pattern(1), BLOCK).status == 6
    assert queue.read(1, 0, 1, BLOCK).data == pattern(1)
