"""The compiled ring walker, an optional extension: everything else of the build stands in pyproject.toml.

Three modules are built from four sources, as two of them are rules that the walker shares with Python code and that are
compiled from the very file that Python executes. Without Cython or a compiler nothing is built, and the program works
in pure Python. tools/build_walker.py uses two variables: ZONEFS_EMU_CFLAGS adds options for the compiler, and
ZONEFS_EMU_CYTHON_DIR is where the C goes: builds of one checkout that run side by side must not share it.
"""

import os
import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
VIRTQUEUE = "zonefs_emu/virtqueue"


def extensions() -> list[Extension]:
    """Return the modules to build; none where Cython is missing."""
    try:
        from Cython.Build import cythonize  # noqa: PLC0415  (optional)
    except ImportError:
        return []
    compiled = runpy.run_path(str(HERE / VIRTQUEUE / "compiled.py"))
    options = {
        "define_macros": [("ZONEFS_EMU_SOURCES", f"{compiled['sources_crc']()}u")],
        "extra_compile_args": ["-O2", *os.environ.get("ZONEFS_EMU_CFLAGS", "").split()],
        "extra_link_args": os.environ.get("ZONEFS_EMU_CFLAGS", "").split(),
    }
    modules = [
        Extension("zonefs_emu.virtqueue.compiled_plain_rules", ["zonefs_emu/model/plain_rules.py"], **options),
        Extension("zonefs_emu.virtqueue.compiled_slot_stores", ["zonefs_emu/inflight/slot_stores.py"], **options),
        Extension("zonefs_emu.virtqueue.walker", [f"{VIRTQUEUE}/walker.pyx"], **options),
    ]
    # Always anew: the stamp is no file that a time could be compared with.
    built = cythonize(
        modules,
        build_dir=os.environ.get("ZONEFS_EMU_CYTHON_DIR") or "build/cython",
        force=True,
        quiet=True,
        compiler_directives={"annotation_typing": False, "cdivision": True, "language_level": 3},
    )
    for extension in built:
        extension.optional = True  # an editable installation looks at it; cythonize() makes extensions anew, without
    return built


class BuildOptional(build_ext):
    """Builds what can be built.

    That extensions are optional does not suffice: setuptools goes on after what a compiler reports, but not after the
    FileNotFoundError that a missing compiler is.
    """

    def build_extension(self, ext: Extension) -> None:
        """Build *ext*, or say why that is not possible."""
        try:
            super().build_extension(ext)
        except Exception as error:  # whatever it is, the program works without
            self.warn(f"{ext.name} is not built: {error}")


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildOptional})
