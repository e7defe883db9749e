from random import Random

import pytest

from zonefs_emu.model.timing import read_ahead
from zonefs_emu.model.timing.read_ahead import ReadAhead
from zonefs_emu.model.timing.timing_presets import ZN540


def drive() -> ReadAhead:
    return ReadAhead(ZN540, Random(1))


def test_only_reads_in_order_are_read_ahead() -> None:
    reads = drive()
    assert reads.read(0, 0, 8, 0) == 0
    assert reads.read(0, 8, 8, 100_000) == 100_000 + int(1e9 / 127_120) - 500
    assert reads.read(0, 24, 8, 200_000) == 0
    assert reads.read(1, 32, 8, 200_000) == 0
    assert reads.read(0, 32, 8, 300_000) > 300_000


def test_the_rates_are_those_of_the_table_and_between_them() -> None:
    reads = drive()
    assert 1e9 / reads.service_ns(4096, 1, 1) == pytest.approx(127_120)
    assert 1e9 / reads.service_ns(16384, 8, 256) == pytest.approx(114_207)
    assert 1e9 / reads.service_ns(4096, 3, 2) == pytest.approx(90_000, rel=0.2)
    # Between two sizes time grows with the bytes; above the last one a read is several of it.
    low, middle, high = (reads.service_ns(size, 1, 4) for size in (4096, 8192, 16384))
    assert middle == pytest.approx(low + (high - low) / 3)
    assert reads.service_ns(131_072, 2, 8) == pytest.approx(2 * reads.service_ns(65536, 2, 16))
    assert reads.service_ns(512, 1, 1) == reads.service_ns(100, 1, 1)
    assert reads.service_ns(4096, 100, 5000) == reads.service_ns(4096, 8, 256)


def test_rates_between_measured_depths_stay_between_them_and_do_not_outgrow_the_depth() -> None:
    reads = drive()
    measured = {1: 127_120, 4: 394_283, 16: 410_090, 64: 407_487, 256: 321_500}
    for depth in range(1, 257):
        rate = 1e9 / reads.service_ns(4096, 1, depth)
        below = max(known for known in measured if known <= depth)
        above = min(known for known in measured if known >= depth)
        ends = sorted((measured[below], measured[above]))
        assert ends[0] * 0.999 <= rate <= ends[1] * 1.001
        assert rate <= measured[below] * depth / below * 1.001
    # The first request beside another one waits for nothing.
    assert 1e9 / reads.service_ns(4096, 1, 2) == pytest.approx(2 * 127_120)
    # Where the rate falls it does not rise before, and where it rises it does not fall before.
    falling = [reads.service_ns(512, 4, depth) for depth in range(64, 257)]
    assert falling == sorted(falling)


def test_a_fall_to_less_than_half_is_a_step() -> None:
    """The drive ceases to read ahead; it does not do so by halves."""
    reads = drive()
    rates = [1e9 / reads.service_ns(512, 1, depth) for depth in range(4, 17)]
    assert rates[0] == pytest.approx(377_377)
    assert rates[1:] == [pytest.approx(60_062)] * 12


def test_the_rate_falls_where_the_drive_leaves_commands_in_their_queues() -> None:
    reads = drive()
    known = ZN540.commands_max
    assert 1e9 / reads.service_ns(4096, 1, known) == pytest.approx(407_487)
    rates = [1e9 / reads.service_ns(4096, 1, depth) for depth in range(known, 257)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(321_500)
    assert 1e9 / reads.service_ns(4096, 4, known / 4) < 369_416, "four such streams have passed the limit by 64"


def test_what_is_in_flight_decides_the_rate() -> None:
    reads = drive()
    for zone in (0, 1):
        reads.read(zone, 0, 8, 0)
    ends = [reads.read(zone, sector, 8, 1000) for sector in (8, 16) for zone in (0, 1)]
    assert ends == sorted(ends)
    # All of it is answered: one stream alone is as fast as before.
    assert reads.read(0, 24, 8, ends[-1] + 1000) == ends[-1] + 1000 + int(1e9 / 127_120) - 500


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_CACHE_MAX", 2)
    reads = drive()
    for zone in range(3):
        assert reads.read(zone, 0, 8, 0) == 0
    assert reads.read(0, 8, 8, 0) == 0, "forgotten"
    for size in (1, 2, 3, 4):
        sector = 16 * size
        reads.read(9, sector - 1, 1, 0)
        assert reads.read(9, sector, size, 10**9 * size) > 0
