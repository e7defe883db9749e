"""Everything at once for a long time: ``make soak``, or ``python -m tools.soak --seconds 60``.

Five parts share the time: all front-ends under load with faults on, where memory must stay flat; the same with the
daemon killed again and again, where nothing acknowledged may be lost; the same with unforeseen exceptions, each of
which may cost one request; damaged files of every format; and the zone machine against its reference, with the
hypothesis profile ``soak``. Ends with 0 if nothing was found, with 1 otherwise.
"""

import argparse
import faulthandler
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tools.soak.crowd import Crowd
from tools.soak.formats import Formats

_PROGRESS_SECONDS: Final = 10
#: How much the daemon may grow after it has warmed up, because the allocator's memory varies without a leak.
_GROWTH_KIB_MAX: Final = 8 << 10
_EXAMPLES_A_ROUND: Final = 20
_READING_SECONDS_MAX: Final = 60
#: How many of the calls below a boundary raise, where exceptions are planted.
_PLANTING: Final = "0.0003"


class Progress:
    """Says how far it is, now and then."""

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._started = self._said = time.monotonic()
        self._seconds = seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning of the part, as a share of what it has."""
        return (time.monotonic() - self._started) / self._seconds

    def say(self, text: str) -> None:
        """Print *text* if the last was long ago."""
        now = time.monotonic()
        if now - self._said >= _PROGRESS_SECONDS:
            self._said = now
            print(f"{self._name}: {now - self._started:.0f} of {self._seconds:.0f} s, {text}", flush=True)


def steady(crowd: Crowd, seconds: float) -> str:
    """Run the crowd without a break; memory must stay flat."""
    progress = Progress("all front-ends", seconds)
    crowd.begin()
    early = late = 0
    while (share := progress.elapsed) < 1:
        time.sleep(0.5)
        crowd.check_alive()
        resident = crowd.daemon.resident_kib
        if 0.25 <= share < 0.5:
            early = max(early, resident)
        elif share >= 0.75:
            late = max(late, resident)
        doing = ", ".join(f"{load.name} {load.nr_done}" for load in crowd.loads)
        progress.say(f"{doing}; {resident >> 10} MiB resident")
    crowd.end()
    assert late - early <= _GROWTH_KIB_MAX, f"the daemon grew from {early} to {late} KiB"
    counts = ", ".join(f"{name} {count} ({crowd.refused[name]} refused)" for name, count in crowd.done.items())
    return f"{counts}; resident {early >> 10} MiB, later {late >> 10} MiB"


def kills(crowd: Crowd, seconds: float, rng: random.Random) -> str:
    """Kill the daemon again and again, at any instant."""
    progress = Progress("kill -9", seconds)
    rounds = 0
    while progress.elapsed < 1:
        crowd.begin()
        time.sleep(rng.random() * 3)
        crowd.kill()
        rounds += 1
        progress.say(f"{rounds} rounds")
    crowd.begin()
    crowd.end()
    return f"{rounds} rounds, everything acknowledged is there"


def unforeseen(crowd: Crowd, seconds: float) -> str:
    """Run the crowd without a break on a daemon in which any call may raise."""
    progress = Progress("exceptions", seconds)
    crowd.begin(faulty=False)
    while progress.elapsed < 1:
        time.sleep(0.5)
        crowd.check_alive()
        doing = ", ".join(f"{load.name} {load.nr_done}" for load in crowd.loads)
        progress.say(f"{doing}; {crowd.daemon.nr_planted} exceptions")
    crowd.end()
    felt = sum(crowd.refused.values()) + sum(crowd.lost.values())
    return f"{crowd.daemon.nr_planted} exceptions, {felt} requests felt them, everything answered is there"


def formats(files: Formats, seconds: float) -> str:
    """Read damaged files."""
    progress = Progress("formats", seconds)
    while progress.elapsed < 1:
        # A reader that hangs cannot be stopped from another thread, so this prints its stack and ends the soak.
        faulthandler.dump_traceback_later(_READING_SECONDS_MAX, exit=True)
        files.step()
        faulthandler.cancel_dump_traceback_later()
        progress.say(f"{sum(files.counts.values())} files")
    return ", ".join(f"{count} {name}" for name, count in sorted(files.counts.items()))


def stateful(seconds: float, rng: random.Random) -> str:
    """Compare the zone machine with its reference, in rounds of new examples."""
    progress = Progress("zone machine", seconds)
    test = ["tests/model/test_machine.py", "-k", "TestZoneMachineComparison"]
    # Each round ends by itself: what is found is also shrunk and told.
    environment = os.environ | {
        "ZONEFS_EMU_HYPOTHESIS": "soak",
        "ZONEFS_EMU_SOAK_EXAMPLES": str(_EXAMPLES_A_ROUND),
    }
    rounds = 0
    while progress.elapsed < 1:
        choice = f"--hypothesis-seed={rng.randrange(1 << 32)}"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "--timeout=0", choice, *test],
            check=False, capture_output=True, text=True, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        rounds += 1
        progress.say(f"{rounds} rounds")
    return f"{rounds * _EXAMPLES_A_ROUND} examples"


def main() -> int:
    """Run the parts; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long in total (600)")
    parser.add_argument("--seed", type=int, default=None, help="begin with the same random numbers again")
    options = parser.parse_args()
    seed = int.from_bytes(os.urandom(4), "little") if options.seed is None else options.seed
    rng = random.Random(seed)
    directory = Path(tempfile.mkdtemp(prefix="zonefs-soak-"))
    print(f"soak: {options.seconds:.0f} s, seed {seed}, in {directory}", flush=True)
    crowd = Crowd(directory, seed)
    planted = directory / "planted"
    planted.mkdir()
    victims = Crowd(planted, seed, _PLANTING)
    files = Formats(directory, seed)
    parts: list[tuple[str, Callable[[], str]]] = [
        ("all front-ends", lambda: steady(crowd, options.seconds * 0.35)),
        ("kill -9", lambda: kills(crowd, options.seconds * 0.25, rng)),
        ("exceptions", lambda: unforeseen(victims, options.seconds * 0.1)),
        ("formats", lambda: formats(files, options.seconds * 0.1)),
        ("zone machine", lambda: stateful(options.seconds * 0.2, rng)),
    ]
    summary: list[str] = []
    failed = False
    for name, part in parts:
        try:
            summary.append(f"  {name:16} {part()}")
        except Exception:
            failed = True
            traceback.print_exc()
            summary.append(f"  {name:16} FAILED")
        finally:
            for some in (crowd, victims):
                if some.daemon.is_running:
                    some.daemon.kill()
    print("\n".join(["soak:", *summary]))
    if failed:
        print(f"what it left is in {directory}; seed {seed}")
    else:
        shutil.rmtree(directory)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
