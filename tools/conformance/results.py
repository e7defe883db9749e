"""What a suite said of a device, kept as JSON until a page is made of it."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
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
    """Why it was skipped, or the last that it said before it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A suite on a device."""

    suite: str
    device: str
    ours: bool
    shape: str
    commit: str
    outcomes: tuple[Outcome, ...]

    def count(self, verdict: Verdict) -> int:
        """Return how many tests ended so."""
        return sum(outcome.verdict == verdict for outcome in self.outcomes)


def load(path: Path) -> list[Run]:
    """Return the runs that *path* keeps; none if it does not exist."""
    if not path.exists():
        return []
    return [
        Run(**{**run, "outcomes": tuple(Outcome(**outcome) for outcome in run["outcomes"])})
        for run in json.loads(path.read_text())
    ]


def keep(path: Path, run: Run) -> None:
    """Add *run* to *path*, in the place of an earlier one of the same suite on the same device of the same shape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        others = [each for each in load(path) if _key(each) != _key(run)]
        path.write_text(dump((*others, run)))


def dump(runs: Iterable[Run]) -> str:
    """Return *runs* as `load` reads them."""
    return json.dumps([asdict(run) for run in runs], indent=1) + "\n"


def _key(run: Run) -> tuple[str, str, str]:
    return run.suite, run.device, run.shape
