"""Unforeseen exceptions, on purpose: runs ``zonefs-emu`` with one planted into each function below a boundary.

    python -m tools.soak.planting once serve disk.img --vhost-user-blk disk.sock
    python -m tools.soak.planting 0.001 serve disk.img --vhost-user-blk disk.sock

With *once* each function of the package raises :class:`PlantedError` the first time that it is called below a boundary,
and never again; with a number, each such call raises with this probability. What was planted goes to the file that
``ZONEFS_EMU_PLANTED`` names, a line each.

Neither boundaries nor functions are listed anywhere: a boundary is the body of a ``try`` with a handler for
``Exception``, found in the source, and a function is below it if it is called while such a body runs. Only what would
end a whole front-end is left out. Python raises in the traced function what its profile function raises, so a planted
exception leaves a real traceback. It also ends the tracing of that thread; a boundary that hands the exception to
``UnforeseenErrors`` begins it again.
"""

import ast
import dis
import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

import zonefs_emu
from zonefs_emu.cli.main import main
from zonefs_emu.device.unforeseen import UnforeseenErrors
from zonefs_emu.errors import Status

PACKAGE: Final = str(Path(zonefs_emu.__file__).parent)
PLANTED_VARIABLE: Final = "ZONEFS_EMU_PLANTED"
SEED_VARIABLE: Final = "ZONEFS_EMU_PLANTING_SEED"
_ONCE_PROBABILITY: Final = 0.25
#: Files that report exceptions, into which none is planted.
_SPARED: Final = frozenset((f"{PACKAGE}/device/unforeseen.py",))
#: Files whose innermost boundary is that of a whole front-end: an exception there ends it, and with it the load.
#: tests/daemon/test_session.py has those.
_ENDING: Final = frozenset((f"{PACKAGE}/daemon/session.py",))


class PlantedError(Exception):
    """An exception that no code can have foreseen."""


def boundaries() -> dict[str, list[range]]:
    """Return the lines of each file of the package that lie in the body of a ``try`` that catches ``Exception``."""
    found: dict[str, list[range]] = {}
    for path in Path(PACKAGE).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Try) and any(_is_broad(handler) for handler in node.handlers):
                lines = range(node.body[0].lineno, (node.body[-1].end_lineno or 0) + 1)
                found.setdefault(str(path), []).append(lines)
    for spared in _SPARED:
        found.pop(spared, None)
    return found


def _is_broad(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.type, ast.Name) and handler.type.id == "Exception"


class Planter:
    """A profile function that raises. *chooses* says whether a call below a boundary is one that does."""

    def __init__(self, chooses: Callable[[CodeType], bool]) -> None:
        self._chooses = chooses
        self._boundaries = boundaries()
        self._others: set[CodeType] = set()
        #: How many exceptions were planted so far.
        self.nr_planted = 0
        report = os.environ.get(PLANTED_VARIABLE)
        self._report = None if report is None else os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        """Raise at the calls that are chosen."""
        if event != "call":
            return
        code = frame.f_code
        if code in self._others:
            return
        if not code.co_filename.startswith(PACKAGE) or code.co_filename in _SPARED or code.co_name == "<module>":
            self._others.add(code)
            return
        if not self._is_below_boundary(frame) or not _begins(frame) or not self._chooses(code):
            return
        self.nr_planted += 1
        if self._report is not None:
            place = f"{Path(code.co_filename).relative_to(PACKAGE)}:{code.co_firstlineno} {code.co_qualname}\n"
            os.write(self._report, place.encode())
        raise PlantedError(code.co_qualname)

    def _is_below_boundary(self, frame: FrameType) -> bool:
        caller: FrameType | None = frame
        while caller is not None:
            # Python ignores an exception of a finalizer.
            if caller.f_code.co_filename in _SPARED or caller.f_code.co_name == "__del__":
                return False
            if any(caller.f_lineno in lines for lines in self._boundaries.get(caller.f_code.co_filename, ())):
                return caller.f_code.co_filename not in _ENDING
            caller = caller.f_back
        return False


def _begins(frame: FrameType) -> bool:
    """Say whether the call is the function's first: a generator that goes on would leave without its ``finally``.

    Source: the interpreter's RESUME instruction, whose argument is 0 at the beginning of a function only. A generator
    that is closed is called at its YIELD_VALUE.
    """
    instruction = frame.f_code.co_code[frame.f_lasti : frame.f_lasti + 2]
    return instruction == bytes((dis.opmap["RESUME"], 0))


def install(planter: Planter) -> None:
    """Plant in all threads from now on, and in each again after an exception was contained there."""
    for name in ("contain", "observer_failed"):
        original = getattr(UnforeseenErrors, name)

        def report(
            self: UnforeseenErrors, *arguments: object, _original: Callable[..., Status | None] = original
        ) -> Status | None:
            answer = _original(self, *arguments)
            sys.setprofile(planter)
            return answer

        setattr(UnforeseenErrors, name, report)
    threading.setprofile(planter)
    sys.setprofile(planter)


def once(probability: float = _ONCE_PROBABILITY) -> Callable[[CodeType], bool]:
    """Choose each function, once, at one of its first calls: each of them with *probability*.

    Not at the first: a loop whose functions all fail one after the other is taken for one that cannot go on.
    """
    done: set[CodeType] = set()
    rng = random.Random(os.environ.get(SEED_VARIABLE))

    def choose(code: CodeType) -> bool:
        if code in done or rng.random() > probability:
            return False
        done.add(code)
        return True

    return choose


def now_and_then(probability: float) -> Callable[[CodeType], bool]:
    """Choose any call, with *probability*."""
    rng = random.Random(os.environ.get(SEED_VARIABLE))
    return lambda _code: rng.random() < probability


if __name__ == "__main__":
    how = sys.argv.pop(1)
    install(Planter(once() if how == "once" else now_and_then(float(how))))
    main()
