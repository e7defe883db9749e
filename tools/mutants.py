#!/usr/bin/env python3
"""Mutation testing: change the source in small ways, one at a time, and see whether a test notices.

    make mutants                                  everything in MUTATED
    tools/mutants.py model virtqueue/virtqueue.py     some of it
    tools/mutants.py --report                     what the last run found, without running anything

Each mutant is tried in a copy of the checkout. The fast tests of its module's directories (TESTS) that run the changed
statement run against it, the fastest first. A run without a mutant, under coverage, finds these tests; its result is
kept for each test file until that file or the package changes. A mutant that no test runs survives. pytest runs in a
fork of a process that has imported the libraries already. All processors are used. An interrupted run continues from
the results in build/mutants. A killed mutant stays killed, also after a change of the module's other lines. A mutant
that survived is tried again, because a test may have been written for it. Remove build/mutants to try everything again.

What does the same as the code is listed, with its reason, in tools/equivalent_mutants.txt. Such a mutant is tried once,
not again, and does not count as alive; the report gives the share of killed mutants with and without them.

Tests run without the compiled modules, which would execute in place of the mutated Python code. Mutants of virtqueue/
and device/ that survive are then tried by the tests of the compiled modules, which are built for them.

The mutants are those of cosmic-ray, with three exceptions. Of the eleven ways to replace an operator, only one or two
likely mistakes are made, because the same tests kill the others. Statements are removed, which cosmic-ray does not do.
Annotations, assertions, imports for types, and the arguments of a log are not changed, because they have no behaviour.
"""

import argparse
import ast
import hashlib
import itertools
import math
import multiprocessing
import multiprocessing.pool
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

import cosmic_ray.mutating
import cosmic_ray.plugins
import coverage
import hypothesis.stateful  # noqa: F401  (for the forks: it takes longer to import than most mutants to die)
import pytest
import trio.testing  # noqa: F401  (as hypothesis)
from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkItem, WorkResult
from parso.python.tree import Keyword
from parso.tree import NodeOrLeaf

ROOT: Final = Path(__file__).resolve().parent.parent
SESSIONS: Final = ROOT / "build" / "mutants"
EQUIVALENTS: Final = ROOT / "tools" / "equivalent_mutants.txt"
#: What is mutated, below zonefs_emu/: directories and files.
MUTATED: Final = (
    "model", "device", "persist/image.py", "persist/checkpoint.py", "persist/faults_section.py",
    "persist/pending_resets.py", "persist/space.py", "inflight", "virtqueue",
)  # fmt: skip
#: Where the tests of a package are, if not in the directory of its name alone: the transports are the real users of a
#: queue.
TESTS: Final[Mapping[str, tuple[str, ...]]] = {
    "inflight": ("inflight", "vhost_user", "ublk"),
    "virtqueue": ("virtqueue", "vhost_user", "vduse"),
}
#: Tests of a directory that say nothing about its mutated modules.
OTHERS: Final = frozenset(f"persist/test_{name}.py" for name in ("backing", "corruption", "kill", "salvage"))
#: The tests of the compiled modules, by the package that decides whether they are used.
COMPILED_TESTS: Final[Mapping[Path, tuple[str, ...]]] = {
    Path("zonefs_emu/virtqueue"): ("tests/virtqueue/test_walker.py",),
    Path("zonefs_emu/device"): ("tests/device/test_compiled_commands.py",),
}
#: Tests of the source of all modules.
OF_ALL: Final = "tests/test_tidy.py::test_dataclasses_are_frozen_slotted_and_keyword_only"
#: A mutant that makes a test hang counts as killed after this many times what the test takes, and this; and after twice
#: that time when it is tried again, because a busy machine may have been the reason.
TIMEOUT_FACTOR: Final = 6
TIMEOUT_SECONDS: Final = 5
#: A mutant on which the collection of the tests hangs counts as killed after this.
COLLECTION_SECONDS: Final = 60
#: A mutant that asks for all memory is to die by itself.
MEMORY_BYTES: Final = 6 << 30

_BINARY: Final = (
    "Add_Sub", "Sub_Add", "Mul_FloorDiv", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul", "LShift_RShift",
    "RShift_LShift", "BitAnd_BitOr", "BitOr_BitAnd", "BitXor_BitAnd",
)  # fmt: skip
_COMPARISON: Final = (
    "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt", "Is_IsNot",
    "IsNot_Is",
)  # fmt: skip
_OPERATORS: Final = (
    *(f"core/ReplaceBinaryOperator_{name}" for name in _BINARY),
    *(f"core/ReplaceComparisonOperator_{name}" for name in _COMPARISON),
    *(f"core/ReplaceUnaryOperator_{name}" for name in ("Delete_Not", "USub_UAdd", "Delete_Invert")),
    "core/AddNot",
    "core/ReplaceTrueWithFalse",
    "core/ReplaceFalseWithTrue",
    "core/ReplaceAndWithOr",
    "core/ReplaceOrWithAnd",
    "core/ReplaceBreakWithContinue",
    "core/ReplaceContinueWithBreak",
    "core/NumberReplacer",
    "core/RemoveDecorator",
    "core/ZeroIterationForLoop",
    "zonefs_emu/RemoveStatement",
)


class RemoveStatement:
    """Puts ``pass`` in the place of a statement that acts: a call, a store outside the local names, raise, del.

    Nothing is lost with the others: without an assignment to a local name the next line fails.
    """

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Yield the place of each statement in *node* that can be removed."""
        if node.type == "simple_stmt" and self._acts(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    @staticmethod
    def _acts(statement: NodeOrLeaf) -> bool:
        match statement.type:
            case "raise_stmt" | "del_stmt":
                return True
            case "atom_expr":
                return bool(statement.children[-1].type == "trailer")
            case "expr_stmt":
                target = statement.children[0]
                operator = statement.children[1]
                augmented = operator.type == "operator" and operator.value != "="
                return bool(target.type == "atom_expr" or augmented)
            case _:
                return False

    def mutate(self, node: NodeOrLeaf, _index: int) -> NodeOrLeaf:
        """Return *node* without its statement."""
        statement = node.children[0]
        node.children[0] = Keyword("pass", statement.start_pos, prefix=statement.get_first_leaf().prefix)
        node.children[0].parent = node
        return node

    @classmethod
    def arguments(cls) -> tuple[()]:
        """Return the arguments of the operator, which has none."""
        return ()


#: The methods of a log.
_LOGGING: Final = frozenset(("debug", "info", "warning", "error", "exception"))
#: The exit status of a process in which pytest itself met an exception.
_NOT_RUN: Final = 99


class Reach(NamedTuple):
    """The result of a run without a mutant, for the tests of a directory."""

    #: How long each test took, by its node id.
    seconds: Mapping[str, float]
    #: The tests that run each line of each module; "" stands for its import.
    lines: Mapping[str, Mapping[int, frozenset[str]]]


class Tests(NamedTuple):
    """Tests in their order, each for so many seconds at most; *compiled*: those with the compiled modules."""

    pure: Mapping[str, float]
    compiled: Mapping[str, float]


class Job(NamedTuple):
    """One mutant to try by *tests*."""

    session: Path
    item: WorkItem
    tests: Tests


class Equivalent(NamedTuple):
    """One mutant: the lines *before* of *module*, below zonefs_emu/, become *after*; without indentation."""

    module: str
    before: tuple[str, ...]
    after: str
    why: str


class Equivalents:
    """The mutants that do the same as the code, each with its reason.

    The list consists of blocks with blank lines between them. The first lines of a block are the module and the reason,
    ``module: why``. Then come mutants, as the report shows them: the lines that are taken away (``-``) and what stands
    there instead (``+``), of which there may be several. The list has no line numbers, because they change.
    """

    def __init__(self, listed: Sequence[Equivalent]) -> None:
        self.listed = listed
        self._reasons: Mapping[tuple[str, tuple[str, ...], str], str] = {each[:3]: each.why for each in listed}

    @classmethod
    def read(cls) -> Self:
        """Read the list."""
        return cls([each for block in EQUIVALENTS.read_text().split("\n\n") for each in _of_block(block)])

    def why(self, module: Path, changed: Sequence[str]) -> str | None:
        """Return why a mutant of zonefs_emu/... *module* does the same; None: it is not listed.

        *changed*: its lines, with - and + before them.
        """
        before = tuple(line[1:].strip() for line in changed if line.startswith("-"))
        after = " ".join(line[1:].strip() for line in changed if line.startswith("+"))
        return self._reasons.get((str(Path(*module.parts[1:])), before, after))


def _of_block(block: str) -> Iterator[Equivalent]:
    lines = block.strip().splitlines()
    head = " ".join(line.strip() for line in lines if line[0] not in "-+")
    module, _, why = head.partition(": ")
    before: list[str] = []
    is_after = False
    for line in lines:
        if line.startswith("-"):
            before = [*([] if is_after else before), line[1:].strip()]
            is_after = False
        elif line.startswith("+"):
            is_after = True
            yield Equivalent(module, tuple(before), line[1:].strip(), why)


class Chosen:
    """A plugin of pytest: runs *tests* only, in their order, each for so many seconds at most."""

    def __init__(self, tests: Mapping[str, float]) -> None:
        """Take the node ids."""
        self._tests = tests
        #: What pytest found, once it has run them.
        self.status: int | None = None
        self._rank = {test: rank for rank, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what was not chosen."""
        # From here on each test has a limit of its own; this is for what hangs between them.
        signal.alarm(COLLECTION_SECONDS + int(sum(self._tests.values())))
        items[:] = sorted(
            (item for item in items if item.nodeid in self._rank), key=lambda item: self._rank[item.nodeid]
        )
        for item in items:
            item.add_marker(pytest.mark.timeout(self._tests[item.nodeid]), append=False)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Keep the status: what a mutant left behind may raise after this."""
        self.status = exitstatus


class CoverageByTest(coverage.Coverage):
    """Tells tests apart, where tests/conftest.py names their files only."""

    def switch_context(self, _new_context: str) -> None:
        """Do nothing; called by tests/conftest.py."""

    def enter(self, test: str) -> None:
        """Lines are run by *test* from now on."""
        super().switch_context(test)


class Observer:
    """A plugin of pytest: notes for each test which lines it runs and how long it takes."""

    def __init__(self, sources: Sequence[str]) -> None:
        """Measure *sources*, from now on."""
        self._coverage = CoverageByTest(data_file=None, config_file=False, include=sources)
        self._coverage.start()
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Count the lines that are run as those of test *nodeid*; pytest calls this before the fixtures of the test."""
        self._coverage.enter(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the time of one phase of a test: its fixtures, the test itself, or their end."""
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration

    def reach(self) -> Reach:
        """Stop measuring, and return what was found."""
        self._coverage.stop()
        data = self._coverage.get_data()
        lines: dict[str, dict[int, frozenset[str]]] = {}
        for path in data.measured_files():
            by_line = data.contexts_by_lineno(path)
            lines[str(Path(path).relative_to(Path.cwd()))] = {line: frozenset(of) for line, of in by_line.items()}
        return Reach(self._seconds, lines)


def main() -> int:
    """Try mutants, or none with --report, and print the report; the exit status is 0, also if some are alive."""
    options = _arguments()
    cosmic_ray.plugins.OPERATOR_PROVIDERS["zonefs_emu"] = {"RemoveStatement": RemoveStatement}
    cosmic_ray.plugins.operator_names = lambda: _OPERATORS
    cosmic_ray.mutating.run_tests = _run_tests
    modules = _modules(options.modules)
    equivalents = Equivalents.read()
    if options.report:
        sessions = {module: found[-1] for module in modules if (found := _sessions(module))}
    else:
        sessions = {module: _session(module) for module in modules}
        _run(sessions, options.jobs, options.budget, options.sample, equivalents)
    report = _report(sessions, equivalents)
    print(report, end="")
    (SESSIONS / "report.txt").write_text(report)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/mutants.py",
        description=str(__doc__).partition("\n\n")[0],
        epilog="Results go to build/mutants/report.txt.",
    )
    parser.add_argument("modules", nargs="*", default=MUTATED, help="directories or files below zonefs_emu/")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="mutants tried at once")
    parser.add_argument(
        "--budget",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="a quick look: of the tests that run a mutant, the first that take so long together",
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="a quick look: N mutants of each module, always the same"
    )
    parser.add_argument("--report", action="store_true", help="print what the last run found, and run nothing")
    return parser.parse_args()


def _modules(names: Sequence[str]) -> list[Path]:
    """Return the modules that *names* mean, relative to the checkout."""
    found: list[Path] = []
    for name in names:
        path = ROOT / "zonefs_emu" / name
        if not path.exists():
            sys.exit(f"tools/mutants.py: there is no zonefs_emu/{name}")
        files = sorted(path.glob("*.py")) if path.is_dir() else [path]
        found += [file.relative_to(ROOT) for file in files if file.name != "__init__.py"]
    return found


def _sessions(module: Path) -> list[Path]:
    """Return the sessions of *module* that there are, those of what it was before included; the newest is last."""
    name = "-".join(module.with_suffix("").parts[1:])
    return sorted(SESSIONS.glob(f"{name}-*.sqlite"), key=lambda path: path.stat().st_mtime)


def _session(module: Path) -> Path:
    """Return the session of *module* as it is now; it is made if there is none.

    What was killed in lines that are as they were stays killed, so that a change costs the mutants of what it touches.
    """
    source = (ROOT / module).read_text()
    name = "-".join(module.with_suffix("").parts[1:])
    path = SESSIONS / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:12]}.sqlite"
    if path.exists():
        return path
    SESSIONS.mkdir(parents=True, exist_ok=True)
    earlier = _sessions(module)
    making = path.with_suffix(".new")
    making.unlink(missing_ok=True)
    with use_db(str(making)) as session:
        init([module], session, {})
        if earlier:
            with use_db(str(earlier[-1]), WorkDB.Mode.open) as old:
                results = {job: result for job, result in old.results if _is_killed(result)}
                jobs = _places(old.work_items, earlier[-1].with_suffix(".py").read_text())
            for place, job in _places(session.work_items, source).items():
                if jobs.get(place) in results:
                    session.set_result(job, results[jobs[place]])
    path.with_suffix(".py").write_text(source)
    making.rename(path)
    for old_path in earlier:
        old_path.unlink()
        old_path.with_suffix(".py").unlink()
    return path


class _Inert(ast.NodeVisitor):
    """Finds what no test can tell apart: annotations, imports for types, assertions, and what is logged."""

    def __init__(self) -> None:
        #: (first line, first column), (last line, last column) of each.
        self.spans: list[tuple[tuple[int, int], tuple[int, int]]] = []

    def _add(self, node: ast.expr | ast.stmt | None) -> None:
        if node is not None:
            end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
            self.spans.append(((node.lineno, node.col_offset), end))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Annotations are not evaluated for anything."""
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg)
        for annotation in (node.returns, *(each.annotation for each in arguments if each is not None)):
            self._add(annotation)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Nor are those of variables; a type by another name is one as well."""
        self._add(node.annotation)
        if isinstance(node.annotation, ast.Name) and node.annotation.id == "TypeAlias":
            self._add(node.value)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        """Imports for types only do not exist when the code runs."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            self._add(node)
        self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        """An assertion holds always, so a weaker one changes nothing."""
        self._add(node)

    def visit_Call(self, node: ast.Call) -> None:
        """The arguments of a log, and the assertion that lists are of one length."""
        function = node.func
        if (
            isinstance(function, ast.Attribute)
            and function.attr in _LOGGING
            and ast.unparse(function.value).endswith("log")
        ):
            for argument in node.args:
                self._add(argument)
        for keyword in node.keywords:
            if isinstance(function, ast.Name) and function.id == "zip" and keyword.arg == "strict":
                self._add(keyword.value)
        self.generic_visit(node)


def _meaningful(items: Iterable[WorkItem], source: str) -> list[WorkItem]:
    """Return those of *items* that change what the code in *source* does, as far as its grammar tells."""
    inert = _Inert()
    inert.visit(ast.parse(source))

    def is_inert(item: WorkItem) -> bool:
        begin = item.mutations[0].start_pos
        return any(first <= begin < last for first, last in inert.spans)

    return [item for item in items if not is_inert(item)]


def _sampled(items: Iterable[WorkItem], source: str, count: int) -> list[WorkItem]:
    """Return *count* of *items*, as random as a hash is: the same ones again, also after a change of other lines."""
    by_job = {item.job_id: item for item in items}
    ranks = {
        job: hashlib.sha256(repr(place).encode()).digest() for place, job in _places(by_job.values(), source).items()
    }
    return [by_job[job] for job in sorted(ranks, key=ranks.__getitem__)[:count]]


def _is_killed(result: WorkResult) -> bool:
    """Return whether *result* is final. The result of a mutant that could not be tried is not."""
    return result.worker_outcome is WorkerOutcome.NORMAL and result.is_killed


def _changed_lines(result: WorkResult) -> list[str]:
    """Return the lines that a mutant takes away (-) and adds (+), from its difference."""
    return re.findall(r"^[-+](?![-+]).*$", result.diff or "", re.MULTILINE)


def _places(items: Iterable[WorkItem], source: str) -> dict[tuple[str, ...], str]:
    """Return the job of each mutant by its operator, its function, its line and its number among those of that line."""
    lines = source.splitlines()
    places: dict[tuple[str, ...], str] = {}
    for item in sorted(items, key=lambda item: (item.mutations[0].start_pos, item.mutations[0].occurrence)):
        mutation = item.mutations[0]
        where = (mutation.operator_name, mutation.definition_name or "", lines[mutation.start_pos[0] - 1])
        number = next(number for number in itertools.count() if (*where, str(number)) not in places)
        places[(*where, str(number))] = item.job_id
    return places


def _tests(directory: Path) -> list[str]:
    """Return the test files that tell whether the modules of *directory* work."""
    name = str(Path(*directory.parts[1:]))
    files = [file for of in TESTS.get(name, (name,)) for file in sorted((ROOT / "tests" / of).glob("test_*.py"))]
    return [str(path.relative_to(ROOT)) for path in files if f"{path.parent.name}/{path.name}" not in OTHERS]


def _statements(source: str) -> dict[int, range]:
    """Return the lines of the innermost statement of each line of *source*, of a compound one those of its head."""
    found: dict[int, range] = {}
    for node in ast.walk(ast.parse(source)):  # breadth first: inner statements come later
        if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            first = node.pattern if isinstance(node, ast.match_case) else node
            inner = getattr(node, "body", None)
            begin = min([first.lineno, *(line.lineno for line in getattr(node, "decorator_list", ()))])
            end = max(inner[0].lineno, begin + 1) if inner else (first.end_lineno or begin) + 1
            found.update(dict.fromkeys(range(begin, end), range(begin, end)))
    return found


def _chosen(module: Path, reach: Reach, source: str) -> dict[int, tuple[str, ...]]:
    """Return the tests for a mutant of each line: those of the module's own test file first, then the fastest."""
    own = f"/test_{module.name}::"

    def order(test: str) -> tuple[float, str]:
        return reach.seconds[test] + (own not in test), test

    everything = (*sorted(reach.seconds, key=order), OF_ALL)
    lines = reach.lines.get(str(module), {})
    chosen: dict[int, tuple[str, ...]] = {}
    for line, statement in _statements(source).items():
        tests = frozenset().union(*(lines.get(number, frozenset()) for number in statement))
        chosen[line] = everything if "" in tests else tuple(sorted(tests, key=order))
    return chosen


def _limits(of_line: tuple[str, ...], seconds: Mapping[str, float], budget: float) -> dict[str, float]:
    """Return the tests of *of_line* that the *budget* has room for, and how long each may take."""
    spent = list(itertools.accumulate(seconds.get(test, 1.0) for test in of_line))
    tests = tuple(test for test, at in zip(of_line, spent, strict=True) if at <= budget) or of_line[:1]
    tests += (OF_ALL,) if OF_ALL in of_line and OF_ALL not in tests else ()
    return {test: TIMEOUT_FACTOR * seconds.get(test, 1.0) + TIMEOUT_SECONDS for test in tests}


def _build_compiled() -> None:
    """Build the compiled modules in this checkout, from which they are copied, unless they are there."""
    says = "import sys; from zonefs_emu import compiled_modules; sys.exit(compiled_modules.used_walker() != 'compiled')"
    environment = {**os.environ, "ZONEFS_EMU_PURE": "", "PYTHONPATH": str(ROOT)}
    if subprocess.run([sys.executable, "-c", says], env=environment, check=False).returncode:
        subprocess.run([sys.executable, ROOT / "tools" / "build_walker.py"], check=True)


def _run(
    sessions: Mapping[Path, Path], nr_jobs: int, budget: float, sample: int | None, equivalents: Equivalents
) -> None:
    """Try every mutant of *sessions* that was not killed yet, and is not listed as one that does the same."""
    jobs: list[Job] = []
    reaches: dict[Path, Reach] = {}
    compiled_reaches: dict[Path, Reach] = {}
    if any(module.parent in COMPILED_TESTS for module in sessions):
        _build_compiled()
    with multiprocessing.get_context("fork").Pool(nr_jobs, _enter_copy, (os.getpid(), list(sessions))) as pool:
        try:
            for module, path in sessions.items():
                source = (ROOT / module).read_text()
                with use_db(str(path), WorkDB.Mode.open) as session:
                    done = {
                        job
                        for job, result in session.results
                        if _is_killed(result) or equivalents.why(module, _changed_lines(result))
                    }
                    items = _meaningful(session.work_items, source)
                items.sort(key=lambda item: (item.mutations[0].start_pos, item.job_id))
                if sample is not None:
                    items = _sampled(items, source, sample)
                items = [item for item in items if item.job_id not in done]
                if not items:
                    continue
                directory = module.parent
                if directory not in reaches:
                    print(f"{directory}: the tests without a mutant ", end="", flush=True)
                    reaches[directory] = _reach(directory, _tests(directory), pool)
                    print(f"take {sum(reaches[directory].seconds.values()):.0f} s")
                    compiled_tests = COMPILED_TESTS.get(directory, ())
                    compiled_reaches[directory] = _reach(directory, compiled_tests, pool, is_compiled=True)
                chosen = _chosen(module, reaches[directory], source)
                chosen_compiled = _chosen(module, compiled_reaches[directory], source)
                for item in items:
                    line = item.mutations[0].start_pos[0]
                    pure = _limits(chosen[line], reaches[directory].seconds, budget)
                    of_compiled = tuple(test for test in chosen_compiled[line] if test != OF_ALL)
                    compiled = _limits(of_compiled, compiled_reaches[directory].seconds, budget)
                    jobs.append(Job(path, item, Tests(pure, compiled)))
            jobs.sort(key=lambda job: str(job.item.job_id))  # at random, for interrupted runs
            print(f"{len(jobs)} mutants to try, {nr_jobs} at once", flush=True)
            begin = time.monotonic()
            for number, (job, result) in enumerate(pool.imap_unordered(_try, jobs), 1):
                _keep(job, result)
                if number % 20 == 0 or number == len(jobs):
                    left = (time.monotonic() - begin) / number * (len(jobs) - number) / 60
                    print(f"\r{number} of {len(jobs)}, {left:.0f} minutes to go   ", end="", flush=True)
            print()
        finally:
            pool.terminate()
            for copy in Path(tempfile.gettempdir()).glob(f"mutants-{os.getpid()}-*"):
                _unmount(copy)
                shutil.rmtree(copy)


def _unmount(directory: Path) -> None:
    """Unmount the mounts of killed tests in *directory*, which could otherwise not be removed or used again."""
    mounted = [os.fsdecode(line.split()[1]) for line in Path("/proc/self/mounts").read_bytes().splitlines()]
    for place in reversed(mounted):
        if place.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", place], check=True)


def _keep(job: Job, result: WorkResult) -> None:
    """Note *result*; of one that survived again there is one already."""
    with use_db(str(job.session), WorkDB.Mode.open) as session:
        session.set_result(job.item.job_id, result)


def _enter_copy(owner: int, modules: Sequence[Path]) -> None:
    """Go to a copy of the checkout, so that this process can change it, and stay there."""
    copy = Path(tempfile.mkdtemp(prefix=f"mutants-{owner}-"))
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    for name in os.fsdecode(listed).split("\0"):
        source = ROOT / name
        if name and source.is_file() and not source.is_symlink():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy / name)
    for extension in (ROOT / "zonefs_emu").rglob("*.so"):  # which git ignores
        shutil.copy2(extension, copy / extension.relative_to(ROOT))
    scratch = copy / "t"
    scratch.mkdir()
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if path != str(ROOT))]
    os.environ.update(
        PYTHONPATH=str(copy), TMPDIR=str(scratch), PYTEST_DEBUG_TEMPROOT=str(scratch), ZONEFS_EMU_HYPOTHESIS="mutants"
    )
    # Compiled once here, with pytest's rewritten tests; the processes that try mutants write no compiled code, so that
    # none of a mutant is left behind.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    directories = sorted({str(Path(test).parent) for module in modules for test in _tests(module.parent)})
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *directories]
    subprocess.run(collect, env=environment, check=True, capture_output=True)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _pytest(files: Sequence[str], plugin: Chosen | Observer, *, is_compiled: bool) -> int:
    """Run the fast tests of *files*, in this process; return pytest's exit status.

    A test that takes more than its time ends the process. An exception in its place would make hypothesis run the
    example again, without a timeout.
    """
    sys.dont_write_bytecode = True
    os.environ["ZONEFS_EMU_PURE"] = "" if is_compiled else "1"
    arguments = [
        "-x", "-q", "--no-header", "--tb=line", "-p", "no:randomly", "-p", "no:cacheprovider",
        "-W", "ignore::pytest.PytestAssertRewriteWarning", "-m", "not fuse and not qemu and not slow",
        "-o", "timeout=600", "-o", "timeout_method=thread", "-o", "faulthandler_timeout=0",
    ]  # fmt: skip
    return int(pytest.main([*arguments, *files], plugins=[plugin]))


def _reach(
    directory: Path, files: Sequence[str], pool: multiprocessing.pool.Pool, *, is_compiled: bool = False
) -> Reach:
    """Return which tests of *files* run which lines of *directory*; files are run that were not on these sources."""
    sources = sorted((ROOT / "zonefs_emu").rglob("*.py")) + [
        path for path in sorted((ROOT / "tests").rglob("*.py")) if not path.name.startswith("test_")
    ]
    of_all = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources))
    kept: dict[str, Path] = {}
    for file in files:
        of_file = of_all.copy()
        of_file.update((ROOT / file).read_bytes())
        name = "-".join((*directory.parts[1:], *Path(file).with_suffix("").parts[1:], *["compiled"] * is_compiled))
        kept[file] = SESSIONS / f"{name}-{of_file.hexdigest()[:12]}.reach"
    stale = [file for file, path in kept.items() if not path.exists()]
    if stale:
        try:
            reach = pool.apply(_baseline, (directory, stale), {"is_compiled": is_compiled})
        except RuntimeError as error:
            sys.exit(str(error))
        for file in stale:
            for earlier in SESSIONS.glob(f"{kept[file].name.rpartition('-')[0]}-*.reach"):
                earlier.unlink()
            kept[file].write_bytes(pickle.dumps(tuple(_of_file(reach, file))))
    seconds: dict[str, float] = {}
    lines: dict[str, dict[int, frozenset[str]]] = {}
    for path in kept.values():
        # Written above, by this program.
        of_seconds, of_lines = pickle.loads(path.read_bytes())
        seconds.update(of_seconds)
        for module, by_line in of_lines.items():
            for line, tests in by_line.items():
                known = lines.setdefault(module, {})
                known[line] = known.get(line, frozenset()) | tests
    return Reach(seconds, lines)


def _of_file(reach: Reach, file: str) -> Reach:
    """Return what *reach* says of the tests of *file*, and of imports."""

    def is_of_file(test: str) -> bool:
        return not test or test.partition("::")[0] == file

    return Reach(
        {test: taken for test, taken in reach.seconds.items() if is_of_file(test)},
        {
            module: {line: frozenset(filter(is_of_file, tests)) for line, tests in by_line.items()}
            for module, by_line in reach.lines.items()
        },
    )


def _baseline(directory: Path, files: Sequence[str], *, is_compiled: bool) -> Reach:
    """Run the tests of *files* without a mutant of *directory*."""
    reading, writing = multiprocessing.get_context("fork").Pipe(duplex=False)
    with tempfile.TemporaryFile() as output:
        child = _fork(output.fileno())
        if not child:
            status = _NOT_RUN
            try:
                observer = Observer([str(Path(directory, "*"))])
                status = _pytest(files, observer, is_compiled=is_compiled)
                if not status:
                    writing.send(observer.reach())
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        writing.close()
        try:
            reach: Reach = reading.recv()
        except EOFError:
            output.seek(0)
            message = f"failed\n{output.read().decode()}\ntools/mutants.py: the tests fail without a mutant"
            raise RuntimeError(message) from None  # SystemExit would end the pool's process and leave main() waiting
        finally:
            os.waitpid(child, 0)
    return reach


def _fork(output: int) -> int:
    """Fork; the child leads a session of its own and writes to the descriptor *output*."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdin.close()
    return child


def _run_tests(tests: Tests, _timeout: float) -> tuple[TestOutcome, str]:
    """Run *tests*, each for so many seconds at most. Stands for cosmic-ray's function, which starts a command."""
    result = TestOutcome.SURVIVED, "no test runs it"
    # The first file kills most mutants, and collecting the other files takes longer than running it.
    first = next((test.partition("::")[0] for test in tests.pure), "")
    rounds = (
        ({test: limit for test, limit in tests.pure.items() if test.partition("::")[0] == first}, False),
        ({test: limit for test, limit in tests.pure.items() if test.partition("::")[0] != first}, False),
        (tests.compiled, True),
    )
    for of_round, is_compiled in rounds:
        if of_round and result[0] is TestOutcome.SURVIVED:
            result = _run_once(of_round, is_compiled=is_compiled)
            if result[1] == "timeout":
                patient = {test: 2 * limit for test, limit in of_round.items()}
                result = _run_once(patient, is_compiled=is_compiled)
    return result


def _run_once(tests: Mapping[str, float], *, is_compiled: bool) -> tuple[TestOutcome, str]:
    with tempfile.TemporaryFile() as output:
        child = _fork(output.fileno())
        if not child:
            status = _NOT_RUN
            # The limit of a collection that hangs; the signal kills the process.
            signal.alarm(COLLECTION_SECONDS)
            chosen = Chosen(tests)
            try:
                files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
                status = _pytest(files, chosen, is_compiled=is_compiled)
            except BaseException:
                traceback.print_exc()
                if chosen.status == pytest.ExitCode.TESTS_FAILED:
                    status = chosen.status
            finally:
                sys.stdout.flush()
                os._exit(status)
        status = os.waitpid(child, 0)[1]
        with suppress(ProcessLookupError):  # what the tests started and a mutant left behind
            os.killpg(child, signal.SIGKILL)
        _unmount(Path.cwd())
        output.seek(0)
        said = output.read().decode(errors="replace")
    if status and (os.WIFSIGNALED(status) or "+ Timeout +" in said):
        return TestOutcome.KILLED, "timeout"
    # An end of pytest for another reason than a test that failed or could not be collected says nothing of the mutant.
    if os.waitstatus_to_exitcode(status) in (
        pytest.ExitCode.INTERNAL_ERROR,
        pytest.ExitCode.NO_TESTS_COLLECTED,
        _NOT_RUN,
    ):
        raise RuntimeError(said)
    return (TestOutcome.KILLED if status else TestOutcome.SURVIVED), said


def _try(job: Job) -> tuple[Job, WorkResult]:
    return job, mutate_and_test(job.item.mutations, job.tests, 0)


def _report(sessions: Mapping[Path, Path], equivalents: Equivalents) -> str:
    """Return a table of the modules, and each survivor with its difference."""
    rows: list[tuple[str, list[int]]] = []  # mutants, killed, timed out, equivalent, alive
    notes: list[str] = []
    for module, path in sessions.items():
        with use_db(str(path), WorkDB.Mode.open) as session:
            results = dict(session.results)
            items = _meaningful(session.work_items, path.with_suffix(".py").read_text())
        broken = [result for result in results.values() if result.worker_outcome is not WorkerOutcome.NORMAL]
        if broken:
            notes.append(f"{module}: {len(broken)} could not be tried, the first because of\n{broken[0].output}")
        killed = timed_out = nr_equivalent = nr_alive = 0
        for item in sorted(items, key=lambda item: item.mutations[0].start_pos):
            result = results.get(item.job_id)
            if result is None or result in broken:
                continue
            mutation, changed = item.mutations[0], _changed_lines(result)
            where = f"{module}:{mutation.start_pos[0]} {mutation.definition_name or ''}"
            why = equivalents.why(module, changed)
            difference = "\n".join(changed)
            if result.test_outcome is not TestOutcome.SURVIVED:
                timed_out += result.output == "timeout"
                killed += result.output != "timeout"
                if why:
                    notes.append(f"{where} is killed, so it is no equivalent one, as the list says\n{difference}\n")
            elif why:
                nr_equivalent += 1
            else:
                nr_alive += 1
                notes.append(f"{where} ({mutation.operator_name.partition('/')[2]})\n{difference}\n")
        rows.append((str(module), [len(items), killed, timed_out, nr_equivalent, nr_alive]))
    rows.append(("together", [sum(column) for column in zip(*(numbers for _, numbers in rows), strict=True)]))
    heads = ("mutants", "tried", "killed", "hanging", "equivalent", "alive", "of tried", "of others")
    lines = [f"{'module':36}" + "".join(f"{head:>11}" for head in heads)]
    for name, (total, killed, timed_out, nr_equivalent, nr_alive) in rows:
        nr_killed, others = killed + timed_out, killed + timed_out + nr_alive
        tried = others + nr_equivalent
        shares = [f"{100 * nr_killed / count:.1f} %" if count else "-" for count in (tried, others)]
        cells = (total, tried, nr_killed, timed_out, nr_equivalent, nr_alive, *shares)
        lines.append(f"{name:36}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines) + "\n\n" + "\n".join(notes)


if __name__ == "__main__":
    sys.exit(main())
