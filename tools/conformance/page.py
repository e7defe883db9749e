"""docs/conformance.md, from the runs that are kept."""

import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from tools.conformance.results import VERDICTS, Outcome, Run

_FIO: Final = "fio t/zbd/test-zbd-support"
_IOTEST: Final = "QEMU's iotest zoned"
#: What was found out about failures: by suite and test, or by suite, test and device.
REASONS: Final[Mapping[tuple[str, ...], str]] = MappingProxyType(
    {
        (_FIO, "32"): "without a limit of open zones a SCSI disk says FFFFFFFFh (ZBC, VPD page B6h), which the script "
        "passes to fio as a number, and fio takes at most 4096",
        (
            _FIO,
            "54",
            "NVMe",
        ): "fio ends with an error after some dozen requests, as on null_blk; the reason was not found",
        (_FIO, "54", "SCSI"): "fio 3.33 itself aborts in its verification, with a double free",
        (
            _FIO,
            "54",
            "null_blk",
        ): "a read of fio's verification ends with an error; the disk is a peer's, and the reason was not looked for",
        (
            _IOTEST,
            "zoned",
        ): "the test closes an open zone without data and expects it to be empty, as in ZBC and virtio; "
        "in ZNS it is closed, which the drive reports, and only a reset makes it empty",
    }
)

_HEAD: Final = """\
# Conformance

Test suites of other people, run in the [test guest](test-guest.md) on our disks, and in guests of the same kind on
disks of the kernel and of QEMU. `make conformance` downloads the suites from Debian's source packages, runs them, and
writes this page; `python -m tools.conformance --help` has the options for a part of it.

Ours are the [SCSI and virtio disks](vhost-user.md) and the [NVMe drive](nvme.md#in-a-virtual-machine) of a virtual
machine. The peers are null_blk and scsi_debug of Linux, and nvme-ns of QEMU.
"""


def page(runs: Sequence[Run], guest: str, *, absent: Sequence[str] = ()) -> str:
    """Return the page; *guest* says in words what the guest consists of, *absent* what was not run."""
    parts = [_HEAD, f"The guest: {guest}.", ""]
    parts += ["| suite | disk | shape | passed | failed | skipped | commit |", "|---|---|---|---|---|---|---|"]
    parts += [
        f"| {run.suite} | {_device(run)} | {run.shape} | "
        + " | ".join(str(run.count(verdict)) for verdict in VERDICTS)
        + f" | {run.commit} |"
        for run in runs
    ]
    if absent:
        parts += ["", textwrap.fill(f"Not run: {'; '.join(absent)}.", 120, break_long_words=False)]
    parts += ["", "## Failures", ""]
    failed = [(run, outcome) for run in runs for outcome in run.outcomes if outcome.verdict == "failed"]
    if failed:
        parts += ["| suite | test | disk | why | peers that fail too |", "|---|---|---|---|---|"]
        parts += [_failure(run, outcome, runs) for run, outcome in failed]
    else:
        parts += ["None."]
    parts += ["", "## Skipped", "", "| suite | reason | tests and disks |", "|---|---|---|"]
    parts += _skipped(runs)
    return "\n".join(parts) + "\n"


def _device(run: Run) -> str:
    return f"**{run.device}**" if run.ours else run.device


def _failure(run: Run, outcome: Outcome, runs: Sequence[Run]) -> str:
    found = REASONS.get((run.suite, outcome.test, run.device)) or REASONS.get((run.suite, outcome.test))
    why = found or f"not looked into; it said: {_cell(outcome.said or 'nothing')}"
    sharing = [
        each.device
        for each in runs
        if each.suite == run.suite
        and each.device != run.device
        and not each.ours
        and any(other.test == outcome.test and other.verdict == "failed" for other in each.outcomes)
    ]
    return f"| {run.suite} | {outcome.test} | {_device(run)} | {why} | {', '.join(sharing) or 'none'} |"


def _skipped(runs: Sequence[Run]) -> list[str]:
    tests: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        for outcome in run.outcomes:
            if outcome.verdict == "skipped":
                node_free = " ".join(word for word in outcome.said.split() if not word.startswith("/dev/"))
                tests.setdefault((run.suite, node_free or "none given", outcome.test), []).append(run.device)
    cells: dict[tuple[str, str], list[str]] = {}
    for (suite, reason, test), devices in tests.items():
        cells.setdefault((suite, reason), []).append(f"{test} ({', '.join(devices)})")
    return [f"| {suite} | {_cell(reason)} | {'; '.join(found)} |" for (suite, reason), found in cells.items()]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")[:160]
