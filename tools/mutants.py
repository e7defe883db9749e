#!/usr/bin/env python3
"""Mutation testing: change the source in small ways, one at a time, and see whether a test notices.

    make mutants                                  everything in MUTATED
    tools/mutants.py model virtqueue/queue.py     some of it
    tools/mutants.py --report                     what the last run found, without running anything

Each mutant is tried in a copy of the checkout by the fast tests of the directory that belongs to its module, those of
its own test file first. All processors are used. A run that is interrupted goes on where it was, from the results in
build/mutants. What was killed stays so, also after a change of the module's other lines; what survived is tried again,
because that is what a test was written for since. Remove build/mutants to begin anew.

The mutants are those of cosmic-ray, but for two things. Of the eleven ways to replace an operator one or two are made,
the likely slips: the others die of the same tests. And statements are removed, which cosmic-ray does not do.
"""

import argparse
import hashlib
import itertools
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import cosmic_ray.plugins
from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkItem, WorkResult
from parso.python.tree import Keyword
from parso.tree import NodeOrLeaf

ROOT: Final = Path(__file__).resolve().parent.parent
SESSIONS: Final = ROOT / "build" / "mutants"
#: What is mutated, below zonefs_emu/: directories and files.
MUTATED: Final = ("model", "device", "persist/image.py", "virtqueue")
#: Tests that take longest, so that they come last and see only what nothing else noticed.
LAST: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "model": ("test_machine.py",),
        "device": ("test_faults.py", "test_device.py"),
        "persist": ("test_image.py", "test_crashes.py"),
        "virtqueue": (),
    }
)
#: Tests of a directory that say nothing about its mutated modules.
OTHERS: Final = frozenset({"persist/test_corruption.py", "persist/test_kill.py", "persist/test_salvage.py"})
#: Tests of the source of all modules.
OF_ALL: Final = "tests/test_tidy.py::test_dataclasses_are_frozen_slotted_and_keyword_only"
#: A mutant that makes a test hang counts as killed after this many times what the tests take, and not sooner than this.
TIMEOUT_FACTOR: Final = 6
TIMEOUT_SECONDS: Final = 30
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
        """Return what the operator can be told: nothing."""
        return ()


class Job(NamedTuple):
    """One mutant to try: *command* runs the tests of its module, for *timeout* seconds at most."""

    session: Path
    item: WorkItem
    command: str
    timeout: float


def main() -> int:
    """Try mutants and report; the exit status is 1 if one survived that no page explains."""
    options = _arguments()
    cosmic_ray.plugins.OPERATOR_PROVIDERS["zonefs_emu"] = {"RemoveStatement": RemoveStatement}
    cosmic_ray.plugins.operator_names = lambda: _OPERATORS
    modules = _modules(options.modules)
    if options.report:
        sessions = {module: found[-1] for module in modules if (found := _sessions(module))}
    else:
        sessions = {module: _session(module) for module in modules}
        _run(sessions, options.jobs)
    report = _report(sessions)
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
                results = {job: result for job, result in old.results if result.is_killed}
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


def _tests(module: Path) -> list[str]:
    """Return the test files that tell whether *module* works, the likeliest to notice and the fastest first."""
    directory = Path("tests", *module.parts[1:-1])
    own = directory / f"test_{module.name}"
    last = LAST[directory.name]

    def order(path: Path) -> tuple[bool, int, str]:
        return path != own, last.index(path.name) if path.name in last else -1, path.name

    files = (path.relative_to(ROOT) for path in (ROOT / directory).glob("test_*.py"))
    return [str(path) for path in sorted(files, key=order) if f"{directory.name}/{path.name}" not in OTHERS]


def _command(module: Path) -> str:
    words = [
        sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:randomly", "-p", "no:cacheprovider",
        "-m", "'not fuse and not qemu and not slow'", *_tests(module), OF_ALL,
    ]  # fmt: skip
    return " ".join(words)


def _run(sessions: Mapping[Path, Path], nr_jobs: int) -> None:
    """Try every mutant of *sessions* that was not killed yet."""
    jobs: list[Job] = []
    timeouts: dict[Path, float] = {}
    with multiprocessing.get_context("fork").Pool(nr_jobs, _enter_copy, (os.getpid(), list(sessions))) as pool:
        try:
            for module, path in sessions.items():
                with use_db(str(path), WorkDB.Mode.open) as session:
                    survived = {job for job, result in session.results if not result.is_killed}
                    done = {job for job, _ in session.results} - survived
                    items = [item for item in session.work_items if item.job_id not in done]
                if items and module.parent not in timeouts:
                    print(f"{module.parent}: the tests without a mutant ", end="", flush=True)
                    seconds = pool.apply(_baseline, (_command(module),))
                    timeouts[module.parent] = max(TIMEOUT_FACTOR * seconds, TIMEOUT_SECONDS)
                    print(f"take {seconds:.0f} s")
                jobs += [Job(path, item, _command(module), timeouts[module.parent]) for item in items]
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
                shutil.rmtree(copy)


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
    scratch = copy / "t"
    scratch.mkdir()
    os.chdir(copy)
    os.environ.update(PYTHONPATH=str(copy), TMPDIR=str(scratch), ZONEFS_EMU_HYPOTHESIS="mutants")
    # Compiled once here, with pytest's rewritten tests; the processes that try mutants write no compiled code, so that
    # none of a mutant is left behind.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    directories = sorted({str(Path(test).parent) for module in modules for test in _tests(module)})
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *directories]
    subprocess.run(collect, env=environment, check=True, capture_output=True)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _baseline(command: str) -> float:
    """Run the tests without a mutant; return the seconds that it took."""
    begin = time.monotonic()
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"failed\n{done.stdout}{done.stderr}\ntools/mutants.py: the tests fail without a mutant")
    return time.monotonic() - begin


def _try(job: Job) -> tuple[Job, WorkResult]:
    return job, mutate_and_test(job.item.mutations, job.command, job.timeout)


def _report(sessions: Mapping[Path, Path]) -> str:
    """Return a table of the modules, and each survivor with its difference."""
    rows: list[tuple[str, list[int]]] = []  # mutants, killed, timed out, alive
    survivors: list[str] = []
    for module, path in sessions.items():
        with use_db(str(path), WorkDB.Mode.open) as session:
            results = dict(session.results)
            items = list(session.work_items)
        of_module = [(item, results[item.job_id]) for item in items if item.job_id in results]
        broken = [result.output for _, result in of_module if result.worker_outcome is not WorkerOutcome.NORMAL]
        if broken:
            raise RuntimeError(f"{len(broken)} mutants of {module} were not tried: {broken[0]}")
        alive = [pair for pair in of_module if pair[1].test_outcome is TestOutcome.SURVIVED]
        timed_out = sum(result.output == "timeout" for _, result in of_module)
        rows.append((str(module), [len(items), len(of_module) - len(alive) - timed_out, timed_out, len(alive)]))
        for item, result in sorted(alive, key=lambda pair: pair[0].mutations[0].start_pos):
            mutation = item.mutations[0]
            changed = "\n".join(re.findall(r"^[-+](?![-+]).*$", result.diff or "", re.MULTILINE))
            where = f"{module}:{mutation.start_pos[0]} {mutation.definition_name or ''}"
            survivors.append(f"{where} ({mutation.operator_name.partition('/')[2]})\n{changed}\n")
    rows.append(("together", [sum(column) for column in zip(*(numbers for _, numbers in rows), strict=True)]))
    lines = [f"{'module':36}{'mutants':>8}{'killed':>8}{'timeout':>8}{'alive':>8}{'untried':>8}{'killed':>9}"]
    for name, (total, killed, timed_out, nr_alive) in rows:
        tried = killed + timed_out + nr_alive
        share = f"{100 * (killed + timed_out) / tried:.1f} %" if tried else "-"
        lines.append(f"{name:36}{total:8}{killed:8}{timed_out:8}{nr_alive:8}{total - tried:8}{share:>9}")
    return "\n".join(lines) + "\n\n" + "\n".join(survivors)


if __name__ == "__main__":
    sys.exit(main())
