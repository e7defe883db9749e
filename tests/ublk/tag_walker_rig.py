"""One queue of a ublk device in this process, and the kernel behind it; served with the compiled walker, or without.

A file plays the character device, and memory of this process the two rings. Run as a program, it is a fuzzer
(tests/built_walkers.py).
"""

import mmap
import os
import random
from collections import deque
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from tests.built_walkers import fuzz_built
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.intent_log import Intents
from zonefs_emu.inflight.tag_record import TagRecord
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.plain_rules import is_plain_read, is_plain_write
from zonefs_emu.model.transitions import VIRTIO
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
#: Where the indices begin, which pass 2^32 soon.
_BASE: Final = (1 << 32) - 40
_INDEX_MASK: Final = (1 << 32) - 1
_OTHERS: Final = {
    "reset": Request.ZONE_RESET, "finish": Request.ZONE_FINISH, "open": Request.ZONE_OPEN, "unknown": Request.DISCARD,
}  # fmt: skip
#: What a step may do, plain requests first.
ACTIONS: Final = ("write", "read", "reset", "finish", "open", "flush", "fua", "append", "unknown")
LENGTHS: Final = (1, 2, 3, 8, 16, 32)
#: How far from where a plain request would be.
DISTANCES: Final = (0, 1, -1, ZONE, 1 << 40)

#: Zone, one of ACTIONS, one of LENGTHS, one of DISTANCES.
Step: TypeAlias = tuple[int, str, int, int]


class Ask(NamedTuple):
    """A request of the kernel: operation and flags, sectors, where."""

    operation: int
    nr_sectors: int
    sector: int


def write(sector: int, nr_sectors: int) -> Ask:
    return Ask(Request.WRITE, nr_sectors, sector)


def read(sector: int, nr_sectors: int) -> Ask:
    return Ask(Request.READ, nr_sectors, sector)


class SlowWork:
    """What *queue* leaves to its second thread, carried out on its own one: at once, or when it would sleep.

    With two threads the order of the requests of a batch, and so their answers, would differ from run to run.
    """

    def __init__(self, queue: IoQueue, *, at_once: bool) -> None:
        self._queue = queue
        self._at_once = at_once
        self._tags: deque[int] = deque()

    def put(self, tag: int | None) -> None:
        if tag is not None:
            self._tags.append(tag)
            if self._at_once:
                self.carry_out()

    def get(self) -> int | None:
        return self._tags.popleft() if self._tags else None

    def carry_out(self) -> None:
        self._queue._work_slowly()
        self._queue._executor.begin()


class Kernel:
    """The rings of a queue, and the kernel behind them, which asks for one batch of requests at once."""

    def __init__(self, directory: Path, *, is_compiled: bool, slow_at_once: bool = False) -> None:
        name = "compiled" if is_compiled else "pure"
        ZonedDevice.create(directory / f"{name}.img", GEOMETRY, uuid=UUID(int=1))
        self.device = ZonedDevice.open(directory / f"{name}.img")
        self.port = self.device.port("ublk", VIRTIO)
        intents = self.port.intents = Intents(contested=lambda _: False)
        self.record = TagRecord(directory / f"{name}.records", self.port, device_tag=1, nr_tags=DEPTH, go_on=False)
        self.fd = os.open(directory / f"{name}.node", os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.fd, buffer_offset(0, DEPTH))
        self.queue = IoQueue(
            self.port, intents, self.fd, self.record, number=0, depth=DEPTH, ended=lambda: None
        )  # fmt: skip
        self.queue._executor.begin()
        self.slow = SlowWork(self.queue, at_once=slow_at_once)
        self.queue._slow_work = self.slow  # type: ignore[assignment]  # a double
        self.memory = mmap.mmap(-1, 4096)
        self.words = memoryview(self.memory).cast("I")
        for at in (_SQ_TAIL, _CQ_HEAD, _CQ_TAIL):
            self.words[at // 4] = _BASE
        self.entries = mmap.mmap(-1, SQE_BYTES * (DEPTH + 1))
        self.pending = 0
        self.submitted = _BASE
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
        self.words[_CQ_TAIL // 4] = (tail + 1) & _INDEX_MASK

    def _take_answers(self) -> None:
        while self.submitted != self.words[_SQ_TAIL // 4]:
            tag = self.words[_ARRAY // 4 + self.submitted % _NR_ENTRIES]
            self.submitted = (self.submitted + 1) & _INDEX_MASK
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
        self.words[_SQ_TAIL // 4] = (tail + 1) & _INDEX_MASK
        self.pending += 1

    def enter(self, nr_wanted: int) -> None:
        self._take_answers()
        if not nr_wanted or self.has_completions():
            return
        if len(self.answers) < len(self._asks):
            self.slow.carry_out()
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
            self.words[_CQ_HEAD // 4] = (head + 1) & _INDEX_MASK
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


def asks_of(kernel: Kernel, steps: list[Step]) -> list[Ask]:
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


def random_step(draw: random.Random) -> Step:
    """Return a step of :func:`asks_of`, a plain one most of the time."""
    zone_no, nr_sectors = draw.randrange(1, NR_ZONES // 2), draw.choice(LENGTHS)
    if draw.random() < 0.95:
        return zone_no, draw.choice(ACTIONS[:2]), nr_sectors, 0
    return zone_no, draw.choice(ACTIONS), nr_sectors, draw.choice(DISTANCES)


def fuzz(directory: Path, draw: random.Random, *, nr_batches: int) -> tuple[int, int]:
    """Compare a compiled queue with a pure one; return (requests, those that the walker took)."""
    at_once = draw.random() < 0.5
    kernels = [Kernel(directory, is_compiled=is_compiled, slow_at_once=at_once) for is_compiled in (True, False)]
    try:
        for _ in range(nr_batches):
            asks = asks_of(kernels[0], [random_step(draw) for _ in range(draw.randint(1, DEPTH))])
            if draw.random() < 0.2:
                # What no kernel asks for.
                odd = Ask(draw.randrange(1 << 14), draw.randrange(1 << 32), draw.randrange(1 << 48))
                asks[draw.randrange(len(asks))] = odd
            answers = [kernel.ask(*asks) for kernel in kernels]
            states = [kernel.state() for kernel in kernels]
            if answers[0] != answers[1] or states[0] != states[1]:
                raise AssertionError((asks, answers, states))
        return kernels[0].queue.requests, kernels[0].nr_taken
    finally:
        for kernel in kernels:
            kernel.close()
        for path in directory.iterdir():
            path.unlink()


if __name__ == "__main__":
    fuzz_built(partial(fuzz, nr_batches=20))
