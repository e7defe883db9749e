"""Results that must hold."""

from dataclasses import replace

from tools.conformance.devices import place_of
from tools.conformance.known import KNOWN, Known, breaches
from tools.conformance.results import Outcome, Run
from tools.conformance.suites import SUITES

KNOWN_ONE = Known(words="w", suite="blktests", shape="small", devices=("SCSI", "NVMe"), passed=2)


def run(device: str, *outcomes: Outcome) -> Run:
    suite, _, shape = place_of(SUITES["blktests"].name, device, "small")
    return Run(
        suite=suite, version="v", device=device, ours=True, shape=shape, commit="c", outcomes=outcomes
    )  # fmt: skip


def test_a_failure_a_lost_test_and_a_run_that_is_not_kept_are_breaches() -> None:
    passed = tuple(Outcome(test=test, verdict="passed") for test in ("001", "002"))
    assert breaches(KNOWN_ONE, [run("SCSI", *passed), run("NVMe", *passed)]) == []
    failed = replace(passed[1], verdict="failed")
    assert breaches(KNOWN_ONE, [run("SCSI", passed[0], failed)]) == [
        "on SCSI 1 of 2 passed, failed: 002",
        "not run on NVMe",
    ]
    skipped = replace(passed[1], verdict="skipped")
    assert breaches(KNOWN_ONE, [run("SCSI", *passed), run("NVMe", passed[0], skipped)]) == ["on NVMe 1 of 2 passed"]
    more = Outcome(test="003", verdict="failed")
    assert breaches(KNOWN_ONE, [run("SCSI", *passed, more), run("NVMe", *passed)])
    other_shape = replace(run("NVMe", *passed), shape="another")
    assert breaches(KNOWN_ONE, [run("SCSI", *passed), other_shape]) == ["not run on NVMe"]


def test_what_must_hold_is_run() -> None:
    for known in KNOWN:
        places = SUITES[known.suite].places
        assert all((name, known.shape) in places for name in known.devices)
