"""Zone random write areas through kills and power cuts, at every point where a process or a host can die.

What is promised (docs/nvme.md, "Zone random write areas"): the zone is as it was at some moment since the last answered
flush. Each sector that its area or its write pointer covers holds what it held at one of those moments, between the
same two resets. Nothing lies behind the area.
"""

import itertools
import random
import re
from typing import Final, NamedTuple
from uuid import UUID

import hypothesis
import pytest
from hypothesis import strategies as st

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, ZNS, Operation, after_power_cycle
from zonefs_emu.model.zone import Attribute, Condition
from zonefs_emu.persist.codec.header import plan_header
from zonefs_emu.persist.image import Image
from zonefs_emu.persist.metadata import initialize
from zonefs_emu.testing.backings import CrashBacking, MemoryBacking

#: Two zones of 16 sectors with a capacity of 12, areas of 4 sectors that are flushed by 2.
ZONE: Final = 16
GEOMETRY: Final = Geometry(
    size=2 * ZONE, zone_size=ZONE, zone_capacity=12, zrwa_size=4, zrwa_granularity=2, active_excursions=True
)
BOOT: Final = b"this host's boot"
LATER: Final = b"a later boot...."
AFTER_A_CUT: Final = b"yet another boot"
ZERO: Final = bytes(512)
_MANAGEMENT: Final = {"o": Operation.OPEN, "c": Operation.CLOSE, "e": Operation.FINISH, "r": Operation.RESET}
_STEP: Final = re.compile(r"([a-z])(\d+)?(?::(\d+))?")


class Seen(NamedTuple):
    """Zone 0 as an NVMe host sees it: condition, sectors before the write pointer, attributes, and each sector."""

    cond: Condition
    wp: int
    attributes: int
    sectors: tuple[bytes, ...]

    @property
    def cycled(self) -> "tuple[Condition, int, int]":
        return after_power_cycle(self.cond, self.wp, self.attributes), self.wp, self.attributes


def memory() -> bytearray:
    header = plan_header(GEOMETRY, uuid=UUID(int=9))
    content = bytearray(header.file_bytes)
    initialize(MemoryBacking(content), header)
    return content


def seen(port: Port) -> Seen:
    zone = port.zone(0)
    buffer = bytearray(b"?" * 512 * ZONE)
    assert not port.read(0, ZONE, (buffer,))
    sectors = tuple(bytes(buffer[at : at + 512]) for at in range(0, len(buffer), 512))
    return Seen(zone.cond, zone.wp, zone.attributes, sectors)


class World:
    """A device on which programs run, and what zone 0 was after each step.

    z allocate    wA:N write N sectors at A    vN the same at wp through virtio    xA flush up to sector A    f flush
    o open    c close    e finish    d the drive finishes it by itself    r reset    n write to the other zone
    """

    def __init__(self, backing: MemoryBacking, boot_id: bytes = BOOT) -> None:
        self.backing = backing
        self.device = ZonedDevice(Image.load(backing, backing.length, boot_id))
        self.port = self.device.port("nvme", ZNS)
        self.other = self.device.port("virtio", VIRTIO)
        self._numbers = itertools.count(1)
        self.nr_resets = 0
        #: (position of the log when the step began, how many resets there were, what the zone was after it).
        self.history = [(0, 0, seen(self.port))]
        #: (position of the log when a flush was complete, index in history of what it covers).
        self.flushes = [(0, 0)]

    @property
    def position(self) -> int:
        return self.backing.position if isinstance(self.backing, CrashBacking) else 0

    def data(self, nr_sectors: int) -> bytes:
        return b"".join(next(self._numbers).to_bytes(8, "big") * 64 for _ in range(nr_sectors))

    def run(self, program: str) -> list[Status]:
        return [self.step(word) for word in program.split()]

    def step(self, word: str) -> Status:
        position, covered = self.position, len(self.history) - 1
        status = self._execute(word)
        self.nr_resets += word == "r"
        if word == "f" and not status:
            self.flushes.append((self.position, covered))
        else:
            self.history.append((position, self.nr_resets, seen(self.port)))
        return status

    def _execute(self, word: str) -> Status:
        match = _STEP.fullmatch(word)
        assert match, word
        verb, first, second = match[1], int(match[2] or 0), int(match[3] or 0)
        match verb:
            case "z":
                return self.port.allocate_zrwa(0)
            case "w":
                return self.port.write(first, second, [self.data(second)])
            case "v":
                return self.other.write(self.device.machine.wps[0], first, [self.data(first)])
            case "x":
                return self.port.flush_zrwa(first)
            case "n":
                return self.port.append(ZONE, 1, [self.data(1)])[0]
            case "f":
                return self.port.flush()
            case "d":
                return self.port.finish_by_controller(0)
            case _:
                return self.port.manage(_MANAGEMENT[verb], 0)

    def check(self, found: Seen, position: int, *, was_cut: bool) -> None:
        """Assert that *found* keeps the promise, for a crash after *position* events of the log."""
        first = max(index for done, index in self.flushes if done <= position) if was_cut else 0
        reached = [(nr_resets, moment) for begin, nr_resets, moment in self.history[first:] if begin <= position]
        if not was_cut:  # answered: the last command that began before, or the one under way
            reached = reached[-2:]
        covered = GEOMETRY.covered(0, found.wp, found.attributes)
        assert set(found.sectors[covered:]) <= {ZERO}
        # As the zone was at one of the moments between two resets, with what its sectors held at any of them.
        candidates = [[moment for number, moment in reached if number == nr_resets] for nr_resets, _ in reached]
        assert any(
            found[:3] in {state for moment in moments for state in (moment.cycled, moment[:3])}
            and all(found.sectors[at] in {moment.sectors[at] for moment in moments} for at in range(covered))
            for moments in candidates
        ), (position, found[:3], candidates)


def check_behind(port: Port, found: Seen) -> None:
    """Assert that nothing lies behind the area of zone 0: what it shows when it gets there is zeros."""
    if not found.attributes & Attribute.ZRWA:
        return
    covered = min(found.wp + GEOMETRY.zrwa_size, GEOMETRY.zone_capacity)
    assert not port.manage(Operation.FINISH, ZONE)
    while (wp := port.zone(0).wp) < GEOMETRY.zone_capacity:
        end = min(wp + GEOMETRY.zrwa_size, GEOMETRY.zone_capacity)
        assert not port.flush_zrwa(end - 1)
    after = seen(port)
    assert after.cond is Condition.FULL
    assert after.sectors[: found.wp] == found.sectors[: found.wp]
    assert set(after.sectors[covered:]) == {ZERO}


def check_power_cuts(world: World, rng: random.Random, limit: int) -> int:
    count = 0
    assert isinstance(world.backing, CrashBacking)
    for cut in world.backing.power_cuts(rng, limit=limit):
        count += 1
        again = MemoryBacking(cut.content)
        device = ZonedDevice(Image.load(again, again.length, AFTER_A_CUT))
        port = device.port("nvme", ZNS)
        found = seen(port)
        world.check(found, cut.position, was_cut=True)
        check_behind(port, found)
    return count


#: Commands before the crash is looked for, and those around which it is.
PROGRAMS: Final = {
    "allocate": ("", "z f c f"),
    "write in the area": ("z f", "w0:4 f w1:2 w1:2 f w3:1"),
    "implicit flush": ("z w0:4 f", "w4:1 f w2:6 f w9:2 n f"),
    "implicit flush, unflushed": ("z w0:4 f", "w4:4 w8:2 w10:2 n"),
    "explicit flush": ("z w0:4 f", "x1 f w2:4 x5 x7 f"),
    "explicit flush of holes": ("z w1:1 f", "x3 w5:1 x7 f"),
    "up to the capacity": ("z w0:4 w4:4 f", "w8:4 x9 x11 f"),
    "finish": ("z w1:2 f", "w0:1 e f r f"),
    "reset and allocate again": ("z w0:4 w4:4 f", "r z w1:1 f w2:4 f"),
    "reset twice": ("z w0:4 f", "r z w0:2 r z w1:1 f"),
    "closed and opened": ("z w0:2 c f", "w2:1 c f o x1 f"),
    "finished by the drive": ("z w0:4 f", "w2:1 d f r f z w1:1 d"),
    "finished by the drive, without an area": ("v3 f", "v1 d f r v2 d"),
    "in another dialect": ("z w0:4 f", "v3 f w3:4 v1 f"),
}


def prepared(setup: str) -> bytearray:
    content = memory()
    world = World(MemoryBacking(content))
    assert not any(world.run(setup))
    world.device.close()
    return content


@pytest.mark.parametrize(("setup", "program"), PROGRAMS.values(), ids=list(PROGRAMS))
def test_power_cut_around_every_command_of_an_area(setup: str, program: str) -> None:
    world = World(CrashBacking(prepared(setup)), LATER)
    assert not any(world.run(program))
    assert check_power_cuts(world, random.Random(program), limit=60) > 60


@st.composite
def programs(draw: st.DrawFn) -> str:
    steps = st.one_of(
        st.tuples(st.integers(0, 11), st.integers(1, 6)).map(lambda t: f"w{t[0]}:{t[1]}"),
        st.integers(0, 11).map(lambda sector: f"x{sector}"),
        st.integers(1, 3).map(lambda nr_sectors: f"v{nr_sectors}"),
        st.sampled_from(("f", "f", "z", "z", "o", "c", "e", "d", "r", "n")),
    )
    return " ".join(draw(st.lists(steps, min_size=1, max_size=12)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@hypothesis.given(setup=programs(), program=programs(), seed=st.integers(0, 1 << 32))
def test_power_cut_in_any_program(setup: str, program: str, seed: int) -> None:
    content = memory()
    first = World(MemoryBacking(content))
    first.run(f"z {setup}")
    first.device.close()
    world = World(CrashBacking(content), LATER)
    world.run(program)
    check_power_cuts(world, random.Random(seed), limit=8)


class KillBacking(CrashBacking):
    """Keeps what the next process finds if this one is killed before each call, and in the middle of a write."""

    def __init__(self, content: bytearray) -> None:
        self.kills: list[tuple[int, bytes]] = []
        super().__init__(content)

    def pwrite(self, data: bytes, offset: int) -> None:
        for length in range(0, len(data), 512 if len(data) <= 4096 else len(data)):
            half = bytearray(self.memory)
            half[offset : offset + length] = data[:length]
            self.kills.append((self.position, bytes(half)))
        super().pwrite(data, offset)

    def punch(self, offset: int, length: int) -> None:
        self.kills.append((self.position, bytes(self.memory)))
        super().punch(offset, length)


@pytest.mark.parametrize(("setup", "program"), PROGRAMS.values(), ids=list(PROGRAMS))
def test_kill_loses_nothing_that_was_answered(setup: str, program: str) -> None:
    backing = KillBacking(prepared(setup))
    world = World(backing, LATER)
    opened = backing.position
    assert not any(world.run(program))
    backing.kills.append((backing.position, bytes(backing.memory)))
    kills = [(position, content) for position, content in backing.kills if position >= opened]
    assert len(kills) >= 3
    for position, content in kills:
        again = MemoryBacking(bytearray(content))
        port = ZonedDevice(Image.load(again, again.length, LATER)).port("nvme", ZNS)
        found = seen(port)
        world.check(found, position, was_cut=False)
        check_behind(port, found)


def test_an_allocated_zone_holds_zeros_whatever_a_failed_write_left() -> None:
    content = memory()
    world = World(MemoryBacking(content))
    content[512:1024] = b"x" * 512
    assert not any(world.run("z w0:1 x3"))
    assert seen(world.port).sectors[1:4] == (ZERO, ZERO, ZERO)
