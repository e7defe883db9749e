"""Parts of all benchmarks: measuring in pairs, judging, and the table."""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parent.parent


def program(change: str = "") -> list[str]:
    """Return the command that runs zonefs-emu; *change*: statements that its process executes before it begins."""
    if not change:
        return [sys.executable, "-m", "zonefs_emu"]
    return [sys.executable, "-c", f"{change}\nfrom zonefs_emu.cli.main import main\nmain()"]


#: How the name of a row ends whose process works without the compiled ring walker.
PURE: Final = ", pure Python"
#: If the figures of a peer differ by more than this share of their median, the machine was busy with other work.
NOISE_MAX: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison.

    *ours* and *peers* are medians in *unit*; *ratios* one per pair of runs, ours against the peer's, so that more is
    better whatever the unit. *goal* is the ratio to reach, or None where nothing was promised. *noise* is the spread of
    the peer against itself: the range of its figures by their median. A row without a peer has no ratios; its goal is a
    *limit* in *unit*, and a lower figure is better.
    """

    area: str
    what: str
    unit: str
    ours: float
    peer: str = ""
    peers: float | None = None
    ratios: tuple[float, ...] = ()
    noise: float = 0.0
    goal: float | None = None
    limit: float | None = None

    @property
    def ratio(self) -> float | None:
        """The median ratio."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def verdict(self) -> str:
        """Say whether the goal was met in this run, or that the machine was too noisy to tell.

        Noise does not matter where each single pair gives the same verdict.
        """
        if self.ratio is not None and self.goal is not None:
            if self.noise > NOISE_MAX and min(self.ratios) < self.goal <= max(self.ratios):
                return "too noisy"
            return "met" if self.ratio >= self.goal else "MISSED"
        if self.limit is not None:
            return "met" if self.ours <= self.limit else "MISSED"
        return ""


def compare(
    area: str,
    what: str,
    unit: str,
    ours: Callable[[], float],
    *,
    peer: str,
    peers: Callable[[], float],
    runs: int,
    goal: float | None = None,
    less_is_better: bool = False,
) -> Row:
    """Call *ours* and *peers* in turn, *runs* times each, and return the row."""
    pairs = []
    for number in range(runs):
        progress(f"{area}: {what}, {number + 1} of {runs}")
        pairs.append((ours(), peers()))
    return judge(area, what, unit, pairs, peer=peer, goal=goal, less_is_better=less_is_better)


def judge(
    area: str,
    what: str,
    unit: str,
    pairs: Sequence[tuple[float, float]],
    *,
    peer: str,
    goal: float | None = None,
    less_is_better: bool = False,
) -> Row:
    """Return the row of *pairs* of figures, ours and the peer's."""
    ratios = tuple(b / a if less_is_better else a / b for a, b in pairs)
    return Row(
        area=area,
        what=what,
        unit=unit,
        ours=statistics.median(a for a, _ in pairs),
        peer=peer,
        peers=statistics.median(b for _, b in pairs),
        ratios=ratios,
        noise=spread([b for _, b in pairs]),
        goal=goal,
    )


def spread(figures: Sequence[float]) -> float:
    """Return how far *figures* are apart: their range by their median."""
    return (max(figures) - min(figures)) / statistics.median(figures)


def limit(
    area: str, what: str, unit: str, ours: Callable[[], float], *, runs: int, at_most: float | None = None
) -> Row:
    """Call *ours* *runs* times and return the row of a figure that must stay below *at_most*, if that is given."""
    progress(f"{area}: {what}")
    return Row(area=area, what=what, unit=unit, ours=statistics.median(ours() for _ in range(runs)), limit=at_most)


def progress(text: str) -> None:
    """Say what is being measured, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def format_table(rows: Sequence[Row]) -> str:
    """Return *rows* as a Markdown table that also reads well in a terminal."""
    head = ("area", "what", "ours", "peer", "peer's", "ratio (min to max)", "noise", "goal", "")
    body = []
    for row in rows:
        ratio = f"{row.ratio:.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})" if row.ratio is not None else ""
        goal = f"≥ {row.goal:g}" if row.goal is not None else f"≤ {row.limit:g} {row.unit}" if row.limit else ""
        peers = f"{_figure(row.peers)} {row.unit}" if row.peers is not None else ""
        noise = f"{100 * row.noise:.0f} %" if row.ratios else ""
        ours = f"{_figure(row.ours)} {row.unit}"
        body.append((row.area, row.what, ours, row.peer, peers, ratio, noise, goal, row.verdict))
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
             for line in (head, *body)]  # fmt: skip
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> str:
    """Describe the machine in one line: processor, memory, kernel, Python."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_kib = int(re.findall(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[0])
    return (
        f"{os.cpu_count()} × {model}, {memory_kib / 2**20:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def fio(*arguments: str, timeout_seconds: int = 300) -> dict[str, object]:
    """Run fio with *arguments* and return its first job's figures, as in its JSON output.

    Raises:
        RuntimeError: fio fails. subprocess.TimeoutExpired: it takes too long.
    """
    command = ["fio", "--output-format=json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, check=False)
    if done.returncode:
        message = f"{' '.join(command)} failed: {done.stderr or done.stdout}"
        raise RuntimeError(message)
    job: dict[str, object] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return job
