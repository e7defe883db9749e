"""The results of suites on devices, kept as JSON beside this file. The page is made from all of them.

A suite on a device of a shape is the part that runs by itself: a new run takes the place of the earlier one.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tools.guest.kit import locked

Verdict = Literal["passed", "failed", "skipped"]
VERDICTS: Final[tuple[Verdict, ...]] = ("passed", "failed", "skipped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One test of a suite on one device."""

    test: str
    verdict: Verdict
    said: str = ""
    """The reason why it was skipped, or its last output before it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A suite on a device of a shape."""

    suite: str
    version: str
    """The version of the suite: that of the source package, or the commit of the checkout."""
    device: str
    ours: bool
    shape: str
    commit: str
    """The commit of the emulator."""
    outcomes: tuple[Outcome, ...]

    @property
    def place(self) -> tuple[str, str, str]:
        """Say what was run: a later run of the same takes the place of this one."""
        return self.suite, self.device, self.shape

    def count(self, verdict: Verdict) -> int:
        """Return how many tests ended so."""
        return sum(outcome.verdict == verdict for outcome in self.outcomes)


def load(path: Path) -> list[Run]:
    """Return the runs that *path* keeps; none if it does not exist."""
    if not path.exists():
        return []
    return [Run(**{**run, "outcomes": _outcomes(**run["outcomes"])}) for run in json.loads(path.read_text())]


def keep(path: Path, run: Run) -> None:
    """Add *run* to *path*, in the place of an earlier one of the same suite on the same device of the same shape."""
    with locked(path.with_suffix(".lock")):
        others = [each for each in load(path) if each.place != run.place]
        # In one order, so that a new run changes its own lines only.
        path.write_text(dump(sorted((*others, run), key=lambda each: each.place)))
    path.with_suffix(".lock").unlink(missing_ok=True)


def dump(runs: Iterable[Run]) -> str:
    """Return *runs* as `load` reads them: of what passed the names, of the others what they said too."""
    return json.dumps([_as_json(run) for run in runs], indent=1) + "\n"


def _as_json(run: Run) -> dict[str, object]:
    outcomes = {
        "passed": ", ".join(outcome.test for outcome in run.outcomes if outcome.verdict == "passed"),
        "failed": {outcome.test: outcome.said for outcome in run.outcomes if outcome.verdict == "failed"},
        "skipped": {outcome.test: outcome.said for outcome in run.outcomes if outcome.verdict == "skipped"},
    }
    return {
        "suite": run.suite,
        "version": run.version,
        "device": run.device,
        "ours": run.ours,
        "shape": run.shape,
        "commit": run.commit,
        "outcomes": outcomes,
    }


def _outcomes(passed: str, failed: Mapping[str, str], skipped: Mapping[str, str]) -> tuple[Outcome, ...]:
    found = [Outcome(test=test, verdict="passed") for test in passed.split(", ") if test]
    found += [Outcome(test=test, verdict="failed", said=said) for test, said in failed.items()]
    found += [Outcome(test=test, verdict="skipped", said=said) for test, said in skipped.items()]
    return tuple(sorted(found, key=lambda outcome: outcome.test))
