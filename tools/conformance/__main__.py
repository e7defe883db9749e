"""Run other people's suites on our disks and on peers': ``python -m tools.conformance [SUITE …] [--device NAME …]``.

Every run of a suite on a disk is kept in tools/conformance/results.json, in the place of an earlier one, so that parts
run by themselves, and what was interrupted goes on with the rest. --missing runs only what is not kept, --older also
what is kept of another commit of the emulator. docs/conformance.md is made of all that is kept. All takes hours.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.conformance.devices import OURS, PEERS, SHAPES, commit, machine
from tools.conformance.page import page
from tools.conformance.results import Run, keep, load
from tools.conformance.setting import Setting
from tools.conformance.sources import Checkout, Package, Source
from tools.conformance.suites import SUITES, Suite
from tools.guest.kit import Kit, KitError, obtain_kit
from tools.guest.machine import GuestError
from tools.guest.newer_qemu import NEWER_QEMU, find_newer_qemu

KEPT: Final = Path(__file__).parent / "results.json"
PAGE: Final = Path(__file__).parents[2] / "docs/conformance.md"


def main() -> int:
    """Run what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.conformance", description=__doc__)
    parser.add_argument("names", metavar="SUITE", nargs="*", help=f"one of {', '.join(SUITES)}; all if none is given")
    parser.add_argument("--device", action="append", choices=[*OURS, *PEERS], help="a disk; all if none is given")
    parser.add_argument("--suites", metavar="DIR", type=Path, help="a directory with checkouts of suites, compiled")
    parser.add_argument("--missing", action="store_true", help="only what is not kept")
    parser.add_argument("--older", action="store_true", help="only what is not kept of this commit of the emulator")
    parser.add_argument("--page", action="store_true", help="make the page of what is kept, and run nothing")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SUITES):
        parser.error(f"no suite is called {', '.join(sorted(unknown))}")
    status = 0
    try:
        for key in () if options.page else options.names or SUITES:
            names = tuple(_wanted(SUITES[key], options))
            if names and not _run(SUITES[key], names, options.suites):
                status = 1
        PAGE.write_text(page(load(KEPT), SUITES.values(), f"Linux {obtain_kit(_say).kernel_release}"))
    except (KitError, GuestError) as error:
        _say(str(error))
        return 1
    return status


def _wanted(suite: Suite, options: argparse.Namespace) -> Iterator[str]:
    """Yield the disks that *suite* is to be run on."""
    kept = {run.device: run for run in load(KEPT) if run.suite == suite.name}
    now = commit()
    for name in suite.devices:
        if options.device and name not in options.device:
            continue
        # What another's disk says does not change with our commits.
        is_older = name in kept and kept[name].ours and kept[name].commit != now
        if name not in kept or (is_older if options.older else not options.missing):
            yield name


def _run(suite: Suite, names: tuple[str, ...], suites: Path | None) -> bool:
    """Run a suite on the disks *names*, each in a guest of its own: what one leaves behind does not meet the next.

    Returns whether the suite is there.
    """
    kit = _kit()
    try:
        source = _source(suite, suites, kit)
        programs = None if suite.programs is None else suite.programs.obtain(_say)
    except KitError as error:
        _say(f"conformance: {suite.name} is not run: {error}")
        return False
    for name in names:
        _say(f"conformance: {suite.name} on {name}")
        with (
            tempfile.TemporaryDirectory(prefix="conformance-") as directory,
            machine(kit, (name,), SHAPES[suite.shape], Path(directory)) as (guest, (device,)),
        ):
            outcomes = suite.run(
                Setting(guest=guest, device=device, source=source.place, programs=programs, suites=suites)
            )
            run = Run(
                suite=suite.name, version=source.version, device=name, ours=device.ours,
                shape=SHAPES[suite.shape].words(conventional=device.conventional), commit=commit(), outcomes=outcomes,
            )  # fmt: skip
        keep(KEPT, run)
        _say(_in_words(run))
    return True


def _source(suite: Suite, suites: Path | None, kit: Kit) -> Source:
    match suite.source:
        case Package() as package:
            return package.obtain(_say)
        case Checkout() as checkout:
            return checkout.find(suites)
        case None:
            return Source(place=kit.root, version=f"Linux {kit.kernel_release}")


def _kit() -> Kit:
    NEWER_QEMU.obtain(_say)
    kit = find_newer_qemu(obtain_kit(_say))
    if kit is None:
        message = "the newer QEMU has gone from the cache"
        raise KitError(message)
    return kit


def _in_words(run: Run) -> str:
    failed = " ".join(outcome.test for outcome in run.outcomes if outcome.verdict == "failed")
    counts = f"{run.count('passed')} passed, {run.count('failed')} failed, {run.count('skipped')} skipped"
    return f"conformance: {run.suite} on {run.device}: {counts}" + (f" (failed: {failed})" if failed else "")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
