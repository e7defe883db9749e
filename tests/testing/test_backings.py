"""The doubles themselves: a crash backing that forgot a state would make every crash test worthless."""

import itertools
import random

import pytest

from zonefs_emu.testing.backings import CrashBacking, EventKind, FailingBacking, MemoryBacking

SECTOR = 512


def contents(backing: CrashBacking, *, limit: int = 1 << 12) -> list[tuple[int, str]]:
    """(position, the first letter of each sector) of all power cuts."""
    return [
        (cut.position, "".join(chr(cut.content[at] or ord(".")) for at in range(0, len(cut.content), SECTOR)))
        for cut in backing.power_cuts(random.Random(1), limit=limit)
    ]


def test_memory_backing() -> None:
    memory = bytearray(3 * 4096)
    backing = MemoryBacking(memory)
    assert backing.pwritev([b"ab", b"c"], 4096) == 3
    buffers = [bytearray(2), bytearray(3)]
    assert backing.preadv(buffers, 4096) == 5
    assert buffers == [b"ab", b"c\0\0"]
    assert backing.preadv([bytearray(9)], backing.length - 4) == 4
    assert list(backing.extents(0, 3 * 4096)) == [(4096, 4096)]
    assert list(backing.extents(4096 + 1, 3 * 4096)) == [(4097, 4096)]
    assert list(backing.extents(2 * 4096, 3 * 4096)) == []
    view = backing.map(4096, 2)
    view[0] = 0x7A
    assert backing.pread(2, 4096) == b"zb"
    backing.reserve(0, 4096)
    backing.punch(4096, 4096)
    assert not any(memory)
    view.release()
    backing.close()
    assert backing.is_closed


def test_a_write_beyond_the_end_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        MemoryBacking(bytearray(512)).pwrite(b"x" * 513, 0)


def test_unsynced_sectors_are_kept_or_lost_in_any_combination() -> None:
    backing = CrashBacking(bytearray(b"." * 4 * SECTOR))
    backing.pwrite(b"a" * 2 * SECTOR, 0)
    backing.sync()
    backing.pwrite(b"b" * 2 * SECTOR, SECTOR)
    backing.pwrite(b"c" * SECTOR, 3 * SECTOR)
    assert [event.kind for event in backing.events] == [
        EventKind.WRITE,
        EventKind.SYNC,
        EventKind.WRITE,
        EventKind.WRITE,
    ]
    expected_before = {(1, "".join(pair) + "..") for pair in itertools.product("a.", repeat=2)}
    expected_after = {(4, f"a{x}{y}{z}") for x, y, z in itertools.product("ba", "b.", "c.")}
    assert set(contents(backing)) == expected_before | expected_after
    assert len(contents(backing)) == 4 + 8
    assert backing.memory == b"a" * SECTOR + b"b" * 2 * SECTOR + b"c" * SECTOR


def test_a_write_that_lies_across_sectors_is_torn_between_them() -> None:
    backing = CrashBacking(bytearray(b"." * 2 * SECTOR))
    backing.pwrite(b"xy", SECTOR - 1)
    found = {bytes(cut.content[SECTOR - 1 : SECTOR + 1]) for cut in backing.power_cuts(random.Random(1), limit=100)}
    assert found == {b"..", b"x.", b".y", b"xy"}


def test_later_writes_win_and_punches_are_writes_of_zeros() -> None:
    backing = CrashBacking(bytearray(b"." * SECTOR))
    backing.pwrite(b"a" * SECTOR, 0)
    backing.pwrite(b"b" * SECTOR, 0)
    assert {state for _, state in contents(backing)} == {".", "a", "b"}
    backing.sync()
    backing.punch(0, SECTOR)
    cuts = [
        cut.content[0] for cut in backing.power_cuts(random.Random(1), limit=10) if cut.position == backing.position
    ]
    assert cuts == [ord("b"), 0]


def test_nothing_pending_is_one_state() -> None:
    backing = CrashBacking(bytearray(b"x" * SECTOR))
    backing.sync()
    backing.sync()
    assert contents(backing) == [(0, "x"), (1, "x"), (2, "x")]


def test_where_there_are_too_many_sets_the_extremes_are_among_those_drawn() -> None:
    backing = CrashBacking(bytearray(b"." * 40 * SECTOR))
    backing.pwrite(b"a" * 40 * SECTOR, 0)
    found = [state for _, state in contents(backing, limit=300)]
    assert len(found) == len(set(found)) == 300
    assert {"." * 40, "a" * 40} <= set(found)
    for bit in range(40):
        alone = "." * bit + "a" + "." * (39 - bit)
        assert alone in found
        assert alone.translate({ord("."): "a", ord("a"): "."}) in found
        assert "a" * bit + "." * (40 - bit) in found
    again = [state for _, state in contents(backing, limit=300)]
    assert again == found


def test_mapped_stores_are_not_what_a_power_cut_leaves() -> None:
    backing = CrashBacking(bytearray(SECTOR))
    backing.map(0, 8)[0] = 1
    assert [cut.content[0] for cut in backing.power_cuts(random.Random(1), limit=4)] == [0]
    assert backing.memory[0] == 1


def test_failing_backing_fails_at_one_call_or_from_it_on() -> None:
    memory = bytearray(8 * SECTOR)
    backing = FailingBacking(memory, fail_at=2, errno=28)
    backing.pwrite(b"a" * SECTOR, 0)
    with pytest.raises(OSError, match="No space left on device"):
        backing.pwritev([b"b" * 3 * SECTOR], SECTOR)
    # The first half, in whole sectors.
    assert memory[: 4 * SECTOR] == b"a" * SECTOR + b"b" * SECTOR + bytes(2 * SECTOR)
    backing.sync()
    backing.punch(0, SECTOR)
    assert (backing.calls, backing.failed) == (4, ["write"])
    lasting = FailingBacking(memory, fail_at=1, lasting=True)
    for fails in (lasting.sync, lambda: lasting.punch(0, SECTOR), lambda: lasting.pwrite(b"x", 0)):
        with pytest.raises(OSError, match="Input/output error"):
            fails()
    assert lasting.failed == ["sync", "punch", "write"]
    never = FailingBacking(memory)
    never.sync()
    assert not never.failed


def test_a_resize_is_durable_at_once() -> None:
    backing = CrashBacking(bytearray(b"." * 2 * SECTOR))
    backing.pwrite(b"a" * SECTOR, 0)
    backing.sync()
    backing.resize(SECTOR)
    backing.pwrite(b"b" * SECTOR, 0)
    backing.sync()
    backing.resize(2 * SECTOR)
    assert set(contents(backing)) == {(1, ".."), (1, "a."), (2, "a."), (4, "a"), (4, "b"), (5, "b"), (6, "b.")}
