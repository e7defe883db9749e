"""Zone random write areas: which writes they take, what moves the write pointer, and when a zone loses its area."""

from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from zonefs_emu.errors import CommandError, Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.machine import Changes, ZoneMachine, fresh_zones
from zonefs_emu.model.transitions import VIRTIO, ZBC, ZNS, Dialect, Operation
from zonefs_emu.model.zns_machine import ZnsMachine
from zonefs_emu.model.zone import Attribute, Condition
from zonefs_emu.model.zrwa_machine import ZrwaMachine, make_machine

#: Zones of 32 sectors with a capacity of 24, areas of 8 sectors that are flushed by 4.
GEOMETRY = Geometry(
    size=192, zone_size=32, zone_capacity=24, max_open_zones=2, max_active_zones=3, zrwa_size=8, zrwa_granularity=4,
    max_zrwa=2,
)  # fmt: skip
UNLIMITED = replace(GEOMETRY, max_open_zones=0, max_active_zones=0, max_zrwa=0)
ZRWA = Attribute.ZRWA
EM, OI, OE, CL, FU = Condition.EMPTY, Condition.IMP_OPEN, Condition.EXP_OPEN, Condition.CLOSED, Condition.FULL


def fresh(geometry: Geometry = GEOMETRY) -> ZrwaMachine:
    machine = make_machine(geometry, *fresh_zones(geometry), bytearray(geometry.nr_zones))
    assert isinstance(machine, ZrwaMachine)
    return machine


def allocate(machine: ZrwaMachine, zone_no: int) -> Changes:
    return machine.allocate_zrwa(machine.begin_allocate_zrwa(zone_no * 32, ZNS), ZNS)


def flush(machine: ZrwaMachine, sector: int) -> Changes:
    machine.begin_flush_zrwa(sector, ZNS)
    return machine.flush_zrwa(sector, ZNS)


def write(machine: ZrwaMachine, sector: int, nr_sectors: int, dialect: Dialect = ZNS) -> Changes:
    nr_moved = machine.begin_write(sector, nr_sectors, dialect)
    return machine.commit_write(sector // 32, nr_moved, dialect.on_write) or Changes()


def state(machine: ZoneMachine, zone_no: int = 0) -> tuple[Condition, int, int]:
    return Condition(machine.conds[zone_no]), machine.wps[zone_no], machine.attributes[zone_no]


def refusal(machine: ZrwaMachine, command: Callable[[], object]) -> tuple[Status, int]:
    before = bytes(machine.conds), list(machine.wps), bytes(machine.attributes), set(machine.zrwa_zones)
    with pytest.raises(CommandError) as refused:
        command()
    assert (bytes(machine.conds), list(machine.wps), bytes(machine.attributes), machine.zrwa_zones) == before
    return refused.value.status, refused.value.zone_no


def test_a_machine_fits_its_geometry() -> None:
    plain = Geometry(size=96, zone_size=16, zone_capacity=16)
    assert type(make_machine(plain, *fresh_zones(plain), bytearray(6))) is ZoneMachine
    extended = replace(plain, extension_bytes=64)
    assert type(make_machine(extended, *fresh_zones(extended), bytearray(6))) is ZnsMachine
    assert type(fresh().loaded(*fresh_zones(GEOMETRY), bytearray(6))) is ZrwaMachine


# -- allocating -------------------------------------------------------------------------------------------------------


def test_an_empty_zone_is_opened_with_an_area() -> None:
    machine = fresh()
    assert allocate(machine, 1) == Changes((), (1,))
    assert state(machine, 1) == (OE, 0, ZRWA)
    assert machine.zone(1).attributes == ZRWA
    assert (machine.nr_open, machine.nr_active) == (1, 1)


def test_allocating_closes_an_implicitly_open_zone_to_make_room() -> None:
    machine = fresh()
    write(machine, 64, 4)
    write(machine, 96, 4)
    assert allocate(machine, 0) == Changes([2], (0,))
    assert machine.conds[2] == CL


def test_what_cannot_be_allocated() -> None:
    machine = fresh()

    def status(sector: int) -> tuple[Status, int]:
        return refusal(machine, lambda: machine.begin_allocate_zrwa(sector, ZNS))

    assert status(192) == (Status.OUT_OF_RANGE, -1)
    assert status(-32) == (Status.OUT_OF_RANGE, -1)
    assert status(33) == (Status.NOT_ZONE_START, 1)
    write(machine, 64, 4)
    assert status(64) == (Status.ZRWA_INVALID, 2)
    allocate(machine, 0)
    assert status(0) == (Status.ZRWA_INVALID, 0)
    machine.manage(Operation.OPEN, 64, 1, ZNS)
    assert status(96) == (Status.OPEN_RESOURCE, 3)
    machine.manage(Operation.CLOSE, 64, 1, ZNS)
    allocate(machine, 3)
    assert status(128) == (Status.ACTIVE_RESOURCE, 4)
    machine.manage(Operation.CLOSE, 96, 1, ZNS)
    machine.manage(Operation.RESET, 64, 1, ZNS)
    assert status(128) == (Status.ZRWA_UNAVAILABLE, 4)
    machine.manage(Operation.RESET, 0, 1, ZNS)
    assert allocate(machine, 4) == Changes((), (4,))


def test_any_number_of_areas() -> None:
    machine = fresh(UNLIMITED)
    for zone_no in range(6):
        allocate(machine, zone_no)
    assert machine.zrwa_zones == set(range(6))


# -- writing ----------------------------------------------------------------------------------------------------------


def test_writes_in_the_area_move_nothing_and_may_be_repeated() -> None:
    machine = fresh()
    allocate(machine, 0)
    for sector, nr_sectors in ((4, 4), (0, 8), (7, 1), (0, 1), (0, 8)):
        assert write(machine, sector, nr_sectors) == Changes()
        assert state(machine) == (OE, 0, ZRWA)


def test_a_write_behind_the_area_flushes_what_it_needs_in_whole_granules() -> None:
    machine = fresh()
    allocate(machine, 0)
    write(machine, 8, 1)
    assert state(machine) == (OE, 4, ZRWA)
    write(machine, 11, 8)  # to 19: 7 sectors behind the area
    assert state(machine) == (OE, 12, ZRWA)
    # The area is cut at the capacity, so a write never flushes all of it.
    write(machine, 20, 4)
    assert state(machine) == (OE, 16, ZRWA)
    write(machine, 16, 8)
    assert state(machine) == (OE, 16, ZRWA)


@pytest.mark.parametrize(
    ("sector", "nr_sectors", "status"),
    [
        (3, 4, Status.ZRWA_WRITE),  # begins before wp
        (13, 8, Status.ZRWA_WRITE),  # ends more than two areas behind it
        (20, 5, Status.ZONE_BOUNDARY),
        (23, 2, Status.ZONE_BOUNDARY),
        (24, 1, Status.ZONE_BOUNDARY),
        (4, -1, Status.OUT_OF_RANGE),
    ],
)
def test_writes_that_are_refused(sector: int, nr_sectors: int, status: Status) -> None:
    machine = fresh()
    allocate(machine, 0)
    write(machine, 8, 1)
    assert refusal(machine, lambda: machine.begin_write(sector, nr_sectors, ZNS))[0] is status


def test_a_write_beyond_the_device_is_out_of_range_with_an_area_and_without() -> None:
    machine = fresh()
    plain = ZoneMachine(GEOMETRY, *fresh_zones(GEOMETRY))
    allocate(machine, 5)
    for nr_sectors, status in ((33, Status.OUT_OF_RANGE), (32, Status.ZONE_BOUNDARY)):
        assert refusal(machine, partial(machine.begin_write, 160, nr_sectors, ZNS))[0] is status
        with pytest.raises(CommandError) as refused:
            plain.begin_write(160, nr_sectors, ZNS)
        assert refused.value.status is status


def test_two_areas_from_the_write_pointer_are_the_most() -> None:
    geometry = replace(UNLIMITED, zone_capacity=32, write_granularity=2)
    machine = fresh(geometry)
    allocate(machine, 0)
    assert refusal(machine, lambda: machine.begin_write(0, 18, ZNS)) == (Status.ZRWA_WRITE, 0)
    assert refusal(machine, lambda: machine.begin_write(1, 2, ZNS)) == (Status.ZRWA_WRITE, 0)
    assert refusal(machine, lambda: machine.begin_write(2, 3, ZNS)) == (Status.ZRWA_WRITE, 0)
    write(machine, 0, 16)
    assert state(machine) == (OE, 8, ZRWA)


def test_a_write_of_nothing_opens_nothing() -> None:
    machine = fresh()
    allocate(machine, 0)
    machine.manage(Operation.CLOSE, 0, 1, ZNS)
    assert machine.begin_write(4, 0, ZNS) == 0
    assert state(machine) == (CL, 0, ZRWA)


def test_a_write_opens_a_closed_zone_and_keeps_it_from_being_closed() -> None:
    machine = fresh()
    allocate(machine, 0)
    machine.manage(Operation.CLOSE, 0, 1, ZNS)
    assert state(machine) == (CL, 0, ZRWA)
    assert write(machine, 4, 4) == Changes((), (0,))
    assert state(machine) == (OI, 0, ZRWA)
    write(machine, 64, 4)
    write(machine, 0, 4)  # now zone 2 is the one that was written least recently
    assert write(machine, 96, 4) == Changes([2], (3,))
    machine.manage(Operation.OPEN, 96, 1, ZNS)
    machine.manage(Operation.CLOSE, 0, 1, ZNS)
    machine.manage(Operation.OPEN, 64, 1, ZNS)
    assert refusal(machine, lambda: machine.begin_write(4, 4, ZNS)) == (Status.OPEN_RESOURCE, 0)


def test_a_long_write_opens_its_zone_at_its_beginning() -> None:
    machine = fresh()
    allocate(machine, 0)
    machine.manage(Operation.CLOSE, 0, 1, ZNS)
    nr_moved = machine.begin_write(4, 8, ZNS)
    assert machine.open_to_write(0, ZNS.on_write).changed == (0,)
    assert machine.commit_write(0, nr_moved, ZNS.on_write) is None
    assert state(machine) == (OI, 4, ZRWA)


def test_appends_are_refused() -> None:
    machine = fresh()
    allocate(machine, 0)
    assert refusal(machine, lambda: machine.begin_append(0, 4, ZNS)) == (Status.ZRWA_INVALID, 0)
    assert refusal(machine, lambda: machine.begin_append(4, 4, ZNS)) == (Status.NOT_ZONE_START, 0)
    assert refusal(machine, lambda: machine.begin_append(0, -1, ZNS)) == (Status.OUT_OF_RANGE, -1)
    assert machine.begin_append(32, 4, ZNS) == 32


def test_a_zone_without_an_area_is_written_as_ever() -> None:
    machine = fresh()
    allocate(machine, 0)
    write(machine, 32, 4)
    assert state(machine, 1) == (OI, 4, 0)
    assert refusal(machine, lambda: machine.begin_write(40, 4, ZNS)) == (Status.UNALIGNED_WP, 1)


# -- other dialects ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [VIRTIO, ZBC], ids=["virtio", "zbc"])
def test_other_dialects_write_such_a_zone_at_its_write_pointer(dialect: Dialect) -> None:
    machine = fresh()
    allocate(machine, 0)
    write(machine, 0, 8)
    assert refusal(machine, lambda: machine.begin_write(4, 4, dialect)) == (Status.UNALIGNED_WP, 0)
    write(machine, 0, 5, dialect)
    assert state(machine) == (OE, 5, ZRWA)
    where = machine.begin_append(0, 2, dialect)
    machine.commit_write(0, 2, dialect.on_append)
    assert (where, state(machine)) == (5, (OE, 7, ZRWA))
    # The area begins at the write pointer, and what was written there is still there.
    assert machine.check_read(0, 16, ZNS) == 15
    assert machine.check_read(0, 16, dialect) == 7
    write(machine, 7, 17, dialect)
    assert state(machine) == (FU, 24, 0)
    assert not machine.zrwa_zones


def test_a_flush_may_end_at_the_capacity() -> None:
    """Another dialect has left the write pointer between two granules."""
    machine = fresh()
    allocate(machine, 0)
    write(machine, 0, 17, VIRTIO)
    assert refusal(machine, lambda: machine.begin_flush_zrwa(22, ZNS)) == (Status.ZRWA_RANGE, 0)
    flush(machine, 20)
    assert state(machine) == (OE, 21, ZRWA)
    flush(machine, 23)
    assert state(machine) == (FU, 24, 0)


# -- flushing ---------------------------------------------------------------------------------------------------------


def test_an_explicit_flush_moves_the_write_pointer() -> None:
    machine = fresh()
    allocate(machine, 0)
    assert flush(machine, 3) == Changes((), (0,))
    assert state(machine) == (OE, 4, ZRWA)
    flush(machine, 11)
    assert state(machine) == (OE, 12, ZRWA)
    flush(machine, 19)
    flush(machine, 23)
    assert state(machine) == (FU, 24, 0)
    assert (machine.nr_open, machine.nr_active, machine.zrwa_zones) == (0, 0, set())


@pytest.mark.parametrize(
    ("sector", "status"),
    [
        (4, Status.ZRWA_RANGE),  # not whole granules
        (3, Status.ZRWA_RANGE),  # before wp
        (15, Status.ZRWA_RANGE),  # behind the area
        (24, Status.ZRWA_RANGE),  # behind the capacity
        (32, Status.ZRWA_INVALID),  # a zone without an area
        (64, Status.ZRWA_INVALID),  # an open zone without an area
        (192, Status.OUT_OF_RANGE),
        (-1, Status.OUT_OF_RANGE),
    ],
)
def test_flushes_that_are_refused(sector: int, status: Status) -> None:
    machine = fresh()
    allocate(machine, 0)
    write(machine, 64, 4)
    flush(machine, 3)
    assert refusal(machine, lambda: machine.begin_flush_zrwa(sector, ZNS))[0] is status


def test_a_flush_names_the_first_sector_of_a_block() -> None:
    geometry = replace(UNLIMITED, block_size_bytes=4096, write_granularity=8, zrwa_size=16, zrwa_granularity=8)
    machine = fresh(geometry)
    allocate(machine, 0)
    assert refusal(machine, lambda: machine.begin_flush_zrwa(7, ZNS)) == (Status.UNALIGNED, 0)
    flush(machine, 8)
    assert state(machine) == (OE, 16, ZRWA)


def test_a_flush_opens_a_closed_zone_as_a_write_does() -> None:
    machine = fresh()
    allocate(machine, 0)
    machine.manage(Operation.CLOSE, 0, 1, ZNS)
    write(machine, 64, 4)
    write(machine, 96, 4)
    assert flush(machine, 3) == Changes([2], (0,))
    assert state(machine) == (OI, 4, ZRWA)
    machine.manage(Operation.CLOSE, 0, 1, ZNS)
    machine.manage(Operation.OPEN, 64, 1, ZNS)
    machine.manage(Operation.OPEN, 96, 1, ZNS)
    assert refusal(machine, lambda: machine.begin_flush_zrwa(7, ZNS)) == (Status.OPEN_RESOURCE, 0)


# -- reading ----------------------------------------------------------------------------------------------------------


def test_what_can_be_read_of_an_area() -> None:
    machine = fresh()
    allocate(machine, 0)
    flush(machine, 3)
    assert machine.check_read(0, 4, ZNS) == 4
    assert machine.check_read(0, 32, ZNS) == 12
    assert machine.check_read(10, 4, ZNS) == 2
    assert machine.check_read(12, 4, ZNS) == 0
    assert machine.check_read(10, 4, VIRTIO) == 0
    assert machine.check_read(32, 4, ZNS) == 0
    assert machine.check_read(0, 64, ZNS) == -1
    flush(machine, 11)
    flush(machine, 19)
    assert machine.check_read(16, 16, ZNS) == 8


# -- losing an area ---------------------------------------------------------------------------------------------------


def test_closing_opening_and_a_power_cut_leave_the_area() -> None:
    machine = fresh()
    allocate(machine, 0)
    machine.manage(Operation.CLOSE, 0, 1, VIRTIO)
    assert state(machine) == (CL, 0, ZRWA)
    machine.manage(Operation.OPEN, 0, 1, ZNS)
    machine.power_cycle()
    assert state(machine) == (CL, 0, ZRWA)
    assert machine.zrwa_zones == {0}


def test_a_reset_takes_it_away_with_all_data() -> None:
    machine = fresh()
    resets: tuple[Callable[[], Changes], ...] = (
        lambda: machine.manage(Operation.RESET, 0, 1, ZNS),
        lambda: machine.manage_all(Operation.RESET, ZNS),
        lambda: machine.set_cond(0, Condition.EMPTY),
    )
    for reset in resets:
        allocate(machine, 0)
        flush(machine, 3)
        reset()
        assert state(machine) == (EM, 0, 0)
        assert not machine.zrwa_zones


def test_what_finishes_or_fails_a_zone_flushes_the_area() -> None:
    machine = fresh()
    ends: tuple[tuple[Callable[[], Changes], Condition], ...] = (
        (lambda: machine.manage(Operation.FINISH, 0, 1, ZNS), FU),
        (lambda: machine.manage_all(Operation.FINISH, ZNS), FU),
        (lambda: machine.set_cond(0, Condition.READONLY), Condition.READONLY),
        (lambda: machine.set_cond(0, Condition.OFFLINE), Condition.OFFLINE),
    )
    for end, cond in ends:
        allocate(machine, 0)
        flush(machine, 3)
        end()
        assert state(machine) == (cond, 12, 0)
        assert not machine.zrwa_zones
        machine.set_cond(0, Condition.EMPTY)


def test_an_extension_outlives_the_area() -> None:
    geometry = replace(GEOMETRY, extension_bytes=64)
    machine = fresh(geometry)
    machine.attributes[0] = Attribute.EXTENSION
    allocate(machine, 0)
    machine.manage(Operation.FINISH, 0, 1, ZNS)
    assert state(machine) == (FU, 8, Attribute.EXTENSION)


# -- states that are loaded -------------------------------------------------------------------------------------------


def test_areas_are_loaded_with_the_states() -> None:
    machine = fresh()
    conds, wps, bits = bytearray((1, 4, 2, 1, 1, 1)), array("Q", [0, 4, 3, 0, 0, 0]), bytearray((0, 2, 0, 0, 0, 0))
    machine.take_over(machine.loaded(conds, wps, bits))
    assert machine.zrwa_zones == {1}
    write(machine, 32 + 8, 4)
    assert state(machine, 1) == (OI, 4, ZRWA)


def test_more_areas_than_may_be_are_not_loaded() -> None:
    machine = fresh()
    with pytest.raises(CommandError) as refused:
        machine.loaded(bytearray((4, 4, 4, 1, 1, 1)), array("Q", [0] * 6), bytearray((2, 2, 2, 0, 0, 0)))
    assert refused.value.status is Status.ZRWA_UNAVAILABLE


# -- compared with a reference ----------------------------------------------------------------------------------------


class ZrwaComparison(RuleBasedStateMachine):
    """One zone with an area, compared with a list of its sectors that says of each who wrote it last, and a wp."""

    SIZE, GRANULARITY, CAPACITY = 8, 4, 24

    @initialize()
    def allocate(self) -> None:
        self.machine = fresh()
        allocate(self.machine, 0)
        self.wp = 0
        self.is_full = False

    @rule(offset=st.integers(0, 26), nr_sectors=st.integers(1, 20))
    def write(self, offset: int, nr_sectors: int) -> None:
        allowed = set(range(self.wp, min(self.wp + 2 * self.SIZE, self.CAPACITY)))
        written = set(range(offset, offset + nr_sectors))
        if self.is_full or not written <= allowed:
            refusal(self.machine, lambda: self.machine.begin_write(offset, nr_sectors, ZNS))
            return
        write(self.machine, offset, nr_sectors)
        # Granule by granule, until the last sector is in the area.
        while max(written) not in range(self.wp, self.wp + self.SIZE):
            self.wp += self.GRANULARITY

    @rule(offset=st.integers(0, 26))
    def flush(self, offset: int) -> None:
        ends = range(self.wp + self.GRANULARITY, min(self.wp + self.SIZE, self.CAPACITY) + 1, self.GRANULARITY)
        if self.is_full or offset + 1 not in ends:
            refusal(self.machine, lambda: self.machine.begin_flush_zrwa(offset, ZNS))
            return
        flush(self.machine, offset)
        self.wp = offset + 1
        self.is_full = self.wp == self.CAPACITY

    @rule()
    def close(self) -> None:
        if not self.is_full:
            self.machine.manage(Operation.CLOSE, 0, 1, ZNS)

    @rule()
    def power_cycle(self) -> None:
        self.machine.power_cycle()

    @rule()
    def begin_anew(self) -> None:
        self.machine.manage(Operation.RESET, 0, 1, ZNS)
        allocate(self.machine, 0)
        self.wp, self.is_full = 0, False

    @invariant()
    def agrees(self) -> None:
        cond, wp, bits = state(self.machine)
        assert wp == self.wp
        assert (cond is FU) == self.is_full
        assert bool(bits & ZRWA) == (not self.is_full) == (0 in self.machine.zrwa_zones)
        assert self.machine.nr_active == (not self.is_full)
        covered = self.wp if self.is_full else min(self.wp + self.SIZE, self.CAPACITY)
        assert self.machine.check_read(0, 32, ZNS) == covered
        assert self.machine.geometry.covered(0, wp, bits) == covered


TestZrwaComparison = ZrwaComparison.TestCase
TestZrwaComparison.settings = hypothesis.settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_zone_gets_an_area_with_its_extension() -> None:
    geometry = replace(GEOMETRY, extension_bytes=64, max_zrwa=1)
    conds, wps = fresh_zones(geometry)
    machine = make_machine(geometry, conds, wps, bytearray(geometry.nr_zones))
    assert isinstance(machine, ZrwaMachine)
    assert machine.begin_set_extension_and_zrwa(0, ZNS) == 0
    machine.set_extension_and_zrwa(0, ZNS)
    assert (machine.zone(0).cond, machine.zone(0).attributes) == (CL, Attribute.ZRWA | Attribute.EXTENSION)
    assert machine.begin_write(4, 4, ZNS) == 0
    with pytest.raises(CommandError) as refused:
        machine.begin_set_extension_and_zrwa(32, ZNS)
    assert refused.value.status is Status.ZRWA_UNAVAILABLE


def test_the_drive_finishes_a_zone_with_what_its_area_holds() -> None:
    geometry = replace(GEOMETRY, active_excursions=True)
    conds, wps = fresh_zones(geometry)
    machine = make_machine(geometry, conds, wps, bytearray(geometry.nr_zones))
    assert isinstance(machine, ZrwaMachine)
    machine.allocate_zrwa(machine.begin_allocate_zrwa(0, ZNS), ZNS)
    machine.finish_by_controller(0)
    zone = machine.zone(0)
    assert (zone.cond, zone.wp, zone.attributes) == (FU, 8, Attribute.FINISHED_BY_CONTROLLER)
    assert machine.zrwa_zones == set()
