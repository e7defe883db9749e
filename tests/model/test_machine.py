"""The zone machine: every cell on a real machine, limits, ranges, reads, and a comparison with a reference.

What finds most is the comparison at the end: any commands, on any shape, on the machine and on a reference.
"""

import tracemalloc
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import FrameType, MappingProxyType
from typing import Any, Final, TypeAlias

import pytest
from hypothesis import note, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.model.cells import ALL_CELLS, CELLS, Cell
from tests.model.reference import (
    CL,
    CLOSE,
    EM,
    FINISH,
    FU,
    NW,
    OE,
    OI,
    OL,
    OPEN,
    RESET,
    RO,
    Reference,
    RefusedError,
)
from tests.tracing import traced
from zonefs_emu.errors import CommandError, Status
from zonefs_emu.model.geometry import Geometry, merge_runs
from zonefs_emu.model.machine import PORTION_ZONES, Changes, ZoneMachine, fresh_zones
from zonefs_emu.model.transitions import (
    DIALECTS,
    MANAGEMENT,
    SET_COND,
    VIRTIO,
    ZBC,
    ZNS,
    Dialect,
    Operation,
    possible_outcomes,
)
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, OPEN_CONDITIONS, Condition, Zone, ZoneType

#: Six zones of 16 sectors, 12 of them writable; the last has 8; zones 0 and 3 are conventional.
MIXED: Final = Geometry(size=88, zone_size=16, zone_capacity=12, conventional=((0, 1), (3, 1)), max_append=8)
#: Six zones of 16 sectors, all of them sequential and writable in full.
PLAIN: Final = Geometry(size=96, zone_size=16, zone_capacity=16)


def fresh(geometry: Geometry) -> ZoneMachine:
    return ZoneMachine(geometry, *fresh_zones(geometry))


def limited(max_open_zones: int, max_active_zones: int = 0) -> ZoneMachine:
    return fresh(
        Geometry(
            size=96,
            zone_size=16,
            zone_capacity=16,
            max_open_zones=max_open_zones,
            max_active_zones=max_active_zones,
        )
    )


def in_condition(cond: Condition, geometry: Geometry, zone_no: int) -> ZoneMachine:
    """Return a machine whose zone *zone_no* is in *cond*, with 4 sectors written if that means data."""
    conds, wps = fresh_zones(geometry)
    conds[zone_no] = cond
    if cond not in (NW, EM):
        wps[zone_no] = 4
    return ZoneMachine(geometry, conds, wps)


def conds_of(machine: ZoneMachine) -> list[Condition]:
    return [Condition(cond) for cond in machine.conds]


def write(machine: ZoneMachine, sector: int, nr_sectors: int, dialect: Dialect = VIRTIO) -> Changes:
    """Write; returns the zones whose condition changed."""
    nr_moved = machine.begin_write(sector, nr_sectors, dialect)
    assert nr_moved == nr_sectors
    zone_no = sector // machine.geometry.zone_size
    return machine.commit_write(zone_no, nr_moved, dialect.on_write) or Changes()


def append(machine: ZoneMachine, sector: int, nr_sectors: int, dialect: Dialect = VIRTIO) -> tuple[int, Changes]:
    """Append; returns where it landed, and the zones whose condition changed."""
    where = machine.begin_append(sector, nr_sectors, dialect)
    zone_no = where // machine.geometry.zone_size
    return where, machine.commit_write(zone_no, nr_sectors, dialect.on_append) or Changes()


State: TypeAlias = tuple[bytes, tuple[int, ...], int, int, frozenset[int], frozenset[int]]


def state_of(machine: ZoneMachine) -> State:
    return (
        bytes(machine.conds),
        tuple(machine.wps),
        machine.nr_open,
        machine.nr_active,
        frozenset(machine.resources.open_zones),
        frozenset(machine.resources.active_zones),
    )


def refusal(machine: ZoneMachine, command: Callable[[], object]) -> tuple[Status, int]:
    """Run *command*, which must be refused, and return (status, zone_no). RefusedError means untouched."""
    before = state_of(machine)
    with pytest.raises(CommandError) as caught:
        command()
    assert state_of(machine) == before
    return caught.value.status, caught.value.zone_no


# -- every cell -----------------------------------------------------------------------------------------------------


def ask(machine: ZoneMachine, operation: Operation, zone_no: int, dialect: Dialect) -> Changes:
    start = machine.geometry.zone_start(zone_no)
    if operation is Operation.READ:
        machine.check_read(start, 1, dialect)
        return Changes()
    if operation is Operation.WRITE:
        return write(machine, start + machine.wps[zone_no], 1, dialect)
    if operation is Operation.APPEND:
        return append(machine, start, 1, dialect)[1]
    return machine.manage(operation, start, 1, dialect)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(cell: Cell) -> None:
    zone_no = 3 if cell.cond is NW else 2
    machine = in_condition(cell.cond, MIXED, zone_no)
    others = [(cond, wp) for n, (cond, wp) in enumerate(zip(machine.conds, machine.wps, strict=True)) if n != zone_no]

    def command() -> Changes:
        return ask(machine, cell.operation, zone_no, cell.dialect)

    if isinstance(cell.outcome, Status):
        assert refusal(machine, command) == (cell.outcome, zone_no)
        return
    assert command().zones == ([] if cell.outcome == cell.cond else [zone_no])
    assert machine.conds[zone_no] == cell.outcome
    written = 0 if cell.cond in (NW, EM) else 4
    if cell.operation in (Operation.WRITE, Operation.APPEND):
        written += cell.outcome is not NW
    elif cell.outcome is EM:
        written = 0
    assert machine.wps[zone_no] == written
    assert others == [
        (cond, wp) for n, (cond, wp) in enumerate(zip(machine.conds, machine.wps, strict=True)) if n != zone_no
    ]
    assert (machine.nr_open, machine.nr_active) == (
        cell.outcome in OPEN_CONDITIONS,
        cell.outcome in ACTIVE_CONDITIONS,
    )


def changed(dialect: Dialect, operation: Operation, cond: Condition, outcome: Condition | Status) -> Dialect:
    """Return *dialect* with *outcome* in the cell of *operation* and *cond*."""
    row = MappingProxyType({**dialect.table[operation], cond: outcome})
    return replace(dialect, table=MappingProxyType({**dialect.table, operation: row}))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_machine_follows_each_cell_that_is_changed(cell: Cell) -> None:
    """Nothing but the table decides: every outcome that can stand in the cell is what the machine then does."""
    zone_no = 3 if cell.cond is NW else 2
    for outcome in possible_outcomes(cell.operation, cell.cond):
        dialect = changed(cell.dialect, cell.operation, cell.cond, outcome)
        machine = in_condition(cell.cond, MIXED, zone_no)
        if isinstance(outcome, Status):
            assert refusal(machine, partial(ask, machine, cell.operation, zone_no, dialect)) == (outcome, zone_no)
            continue
        # The rule beside the cells: without data a zone closes as the dialect says.
        expected = dialect.closed_at_start if outcome is CL and not machine.wps[zone_no] else outcome
        assert ask(machine, cell.operation, zone_no, dialect).zones == ([] if outcome is cell.cond else [zone_no])
        assert machine.conds[zone_no] == expected
        counted = ZoneMachine(MIXED, machine.conds, machine.wps)
        assert (machine.nr_open, machine.nr_active) == (counted.nr_open, counted.nr_active)


@pytest.mark.parametrize("cell", ALL_CELLS, ids=str)
def test_the_machine_follows_each_cell_of_the_all_forms_that_is_changed(cell: Cell) -> None:
    zone_no = 3 if cell.cond is NW else 2
    targets = [cond for cond in Condition if cond not in (NW, cell.cond)]
    for outcome in () if cell.cond is NW else targets:
        row = MappingProxyType({**cell.dialect.all_zones[cell.operation], cell.cond: outcome})
        dialect = replace(cell.dialect, all_zones={**cell.dialect.all_zones, cell.operation: row})
        machine = in_condition(cell.cond, MIXED, zone_no)
        assert zone_no in machine.manage_all(cell.operation, dialect).changed
        expected = dialect.closed_at_start if outcome is CL and not machine.wps[zone_no] else outcome
        assert machine.conds[zone_no] == expected


@pytest.mark.parametrize("zone_type", SET_COND)
@pytest.mark.parametrize("asked", Condition)
def test_the_machine_follows_each_cell_of_set_cond_that_is_changed(
    zone_type: ZoneType, asked: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    conventional = zone_type is ZoneType.CONVENTIONAL
    zone_no = 3 if conventional else 2
    olds = (NW, RO, OL) if conventional else (EM, OI, OE, CL, RO, FU, OL)
    targets = (NW, RO, OL) if conventional else (EM, CL, RO, FU, OL)
    for old in olds:
        for outcome in (*targets, *(status for status in Status if status)):
            if outcome is CL and old is EM:
                continue  # refused by the rule beside the cells: a closed zone has data
            row = MappingProxyType({**SET_COND[zone_type][asked], old: outcome})
            of_type = MappingProxyType({**SET_COND[zone_type], asked: row})
            monkeypatch.setattr("zonefs_emu.model.machine.SET_COND", MappingProxyType({**SET_COND, zone_type: of_type}))
            machine = in_condition(old, MIXED, zone_no)
            if isinstance(outcome, Status):
                assert refusal(machine, partial(machine.set_cond, zone_no, asked)) == (outcome, zone_no)
            else:
                assert machine.set_cond(zone_no, asked).zones == ([] if outcome is old else [zone_no])
                assert machine.conds[zone_no] == outcome


def test_closing_to_make_room_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zonefs_emu.model.machine.CLOSED_FOR_ROOM", FU)
    machine = limited(1)
    write(machine, 0, 1)
    assert write(machine, 16, 1) == ([0], (1,))
    assert conds_of(machine)[:2] == [FU, OI]


def test_a_changed_cell_needs_the_resources_of_its_target() -> None:
    """Also where another operation than OPEN leads to an open or active condition."""
    machine = limited(1, 1)
    machine.manage(OPEN, 0, 1, VIRTIO)
    for operation in (FINISH, RESET, CLOSE):
        to_open = changed(VIRTIO, operation, EM, OE)
        assert refusal(machine, partial(machine.manage, operation, 16, 1, to_open)) == (Status.ACTIVE_RESOURCE, 1)
        to_closed = replace(changed(VIRTIO, operation, EM, CL), closed_at_start=CL)
        assert refusal(machine, partial(machine.manage, operation, 16, 1, to_closed)) == (Status.ACTIVE_RESOURCE, 1)


@pytest.mark.parametrize("cell", ALL_CELLS, ids=str)
def test_cell_of_the_all_forms(cell: Cell) -> None:
    zone_no = 3 if cell.cond is NW else 2
    machine = in_condition(cell.cond, MIXED, zone_no)
    changes = machine.manage_all(cell.operation, cell.dialect)
    assert changes.zones == ([] if cell.outcome == cell.cond else [zone_no])
    assert machine.conds[zone_no] == cell.outcome
    assert machine.wps[zone_no] == (0 if cell.outcome in (NW, EM) else 4)


@pytest.mark.parametrize(
    ("dialect", "cond"), [(VIRTIO, EM), (ZBC, EM), (ZNS, CL)], ids=lambda x: getattr(x, "name", "")
)
@pytest.mark.parametrize("everything", [False, True], ids=["one", "all"])
def test_closing_an_open_zone_without_data(dialect: Dialect, cond: Condition, everything: bool) -> None:
    machine = fresh(PLAIN)
    machine.manage(OPEN, 16, 1, dialect)
    if everything:
        machine.manage_all(CLOSE, dialect)
    else:
        machine.manage(CLOSE, 16, 1, dialect)
    assert machine.conds[1] == cond
    assert (machine.nr_open, machine.nr_active) == (0, cond is CL)


# -- looking --------------------------------------------------------------------------------------------------------


def test_snapshots() -> None:
    machine = fresh(MIXED)
    write(machine, 32, 5)
    machine.set_cond(3, OL)
    assert [machine.zone(n) for n in range(6)] == [
        Zone(0, 0, 16, 16, 0, NW, ZoneType.CONVENTIONAL),
        Zone(1, 16, 16, 12, 16, EM, ZoneType.SWR),
        Zone(2, 32, 16, 12, 37, OI, ZoneType.SWR),
        Zone(3, 48, 16, 16, 48, OL, ZoneType.CONVENTIONAL),
        Zone(4, 64, 16, 12, 64, EM, ZoneType.SWR),
        Zone(5, 80, 8, 8, 80, EM, ZoneType.SWR),
    ]
    machine.set_cond(4, RO)
    assert machine.zone(4) == Zone(4, 64, 16, 12, 64, RO, ZoneType.SWR)


def test_zones_by_condition() -> None:
    machine = fresh(MIXED)
    machine.set_cond(1, RO)
    assert list(machine.zones_in(frozenset((NW,)))) == [0, 3]
    assert list(machine.zones_in(frozenset((NW, EM)), 2)) == [2, 3, 4, 5]
    assert list(machine.zones_in(frozenset((RO, OL, FU)))) == [1]
    assert list(machine.zones_in(frozenset((EM,)), 6)) == []
    assert list(machine.zones_in(frozenset())) == []
    assert list(machine.zones_in(frozenset(Condition))) == [0, 1, 2, 3, 4, 5]


def test_zones_by_condition_may_change_while_one_looks_at_them() -> None:
    machine = fresh(PLAIN)
    for zone_no in machine.zones_in(frozenset((EM,))):
        write(machine, zone_no * 16, 1)
    assert conds_of(machine) == [OI] * 6


# -- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_reads_within_a_zone(dialect: Dialect) -> None:
    machine = fresh(MIXED)
    write(machine, 16, 5)
    assert machine.check_read(16, 5, dialect) == 5
    assert machine.check_read(18, 2, dialect) == 2
    assert machine.check_read(16, 16, dialect) == 5  # wp, capacity and end of the zone in one read
    assert machine.check_read(20, 4, dialect) == 1
    assert machine.check_read(21, 4, dialect) == 0
    assert machine.check_read(29, 3, dialect) == 0  # between capacity and size
    assert machine.check_read(0, 16, dialect) == 16
    assert machine.check_read(80, 8, dialect) == 0
    assert machine.check_read(87, 1, dialect) == 0
    assert machine.check_read(21, 0, dialect) == 0


def test_a_finished_zone_has_the_data_that_was_written() -> None:
    machine = fresh(PLAIN)
    write(machine, 0, 3)
    machine.manage(FINISH, 0, 1, VIRTIO)
    assert machine.check_read(0, 16, VIRTIO) == 3


def test_a_readonly_zone_has_its_data_and_a_conventional_one_all_of_it() -> None:
    machine = fresh(MIXED)
    write(machine, 16, 5)
    machine.set_cond(1, RO)
    machine.set_cond(3, RO)
    assert machine.check_read(16, 16, VIRTIO) == 5
    assert machine.check_read(48, 16, VIRTIO) == 16
    machine.set_cond(3, OL)
    assert refusal(machine, lambda: machine.check_read(48, 1, VIRTIO)) == (Status.ZONE_OFFLINE, 3)


#: Eight zones of 16, 12 writable: conventional 0, 1, 2; sequential 3 (full), 4 (full), 5 (5 sectors), 6, 7 (runt of 8).
READ_ACROSS: Final = Geometry(size=120, zone_size=16, zone_capacity=12, conventional=((0, 3),))


def machine_to_read() -> ZoneMachine:
    machine = fresh(READ_ACROSS)
    write(machine, 48, 12)
    write(machine, 64, 12)
    write(machine, 80, 5)
    return machine


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_reads_across_conventional_zones(dialect: Dialect) -> None:
    machine = machine_to_read()
    assert machine.check_read(0, 48, dialect) == 48
    assert machine.check_read(15, 2, dialect) == 2
    machine.set_cond(2, RO)
    assert machine.check_read(0, 48, dialect) == 48
    machine.set_cond(1, OL)
    assert refusal(machine, lambda: machine.check_read(0, 48, dialect)) == (Status.ZONE_OFFLINE, 1)


def test_reads_across_sequential_zones_in_virtio() -> None:
    machine = machine_to_read()
    for sector, nr_sectors in ((63, 2), (47, 2), (48, 17), (0, 120)):
        status, zone_no = refusal(machine, lambda s=sector, n=nr_sectors: machine.check_read(s, n, VIRTIO))  # type: ignore[misc]
        assert (status, zone_no) == (Status.READ_BOUNDARY, sector // 16)
    machine.set_cond(3, OL)
    assert refusal(machine, lambda: machine.check_read(47, 2, VIRTIO)) == (Status.ZONE_OFFLINE, 3)


@pytest.mark.parametrize("dialect", [ZBC, ZNS], ids=lambda d: d.name)
def test_reads_across_sequential_zones_in_zbc_and_zns(dialect: Dialect) -> None:
    machine = machine_to_read()
    assert machine.check_read(63, 2, dialect) == -1  # the gap of zone 3, then data
    assert machine.check_read(0, 120, dialect) == -1
    assert machine.check_read(0, 49, dialect) == 49  # conventional and the written part of zone 3
    assert machine.check_read(100, 20, dialect) == -1
    machine.set_cond(4, OL)
    assert refusal(machine, lambda: machine.check_read(63, 2, dialect)) == (Status.ZONE_OFFLINE, 4)
    assert machine.check_read(48, 16, dialect) == 12


@pytest.mark.parametrize("dialect", [ZBC, ZNS], ids=lambda d: d.name)
def test_reads_across_full_zones_are_one_piece(dialect: Dialect) -> None:
    machine = fresh(PLAIN)
    write(machine, 0, 16)
    write(machine, 16, 16)
    write(machine, 32, 7)
    assert machine.check_read(0, 39, dialect) == 39
    assert machine.check_read(0, 40, dialect) == -1


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
@pytest.mark.parametrize(
    ("sector", "nr_sectors"),
    [(-1, 1), (0, -1), (96, 0), (96, 1), (95, 2), (0, 97), (1 << 64, 1), (0, 1 << 64), (-(1 << 64), 1), (-1, -1)],
)
def test_what_is_beyond_the_device(dialect: Dialect, sector: int, nr_sectors: int) -> None:
    machine = fresh(PLAIN)
    machine.manage(OPEN, 0, 6, dialect)  # so that the short cut of begin_write is in reach
    refused = (Status.OUT_OF_RANGE, -1)
    assert refusal(machine, lambda: machine.check_read(sector, nr_sectors, dialect)) == refused
    assert refusal(machine, lambda: machine.begin_write(sector, nr_sectors, dialect)) == refused


# -- writing --------------------------------------------------------------------------------------------------------


def test_a_write_opens_and_the_last_one_fills() -> None:
    machine = fresh(MIXED)
    assert write(machine, 16, 4).zones == [1]
    assert (machine.conds[1], machine.wps[1]) == (OI, 4)
    assert write(machine, 20, 7).zones == []
    assert (machine.conds[1], machine.wps[1], machine.nr_open, machine.nr_active) == (OI, 11, 1, 1)
    assert write(machine, 27, 1).zones == [1]
    assert (machine.conds[1], machine.wps[1], machine.nr_open, machine.nr_active) == (FU, 12, 0, 0)


@pytest.mark.parametrize("zone_no", [1, 5])
@pytest.mark.parametrize("explicit", [False, True], ids=["implicit", "explicit"])
def test_one_write_may_fill_a_zone(zone_no: int, explicit: bool) -> None:
    machine = fresh(MIXED)
    if explicit:
        machine.manage(OPEN, zone_no * 16, 1, VIRTIO)
    write(machine, zone_no * 16, MIXED.zone_cap(zone_no))
    assert machine.conds[zone_no] == FU
    assert (machine.nr_open, machine.nr_active) == (0, 0)


def test_beginning_a_write_changes_nothing() -> None:
    machine = fresh(PLAIN)
    before = state_of(machine)
    machine.begin_write(0, 4, VIRTIO)
    machine.begin_append(16, 4, VIRTIO)
    assert state_of(machine) == before
    machine = limited(1)
    write(machine, 32, 1)
    before = state_of(machine)
    machine.begin_write(0, 4, VIRTIO)  # will close zone 2, but not yet
    machine.begin_append(16, 4, VIRTIO)
    assert state_of(machine) == before


@pytest.mark.parametrize("zone_no", [1, 5])
@pytest.mark.parametrize("cond", [EM, OI, OE, CL])
def test_no_write_passes_the_capacity(zone_no: int, cond: Condition) -> None:
    """In a zone that is smaller than its size, and in a runt."""
    machine = in_condition(cond, MIXED, zone_no)
    wp = zone_no * 16 + machine.wps[zone_no]
    room = MIXED.zone_cap(zone_no) - machine.wps[zone_no]
    assert refusal(machine, lambda: machine.begin_append(zone_no * 16, room + 1, VIRTIO))[0] in (
        Status.ZONE_BOUNDARY,
        Status.APPEND_LIMIT,
    )
    beyond = Status.ZONE_BOUNDARY if zone_no == 1 else Status.OUT_OF_RANGE
    assert refusal(machine, lambda: machine.begin_write(wp, room + 1, VIRTIO))[0] == beyond
    write(machine, wp, room)
    assert machine.conds[zone_no] == FU


def test_the_order_in_which_the_rules_of_a_write_are_looked_at() -> None:
    """One after the other is taken away from a request that breaks them all."""
    machine = fresh(
        Geometry(
            size=160,
            zone_size=32,
            zone_capacity=24,
            write_granularity=4,
            max_open_zones=1,
            max_active_zones=1,
            max_append=8,
        )
    )
    machine.manage(OPEN, 0, 1, VIRTIO)
    machine.set_cond(4, RO)

    def why(sector: int, nr_sectors: int) -> Status:
        return refusal(machine, lambda: machine.begin_write(sector, nr_sectors, VIRTIO))[0]

    assert why(159, 50) == Status.OUT_OF_RANGE
    assert why(158, 1) == Status.ZONE_READONLY
    machine.set_cond(4, FU)
    assert why(158, 1) == Status.ZONE_FULL
    machine.set_cond(4, EM)
    assert why(151, 3) == Status.ZONE_BOUNDARY
    assert why(132, 4) == Status.UNALIGNED_WP
    assert why(128, 3) == Status.UNALIGNED_WP
    assert why(128, 4) == Status.ACTIVE_RESOURCE

    machine = limited(1)
    machine.manage(OPEN, 0, 1, VIRTIO)
    assert refusal(machine, lambda: machine.begin_write(16, 4, VIRTIO)) == (Status.OPEN_RESOURCE, 1)


def test_the_granularity_holds_in_open_zones_too() -> None:
    machine = fresh(Geometry(size=96, zone_size=24, zone_capacity=24, block_size_bytes=4096, max_append=8))
    write(machine, 0, 8)
    for sector, nr_sectors in ((8, 4), (8, 1), (8, 9), (9, 8), (12, 8), (0, 8), (16, 8)):
        status = refusal(machine, lambda s=sector, n=nr_sectors: machine.begin_write(s, n, VIRTIO))[0]  # type: ignore[misc]
        assert status == Status.UNALIGNED_WP, (sector, nr_sectors)
    assert refusal(machine, lambda: machine.begin_write(8, 24, VIRTIO))[0] == Status.ZONE_BOUNDARY
    assert refusal(machine, lambda: machine.begin_append(0, 4, VIRTIO))[0] == Status.UNALIGNED_WP
    write(machine, 8, 16)
    assert machine.conds[0] == FU


def test_conventional_zones_take_whole_blocks_anywhere() -> None:
    geometry = Geometry(
        size=128,
        zone_size=32,
        zone_capacity=32,
        conventional=((0, 3),),
        block_size_bytes=4096,
        write_granularity=16,
        max_append=16,
    )
    machine = fresh(geometry)
    before = state_of(machine)
    for sector, nr_sectors in ((8, 8), (0, 96), (24, 16), (88, 8), (16, 0)):
        write(machine, sector, nr_sectors)
    assert state_of(machine) == before
    for sector, nr_sectors in ((1, 8), (8, 1), (4, 4), (7, 1)):
        status = refusal(machine, lambda s=sector, n=nr_sectors: machine.begin_write(s, n, VIRTIO))  # type: ignore[misc]
        assert status == (Status.UNALIGNED, 0)
        status = refusal(machine, lambda s=sector, n=nr_sectors: machine.check_read(s, n, VIRTIO))  # type: ignore[misc]
        assert status == (Status.UNALIGNED, 0)
    assert refusal(machine, lambda: machine.begin_write(88, 16, VIRTIO)) == (Status.ZONE_BOUNDARY, 2)
    machine.set_cond(1, RO)
    assert refusal(machine, lambda: machine.begin_write(0, 96, VIRTIO)) == (Status.ZONE_READONLY, 1)
    assert refusal(machine, lambda: machine.begin_write(32, 8, VIRTIO)) == (Status.ZONE_READONLY, 1)
    machine.set_cond(1, OL)
    assert refusal(machine, lambda: machine.begin_write(0, 96, VIRTIO)) == (Status.ZONE_OFFLINE, 1)
    assert machine.begin_write(0, 32, VIRTIO) == 32


def test_a_write_of_nothing_is_checked_and_opens_nothing() -> None:
    machine = fresh(MIXED)
    before = state_of(machine)
    assert write(machine, 16, 0) == Changes()
    assert append(machine, 16, 0) == (16, Changes())
    assert write(machine, 3, 0) == Changes()
    assert state_of(machine) == before
    assert refusal(machine, lambda: machine.begin_write(17, 0, VIRTIO)) == (Status.UNALIGNED_WP, 1)
    assert refusal(machine, lambda: machine.begin_write(88, 0, VIRTIO)) == (Status.OUT_OF_RANGE, -1)
    machine.set_cond(1, FU)
    assert refusal(machine, lambda: machine.begin_write(16, 0, VIRTIO)) == (Status.ZONE_FULL, 1)
    write(machine, 32, 4)
    before = state_of(machine)
    write(machine, 36, 0)
    assert state_of(machine) == before
    machine = limited(2)
    write(machine, 0, 1)
    write(machine, 16, 1)
    write(machine, 1, 0)  # nor does it make the zone the one that was written last
    write(machine, 32, 1)
    assert conds_of(machine)[:3] == [CL, OI, OI]


def test_appends_land_at_wp_and_are_refused_in_order() -> None:
    machine = fresh(MIXED)
    assert [append(machine, 16, n)[0] for n in (3, 1, 8)] == [16, 19, 20]
    assert machine.conds[1] == FU
    machine.manage(FINISH, 80, 1, VIRTIO)

    def why(sector: int, nr_sectors: int) -> tuple[Status, int]:
        return refusal(machine, lambda: machine.begin_append(sector, nr_sectors, VIRTIO))

    assert why(-16, 1) == (Status.OUT_OF_RANGE, -1)
    assert why(88, 1) == (Status.OUT_OF_RANGE, -1)
    assert why(96, 1) == (Status.OUT_OF_RANGE, -1)
    assert why(32, -1) == (Status.OUT_OF_RANGE, -1)
    assert why(17, 100) == (Status.NOT_ZONE_START, 1)
    assert why(1, 1) == (Status.NOT_ZONE_START, 0)
    assert why(0, 100) == (Status.CONVENTIONAL, 0)
    assert why(16, 100) == (Status.ZONE_FULL, 1)
    assert why(80, 100) == (Status.ZONE_FULL, 5)
    assert why(32, 9) == (Status.APPEND_LIMIT, 2)
    append(machine, 32, 8)
    assert why(32, 5) == (Status.ZONE_BOUNDARY, 2)
    machine.set_cond(5, EM)
    append(machine, 80, 7)
    assert why(80, 2) == (Status.ZONE_BOUNDARY, 5)  # and not OUT_OF_RANGE, as no address was given


# -- limits ---------------------------------------------------------------------------------------------------------


def test_the_least_recently_written_implicitly_open_zone_is_closed() -> None:
    machine = limited(3)
    for zone_no in (0, 1, 2):
        write(machine, zone_no * 16, 1)
    write(machine, 1, 1)  # zone 0 again: now 1 is the oldest
    changes = write(machine, 48, 1)
    assert conds_of(machine) == [OI, CL, OI, OI, EM, EM]
    # The close comes before the open, so that a copy made change by change never has too many open zones.
    assert changes.zones == [1, 3]
    assert list(changes.closed) == [1]
    write(machine, 17, 1)
    assert conds_of(machine) == [OI, OI, CL, OI, EM, EM]
    write(machine, 2, 1)
    write(machine, 64, 1)
    assert conds_of(machine) == [OI, OI, CL, CL, OI, EM]
    assert (machine.nr_open, machine.nr_active) == (3, 5)


def test_explicitly_open_zones_are_never_closed_for_others() -> None:
    machine = limited(2)
    machine.manage(OPEN, 0, 1, VIRTIO)
    write(machine, 16, 1)
    write(machine, 0, 1)
    write(machine, 32, 1)
    assert conds_of(machine)[:3] == [OE, CL, OI]
    machine.manage(OPEN, 32, 1, VIRTIO)
    for command in (
        lambda: machine.begin_write(48, 1, VIRTIO),
        lambda: machine.begin_append(16, 1, VIRTIO),
        lambda: machine.manage(OPEN, 48, 1, VIRTIO),
        lambda: machine.manage_all(OPEN, VIRTIO),
    ):
        assert refusal(machine, command)[0] == Status.OPEN_RESOURCE
    write(machine, 1, 15)
    assert conds_of(machine)[:3] == [FU, CL, OE]
    write(machine, 48, 1)
    assert machine.nr_open == 2


def test_a_zone_that_was_opened_explicitly_leaves_the_order() -> None:
    machine = limited(2)
    write(machine, 0, 1)
    write(machine, 16, 1)
    machine.manage(OPEN, 0, 1, VIRTIO)
    machine.manage(CLOSE, 0, 1, VIRTIO)
    write(machine, 32, 1)
    assert conds_of(machine)[:3] == [CL, OI, OI]
    write(machine, 1, 1)
    assert conds_of(machine)[:3] == [OI, CL, OI]


def test_active_is_looked_at_before_open() -> None:
    machine = limited(1, 1)
    machine.manage(OPEN, 0, 1, VIRTIO)
    assert refusal(machine, lambda: machine.begin_write(16, 1, VIRTIO)) == (Status.ACTIVE_RESOURCE, 1)
    assert refusal(machine, lambda: machine.manage(OPEN, 16, 2, VIRTIO)) == (Status.ACTIVE_RESOURCE, 1)
    machine = limited(0, 3)
    write(machine, 0, 1)
    assert refusal(machine, lambda: machine.manage(OPEN, 0, 4, VIRTIO)) == (Status.ACTIVE_RESOURCE, 0)
    machine.manage(OPEN, 0, 3, VIRTIO)


def test_a_refusal_by_the_active_limit_closes_nothing() -> None:
    machine = limited(1, 2)
    write(machine, 0, 1)
    write(machine, 16, 1)
    assert refusal(machine, lambda: machine.begin_write(32, 1, VIRTIO)) == (Status.ACTIVE_RESOURCE, 2)
    assert conds_of(machine)[:3] == [CL, OI, EM]
    write(machine, 1, 1)  # a CLOSED zone is active already
    assert conds_of(machine)[:3] == [OI, CL, EM]


def test_a_write_that_fills_an_empty_zone_needs_the_resources_for_it() -> None:
    machine = limited(1, 1)
    machine.manage(OPEN, 0, 1, VIRTIO)
    assert refusal(machine, lambda: machine.begin_write(16, 16, VIRTIO))[0] == Status.ACTIVE_RESOURCE
    machine = limited(1)
    write(machine, 0, 1)
    write(machine, 16, 16)
    assert conds_of(machine)[:2] == [CL, FU]
    assert (machine.nr_open, machine.nr_active) == (0, 1)


def test_opening_a_range_makes_room_for_all_or_refuses() -> None:
    machine = limited(3)
    for zone_no in (0, 1, 2):
        write(machine, zone_no * 16, 1)
    machine.manage(OPEN, 0, 2, VIRTIO)  # both are open already: nothing is closed
    assert conds_of(machine)[:3] == [OE, OE, OI]
    machine.manage(OPEN, 48, 1, VIRTIO)
    assert conds_of(machine)[:4] == [OE, OE, CL, OE]
    assert refusal(machine, lambda: machine.manage(OPEN, 0, 5, VIRTIO)) == (Status.OPEN_RESOURCE, 2)


def test_opening_a_range_spares_the_implicitly_open_zones_in_it() -> None:
    machine = limited(4)
    for zone_no in (1, 4, 0, 5):
        write(machine, zone_no * 16, 1)
    changes = machine.manage(OPEN, 16, 3, VIRTIO)  # 1 is the oldest, but asked for; 4 and 0 go
    assert conds_of(machine) == [CL, OE, OE, OE, CL, OI]
    assert changes == ([4, 0], [1, 2, 3])


def test_open_all_opens_all_closed_zones_or_none() -> None:
    machine = limited(2)
    for zone_no in (0, 1, 2, 3):
        write(machine, zone_no * 16, 1)
    assert conds_of(machine) == [CL, CL, OI, OI, EM, EM]
    machine.manage_all(OPEN, ZBC)
    assert conds_of(machine) == [OE, OE, CL, CL, EM, EM]
    assert refusal(machine, lambda: machine.manage_all(OPEN, ZBC)) == (Status.OPEN_RESOURCE, 2)


def test_finishing_needs_an_open_resource_in_zbc() -> None:
    machine = limited(2)
    write(machine, 0, 1)
    write(machine, 16, 1)
    changes = machine.manage(FINISH, 32, 2, ZBC)
    assert conds_of(machine) == [CL, OI, FU, FU, EM, EM]
    assert changes == ([0], [2, 3])
    machine.manage(OPEN, 0, 2, ZBC)
    assert refusal(machine, lambda: machine.manage(FINISH, 64, 1, ZBC)) == (Status.OPEN_RESOURCE, 4)
    machine.manage(FINISH, 64, 1, VIRTIO)
    machine.manage(FINISH, 32, 1, ZBC)  # FULL already: needs nothing
    machine.manage(FINISH, 16, 5, ZBC)  # zone 1 gives its own resource for zone 5
    assert conds_of(machine) == [OE, FU, FU, FU, FU, FU]
    machine = limited(1)
    write(machine, 16, 1)
    machine.manage(OPEN, 0, 1, ZBC)
    machine.manage_all(FINISH, ZBC)
    assert conds_of(machine)[:3] == [FU, FU, EM]


def test_without_limits_nothing_is_ever_closed() -> None:
    machine = fresh(PLAIN)
    for zone_no in range(6):
        write(machine, zone_no * 16, 1)
    assert machine.nr_open == 6
    assert machine.resources.open_zones == machine.resources.active_zones == set()
    machine.manage(OPEN, 0, 6, VIRTIO)
    assert conds_of(machine) == [OE] * 6


def test_a_machine_takes_over_open_zones_in_the_order_of_their_numbers() -> None:
    geometry = Geometry(size=96, zone_size=16, zone_capacity=16, max_open_zones=3, max_active_zones=5)
    conds, wps = bytearray([OE, OI, CL, OI, EM, FU]), array("Q", [0, 2, 3, 4, 0, 9])
    machine = ZoneMachine(geometry, conds, wps)
    assert (machine.nr_open, machine.nr_active) == (3, 4)
    assert (machine.resources.open_zones, machine.resources.active_zones) == ({0, 1, 3}, {0, 1, 2, 3})
    write(machine, 64, 1)
    assert conds_of(machine) == [OE, CL, CL, OI, OI, FU]


# -- management -----------------------------------------------------------------------------------------------------


def test_a_range_is_changed_as_a_whole_or_not_at_all() -> None:
    machine = fresh(MIXED)
    write(machine, 16, 1)
    write(machine, 32, 1)
    assert machine.manage(RESET, 16, 2, VIRTIO) == ([], [1, 2])
    assert conds_of(machine) == [NW, EM, EM, NW, EM, EM]
    write(machine, 16, 1)
    assert refusal(machine, lambda: machine.manage(RESET, 16, 3, VIRTIO)) == (Status.CONVENTIONAL, 3)
    machine.set_cond(2, OL)
    assert refusal(machine, lambda: machine.manage(RESET, 16, 3, VIRTIO)) == (Status.ZONE_OFFLINE, 2)


@pytest.mark.parametrize("operation", MANAGEMENT)
def test_what_management_addresses(operation: Operation) -> None:
    machine = fresh(MIXED)

    def why(sector: int, nr_zones: int = 1) -> tuple[Status, int]:
        return refusal(machine, lambda: machine.manage(operation, sector, nr_zones, VIRTIO))

    assert why(-16) == (Status.OUT_OF_RANGE, -1)
    assert why(88) == (Status.OUT_OF_RANGE, -1)
    assert why(96) == (Status.OUT_OF_RANGE, -1)
    assert why(1 << 70) == (Status.OUT_OF_RANGE, -1)
    assert why(16, 0) == (Status.OUT_OF_RANGE, -1)
    assert why(16, -1) == (Status.OUT_OF_RANGE, -1)
    assert why(64, 3) == (Status.OUT_OF_RANGE, -1)
    assert why(64, 1 << 70) == (Status.OUT_OF_RANGE, -1)
    assert why(17, 100) == (Status.NOT_ZONE_START, 1)
    assert why(81) == (Status.NOT_ZONE_START, 5)
    assert why(1) == (Status.NOT_ZONE_START, 0)


def test_the_all_forms_pass_over_what_they_do_not_change() -> None:
    conds = bytearray([NW, EM, OI, OE, CL, RO, FU, OL])
    geometry = Geometry(size=128, zone_size=16, zone_capacity=16, conventional=((0, 1),))
    machine = ZoneMachine(geometry, conds, array("Q", [0, 0, 1, 1, 1, 1, 1, 1]))
    assert machine.manage_all(RESET, VIRTIO) == ([], [2, 3, 4, 6])
    assert conds_of(machine) == [NW, EM, EM, EM, EM, RO, EM, OL]
    assert list(machine.wps) == [0, 0, 0, 0, 0, 1, 0, 1]


# -- by hand --------------------------------------------------------------------------------------------------------


def test_conditions_set_by_hand() -> None:
    machine = fresh(MIXED)
    write(machine, 16, 5)
    for cond in (RO, OL, CL, FU, CL, OL, FU, EM):
        assert machine.set_cond(1, cond).zones == [1]
        assert (machine.conds[1], machine.wps[1]) == (cond, 0 if cond is EM else 5)
        assert machine.nr_active == (cond is CL)
    for cond in (OL, NW, RO, NW):
        machine.set_cond(0, cond)
        assert machine.conds[0] == cond


@pytest.mark.parametrize("cond", Condition)
def test_setting_the_condition_that_a_zone_has_touches_nothing(cond: Condition) -> None:
    zone_no = 3 if cond is NW else 2
    machine = in_condition(cond, MIXED, zone_no)
    if cond in OPEN_CONDITIONS:
        assert refusal(machine, lambda: machine.set_cond(zone_no, cond)) == (Status.BAD_TRANSITION, zone_no)
        return
    before = state_of(machine)
    machine.set_cond(zone_no, cond)
    assert state_of(machine) == before


def test_conditions_that_cannot_be_set_by_hand() -> None:
    machine = limited(1, 1)
    write(machine, 16, 4)
    machine.set_cond(1, RO)
    write(machine, 32, 1)

    def why(zone_no: int, cond: Condition) -> tuple[Status, int]:
        return refusal(machine, lambda: machine.set_cond(zone_no, cond))

    assert why(-1, RO) == (Status.OUT_OF_RANGE, -1)
    assert why(6, RO) == (Status.OUT_OF_RANGE, -1)
    assert why(0, OI) == (Status.BAD_TRANSITION, 0)
    assert why(0, OE) == (Status.BAD_TRANSITION, 0)
    assert why(0, CL) == (Status.BAD_TRANSITION, 0)  # no data
    assert why(0, NW) == (Status.CONVENTIONAL, 0)
    assert why(1, CL) == (Status.ACTIVE_RESOURCE, 1)
    machine.set_cond(2, CL)  # is active already
    assert conds_of(machine)[:3] == [EM, RO, CL]
    machine.set_cond(2, EM)
    write(machine, 32, 16)
    assert why(2, CL) == (Status.BAD_TRANSITION, 2)  # no room
    conventional = fresh(MIXED)
    assert refusal(conventional, lambda: conventional.set_cond(0, EM)) == (Status.CONVENTIONAL, 0)
    assert refusal(conventional, lambda: conventional.set_cond(0, OE)) == (Status.CONVENTIONAL, 0)


def test_power_cycle() -> None:
    conds = bytearray([NW, EM, OI, OE, OE, CL, CL, RO, FU, OL])
    geometry = Geometry(size=160, zone_size=16, zone_capacity=16, conventional=((0, 1),), max_open_zones=4)
    machine = ZoneMachine(geometry, conds, array("Q", [0, 0, 1, 1, 0, 1, 0, 1, 1, 1]))
    assert machine.power_cycle() == ([], [2, 3, 4, 6])
    assert conds_of(machine) == [NW, EM, CL, CL, EM, CL, EM, RO, FU, OL]
    assert (machine.nr_open, machine.nr_active, machine.resources.open_zones) == (0, 3, set())


def test_states_that_are_loaded() -> None:
    machine = limited(2, 3)
    write(machine, 0, 4)
    conds, wps = machine.conds, machine.wps
    machine.take_over(
        machine.loaded(bytearray([EM, OI, OE, CL, FU, RO]), array("Q", [0, 3, 0, 1, 16, 2]), bytearray(6))
    )
    assert conds_of(machine) == [EM, OI, OE, CL, FU, RO]
    assert list(machine.wps) == [0, 3, 0, 1, 16, 2]
    assert machine.conds is conds
    assert machine.wps is wps
    assert (machine.nr_open, machine.nr_active, machine.resources.open_zones) == (2, 3, {1, 2})
    # The accounts are those of the new states: zone 1 is the one that can be closed for another, which is not active.
    machine.manage(OPEN, 48, 1, VIRTIO)
    assert conds_of(machine) == [EM, CL, OE, OE, FU, RO]


@pytest.mark.parametrize(
    ("conds", "status"),
    [([OI, OE, OE, EM, EM, EM], Status.OPEN_RESOURCE), ([OE, CL, CL, CL, EM, EM], Status.ACTIVE_RESOURCE)],
)
def test_more_than_the_limits_is_not_loaded(conds: list[Condition], status: Status) -> None:
    machine = limited(2, 3)
    write(machine, 0, 4)
    before = conds_of(machine), list(machine.wps)
    with pytest.raises(CommandError) as refused:
        machine.loaded(bytearray(conds), array("Q", [1] * 6), bytearray(6))
    assert refused.value.status == status
    assert (conds_of(machine), list(machine.wps)) == before


def test_addresses_before_the_device_are_not_those_of_its_last_zone() -> None:
    machine = fresh(PLAIN)
    write(machine, 80, 8)  # zone 5 is written up to the sector that -8 would be, counted from the end
    for command in (
        lambda: machine.check_read(-16, 4, ZBC),
        lambda: machine.begin_write(-8, 4, ZBC),
        lambda: machine.begin_append(-1, 4, VIRTIO),
        lambda: machine.begin_append(-16, 4, VIRTIO),
    ):
        assert refusal(machine, command)[0] == Status.OUT_OF_RANGE
    # The last zone has no short way; the one that does is never meant by a negative address.
    assert machine.begin_write(88, 4, ZBC) == 4


def test_a_conventional_write_into_a_sequential_zone_by_one_sector() -> None:
    machine = fresh(MIXED)
    assert refusal(machine, lambda: write(machine, 8, 9)) == (Status.ZONE_BOUNDARY, 0)
    write(machine, 8, 8)


def test_a_refused_finish_names_the_first_zone_of_its_range() -> None:
    machine = limited(1)
    machine.manage(OPEN, 80, 1, ZBC)
    assert refusal(machine, lambda: machine.manage(FINISH, 16, 2, ZBC)) == (Status.OPEN_RESOURCE, 1)


def test_states_of_another_number_of_zones_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        fresh(PLAIN).loaded(bytearray([EM] * 6), array("Q", [0] * 5), bytearray(6))


# -- cost -----------------------------------------------------------------------------------------------------------


class Scanned(bytearray):
    """The conditions of zones; counts how often all of them are looked at."""

    nr_scans = 0

    def _scan(self) -> None:
        self.nr_scans += 1

    def count(self, *args: Any) -> int:
        self._scan()
        return super().count(*args)

    def find(self, *args: Any) -> int:
        self._scan()
        return super().find(*args)

    def __contains__(self, key: object) -> bool:
        self._scan()
        return super().__contains__(key)  # type: ignore[operator]

    def __iter__(self) -> Iterator[int]:
        self._scan()
        return super().__iter__()


def lines_and_bytes(command: Callable[[], object]) -> tuple[int, int]:
    """Return how many lines of Python *command* runs, and how many bytes it has allocated at most."""
    nr_lines = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Callable[..., Any] | None:
        nonlocal nr_lines
        if not frame.f_globals.get("__name__", "").startswith(("zonefs_emu.", "sortedcontainers.")):
            return None  # a finalizer, a callback of the garbage collector
        nr_lines += event == "line"
        return trace

    tracemalloc.start()
    try:
        held = tracemalloc.get_traced_memory()[0]
        with traced(trace):
            command()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return nr_lines, peak - held


def test_a_command_on_one_zone_costs_the_same_on_a_large_device() -> None:
    """It copies none of the lists that have an entry for each zone, scans none, and loops over none."""

    def costs(nr_zones: int) -> tuple[int, int, int]:
        geometry = Geometry(
            size=nr_zones * 4096, zone_size=4096, zone_capacity=4096, max_open_zones=3, max_active_zones=nr_zones
        )
        conds, wps = fresh_zones(geometry)
        scanned = Scanned(conds)
        machine = ZoneMachine(geometry, scanned, wps)
        assert scanned.nr_scans > 0, "the counts of the beginning are made by scans, and those are counted"
        scanned.nr_scans = 0
        last = (nr_zones - 1) * 4096

        def commands() -> None:
            machine.manage(OPEN, last, 1, ZBC)
            write(machine, last, 1, ZBC)
            machine.check_read(last, 8, ZBC)
            machine.manage(CLOSE, last, 1, ZBC)
            machine.manage(FINISH, last, 1, ZBC)
            machine.manage(RESET, last, 1, ZBC)
            machine.set_cond(nr_zones - 1, RO)
            machine.zone(nr_zones - 1)
            machine.set_cond(nr_zones - 1, EM)
            nr_closed = 0
            for zone_no in range(10, 20):  # from the fourth on, each closes another
                nr_closed += len(write(machine, zone_no * 4096, 1).closed)
            assert nr_closed == 7

        return *lines_and_bytes(commands), scanned.nr_scans

    small_lines, small_bytes, _ = costs(1000)
    large_lines, large_bytes, nr_scans = costs(1_000_000)
    assert nr_scans == 0
    assert large_lines == small_lines
    assert large_bytes < small_bytes + 10_000


def test_the_common_reads_and_writes_take_the_short_way() -> None:
    """In any zone, with blocks of any size, up to wp and to the capacity itself; its length in lines is the same."""
    reads, writes, longer = set[int](), set[int](), set[int]()
    for block_size_bytes in (512, 4096):
        machine = fresh(Geometry(size=320, zone_size=64, zone_capacity=48, block_size_bytes=block_size_bytes))
        for zone_no in range(4):
            start = zone_no * 64
            write(machine, start, 32)
            for sector, nr_sectors in ((start, 32), (start, 8), (start + 24, 8), (start, block_size_bytes // 512)):
                reads.add(lines_and_bytes(partial(machine.check_read, sector, nr_sectors, ZBC))[0])
            for nr_sectors in (8, 16, block_size_bytes // 512):
                writes.add(lines_and_bytes(partial(machine.begin_write, start + 32, nr_sectors, ZBC))[0])
            longer.add(lines_and_bytes(partial(machine.check_read, start + 32, 8, ZBC))[0])
    assert len(reads) == len(writes) == 1
    assert min(longer) > max(reads)


@pytest.mark.parametrize(("sector", "nr_sectors"), [(65, 8), (64, 9), (68, 4), (72, 1)])
def test_half_a_block_of_written_data_is_not_read(sector: int, nr_sectors: int) -> None:
    machine = fresh(Geometry(size=320, zone_size=64, zone_capacity=64, block_size_bytes=4096))
    write(machine, 64, 32)
    assert refusal(machine, lambda: machine.check_read(sector, nr_sectors, ZBC)) == (Status.UNALIGNED, 1)


# -- against the reference ------------------------------------------------------------------------------------------


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Draw shapes in which limits are hit often: some more zones than a limit, and zones that few writes fill."""
    block = draw(st.sampled_from((1, 1, 8)))
    granule = block * draw(st.sampled_from((1, 1, 1, 2, 3)))
    zone_size = granule * draw(st.sampled_from((8, 6, 4, 3, 2)))
    capacity = zone_size - granule * draw(st.integers(0, zone_size // granule // 2))
    nr_zones = draw(st.sampled_from((5, 4, 6, 7, 3, 1)))
    runt = granule * draw(st.integers(1, zone_size // granule))
    conventional = draw(st.just(set()) | st.sets(st.integers(0, nr_zones - 1), max_size=2))
    max_open = draw(st.sampled_from((2, 3, 1, 2, 3, 0)))
    max_active = draw(st.sampled_from((0, 0, max_open + 2, max_open + 1, max_open, 1)))
    return Geometry(
        size=(nr_zones - 1) * zone_size + runt,
        zone_size=zone_size,
        zone_capacity=capacity,
        conventional=merge_runs([(n, 1) for n in conventional]),
        block_size_bytes=512 * block,
        write_granularity=granule,
        max_open_zones=min(max_open, max_active) if max_active else max_open,
        max_active_zones=max_active,
        max_append=granule * draw(st.integers(1, 4)),
    )


ZONE: Final = st.integers(0, 6)
WILD: Final = st.sampled_from((-1, -8, 1, 2, 7, 8, 9, 16, 100, 1 << 40))
DIALECT: Final = st.sampled_from(DIALECTS)


class ZoneMachineComparison(RuleBasedStateMachine):
    """Every command on the machine and on the reference: the same answers, the same zones."""

    def __init__(self) -> None:
        super().__init__()
        self.geometry = PLAIN
        self.machine = fresh(PLAIN)
        self.reference = Reference(PLAIN)
        self.copy_of_conds = bytearray(self.machine.conds)
        self.copy_of_wps = array("Q", self.machine.wps)
        self.turn = 0

    @initialize(geometry=geometries())
    def create(self, geometry: Geometry) -> None:
        note(repr(geometry))
        self.geometry = geometry
        self.machine = fresh(geometry)
        self.reference = Reference(geometry)
        self.copy_of_conds = bytearray(self.machine.conds)
        self.copy_of_wps = array("Q", self.machine.wps)

    def both(self, ours: Callable[[], object], expected: Callable[[], object]) -> tuple[object, object] | None:
        """Run both; None if both refused, with the same status and the machine untouched."""
        status = Status.OK
        wanted: object = None
        try:
            wanted = expected()
        except RefusedError as error:
            status = error.status
        if not status:
            return ours(), wanted
        note(status.name)
        assert refusal(self.machine, ours)[0] == status
        return None

    def copy_changed(self, changes: object, written: int = -1) -> None:
        """Copy what the machine says has changed, one by one: never past a limit, and nothing is forgotten."""
        assert isinstance(changes, Changes)
        for zone_no in [*changes.zones, *([written] if written >= 0 else [])]:
            self.copy_of_conds[zone_no] = self.machine.conds[zone_no]
            self.copy_of_wps[zone_no] = self.machine.wps[zone_no]
            nr_open = sum(cond in OPEN_CONDITIONS for cond in self.copy_of_conds)
            nr_active = sum(cond in ACTIVE_CONDITIONS for cond in self.copy_of_conds)
            assert nr_open <= (self.geometry.max_open_zones or nr_open)
            assert nr_active <= (self.geometry.max_active_zones or nr_active)

    def start_of(self, zone_no: int) -> int:
        return zone_no % self.geometry.nr_zones * self.geometry.zone_size

    def writable(self, pick: int) -> int:
        """Return the number of a zone that takes writes at its wp, if there is one.

        A device that is full is reset first. Hypothesis likes to repeat the simplest step; the zone changes all the
        same, and not in turn.
        """
        if not {EM, OI, OE, CL} & set(self.reference.conds):
            self.do_manage_all(RESET, VIRTIO)
        self.turn += 1
        pick += self.turn * (self.turn + 1) // 2
        zones = [n for n, cond in enumerate(self.reference.conds) if cond in (EM, OI, OE, CL)]
        return zones[pick % len(zones)] if zones else pick % self.geometry.nr_zones

    # Most commands are sensible ones, or no zone ever gets far.

    @rule(pick=ZONE)
    def write_a_little(self, pick: int) -> None:
        self.write_at_wp(pick, 1)

    @rule(pick=ZONE, granules=st.integers(1, 2))
    def write_at_wp(self, pick: int, granules: int) -> None:
        zone_no = self.writable(pick)
        wp = self.start_of(zone_no) + self.reference.written[zone_no]
        self.do_write(wp, granules * self.geometry.write_granularity, VIRTIO)

    @rule(pick=ZONE, granules=st.integers(-1, 1))
    def fill(self, pick: int, granules: int) -> None:
        """Write up to the capacity, or one granule more or less."""
        zone_no = self.writable(pick)
        written = self.reference.written[zone_no]
        room = self.reference.capacity(zone_no) - written
        self.do_write(self.start_of(zone_no) + written, room + granules * self.geometry.write_granularity, VIRTIO)

    @rule(pick=ZONE, granules=st.integers(0, 5))
    def append(self, pick: int, granules: int) -> None:
        self.do_append(self.start_of(self.writable(pick)), granules * self.geometry.write_granularity, VIRTIO)

    @rule(operation=st.sampled_from((OPEN, RESET, CLOSE, FINISH)), zone_no=ZONE, dialect=DIALECT)
    def manage(self, operation: Operation, zone_no: int, dialect: Dialect) -> None:
        self.do_manage(operation, self.start_of(zone_no), 1, dialect)

    @rule(
        operation=st.sampled_from((OPEN, RESET, CLOSE, FINISH)),
        zone_no=ZONE,
        count=st.sampled_from((2, 3, 4, 0)),
        dialect=DIALECT,
    )
    def manage_many(self, operation: Operation, zone_no: int, count: int, dialect: Dialect) -> None:
        """Manage a range, or all zones with a *count* of 0."""
        if count:
            count = min(count, self.geometry.nr_zones - zone_no % self.geometry.nr_zones)
            self.do_manage(operation, self.start_of(zone_no), count, dialect)
        else:
            self.do_manage_all(operation, dialect)

    @rule(zone_no=ZONE, offset=st.integers(0, 20), nr_sectors=st.integers(0, 100), odd=st.booleans(), dialect=DIALECT)
    def read(self, zone_no: int, offset: int, nr_sectors: int, odd: bool, dialect: Dialect) -> None:
        block = 1 if odd else self.geometry.block_sectors
        sector = (self.start_of(zone_no) + offset) // block * block
        nr_sectors = nr_sectors // block * block
        done = self.both(
            lambda: self.machine.check_read(sector, nr_sectors, dialect),
            lambda: self.reference.read(sector, nr_sectors, dialect),
        )
        if done:
            readable, has_data = done
            assert isinstance(readable, int)
            assert isinstance(has_data, list)
            if readable >= 0:
                assert has_data == [True] * readable + [False] * (nr_sectors - readable)
            else:
                assert sector % self.geometry.zone_size + nr_sectors > self.geometry.zone_size

    @rule(
        command=st.sampled_from((Operation.WRITE, Operation.APPEND, *MANAGEMENT)),
        zone_no=ZONE,
        offset=st.integers(-1, 20) | WILD,
        number=st.integers(-1, 60) | WILD.filter(lambda number: number < 1 << 40),  # the reference counts one by one
        dialect=DIALECT,
    )
    def anything(self, command: Operation, zone_no: int, offset: int, number: int, dialect: Dialect) -> None:
        sector = self.start_of(zone_no) + offset
        if command is Operation.WRITE:
            self.do_write(sector, number, dialect)
        elif command is Operation.APPEND:
            self.do_append(sector, number, dialect)
        else:
            self.do_manage(command, sector, number, dialect)

    @rule(zone_no=st.integers(-1, 7), cond=st.sampled_from((None, *Condition)), restart=st.booleans())
    def disturb(self, zone_no: int, cond: Condition | None, restart: bool) -> None:
        """Set a condition, restart, or cut the power."""
        if cond is not None:
            new = cond
            done = self.both(lambda: self.machine.set_cond(zone_no, new), lambda: self.reference.set_cond(zone_no, new))
            if done:
                self.copy_changed(done[0])
        elif restart:
            # A machine that takes over the arrays does not know who was written last: it goes by zone numbers.
            self.machine = ZoneMachine(self.geometry, self.machine.conds, self.machine.wps)
            self.reference.recency.sort()
        else:
            self.reference.power_cycle()
            self.copy_changed(self.machine.power_cycle())

    def do_write(self, sector: int, nr_sectors: int, dialect: Dialect) -> None:
        note(f"{nr_sectors} sectors at {sector}")
        done = self.both(
            lambda: write(self.machine, sector, nr_sectors, dialect), lambda: self.reference.write(sector, nr_sectors)
        )
        if done:
            self.copy_changed(done[0], written=sector // self.geometry.zone_size)

    def do_append(self, sector: int, nr_sectors: int, dialect: Dialect) -> None:
        done = self.both(
            lambda: append(self.machine, sector, nr_sectors, dialect), lambda: self.reference.append(sector, nr_sectors)
        )
        if done:
            assert isinstance(done[0], tuple)
            where, changes = done[0]
            assert where == done[1]
            self.copy_changed(changes, written=sector // self.geometry.zone_size)

    def do_manage(self, operation: Operation, sector: int, count: int, dialect: Dialect) -> None:
        done = self.both(
            lambda: self.machine.manage(operation, sector, count, dialect),
            lambda: self.reference.manage(operation, sector, count, dialect),
        )
        if done:
            self.copy_changed(done[0])

    def do_manage_all(self, operation: Operation, dialect: Dialect) -> None:
        done = self.both(
            lambda: self.machine.manage_all(operation, dialect), lambda: self.reference.manage_all(operation, dialect)
        )
        if done:
            self.copy_changed(done[0])

    @invariant()
    def the_zones_are_the_same(self) -> None:
        assert conds_of(self.machine) == self.reference.conds
        assert list(self.machine.wps) == self.reference.written
        assert (self.copy_of_conds, self.copy_of_wps) == (self.machine.conds, self.machine.wps)

    @invariant()
    def the_counts_are_true(self) -> None:
        machine, reference = self.machine, self.reference
        assert (machine.nr_open, machine.nr_active) == (len(reference.open_zones()), len(reference.active_zones()))
        if self.geometry.max_open_zones:
            assert sorted(machine.resources.open_zones) == reference.open_zones()
            assert machine.nr_open <= self.geometry.max_open_zones
        if self.geometry.max_active_zones:
            assert sorted(machine.resources.active_zones) == reference.active_zones()
            assert machine.nr_active <= self.geometry.max_active_zones


TestZoneMachineComparison = ZoneMachineComparison.TestCase
# Short histories find little here: zones have to be filled and limits to be reached first.
TestZoneMachineComparison.settings = settings(
    max_examples=3 * settings().max_examples, stateful_step_count=max(60, settings().stateful_step_count)
)


def test_a_zone_that_is_opened_to_be_written_stays_open() -> None:
    geometry = Geometry(size=8 * 64, zone_size=64, zone_capacity=64, conventional=((0, 1),), max_open_zones=2)
    machine = ZoneMachine(geometry, *fresh_zones(geometry))
    row = VIRTIO.on_write
    assert machine.open_to_write(0, row) == ((), ())  # a conventional zone has nothing to open
    assert machine.nr_open == 0
    assert [machine.open_to_write(zone_no, row).zones for zone_no in (1, 1, 2)] == [[1], [], [2]]
    machine.writing = ((1, 2),)
    assert machine.open_to_write(3, row) == ([2], (3,))  # closes the oldest that is not being written
    assert [machine.conds[zone_no] for zone_no in (1, 2, 3)] == [
        Condition.IMP_OPEN, Condition.CLOSED, Condition.IMP_OPEN
    ]  # fmt: skip


def test_many_zones_are_closed_in_portions_to_make_room() -> None:
    nr_open = PORTION_ZONES + PORTION_ZONES // 2
    geometry = Geometry(size=2 * nr_open * 64, zone_size=64, zone_capacity=64, max_open_zones=nr_open)
    machine = ZoneMachine(geometry, *fresh_zones(geometry))
    for zone_no in range(nr_open):
        write(machine, zone_no * 64, 1)
    machine.manage(Operation.OPEN, nr_open * 64, nr_open, VIRTIO)
    assert machine.conds.count(Condition.CLOSED) == nr_open
    assert machine.conds.count(Condition.EXP_OPEN) == machine.nr_open == nr_open
