"""The tables of the dialects against tables written by hand, and the page that is generated from them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from tests.model.cells import ALL_CELLS, CELLS, Cell
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import (
    DIALECTS,
    MANAGEMENT,
    SET_COND,
    VIRTIO,
    ZBC,
    ZNS,
    ZONE_OPERATIONS,
    Dialect,
    Operation,
    after_close,
    after_power_cycle,
    after_set_cond,
    after_write,
    flushed_by_write,
)
from zonefs_emu.model.zone import OPEN_CONDITIONS, Condition, ZoneType

ROOT: Final = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(cell: Cell) -> None:
    outcome = cell.dialect.table[cell.operation][cell.cond]
    assert (type(outcome), outcome) == (type(cell.outcome), cell.outcome)


@pytest.mark.parametrize("cell", ALL_CELLS, ids=str)
def test_cell_of_the_all_forms(cell: Cell) -> None:
    row = cell.dialect.all_zones[cell.operation]
    assert row.get(cell.cond, cell.cond) == cell.outcome
    # What is not changed has no entry: a machine that looks for zones to change must not find those that need none.
    assert row.get(cell.cond) != cell.cond


def test_the_tables_by_hand_and_those_of_the_code_are_total() -> None:
    by_hand = {(cell.dialect.name, cell.operation, cell.cond) for cell in CELLS}
    expected = {(d.name, op, cond) for d in DIALECTS for op in ZONE_OPERATIONS for cond in Condition}
    own = (Operation.SET_EXTENSION, Operation.ALLOCATE_ZRWA, Operation.FLUSH_ZRWA)
    assert by_hand == expected | {("zns", op, cond) for op in own for cond in Condition}
    assert len(by_hand) == len(CELLS) == (3 * 7 + 3) * 8
    in_code = [(d.name, op, cond) for d in DIALECTS for op, row in d.table.items() for cond in row]
    assert sorted(in_code) == sorted(by_hand)
    assert {(cell.dialect.name, cell.operation) for cell in ALL_CELLS} == {
        (d.name, op) for d in DIALECTS for op in d.all_zones
    }


def test_what_differs_beside_the_cells() -> None:
    assert [d.name for d in DIALECTS] == ["virtio", "zbc", "zns"]
    assert {d.name: d.read_across for d in DIALECTS} == {"virtio": False, "zbc": True, "zns": True}
    assert {d.name: d.finish_needs_open for d in DIALECTS} == {"virtio": False, "zbc": True, "zns": False}
    assert {d.name: d.has_zrwa for d in DIALECTS} == {"virtio": False, "zbc": False, "zns": True}
    assert VIRTIO.closed_at_start == ZBC.closed_at_start == Condition.EMPTY
    assert ZNS.closed_at_start == Condition.CLOSED


def test_a_dialect_is_shown_by_its_name() -> None:
    """In a message of a failed test its tables would fill the screen."""
    assert repr(ZBC) == "Dialect(name='zbc')"


def test_a_write_to_an_open_zone_leaves_it_so_in_every_dialect() -> None:
    """So the machine's short way, which only moves the write pointer, serves all of them."""
    for dialect in DIALECTS:
        assert dialect.on_write.keeps_open == dialect.on_append.keeps_open == OPEN_CONDITIONS
        assert dialect.readable == set(Condition) - {Condition.OFFLINE}


def with_cell(operation: Operation, cond: Condition, outcome: Condition | Status) -> Dialect:
    row = MappingProxyType({**VIRTIO.table[operation], cond: outcome})
    return replace(VIRTIO, table=MappingProxyType({**VIRTIO.table, operation: row}))


@pytest.mark.parametrize(
    ("operation", "cond", "outcome"),
    [
        ("READ", "EMPTY", "IMP_OPEN"),  # a read changes nothing
        ("WRITE", "EMPTY", "CLOSED"),  # a written zone is open
        ("WRITE", "EMPTY", "FULL"),  # the capacity decides that
        ("APPEND", "NOT_WP", "NOT_WP"),  # there is no write pointer
        ("APPEND", "FULL", "EMPTY"),
        ("OPEN", "EMPTY", "NOT_WP"),  # the type of a zone never changes
        ("RESET", "NOT_WP", "EMPTY"),
    ],
)
def test_a_cell_that_leads_where_its_operation_cannot_lead(operation: str, cond: str, outcome: str) -> None:
    with pytest.raises(ValueError, match=f"{operation} of a zone in {cond} cannot lead to {outcome}"):
        with_cell(Operation[operation], Condition[cond], Condition[outcome])
    with_cell(Operation[operation], Condition[cond], Status.BAD_TRANSITION)
    # A condition and a status of the same number are not taken for each other.
    with pytest.raises(ValueError, match=r"cannot lead to OK"):
        with_cell(Operation.RESET, Condition.NOT_WP, Status.OK)


#: What setting a condition by hand gives, whatever the zone's condition was: (asked for, sequential, conventional).
BY_HAND: Final = """
NOT_WP    CONVENTIONAL    NOT_WP
EMPTY     EMPTY           CONVENTIONAL
IMP_OPEN  BAD_TRANSITION  CONVENTIONAL
EXP_OPEN  BAD_TRANSITION  CONVENTIONAL
CLOSED    CLOSED          CONVENTIONAL
READONLY  READONLY        READONLY
FULL      FULL            CONVENTIONAL
OFFLINE   OFFLINE         OFFLINE
"""


def test_conditions_set_by_hand() -> None:
    by_hand = {line.split()[0]: line.split()[1:] for line in BY_HAND.strip().splitlines()}
    assert list(by_hand) == [cond.name for cond in Condition]
    assert list(SET_COND) == [ZoneType.SWR, ZoneType.CONVENTIONAL]
    for asked in Condition:
        for zone_type, expected in zip(SET_COND, by_hand[asked.name], strict=True):
            row = SET_COND[zone_type][asked]
            assert list(row) == list(Condition)
            assert {outcome.name for outcome in row.values()} == {expected}


def test_a_zone_that_is_closed_by_hand_has_data_and_room() -> None:
    for nr_written, outcome in ((0, Status.BAD_TRANSITION), (1, Condition.CLOSED), (7, Condition.CLOSED)):
        assert after_set_cond(Condition.CLOSED, nr_written=nr_written, capacity=8) is outcome
    assert after_set_cond(Condition.CLOSED, nr_written=8, capacity=8) is Status.BAD_TRANSITION
    assert after_set_cond(Condition.EMPTY, nr_written=0, capacity=8) is Condition.EMPTY
    assert after_set_cond(Status.CONVENTIONAL, nr_written=0, capacity=8) is Status.CONVENTIONAL


def test_operations_are_numbered_for_the_log_so_they_never_change() -> None:
    assert [(op.value, op.name) for op in Operation] == [
        (0, "READ"),
        (1, "WRITE"),
        (2, "APPEND"),
        (3, "OPEN"),
        (4, "CLOSE"),
        (5, "FINISH"),
        (6, "RESET"),
        (7, "FLUSH"),
        (8, "SET_COND"),
        (9, "SET_EXTENSION"),
        (10, "ALLOCATE_ZRWA"),
        (11, "FLUSH_ZRWA"),
    ]
    assert [op.name for op in ZONE_OPERATIONS] == ["READ", "WRITE", "APPEND", "OPEN", "CLOSE", "FINISH", "RESET"]
    assert [op.name for op in MANAGEMENT] == ["OPEN", "CLOSE", "FINISH", "RESET"]


@pytest.mark.parametrize(
    ("cond", "with_data", "without"),
    [
        ("NOT_WP", "NOT_WP", "NOT_WP"),
        ("EMPTY", "EMPTY", "EMPTY"),
        ("IMP_OPEN", "CLOSED", "EMPTY"),
        ("EXP_OPEN", "CLOSED", "EMPTY"),
        ("CLOSED", "CLOSED", "EMPTY"),
        ("READONLY", "READONLY", "READONLY"),
        ("FULL", "FULL", "FULL"),
        ("OFFLINE", "OFFLINE", "OFFLINE"),
    ],
)
def test_power_cycle(cond: str, with_data: str, without: str) -> None:
    assert after_power_cycle(Condition[cond], 8).name == with_data
    assert after_power_cycle(Condition[cond], 0).name == without
    # A zone with an attribute is never EMPTY.
    if cond not in {"NOT_WP", "EMPTY"}:
        assert after_power_cycle(Condition[cond], 0, 1).name == with_data


def test_a_zone_without_data_is_closed_as_the_dialect_says_unless_it_has_an_attribute() -> None:
    for dialect in DIALECTS:
        assert after_close(dialect, 0) == dialect.closed_at_start
        assert after_close(dialect, 1) == Condition.CLOSED


def test_a_write_that_reaches_the_capacity_fills_the_zone_unless_it_is_conventional() -> None:
    for cond in (Condition.IMP_OPEN, Condition.EXP_OPEN):
        assert after_write(cond, reached_capacity=True) == Condition.FULL
        assert after_write(cond, reached_capacity=False) == cond
    assert after_write(Condition.NOT_WP, reached_capacity=True) == Condition.NOT_WP


def test_the_page_is_what_the_generator_makes_of_the_tables() -> None:
    command = [sys.executable, str(ROOT / "tools" / "state_machine.py")]
    page = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert (ROOT / "docs" / "state-machine.md").read_text() == page, (
        "run: python tools/state_machine.py > docs/state-machine.md"
    )


@pytest.mark.parametrize(
    ("offset", "end", "moved"),
    [
        (20, 22, 0),
        (28, 36, 0),  # up to the end of the area
        (20, 20, 0),
        (35, 37, 4),  # one sector behind it, a whole granule
        (36, 40, 4),
        (36, 41, 8),
        (20, 52, 16),  # as far as it goes
        (20, 53, Status.ZRWA_WRITE),
        (52, 53, Status.ZRWA_WRITE),
        (19, 22, Status.ZRWA_WRITE),  # what is flushed is written once
    ],
)
def test_what_a_write_flushes_of_an_area(offset: int, end: int, moved: int | Status) -> None:
    found = flushed_by_write(offset, end, wp=20, zrwa_size=16, granularity=4)
    assert (type(found), found) == (type(moved), moved)
