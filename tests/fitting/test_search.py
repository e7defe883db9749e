import sys
from dataclasses import replace

import pytest

from zonefs_emu.errors import UsageError
from zonefs_emu.fitting.measurements import Measurement
from zonefs_emu.fitting.predictions import predict
from zonefs_emu.fitting.search import fit, with_read_ahead
from zonefs_emu.model.timing.timing_presets import ZN540


def test_parameters_come_back_from_what_the_model_itself_says() -> None:
    pytest.importorskip("scipy")
    truth = replace(ZN540, finish_ns=5_000_000, finish_byte_ns=1.5, finish_spread=0.0)
    points = []
    for pages in (1, 34_464, 137_856, 275_711):
        point = Measurement("finish", 4096, 4096, 1, 1, 0, 1, 1, 0, 0, pages=pages)
        said = predict(truth, point, count=50)
        points.append(point._replace(mean_ns=said.mean_ns, p50_ns=said.p50_ns))
    names: list[str] = []
    found = fit(points, ZN540, say=names.append)
    assert names == ["finish and reset"]
    assert found.finish_ns == pytest.approx(5_000_000, rel=0.03)
    assert found.finish_byte_ns == pytest.approx(1.5, rel=0.03)
    assert found.die_read_ns == ZN540.die_read_ns


def test_what_is_drawn_differs_between_the_points_of_a_search() -> None:
    pytest.importorskip("scipy")
    truth = replace(ZN540, management_jitter_ns=5000)
    point = Measurement("open", 4096, 4096, 1, 1, 0, 1, 1, 0, 0)
    point = point._replace(p50_ns=predict(truth, point, count=100_000).p50_ns)
    found = fit([point] * 50, truth, count=51)
    assert found.open_ns == pytest.approx(ZN540.open_ns, rel=0.02), "51 draws alone are 7 % off"


def test_rates_of_sequential_reads_are_taken_as_they_are() -> None:
    point = Measurement("read", 512, 4096, 1, 1, 1000, 1, 0, 0, 0)
    points = [point, point._replace(depth=4, iops=3000), point._replace(nr_bytes=8192, iops=500)]
    found = fit(points, ZN540)
    assert found.read_ahead_rates == ((4096, ((1000, 3000),)), (8192, ((500, 500),)))
    assert found == with_read_ahead(ZN540, points)
    assert (found.read_ahead_streams, found.read_ahead_depths) == ((1,), (1, 4))


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    point = Measurement("open", 4096, 4096, 1, 1, 0, 9500, 9500, 0, 0)
    with pytest.raises(UsageError, match="pip install 'zonefs-emu"):
        fit([point], ZN540)
