"""Run other people's suites on our disks and on peers': ``python -m tools.conformance [SUITE …] [--device NAME …]``.

Every run of a suite on a disk of a shape is kept in tools/conformance/results.json, in the place of an earlier one, so
that single rows of the page are made anew (fio --device SCSI --shape small), and what was interrupted goes on with the
rest. --missing runs only what is not kept, --older also what is kept of another commit of the emulator.
docs/conformance.md is made of all that is kept. All takes hours.

The exit status is 1 if something could not be run, or if a result that must hold does not hold.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.conformance.devices import MOUNT, OURS, PEERS, SHAPES, Shape, commit, machine, place_of
from tools.conformance.known import KNOWN, breaches
from tools.conformance.page import page
from tools.conformance.results import Outcome, Run, keep, load
from tools.conformance.setting import Setting
from tools.conformance.sources import Checkout, Package, Source
from tools.conformance.suites import SUITES, Suite
from tools.guest.kit import Kit, KitError, obtain_kit
from tools.guest.machine import GuestError
from tools.guest.newer_kernel import NEWER_KERNEL, NewerKernelKit, find_newer_kernel
from tools.guest.newer_qemu import NEWER_QEMU, find_newer_qemu
from tools.guest.qmp import QmpError

KEPT: Final = Path(__file__).parent / "results.json"
PAGE: Final = Path(__file__).parents[2] / "docs/conformance.md"


def main() -> int:
    """Run what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.conformance", description=__doc__)
    parser.add_argument("names", metavar="SUITE", nargs="*", help=f"one of {', '.join(SUITES)}; all if none is given")
    parser.add_argument("--device", action="append", choices=[*OURS, *PEERS], help="a disk; all if none is given")
    parser.add_argument("--shape", action="append", choices=[*SHAPES], help="a shape of disks; all if none is given")
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
            wanted = tuple(_wanted(SUITES[key], options))
            if wanted and not _run(SUITES[key], wanted, options.suites):
                status = 1
        PAGE.write_text(page(load(KEPT), SUITES.values(), _guests(obtain_kit(_say))))
    except KitError as error:
        _say(str(error))
        return 1
    for known in KNOWN:
        for breach in breaches(known, load(KEPT)):
            _say(f"conformance: this must hold, and does not: {known.words}: {breach}")
            status = 1
    return status


def _wanted(suite: Suite, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield the disks and the names of the shapes that *suite* is to be run on."""
    kept = {run.place: run for run in load(KEPT)}
    now = commit()
    for name, shape in suite.places:
        if (options.device and name not in options.device) or (options.shape and shape not in options.shape):
            continue
        run = kept.get(place_of(suite.name, name, shape))
        # What another's disk says does not change with our commits.
        is_older = run is not None and run.ours and run.commit != now
        if run is None or (is_older if options.older else not options.missing):
            yield name, shape


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """What a suite needs on this machine."""

    kit: Kit
    source: Source
    programs: Path | None
    suites: Path | None


def _run(suite: Suite, wanted: tuple[tuple[str, str], ...], suites: Path | None) -> bool:
    """Run a suite on disks of shapes, each in a guest of its own: what one leaves behind does not meet the next.

    Returns whether all of them were run.
    """
    try:
        kit = _kit(newer_kernel=suite.newer_kernel)
        source = _source(suite, suites, kit)
        programs = None if suite.programs is None else suite.programs.obtain(_say)
    except KitError as error:
        _say(f"conformance: {suite.name} is not run: {error}")
        return False
    files = _Files(kit=kit, source=source, programs=programs, suites=suites)
    is_complete = True
    for name, shape in wanted:
        _say(f"conformance: {suite.name} on {name} ({shape})")
        try:
            with tempfile.TemporaryDirectory(prefix="conformance-") as directory:
                outcomes = _outcomes(suite, (name, SHAPES[shape]), files, Path(directory))
        except (GuestError, QmpError) as error:
            # The other disks have guests of their own.
            _say(f"conformance: {suite.name} on {name} ({shape}) came to no end: {error}")
            is_complete = False
            continue
        run = Run(
            suite=suite.name, version=source.version, device=name, ours=name in OURS,
            shape=place_of(suite.name, name, shape)[2], commit=commit(), outcomes=outcomes,
        )  # fmt: skip
        keep(KEPT, run)
        _say(_in_words(run))
    return is_complete


def _outcomes(suite: Suite, disk: tuple[str, Shape], files: _Files, directory: Path) -> tuple[Outcome, ...]:
    """Run *suite* on a disk of a shape; *directory* is empty."""
    name, shape = disk
    if name == MOUNT:
        assert suite.run_mounted is not None
        return suite.run_mounted(shape, files.source.place, directory)
    with machine(files.kit, (name,), shape, directory) as (guest, (device,)):
        return suite.run(
            Setting(
                guest=guest,
                device=device,
                source=files.source.place,
                programs=files.programs,
                suites=files.suites,
                newer=files.kit if isinstance(files.kit, NewerKernelKit) else None,
            )
        )


def _source(suite: Suite, suites: Path | None, kit: Kit) -> Source:
    match suite.source:
        case Package() as package:
            return package.obtain(_say)
        case Checkout() as checkout:
            return checkout.find(suites)
        case None:
            return Source(place=kit.root, version=f"Linux {kit.kernel_release}")


def _kit(*, newer_kernel: bool) -> Kit:
    NEWER_QEMU.obtain(_say)
    kit = find_newer_qemu(obtain_kit(_say))
    if newer_kernel:
        NEWER_KERNEL.obtain(_say)
        kit = find_newer_kernel(kit)
    if kit is None:
        message = "the newer QEMU or kernel has gone from the cache"
        raise KitError(message)
    return kit


def _guests(kit: Kit) -> str:
    """Return in words the kernels of the guests."""
    newer = find_newer_kernel(find_newer_qemu(kit))
    return f"Linux {kit.kernel_release}" + (f"; for XFS Linux {newer.kernel_release}" if newer else "")


def _in_words(run: Run) -> str:
    failed = " ".join(outcome.test for outcome in run.outcomes if outcome.verdict == "failed")
    counts = f"{run.count('passed')} passed, {run.count('failed')} failed, {run.count('skipped')} skipped"
    return f"conformance: {run.suite} on {run.device}: {counts}" + (f" (failed: {failed})" if failed else "")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
