"""The page that is made of runs."""

import pytest

from tools.conformance import page as module
from tools.conformance.results import Outcome, Run


def run(device: str, *outcomes: Outcome) -> Run:
    return Run(suite="s", device=device, ours=device == "SCSI", shape="two zones", commit="c0ffee", outcomes=outcomes)


def test_the_page_has_counts_failures_and_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        run("SCSI", Outcome(test="1", verdict="failed", said="a|b"), Outcome(test="2", verdict="passed")),
        run("null_blk", Outcome(test="1", verdict="failed", said="x"), Outcome(test="2", verdict="failed", said="y")),
        run("nvme-ns", Outcome(test="1", verdict="passed"), Outcome(test="2", verdict="skipped", said="/dev/x is new")),
    ]
    monkeypatch.setattr(module, "REASONS", {("s", "2"): "known"})
    text = module.page(runs, "Linux 6.12", absent=["s on virtio", "t on SCSI"])
    assert "| s | **SCSI** | two zones | 1 | 1 | 0 | c0ffee |" in text
    assert r"| s | 1 | **SCSI** | not looked into; it said: a\|b | null_blk |" in text
    assert "| s | 2 | null_blk | known | none |" in text
    assert "| s | is new | 2 (nvme-ns) |" in text
    assert "The guest: Linux 6.12." in text
    assert "Not run: s on virtio; t on SCSI." in text


def test_without_failures_it_says_so() -> None:
    text = module.page([run("SCSI", Outcome(test="1", verdict="passed"))], "Linux")
    assert "## Failures\n\nNone.\n" in text
    assert "Not run" not in text
