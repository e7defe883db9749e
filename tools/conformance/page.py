"""docs/conformance.md, from the runs that are kept."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from tools.conformance.results import VERDICTS, Outcome, Run

#: What was found out about failures: by suite and test, or by suite, test and device.
REASONS: Final[Mapping[tuple[str, ...], str]] = MappingProxyType(
    {
        ("QEMU's iotest zoned", "zoned"): "the test closes an open zone without data and expects it to be empty, as "
        "in ZBC and virtio; in ZNS it is closed, which the drive reports, and only a reset makes it empty",
    }
)

_HEAD: Final = """\
# Conformance

Test suites of other people, run in the [test guest](test-guest.md) on our disks, and beside them on disks of the kernel
and of QEMU in the same guest. `make conformance` downloads the suites from Debian's source packages, runs them, and
writes this page.

Ours are the [SCSI and virtio disks](vhost-user.md) and the [NVMe drive](nvme.md#in-a-virtual-machine) of a virtual
machine. The peers are null_blk and scsi_debug of Linux, and nvme-ns of QEMU.
"""


def page(runs: Sequence[Run], guest: str) -> str:
    """Return the page; *guest* says in words what the guest consists of."""
    parts = [_HEAD, f"The guest: {guest}.", ""]
    parts += ["| suite | disk | shape | passed | failed | skipped | commit |", "|---|---|---|---|---|---|---|"]
    parts += [
        f"| {run.suite} | {_device(run)} | {run.shape} | "
        + " | ".join(str(run.count(verdict)) for verdict in VERDICTS)
        + f" | {run.commit} |"
        for run in runs
    ]
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
