"""Run other people's suites on our disks and on peers': ``python -m tools.conformance [SUITE …] [--device NAME …]``.

Every run of a suite on a disk is kept in build/conformance.json, in the place of an earlier one, so that what was
interrupted goes on with the rest: --missing runs only what is not kept of this commit. --write makes
docs/conformance.md of all runs that are kept. All takes about an hour on two idle processors.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.conformance.devices import OURS, PEERS, SHAPES, commit, machine
from tools.conformance.page import page
from tools.conformance.results import Run, keep, load
from tools.conformance.sources import obtain
from tools.conformance.suites import SUITES, Suite
from tools.guest.kit import KitError, obtain_kit
from tools.guest.machine import GuestError
from tools.guest.newer_qemu import find_newer_qemu, obtain_newer_qemu

ROOT: Final = Path(__file__).parents[2]
KEPT: Final = ROOT / "build/conformance.json"
PAGE: Final = ROOT / "docs/conformance.md"
#: A disk of 250 GiB is more than memory can be.
LEFT_OUT: Final = frozenset({("qemu", "scsi_debug")})


def main() -> int:
    """Run what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.conformance", description=__doc__)
    parser.add_argument("suites", metavar="SUITE", nargs="*", help=f"one of {', '.join(SUITES)}; all if none is given")
    parser.add_argument("--device", action="append", choices=[*OURS, *PEERS], help="a disk; all if none is given")
    parser.add_argument("--missing", action="store_true", help="only what is not kept of this commit")
    parser.add_argument("--write", action="store_true", help="write docs/conformance.md")
    parser.add_argument("--page", action="store_true", help="write it from what is kept, and run nothing")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"no suite is called {', '.join(sorted(unknown))}")
    try:
        for key in options.suites or ([] if options.page else SUITES):
            _run(key, tuple(options.device or (*OURS, *PEERS)), missing=options.missing)
    except (KitError, GuestError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.write or options.page:
        devices, suites = (*OURS, *PEERS), [suite.name for suite in SUITES.values()]
        runs = sorted(load(KEPT), key=lambda run: (suites.index(run.suite), devices.index(run.device)))
        PAGE.write_text(page(runs, _guest_in_words(), absent=_absent(runs)))
    return 0


def _run(key: str, names: tuple[str, ...], *, missing: bool) -> None:
    """Run a suite on the disks *names*, each in a guest of its own: what one leaves behind does not meet the next."""
    suite, shape, now = SUITES[key], SHAPES[SUITES[key].shape], commit()
    kept = {(run.suite, run.device, run.commit) for run in load(KEPT)}
    source = obtain(suite.source, _say)
    obtain_newer_qemu(_say)
    kit = find_newer_qemu(obtain_kit(_say))
    if kit is None:
        message = "the newer QEMU has gone from the cache"
        raise KitError(message)
    for name in names:
        if (key, name) in LEFT_OUT or (missing and (suite.name, name, now) in kept):
            continue
        _say(f"conformance: {suite.name} on {name}")
        with (
            tempfile.TemporaryDirectory(prefix="conformance-") as directory,
            machine(kit, (name,), shape, Path(directory)) as (guest, (device,)),
        ):
            outcomes = suite.run(guest, device.node, source)
            run = Run(
                suite=suite.name, device=name, ours=device.ours, shape=shape.words(conventional=device.conventional),
                commit=now, outcomes=outcomes,
            )  # fmt: skip
        keep(KEPT, run)
        _say(_in_words(suite, run))


def _absent(runs: Sequence[Run]) -> list[str]:
    """Return in words what is not among *runs*."""
    kept = {(run.suite, run.device) for run in runs}
    return [
        f"{suite.name} on {name}" + (", whose memory it does not fit in" if (key, name) in LEFT_OUT else "")
        for key, suite in SUITES.items()
        for name in (*OURS, *PEERS)
        if (suite.name, name) not in kept
    ]


def _in_words(suite: Suite, run: Run) -> str:
    failed = " ".join(outcome.test for outcome in run.outcomes if outcome.verdict == "failed")
    counts = f"{run.count('passed')} passed, {run.count('failed')} failed, {run.count('skipped')} skipped"
    return f"conformance: {suite.name} on {run.device}: {counts}" + (f" (failed: {failed})" if failed else "")


def _guest_in_words() -> str:
    kit = obtain_kit(_say)
    return f"Linux {kit.kernel_release}, with fio 3.33 and qemu-io 10.0 of Debian"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
