"""Run the benchmarks: ``python -m bench [--runs N] [--write] [AREA …]``. All areas take 25 to 40 minutes.

Measures the areas named (all of them where none is) and prints the table, and what got worse since the last run on this
machine by more than the noise. --write keeps the run: bench/results.md and its pictures, if all areas were measured,
and a line of ratios in bench/history.jsonl. A run that began while other work kept all processors busy is kept only
with --busy: peers and zonefs_emu do not suffer alike, so that even their ratios are wrong then. An area that fails is
reported with its traceback; the other areas are measured nevertheless, and the exit status is 1.
"""

import argparse
import importlib
import os
import shlex
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Final

from bench import history
from bench.harness import Row, format_table, machine, progress
from bench.picture import OVERVIEW, PICTURE, overview, svg

RESULTS: Final = Path(__file__).parent / "results.md"
AREAS: Final = (
    "startup",
    "device",
    "locks",
    "scale",
    "fuse",
    "watch",
    "vhost",
    "heuristics",
    "nvme",
    "guest",
    "attach",
    "timed",
    "timing",
)


def main() -> int:
    """Measure and print; goals that were missed are marked in the table. The exit status is 1 if an area failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n\n")[2])
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"one of {', '.join(AREAS)}")
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs a figure; the median counts (3)")
    parser.add_argument("--write", action="store_true", help="keep this run in bench/")
    parser.add_argument("--busy", action="store_true", help="with --write: keep it even if the machine was busy")
    options = parser.parse_args()
    if unknown := set(options.areas) - set(AREAS):
        parser.error(f"no such area: {', '.join(sorted(unknown))}; there are {', '.join(AREAS)}")
    load, nr_processors = os.getloadavg()[0], os.cpu_count() or 1
    is_busy = load > nr_processors
    is_kept = options.write and (options.busy or not is_busy)
    if is_busy:
        print(f"{_busy(load, nr_processors)}{'' if is_kept else ', and is not kept (--busy)'}", file=sys.stderr)
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    failed: list[str] = []
    for area in options.areas or AREAS:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="zonefs-emu-bench-", dir=".") as scratch:
            try:
                rows += importlib.import_module(f"bench.{area}").rows(Path(scratch).resolve(), options.runs)
            except Exception:  # the boundary of an area: the figures of the others took minutes and are kept
                traceback.print_exc()
                failed.append(area)
        seconds[area] = time.monotonic() - begin
    progress("")
    table = format_table(rows)
    print(table)
    run = history.run_of(rows, commit=history.commit(), machine=machine())
    for sentence in history.worse(history.read(history.HISTORY), run):
        print(f"worse: {sentence}")
    print(
        f"{_minutes(sum(seconds.values()))}: {', '.join(f'{area} {_minutes(each)}' for area, each in seconds.items())}"
    )
    if failed:
        print(_failed(failed))
    if noisy := sum(row.verdict == "too noisy" for row in rows):
        print(f"the machine was too noisy to judge {noisy} of {len(rows)} rows; measure them again when it is quiet")
    if is_busy:
        print(_busy(load, nr_processors))
    if is_kept:
        history.append(run, history.HISTORY)
        if not options.areas:
            command = shlex.join(("python", "-m", "bench", *sys.argv[1:]))
            if failed:
                table += f"\n\n{_failed(failed)}"
            page = _page(table, command=command, commit=run.commit, nr_runs=options.runs, seconds=sum(seconds.values()),
                         load=load)  # fmt: skip
            RESULTS.write_text(page)
            PICTURE.write_text(svg(rows))
            OVERVIEW.write_text(overview(rows))
    return bool(failed)


def _failed(areas: list[str]) -> str:
    return f"Not measured, because an error ended the area: {', '.join(areas)}."


def _busy(load: float, nr_processors: int) -> str:
    return f"the machine is busy with other work (load {load:.1f} on {nr_processors} processors): do not trust this run"


def _minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f} min"


def _page(table: str, *, command: str, commit: str, nr_runs: int, seconds: float, load: float) -> str:
    """Return bench/results.md."""
    return f"""# Measured

On {machine()}, commit {commit}. Load of the machine at the beginning: {load:.1f}.

Command: `{command}`, {_minutes(seconds)}. Each ratio is the median of {nr_runs} pairs of runs, ours against the peer's;
above 1 ours does more. In brackets the least and the greatest. Noise is the spread of the peer against itself. Rows of
virtqueues are with the compiled ring walker, and those of "pure Python" without.

![Ratios of all areas](results.svg)

{table}
"""


if __name__ == "__main__":
    sys.exit(main())
