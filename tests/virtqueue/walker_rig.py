"""One queue of a device in this process, with its driver: served by the compiled ring walker, or by Python alone.

Run as a program, it is a fuzzer (tests/built_walkers.py).
"""

import logging
import mmap
import random
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias
from uuid import UUID

from tests.built_walkers import fuzz_built
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.inflight.ring_record import record_bytes
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.plain_rules import is_plain_read, is_plain_write
from zonefs_emu.model.zone import Condition
from zonefs_emu.testing.driver_rings import GUEST_BASE, Buffer, Heap, PackedDriver, SplitDriver
from zonefs_emu.virtio import features as bits, packed, split
from zonefs_emu.virtio.blk_config import F_FLUSH, F_ZONED, BlkOptions
from zonefs_emu.virtio.memory import GuestMemory, Region
from zonefs_emu.virtqueue.blk_device import BlkDevice
from zonefs_emu.virtqueue.peer_eventfds import PeerEventfds
from zonefs_emu.virtqueue.scsi_host import ScsiHost
from zonefs_emu.virtqueue.virtqueue import RingAddresses, Service, Virtqueue

ZONE: Final = 256
CAPACITY: Final = 248
NR_ZONES: Final = 8
#: Zones 0 and 1 are conventional, and there are few resources, so that writes close other zones.
GEOMETRY: Final = Geometry(
    size=NR_ZONES * ZONE, zone_size=ZONE, zone_capacity=CAPACITY, conventional=((0, 2),), max_open_zones=3,
    max_active_zones=5,
)  # fmt: skip
QUEUE_SIZE: Final = 64
MEMORY_BYTES: Final = 1 << 20
#: From here on the memory is another region, where headers, answers and a part of the data lie.
SECOND_AT: Final = 3 << 18
SECOND_BASE: Final = GUEST_BASE + (1 << 33)
USER: Final = 1 << 40
LUN_0: Final = b"\x01\0\x40\0\0\0\0\0"

Protocol: TypeAlias = Literal["blk", "scsi"]


class Ask(NamedTuple):
    """A request: a read, a write, or another command of the protocol by its name, and how it lies in memory."""

    operation: str
    sector: int
    nr_sectors: int = 0
    nr_segments: int = 1
    is_indirect: bool = False


class Answer(NamedTuple):
    """What came back: the bytes written as the ring says, the answer, and what was read."""

    written: int
    answer: bytes
    data: bytes


class Rig:
    """A device on a fresh image in *directory*, one queue, and the driver of its ring."""

    def __init__(
        self, directory: Path, protocol: Protocol, *, is_packed: bool, has_record: bool, is_compiled: bool,
        geometry: Geometry = GEOMETRY,
    ) -> None:  # fmt: skip
        name = "compiled" if is_compiled else "pure"
        image = directory / f"{name}.img"
        ZonedDevice.create(image, geometry, uuid=UUID(int=1))
        self.device = ZonedDevice.open(image)
        self.protocol = protocol
        self.is_packed = is_packed
        self.is_compiled = is_compiled
        self.memory = memoryview(mmap.mmap(-1, MEMORY_BYTES))
        self.virtio_device = (
            BlkDevice(self.device, BlkOptions(serial="rig"))
            if protocol == "blk"
            else ScsiHost(self.device, serial="rig")
        )
        features = bits.VERSION_1 | bits.EVENT_IDX | (bits.RING_PACKED if is_packed else 0)
        self.features = features | (F_ZONED | F_FLUSH if protocol == "blk" else 0)
        self.virtio_device.accept(self.features)
        self.contained: list[Exception] = []
        log = logging.getLogger("walker_rig")
        log.disabled = True  # rings break here all the time
        service = Service(
            self._submit, lambda: None, lambda _, error: self.contained.append(error), LimitedLog(log), PeerEventfds()
        )
        index = 0 if protocol == "blk" else 2
        self.queue = Virtqueue(
            index, self.virtio_device.intents, self.virtio_device.handler(index), service,
            faults=self.device.faults.faults,
        )  # fmt: skip
        heap = Heap(0, SECOND_AT)
        lengths = (
            (16 * QUEUE_SIZE, packed.EVENT_BYTES, packed.EVENT_BYTES)
            if is_packed
            else split.sizes(QUEUE_SIZE, event_idx=True)
        )
        self.areas = heap.take(lengths[0]), heap.take(lengths[1]), heap.take(lengths[2])
        self.data_at = heap.take(4096, 4096).offset
        make = PackedDriver if is_packed else SplitDriver
        self.driver = make(QUEUE_SIZE, self.memory, self.areas, event_idx=True)
        self.queue.address = RingAddresses(*(USER + area.offset for area in self.areas))
        self.queue.size = QUEUE_SIZE
        self.queue.base = 0x80008000 if is_packed else 0
        self.queue.enabled = True
        self.record = memoryview(bytearray(record_bytes(QUEUE_SIZE))) if has_record else None
        self.jobs: list[tuple[Callable[[], int], Callable[[int | Exception], None]]] = []
        self._number = 0
        self.start()

    def start(self) -> None:
        """Begin to serve the ring."""
        self.queue.start(self.guest_memory(), self.features, self.record, None)
        if not self.is_compiled:
            self.queue._walker = None

    def guest_memory(self) -> GuestMemory:
        """Return the two regions."""
        return GuestMemory(
            [
                Region(GUEST_BASE, SECOND_AT, USER, self.memory[:SECOND_AT]),
                Region(SECOND_BASE, MEMORY_BYTES - SECOND_AT, 2 * USER, self.memory[SECOND_AT:]),
            ]
        )

    @property
    def nr_taken(self) -> int:
        """How many requests the walker took."""
        return self.queue._walker.nr_taken if self.queue._walker is not None else 0

    def close(self) -> None:
        """Let the image go."""
        if self.queue.ring is not None:
            self.queue.stop()
        self.device.close()

    def _submit(self, job: Callable[[], int], then: Callable[[int | Exception], None]) -> None:
        self.jobs.append((job, then))

    def serve(self) -> None:
        """Serve the ring until it is empty; what is for the worker is done in between."""
        while self.queue.run() or self.jobs:
            while self.jobs:
                job, then = self.jobs.pop(0)
                try:
                    outcome: int | Exception = job()
                except Exception as error:
                    outcome = error
                then(outcome)

    # -- requests -----------------------------------------------------------------------------------------------------

    def put(self, content: bytes | int, heap: Heap) -> Buffer:
        """Take memory for *content*, or for so many bytes."""
        length = content if isinstance(content, int) else len(content)
        place = heap.take(length)
        self.memory[place.offset : place.offset + length] = bytes(length) if isinstance(content, int) else content
        return place

    def ask_all(self, asks: Sequence[Ask]) -> list[Answer]:
        """Make all *asks* available, serve them, and return the answers in the order in which they came back."""
        self.waiting: dict[int, tuple[list[Buffer], Buffer]] = {}
        self.add_all(asks)
        self.serve()
        return self.reap()

    def add_all(self, asks: Sequence[Ask]) -> None:
        """Make all *asks* available."""
        self.waiting = {}
        # The same memory for each batch: what the driver keeps is free again.
        low, high = Heap(self.data_at, SECOND_AT), Heap(SECOND_AT, MEMORY_BYTES)
        for ask in asks:
            readable, writable, answer = self._buffers(ask, low, high)
            buffers = [(self.address(place), place.length, False) for place in readable]
            buffers += [(self.address(place), place.length, True) for place in writable]
            table = low.take(16 * len(buffers)) if ask.is_indirect else None
            self.waiting[self.driver.add(buffers, table)] = [place for place in writable if place != answer], answer

    @staticmethod
    def address(place: Buffer) -> int:
        """Return the guest's address of *place*."""
        return place.offset + (GUEST_BASE if place.offset < SECOND_AT else SECOND_BASE - SECOND_AT)

    def _buffers(self, ask: Ask, low: Heap, high: Heap) -> tuple[list[Buffer], list[Buffer], Buffer]:
        self._number += 1
        size = ask.nr_sectors * 512
        out: list[bytes | int] = []
        room: list[bytes | int] = []
        if ask.operation == "write":
            content = bytes((self._number + byte) & 0xFF for byte in range(64)) * (size // 64)
            out = list(cut(content, ask.nr_segments))
        elif ask.operation == "read":
            room = [len(part) for part in cut(bytes(size), ask.nr_segments)]
        if self.protocol == "blk":
            kinds = {"read": 0, "write": 1, "flush": 4, "reset": 24, "finish": 22, "open": 18, "unknown": 77}
            header = struct.pack("<IIQ", kinds[ask.operation], 0, ask.sector)
            answer = self.put(1, high)
        else:
            header = LUN_0 + bytes(11) + cdb(ask).ljust(32, b"\0")
            answer = self.put(108, high)
        head = self.put(header, high)
        heaps = (low, high, low)
        readable = [head, *(self.put(part, heaps[index % 3]) for index, part in enumerate(out))]
        writable = [self.put(part, heaps[index % 3]) for index, part in enumerate(room)]
        writable = [*writable, answer] if self.protocol == "blk" else [answer, *writable]
        return readable, writable, answer

    def reap(self) -> list[Answer]:
        """Return what came back."""
        found = []
        for done in self.driver.reap():
            data, answer = self.waiting.pop(done.request_id)
            found.append(Answer(done.written, self._bytes([answer]), self._bytes(data)))
        return found

    def _bytes(self, places: Sequence[Buffer]) -> bytes:
        return b"".join(bytes(self.memory[place.offset : place.offset + place.length]) for place in places)

    # -- what is compared ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """Return what two rigs that were asked the same have in common."""
        device = self.device
        names = ("read_sectors", "written_sectors", "reads", "refused", "internal_errors")
        totals = device.counters.totals()
        return {
            "zones": [device.machine.zone(zone_no) for zone_no in range(NR_ZONES)],
            "open": device.nr_open,
            "oldest": list(device.machine.resources.recency.oldest()),
            "counters": {name: totals[name] for name in names},
            "refusals": [
                (refusal.rule, refusal.status, refusal.zone_no, refusal.wp, refusal.sector, refusal.nr_sectors)
                for refusal in device.refusals.last(50)
            ],
            "memory": bytes(self.memory),
            "record": None if self.record is None else bytes(self.record),
            "broken": self.queue.broken,
            "requests": self.queue.requests,
        }

    def count_plain(self, asks: Sequence[Ask]) -> int:
        """Return how many of *asks*, from the first one on, are plain as the zones are now."""
        machine = self.device.machine
        wps, conds = list(machine.wps), list(machine.conds)
        old = list(self.device.image.old_extents)
        count = 0
        for ask in asks:
            zone_no, offset = divmod(ask.sector, ZONE)
            if not 0 <= zone_no < NR_ZONES:
                break
            is_open = conds[zone_no] in (Condition.IMP_OPEN, Condition.EXP_OPEN)
            if ask.operation == "read":
                if not is_plain_read(True, wps[zone_no], ask.sector, offset, ask.nr_sectors, 0):
                    break
            elif ask.operation == "write":
                if (
                    zone_no == NR_ZONES - 1
                    or wps[zone_no] < old[zone_no]
                    or not is_plain_write(is_open, wps[zone_no], offset, ask.nr_sectors, CAPACITY, 1)
                ):
                    break
                wps[zone_no] += ask.nr_sectors
                if wps[zone_no] == CAPACITY:
                    conds[zone_no] = Condition.FULL
            else:
                break
            count += 1
        return count


def cut(content: bytes, nr_parts: int) -> list[bytes]:
    """Return *content* in up to *nr_parts* parts, none of which is empty; the parts are no whole sectors."""
    step = max(len(content) // nr_parts, 1)
    parts = [content[at : at + step] for at in range(0, len(content), step)]
    return [*parts[: nr_parts - 1], b"".join(parts[nr_parts - 1 :])] if content else []


def cdb(ask: Ask) -> bytes:
    """Return the CDB of *ask*; every third read or write is one of 10 bytes."""
    match ask.operation:
        case "read" | "write":
            if ask.sector % 3:
                opcode = 0x88 if ask.operation == "read" else 0x8A
                return struct.pack(">BBQIBB", opcode, 0, ask.sector, ask.nr_sectors, 0, 0)
            opcode = 0x28 if ask.operation == "read" else 0x2A
            return struct.pack(">BBIBHB", opcode, 0, ask.sector & 0xFFFFFFFF, 0, ask.nr_sectors, 0)
        case "flush":
            return struct.pack(">BBIBHB", 0x35, 0, 0, 0, 0, 0)
        case "reset" | "finish" | "open":
            action = {"reset": 4, "finish": 2, "open": 3}[ask.operation]
            return struct.pack(">BBQ4xBB", 0x94, action, ask.sector, 0, 0)
        case _:
            return b"\xcc" * 6


# -- the fuzzer -------------------------------------------------------------------------------------------------------


def random_asks(rig: Rig, draw: random.Random) -> list[Ask]:
    """Return a batch of requests of which most are plain."""
    wps = list(rig.device.machine.wps)
    asks = []
    for _ in range(draw.randint(1, 12)):
        zone_no = draw.randrange(2, NR_ZONES)
        nr_sectors = draw.choice((1, 2, 8, 16, 32))
        kind = draw.random()
        layout = draw.choice((1, 1, 2, 5)), draw.random() < 0.4
        if kind < 0.45:
            asks.append(Ask("write", zone_no * ZONE + wps[zone_no], nr_sectors, *layout))
            wps[zone_no] += nr_sectors
        elif kind < 0.85:
            at = draw.randrange(max(wps[zone_no], 1))
            asks.append(Ask("read", zone_no * ZONE + at, min(nr_sectors, max(wps[zone_no] - at, 1)), *layout))
        elif kind < 0.9:
            asks.append(Ask(draw.choice(("read", "write")), draw.randrange(GEOMETRY.size + 64), nr_sectors, *layout))
        else:
            operation = draw.choice(("flush", "reset", "finish", "open", "unknown"))
            asks.append(Ask(operation, 0 if operation in ("flush", "unknown") else zone_no * ZONE))
            if operation == "reset":
                wps[zone_no] = 0
    return asks


def spoil(rigs: Sequence[Rig], draw: random.Random) -> None:
    """Change some bytes of what the drivers have made available, in all *rigs* alike."""
    areas = [*rigs[0].areas[:1], Buffer(SECOND_AT, 2048), Buffer(rigs[0].data_at, 512)]
    for _ in range(draw.randint(1, 6)):
        area = draw.choice(areas)
        at = area.offset + draw.randrange(area.length)
        value = draw.choice((0, 1, 2, 4, 0x80, 0xFF, draw.randrange(256)))
        for rig in rigs:
            rig.memory[at] = value


def same(rigs: Sequence[Rig]) -> None:
    """Raise AssertionError unless the two *rigs* have the same state."""
    one, other = (rig.state() for rig in rigs)
    differing = [name for name in one if one[name] != other[name]]
    if differing:
        facts: dict[str, object] = {
            name: (one[name], other[name]) for name in differing if name not in ("memory", "record")
        }
        if "memory" in differing:
            facts["first byte of memory"] = next(
                index for index in range(MEMORY_BYTES) if rigs[0].memory[index] != rigs[1].memory[index]
            )
        raise AssertionError(f"{differing}: {facts}")


def fuzz(directory: Path, draw: random.Random, *, nr_batches: int) -> tuple[int, int]:
    """Compare a compiled rig with a pure one, with spoiled rings; return (requests, those that the walker took)."""
    protocol: Protocol = draw.choice(("blk", "scsi"))
    is_packed, has_record = draw.random() < 0.5, draw.random() < 0.5
    rigs = [
        Rig(directory, protocol, is_packed=is_packed, has_record=has_record, is_compiled=is_compiled)
        for is_compiled in (True, False)
    ]
    try:
        for _ in range(nr_batches):
            asks = random_asks(rigs[0], draw)
            for rig in rigs:
                rig.add_all(asks)
            if draw.random() < 0.3:
                spoil(rigs, draw)
            for rig in rigs:
                rig.serve()
            if rigs[0].queue.broken != rigs[1].queue.broken:
                raise AssertionError("one of the rings is broken")
            if rigs[0].queue.broken:
                break  # of a batch with a broken chain the walker executes those before it, and Python none
            same(rigs)
            if draw.random() < 0.3:
                break  # a driver with a spoiled ring does not find its answers again
            try:
                answers = [rig.reap() for rig in rigs]
            except (KeyError, IndexError):
                break
            if answers[0] != answers[1]:
                raise AssertionError(answers)
            if rigs[0].driver.nr_free < QUEUE_SIZE:
                break
        return rigs[0].queue.requests, rigs[0].nr_taken
    finally:
        for rig in rigs:
            rig.close()
            (directory / f"{'compiled' if rig.is_compiled else 'pure'}.img").unlink()


if __name__ == "__main__":
    fuzz_built(partial(fuzz, nr_batches=20))
