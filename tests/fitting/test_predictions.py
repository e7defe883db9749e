import pytest

from zonefs_emu.fitting.measurements import Measurement
from zonefs_emu.fitting.predictions import PointError, by_group, errors_of, predict
from zonefs_emu.model.timing.timing_presets import ZN540

READ = Measurement("randread", 4096, 4096, 1, 1, 13_704, 72_500, 69_100, 81_400, 81_400)
WRITES = Measurement("append", 4096, 131_072, 1, 1, 2000, 67_400, 72_200, 0, 0, limit_bytes=250 << 20)


def test_points_of_each_kind_are_near_what_was_measured() -> None:
    beside = READ._replace(mean_ns=100_100, iops=9914, p50_ns=80_400, p99_ns=317_400, beside=WRITES)
    reset = Measurement("reset", 4096, 4096, 1, 1, 0, 15_810_000, 15_490_000, 0, 0, pages=275_712)
    errors = errors_of(ZN540, [READ, beside, reset], count=1000)
    assert [abs(error.mean) < 0.1 for error in errors] == [True] * 3
    assert errors[2].iops is None
    assert errors[2].p99 is None


def test_the_writer_of_a_mix_keeps_its_rate() -> None:
    assert predict(ZN540, WRITES._replace(beside=READ)).iops == pytest.approx(2000, rel=0.01)


def test_the_jobs_of_a_mix_stay_in_the_proportion_that_was_measured() -> None:
    writes = WRITES._replace(limit_bytes=0, iops=1480, nr_bytes=4096)
    reads = READ._replace(iops=13_320, beside=writes)
    said = predict(ZN540, reads)
    assert said.iops == pytest.approx(13_600, rel=0.02)
    assert predict(ZN540, writes._replace(beside=reads)).iops == pytest.approx(said.iops / 9, rel=0.01)


def test_errors_are_counted_by_group() -> None:
    close = READ._replace(operation="close")
    errors = [
        PointError(READ, 0.02, 0.2, None, 0.5),
        PointError(READ, -0.3, None, None, 0.1),
        PointError(close, 0.0, None, None, None),
    ]
    first, second = by_group(errors)
    assert (first.group, first.nr_points, first.within, first.iops_within, first.p99_within) == (
        "random read",
        2,
        0.5,
        0.0,
        0.5,
    )
    assert first.mean == pytest.approx(0.16)
    assert first.greatest == 0.3
    assert (second.within, second.p99_median) == (1.0, 0.0)
