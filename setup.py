"""The compiled modules, which are optional: everything else of the build stands in pyproject.toml.

What is built from which source stands in zonefs_emu/compiled_modules.py. Two modules are rules that the others share
with Python code, compiled from the very file that Python executes. Without Cython or a compiler nothing is built, and
the program works in pure Python. tools/build_walker.py uses two variables: ZONEFS_EMU_CFLAGS adds options for the
compiler, and ZONEFS_EMU_CYTHON_DIR is where the C goes: builds of one checkout that run side by side must not share it.
"""

import os
import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
PACKAGE = "zonefs_emu"


def extensions() -> list[Extension]:
    """Return the modules to build; none where Cython is missing."""
    try:
        from Cython.Build import cythonize  # noqa: PLC0415  (optional)
    except ImportError:
        return []
    compiled = runpy.run_path(str(HERE / PACKAGE / "compiled_modules.py"))
    options = {
        "define_macros": [("ZONEFS_EMU_SOURCES", f"{compiled['sources_crc']()}u")],
        "extra_compile_args": ["-O2", *os.environ.get("ZONEFS_EMU_CFLAGS", "").split()],
        "extra_link_args": os.environ.get("ZONEFS_EMU_CFLAGS", "").split(),
    }
    modules = [Extension(name, [f"{PACKAGE}/{source}"], **options) for name, source in compiled["MODULES"].items()]
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
