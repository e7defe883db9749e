"""The recovery table, cell by cell."""

from typing import Final

import pytest

from zonefs_emu.fs.io_errors import Finding, Verdict, data_size, judge
from zonefs_emu.fs.options import ErrorPolicy
from zonefs_emu.model.zone import Condition

RO, ZRO, ZOL, REPAIR = ErrorPolicy
CAPACITY: Final = 64
GOOD: Final = Condition.IMP_OPEN

NOTHING_LEFT: Final = Verdict(0, readonly=False, offline=True, lost_mode=0o777, remount_ro=False)


def no_write(size: int) -> Verdict:
    return Verdict(size, readonly=True, offline=False, lost_mode=0o222, remount_ro=False)


def resized(size: int, *, remount_ro: bool = False) -> Verdict:
    return Verdict(size, readonly=False, offline=False, lost_mode=0, remount_ro=remount_ro)


def both(verdict: Verdict) -> Verdict:
    return verdict._replace(remount_ro=True)


# (condition, bytes that the device says are there, failed request was a write) -> outcome by policy; the size was 16
TABLE: Final[list[tuple[Condition, int, bool, dict[ErrorPolicy, Verdict | None]]]] = [
    (GOOD, 16, False, {RO: None, ZRO: None, ZOL: None, REPAIR: None}),
    (GOOD, 32, False, {RO: resized(16, remount_ro=True), ZRO: no_write(16), ZOL: NOTHING_LEFT, REPAIR: resized(32)}),
    (GOOD, 8, False, {RO: resized(8, remount_ro=True), ZRO: no_write(16), ZOL: NOTHING_LEFT, REPAIR: resized(8)}),
    (GOOD, 16, True, {RO: resized(16, remount_ro=True), ZRO: no_write(16), ZOL: NOTHING_LEFT, REPAIR: resized(16)}),
    (GOOD, 32, True, {RO: resized(16, remount_ro=True), ZRO: no_write(16), ZOL: NOTHING_LEFT, REPAIR: resized(32)}),
    (Condition.EMPTY, 0, True, {RO: resized(0, remount_ro=True), ZRO: no_write(16), REPAIR: resized(0)}),
    (Condition.CLOSED, 16, False, dict.fromkeys(ErrorPolicy)),
    (Condition.FULL, 0, False, {RO: resized(16, remount_ro=True), ZRO: no_write(16), REPAIR: resized(CAPACITY)}),
    (
        Condition.READONLY,
        0,
        False,
        {RO: both(no_write(16)), ZRO: no_write(16), ZOL: NOTHING_LEFT._replace(readonly=True), REPAIR: no_write(16)},
    ),
    (
        Condition.OFFLINE,
        0,
        False,
        {RO: both(NOTHING_LEFT), ZRO: NOTHING_LEFT, ZOL: NOTHING_LEFT, REPAIR: NOTHING_LEFT},
    ),
]


@pytest.mark.parametrize(
    ("cond", "written", "write", "policy", "expected"),
    [(cond, written, write, policy, verdict) for cond, written, write, row in TABLE for policy, verdict in row.items()],
)
def test_table(cond: Condition, written: int, write: bool, policy: ErrorPolicy, expected: Verdict | None) -> None:
    finding = Finding(cond, written, CAPACITY, wp_size=16, size=16, readonly=False, offline=False, sequential=True)
    assert judge(finding, policy, write=write) == expected


def test_a_mark_stays_even_if_the_zone_is_good() -> None:
    marked = Finding(GOOD, 16, CAPACITY, wp_size=16, size=16, readonly=True, offline=False, sequential=True)
    assert judge(marked, REPAIR, write=False) == no_write(16)
    assert judge(marked._replace(offline=True, readonly=False), REPAIR, write=False) == NOTHING_LEFT


@pytest.mark.parametrize(
    ("cond", "sequential", "size"),
    [
        (Condition.OFFLINE, True, 0),
        (Condition.OFFLINE, False, 0),
        (Condition.READONLY, True, 8),  # what was known before
        (Condition.READONLY, False, CAPACITY),
        (Condition.FULL, True, CAPACITY),
        (Condition.NOT_WP, False, CAPACITY),
        (Condition.CLOSED, True, 24),
    ],
)
def test_data_size(cond: Condition, sequential: bool, size: int) -> None:
    assert data_size(cond, 24, CAPACITY, 8, sequential=sequential) == size
