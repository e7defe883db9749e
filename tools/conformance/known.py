"""Results that must hold: what was found once and may not be lost again.

A run that is not kept is a result that does not hold: the page would otherwise say more than is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tools.conformance.devices import place_of
from tools.conformance.results import Run
from tools.conformance.suites import SUITES


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A suite that must pass on disks of ours."""

    words: str
    suite: str
    """A key of the table of suites."""
    shape: str
    devices: tuple[str, ...]
    passed: int
    """So many tests pass at least, and none fails."""


KNOWN: Final = (
    Known(
        words="fio passes all 65 tests that apply to a disk with blocks of 4096 bytes and conventional zones",
        suite="fio",
        shape="small",
        devices=("SCSI",),
        passed=65,
    ),
    Known(
        words="QEMU's test of zones passes byte for byte",
        suite="qemu",
        shape="large",
        devices=("SCSI", "virtio"),
        passed=1,
    ),
    Known(
        words="libzbc passes sections 00 to 02",
        suite="libzbc",
        shape="limited",
        devices=("SCSI",),
        passed=142,
    ),
    Known(
        words="blktests passes zbd/001 to 006",
        suite="blktests",
        shape="small",
        devices=("SCSI", "virtio", "NVMe", "ublk"),
        passed=6,
    ),
)  # fmt: skip


def breaches(known: Known, runs: Sequence[Run]) -> list[str]:
    """Return in words on which disks *known* does not hold."""
    kept = {run.place: run for run in runs}
    found = []
    for name in known.devices:
        run = kept.get(place_of(SUITES[known.suite].name, name, known.shape))
        if run is None:
            found.append(f"not run on {name}")
        elif run.count("failed") or run.count("passed") < known.passed:
            failed = " ".join(outcome.test for outcome in run.outcomes if outcome.verdict == "failed")
            counts = f"{run.count('passed')} of {known.passed} passed"
            found.append(f"on {name} {counts}" + (f", failed: {failed}" if failed else ""))
    return found
