"""Two queues of one shape, one served with the compiled walker and one without, whose answers are compared.

Run as a program, it is a fuzzer (tests/built_walkers.py).
"""

import random
import shutil
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from tests.built_walkers import fuzz_built
from tests.nvme.conftest import BLOCK, ZONE, new_device
from tests.vfio_user.conftest import Served, serving
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.nvme.command import IoOpcode, SendAction
from zonefs_emu.testing.nvme_initiator import Reply
from zonefs_emu.testing.vfio_client import MEMORY_BYTES, MEMORY_START, PciQueue
from zonefs_emu.vfio_user.drive_queues import SubmissionQueue

FUA: Final = 1 << 30
#: What a step may do, plain commands first.
ACTIONS: Final = ("write", "read", "fua", "append", "flush", "reset", "finish", "lost", "odd", "listed", "namespace")
NR_BLOCKS: Final = (1, 2, 3, 17, 64)
#: How far from where a plain command would be, in blocks.
DISTANCES: Final = (0, 1, -1, 1 << 40)

#: One of ACTIONS, zone, blocks, one of DISTANCES.
Step: TypeAlias = tuple[str, int, int, int]


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
        elif what == "listed":
            command = command._replace(prp2=odd_list(queue, random.Random(slba)))
    queue.push(command)


def odd_list(queue: PciQueue, draw: random.Random) -> int:
    """Write a list of pages, some of them wrong, and return its address, or one where no list can be."""
    pages = [queue.data + 4096 * draw.randrange(64) for _ in range(512)]
    if draw.random() < 0.7:
        pages[draw.randrange(64)] = draw.choice(
            (MEMORY_START + MEMORY_BYTES, (1 << 64) - 4096, MEMORY_START - 4096, pages[0] + 8)
        )
    queue.client.view(queue.pages, 4096)[:] = struct.pack("<512Q", *pages)
    return draw.choice(
        (queue.pages, queue.pages, queue.pages + 4, queue.pages + 8 * 448, queue.pages + 4096 - 8,
         MEMORY_START + MEMORY_BYTES - 8, MEMORY_START + MEMORY_BYTES, (1 << 64) - 8)
    )  # fmt: skip


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


def compare(ours: tuple[Served, PciQueue], pythons: tuple[Served, PciQueue], step: Step) -> None:
    """Have both queues do *step*; the answers, the data, the zones and the counters must be the same."""
    found: list[tuple[Reply, bytes]] = []
    for served, queue in (ours, pythons):
        entry_of(queue, served.device, step)
        found.append((queue.wait(), bytes(queue.client.view(queue.data, step[2] * BLOCK))))
    assert found[0] == found[1], (step, found)
    one, other = ours[0].device, pythons[0].device
    assert [one.machine.zone(zone) for zone in range(5)] == [other.machine.zone(zone) for zone in range(5)], step
    assert one.counters.totals() == other.counters.totals(), step


def random_step(draw: random.Random) -> Step:
    """Return a step, a plain one most of the time."""
    zone_no, nr_blocks = draw.randrange(4), draw.choice(NR_BLOCKS)
    if draw.random() < 0.9:
        return draw.choice(ACTIONS[:2]), zone_no, nr_blocks, 0
    return draw.choice(ACTIONS), zone_no, nr_blocks, draw.choice(DISTANCES)


def fuzz(directory: Path, draw: random.Random) -> tuple[int, int]:
    """Compare a compiled queue with a pure one; return (commands, those that the walker took)."""
    nr_steps = 100
    places = directory / "compiled", directory / "pure"
    try:
        with one_of_two(places[0], is_compiled=True) as ours, one_of_two(places[1], is_compiled=False) as pythons:
            for _ in range(nr_steps):
                compare(ours, pythons, random_step(draw))
            return nr_steps, nr_taken(ours[0])
    finally:
        for place in places:
            shutil.rmtree(place)


if __name__ == "__main__":
    fuzz_built(fuzz)
