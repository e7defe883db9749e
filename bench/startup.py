"""The cost of a short command: the processor time of its process, against that of one that only imports click.

Wall-clock time would tell more of the machine's other work. All processes read the bytecode of their modules from a
cache that is filled before, as those of an installed package do: pip compiles what it installs.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from bench.harness import PROJECT, Row, compare

#: A third of the peer's speed: three times its processor time.
GOAL: Final = 0.333
#: Processes for one figure.
NR_PROCESSES: Final = 5
_PEER: Final = ("-c", "import click")


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure what prints a line or a small table."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "PYTHONPYCACHEPREFIX": str(scratch / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    run = partial(_milliseconds, environment)
    image = str(scratch / "small.img")
    create = [sys.executable, "-m", "zonefs_emu", "create", image, "--preset", "small"]
    subprocess.run(create, env=environment, stdout=subprocess.DEVNULL, check=True)
    peers: Callable[[], float] = partial(run, *_PEER)
    found = []
    for what, arguments in (("--version", ("--version",)), ("info", ("info", image)), ("report", ("report", image))):
        ours: Callable[[], float] = partial(run, "-m", "zonefs_emu", *arguments)
        # The first ones fill the cache.
        ours(), peers()
        found.append(
            compare(
                "start-up", what, "ms", ours, peer="python -c 'import click'", peers=peers, runs=runs, goal=GOAL,
                less_is_better=True,
            )
        )  # fmt: skip
    return found


def _milliseconds(environment: dict[str, str], *arguments: str) -> float:
    """Return the processor time, user and system, that Python takes with *arguments*: the mean of several processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(NR_PROCESSES):
        subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return 1000 * seconds / NR_PROCESSES
