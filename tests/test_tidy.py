"""The repository itself: what no linter looks at and every reader relies on."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import click
import pytest

from tests.test_documents import PAGES
from tools import manual, zones_picture
from zonefs_emu.cli.main import cli
from zonefs_emu.cli.verb_table import VERBS
from zonefs_emu.errors import Status
from zonefs_emu.model.zone import Condition

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "zonefs_emu"
TESTS: Final = ROOT / "tests"

# Source without a test file of its own, and why.
UNTESTED_SOURCE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "virtio/features.py": "numbers of the standard, used by the tests of all devices",
        "virtio/plain_requests.py": "values; virtqueue/test_walker.py has what they say",
        "virtqueue/walkers.py": "virtqueue/test_walker.py has which queues have one",
        "virtqueue/virtio_device.py": "a Protocol; its two implementations have tests",
        "fs/negotiation.py": "makes sense with a kernel only; fs/test_mount.py has mounts with and without it",
        "fs/rules.py": "texts; front_ends/test_answers.py looks at those of all packages",
        "scsi/rules.py": "the same",
        "ublk/rules.py": "the same",
        "virtio/rules.py": "the same",
        "nvme/rules.py": "the same",
        "nvme/answer.py": "values; nvme/test_status.py has what they compute",
        "testing/driver_rings.py": "the same: rings that testing/test_vhost_frontend.py and the tests of virtio drive",
        "testing/blk_driver.py": "the same",
        "front_ends/own_thread.py": "front_ends/test_nvme_tcp.py and test_vhost_user.py end it in each way",
        "testing/scenarios.py": "data; testing/test_conformance.py carries all of it out",
        "vfio_user/queue_set.py": "vfio_user/test_pci_drive.py and test_killed_daemon.py do all of it",
        "vfio_user/begun_commands.py": "vfio_user/test_killed_daemon.py has begun ones, and a contested zone",
        "testing/vfio_client.py": "a guest for tests: vfio_user/test_pci_drive.py uses all of it",
        "testing/nvme_initiator.py": "a host for tests: nvme_tcp/test_queue_connection.py uses all of it",
        "daemon/holders.py": "the kernel's word on other processes; cli/test_finding.py has some",
    }
)
# Test files that belong to no one source file, and why.
TESTS_OF_THE_WHOLE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "vduse/test_loop.py": "the thread of vduse/vduse_device.py, without a guest",
        "cli/test_readonly.py": "mounts what cannot be written",
        "cli/test_broken_arguments.py": "every verb with every kind of broken path",
        "virtqueue/test_walker.py": "walker.pyx, which is no Python",
        "ublk/test_tag_walker.py": "tag_walker.pyx, the same",
        "vfio_user/test_queue_walker.py": "queue_walker.pyx, the same",
        "test_tidy.py": "tests the repository",
        "test_share.py": "tests what tools/share.py makes, which is not part of the package",
        "test_dist.py": "tests what the build makes of the whole tree",
        "guest/test_debian_package.py": "tests what debhelper makes of the whole tree",
        "test_demo.py": "tests tools/demo, which is not Python",
        "test_bench.py": "tests bench/, which is not part of the package",
        "test_documents.py": "runs the commands of documents",
        "test_conftest.py": "tests the tests' own rules",
        "vhost_user/test_libblkio.py": "somebody else's front-end",
        "cli/test_paths.py": "images and directories of any name, through all verbs",
        "cli/test_finding.py": "daemons that are found, and traps that are not taken for one, through the verbs",
        "vhost_user/test_exactly_once.py": "a back-end killed at every instant, and really killed",
        "vfio_user/test_killed_daemon.py": "a daemon killed at every instant, and really killed, with a keeper between",
        "vhost_user/test_lost_memory.py": "a front-end that cuts its memory, and a daemon with another guest",
        "front_ends/test_timed_answers.py": "answers that are held on the clock of the host, of several front-ends",
        "nvme/test_both_transports.py": "both transports of the NVMe drive",
        "nvme/test_what_linux_insists_on.py": "both transports of the NVMe drive, and drives that lack something",
        "guest/test_nvme_tcp.py": "the kernel's own NVMe/TCP driver and our drive",
        "guest/test_nvme_failure.py": "the kernel's own NVMe driver and an image that fails",
        "guest/test_nvme_peers.py": "our NVMe drive beside two others, which are not ours",
        "guest/test_vfio_user.py": "a newer QEMU, the kernel's own NVMe driver and our drive",
        "guest/test_scsi_disk.py": "a served disk and a real kernel's driver",
        "guest/test_file_systems.py": "a served disk and real file systems",
        "guest/test_migration.py": "a guest that moves from QEMU to QEMU",
        "guest/test_restart.py": "a daemon and a QEMU that die under a guest's load",
        "guest/test_nested.py": "attached devices and a virtual machine that uses them",
        "guest/test_systemd.py": "fstab and the units of systemd/, which are no Python",
        "guest/test_failures.py": "injected failures and a real kernel",
        "persist/test_corruption.py": "every byte and every length of an image's metadata",
        "device/test_take_back.py": "exceptions in every function that changes zones, device and machine alike",
        "persist/test_kill.py": "a real process, really killed",
        "persist/test_golden.py": "images that earlier versions wrote",
        "persist/test_crashes.py": "the image's promises, at every point where a process or a host can die",
        "persist/test_zrwa_crashes.py": "the same of zone random write areas",
    }
)

# Dataclasses that change, and why; all others are frozen.
DATACLASSES_THAT_CHANGE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "device/faults.py Fault": "counts what it meets",
        "persist/salvage.py _Words": "filled while an image is read",
    }
)
# Modules of one name in several packages, and why: each name is of one thing.
SHARED_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "__init__": "the heads of packages",
        "answers": "what is answered to refusals: by the virtio devices, and by all front-ends joined",
        "check": "the verb, and what it does",
        "dump": "the verb, and what it does",
        "faults": "injected faults, and their codec in the image",
        "mkfs": "the verb, and what it does",
        "mount": "the verb, and what it does",
        "protocol": "the structures of a kernel interface as bytes: ublk's, VDUSE's",
        "rewind": "the verb, and what it does",
        "rules": "the rules that a package states",
    }
)
# Functions of tests that look at a clock, and why. A test that compares elapsed time fails on a machine that is busy:
# count calls, lines or bytes, compare with a peer in the benchmarks, or let pytest's timeout be the limit.
CLOCKS_IN_TESTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cli/test_mount.py wait_gone": "a deadline, so that a process that stays fails the test before its timeout",
        "daemon/test_session.py wait_until_ended": "a deadline, so that a front-end that stays fails the test",
        "daemon/test_background.py wait_for": "a deadline for a line in a log",
        "guest/test_migration.py wait_for": "a deadline for a line on a console, with what came instead",
        "guest/test_migration.py move": "a deadline for a migration, with its last state",
        "guest/test_restart.py wait_while_records_come": "a deadline for progress, with how far the guest came",
        "served.py wait_until_ready": "a deadline for a daemon's start, with its log",
        "soak/test_planting.py run_until_nothing_new": "a deadline, so that a load that hangs fails the test",
        "soak/test_crowd.py test_everybody_gets_something_done_through_kills_and_stops": "a deadline for first results",
    }
)
CLOCK: Final = re.compile(
    r"\b(?:monotonic|perf_counter|process_time|thread_time|clock_gettime)(?:_ns)?\("
    r"|\btime\.time(?:_ns)?\(|\btimeit\b|\bgetrusage\(\w|\bdatetime\.now\("
)

# Joined here so that this file does not find itself.
MACHINE_PATHS: Final = tuple(f"/{name}/" for name in ("work", "root", "home"))
REGISTRY_HOSTS: Final = tuple(
    ".".join(labels)
    for labels in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("deb", "debian", "org"),
        ("snapshot", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("registry", "npmjs"),
    )
)


def tracked_files() -> list[Path]:
    """All files that git tracks and that exist (a file may be deleted, but not yet committed)."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def text_files() -> Iterator[tuple[Path, str]]:
    for path in tracked_files():
        try:
            yield path, path.read_text()
        except UnicodeDecodeError:
            continue


def modules() -> list[str]:
    """Source files that must have tests: all but packages' heads and the entry for ``python -m``."""
    return sorted(
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.name not in {"__init__.py", "__main__.py"}
    )


def layers() -> list[str]:
    return sorted(
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
        if not path.stem.startswith("__")
    )


def test_every_source_file_has_its_test_file() -> None:
    expected = {name: str(Path(name).with_name(f"test_{Path(name).name}")) for name in modules()}
    missing = [
        f"tests/{test} for zonefs_emu/{name}"
        for name, test in expected.items()
        if name not in UNTESTED_SOURCE and not (TESTS / test).exists()
    ]
    assert not missing


def test_every_test_file_has_its_source_file() -> None:
    orphans = []
    for path in TESTS.rglob("test_*.py"):
        name = str(path.relative_to(TESTS))
        source = PACKAGE / path.relative_to(TESTS).with_name(path.name.removeprefix("test_"))
        # tools/ is not part of the package, but what is big enough there for tests has them.
        tool = ROOT / "tools" / source.relative_to(PACKAGE)
        if name not in TESTS_OF_THE_WHOLE and not source.exists() and not tool.exists():
            orphans.append(name)
    assert not orphans


@pytest.mark.parametrize(
    ("exceptions", "directory"), [(UNTESTED_SOURCE, PACKAGE), (TESTS_OF_THE_WHOLE, TESTS)], ids=["source", "tests"]
)
def test_no_exception_outlives_its_file(exceptions: Mapping[str, str], directory: Path) -> None:
    assert [name for name in exceptions if not (directory / name).exists()] == []


def test_no_two_modules_have_one_name_for_different_things() -> None:
    names = [path.stem for path in PACKAGE.rglob("*.py")]
    shared = {name for name in names if names.count(name) > 1}
    assert sorted(shared - set(SHARED_NAMES)) == []
    assert sorted(set(SHARED_NAMES) - shared) == [], "exceptions that are no longer needed"


def functions_with_clocks() -> Iterator[str]:
    """Innermost functions of the tests and examples that read a clock, programs that they start included."""
    for directory in (TESTS, ROOT / "examples"):
        for path in sorted(directory.rglob("*.py")):
            text = path.read_text()
            lines = [number for number, line in enumerate(text.splitlines(), 1) if CLOCK.search(line)]
            if not lines or path == Path(__file__):
                continue
            functions = [
                node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            for number in lines:
                around = [node for node in functions if node.lineno <= number <= (node.end_lineno or 0)]
                name = max(around, key=lambda node: node.lineno).name if around else "(outside of functions)"
                yield f"{path.relative_to(TESTS) if directory == TESTS else path.relative_to(ROOT)} {name}"


def test_no_test_asserts_how_long_something_takes() -> None:
    found = set(functions_with_clocks())
    assert sorted(found - set(CLOCKS_IN_TESTS)) == []
    assert sorted(set(CLOCKS_IN_TESTS) - found) == [], "exceptions that are no longer needed"


@pytest.mark.parametrize(
    ("line", "reads"),
    [
        ("begin = time.monotonic()", True),
        ("assert perf_counter_ns() - begin < 5", True),
        ("before = time.time()", True),
        ("timeit.timeit(command)", True),
        ('monkeypatch.setattr("time.monotonic_ns", lambda: now)', False),
        ("file.atime_ns", False),
        ("# Not getrusage(): its maximum", False),
    ],
)
def test_what_reads_a_clock(line: str, reads: bool) -> None:
    assert bool(CLOCK.search(line)) == reads


def test_dataclasses_are_frozen_slotted_and_keyword_only() -> None:
    """Arguments of one type must have names; what can be written by accident will be."""
    wrong = []
    changing = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            for decorator in map(ast.unparse, node.decorator_list):
                name = f"{path.relative_to(PACKAGE)} {node.name}"
                if decorator == "dataclass(slots=True, kw_only=True)":
                    changing.add(name)
                elif decorator.startswith("dataclass") and decorator != (
                    "dataclass(frozen=True, slots=True, kw_only=True)"
                ):
                    wrong.append(name)
    assert not wrong
    assert changing == set(DATACLASSES_THAT_CHANGE)


def test_every_layer_has_its_place_in_readme_and_architecture() -> None:
    for document in ("README.md", "docs/architecture.md"):
        text = (ROOT / document).read_text()
        assert [name for name in layers() if not re.search(rf"\b{name}\b", text)] == [], document


def test_the_architecture_lists_each_module_of_the_device() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    names = [path.stem for path in (PACKAGE / "device").glob("*.py") if path.stem != "__init__"]
    assert sorted(name for name in names if f"`{name}`" not in text) == []


def test_the_layers_of_the_contract_are_those_that_exist() -> None:
    """None is optional (in parentheses, which import-linter skips when it is absent), and none is left over."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = [
        name.strip() for row in config["tool"]["importlinter"]["contracts"][0]["layers"] for name in row.split("|")
    ]
    assert sorted(names) == layers()


def test_contracts_that_keep_protocols_away_name_all_of_them() -> None:
    """The packages between the front-ends and the device, which neither the daemon nor the command line may import."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = contracts[0]["layers"]
    between = rows[rows.index("front_ends") + 1 : rows.index("device")]
    protocols = {f"zonefs_emu.{name.strip()}" for row in between for name in row.split("|")} - {"zonefs_emu.daemon"}
    keeping = [each for each in contracts if each["name"].startswith(("The daemon knows", "The command line reaches"))]
    assert [set(each["forbidden_modules"]) ^ protocols for each in keeping] == [set(), set()]


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path, text in text_files()
        if path.suffix == ".md"
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
        if not (path.parent / target).exists()
    ]
    assert not broken


def test_texts_of_the_package_name_source_files_that_exist() -> None:
    names = {path.name for path in tracked_files()}
    unknown = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in tracked_files()
        if path.is_relative_to(PACKAGE) and path.suffix in {".py", ".pyx", ".pxd", ".pyi"}
        for name in re.findall(r"\b\w+\.(?:py|pyx|pxd|pyi)\b", path.read_text())
        if name not in names
    ]
    assert unknown == []


#: Results of the benchmarks and of other people's suites: rows of figures with remarks, written by programs.
WIDE_DOCUMENTS: Final = frozenset({"bench/results.md", "docs/conformance.md"})


def test_documents_have_lines_of_at_most_120_characters() -> None:
    """Rows of tables too: what needs more room is a list or a section."""
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path, text in text_files()
        if path.suffix == ".md" and str(path.relative_to(ROOT)) not in WIDE_DOCUMENTS
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > 120
    ]
    assert not wide


def test_no_module_is_longer_than_600_lines() -> None:
    long = [path for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > 600]
    assert [str(path.relative_to(ROOT)) for path in long] == []


def test_the_sentence_of_an_error_has_one_name() -> None:
    """``message = …`` before ``raise``, everywhere; the linter asks for a name and not for which."""
    other = re.compile(r"^\s*(msg|sentence) = f?\"[^\n]*\n\s*raise ", re.MULTILINE)
    assert [str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py") if other.search(path.read_text())] == []


def test_no_file_is_large() -> None:
    assert [str(path.relative_to(ROOT)) for path in tracked_files() if path.stat().st_size > 1 << 20] == []


@pytest.mark.parametrize("words", [MACHINE_PATHS, REGISTRY_HOSTS], ids=["paths", "hosts"])
def test_nothing_names_the_machine_it_was_written_on(words: tuple[str, ...]) -> None:
    assert [(str(path.relative_to(ROOT)), word) for path, text in text_files() for word in words if word in text] == []


def test_scripts_can_be_run() -> None:
    """A file that starts with #! is meant to be run and has the mode bit; a file with the bit says who runs it."""
    wrong = []
    for path in tracked_files():
        with path.open("rb") as file:
            is_script = file.read(2) == b"#!"
        if is_script != bool(path.stat().st_mode & 0o100):
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong


def test_every_status_is_documented() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    assert [status.name for status in Status if f"| {status.name} |" not in text] == []


def test_the_head_of_a_package_lists_its_modules() -> None:
    """Where it has a list. A row begins with the names that it is on."""
    verbs = {str(verb.name).replace("-", "_") for verb in VERBS} | {"manage"}
    for init in PACKAGE.rglob("__init__.py"):
        head = ast.get_docstring(ast.parse(init.read_text())) or ""
        listed = set(re.findall(r"\w+", " ".join(re.findall(r"^    (\w+(?:, \w+)*)(?= |$)", head, re.MULTILINE))))
        if not listed:
            continue
        below = {path.stem for path in init.parent.glob("*.py")} | {
            path.parent.name for path in init.parent.glob("*/*.py")
        }
        # The rest of a row may name modules, too: "ublk, vduse", and what "kernel_device" has of both.
        missing = {name for name in below - {"__init__", "__main__"} if not re.search(rf"\b{name}\b", head)}
        if init.parent.name == "cli":
            missing -= verbs
            listed -= {"every"}
        assert not missing, f"{init.parent.name}/__init__.py does not list {sorted(missing)}"
        assert listed <= below, f"{init.parent.name}/__init__.py lists {sorted(listed - below)}, which do not exist"


def test_every_condition_is_in_the_glossary() -> None:
    text = (ROOT / "docs/glossary.md").read_text()
    assert [cond.name for cond in Condition if f"| {cond.name} | {cond.value} |" not in text] == []


#: Words of earlier versions as regular expressions, and what is written instead. Where a word is plain English as well,
#: only names are retired.
RETIRED_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        r"witness\w*": "intent log",
        r"\bintend\(|\blanded\(|\bwithdraw\w*": "begin, commit, abort",
        r"\b_?taps?\b|_taps?(?![a-z])|\bun?tap_|\btap_": "write hook",
        r"\berased\b|\b(un)?settled?\b": "pending reset",
        r"\b_?hold_up\b|\bheld_up\b": "defer",
        r"\b_?told_\w+|\bis_told\b|\b(self|port|device|queue)\._?told\b": "notified",
        r"\b_turns?\b|\btake_turns?\b": "file lock",
        r"\bdoors?\b|Door(?!bell)|_doors?(?![a-z])": "adapter",
        r"\bfold(s|ed|ing)?\b|_fold(s|ed|ing)?(?![a-z])|\bfold_": "compact",
        r"\bmend(s|ed|ing)?\b|_mend(?![a-z])": "repair",
        r"\bHands\b|\b_hands\b|\bhands[.:=(]": "executor",
    }
)
#: Files that name the retired words.
NAMING_RETIRED_WORDS: Final = frozenset({"docs/glossary.md", "docs/mutants.md", "tests/test_tidy.py"})


def line_number(match: re.Match[str]) -> int:
    return match.string.count("\n", 0, match.start()) + 1


def test_retired_words_are_gone() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line_number(match)}: {match[0]!r}: write {instead}"
        for path, text in text_files()
        if str(path.relative_to(ROOT)) not in NAMING_RETIRED_WORDS
        for word, instead in RETIRED_WORDS.items()
        for match in re.finditer(word, text)
    ]
    assert not found


#: Pages with the words of other people's test suites, and this list.
NAMING_PERSONS: Final = WIDE_DOCUMENTS | {"tests/test_tidy.py"}


def test_sentences_speak_of_things_and_not_of_persons() -> None:
    """Each of these words hides which process, request or file acts."""
    found = [
        f"{path.relative_to(ROOT)}:{line_number(match)}: {match[0]}"
        for path, text in text_files()
        if str(path.relative_to(ROOT)) not in NAMING_PERSONS
        for match in re.finditer(r"(?i)\b(whoever|nobody|somebody)\b.*", text)
    ]
    assert not found


def test_the_glossary_names_what_replaced_a_retired_word() -> None:
    text = (ROOT / "docs/glossary.md").read_text()
    _, separator, table = text.partition("## Retired words")
    assert separator
    assert [instead for instead in RETIRED_WORDS.values() if f"| {instead} |" not in table] == []


@pytest.mark.parametrize(
    ("line", "retired"),
    [
        ("def _spread_taps(self) -> None:", True),
        ("the journal is folded", True),
        ("the twofold answer of a folder", False),
        ("class BlkDoor:", True),
        ("a boundary that hands the exception on", False),
        ("self._hands = hands", True),
        ("each in its turn", False),
        ("await self._turn.acquire()", True),
        ("the append landed at sector 8", False),
        ("log.landed()", True),
    ],
)
def test_what_counts_as_a_retired_word(line: str, retired: bool) -> None:
    assert any(re.search(word, line) for word in RETIRED_WORDS) == retired


def test_every_verb_has_help_with_an_example() -> None:
    wordless = [name for name, verb in manual.verbs(cli) if not re.search(rf"zonefs-emu {name}\b", verb.help or "")]
    assert not wordless
    unexplained = [
        f"{name} {option.opts[0]}"
        for name, verb in manual.verbs(cli)
        for option in verb.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert not unexplained


def test_the_manual_is_what_the_program_says() -> None:
    """Made by ``make docs``. Line breaks are click's and may differ between its versions; the words may not."""
    assert (ROOT / "docs/commands.md").read_text().split() == manual.manual().split()


def test_the_picture_of_the_readme_is_what_the_program_draws() -> None:
    """Made by ``make docs``."""
    assert (ROOT / "docs/zones.svg").read_text() == zones_picture.picture()


#: What a sentence of the docs says if it promises that something is there after an accident.
PROMISE: Final = re.compile(
    r"surviv|outliv|kill -9|killed at any|is killed|killing the process|power cut|power is cut"
    r"|after a (crash|restart|kill)|across restarts|before the restart|not overwritten before|is \*?lost\*?\b"
    r"|last completed flush|process of the mount dies"
)
#: A link to the test that shows a promise: the path from docs/, and the name of the test.
SHOWN: Final = re.compile(r'\]\(\.\./(tests/[a-z0-9_/]+\.py) "(test_[a-z0-9_]+)"\)')
# Blocks that have such words and promise nothing, by their beginning, and why.
NO_PROMISES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "| `persist` |": "a list of what each layer knows",
        "| `inflight/ring_record.py`, `holding_record.py` |": "a list of what each module knows",
        "| `ublk` |": "a list of what each layer knows",
        "* **`--vhost-user-blk`**": "says what does not survive",
        "Each mutant is one small change": "on tests",
        "An interrupted run continues": "on tests",
        "The environment variable `ZONEFS_EMU_INTERNAL_ERRORS`": "on tests",
        "The port from before a power cut": "says what does not survive",
        "[examples/log_store.py]": "an example and its bug",
        "| `intent_log` |": "a list of what each module does",
        "| pending reset |": "a definition",
        "| NO_SPACE |": "a definition; the section on a full host has the promise",
        "| opening after a crash": "a list of steps; below it is what they promise",
        "* **A file that is lost**": "on which thread notices",
        "* **A file whose data is lost**": "on the cache of the kernel",
        "* a fault is injected": "on which requests the compiled walker leaves to Python",
    }
)


def blocks_of_docs() -> Iterator[tuple[Path, str]]:
    """Each paragraph, list item and table row of the docs that are written by hand; no headings, no code."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        # Generated, or on tests, or shown by their own commands, which tests/test_documents.py runs.
        if path.name in {"commands.md", "state-machine.md", "test-guest.md"} or f"docs/{path.name}" in PAGES:
            continue
        text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for block in re.split(r"\n\s*\n|\n(?=\||[*-] |\d+\. )", text):
            if block.strip() and not block.startswith(("#", "    ", "\n    ")):
                yield path, block.strip()


def test_every_promise_of_the_docs_is_linked_to_the_test_that_shows_it() -> None:
    bare = [
        f"{path.name}: {block}"
        for path, block in blocks_of_docs()
        if PROMISE.search(block.lower()) and not SHOWN.search(block) and not block.startswith(tuple(NO_PROMISES))
    ]
    assert not bare, "\n\n".join(bare)


def test_links_to_tests_lead_to_tests() -> None:
    found = [link for path in (ROOT / "docs").glob("*.md") for link in SHOWN.findall(path.read_text())]
    assert len(found) > 20
    for path, name in found:
        assert re.search(rf"^\s*(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}: {name}"


def test_each_mutant_that_is_listed_as_equivalent_changes_lines_that_are_there() -> None:
    blocks = (ROOT / "tools" / "equivalent_mutants.txt").read_text().strip().split("\n\n")
    assert blocks
    for block in blocks:
        head = " ".join(line for line in block.splitlines() if line[0] not in "-+")
        module, _, why = head.partition(": ")
        assert why, head
        lines = {line.strip() for line in (PACKAGE / module).read_text().splitlines()}
        changed = [line[1:].strip() for line in block.splitlines() if line.startswith("-")]
        assert changed, head
        assert not set(changed) - lines, f"{module} has other lines by now"
