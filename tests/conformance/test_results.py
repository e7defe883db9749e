"""Runs that are kept, and the place of a new one."""

from dataclasses import replace
from pathlib import Path

from tools.conformance.results import Outcome, Run, keep, load


def run(device: str, *outcomes: Outcome) -> Run:
    return Run(
        suite="s", version="s 1", device=device, ours=device == "SCSI", shape="two zones", commit="c", outcomes=outcomes
    )


def test_a_new_run_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    assert load(path) == []
    first = run("SCSI", Outcome(test="1", verdict="failed", said="no"))
    other = run("null_blk", Outcome(test="1", verdict="passed"), Outcome(test="3", verdict="passed"))
    again = run(
        "SCSI",
        Outcome(test="1", verdict="passed"),
        Outcome(test="2", verdict="skipped", said="why"),
        Outcome(test="3", verdict="failed", said="no, again"),
    )
    for each in (first, other, again):
        keep(path, each)
    assert load(path) == [again, other], "ordered by suite and device"
    assert [again.count(verdict) for verdict in ("passed", "failed", "skipped")] == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path], "the lock is gone"


def test_a_run_on_another_shape_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    first, other = run("SCSI"), replace(run("SCSI"), shape="three zones")
    for each in (first, other):
        keep(path, each)
    assert load(path) == [other, first]


def test_a_run_without_outcomes_is_kept(tmp_path: Path) -> None:
    keep(tmp_path / "kept.json", run("SCSI"))
    assert load(tmp_path / "kept.json") == [run("SCSI")]
