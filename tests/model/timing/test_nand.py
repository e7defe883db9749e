from dataclasses import replace
from random import Random

from hypothesis import given, strategies as st

from zonefs_emu.model.timing.nand import Nand
from zonefs_emu.model.timing.parameters import FlashParameters
from zonefs_emu.model.timing.timing_presets import ZN540

#: Two dies on two channels; a program is 4 slices of 100 ns and stores 1000 bytes; 2000 fit into the buffer.
SMALL = replace(
    ZN540,
    nr_channels=2,
    dies_per_channel=1,
    buffer_bytes=2000,
    program_bytes=1000,
    programs_per_die=1,
    program_slices=4,
    program_spread=0.0,
    slice_ns=100,
    reads_between_slices=2,
    interrupt_ns=0,
    interrupt_more_ns=0,
    row_bytes=1 << 40,
    row_slices=2,
    row_share=1.0,
    housekeeping_bytes=1 << 40,
    housekeeping_slices=3,
)


def nand(**changes: object) -> Nand:
    parameters = replace(SMALL, **changes)  # type: ignore[arg-type]
    assert isinstance(parameters, FlashParameters)
    return Nand(parameters, Random(1))


def test_writes_wait_for_a_program_where_the_buffer_is_full() -> None:
    drive = nand()
    assert drive.store(0, 1000) == 0  # die 0 programs until 400
    assert drive.store(10, 1000) == 10  # die 1 until 410
    assert drive._buffered_bytes == 2000
    assert drive.store(20, 500) == 400
    assert drive.waited_ns == 380
    assert drive.store(405, 1000) == 410
    # A write that is larger than a program goes in pieces.
    assert drive.store(1000, 3000) == 1800
    assert drive.store(5000, 10) == 5000


def test_reads_come_between_slices_and_lengthen_the_program() -> None:
    drive = nand()
    drive.store(0, 1000)
    assert drive.read(0, 50, 10, 5) == 115  # after the slice that ends at 100
    assert drive.waited_ns == 50
    assert drive.read(0, 60, 10, 5) == 130  # a second one before the next slice
    assert drive.read(0, 60, 10, 5) == 245  # the third after a slice
    assert drive.read(1, 60, 10, 5) == 75  # the other die does nothing
    assert drive.waited_ns == 0
    # 4 slices and 45 ns of reads: the program ends at 445.
    drive.store(70, 1000)
    assert drive.store(80, 100) == 445


def test_an_interrupted_program_costs_the_die_time() -> None:
    drive = nand(interrupt_ns=7)
    drive.store(0, 1000)
    assert drive.read(0, 50, 10, 5) == 115
    assert drive.read(0, 60, 10, 5) == 137  # in the same interruption
    assert drive.read(0, 300, 10, 5) == 352  # slices until 237 and 337
    drive.store(310, 1000)
    assert drive.store(420, 500) == 459  # the last slice, after 352 + 7


def test_further_reads_of_an_interruption_cost_the_die_time_too() -> None:
    drive = nand(interrupt_ns=7, interrupt_more_ns=3)
    drive.store(0, 1000)
    assert drive.read(0, 50, 10, 5) == 115
    assert drive.read(0, 60, 10, 5) == 137
    assert drive.read(0, 60, 10, 5) == 255  # after 137 + 3 and a slice
    # A die that programs nothing needs no time to go on.
    assert [drive.read(1, 60, 10, 5) for _ in range(2)] == [75, 90]


def test_a_read_after_the_last_slice_ends_the_program() -> None:
    drive = nand(program_slices=1)
    drive.store(0, 1000)
    assert drive.read(0, 50, 10, 0) == 110
    assert drive._buffered_bytes == 0
    assert drive.read(0, 60, 10, 0) == 120
    assert drive.read(0, 500, 10, 0) == 510


def test_programs_queue_on_a_die_and_begin_by_themselves() -> None:
    drive = nand(programs_per_die=2, buffer_bytes=4000)
    drive.store(0, 2000)  # both on die 0: until 400 and 800
    assert drive.read(0, 450, 10, 0) == 510
    assert drive._buffered_bytes == 1000
    assert drive.read(1, 450, 10, 0) == 460
    drive.store(500, 2000)  # on die 1
    assert drive.store(510, 1000) == 510
    assert drive.store(520, 1000) == 810


def test_housekeeping_lengthens_the_programs_that_run() -> None:
    drive = nand(housekeeping_bytes=1000)
    drive.store(0, 1000)  # 4 slices and 3 of housekeeping
    drive.store(0, 500)
    assert drive.store(0, 600) == 700


def test_a_row_lengthens_the_programs_of_a_share_of_the_dies() -> None:
    drive = nand(row_bytes=1000)
    drive.store(0, 1000)  # 4 slices and 2 for the row
    drive.store(0, 500)
    assert drive.store(0, 600) == 600
    apart = nand(row_bytes=1000, row_share=0.0)
    apart.store(0, 1000)
    assert apart.busy_ns == 400
    assert drive.busy_ns > 2 * 400


def test_all_programs_that_have_ended_make_room_for_a_write_that_comes_earlier() -> None:
    drive = nand(buffer_bytes=4000, programs_per_die=2)
    drive.store(0, 4000)  # on die 0 until 400 and 800, on die 1 until the same
    assert drive.store(10, 500) == 400
    assert drive.store(20, 1500) == 20
    assert drive.store(30, 500) == 800


def test_ends_of_programs_are_not_kept_without_end() -> None:
    drive = nand()
    for now_ns in range(0, 100_000, 500):
        drive.store(now_ns, 1000)
        drive.read(0, now_ns, 10, 5)
        assert len(drive._ends) <= drive.nr_dies


def test_work_is_counted() -> None:
    drive = nand()
    drive.store(0, 1000)
    drive.read(1, 0, 10, 5)
    assert drive.busy_ns == 410
    assert drive.nr_dies == 2


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 200), st.integers(1, 900)), max_size=60))
def test_bandwidth_is_conserved(requests: list[tuple[bool, int, int]]) -> None:
    """No more is taken than what fits into the buffer and what the dies have stored, whatever reads do between."""
    drive = nand()
    now_ns = stored = 0
    for is_read, gap_ns, size in requests:
        now_ns += gap_ns
        if is_read:
            assert drive.read(size % 2, now_ns, 10, 5) >= now_ns + 15
        else:
            taken_ns = drive.store(now_ns, size)
            assert taken_ns >= now_ns
            now_ns = taken_ns
            stored += size
            assert stored <= 2000 + 1000 * 2 * (now_ns // 400 + 1)
        drive.forget(now_ns)


def test_a_program_has_a_slice_at_least() -> None:
    drive = nand(program_slices=1, program_spread=1.0)
    for number in range(50):
        before_ns = drive.busy_ns
        drive.store(number * 10_000, 1000)
        assert drive.busy_ns - before_ns >= 100
