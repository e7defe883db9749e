"""Table, journal and state block where the host fails between any two writes: one good copy is left."""

import errno
import os

import pytest

from tests.persist.worlds import GEOMETRY, UUID_OF_TESTS, WIDE_GEOMETRY, fresh_memory
from zonefs_emu.persist.backing import SyncFailedError
from zonefs_emu.persist.checkpoint import Checkpoint, EveryZone, StateBlock
from zonefs_emu.persist.codec.header import SectionKind, plan_header
from zonefs_emu.persist.codec.journal import record_bytes
from zonefs_emu.persist.codec.state import Mode
from zonefs_emu.persist.codec.words import pack_word
from zonefs_emu.persist.metadata import NO_BOOT, read_checkpoint, read_state, read_zones
from zonefs_emu.testing.backings import CrashBacking, EventKind, FailingBacking, MemoryBacking

HEADER = plan_header(GEOMETRY, uuid=UUID_OF_TESTS, label="tests")
BOOT = b"this host's boot"
BEFORE = ([0, 1, 1, 1, 1, 1], [0] * 6)
WORDS = b"".join(pack_word(*zone).to_bytes(8, "little") for zone in [(0, 0), (4, 2), (14, 6), (1, 0), (4, 5), (1, 0)])
AFTER = ([0, 4, 14, 1, 4, 1], [0, 2, 6, 0, 5, 0])


def checkpoint(backing: MemoryBacking) -> Checkpoint:
    return Checkpoint(backing, HEADER, *read_checkpoint(backing, HEADER))


def zones(memory: bytearray) -> tuple[list[int], list[int]]:
    conds, wps, _ = read_zones(MemoryBacking(memory), HEADER)
    return list(conds), list(wps)


def damaged(memory: bytearray, kind: SectionKind, copy: int) -> bytearray:
    changed = bytearray(memory)
    changed[HEADER.section(kind, copy).offset + 30] ^= 0xFF
    return changed


def test_records_follow_each_other_and_are_in_both_copies() -> None:
    memory = fresh_memory()
    written = checkpoint(MemoryBacking(memory))
    written.append([(1, pack_word(4, 2))])
    written.append([(2, pack_word(14, 6)), (4, pack_word(4, 5))])
    assert (written.epoch, written.journal_seq) == (1, 2)
    for copy in (0, 1):
        assert zones(damaged(memory, SectionKind.JOURNAL, copy)) == AFTER
    # Another process continues where this one stopped.
    again = checkpoint(MemoryBacking(memory))
    again.append([(1, pack_word(1, 0))])
    assert zones(memory) == ([0, 1, 14, 1, 4, 1], [0, 0, 6, 0, 5, 0])


def test_a_record_that_could_not_be_synced_is_replaced_by_the_next() -> None:
    memory = fresh_memory()
    backing = FailingBacking(memory, fail_at=3)
    written = checkpoint(backing)
    with pytest.raises(SyncFailedError):
        written.append([(3, pack_word(4, 1))])
    assert written.journal_seq == 0
    written.append([(1, pack_word(4, 2)), (2, pack_word(14, 6)), (4, pack_word(4, 5))])
    assert zones(memory) == AFTER


def test_the_journal_has_room_until_its_last_byte() -> None:
    written = checkpoint(MemoryBacking(fresh_memory()))
    room = HEADER.section(SectionKind.JOURNAL).length
    most = next(count for count in range(room) if record_bytes(count + 1) > room)
    assert written.has_room(most)
    assert not written.has_room(most + 1)
    written.append([])
    assert not written.has_room(most)
    assert written.has_room(most - 512 // 16)
    written.compact(WORDS)
    assert written.has_room(most)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("fail_at", range(1, 5))
def test_a_compaction_that_fails_leaves_one_table_and_can_be_done_again(fail_at: int, code: int) -> None:
    memory = fresh_memory()
    written = checkpoint(FailingBacking(memory, fail_at=fail_at, errno=code))
    with pytest.raises(OSError, match=r"Input/output error|No space left"):
        written.compact(WORDS)
    # The new table counts once its first copy is durable.
    assert zones(memory) in ((BEFORE, AFTER) if fail_at <= 2 else (AFTER,))
    assert written.epoch == (1 if fail_at <= 2 else 2)
    written.compact(WORDS)
    assert (written.epoch, written.journal_seq) == (3, 0)
    for copy in (0, 1):
        assert zones(damaged(memory, SectionKind.TABLE, copy)) == AFTER


def test_the_copy_of_the_table_that_is_whole_is_written_last() -> None:
    for copy in (0, 1):
        memory = damaged(fresh_memory(), SectionKind.TABLE, copy)
        first = HEADER.section(SectionKind.TABLE, copy)
        written = checkpoint(FailingBacking(memory, fail_at=2))
        other = bytes(memory[HEADER.section(SectionKind.TABLE, 1 - copy).offset :][: first.length])
        with pytest.raises(SyncFailedError):
            written.compact(WORDS)
        assert bytes(memory[HEADER.section(SectionKind.TABLE, 1 - copy).offset :][: first.length]) == other


class RefusesAndTears(FailingBacking):
    """The write *refused* is refused as a whole; the one that fails has written its first half, as ever."""

    refused = 0

    def pwrite(self, data: bytes, offset: int) -> None:
        if self.calls + 1 == self.refused:
            self.calls += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().pwrite(data, offset)


@pytest.mark.parametrize("copy", [0, 1])
def test_after_a_compaction_that_stopped_half_way_the_finished_copy_is_overwritten_last(copy: int) -> None:
    """The table has two blocks here, so that a torn copy is half old and half new."""
    header = plan_header(WIDE_GEOMETRY, uuid=UUID_OF_TESTS)
    memory = fresh_memory(WIDE_GEOMETRY)
    memory[header.section(SectionKind.TABLE, copy).offset + 30] ^= 0xFF  # so that this copy is written first
    words = (pack_word(14, 2).to_bytes(8, "little") + pack_word(1, 0).to_bytes(8, "little")) * 300
    backing = RefusesAndTears(memory)
    written = Checkpoint(backing, header, *read_checkpoint(backing, header))
    backing.refused, backing.fail_at = 3, 4
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            written.compact(words)
        assert read_checkpoint(backing, header)[0].words == words
    written.compact(words)
    assert read_checkpoint(backing, header)[0].is_sound


def test_a_repaired_copy_is_whole_without_the_other() -> None:
    memory = fresh_memory()
    checkpoint(MemoryBacking(memory)).compact(WORDS)
    table, journal = read_checkpoint(MemoryBacking(memory), HEADER)
    written = Checkpoint(MemoryBacking(memory), HEADER, table, journal)
    base = HEADER.section(SectionKind.TABLE, 0)
    memory[base.offset + 30] ^= 0xFF
    written.repair(table)
    assert zones(damaged(memory, SectionKind.TABLE, 1)) == AFTER


def test_a_repaired_copy_is_synced() -> None:
    """It is relied on when the other one is overwritten."""
    memory = fresh_memory()
    backing = FailingBacking(memory, fail_at=2)
    written = Checkpoint(backing, HEADER, *read_checkpoint(backing, HEADER))
    with pytest.raises(OSError, match="Input/output error"):
        written.repair(read_checkpoint(backing, HEADER)[0])
    assert backing.calls == 2


def test_the_state_says_who_uses_the_image_and_how_it_was_stopped() -> None:
    memory = fresh_memory()
    backing = MemoryBacking(memory)
    block = StateBlock(backing, HEADER, *read_state(backing, HEADER))
    block.mark_live(BOOT, "a test")
    for copy in (0, 1):
        state, first = read_state(MemoryBacking(damaged(memory, SectionKind.STATE, copy)), HEADER)
        assert (state.mode, state.boot_id, state.owner, state.generation) == (Mode.LIVE, BOOT, "a test", 2)
        assert (first, state.owner_pid > 0) == (copy, True)
    block.distrust_live_table()
    state, _ = read_state(backing, HEADER)
    assert (state.mode, state.boot_id, state.owner) == (Mode.LIVE, NO_BOOT, "a test")
    block.mark_clean(7, 9)
    state, _ = read_state(MemoryBacking(damaged(memory, SectionKind.STATE, 0)), HEADER)
    assert (state.mode, state.epoch, state.journal_seq, state.owner, state.owner_pid) == (Mode.CLEAN, 7, 9, "", 0)


@pytest.mark.parametrize("fail_at", range(1, 4))
def test_a_state_that_could_not_be_written_leaves_a_good_copy(fail_at: int) -> None:
    memory = fresh_memory()
    backing = FailingBacking(memory, fail_at=fail_at)
    block = StateBlock(backing, HEADER, *read_state(backing, HEADER))
    with pytest.raises(OSError, match="Input/output error"):
        block.mark_live(BOOT, "a test")
    assert block.state.mode is Mode.CLEAN
    # Whatever the write that failed did to its copy, the other one is good: it is old, or durable.
    state, _ = read_state(MemoryBacking(damaged(memory, SectionKind.STATE, 1 if fail_at < 3 else 0)), HEADER)
    assert state.mode is (Mode.CLEAN if fail_at < 3 else Mode.LIVE)


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_one_copy_is_enough_to_distrust_the_live_table(fail_at: int) -> None:
    backing = FailingBacking(fresh_memory())
    block = StateBlock(backing, HEADER, *read_state(backing, HEADER))
    block.mark_live(BOOT, "a test")
    failing = FailingBacking(backing.memory, fail_at=fail_at)
    StateBlock(failing, HEADER, *read_state(failing, HEADER)).distrust_live_table()
    assert read_state(failing, HEADER)[0].boot_id == NO_BOOT


def test_each_copy_of_a_state_is_durable_before_the_next_one_is_written() -> None:
    """Without the sync between them, a power cut could tear both."""
    backing = CrashBacking(fresh_memory())
    block = StateBlock(backing, HEADER, *read_state(backing, HEADER))
    block.mark_live(BOOT, "a test")
    writes = [EventKind.WRITE, EventKind.SYNC, EventKind.WRITE]
    assert [event.kind for event in backing.events] == writes
    backing.events.clear()
    block.distrust_live_table()
    assert [event.kind for event in backing.events] == [*writes, EventKind.SYNC]
    assert len({event.offset for event in backing.events if event.kind is EventKind.WRITE}) == 2
    backing.events.clear()
    block.mark_clean(1, 0)
    assert [event.kind for event in backing.events] == [*writes, EventKind.SYNC]


def test_every_zone_is_more_than_any_journal_takes() -> None:
    zones = EveryZone()
    zones.add(1)
    zones.update([2, 3])
    assert record_bytes(len(zones)) > HEADER.section(SectionKind.JOURNAL).length
    assert len(zones) > 1 << 30
