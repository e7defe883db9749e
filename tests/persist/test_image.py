"""The image where nothing crashes but the host fails, others come, or the file is odd. For crashes: test_crashes.py."""

import errno
import inspect
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType

import pytest

import zonefs_emu
from tests import tracing
from tests.persist.test_crashes import check_power_cuts
from tests.persist.worlds import (
    BOOT,
    GEOMETRY,
    NEXT_BOOT,
    UUID_OF_TESTS,
    WIDE_GEOMETRY,
    World,
    fresh_memory,
    power_cycled,
    snapshot,
)
from tests.requires import requires
from tests.served import Served
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.errors import (
    CorruptImageError,
    ImageBusyError,
    ImageError,
    PoisonedError,
    Status,
    UnsupportedVersionError,
)
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.machine import fresh_zones
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Attribute, Condition
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.header import SectionKind, encode_header, plan_header
from zonefs_emu.persist.codec.state import Mode, decode_state
from zonefs_emu.persist.codec.words import pack_words
from zonefs_emu.persist.image import LOST, Image, Stage
from zonefs_emu.persist.metadata import create_image, initialize, read_header
from zonefs_emu.persist.pending_resets import PORTION_ZONES
from zonefs_emu.testing.backings import CrashBacking, EventKind, FailingBacking, MemoryBacking
from zonefs_emu.units import to_bytes

SETUP = "w1:4 w2:2 k0:8 f w3:1 f"
PROGRAM = "w2:1 k2:3 r1 w1:2 f3 f a2:1 c2 R f w2:3 w1:1"
MIB = 2048  # sectors
PACKAGE = str(Path(zonefs_emu.__file__).parent)
HEADER = plan_header(GEOMETRY, uuid=UUID_OF_TESTS)


def set_up() -> bytearray:
    memory = fresh_memory()
    World(MemoryBacking(memory)).run(f"{SETUP} Q")
    return memory


class Failing(FailingBacking):
    """Fails everywhere but at the counters: those are statistics, and a failure there is only logged."""

    def pwrite(self, data: bytes, offset: int) -> None:
        counters = HEADER.section(SectionKind.COUNTERS)
        if counters.offset <= offset < counters.offset + counters.length:
            MemoryBacking.pwrite(self, data, offset)
        else:
            super().pwrite(data, offset)


def nr_calls() -> tuple[int, int]:
    """How many calls opening makes, and how many PROGRAM and closing make after it."""
    backing = Failing(set_up())
    world = World(backing)
    opening = backing.calls
    world.run(f"{PROGRAM} Q")
    return opening, backing.calls


OPENING, ALL = nr_calls()


def test_closing_a_second_time_does_nothing() -> None:
    backing = Failing(set_up())
    world = World(backing)
    world.image.close()
    calls = backing.calls
    world.image.close()
    assert backing.calls == calls
    assert world.image.is_closed


# -- the host fails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail_at", range(1, OPENING + 1))
def test_a_failure_while_opening_leaves_the_image_as_it_was(fail_at: int) -> None:
    memory = set_up()
    before = World(MemoryBacking(bytearray(memory))).snapshot()
    with pytest.raises(OSError, match="Input/output error"):
        World(Failing(memory, fail_at=fail_at))
    for boot_id in (BOOT, NEXT_BOOT):
        after = World(MemoryBacking(bytearray(memory)), boot_id)
        assert after.snapshot() in (before, power_cycled(before))
        if boot_id == BOOT:
            assert after.snapshot() == before


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("fail_at", range(OPENING + 1, ALL + 1))
def test_a_failing_host_fails_one_command_and_loses_nothing_else(fail_at: int, *, lasting: bool) -> None:
    backing = Failing(set_up(), fail_at=fail_at, lasting=lasting)
    world = World(backing)
    statuses = world.run(PROGRAM, must_succeed=False)
    is_closing = not any(statuses)
    if is_closing:
        with pytest.raises(PoisonedError) as raised:
            world.step("Q")
        assert raised.value.status is Status.IO_ERROR
    else:
        first = next(index for index, found in enumerate(statuses) if found)
        assert statuses[first] is Status.IO_ERROR
        assert set(statuses[first + 1 :]) <= {Status.POISONED}
        # What was there before can still be read, and letting go of the image is no second failure.
        assert world.port.read(0, 8, [bytearray(4096)]) is Status.OK
        assert world.port.flush() is Status.POISONED
        world.device.close()
    answered = world.history[-1].after
    reopened = snapshot(Image.load(MemoryBacking(bytearray(backing.memory)), backing.length, BOOT), backing.memory)
    # A write that failed may have changed sectors of a conventional zone, and sectors beyond wp, which are never read.
    sequential = list(GEOMETRY.sequential_zones())
    if "sync" not in backing.failed and not is_closing and backing.failed[0] == "write" and not in_flush(world):
        assert [reopened[zone_no] for zone_no in sequential] == [answered[zone_no] for zone_no in sequential]
    else:
        # What reached the medium is not known: back to the last completed flush, or to this one.
        allowed = [power_cycled(state) for state in world.allowed(0)] + world.allowed(0)
        zones = [[state[zone_no] for zone_no in sequential] for state in allowed]
        assert [reopened[zone_no] for zone_no in sequential] in zones
    after_cut = Image.load(MemoryBacking(bytearray(backing.memory)), backing.length, NEXT_BOOT)
    found = snapshot(after_cut, backing.memory)
    allowed = [power_cycled(state) for state in world.allowed(0)] + (world.allowed(0) if not after_cut.recovery else [])
    assert [found[zone_no] for zone_no in sequential] in [[state[z] for z in sequential] for state in allowed]


def in_flush(world: World) -> bool:
    """Whether it was the image's own metadata that could not be written: then the live table is not believed."""
    states = [decode_state(block, world.image.header.seed, offset=0) for block in state_blocks(world)]
    return max(states, key=lambda state: state.generation).boot_id == bytes(16)


def state_blocks(world: World) -> Iterator[bytes]:
    for copy in (0, 1):
        section = world.image.header.section(SectionKind.STATE, copy)
        yield bytes(world.backing.memory[section.offset : section.offset + section.length])


def test_after_a_failed_sync_the_live_table_is_not_believed() -> None:
    memory = fresh_memory()
    backing = FailingBacking(memory)
    world = World(backing)
    world.run("w1:2 f w1:1")
    backing.fail_at = backing.calls + 1
    assert world.run("f w1:1 o2", must_succeed=False) == [Status.IO_ERROR, Status.POISONED, Status.POISONED]
    with pytest.raises(PoisonedError, match=r"the image could not be synced \(Input/output error\); nothing more is"):
        world.image.flush()
    image = Image.load(MemoryBacking(memory), len(memory), BOOT)
    assert (image.conds[1], image.wps[1]) == (Condition.CLOSED, 2)
    assert image.recovery.startswith("the last process could not sync the image: everything up to the last completed")


class SyncsFail(MemoryBacking):
    """Once *fails*, no sync succeeds, and no write to *spoiled*: the offset of a copy that the medium does not take."""

    def __init__(self, memory: bytearray, spoiled: int) -> None:
        super().__init__(memory)
        self.fails = False
        self.spoiled = spoiled

    def pwrite(self, data: bytes, offset: int) -> None:
        if self.fails and offset == self.spoiled:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().pwrite(data, offset)

    def sync(self) -> None:
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class PunchFails(MemoryBacking):
    """Once *fails*, no space is given back."""

    fails = False

    def punch(self, offset: int, length: int) -> None:
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().punch(offset, length)


@pytest.mark.parametrize("copy", [0, 1])
def test_after_a_failed_sync_one_copy_of_the_state_is_enough_to_say_so(copy: int) -> None:
    memory = fresh_memory()
    backing = SyncsFail(memory, HEADER.section(SectionKind.STATE, copy).offset)
    world = World(backing)
    world.run("w1:2 f w1:1")
    backing.fails = True
    assert world.step("f") is Status.IO_ERROR
    image = Image.load(MemoryBacking(memory), len(memory), BOOT)
    assert (image.conds[1], image.wps[1]) == (Condition.CLOSED, 2)


def test_after_faults_could_not_be_synced_the_live_table_is_not_believed() -> None:
    """A sync tells of lost pages once, and those may have been of anything."""
    memory = fresh_memory()
    backing = SyncsFail(memory, spoiled=-1)
    world = World(backing)
    world.run("w1:2 f w1:1")
    backing.fails = True
    with pytest.raises(PoisonedError, match="the faults could not be written"):
        world.image.save_faults(b"text", durably=True)
    image = Image.load(MemoryBacking(memory), len(memory), BOOT)
    assert (image.conds[1], image.wps[1]) == (Condition.CLOSED, 2)


@pytest.mark.parametrize("copies", [(0,), (1,), (0, 1)])
def test_an_image_without_any_of_its_headers_is_lost(
    copies: tuple[int, ...], expect_warning: Callable[[str], None]
) -> None:
    """One that has changed may be a medium's fault; where both have, another program has written over the file."""
    memory = fresh_memory()
    world = World(MemoryBacking(memory))
    world.run("w1:1")
    for copy in copies:
        memory[HEADER.section(SectionKind.HEADER, copy).offset + 8] ^= 1
    is_lost = copies == (0, 1)
    if is_lost:
        expect_warning("cut or overwritten by another program")
    assert world.step("f") is (Status.IO_ERROR if is_lost else Status.OK)
    assert world.image.is_lost is is_lost
    assert world.image.poison == (LOST if is_lost else None)
    data = bytes(memory[: to_bytes(GEOMETRY.size)])
    assert world.step("w1:1") is (Status.IO_ERROR if is_lost else Status.OK)
    assert (memory[: len(data)] == data) is is_lost


@pytest.mark.parametrize("seed", range(20))
def test_faults_are_what_was_saved_last_and_after_a_power_cut_what_was_saved_durably(seed: int) -> None:
    """Saved in both ways and opened anew in any order. A text that was not saved durably may be torn."""
    rng = random.Random(seed)
    memory = fresh_memory()
    image = Image.load(MemoryBacking(memory), len(memory), BOOT)
    durable = b""
    for number in range(12):
        text = b"text %d" % number
        durably = rng.random() < 0.5
        before = bytes(memory)
        image.save_faults(text, durably=durably)
        # A reader beside it: load_faults() of the image itself is for its beginning.
        assert Image.load(MemoryBacking(bytearray(memory)), len(memory), BOOT, readonly=True).load_faults() == text
        if durably:
            durable = text
        else:
            # None of the sectors that were written is whole.
            torn = bytearray(memory)
            for offset in range(0, len(memory), 512):
                if memory[offset : offset + 512] != before[offset : offset + 512]:
                    torn[offset : offset + 512] = rng.randbytes(512)
            assert Image.load(MemoryBacking(torn), len(torn), BOOT, readonly=True).load_faults() == durable
        if rng.random() < 0.5:
            image.close()
            image = Image.load(MemoryBacking(memory), len(memory), BOOT)
            assert image.load_faults() == text
            durable = text  # closing syncs everything
    image.close()


class Full(CrashBacking):
    """A host that is full from its *full_at*-th write or punch (from 1) on, for *lasting* of them; syncs go through."""

    def __init__(self, memory: bytearray, *, full_at: int, lasting: int) -> None:
        super().__init__(memory)
        self.calls = 0
        self.full_at = full_at
        self.lasting = lasting
        self._counters = read_header(self, len(memory)).section(SectionKind.COUNTERS)

    def pwrite(self, data: bytes, offset: int) -> None:
        is_counted = self._counters.offset <= offset < self._counters.offset + self._counters.length
        if not is_counted and self._is_full():
            super().pwrite(data[: len(data) // 2 // 512 * 512], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().pwrite(data, offset)

    def punch(self, offset: int, length: int) -> None:
        if self._is_full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().punch(offset, length)

    def _is_full(self) -> bool:
        self.calls += 1
        return self.full_at > 0 and self.full_at <= self.calls < self.full_at + self.lasting


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [1, 2, 5])
def test_a_full_host_refuses_loses_nothing_and_goes_on(lasting: int) -> None:
    """At each write and punch, of data and of metadata alike; and no power cut around it finds anything else."""
    program = "w2:1 r1 w1:2 f3 f a2:1 c2 r1 w1:1 R f w2:3 w1:1 f"
    fresh = set_up()
    counting = World(Full(fresh, full_at=0, lasting=0))
    opening = counting.backing.calls  # type: ignore[attr-defined]  # a Full
    counting.run(program)
    for full_at in range(1, counting.backing.calls - opening + 1):  # type: ignore[attr-defined]
        backing = Full(set_up(), full_at=0, lasting=lasting)
        world = World(backing)
        backing.full_at = backing.calls + full_at
        statuses = world.run(program, must_succeed=False)
        assert set(statuses) == {Status.OK, Status.NO_SPACE}, full_at
        assert world.image.poison is None
        backing.lasting = 0
        world.run("R w4:1 f r4 w4:2 f r3 w3:1 f")
        assert not any(world.image.old_extents)
        check_power_cuts(world, random.Random(full_at), limit=16)
        answered = world.snapshot()
        assert World(MemoryBacking(bytearray(backing.memory))).snapshot() == answered
        assert World(MemoryBacking(bytearray(backing.memory)), NEXT_BOOT).snapshot() == power_cycled(answered)


@pytest.mark.slow
@pytest.mark.parametrize("full_at", range(1, 8))
def test_a_compaction_that_a_full_host_interrupts_is_done_by_the_next_flush(full_at: int) -> None:
    memory = fresh_memory(WIDE_GEOMETRY)
    world = World(MemoryBacking(memory))
    nr_records = world.image.header.section(SectionKind.JOURNAL).length // 512
    world.run("w1:1 r1 f " * (nr_records - 1) + "w1:1 w300:1 w599:1 Q")
    backing = Full(memory, full_at=0, lasting=2)
    world = World(backing)
    world.run("w2:1 w301:1")
    backing.full_at = backing.calls + full_at
    statuses = world.run("f w3:1 r599 f w302:1 f w599:1 f", must_succeed=False)
    assert set(statuses) <= {Status.OK, Status.NO_SPACE}
    assert world.image.poison is None
    world.run("w4:1 f r300 w300:1 f")
    assert world.image._checkpoint.epoch >= 2
    check_power_cuts(world, random.Random(full_at), limit=24)


@contextmanager
def small_host(directory: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB below *directory*, and return where."""
    requires("root", "mount", "umount")
    mount = directory / "small"
    mount.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if subprocess.run(["mount", *options], check=False, capture_output=True).returncode:
        pytest.skip("this root may not mount")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_full_host_takes_what_frees_space_and_goes_on(tmp_path: Path, expect_warning: Callable[[str], None]) -> None:
    """A real one: a tmpfs that runs full under writes. A zone that is reset makes room, and so does a larger host."""
    expect_warning("the counters failed")
    with small_host(tmp_path) as mount:
        path = mount / "image"
        ZonedDevice.create(path, Geometry(size=64 * MIB, zone_size=MIB, zone_capacity=MIB), uuid=UUID_OF_TESTS)
        device = ZonedDevice.open(path)
        port = device.port("test", VIRTIO)
        assert port.append(MIB, 32, [b"1" * 32 * 512])[0] is Status.OK
        statuses = list(itertools.takewhile(lambda status: not status, (append(port, n) for n in range(1, 1000))))
        nr_written = len(statuses)
        assert nr_written > 20
        # Again and again, and longer ones, which the host takes in part: wp stays, and what was there stays.
        for nr_sectors in (8, 8, 512):
            assert port.append(0, nr_sectors, [b"x" * nr_sectors * 512])[0] is Status.NO_SPACE
        assert port.append(2 * MIB, 512, [b"x" * 512 * 512])[0] is Status.NO_SPACE
        assert port.zone(2).cond is Condition.EMPTY
        assert port.flush() is Status.OK
        assert port.manage(Operation.FINISH, 3 * MIB) is Status.OK
        assert port.manage(Operation.RESET, MIB) is Status.OK
        assert port.flush() is Status.OK
        # There is room for what the zone held, no more: the writes that failed have kept nothing.
        assert port.append(2 * MIB, 32, [b"2" * 32 * 512])[0] is Status.OK
        assert append(port, 0) is Status.NO_SPACE
        device.close()
        # Even on the full host it opens: all that opening writes is reserved.
        device = ZonedDevice.open(path)
        assert not device.image.recovery
        port = device.port("test", VIRTIO)
        assert port.zone(0).wp == 8 * nr_written
        subprocess.run(["mount", "-o", "remount,size=4m", str(mount)], check=True)
        assert append(port, nr_written + 1) is Status.OK
        buffer = bytearray(4096)
        for number in range(1, nr_written + 2):
            assert port.read(8 * (number - 1), 8, [buffer]) is Status.OK
            assert buffer == number.to_bytes(8, "big") * 512
        assert port.read(3 * MIB, 8, [buffer]) is Status.OK
        assert not any(buffer)
        device.close()
        with pytest.raises(OSError, match="No space"):
            ZonedDevice.create(
                mount / "second", Geometry(size=1 << 30, zone_size=1 << 10, zone_capacity=1 << 10), uuid=UUID_OF_TESTS
            )
        assert not (mount / "second").exists()


def test_a_daemon_on_a_full_host_takes_what_frees_space_and_goes_on(tmp_path: Path) -> None:
    """Its memory is mapped from the image: a store to what the full host has not allocated would be its end."""
    shape = "--size 64MiB --zone-size 1MiB --nr-conv 0 --max-append 1MiB"
    with small_host(tmp_path) as mount, Served(mount, create=shape) as served:
        served.wait_until_ready()
        served.verb("append", "--zone", "1", data=b"1" * (64 << 10))
        with pytest.raises(AssertionError, match="the host has no space left for the image"):
            served.verb("append", "--zone", "2", data=b"2" * (1 << 20))
        # A refusal is stored to mapped memory, and a flush writes a checkpoint: both have their place.
        assert [refusal["status"] for refusal in served.refusals()][-1:] == ["NO_SPACE"]
        served.verb("finish", "--zone", "3")
        served.verb("reset", "--zone", "1")
        served.verb("append", "--zone", "4", data=b"4" * 4096)
        written = served.written(2)
        assert served.written(4) == 8
        served.kill()
        served.start()
        served.wait_until_ready()
        assert (served.written(2), served.written(4)) == (written, 8)


def append(port: Port, number: int) -> Status:
    return port.append(0, 8, [number.to_bytes(8, "big") * 512])[0]


# -- flush and close --------------------------------------------------------------------------------------------------


def events_of(world: World, program: str) -> list[tuple[EventKind, int]]:
    """(kind, length) of what *program* does to the file, the live table apart."""
    assert isinstance(world.backing, CrashBacking)
    begin = world.position
    world.run(program)
    return [(event.kind, len(event.data)) for event in world.backing.events[begin:]]


def test_a_flush_costs_two_syncs_and_a_record_whatever_the_number_of_zones() -> None:
    write, sync, punch = EventKind.WRITE, EventKind.SYNC, EventKind.PUNCH
    for geometry in (GEOMETRY, WIDE_GEOMETRY):
        world = World(CrashBacking(fresh_memory(geometry)))
        assert events_of(world, "w1:1 f") == [(write, 512), (sync, 0), (write, 512), (write, 512), (sync, 0)]
        assert events_of(world, "f") == [(sync, 0)]
        record = [(sync, 0), (write, 512), (write, 512), (sync, 0)]
        assert events_of(world, "r1 f") == [*record, (punch, geometry.zone_size * 512)]
    conventional = World(CrashBacking(fresh_memory()))
    assert events_of(conventional, "k0:1 f") == [(write, 512), (sync, 0)]


def test_only_a_zone_that_had_data_has_its_reset_applied_before_it_is_written() -> None:
    world = World(CrashBacking(fresh_memory()))
    write, sync = EventKind.WRITE, EventKind.SYNC
    assert events_of(world, "o1 c1 w1:1") == [(write, 512)]
    assert events_of(world, "f2 r2 w2:1") == [(write, 512)]
    # Once reset, other zones' data do not wait.
    assert events_of(world, "r1 w2:1") == [(write, 512)]
    assert world.port.has_pending_reset(1)
    assert [kind for kind, _ in events_of(world, "w1:1")][:2] == [sync, write]
    assert not world.port.has_pending_reset(1)


def punched(world: World, program: str) -> list[tuple[int, int]]:
    """(sector, number of sectors) of what *program* punches."""
    assert isinstance(world.backing, CrashBacking)
    begin = world.position
    world.run(program)
    events = world.backing.events[begin:]
    return [(event.offset // 512, len(event.data) // 512) for event in events if event.kind is EventKind.PUNCH]


def test_a_zone_that_is_written_after_its_reset_overwrites_its_old_bytes_and_keeps_its_space() -> None:
    """Freeing space and taking it again costs more than writing there, and the zone will need all of it."""
    world = World(CrashBacking(fresh_memory()))
    world.run("w1:4 w2:2 f r1 r2")
    old = bytes(world.backing.memory[10 * 512 : 12 * 512])
    assert punched(world, "w1:2") == [(16, 8)], "zone 2 only, which no write waits for"
    assert world.backing.memory[10 * 512 : 12 * 512] == old
    assert world.port.read(8, 4, [data := bytearray(4 * 512)]) is Status.OK
    assert data[2 * 512 :] == bytes(2 * 512), "beyond the write pointer, where old bytes are"
    assert punched(world, "f w1:1 f") == []
    assert punched(world, "Q") == [(11, 5)], "what is beyond the write pointer"


@pytest.mark.parametrize(
    ("program", "zones"),
    [
        ("w1:4 f", []),
        ("r1 f", [(8, 8)]),
        ("r1 w1:1 f", []),
        ("f1 f", []),
        ("R f", [(8, 8)]),
    ],
    ids=["filled", "reset again", "and written again", "finished", "all reset"],
)
def test_when_the_space_of_a_zone_that_was_overwritten_is_freed(program: str, zones: list[tuple[int, int]]) -> None:
    world = World(CrashBacking(fresh_memory()))
    world.run("w1:4 f r1 w1:2")
    assert punched(world, program) == zones
    wp = world.image.wps[1]
    assert punched(world, "Q") == ([] if not wp or wp >= 4 else [(8 + wp, 8 - wp)])


def test_the_space_of_a_zone_that_was_to_be_overwritten_and_is_empty_is_freed_by_the_next_checkpoint() -> None:
    world = World(CrashBacking(fresh_memory()))
    world.run("w1:4 f r1")
    world.image.apply_pending_resets(1)
    assert not world.port.has_pending_reset(1)
    assert punched(world, "f") == [(8, 8)]
    assert punched(world, "w1:1 Q") == []


def test_images_with_zone_random_write_areas_keep_no_old_bytes() -> None:
    """An area shows what the file has there."""
    world = World(CrashBacking(fresh_memory(replace(GEOMETRY, zrwa_size=2, zrwa_granularity=1))))
    world.run("w1:4 f r1")
    assert punched(world, "w1:1") == [(8, 8)]


def test_a_zone_that_is_reset_during_a_checkpoint_has_its_reset_applied_by_the_next() -> None:
    """Its space is not given back by the checkpoint under way, which covers its data, and it is not forgotten."""
    world = World(MemoryBacking(fresh_memory()))
    world.run("w1:2 w2:2 f r1")

    def reset_another(_zone_numbers: object) -> None:
        world.image.erase_listeners.clear()
        world.run("r2")

    world.image.erase_listeners.append(reset_another)
    world.run("f")
    assert not world.image.has_pending_reset(1)
    assert world.image.has_pending_reset(2)
    world.run("f")
    assert not world.image.has_pending_reset(2)
    assert not any(world.snapshot()[2][1])
    world.run("w2:1 f")


@pytest.mark.parametrize("zone_no", [1, 3, 5])
def test_a_reset_that_was_not_flushed_gives_its_space_back_at_the_next_open(zone_no: int) -> None:
    """Neighbours keep what they have, and the end of the last zone is the end of the search.

    Zones of whole blocks, as space is given back in those.
    """
    geometry = Geometry(size=6 * 16, zone_size=16, zone_capacity=16)
    memory = fresh_memory(geometry)
    world = World(MemoryBacking(memory))
    world.run(" ".join(f"w{number}:16" for number in range(6)))
    before = world.snapshot()
    world.run(f"f r{zone_no}")
    again = World(MemoryBacking(memory))
    assert again.image.recovery
    start = zone_no * 16 * 512
    assert memory[start : start + 16 * 512] == bytes(16 * 512)
    found = again.snapshot()
    assert found[:zone_no] + found[zone_no + 1 :] == before[:zone_no] + before[zone_no + 1 :]
    assert found[zone_no] == (Condition.EMPTY, b"")


def test_the_space_of_all_resets_that_were_not_flushed_is_given_back() -> None:
    """Of zones that lie apart, of neighbours, and of one whose data has a hole; and of no other."""
    geometry = Geometry(size=9 * 32, zone_size=32, zone_capacity=32)
    memory = fresh_memory(geometry)
    world = World(MemoryBacking(memory))
    world.run("w1:32 w3:32 w5:32 w6:32 w7:32")
    assert world.port.write(8 * 32, 32, [b"1" * 4096 + bytes(8192) + b"2" * 4096]) is Status.OK
    kept = bytes(memory[6 * 16384 : 7 * 16384])
    world.run("f r1 r3 r5 r7 r8")
    again = World(MemoryBacking(memory))
    assert again.image.recovery
    assert memory[: 6 * 16384] == bytes(6 * 16384)
    assert memory[6 * 16384 : 7 * 16384] == kept
    assert memory[7 * 16384 : 9 * 16384] == bytes(2 * 16384)


@pytest.mark.parametrize("nr_zones", [PORTION_ZONES, PORTION_ZONES + 1, 3 * PORTION_ZONES + 1])
def test_a_checkpoint_of_as_many_zones_as_a_portion_and_more(nr_zones: int) -> None:
    """All of them are durable, and all that lost their data are reset, in whichever portion they lie."""
    geometry = Geometry(size=2 * nr_zones, zone_size=2, zone_capacity=2)
    memory = fresh_memory(geometry)
    world = World(MemoryBacking(memory))
    for zone_no in range(nr_zones):
        assert world.port.write(2 * zone_no, 1, [b"%-512d" % zone_no]) is Status.OK
    chosen = sorted({0, 1, PORTION_ZONES - 1, nr_zones // 2, nr_zones - 1})
    for flushed in (lambda: None, lambda: world.run("f")):
        flushed()
        for zone_no in chosen:
            world.run(f"r{zone_no}" if world.image.wps[zone_no] else f"w{zone_no}:1")
    world.run("f")
    assert World(MemoryBacking(bytearray(memory)), NEXT_BOOT).snapshot() == power_cycled(world.snapshot())
    assert not any(world.image.old_extents)
    world.run("R f")
    assert not any(world.image.old_extents)
    assert memory[: geometry.size * 512] == bytes(geometry.size * 512)
    assert World(MemoryBacking(bytearray(memory)), NEXT_BOOT).snapshot() == world.snapshot()


def test_zones_of_several_runs_are_reset_each_by_the_checkpoint_after_its_reset() -> None:
    last = 2 * PORTION_ZONES + 7
    geometry = Geometry(size=2 * (last + 1), zone_size=2, zone_capacity=2)
    world = World(MemoryBacking(fresh_memory(geometry)))
    zones = (3, PORTION_ZONES + 5, last)
    world.run(" ".join(f"w{zone_no}:2" for zone_no in zones) + " f")
    meanwhile = list(zones)

    def reset_next(_zone_numbers: object) -> None:
        if meanwhile:
            world.run(f"r{meanwhile.pop()}")

    world.image.erase_listeners.append(reset_next)
    for nr_reset in range(4):
        world.run("f")
        waiting = zones[: len(zones) - nr_reset][-1:]
        assert [zone_no for zone_no in zones if world.image.has_pending_reset(zone_no)] == list(waiting)
    world.run(" ".join(f"w{zone_no}:1" for zone_no in zones))


def test_a_clean_image_whose_journal_ends_early_says_where() -> None:
    memory = fresh_memory()
    World(MemoryBacking(memory)).run("w1:1 f w1:1 f w1:1 f Q")
    sections = [HEADER.section(SectionKind.JOURNAL, copy) for copy in (0, 1)]
    for section in sections:
        offset = section.offset + 2 * 512
        memory[offset : offset + 512] = bytes(512)
    with pytest.raises(CorruptImageError) as raised:
        World(MemoryBacking(memory))
    assert raised.value.offset == sections[0].offset + 2 * 512
    assert raised.value.found.startswith("record 2 of epoch 1")
    assert raised.value.expected.startswith("record 3 of epoch 1")


def test_the_journal_is_compacted_once_in_many_flushes() -> None:
    world = World(CrashBacking(fresh_memory()))
    nr_records = world.image.header.section(SectionKind.JOURNAL).length // 512
    events = events_of(world, " ".join(["o1 f c1 f"] * nr_records))
    tables = [length for kind, length in events if kind is EventKind.WRITE and length == 4096]
    assert len(tables) == 2 * (2 * nr_records // (nr_records + 1))


def test_nothing_is_answered_while_closing_that_the_clean_mark_does_not_cover() -> None:
    class Closing(MemoryBacking):
        """Write while the last flush syncs."""

        late: list[Status]

        def sync(self) -> None:
            if world.closing_position is not None:
                self.late.append(world.port.write(8, 1, [bytes(512)]))

    backing = Closing(fresh_memory())
    backing.late = []
    world = World.__new__(World)
    world.closing_position = None
    world.__init__(backing)  # type: ignore[misc]  # the backing asks for the world
    world.run("w2:1 Q")
    assert set(backing.late) == {Status.POISONED}
    again = World(MemoryBacking(backing.memory))
    assert not again.image.recovery
    assert again.snapshot()[1] == (Condition.EMPTY, b"")
    assert again.snapshot()[2][0] == Condition.IMP_OPEN


def test_closing_twice_and_using_it_afterwards() -> None:
    world = World(MemoryBacking(fresh_memory()))
    world.run("Q")
    world.device.close()
    assert world.port.write(8, 1, [bytes(512)]) is Status.POISONED
    assert world.port.flush() is Status.POISONED
    with pytest.raises(PoisonedError, match="the image is closed"):
        world.image.apply_pending_resets()


def test_writers_flushes_and_resets_from_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "image"
    geometry = Geometry(size=16 * 256, zone_size=256, zone_capacity=256)
    ZonedDevice.create(path, geometry, uuid=UUID_OF_TESTS)
    device = ZonedDevice.open(path)
    failures: list[tuple[int, int, Status]] = []
    stop = threading.Event()

    def write(zone_no: int) -> None:
        port = device.port(f"writer {zone_no}", VIRTIO)
        for number in range(1, 400):
            status = port.append(256 * zone_no, 2, [number.to_bytes(2, "big") * 512])[0]
            if status is Status.ZONE_FULL:
                status = port.manage(Operation.RESET, 256 * zone_no)
            if status:
                failures.append((zone_no, number, status))

    def flush() -> None:
        port = device.port("flusher", VIRTIO)
        while not stop.is_set():
            if status := port.flush():
                failures.append((-1, 0, status))

    writers = [threading.Thread(target=write, args=(zone_no,)) for zone_no in range(4)]
    flusher = threading.Thread(target=flush)
    for thread in (*writers, flusher):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    flusher.join()
    assert not failures
    before = (bytes(device.machine.conds), device.machine.wps.tobytes())
    device.close()
    device = ZonedDevice.open(path)
    assert not device.image.recovery
    assert (bytes(device.machine.conds), device.machine.wps.tobytes()) == before
    # 128 appends fill a zone and the next number is lost on the reset: the rest lies at the start of the zone.
    first = 3 * 129 + 1
    port = device.port("reader", VIRTIO)
    for zone_no in range(4):
        assert port.zone(zone_no).wp == 256 * zone_no + 2 * (400 - first)
        for number in range(first, 400):
            buffer = bytearray(1024)
            assert port.read(256 * zone_no + 2 * (number - first), 2, [buffer]) is Status.OK
            assert buffer == number.to_bytes(2, "big") * 512
    device.close()


# -- opening ----------------------------------------------------------------------------------------------------------


def killed(path: Path) -> None:
    """Leave an image at *path* as a killed process does."""
    ZonedDevice.create(path, GEOMETRY, uuid=UUID_OF_TESTS)
    program = (
        "import os, sys; from pathlib import Path; from zonefs_emu.device.device import ZonedDevice;"
        "from zonefs_emu.model.transitions import VIRTIO;"
        "device = ZonedDevice.open(Path(sys.argv[1])); port = device.port('x', VIRTIO);"
        "assert not port.write(8, 2, [b'a' * 1024]); os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", program, str(path)], check=False, env=environment)


def test_a_killed_image_is_read_without_a_change(tmp_path: Path) -> None:
    path = tmp_path / "image"
    killed(path)
    before = path.read_bytes()
    readers = [ZonedDevice.open(path, readonly=True) for _ in range(2)]
    for device in readers:
        port = device.port("reader", VIRTIO)
        assert "every command that it had answered is here" in device.image.recovery
        assert (port.zone(1).cond, port.zone(1).wp) == (Condition.IMP_OPEN, 10)
        buffer = bytearray(1024)
        assert port.read(8, 2, [buffer]) is Status.OK
        assert buffer == b"a" * 1024
        assert port.write(10, 1, [bytes(512)]) is Status.POISONED
        assert port.flush() is Status.OK
    with pytest.raises(ImageBusyError):
        ZonedDevice.open(path)
    for device in readers:
        device.close()
    assert path.read_bytes() == before
    device = ZonedDevice.open(path)
    assert device.port("writer", VIRTIO).write(10, 1, [bytes(512)]) is Status.OK
    device.close()


def test_unknown_features_that_allow_reading() -> None:
    memory = fresh_memory()
    World(MemoryBacking(memory)).run("w1:1 Q")
    header = replace(plan_header(GEOMETRY, uuid=UUID_OF_TESTS), read_only_compatible=4, compatible=1)
    for copy in (0, 1):
        offset = header.section(SectionKind.HEADER, copy).offset
        memory[offset : offset + 4096] = encode_header(header, copy)
    with pytest.raises(UnsupportedVersionError, match="features 0x4 that this program does not know: it can only be"):
        Image.load(MemoryBacking(memory), len(memory), BOOT)
    assert Image.load(MemoryBacking(memory), len(memory), BOOT, readonly=True).wps[1] == 1


# -- space and size ---------------------------------------------------------------------------------------------------


def test_reset_gives_the_space_back(tmp_path: Path) -> None:
    path = tmp_path / "image"
    ZonedDevice.create(path, Geometry(size=8 * MIB, zone_size=MIB, zone_capacity=MIB), uuid=UUID_OF_TESTS)
    device = ZonedDevice.open(path)
    port = device.port("test", VIRTIO)
    empty = path.stat().st_blocks
    for zone_no in range(4):
        assert port.write(zone_no * MIB, MIB, [bytes([zone_no + 1]) * (1 << 20)]) is Status.OK
    assert port.flush() is Status.OK
    assert path.stat().st_blocks >= empty + 4 * MIB
    assert port.manage(Operation.RESET, 0, 3) is Status.OK
    assert port.flush() is Status.OK
    assert path.stat().st_blocks < empty + MIB + 256
    buffer = bytearray(1 << 20)
    assert port.read(3 * MIB, MIB, [buffer]) is Status.OK
    assert buffer == bytes([4]) * (1 << 20)
    device.close()


def test_what_a_sparse_copy_lost_is_reserved_again(tmp_path: Path) -> None:
    path, copied = tmp_path / "image", tmp_path / "copy"
    ZonedDevice.create(path, GEOMETRY, uuid=UUID_OF_TESTS)
    copied.touch()
    os.truncate(copied, path.stat().st_size)
    with path.open("rb") as source, copied.open("r+b") as target:
        while block := source.read(4096):
            if any(block):
                target.seek(source.tell() - len(block))
                target.write(block)
    before = copied.stat().st_blocks
    device = ZonedDevice.open(copied)
    assert copied.stat().st_blocks >= before + sum(length for _, length in device.image.header.reserved) // 512 * 0.8
    device.close()


@pytest.mark.slow
def test_a_million_zones(tmp_path: Path) -> None:
    """Creating runs no Python for each zone, opening five lines; less than 200 MB; a flush writes as little as ever.

    How long that takes is measured by the benchmark (bench/scale.py).
    """
    program = """
import json, sys
from pathlib import Path
from uuid import UUID
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO
path = Path(sys.argv[1])
nr_lines = 0
def trace(frame, event, arg):
    global nr_lines
    nr_lines += event == "line"
    return trace
def lines(command):
    global nr_lines
    nr_lines = 0
    sys.settrace(trace)
    result = command()
    sys.settrace(None)
    return result, nr_lines
geometry = Geometry(size=1 << 31, zone_size=1 << 11, zone_capacity=1 << 11)
_, create_lines = lines(lambda: ZonedDevice.create(path, geometry, uuid=UUID(int=1)))
device, open_lines = lines(lambda: ZonedDevice.open(path))
written = []
pwrite = device.image.backing.pwrite
device.image.backing.pwrite = lambda data, offset: (written.append(len(data)), pwrite(data, offset))
port = device.port("test", VIRTIO)
assert not port.write(1 << 30, 8, [bytes(4096)])
assert not port.flush()
assert device.geometry.nr_zones == 1 << 20
# Not getrusage(): its maximum counts what the parent was before exec.
status = Path("/proc/self/status").read_text()
kib = int(status.partition("VmHWM:")[2].split()[0])
json.dump([create_lines, open_lines, kib / 1024, written], sys.stdout)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)  # measures, so nothing else may
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "image")], env=environment, check=True, capture_output=True
    )
    create_lines, open_lines, resident_mib, written = json.loads(done.stdout)
    assert create_lines < (1 << 20) / 32
    assert open_lines < (1 << 20) * 5
    assert resident_mib < 200
    assert written == [512, 512]


def test_an_image_may_be_copied_while_nobody_holds_it(tmp_path: Path) -> None:
    path, copied = tmp_path / "image", tmp_path / "copy"
    killed(path)
    shutil.copy(path, copied)
    device = ZonedDevice.open(copied)
    assert device.port("test", VIRTIO).zone(1).wp == 10
    device.close()


# -- an open that fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [f"{SETUP} Q", SETUP], ids=["stopped", "killed"])
def test_an_open_that_fails_does_not_leave_the_image_in_use(left: str) -> None:
    memory = fresh_memory()
    World(MemoryBacking(memory)).run(left)
    expected = Image.load(MemoryBacking(memory), len(memory), BOOT, readonly=True)
    damaged = HEADER.section(SectionKind.TABLE, 1).offset + 30
    for is_damaged in (False, True):
        counting = FailingBacking(bytearray(memory))
        counting.memory[damaged] ^= 0xFF if is_damaged else 0
        Image.load(counting, len(memory), BOOT)
        for fail_at in range(1, counting.calls + 1):
            backing = FailingBacking(bytearray(memory), fail_at=fail_at)
            backing.memory[damaged] ^= 0xFF if is_damaged else 0
            with pytest.raises(OSError, match="Input/output error"):
                Image.load(backing, len(memory), BOOT)
            after = Image.load(MemoryBacking(bytearray(backing.memory)), len(memory), BOOT, readonly=True)
            assert (after.conds, after.wps) == (expected.conds, expected.wps), fail_at
            # What fails before anything says LIVE leaves the image as it was.
            assert after._state_block.state.mode is Mode.CLEAN or (left == SETUP and fail_at <= 2), fail_at


def test_an_open_that_fails_keeps_no_lock(tmp_path: Path, expect_warning: Callable[[str], None]) -> None:
    """Every function that opening calls raises once; what only observes is switched off by that."""
    expect_warning("switched off")
    path = tmp_path / "a.img"
    ZonedDevice.create(path, GEOMETRY, uuid=UUID_OF_TESTS)
    functions: dict[CodeType, int] = {}

    def called(frame: FrameType, event: str, _argument: object) -> None:
        # A generator that is closed runs too, and Python ignores what it raises then.
        is_generator = frame.f_code.co_flags & inspect.CO_GENERATOR
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE) and not is_generator:
            functions[frame.f_code] = functions.get(frame.f_code, 0) + 1

    def traced(trace: Callable[[FrameType, str, object], None]) -> None:
        with tracing.traced(trace):
            device = ZonedDevice.open(path)
        device.close()

    traced(called)
    assert len(functions) > 40
    kept = []
    for code, count in list(functions.items()):
        for nth in sorted({1, count}):
            left = nth

            def raising(frame: FrameType, event: str, _argument: object, code: CodeType = code) -> None:
                nonlocal left
                if event == "call" and frame.f_code is code:
                    left -= 1
                    if not left:
                        raise PlantedError

            try:
                traced(raising)
            except PlantedError as error:
                kept.append(error)  # and with it every frame, and what lives in them
            image = Image.open(path, readonly=True)
            assert image._state_block.state.mode is Mode.CLEAN, code.co_qualname
            image.close()
    assert len(kept) > 40


class PlantedError(Exception):
    """No exception of the project's."""


# -- what is stored ---------------------------------------------------------------------------------------------------


def test_a_fresh_image_is_a_stopped_one_of_the_first_generation() -> None:
    memory = fresh_memory()
    for copy in (0, 1):
        block = memory[HEADER.section(SectionKind.STATE, copy).offset :][:BLOCK_BYTES]
        state = decode_state(bytes(block), HEADER.seed, offset=0)
        assert (state.generation, state.mode, state.epoch, state.journal_seq) == (1, Mode.CLEAN, 1, 0)


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("program", ["w2:1 f w2:1", "w2:1 Q"])
def test_either_state_block_says_how_the_image_was_left(program: str, copy: int) -> None:
    memory = set_up()
    World(MemoryBacking(memory)).run(program)
    expected = World(MemoryBacking(bytearray(memory))).snapshot()
    at = HEADER.section(SectionKind.STATE, copy).offset
    memory[at : at + BLOCK_BYTES] = bytes(BLOCK_BYTES)
    again = World(MemoryBacking(memory))
    assert again.snapshot() == expected
    assert bool(again.image.recovery) is ("Q" not in program)


@pytest.mark.parametrize(
    ("zone_no", "cond", "wp"), [(0, Condition.EMPTY, 0), (1, Condition.EMPTY, 1), (1, Condition.CLOSED, 7)]
)
def test_a_table_of_zones_that_cannot_be_is_refused(zone_no: int, cond: Condition, wp: int) -> None:
    """Its checksum is good, so it was not damaged by accident."""
    conds, wps = fresh_zones(GEOMETRY)
    conds[zone_no], wps[zone_no] = cond, wp
    memory = bytearray(HEADER.file_bytes)
    initialize(MemoryBacking(memory), HEADER, pack_words(conds, wps))
    with pytest.raises(CorruptImageError, match="checkpoint"):
        World(MemoryBacking(memory))


def open_file(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except FileNotFoundError:  # of the listing itself
        return ""


def test_an_image_that_cannot_be_created_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    path = tmp_path / "a.img"
    monkeypatch.setattr(FileBacking, "sync_name", full)
    with pytest.raises(OSError, match="full"):
        create_image(path, GEOMETRY, uuid=UUID_OF_TESTS)
    assert not path.exists()
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if str(path) in open_file(fd)]


def test_many_zones_that_were_reset_may_all_be_written_after_one_flush() -> None:
    geometry = Geometry(size=2 * 3 * PORTION_ZONES, zone_size=2, zone_capacity=2)
    memory = fresh_memory(geometry)
    world = World(MemoryBacking(memory))
    device = world.device
    for zone_no in range(geometry.nr_zones):
        assert world.port.write(2 * zone_no, 1, [bytes(512)]) is Status.OK
    assert world.port.manage_all(Operation.RESET) is Status.OK
    assert all(device.image.has_pending_reset(zone_no) for zone_no in (0, PORTION_ZONES, geometry.nr_zones - 1))
    assert world.port.flush() is Status.OK
    assert not any(device.image.has_pending_reset(zone_no) for zone_no in range(geometry.nr_zones))


# -- what those above and beside rely on -------------------------------------------------------------------------------


def test_readers_share_an_image_unless_one_wants_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    create_image(path, GEOMETRY, uuid=UUID_OF_TESTS)
    first = Image.open(path, readonly=True)
    second = Image.open(path, readonly=True)
    with pytest.raises(ImageBusyError):
        Image.open(path, readonly=True, alone=True)
    first.close()
    second.close()
    Image.open(path, readonly=True, alone=True).close()


def test_a_big_endian_host_is_refused_before_the_file_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zonefs_emu.persist.metadata.sys.byteorder", "big")
    with pytest.raises(ImageError, match="need a little-endian host"):
        Image.open(tmp_path / "none.img")


def test_the_error_of_an_image_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(b"no image" * 100_000)
    with pytest.raises(ImageError) as raised:
        Image.open(path)
    assert raised.value.path == str(path)


def test_the_stages_of_a_checkpoint_and_the_end_are_told_with_the_lock_or_without_it() -> None:
    world = World(MemoryBacking(fresh_memory()))
    image = world.image
    told: list[tuple[object, bool]] = []
    image.checkpoint_listener = lambda stage: told.append((stage, image.lock.locked()))
    image.before_closing = lambda: told.append((image.poison, image.lock.locked()))
    world.run("w1:1 f")
    stages = [(Stage.BEGUN, True), (Stage.CAPTURED, False), (Stage.DURABLE, False)]
    assert told == stages
    told.clear()
    world.run("w1:1 Q")
    assert told == [(None, True), *stages], "changes are still allowed then"


@pytest.mark.parametrize("fills_the_journal", [False, True])
def test_a_full_journal_and_a_record_keep_the_same_states(*, fills_the_journal: bool) -> None:
    """Attributes too; a few zones have changed when the journal is full."""
    geometry = replace(GEOMETRY, extension_bytes=64)
    memory = fresh_memory(geometry)
    image = Image.load(MemoryBacking(memory), len(memory), BOOT)
    for nr_done in itertools.count():
        if image._checkpoint.epoch == 2 if fills_the_journal else nr_done == 2:
            break
        image.conds[1], image.wps[1], image.attributes[1] = Condition.CLOSED, nr_done % 5, Attribute.EXTENSION
        image.publish(1)
        image.conds[0] = Condition.NOT_WP
        image.publish(0)  # has no state
        image.flush()
    for boot_id in (BOOT, NEXT_BOOT):
        assert Image.load(MemoryBacking(memory), len(memory), boot_id, readonly=True).states == image.states


def test_after_an_interrupted_command_the_next_checkpoint_covers_all_zones() -> None:
    image = World(MemoryBacking(fresh_memory())).image
    image.conds[2], image.wps[2] = Condition.CLOSED, 3
    image.publish(2)
    image.conds[3] = Condition.FULL  # interrupted before it was published
    states = image.published()
    assert (states.conds[2], states.wps[2], states.conds[3]) == (Condition.CLOSED, 3, Condition.EMPTY)
    assert image._checkpoint.epoch == 1
    image.flush()
    assert image._checkpoint.epoch == 2


def test_after_a_failed_write_the_live_table_is_believed() -> None:
    memory = fresh_memory(replace(GEOMETRY, extension_bytes=64))
    world = World(MemoryBacking(memory))
    world.run("w1:2 f w1:1")
    world.image.fail(OSError(errno.EIO, "Input/output error"), "data could not be written")
    before = bytes(memory)
    refusing: list[Callable[[], None]] = [
        lambda: world.image.save_faults(b"text", durably=True),
        lambda: world.image.save_extension(2, bytes(64)),
        world.image.flush,
    ]
    for refused in refusing:
        with pytest.raises(PoisonedError, match="data could not be written"):
            refused()
    assert memory == before
    image = Image.load(MemoryBacking(memory), len(memory), BOOT)
    assert image.wps[1] == 3
    assert image.recovery.endswith("every command that it had answered is here")


def test_after_a_failure_to_give_space_back_the_live_table_is_believed() -> None:
    memory = fresh_memory()
    backing = PunchFails(memory)
    world = World(backing)
    world.run("w1:2 f r1 w2:3")
    backing.fails = True
    assert world.step("f") is Status.IO_ERROR
    image = Image.load(MemoryBacking(memory), len(memory), BOOT)
    assert (image.wps[2], image.recovery.endswith("every command that it had answered is here")) == (3, True)


@pytest.mark.parametrize("kind", [SectionKind.TABLE, SectionKind.JOURNAL])
@pytest.mark.parametrize("copy", [0, 1])
def test_opening_writes_a_new_table_if_one_copy_is_damaged(kind: SectionKind, copy: int) -> None:
    memory = fresh_memory()
    World(MemoryBacking(memory)).run("w1:2 f Q")
    memory[HEADER.section(kind, copy).offset + 30] ^= 0xFF
    world = World(MemoryBacking(memory))
    assert world.image._checkpoint.epoch == 2
    world.run("Q")
    assert World(MemoryBacking(memory)).image._checkpoint.epoch == 2


def test_an_image_that_is_only_read_is_not_looked_after() -> None:
    memory = fresh_memory()
    image = Image.load(MemoryBacking(memory), len(memory), BOOT, readonly=True)
    for copy in (0, 1):
        memory[HEADER.section(SectionKind.HEADER, copy).offset + 8] ^= 1
    image.look_after()
    assert not image.is_lost


def test_the_version_of_the_faults_is_kept_with_them() -> None:
    memory = fresh_memory()
    image = World(MemoryBacking(memory)).image
    image.faults_version = 5
    image.save_faults(b"text", durably=True)
    again = Image.load(MemoryBacking(memory), len(memory), BOOT, readonly=True)
    assert (again.load_faults(), again.faults_version) == (b"text", 5)
