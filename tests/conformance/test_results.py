"""Runs that are kept, and the place of a new one."""

from pathlib import Path

from tools.conformance.results import Outcome, Run, keep, load


def run(device: str, *outcomes: Outcome) -> Run:
    return Run(suite="s", device=device, ours=device == "SCSI", shape="two zones", commit="c", outcomes=outcomes)


def test_a_new_run_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "build" / "kept.json"
    assert load(path) == []
    first = run("SCSI", Outcome(test="1", verdict="failed", said="no"))
    other = run("null_blk", Outcome(test="1", verdict="passed"))
    again = run("SCSI", Outcome(test="1", verdict="passed"), Outcome(test="2", verdict="skipped", said="why"))
    for each in (first, other, again):
        keep(path, each)
    assert load(path) == [other, again]
    assert [again.count(verdict) for verdict in ("passed", "failed", "skipped")] == [1, 0, 1]
