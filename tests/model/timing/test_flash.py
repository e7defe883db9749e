from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.model.timing import flash
from zonefs_emu.model.timing.flash import FlashTiming
from zonefs_emu.model.timing.timing_presets import ZN540
from zonefs_emu.model.timing.waits import Wait
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition

CAPACITY = 1077 << 11
PAGE = 8
#: Without what is drawn.
STEADY = replace(
    ZN540, jitter_ns=0, management_jitter_ns=0, slow_page_share=0.0, reset_slow_share=0.0, finish_spread=0.0,
    controller_spread=0.0,
)  # fmt: skip


def drive(*, block_bytes: int = 4096, seed: int = 0, **changes: Any) -> FlashTiming:
    return FlashTiming(replace(STEADY, **changes), capacity_sectors=CAPACITY, block_bytes=block_bytes, seed=seed)


def latency(model: FlashTiming, operation: Operation, nr_sectors: int = PAGE, at: int = 10**12, **zone: Any) -> int:
    return model.submit(operation, 0, 1000, nr_sectors, at, **zone) - at


def test_an_append_is_not_a_write() -> None:
    write, append = latency(drive(), Operation.WRITE), latency(drive(), Operation.APPEND)
    p = STEADY
    assert write == p.controller_write_ns + p.small_write_ns + int(4096 * p.write_byte_ns) + p.write_base_ns
    assert append - write == (
        p.controller_append_ns - p.controller_write_ns + p.small_append_ns - p.small_write_ns + p.append_extra_ns
    )


def test_sizes_below_and_above_the_unit_of_writes() -> None:
    p = STEADY
    unit = latency(drive(), Operation.WRITE, 16)
    assert unit == p.controller_write_ns + int(8192 * p.write_byte_ns) + p.write_base_ns
    more = int(16384 * p.write_byte_ns) - int(8192 * p.write_byte_ns) + p.large_ns
    assert latency(drive(), Operation.WRITE, 32) == unit + more + p.large_write_ns
    assert latency(drive(), Operation.APPEND, 32) == (latency(drive(), Operation.APPEND, 16) + more + p.large_append_ns)


def test_the_first_write_after_a_zone_opens_takes_longer() -> None:
    open_ = latency(drive(), Operation.WRITE)
    assert latency(drive(), Operation.WRITE, condition=Condition.EMPTY) == open_ + STEADY.first_write_ns
    assert latency(drive(), Operation.WRITE, condition=Condition.CLOSED) == open_ + STEADY.reopen_ns
    append = latency(drive(), Operation.APPEND)
    assert latency(drive(), Operation.APPEND, condition=Condition.EMPTY) == append + STEADY.first_append_ns


def test_requests_wait_for_the_controller_and_say_so() -> None:
    model = drive()
    alone = latency(model, Operation.WRITE)
    assert (model.waited_ns, model.controller_wait_ns) == (0, 0)
    service = STEADY.controller_write_ns + STEADY.small_write_ns + int(4096 * STEADY.write_byte_ns)
    assert latency(model, Operation.WRITE) == alone + service + STEADY.overlap_ns
    assert (model.waited_for, model.waited_ns) == (Wait.CONTROLLER, service)
    assert latency(model, Operation.READ) > 2 * service
    assert model.controller_wait_ns == 2 * service


def test_the_controllers_time_varies_for_the_next_request_only() -> None:
    model, steady = drive(controller_spread=1.0), drive()
    alone = latency(steady, Operation.WRITE)
    for number in range(1, 100):
        at = 10**12 + number * 10**6
        assert latency(model, Operation.WRITE, at=at) == alone, "nothing is before it"
    waits = set()
    for number in range(1, 100):
        at = 2 * 10**12 + number * 10**6
        latency(model, Operation.WRITE, at=at)
        latency(model, Operation.WRITE, at=at)
        waits.add(model.controller_wait_ns)
    busy_ns = STEADY.controller_write_ns + STEADY.small_write_ns
    transfer_ns = int(4096 * STEADY.write_byte_ns)
    assert transfer_ns <= min(waits) < transfer_ns + busy_ns // 4
    assert transfer_ns + busy_ns * 7 // 4 < max(waits) <= transfer_ns + 2 * busy_ns
    assert sum(waits) / len(waits) == pytest.approx(transfer_ns + busy_ns, rel=0.2)


def test_a_write_waits_where_the_buffer_is_full_and_reads_behind_it_too() -> None:
    model = drive()
    waits = set()
    for _ in range(80):
        model.submit(Operation.WRITE, 0, 0, 2048, 10**12)
        waits.add(model.waited_for)
    assert Wait.BUFFER in waits
    assert latency(model, Operation.READ) > 10_000_000
    # What it waits for is not the controller, which waits itself.
    assert model.waited_for == Wait.BUFFER
    assert model.controller_wait_ns == model.waited_ns
    model.submit(Operation.READ, 0, 0, 8, 2 * 10**12)
    assert model.waited_ns == 0


def test_reads_pass_one_write_that_waits_for_room() -> None:
    model = drive()
    answered_ns = 0
    while model.waited_for != Wait.BUFFER:
        answered_ns = model.submit(Operation.WRITE, 0, 0, 2048, 10**12)
    waits_until_ns = answered_ns - STEADY.write_base_ns - STEADY.overlap_ns - STEADY.large_write_ns
    assert model.waited_ns > 200_000
    model.submit(Operation.READ, 0, 0, PAGE, waits_until_ns - 200_000)
    assert model.controller_wait_ns == 0
    # A second write waits in the controller, and so do reads behind it until the first write has room.
    model.submit(Operation.WRITE, 0, 0, PAGE, waits_until_ns - 150_000)
    model.submit(Operation.READ, 0, 0, PAGE, waits_until_ns - 100_000)
    assert model.controller_wait_ns == pytest.approx(100_000, abs=10)


def test_a_write_waits_for_transfers_to_the_host() -> None:
    model = drive()
    alone = latency(drive(), Operation.WRITE)
    ends_ns = [latency(model, Operation.READ) for _ in range(16)]
    ready_ns = STEADY.controller_write_ns + STEADY.small_write_ns + int(4096 * STEADY.write_byte_ns)
    # So that its data are ready in the middle of the first transfer.
    begin_ns = min(ends_ns) - STEADY.bus_ns - ready_ns
    assert latency(model, Operation.WRITE, at=10**12 + begin_ns) > alone
    assert model.waited_for == Wait.BUS
    assert latency(model, Operation.WRITE, at=10**12 + max(ends_ns)) == alone


def test_no_more_commands_are_worked_on_than_the_drive_can() -> None:
    model = drive(commands_max=4)
    ends = [model.submit(Operation.READ, 0, 800 * number, 8, 0) for number in range(4)]
    model.submit(Operation.WRITE, 0, 0, 8, 10)
    assert model.waited_for == Wait.COMMANDS
    assert model.controller_wait_ns == min(ends) - 10
    # Nothing is in flight any more.
    model.submit(Operation.WRITE, 0, 0, 8, 10**12)
    assert model.waited_ns == 0


def test_a_write_passes_reads_that_wait_for_the_drive_to_take_them() -> None:
    model = drive(commands_max=2, queue_turn_ns=1000)
    for at in range(8):
        model.submit(Operation.READ, 0, at * 10**6, PAGE, 0, condition=Condition.FULL)
    assert model.controller_wait_ns > 10_000
    model.submit(Operation.WRITE, 0, 0, PAGE, 10)
    assert model.controller_wait_ns < 1000
    assert model.waited_for == Wait.COMMANDS
    # The next write has the same turn.
    first_ns = 10 + model.controller_wait_ns
    transfer_ns = STEADY.controller_write_ns + STEADY.small_write_ns + int(4096 * STEADY.write_byte_ns)
    model.submit(Operation.WRITE, 1, 0, PAGE, 11)
    assert 11 + model.controller_wait_ns == first_ns + transfer_ns


def test_writes_pass_no_other_writes() -> None:
    model = drive(commands_max=2, queue_turn_ns=0)
    for _ in range(8):
        model.submit(Operation.WRITE, 0, 0, 2048, 0)
    model.submit(Operation.READ, 0, 10**6, PAGE, 1, condition=Condition.FULL)
    waited_ns = model.controller_wait_ns
    model.submit(Operation.WRITE, 0, 0, 2048, 2)
    assert model.controller_wait_ns > waited_ns


def test_a_read_waits_until_the_drive_takes_another_command() -> None:
    model = drive(commands_max=2)
    ends_ns = [model.submit(Operation.READ, 0, at * 10**6, PAGE, 0, condition=Condition.FULL) for at in range(2)]
    model.submit(Operation.READ, 0, 3 * 10**6, PAGE, 0, condition=Condition.FULL)
    assert model.waited_ns >= min(ends_ns)
    assert model.waited_for == Wait.COMMANDS


def test_small_writes_on_small_blocks_are_merged() -> None:
    def write(model: FlashTiming, nr_sectors: int, *, append: bool = False) -> int:
        return latency(model, Operation.APPEND if append else Operation.WRITE, nr_sectors)

    whole = drive(block_bytes=512)
    p = STEADY
    assert write(whole, 16) == write(drive(), 16), "8 KiB are the same"
    fresh = drive(block_bytes=512)
    assert write(fresh, 8) == (
        p.controller_write_ns + int(4096 * p.write_byte_ns) + p.write_base_ns + p.partial_latency_ns
    )
    for _ in range(200):
        write(fresh, 1, append=True)
    assert fresh.waited_for == Wait.MERGE
    model = drive(block_bytes=512)
    for number in range(p.partial_slots):
        latency(model, Operation.WRITE, 1, at=number)
    # The controller is idle by then, and the first merge is not done.
    latency(model, Operation.WRITE, 1, at=13_000)
    assert model.waited_for == Wait.MERGE
    assert model.waited_ns > 0


def test_a_read_takes_a_die_its_channel_and_the_bus() -> None:
    p = STEADY
    alone = p.controller_read_ns + p.die_read_ns + int(4096 * p.channel_byte_ns) + p.read_base_ns
    assert latency(drive(), Operation.READ) == alone + p.bus_ns + int(4096 * p.bus_byte_ns)
    slow = drive(slow_page_share=1.0)
    assert latency(slow, Operation.READ) == latency(drive(), Operation.READ) + p.slow_page_ns
    assert slow.busy_ns == (p.die_read_ns + p.slow_page_ns) // 24
    # A large one goes to more than one die.
    assert latency(drive(), Operation.READ, 1024) < 8 * latency(drive(), Operation.READ, 128)


def test_reads_wait_for_a_die_or_the_bus() -> None:
    one_die, one_bus = drive(nr_channels=1, dies_per_channel=1), drive(bus_ns=100_000)
    for model in (one_die, one_bus):
        for number in range(4):
            model.submit(Operation.READ, 0, 1000 * number, 8, 0)
    assert one_die.waited_for == Wait.DIE
    assert one_die.waited_ns > 3 * STEADY.die_read_ns
    assert one_bus.waited_for == Wait.BUS


def test_reads_in_order_are_read_ahead() -> None:
    model = drive()
    first = model.submit(Operation.READ, 0, 0, 8, 0)
    assert model.submit(Operation.READ, 0, 8, 8, first) - first < 10_000


@pytest.mark.parametrize(
    ("pages", "expected_ms"), [(0, 0.0135), (1, 908.31), (34464, 791.95), (137856, 456.5), (275711, 2.5677)]
)
def test_finish_pads_what_is_left(pages: int, expected_ms: float) -> None:
    condition = Condition.IMP_OPEN if pages else Condition.EMPTY
    found = latency(drive(), Operation.FINISH, 0, condition=condition, written_sectors=pages * PAGE)
    assert found / 1e6 == pytest.approx(expected_ms, rel=0.01)


@pytest.mark.parametrize(
    ("pages", "expected_ms"), [(0, 1.63), (1, 1.69), (34464, 5.98), (137856, 11.24), (275712, 15.49)]
)
def test_reset_costs_by_what_is_written(pages: int, expected_ms: float) -> None:
    condition = Condition.FULL if pages == 275712 else Condition.IMP_OPEN
    found = latency(drive(), Operation.RESET, 0, condition=condition, written_sectors=pages * PAGE)
    assert found / 1e6 == pytest.approx(expected_ms, rel=0.02)
    slow = drive(reset_slow_share=1.0)
    assert latency(slow, Operation.RESET, 0, condition=condition, written_sectors=pages * PAGE) >= found


@pytest.mark.parametrize(("pages", "expected_ms"), [(0, 1.598), (1, 1.684), (34464, 3.366), (275711, 15.377)])
def test_reset_after_finish_costs_by_what_was_written_before(pages: int, expected_ms: float) -> None:
    model = drive()
    model.submit(Operation.FINISH, 0, 0, 0, 0, written_sectors=pages * PAGE)
    found = latency(model, Operation.RESET, 0, condition=Condition.FULL, written_sectors=CAPACITY)
    assert found / 1e6 == pytest.approx(expected_ms, rel=0.02)
    # The next one knows nothing of that finish.
    assert latency(model, Operation.RESET, 0, at=2 * 10**12, condition=Condition.IMP_OPEN) == STEADY.reset_ns


def test_finish_of_a_full_zone_changes_nothing() -> None:
    model = drive()
    assert latency(model, Operation.FINISH, 0, condition=Condition.FULL, written_sectors=CAPACITY) == 13_500
    found = latency(model, Operation.RESET, 0, at=2 * 10**12, condition=Condition.FULL, written_sectors=CAPACITY)
    assert found / 1e6 == pytest.approx(15.49, rel=0.01)


def test_finished_zones_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_FINISHED_MAX", 1)
    model = drive()
    for zone in (0, 1):
        model.submit(Operation.FINISH, zone, 0, 0, 0, written_sectors=PAGE)
    assert latency(model, Operation.RESET, 0, condition=Condition.FULL, written_sectors=CAPACITY) > 15_000_000


def test_costs_of_sizes_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_COSTS_MAX", 2)
    model = drive()
    for number, nr_sectors in enumerate((8, 16, 32, 8, 16), 1):
        fresh = latency(drive(), Operation.WRITE, nr_sectors)
        assert latency(model, Operation.WRITE, nr_sectors, 10**12 * number) == fresh
        assert len(model._costs[Operation.WRITE]) <= 2


def test_zone_management_waits_for_its_like_and_for_nothing_else() -> None:
    model = drive()
    model.submit(Operation.FINISH, 0, 0, 0, 10**12, written_sectors=PAGE)
    assert latency(model, Operation.WRITE) == latency(drive(), Operation.WRITE)
    assert latency(model, Operation.OPEN, 0) == STEADY.open_ns
    assert latency(model, Operation.CLOSE, 0) == STEADY.close_ns
    assert latency(model, Operation.FLUSH, 0) == 0
    assert latency(model, Operation.RESET, 0) > 900_000_000
    assert model.waited_for == Wait.MANAGEMENT
    assert model.waited_ns > 900_000_000


def test_a_reset_beside_writes_takes_longer() -> None:
    model = drive()
    end_ns = model.submit(Operation.APPEND, 0, 0, PAGE, 10**12)
    found = latency(model, Operation.RESET, 0, at=end_ns)
    assert found == int(STEADY.reset_ns * STEADY.reset_beside_writes)


operations = st.sampled_from([Operation.READ, Operation.WRITE, Operation.APPEND, Operation.OPEN, Operation.RESET])


@given(st.lists(st.tuples(operations, st.integers(0, 3), st.sampled_from([1, 8, 16, 256]), st.integers(0, 20_000))))
def test_nothing_completes_before_the_least_that_it_takes(requests: list[tuple[Operation, int, int, int]]) -> None:
    """And the same requests with the same seed complete at the same times."""
    models = [FlashTiming(ZN540, capacity_sectors=CAPACITY, block_bytes=512, seed=3) for _ in range(2)]
    least = {
        Operation.READ: 4_000,
        Operation.WRITE: ZN540.controller_write_ns + ZN540.write_base_ns,
        Operation.APPEND: ZN540.controller_append_ns + ZN540.write_base_ns,
        Operation.OPEN: ZN540.open_ns,
        Operation.RESET: ZN540.reset_ns,
    }
    now_ns = 0
    for operation, zone, nr_sectors, gap_ns in requests:
        now_ns += gap_ns
        ends = [model.submit(operation, zone, zone * 8, nr_sectors, now_ns) for model in models]
        assert ends[0] == ends[1]
        assert ends[0] >= now_ns + least[operation] - 4_000 * (operation == Operation.READ)
        assert ends[0] > now_ns


def test_writes_are_answered_in_the_order_of_one_queue() -> None:
    """Without what is drawn: the controller takes one after the other."""
    model, random = drive(), Random(5)
    now_ns, taken = 0, []
    for _ in range(3000):
        now_ns += random.randrange(10_000)
        model.submit(Operation.WRITE, 0, 0, 32, now_ns)
        taken.append(now_ns + model.controller_wait_ns)
    assert taken == sorted(taken)


def test_another_seed_is_another_run() -> None:
    ends = {
        FlashTiming(ZN540, capacity_sectors=CAPACITY, seed=seed).submit(Operation.WRITE, 0, 0, 8, 0) for seed in (1, 2)
    }
    assert len(ends) == 2


def test_a_read_ends_with_its_slowest_piece_and_not_with_the_last() -> None:
    model = drive(slow_page_share=0.5, slow_page_ns=10**9, stripe_bytes=4096)
    count = 400
    fast = sum(latency(model, Operation.READ, 16, at=number * 10**10) < 10**9 for number in range(1, count + 1))
    # Both pieces are fast in a quarter of the reads; the last one is in half of them.
    assert 0.15 < fast / count < 0.35
