"""The ratios of earlier runs, and the rows that got worse since the last one."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.harness import PROJECT, Row

#: One JSON object in a line for each run: commit, machine, and the rows that have a peer.
HISTORY: Final = Path(__file__).parent / "history.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The ratios of one run, by area, what was measured and peer: (median, noise)."""

    commit: str
    machine: str
    ratios: dict[tuple[str, str, str], tuple[float, float]]


def run_of(rows: Sequence[Row], *, commit: str, machine: str) -> Run:
    """Return what is kept of *rows*; those without a peer depend on the machine alone and are left out."""
    ratios = {(row.area, row.what, row.peer): (round(row.ratio, 3), round(row.noise, 3)) for row in rows if row.ratio}
    return Run(commit=commit, machine=machine, ratios=ratios)


def read(path: Path = HISTORY) -> list[Run]:
    """Return all runs, the oldest first.

    Raises:
        ValueError: a line of the file is no run.
    """
    runs = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            entry = json.loads(line)
            ratios = {
                (row["area"], row["what"], row["peer"]): (float(row["ratio"]), float(row["noise"]))
                for row in entry["rows"]
            }
            runs.append(Run(commit=entry["commit"], machine=entry["machine"], ratios=ratios))
        except (KeyError, TypeError, ValueError) as error:
            message = f"{path}, line {number}: not a run of the benchmarks: {error!r}"
            raise ValueError(message) from None
    return runs


def append(run: Run, path: Path = HISTORY) -> None:
    """Add *run* as the last line of the file."""
    rows = [
        {"area": area, "what": what, "peer": peer, "ratio": ratio, "noise": noise}
        for (area, what, peer), (ratio, noise) in run.ratios.items()
    ]
    with path.open("a") as file:
        file.write(json.dumps({"commit": run.commit, "machine": run.machine, "rows": rows}) + "\n")


def worse(earlier: Sequence[Run], run: Run) -> Iterator[str]:
    """Yield a sentence for each ratio that is lower than the last one of that row on that machine, beyond the noise.

    The noise is that of the noisier of both runs. A run need not have all areas, so the last one is looked for by row.
    """
    for row, (ratio, noise) in run.ratios.items():
        before = next((old for old in reversed(earlier) if old.machine == run.machine and row in old.ratios), None)
        if before is None:
            continue
        old_ratio, old_noise = before.ratios[row]
        if ratio * (1 + max(noise, old_noise)) < old_ratio:
            area, what, peer = row
            yield f"{area}: {what}, against {peer}: {old_ratio:.2f} at {before.commit}, {ratio:.2f} now"


def commit() -> str:
    """Return the commit that is measured, with a plus sign if files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
