#!/usr/bin/env python3
"""Build the compiled modules of this checkout, beside their sources: ``tools/build_walker.py``.

zonefs_emu/compiled_modules.py lists them. ``--into DIR`` builds them elsewhere, and ``--cflags="..."`` with more
options for the compiler, such as sanitizers. The exit code is 1 if they could not be built: the program then works in
pure Python. Needs Cython and a compiler.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent


def main() -> int:
    """Build the modules; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, help="a directory for the modules, instead of beside their sources")
    parser.add_argument("--cflags", default="", help="more options for the compiler")
    options = parser.parse_args()
    where, cython_dir = ["--inplace"], ""
    if options.into:
        place = options.into.resolve()
        where, cython_dir = ["--build-lib", str(place), "--build-temp", str(place / "objects")], str(place / "c")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *where], cwd=ROOT, check=True,
        env={**os.environ, "ZONEFS_EMU_CFLAGS": options.cflags, "ZONEFS_EMU_CYTHON_DIR": cython_dir},
    )  # fmt: skip
    directory = options.into or ROOT
    if not list(directory.glob("zonefs_emu/virtqueue/walker.*.so")):
        print("the compiled modules were not built: Cython or a compiler is missing", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
