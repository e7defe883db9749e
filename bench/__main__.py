"""Run the benchmarks: ``python -m bench [--runs N] [--write] [AREA …]``.

Measures the areas named (all of them where none is), prints the table; --write puts it into bench/results.md.
"""

import argparse
import importlib
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.harness import RESULTS, Row, format_table, machine, progress

AREAS: Final = ("device", "locks", "scale", "fuse", "vhost", "guest", "attach")


def main() -> int:
    """Measure and print; goals that were missed are marked in the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n\n")[2])
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"one of {', '.join(AREAS)}")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs a figure; the median counts (5)")
    parser.add_argument("--write", action="store_true", help="write bench/results.md")
    options = parser.parse_args()
    if unknown := set(options.areas) - set(AREAS):
        parser.error(f"no such area: {', '.join(sorted(unknown))}; there are {', '.join(AREAS)}")
    rows: list[Row] = []
    for area in options.areas or AREAS:
        with tempfile.TemporaryDirectory(prefix="zonefs-emu-bench-", dir=".") as scratch:
            rows += importlib.import_module(f"bench.{area}").rows(Path(scratch).resolve(), options.runs)
    progress("")
    table = format_table(rows)
    print(table)
    if options.write:
        command = shlex.join(("python", "-m", "bench", *sys.argv[1:]))
        RESULTS.write_text(
            f"# Measured\n\nOn {machine()}.\n\n"
            f"Command: `{command}`. Each ratio is the median of {options.runs} pairs of runs, ours against the peer's; "
            f"above 1 ours does more. In brackets the least and the greatest.\n\n{table}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
