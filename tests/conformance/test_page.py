"""The page that is made of runs."""

import pytest

from tools.conformance import reasons
from tools.conformance.devices import place_of
from tools.conformance.known import KNOWN
from tools.conformance.page import page
from tools.conformance.results import Outcome, Run
from tools.conformance.suites import SUITES as SUITES_OF_ALL, Suite

SUITES = (
    Suite(name="s", shapes=("small",), run=lambda _: (), only=frozenset({"SCSI", "virtio", "null_blk", "nvme-ns"})),
    Suite(name="t", shapes=("small", "capacity"), run=lambda _: (), only=frozenset({"SCSI"})),
)


def run(device: str, *outcomes: Outcome, suite: str = "s", shape: str = "small") -> Run:
    words = place_of(suite, device, shape)[2]
    return Run(
        suite=suite, version="s 1.2", device=device, ours=device == "SCSI", shape=words, commit="c0ffee",
        outcomes=outcomes,
    )  # fmt: skip


def test_the_page_has_counts_failures_and_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        run("nvme-ns", Outcome(test="1", verdict="passed"), Outcome(test="2", verdict="skipped", said="/dev/x is new")),
        run("null_blk", Outcome(test="1", verdict="failed", said="x"), Outcome(test="2", verdict="failed", said="y")),
        run("SCSI", Outcome(test="1", verdict="failed", said="a|b"), Outcome(test="2", verdict="passed")),
        run("SCSI", Outcome(test="gone", verdict="failed"), suite="a suite of an earlier version"),
    ]
    monkeypatch.setattr(reasons, "REASONS", {("s", "2"): "known", ("s", "1", "null_blk"): "theirs"})
    text = page(runs, SUITES, "Linux 6.12")
    assert f"| s | **SCSI** | {runs[2].shape} | 1 | 1 | 0 | s 1.2 | c0ffee |\n| s | null_blk |" in text, (
        "ours come first"
    )
    assert r"| s | 1 | **SCSI** | not looked into; it said: a\|b | null_blk |" in text
    assert "| s | 1 | null_blk | theirs | none |" in text
    assert "| s | 2 | null_blk | known | none |" in text
    assert "| s | is new | 2 | nvme-ns |" in text
    assert "The guest: Linux 6.12." in text
    assert "Not run: s on virtio; t." in text
    assert "gone" not in text


def test_without_failures_it_says_so() -> None:
    text = page([run("SCSI", Outcome(test="1", verdict="passed"), suite="t")], SUITES[1:], "Linux")
    assert "## Failures\n\nNone.\n" in text
    assert "Not run: t on SCSI (capacity)." in text


def test_runs_on_several_shapes_are_told_apart() -> None:
    failed, skipped = Outcome(test="1", verdict="failed"), Outcome(test="2", verdict="skipped", said="no")
    runs = [run("SCSI", failed, skipped, suite="t", shape=shape) for shape in ("small", "capacity")]
    text = page(runs, SUITES[1:], "Linux")
    assert "| t | 1 | **SCSI** (small) |" in text
    assert "| t | 1 | **SCSI** (capacity) |" in text
    assert "| t | no | 2 | SCSI (small), SCSI (capacity) |" in text
    assert "Not run" not in text


def test_the_page_says_what_does_not_hold() -> None:
    (known,) = (each for each in KNOWN if each.suite == "libzbc")
    suite = SUITES_OF_ALL["libzbc"]
    assert f"| {known.words} | not run on SCSI |" in page([], [suite], "Linux")
    passed = tuple(Outcome(test=str(number), verdict="passed") for number in range(known.passed))
    found = page([run("SCSI", *passed, suite=suite.name, shape="limited")], [suite], "Linux")
    assert f"| {known.words} | yes |" in found
