"""The tables of the dialects against tables written by hand, and the page that is generated from them."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.model.cells import ALL_CELLS, CELLS, Cell
from zonefs_emu.model.transitions import (
    DIALECTS,
    MANAGEMENT,
    VIRTIO,
    ZBC,
    ZNS,
    ZONE_OPERATIONS,
    Operation,
    after_power_cycle,
    after_write,
)
from zonefs_emu.model.zone import Condition

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
    assert by_hand == {(d.name, op, cond) for d in DIALECTS for op in ZONE_OPERATIONS for cond in Condition}
    assert len(by_hand) == len(CELLS) == 3 * 7 * 8
    in_code = [(d.name, op, cond) for d in DIALECTS for op, row in d.table.items() for cond in row]
    assert sorted(in_code) == sorted(by_hand)
    assert {(cell.dialect.name, cell.operation) for cell in ALL_CELLS} == {
        (d.name, op) for d in DIALECTS for op in d.all_zones
    }


def test_what_differs_beside_the_cells() -> None:
    assert [d.name for d in DIALECTS] == ["virtio", "zbc", "zns"]
    assert {d.name: d.read_across for d in DIALECTS} == {"virtio": False, "zbc": True, "zns": True}
    assert {d.name: d.finish_needs_open for d in DIALECTS} == {"virtio": False, "zbc": True, "zns": False}
    assert VIRTIO.closed_at_start == ZBC.closed_at_start == Condition.EMPTY
    assert ZNS.closed_at_start == Condition.CLOSED


def test_a_dialect_is_shown_by_its_name() -> None:
    """In a message of a failed test its tables would fill the screen."""
    assert repr(ZBC) == "Dialect(name='zbc')"


def test_a_write_to_an_open_zone_leaves_it_so_in_every_dialect() -> None:
    """The machine's short cut for such writes asks no table."""
    for dialect in DIALECTS:
        for operation in (Operation.WRITE, Operation.APPEND):
            for cond in (Condition.IMP_OPEN, Condition.EXP_OPEN):
                assert dialect.table[operation][cond] == cond


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
