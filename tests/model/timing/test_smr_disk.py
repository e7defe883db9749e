from random import Random

from zonefs_emu.model.timing.smr_disk import DiskTiming
from zonefs_emu.model.timing.timing_presets import SMR_HM
from zonefs_emu.model.timing.waits import Wait
from zonefs_emu.model.transitions import Operation

SIZE = 52156 * 256 << 11


def disk() -> DiskTiming:
    return DiskTiming(SMR_HM, size_sectors=SIZE, seed=1)


def test_writes_in_order_run_at_the_rate_of_the_medium() -> None:
    model = disk()
    now_ns = 0
    for number in range(1000):
        now_ns = model.submit(Operation.WRITE, 0, number * 2048, 2048, now_ns)
    assert 220e6 < 1000 * (1 << 20) / now_ns * 1e9 < 233e6
    assert model.busy_ns == now_ns


def test_the_inner_tracks_are_slower() -> None:
    outer, inner = disk(), disk()
    now_ns = inner.submit(Operation.READ, 0, SIZE - 2048, 1024, 0)
    inner_ns = inner.submit(Operation.READ, 0, SIZE - 1024, 1024, now_ns) - now_ns
    assert inner_ns > 1.8 * outer.submit(Operation.READ, 0, 0, 1024, 0)


def test_a_jump_costs_a_seek_and_half_a_revolution_on_average() -> None:
    model, random = disk(), Random(5)
    now_ns = 0
    for _ in range(2000):
        sector = random.randrange(SIZE - 8)
        now_ns = model.submit(Operation.READ, 0, sector, 8, now_ns)
    assert 11.5e6 < now_ns / 2000 < 12.5e6
    assert model.waited_for == Wait.HEAD


def test_a_request_that_comes_late_waits_for_the_platter_to_turn() -> None:
    model = disk()
    model.submit(Operation.WRITE, 0, 0, 8, 0)
    late = model.submit(Operation.WRITE, 0, 8, 8, 10**9) - 10**9
    assert SMR_HM.command_ns < late < SMR_HM.command_ns + SMR_HM.revolution_ns + 100_000


def test_an_append_goes_where_the_zone_was_written_last() -> None:
    model = disk()
    now_ns = model.submit(Operation.WRITE, 0, 0, 8, 0)
    assert model.submit(Operation.APPEND, 0, 0, 8, now_ns, written_sectors=8) - now_ns < 200_000


def test_requests_wait_for_the_one_before() -> None:
    model = disk()
    first = model.submit(Operation.RESET, 0, 0, 0, 0)
    assert first == SMR_HM.command_ns
    assert model.submit(Operation.FINISH, 0, 0, 0, 0) == 2 * SMR_HM.command_ns
    assert (model.waited_for, model.waited_ns) == (Wait.ACTUATOR, first)
    for sector in (10**9, 10**8, 10**7):
        model.submit(Operation.READ, 0, sector, 8, 0)
    assert model.waited_for == Wait.ACTUATOR
