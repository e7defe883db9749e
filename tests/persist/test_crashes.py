"""The promises of docs/architecture.md, "The image", at every point where a process or a host can die."""

import errno
import itertools
import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.persist.worlds import (
    BOOT,
    GEOMETRY,
    NEXT_BOOT,
    WIDE_GEOMETRY,
    Moment,
    Snapshot,
    World,
    fresh_memory,
    scribble,
    snapshot,
)
from tests.vhost_user.serving import blk_device, serving
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.header import SectionKind
from zonefs_emu.persist.codec.journal import JOURNAL_ALIGN_BYTES
from zonefs_emu.persist.codec.words import pack_words
from zonefs_emu.persist.image import Image
from zonefs_emu.testing.backings import CrashBacking, MemoryBacking
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.virtio import blk_codec

#: Commands before the crash is looked for, and those around which it is: every kind of command.
PROGRAMS = {
    "write": ("", "w1:2 w2:1 w1:1 f w1:3 w2:1 f"),
    "append": ("w1:2 f", "a1:1 a2:2 f a1:3 f"),
    "open and close": ("", "o1 o2 f w1:1 c1 c2 f o1 f"),
    "finish": ("w1:2 f", "f1 f2 f r1 f"),
    "reset": ("w1:4 w2:1 f", "w1:1 r1 f r2 f"),
    "reset, rewrite": ("w1:6 w2:3 f", "r1 w1:2 r2 w2:3 f w1:2 f"),
    "reset twice": ("w1:3 f", "r1 w1:6 r1 w1:1 f"),
    "reset all": ("w1:6 w2:2 w3:2 f", "R w2:3 w1:1 f"),
    "conditions": ("w1:2 w2:2 f", "x1:13 x2:15 x3:14 x0:15 f x1:1 x2:4 x0:0 f w1:1 f"),
    "conventional": ("k0:8 f", "k1:2 k0:1 k3:5 f k0:8"),
    "implicit close": ("", "w1:1 w2:1 w3:1 f w1:1 f1 w4:1 f"),
    "runt": ("", "w5:2 f w5:2 f r5 w5:3 f"),
    "power cycle": ("o1 w2:2 f", "w1:1 o3 P w2:1 f"),
    "open and close of the image": ("", "w1:2 o2 Q"),
    "nothing but flushes": ("w1:1", "f f f"),
}


def prepared(setup: str) -> bytearray:
    """An image on which *setup* was run and that was then closed."""
    memory = fresh_memory()
    world = World(MemoryBacking(memory))
    world.run(f"{setup} Q")
    return memory


def journal_records() -> int:
    """How many flushes of one zone fill the journal, in any small geometry."""
    return World(MemoryBacking(fresh_memory())).image.header.section(SectionKind.JOURNAL).length // JOURNAL_ALIGN_BYTES


def check_usable(image: Image, found: Snapshot) -> None:
    """Assert that the recovered image works: it takes writes, and shows them when it was closed and opened again."""
    backing = image.backing
    assert isinstance(backing, MemoryBacking)
    image.close()
    world = World(MemoryBacking(backing.memory), NEXT_BOOT)
    assert world.history[0].after == found
    assert not world.image.recovery
    world.run("f")
    target = next((zone_no for zone_no in (1, 2, 3, 4) if found[zone_no][0] == Condition.CLOSED), None)
    if target is not None:
        world.run(f"w{target}:1 f")
    after = world.snapshot()
    again = Image.load(CrashBacking(backing.memory), backing.length, b"yet another boot")
    assert [data for _, data in snapshot(again, backing.memory)] == [data for _, data in after]


def check_power_cuts(world: World, rng: random.Random, *, limit: int, again: tuple[int, ...] = ()) -> int:
    """Assert the promise for every power cut of *world*; returns how many there were."""
    count = 0
    assert isinstance(world.backing, CrashBacking)
    for cut in world.backing.power_cuts(rng, limit=limit):
        count += 1
        check_one(world, cut.position, cut.content, rng, again)
    return count


def check_one(world: World, position: int, content: bytearray, rng: random.Random, again: tuple[int, ...]) -> None:
    # Another boot each time: the live table of an earlier one must never be believed.
    scribble(content, rng, world.image.geometry)
    backing = CrashBacking(content)
    image = Image.load(backing, backing.length, rng.randbytes(16))
    found = snapshot(image, content)
    world.check_power_cut(position, found, was_clean=not image.recovery)
    cuts = list(backing.power_cuts(rng, limit=again[0])) if again else []
    if rng.random() < 0.1:
        check_usable(image, found)
    # Power goes again while the image recovers, and again: the same promise holds as for the first time.
    for cut in rng.sample(cuts, min(again[0], len(cuts))) if again else []:
        check_one(world, position, cut.content, rng, again[1:])


@pytest.mark.parametrize(("setup", "program"), PROGRAMS.values(), ids=list(PROGRAMS))
def test_power_cut_around_every_kind_of_command(setup: str, program: str) -> None:
    rng = random.Random(program)
    world = World(CrashBacking(prepared(setup)))
    world.run(program)
    assert check_power_cuts(world, rng, limit=200) > 200 or program == "f f f"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("setup", "program"), PROGRAMS.values(), ids=list(PROGRAMS))
def test_power_cut_during_the_recovery_from_a_power_cut(setup: str, program: str) -> None:
    rng = random.Random(program)
    world = World(CrashBacking(prepared(setup)))
    world.run(program)
    check_power_cuts(world, rng, limit=12, again=(4, 2, 2))


class Meanwhile(CrashBacking):
    """Runs a function once in the middle of a checkpoint: the data is synced, and nothing of the checkpoint written."""

    meanwhile: Callable[[], None] | None = None

    def sync(self) -> None:
        super().sync()
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()


#: What is done before a flush, and by another thread while that flush writes its checkpoint. A reset that forgets there
#: that the zone may not be written yet shows in the program after it.
BESIDE_A_FLUSH = {
    "reset": ("w1:4", "r1", "w1:6 f"),
    "reset of what was reset before": ("w1:4 f r1", "r1", "w1:6 f"),
    "reset of what an earlier flush covers": ("w1:4 f w1:1", "r1", "w1:3 f"),
    "reset, write": ("w1:4", "r1 w1:6", "f"),
    "reset, write of a zone that is durable": ("w1:4 f w2:1", "r1 w1:6", "f"),
    "write, reset": ("w1:2", "w1:2 r1", "w1:6 f"),
    "reset all": ("w1:4 w2:2", "R", "w2:3 w1:5 f"),
    "finish, reset": ("w1:4", "f1 r1", "w1:5 f"),
    "reset of what was loaded over a reset": ("w1:4 f S r1 L w1:1", "r1", "w1:6 f"),
    "load over a reset": ("w1:4 f S r1", "L", "w1:1 f"),
    "load": ("w1:3 f S w1:2", "L", "w1:3 f"),
    "load, write": ("w1:3 f S r1", "L w1:2", "w1:1 f"),
}


@pytest.mark.parametrize(("before", "beside", "after"), BESIDE_A_FLUSH.values(), ids=list(BESIDE_A_FLUSH))
def test_power_cut_around_what_another_thread_does_during_a_checkpoint(before: str, beside: str, after: str) -> None:
    rng = random.Random(beside)
    backing = Meanwhile(prepared(""))
    world = World(backing)
    world.run(before)
    waiting: list[threading.Thread] = []

    def meanwhile() -> None:
        steps = beside.split()
        while steps and steps[0] != "L" and not (steps[0].startswith("w1") and world.port.has_pending_reset(1)):
            world.run(steps.pop(0))
        # What waits for the checkpoint to end needs a thread of its own.
        if steps:
            waiting.append(threading.Thread(target=world.run, args=(" ".join(steps),)))
            waiting[0].start()

    backing.meanwhile = meanwhile
    world.run("f")
    for thread in waiting:
        thread.join()
    world.run(after)
    assert not any(world.statuses), world.statuses
    assert check_power_cuts(world, rng, limit=200) > 200


def test_a_state_is_loaded_between_checkpoints_and_no_data_vanish_after_it() -> None:
    """A checkpoint gives the space of zones back that were reset before it began: not of those that got data since."""
    backing = Meanwhile(prepared(""))
    world = World(backing)
    world.run("w1:4 f S r1")
    loading = threading.Thread(target=world.run, args=("L",))

    def meanwhile() -> None:
        loading.start()
        loading.join(0.2)  # not before the checkpoint has ended: then nothing is proven, and nothing fails

    backing.meanwhile = meanwhile
    world.run("f")
    loading.join()
    loaded = world.history[-1].after
    assert loaded[1][0] == Condition.IMP_OPEN
    world.run("f")
    assert world.snapshot() == loaded


#: States that are loaded, with a flush or none between them and what was there before.
LOADS = {
    "a write pointer comes back": ("w1:4 f S r1", "L w1:1 f"),
    "a write pointer comes back, and goes": ("w1:4 f S r1", "L f r1 w1:2 f"),
    "a write pointer moves back": ("w1:2 f S w1:3 f", "L w1:3 f"),
    "a write pointer moves back, unflushed": ("w1:2 S w1:3", "L w1:3 f"),
    "after the space was given back": ("w1:4 f S r1 f", "L f w1:1 f"),
    "many zones": ("w1:4 w2:3 f f2 S r1 R f w3:4", "L w1:1 r2 f w2:5 f"),
    "twice": ("w1:4 f S r1", "L r1 L w1:1 f r1 w1:6 f"),
}


@pytest.mark.parametrize(("setup", "program"), LOADS.values(), ids=list(LOADS))
def test_power_cut_around_states_that_are_loaded(setup: str, program: str) -> None:
    rng = random.Random(program)
    world = World(CrashBacking(prepared("")))
    world.run(setup)
    world.run(program)
    assert check_power_cuts(world, rng, limit=200) > 200


class LoadAt(CrashBacking):
    """Has another thread load states at call *at* (from 0) that writes or syncs, once it is armed with *load*."""

    def __init__(self, memory: bytearray, at: int) -> None:
        super().__init__(memory)
        self.load: Callable[[], None] | None = None
        self.loading: threading.Thread | None = None
        self.nr_calls = 0
        self._at = at

    def _meet(self) -> None:
        if self.load is None:
            return
        if self.nr_calls == self._at:
            self.loading = threading.Thread(target=self.load)
            self.loading.start()
            # Where the load must wait for this very call, nothing is proven, and nothing fails.
            self.loading.join(0.02)
        self.nr_calls += 1

    def pwrite(self, data: bytes, offset: int) -> None:
        self._meet()
        super().pwrite(data, offset)

    def sync(self) -> None:
        self._meet()
        super().sync()

    def punch(self, offset: int, length: int) -> None:
        self._meet()
        super().punch(offset, length)


#: What was done and saved before, and what a guest asks of its queue while the states are loaded.
LOADS_BESIDE_A_QUEUE = {
    "appends": ("w1:4 w2:2 f S r1 w2:1", "a1:1 f a2:2 f a1:1 a4:1 f"),
    "resets": ("w1:4 w2:2 f S r1", "a1:2 f r1 a1:3 f r2 r1 f a1:1"),
    "finish": ("w1:4 f S w1:1 r1", "a1:1 f1 f r1 f a1:6 f"),
    "what was given back": ("w1:4 w2:2 f S r1 r2 f", "f a2:1 f a1:1 f"),
}


def serve_beside_a_load(backing: LoadAt, setup: str, program: str, path: Path) -> World:
    """Have a queue carry *program* out, one request after the other, while *backing* has the saved states loaded."""
    world = World(backing)
    world.run(setup)
    world.device.listeners.subscribe(
        # With the lock held: each change of either thread is in the history before the next begins.
        lambda _zone_no, _nr_zones: world.history.append(Moment(position=world.position, after=world.snapshot())),
        None,
    )
    backing.load = lambda: world.device.load_zones(world.saved)
    with serving(world.device, blk_device(world.device), path), Frontend(path) as frontend:
        frontend.start()
        driver = BlkDriver(frontend.queues[0])
        for word in program.split():
            sector = GEOMETRY.zone_size * int(word[1:2] or 0)
            covered = len(world.history) - 1
            if word == "f":
                assert driver.flush() == blk_codec.S_OK
                world.flushes.append((world.position, covered))
            elif word.startswith("a"):  # refused where the load has left too little room
                driver.append(sector, world.new_data(int(word[3:])))
            else:
                driver.manage({"r": blk_codec.T_ZONE_RESET, "f": blk_codec.T_ZONE_FINISH}[word[0]], sector)
    if backing.loading is not None:
        backing.loading.join()
    return world


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("setup", "program"), LOADS_BESIDE_A_QUEUE.values(), ids=list(LOADS_BESIDE_A_QUEUE))
def test_power_cut_around_a_load_while_a_queue_serves_requests(setup: str, program: str, tmp_path: Path) -> None:
    """The load comes at every write and every sync that the requests cause; power goes at each of them after it."""
    rng = random.Random(program)
    plain = LoadAt(prepared(""), -1)
    serve_beside_a_load(plain, setup, program, tmp_path / "s")
    assert plain.nr_calls > 10
    for at in range(plain.nr_calls):
        world = serve_beside_a_load(LoadAt(prepared(""), at), setup, program, tmp_path / f"s{at}")
        assert isinstance(world.backing, LoadAt)
        assert world.backing.loading is not None
        assert check_power_cuts(world, rng, limit=30) > 30


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("nr_spare", [0, 1, 2])
def test_power_cut_around_a_compaction_of_the_journal(nr_spare: int) -> None:
    rng = random.Random(nr_spare)
    memory = fresh_memory()
    world = World(MemoryBacking(memory))
    # A clean stop does not write a record if nothing changed since the last flush, so the count is exact.
    for _ in range(journal_records() - nr_spare - 1):
        world.run("o1 f" if world.snapshot()[1][0] != Condition.EXP_OPEN else "c1 f")
    world.run("w2:2 f Q")
    crashing = World(CrashBacking(memory), NEXT_BOOT)
    crashing.run("w2:1 f x3:14 f w2:1 f")
    assert crashing.image._checkpoint.epoch == 2
    check_power_cuts(crashing, rng, limit=40, again=(4, 2))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_power_cut_around_a_compaction_tears_the_two_copies_of_the_table() -> None:
    """The table has two blocks here. Folds that power cuts interrupt, one after the other, must not complete each
    other, and none may write first to the copy that is the only whole one."""
    rng = random.Random(2)
    memory = fresh_memory(WIDE_GEOMETRY)
    world = World(MemoryBacking(memory))
    for _ in range(journal_records() - 1):
        world.run("w1:1 r1 f")
    world.run("w1:1 w300:1 w599:1 Q")
    crashing = World(CrashBacking(memory), NEXT_BOOT)
    crashing.run("w1:1 w300:1 r599 f")
    assert crashing.image._checkpoint.epoch == 2
    assert isinstance(crashing.backing, CrashBacking)
    for cut in crashing.backing.power_cuts(rng, limit=24):
        if cut.position > crashing.open_position:
            check_one(crashing, cut.position, cut.content, rng, (20,))


class FailsOnce(CrashBacking):
    """The *fail_at*-th write or sync fails, a write after its first half; what was not synced may be lost."""

    def __init__(self, memory: bytearray, fail_at: int) -> None:
        super().__init__(memory)
        self.calls = 0
        self.fail_at = fail_at

    def pwrite(self, data: bytes, offset: int) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            super().pwrite(data[: len(data) // 2], offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().pwrite(data, offset)

    def sync(self) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync()


def test_power_cut_around_an_open_that_fails_with_half_a_table_in_each_copy() -> None:
    """Each copy of the table has lost one of its two blocks, so neither may be overwritten before one is repaired."""
    rng = random.Random(3)
    memory = fresh_memory(WIDE_GEOMETRY)
    world = World(MemoryBacking(memory))
    world.run("w1:2 w300:2 w599:2")
    world.image._checkpoint.compact(pack_words(*world.image.states))
    before = Image.load(MemoryBacking(bytearray(memory)), len(memory), NEXT_BOOT, readonly=True).states
    # The process is killed, and what differs from the table lies in many sectors of it: a torn block is damaged.
    world.run(" ".join(f"f{zone_no}" for zone_no in range(2, 600, 40)))
    for copy in (0, 1):
        memory[world.image.header.section(SectionKind.TABLE, copy).offset + copy * BLOCK_BYTES + 30] ^= 0xFF
    after = Image.load(MemoryBacking(bytearray(memory)), len(memory), BOOT, readonly=True).states
    assert before != after
    nr_failed = 0
    for fail_at in itertools.count():  # 0 never fails
        backing = FailsOnce(bytearray(memory), fail_at)
        with suppress(OSError):
            Image.load(backing, len(memory), BOOT)
        if fail_at > backing.calls:
            break
        nr_failed += 1
        for cut in backing.power_cuts(rng, limit=24):
            found = Image.load(MemoryBacking(cut.content), len(memory), NEXT_BOOT, readonly=True).states
            assert found in (before, after), (fail_at, cut.position)
    assert nr_failed > 10


@st.composite
def programs(draw: st.DrawFn) -> str:
    steps = st.one_of(
        st.tuples(st.sampled_from("wa"), st.integers(1, 5), st.integers(1, 6)).map(lambda t: f"{t[0]}{t[1]}:{t[2]}"),
        st.tuples(st.sampled_from("ocfrr"), st.integers(1, 5)).map(lambda t: f"{t[0]}{t[1]}"),
        st.tuples(st.integers(0, 5), st.integers(1, 3)).map(lambda t: f"k{t[0]}:{t[1]}"),
        st.tuples(st.integers(0, 5), st.sampled_from((0, 1, 4, 13, 14, 15))).map(lambda t: f"x{t[0]}:{t[1]}"),
        st.sampled_from(("f", "f", "f", "R", "P", "S", "L")),
    )
    return " ".join(draw(st.lists(steps, min_size=1, max_size=14)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@hypothesis.given(setup=programs(), program=programs(), seed=st.integers(0, 1 << 32))
def test_power_cut_in_any_program(setup: str, program: str, seed: int) -> None:
    rng = random.Random(seed)
    memory = fresh_memory()
    first = World(MemoryBacking(memory))
    first.run(setup, must_succeed=False)
    first.run("Q")
    world = World(CrashBacking(memory), NEXT_BOOT)
    world.run(program, must_succeed=False)
    check_power_cuts(world, rng, limit=6, again=(2, 2))


# -- the process dies, the host does not ------------------------------------------------------------------------------


class KillBacking(CrashBacking):
    """Keeps what the next process finds if this one is killed just before each call."""

    def __init__(self, memory: bytearray) -> None:
        self.kills: list[bytes] = []
        super().__init__(memory)

    def pwrite(self, data: bytes, offset: int) -> None:
        self.kills.append(bytes(self.memory))
        super().pwrite(data, offset)

    def sync(self) -> None:
        self.kills.append(bytes(self.memory))
        super().sync()

    def punch(self, offset: int, length: int) -> None:
        self.kills.append(bytes(self.memory))
        super().punch(offset, length)


@pytest.mark.parametrize(("setup", "program"), PROGRAMS.values(), ids=list(PROGRAMS))
def test_kill_loses_nothing_that_was_answered(setup: str, program: str) -> None:
    backing = KillBacking(prepared(setup))
    world = World(backing, NEXT_BOOT)
    world.run(program)
    backing.kills.append(bytes(backing.memory))
    for position, content in enumerate(backing.kills):
        # Answered: the last command that began before, or the one under way, whole.
        reached = [moment for moment in world.history if moment.position <= position]
        allowed = [moment.after for moment in reached[-2:]]
        if world.closing_position is not None and position >= world.closing_position:
            allowed = [world.history[-1].after]
        again = MemoryBacking(bytearray(content))
        image = Image.load(again, again.length, NEXT_BOOT)
        found = snapshot(image, again.memory)
        for zone_no, (cond, data) in enumerate(found):
            states = [state[zone_no] for state in allowed]
            if GEOMETRY.is_conventional(zone_no):
                assert cond in {state[0] for state in states}
                assert data in {state[1] for state in states}
            else:
                assert (cond, data) in states, (position, zone_no)
        image.close()


def test_a_killed_and_an_unplugged_host_agree_on_what_was_flushed() -> None:
    memory = fresh_memory()
    World(MemoryBacking(memory)).run("w1:2 o2 f w1:1 w3:1 r1")
    same_boot = Image.load(MemoryBacking(bytearray(memory)), len(memory), BOOT)
    assert [cond for cond, _ in snapshot(same_boot, memory)][1:4] == [
        Condition.EMPTY,
        Condition.EXP_OPEN,
        Condition.IMP_OPEN,
    ]
    other_boot = Image.load(MemoryBacking(bytearray(memory)), len(memory), NEXT_BOOT)
    found = snapshot(other_boot, memory)
    assert [cond for cond, _ in found][1:4] == [Condition.CLOSED, Condition.EMPTY, Condition.EMPTY]
    assert len(found[1][1]) == 1024
    assert "answered" in same_boot.recovery
    assert "host lost power" in other_boot.recovery


def test_space_of_a_zone_that_was_reset_before_the_crash_is_given_back() -> None:
    memory = fresh_memory()
    World(MemoryBacking(memory)).run("w1:2 w2:2 f r1")
    image = Image.load(MemoryBacking(memory), len(memory), BOOT)
    assert not any(memory[8 * 512 : 16 * 512])
    assert any(memory[16 * 512 : 24 * 512])
    image.close()


# -- faults -----------------------------------------------------------------------------------------------------------


def faults_of(content: bytearray) -> bytes:
    return Image.load(MemoryBacking(content), len(content), NEXT_BOOT, readonly=True).load_faults()


def test_faults_survive_kills_and_if_told_so_power_cuts() -> None:
    backing = CrashBacking(prepared(""))
    image = Image.load(backing, backing.length, BOOT)
    # (the log when it began, the log when it was durable, what is kept)
    kept: list[tuple[int, int | None, bytes]] = [(0, 0, b"")]
    for number, durably in enumerate((True, False, False, True, False, True, True, False)):
        begin = backing.position
        data = b"%9d" % number + b"text" * 2000
        image.save_faults(data, durably=durably)
        kept.append((begin, backing.position if durably else None, data))
    for cut in backing.power_cuts(random.Random(3), limit=60):
        last = max(index for index, (_, end, _) in enumerate(kept) if end is not None and end <= cut.position)
        allowed = [data for begin, _, data in kept[last:] if begin <= cut.position]
        assert faults_of(cut.content) in allowed, cut.position
    # A process may die when a part of the blocks of a write is done.
    content = bytearray(backing.initial)
    for position, event in enumerate(backing.events):
        reached = [data for begin, _, data in kept if begin <= position]
        for length in range(0, len(event.data) + 1, 4096):
            content[event.offset : event.offset + length] = event.data[:length]
            if position > kept[2][0]:
                assert faults_of(content) in reached[-2:], position
    assert faults_of(content) == kept[-1][2]


def test_the_next_process_goes_on_with_the_faults_of_a_killed_one() -> None:
    memory = prepared("")
    Image.load(MemoryBacking(memory), len(memory), BOOT).save_faults(b"1", durably=True)
    for number in range(2, 6):
        backing = CrashBacking(memory)
        image = Image.load(backing, backing.length, BOOT)
        assert image.load_faults() == b"%d" % (number - 1)
        opened = backing.position
        image.save_faults(b"%d" % number, durably=False)
        cuts = list(backing.power_cuts(random.Random(number), limit=20))
        assert {faults_of(cut.content) for cut in cuts if cut.position >= opened} == {
            b"%d" % (number - 1), b"%d" % number
        }  # fmt: skip
