"""The benchmarks' own judgement: what counts as met, as noise and as worse; and the picture."""

import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import __main__ as program, history
from bench.harness import Row, compare, format_table, spread
from bench.picture import overview, svg


def row(*ratios: float, noise: float = 0.0, goal: float | None = 1.0, area: str = "FUSE", what: str = "reads") -> Row:
    return Row(
        area=area, what=what, unit="/s", ours=2.0, peer="C", peers=1.0, ratios=ratios, noise=noise, goal=goal,
    )  # fmt: skip


def run(commit: str, *rows: Row, machine: str = "m") -> history.Run:
    return history.run_of(rows, commit=commit, machine=machine)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (row(0.9, 1.1, 1.2), "met"),
        (row(0.8, 0.9, 1.2), "MISSED"),
        (row(0.9, 1.1, 1.2, noise=0.5), "too noisy"),
        (row(0.8, 0.9, 1.2, noise=0.5), "too noisy"),
        (row(1.1, 1.2, noise=0.5), "met"),
        (row(0.8, 0.9, noise=0.5), "MISSED"),
        (row(0.8, noise=0.5, goal=None), ""),
        (Row(area="device", what="refused", unit="µs", ours=11, limit=10), "MISSED"),
        (Row(area="device", what="refused", unit="µs", ours=9, limit=10), "met"),
    ],
)
def test_verdict(found: Row, verdict: str) -> None:
    assert found.verdict == verdict


def test_the_noise_is_the_spread_of_the_peer_against_itself() -> None:
    assert spread([90, 100, 120]) == pytest.approx(0.3)
    peers = iter((90, 120, 100))
    found = compare("a", "b", "/s", lambda: 50, peer="C", peers=lambda: next(peers), runs=3)
    assert found.noise == pytest.approx(0.3)
    assert "| 30 %" in format_table([found])


def test_a_run_is_kept_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert history.read(path) == []
    first, second = run("a", row(1.5, noise=0.25)), run("b", row(2.0), row(3.0, area="vhost"))
    history.append(first, path)
    history.append(second, path)
    assert history.read(path) == [first, second]


@pytest.mark.parametrize("line", ["{", "[]", '{"commit": "a"}', '{"commit": "a", "machine": "m", "rows": [{}]}'])
def test_a_damaged_history_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    history.append(run("a", row(1.5)), path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"history\.jsonl, line 2: not a run of the benchmarks"):
        history.read(path)


def test_worse_is_what_is_lower_than_the_last_run_beyond_the_noise() -> None:
    earlier = [
        run("old", row(4.0), row(1.0, what="writes")),
        run("other", row(9.0), machine="another"),
        run("new", row(2.0, noise=0.2)),
    ]
    assert list(history.worse(earlier, run("now", row(1.7)))) == [], "within the noise of the earlier run"
    assert list(history.worse(earlier, run("now", row(1.6)))) == ["FUSE: reads, against C: 2.00 at new, 1.60 now"]
    assert list(history.worse(earlier, run("now", row(1.6, noise=0.3)))) == [], "within the noise of this run"
    assert list(history.worse(earlier, run("now", row(0.9, what="writes")))) == [
        "FUSE: writes, against C: 1.00 at old, 0.90 now"
    ]
    assert list(history.worse(earlier, run("now", row(0.1, what="syncs")))) == []


def test_rows_without_a_peer_are_not_kept() -> None:
    assert run("a", Row(area="device", what="refused", unit="µs", ours=9, limit=10)).ratios == {}


def test_the_picture_has_a_bar_for_each_row_with_a_peer() -> None:
    rows = [
        row(0.4, 0.5, 0.6), row(2.0, area="ublk", what="4 KiB <read>"), row(99.0, goal=None),
        Row(area="device", what="refused", unit="µs", ours=9, limit=10),
    ]  # fmt: skip
    picture = ET.fromstring(svg(rows))
    name = "{http://www.w3.org/2000/svg}"
    bars = picture.findall(f"{name}rect")
    texts = [text.text for text in picture.findall(f"{name}text")]
    assert len(bars) == 3
    assert [text for text in texts if text in {"FUSE", "ublk"}] == ["FUSE", "ublk"]
    assert "4 KiB <read>, against C" in texts
    assert [text for text in texts if text and text.endswith("0 ×")] == ["0.50 ×", "99.00 ×", "2.00 ×"]
    # A ratio below 1 ends where the peer's line is, one above begins there.
    below, _, above = (float(bar.get("x", 0)) for bar in bars)
    assert below + float(bars[0].get("width", 0)) == pytest.approx(above)
    width, height = map(float, picture.get("viewBox", "").split()[2:])
    for bar in bars:
        assert 0 <= float(bar.get("x", 0)) <= width - float(bar.get("width", 0))
        assert float(bar.get("y", 0)) < height


def test_the_overview_has_a_bar_for_each_area_and_peer() -> None:
    rows = [
        row(1.0), row(4.0), row(0.5, what="reads, pure Python"), row(8.0, area="ublk"),
        Row(area="device", what="refused", unit="µs", ours=9, limit=10),
    ]  # fmt: skip
    texts = [text.text for text in ET.fromstring(overview(rows)).iterfind("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text and text.startswith(("FUSE", "ublk", "against"))] == [
        "FUSE", "against C", "against C, in pure Python", "ublk", "against C",
    ]  # fmt: skip
    # The mean of twice as fast and half as fast is as fast.
    assert [text for text in texts if text and text.endswith("0 ×")] == ["2.00 ×", "0.50 ×", "8.00 ×"]


def test_a_run_is_kept_unless_the_machine_was_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole program on an area that measures nothing: its page, pictures and history."""
    found = [row(2.0)]
    monkeypatch.setitem(sys.modules, "bench.nothing", SimpleNamespace(rows=lambda _scratch, _runs: found))
    monkeypatch.setattr(program, "AREAS", ("nothing",))
    monkeypatch.setattr(history, "HISTORY", tmp_path / "history.jsonl")
    for name in ("RESULTS", "PICTURE", "OVERVIEW"):
        monkeypatch.setattr(program, name, tmp_path / name)
    monkeypatch.chdir(tmp_path)

    def bench(load: float, *arguments: str) -> set[str]:
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
        monkeypatch.setattr(sys, "argv", ["bench", "--write", *arguments])
        assert program.main() == 0
        return {path.name for path in tmp_path.iterdir()}

    assert bench(1000.0) == set()
    told = capsys.readouterr()
    assert "is busy with other work" in told.out
    assert "not kept (--busy)" in told.err
    everything = {"history.jsonl", "RESULTS", "PICTURE", "OVERVIEW"}
    assert bench(0.0) == everything
    assert "| FUSE | reads | 2 /s" in (tmp_path / "RESULTS").read_text()
    found[:] = [row(1.0)]
    capsys.readouterr()
    bench(1000.0, "--busy")
    assert "worse: FUSE: reads, against C: 2.00" in capsys.readouterr().out
    assert len(history.read(tmp_path / "history.jsonl")) == 2


def test_an_area_that_fails_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_scratch: Path, _runs: int) -> list[Row]:
        message = "the guest does not boot"
        raise OSError(message)

    monkeypatch.setitem(sys.modules, "bench.broken", SimpleNamespace(rows=fail))
    monkeypatch.setitem(sys.modules, "bench.nothing", SimpleNamespace(rows=lambda _scratch, _runs: [row(2.0)]))
    monkeypatch.setattr(program, "AREAS", ("broken", "nothing"))
    monkeypatch.setattr(history, "HISTORY", tmp_path / "history.jsonl")
    for name in ("RESULTS", "PICTURE", "OVERVIEW"):
        monkeypatch.setattr(program, name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(sys, "argv", ["bench", "--write"])
    assert program.main() == 1
    told = capsys.readouterr()
    assert "OSError: the guest does not boot" in told.err
    assert "an error ended the area: broken." in told.out
    page = (tmp_path / "RESULTS").read_text()
    assert "| FUSE | reads | 2 /s" in page
    assert "an error ended the area: broken." in page
