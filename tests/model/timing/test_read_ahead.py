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
    # Between two sizes time grows with the bytes; above the last one it is that of its bytes.
    low, middle, high = (reads.service_ns(size, 1, 4) for size in (4096, 8192, 16384))
    assert middle == pytest.approx(low + (high - low) / 3)
    assert reads.service_ns(131_072, 2, 16) == pytest.approx(2 * reads.service_ns(65536, 2, 16))
    assert reads.service_ns(512, 1, 1) == reads.service_ns(100, 1, 1)
    assert reads.service_ns(4096, 100, 5000) == reads.service_ns(4096, 8, 256)


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
