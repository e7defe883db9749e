"""docs/conformance.md, from the runs that are kept."""

import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tools.conformance import reasons
from tools.conformance.devices import place_of
from tools.conformance.known import KNOWN, breaches
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
machine, three disks [attached](attach.md) in the guest itself, by NVMe/TCP, ublk and VDUSE, and a
[mount](fuse.md) on the machine without a guest, which the tests of zonefs-tools are run on. The peers are null_blk and
scsi_debug of Linux, and nvme-ns of QEMU. A commit is the last one that changed the emulator before the run.
"""
_MUST: Final = "`make conformance` fails if one of these does not hold, also when it has run something else."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A run that the page shows."""

    run: Run
    shape: str
    """The name of the shape."""
    several: bool
    """Whether the suite is run on several shapes."""

    @property
    def disk(self) -> str:
        """The disk in words, with the shape's name where that tells places apart."""
        name = f"**{self.run.device}**" if self.run.ours else self.run.device
        return f"{name} ({self.shape})" if self.several else name


def page(runs: Sequence[Run], suites: Collection[Suite], guest: str) -> str:
    """Return the page; *guest* says in words what the guest consists of."""
    rows = tuple(_rows(runs, suites))
    parts = [_HEAD, f"The guest: {guest}.", ""]
    parts += ["| suite | disk | shape | passed | failed | skipped | version | commit |", f"|{'---|' * 8}"]
    for row in rows:
        counts = " | ".join(str(row.run.count(verdict)) for verdict in VERDICTS)
        version = f"{row.run.version} | {row.run.commit}"
        parts.append(f"| {row.run.suite} | {row.disk} | {row.run.shape} | {counts} | {version} |")
    if absent := _absent(runs, suites):
        parts += ["", textwrap.fill(f"Not run: {'; '.join(absent)}.", 120, break_long_words=False)]
    parts += ["", "## Results that must hold", "", _MUST, "", "| what | holds |", "|---|---|"]
    parts += [f"| {known.words} | {'; '.join(breaches(known, runs)) or 'yes'} |" for known in KNOWN]
    parts += ["", "## Failures", ""]
    failed = [(row, outcome) for row in rows for outcome in row.run.outcomes if outcome.verdict == "failed"]
    if failed:
        parts += ["| suite | test | disk | why | peers that fail too |", "|---|---|---|---|---|"]
        parts += [_failure(row, outcome, rows) for row, outcome in failed]
    else:
        parts += ["None."]
    parts += ["", "## Skipped", "", "| suite | reason | tests | disks |", "|---|---|---|---|"]
    parts += _skipped(rows)
    return "\n".join(parts) + "\n"


def _rows(runs: Sequence[Run], suites: Collection[Suite]) -> Iterator[_Row]:
    """Yield what is kept of the places that there are, in their order."""
    kept = {run.place: run for run in runs}
    for suite in suites:
        for name, shape in suite.places:
            if run := kept.get(place_of(suite.name, name, shape)):
                yield _Row(run=run, shape=shape, several=len(suite.shapes) > 1)


def _absent(runs: Sequence[Run], suites: Collection[Suite]) -> list[str]:
    """Return in words what was not run."""
    found = []
    kept = {run.place for run in runs}
    for suite in suites:
        missing = [
            name if len(suite.shapes) == 1 else f"{name} ({shape})"
            for name, shape in suite.places
            if place_of(suite.name, name, shape) not in kept
        ]
        if missing:
            is_all = len(missing) == len(suite.places)
            found.append(suite.name if is_all else f"{suite.name} on {', '.join(missing)}")
    return found


def _failure(row: _Row, outcome: Outcome, rows: Sequence[_Row]) -> str:
    run = row.run
    found = reasons.reason(run.suite, outcome.test, run.device)
    why = found or f"not looked into; it said: {_cell(outcome.said or 'nothing')}"
    sharing = [
        each.disk
        for each in rows
        if each.run.suite == run.suite
        and each.run.place != run.place
        and not each.run.ours
        and any(other.test == outcome.test and other.verdict == "failed" for other in each.run.outcomes)
    ]
    return f"| {run.suite} | {outcome.test} | {row.disk} | {why} | {', '.join(sharing) or 'none'} |"


def _skipped(rows: Sequence[_Row]) -> list[str]:
    tests: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        for outcome in row.run.outcomes:
            if outcome.verdict == "skipped":
                node_free = " ".join(word for word in outcome.said.split() if not word.startswith("/dev/"))
                disk = row.disk.replace("**", "")
                tests.setdefault((row.run.suite, node_free or "none given", outcome.test), []).append(disk)
    # Tests that are skipped on the same disks for the same reason are one row.
    cells: dict[tuple[str, str, str], list[str]] = {}
    for (suite, reason, test), disks in tests.items():
        cells.setdefault((suite, reason, ", ".join(disks)), []).append(test)
    return [
        f"| {suite} | {_cell(reason)} | {', '.join(found)} | {disks} |"
        for (suite, reason, disks), found in cells.items()
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")[:160]
