import json
from pathlib import Path
from typing import Any

from tests.cli.conftest import fails, held, ok
from zonefs_emu.cli.timing_lines import stats_lines, watch_line

READS = {
    "count": 4, "total_ns": 400_000, "waited_ns": 100_000, "mean_ns": 100_000, "queueing_ns": 25_000,
    "service_ns": 75_000, "longest_ns": 150_000,
}  # fmt: skip


def timing(**changed: Any) -> dict[str, Any]:
    return {
        "preset": "zn540", "scale": 1.0, "elapsed_ns": 1_000_000, "busy_ns": 250_000, "answers": 4, "late_answers": 0,
        "late_mean_ns": 0, "late_max_ns": 0, "operations": {"read": READS},
    } | changed  # fmt: skip


def test_what_stats_says() -> None:
    assert list(stats_lines(timing())) == [
        "timing zn540: 25 % busy\n",
        "read:    4 in 100.0 us on average: 25.0 us queueing, 75.0 us service; the longest in 150.0 us\n",
    ]
    slow = timing(scale=10.0, busy_ns=10**9, late_answers=2, late_mean_ns=5000, late_max_ns=8000, operations={})
    assert list(stats_lines(slow)) == [
        "timing zn540, 10 times slower: 100 % busy\n",
        "late answers: 2 of 4, by 5 us on average, 8 us at most\n",
    ]


def test_what_watch_says_is_of_the_time_between() -> None:
    more = READS | {"count": 6, "total_ns": 800_000, "waited_ns": 300_000}
    later = timing(elapsed_ns=2_000_000, busy_ns=750_000, operations={"read": more, "reset": READS})
    assert watch_line(later, timing()) == "timing zn540: 50 % busy  50.0 us queueing  83.3 us service\n"
    assert watch_line(timing(late_answers=3), timing()) == "timing zn540: 0 % busy  3 answers late\n"
    of_another_daemon = timing(elapsed_ns=9_000_000, late_answers=7)
    assert watch_line(timing(), of_another_daemon) == "timing zn540: 25 % busy  25.0 us queueing  75.0 us service\n"


def test_the_verbs_of_a_timed_daemon(fresh: Path) -> None:
    with held(fresh, timing="zn540"):
        ok("append", fresh, "--zone", 3, stdin=bytes(8192))
        ok("reset", fresh, "--zone", 3)
        found = json.loads(ok("stats", fresh, "--json"))["timing"]
        assert (found["preset"], found["answers"], found["operations"]["reset"]["count"]) == ("zn540", 2, 1)
        lines = ok("stats", fresh).splitlines()
        assert any(line.startswith("timing zn540: ") for line in lines)
        assert any(line.startswith("append:  1 in 1") for line in lines)
        assert "zonefs_emu_timing_answers_total{image=" in ok("stats", fresh, "--openmetrics")
        slowest, other = ok("why", fresh, "--slow", 2).splitlines()
        assert slowest.startswith("reset, zone 3, at ")
        assert other.startswith("append of 16 sectors, zone 3, at ")
        (told,) = json.loads(ok("why", fresh, "--slow", 1, "--json"))["slow"]
        assert (told["operation"], told["zone_no"], told["waited_for"]) == ("reset", 3, "nothing")
        assert told["latency_ns"] > 1_600_000
        pictures = ok("watch", fresh, "--frames", 2, "--interval", 0.1).splitlines()
        assert "timing zn540: 0 % busy" in pictures
    assert "commands of this image are not timed: mount, serve or attach it" in fails("why", fresh, "--slow", 1)
    assert "--follow has no effect beside --slow" in fails("why", fresh, "--slow", 1, "--follow", code=2)
    assert "timing" not in json.loads(ok("stats", fresh, "--json"))


def test_the_presets_are_those_that_there_are() -> None:
    from zonefs_emu.cli.common import TIMINGS
    from zonefs_emu.model.timing.timing_presets import TIMING_PRESETS

    assert tuple(TIMING_PRESETS) == TIMINGS


def test_no_other_preset_is_taken(fresh: Path, tmp_path: Path) -> None:
    for verb in (("mount", fresh, tmp_path / "mnt"), ("serve", fresh), ("attach", fresh)):
        assert "is not one of 'zn540', 'smr-hm', 'none'" in fails(*verb, "--timing", "fast", code=2)
        assert "is not in the range" in fails(*verb, "--timing", "zn540", "--time-scale", 0, code=2)
