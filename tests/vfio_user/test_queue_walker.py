"""The compiled walker of a submission queue, held equal to Python, and what it takes and what not."""

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tests.nvme.conftest import BLOCK, CAPACITY, ZONE, new_device
from tests.requires import requires
from tests.vfio_user.conftest import Served, serving
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.errors import Status
from zonefs_emu.inflight.ring_record import HEADER_WORDS, SLOT_WORDS
from zonefs_emu.model.transitions import Operation
from zonefs_emu.nvme.command import AdminOpcode, IoOpcode, SendAction
from zonefs_emu.nvme.controller import Feature
from zonefs_emu.testing.nvme_initiator import Reply
from zonefs_emu.testing.vfio_client import MEMORY_BYTES, MEMORY_START, NvmeGuest, PciQueue
from zonefs_emu.vfio_user.drive_queues import SubmissionQueue

FUA = 1 << 30
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


def pattern(nr_blocks: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(nr_blocks * BLOCK)


def served_queue(served: Served) -> SubmissionQueue:
    client = served.server._client
    assert client is not None
    return client.drive._sqs[1]


def nr_taken(served: Served) -> int:
    walker = served_queue(served).walker
    assert walker is not None
    return walker.nr_taken


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
    st.sampled_from([*["write", "read"] * 5, "fua", "append", "flush", "reset", "finish", "lost", "odd", "namespace"]),
    st.integers(0, 3),
    st.sampled_from([1, 1, 2, 3, 17, 64]),
    st.sampled_from([*[0] * 10, 1, -1, 1 << 40]),
)


def entry_of(queue: PciQueue, device: ZonedDevice, step: tuple[str, int, int, int]) -> None:
    """Push what *step* says: what to do, in which zone, blocks, and how far from where it would be plain."""
    what, zone_no, nr_blocks, distance = step
    slba = max(0, device.machine.zone(zone_no).wp * 512 // BLOCK + distance)
    cdws = (slba & 0xFFFFFFFF, slba >> 32, nr_blocks - 1)
    nr_bytes = nr_blocks * BLOCK
    queue.client.view(queue.data, nr_bytes)[:] = pattern(nr_blocks, slba)
    if what == "read":
        slba = max(0, zone_no * ZONE + distance)
        command = queue.entry(IoOpcode.READ, nsid=1, cdws=(slba & 0xFFFFFFFF, slba >> 32, cdws[2]), nr_bytes=nr_bytes)
    elif what in {"append", "reset", "finish"}:
        start, action = zone_no * ZONE, SendAction.RESET if what == "reset" else SendAction.FINISH
        opcode = IoOpcode.ZONE_APPEND if what == "append" else IoOpcode.ZONE_SEND
        command = queue.entry(opcode, nsid=1, cdws=(start, 0, cdws[2], action), nr_bytes=nr_bytes)
    elif what == "flush":
        command = queue.entry(IoOpcode.FLUSH, nsid=1)
    else:
        nsid = 2 if what == "namespace" else 1
        cdws = (*cdws[:2], cdws[2] | FUA) if what == "fua" else cdws
        command = queue.entry(IoOpcode.WRITE, nsid=nsid, cdws=cdws, nr_bytes=nr_bytes)
        if what == "lost":
            command = command._replace(prp1=MEMORY_START + MEMORY_BYTES)
        elif what == "odd":
            command = command._replace(prp1=command.prp1 + 2)
    queue.push(command)


@contextmanager
def one_of_two(directory: Path, *, is_compiled: bool) -> Iterator[tuple[Served, PciQueue]]:
    directory.mkdir()
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        if not is_compiled:
            patch.setattr("zonefs_emu.vfio_user.io_commands.is_usable", lambda _: False)
        device = stack.enter_context(new_device(directory))
        served = stack.enter_context(serving(device))
        guest = stack.enter_context(served.guest())
        queue = guest.queue(1, size=8)
        guest.set_shadow([queue])
        assert (served_queue(served).walker is not None) == is_compiled
        yield served, queue


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(_STEP, min_size=1, max_size=40))
def test_it_answers_as_python_does(
    steps: list[tuple[str, int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("equal")
    with (
        one_of_two(directory / "a", is_compiled=True) as ours,
        one_of_two(directory / "b", is_compiled=False) as pythons,
    ):
        for step in steps:
            found: list[tuple[Reply, bytes]] = []
            for served, queue in (ours, pythons):
                entry_of(queue, served.device, step)
                found.append((queue.wait(), bytes(queue.client.view(queue.data, step[2] * BLOCK))))
            assert found[0] == found[1]
            one, other = (served.device for served, _ in (ours, pythons))
            assert [one.machine.zone(zone) for zone in range(5)] == [other.machine.zone(zone) for zone in range(5)]
            assert one.counters.totals() == other.counters.totals()


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
