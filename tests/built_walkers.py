"""Fuzzers of the compiled walkers as programs, for builds that are elsewhere, such as a sanitizer's.

``PROGRAM ROUNDS SEED DIRECTORY BUILT``; *BUILT* is where tools/build_walker.py has put the modules.
"""

import importlib.util
import random
import sys
from collections.abc import Callable
from pathlib import Path

from zonefs_emu.compiled_modules import MODULES


def fuzz_built(fuzz: Callable[[Path, random.Random], tuple[int, int]]) -> None:
    """Run the program, whose round *fuzz* returns how many requests there were, and how many the walker took."""
    nr_rounds, seed, directory, built = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    _load(built)
    draw = random.Random(seed)
    rounds = [fuzz(directory, draw) for _ in range(nr_rounds)]
    nr_requests, nr_taken = (sum(numbers) for numbers in zip(*rounds, strict=True))
    sys.stdout.write(f"{nr_requests} requests, {nr_taken} taken by the walker\n")


def _load(built: Path) -> None:
    """Load the modules that are in *built*, and not those that are beside their sources."""
    for name in MODULES:
        (file,) = built.glob(f"{name.replace('.', '/')}.*.so")
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
