"""docs/conformance.md, from the runs that are kept."""

import textwrap
from collections.abc import Collection, Sequence
from typing import Final

from tools.conformance import reasons
from tools.conformance.results import VERDICTS, Outcome, Run
from tools.conformance.suites import Suite

_HEAD: Final = """\
# Conformance

Test suites of other people, and file systems, run in the [test guest](test-guest.md) on our disks, and in guests of
the same kind on disks of the kernel and of QEMU. `make conformance` runs the suites and writes this page. It downloads
those that Debian's source packages have. Others are run if they are given as compiled checkouts: `make conformance
SUITES=DIR` looks for `DIR/blktests`, `DIR/libzbc`, `DIR/zonefs-tools`, `DIR/dm-zoned-tools`, and `DIR/xfstests`, whose
fsstress and fsx are run on the file systems. `python -m tools.conformance --help` has the options for a part of it.

Ours are the [SCSI and virtio disks](vhost-user.md) and the [NVMe drive](nvme.md#in-a-virtual-machine) of a virtual
machine, and two disks [attached](attach.md) in the guest itself, by NVMe/TCP and ublk. The peers are null_blk and
scsi_debug of Linux, and nvme-ns of QEMU. A commit is the last one that changed the emulator before the run.
"""


def page(runs: Sequence[Run], suites: Collection[Suite], guest: str) -> str:
    """Return the page; *guest* says in words what the guest consists of."""
    runs = sorted((run for run in runs if _place(run, suites)), key=lambda run: _place(run, suites))
    parts = [_HEAD, f"The guest: {guest}.", ""]
    parts += ["| suite | disk | shape | passed | failed | skipped | version | commit |", f"|{'---|' * 8}"]
    parts += [
        f"| {run.suite} | {_device(run)} | {run.shape} | "
        + " | ".join(str(run.count(verdict)) for verdict in VERDICTS)
        + f" | {run.version} | {run.commit} |"
        for run in runs
    ]
    if absent := _absent(runs, suites):
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


def _place(run: Run, suites: Collection[Suite]) -> tuple[int, ...]:
    """Return where *run* stands on the page; empty if there is no such suite any more."""
    for number, suite in enumerate(suites):
        if suite.name == run.suite and run.device in suite.devices:
            return number, suite.devices.index(run.device)
    return ()


def _absent(runs: Sequence[Run], suites: Collection[Suite]) -> list[str]:
    """Return in words what was not run."""
    found = []
    for suite in suites:
        kept = {run.device for run in runs if run.suite == suite.name}
        names = [name for name in suite.devices if name not in kept]
        if names:
            found.append(f"{suite.name} on {', '.join(names)}" if kept else suite.name)
    return found


def _device(run: Run) -> str:
    return f"**{run.device}**" if run.ours else run.device


def _failure(run: Run, outcome: Outcome, runs: Sequence[Run]) -> str:
    found = reasons.reason(run.suite, outcome.test, run.device)
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
