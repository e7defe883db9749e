"""What holds for every test.

Hypothesis profiles, the needs of the marks, which test file covered a line, and that logged warnings are announced.
"""

import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import coverage
import hypothesis
import pytest

from tests.attaching import Place, attaching
from tests.guests import GuestKeeper
from tests.requires import requires
from tools.guest.machine import Guest

if TYPE_CHECKING:
    from zonefs_emu.device.device import ZonedDevice

# A guest shares two slow processors with everything else; pytest's own timeout is for tests that take seconds.
QEMU_TIMEOUT_SECONDS: Final = 1200

# The number of examples is for one property; a stateful test takes stateful_step_count commands in each.
hypothesis.settings.register_profile("dev", max_examples=50, stateful_step_count=30, deadline=None)
# The same examples on each run: a change does not fail for what another one broke. So more of them find something once,
# and cost time always; tools/soak draws new ones for as long as one likes.
hypothesis.settings.register_profile(
    "ci", max_examples=150, stateful_step_count=50, deadline=None, derandomize=True, print_blob=True
)
# For tools/mutants.py: the same examples for every mutant, and few, as thousands of mutants are tried.
hypothesis.settings.register_profile(
    "mutants", max_examples=30, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
# tools/soak runs this one in rounds, of so many examples that each ends in its time.
hypothesis.settings.register_profile(
    "soak",
    max_examples=int(os.environ.get("ZONEFS_EMU_SOAK_EXAMPLES") or 10_000),
    stateful_step_count=200,
    deadline=None,
    print_blob=True,
)
hypothesis.settings.load_profile(os.environ.get("ZONEFS_EMU_HYPOTHESIS") or ("ci" if os.environ.get("CI") else "dev"))


def _cover_for(context: str) -> None:
    """Tell coverage, if it measures, for whom lines are run from now on.

    tools/check asks that the model and the codec are covered by their own tests. Coverage's own way to tell tests apart
    goes by function names and takes hypothesis' engine for a test.
    """
    measurement = coverage.Coverage.current()
    if measurement is not None:
        measurement.switch_context(context)


#: By which coverage tells the processes that a test starts to measure themselves.
COVERAGE_VARIABLE: Final = "COVERAGE_PROCESS_CONFIG"

# As zonefs_emu/device/unforeseen.py has it, which is not imported here: coverage is not told of the collection yet.
INTERNAL_ERRORS_VARIABLE: Final = "ZONEFS_EMU_INTERNAL_ERRORS"


def pytest_sessionstart() -> None:
    """What is run while tests are collected is run by imports. Exceptions that a daemon contains go to one file."""
    _cover_for("collection")
    handle, path = tempfile.mkstemp(prefix="zonefs-emu-internal-errors-")
    os.close(handle)
    os.environ[INTERNAL_ERRORS_VARIABLE] = path


def pytest_sessionfinish() -> None:
    """Remove the file again."""
    Path(os.environ.pop(INTERNAL_ERRORS_VARIABLE)).unlink(missing_ok=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test with the mark qemu has more time than others, unless it says how much.

    Files of such tests come first, and then those with slow tests. Two processes share out the files in this order, and
    one of them would be idle at the end if the last files were long.
    """
    for item in items:
        if item.get_closest_marker("qemu") is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(QEMU_TIMEOUT_SECONDS))
    with_guest, with_slow = (
        {item.path for item in items if item.get_closest_marker(mark) is not None} for mark in ("qemu", "slow")
    )
    items.sort(key=lambda item: (item.path not in with_guest, item.path not in with_slow))


def _is_long(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(mark) is not None for mark in ("slow", "qemu"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Have coverage measure no test of minutes or of guests, and no process that it starts.

    Measured, such a test takes twice as long, and the others reach the same lines.
    """
    measurement = coverage.Coverage.current()
    if measurement is None or not _is_long(item):
        return (yield)
    measurement.stop()
    of_processes = os.environ.pop(COVERAGE_VARIABLE, None)
    try:
        return (yield)
    finally:
        if of_processes is not None:
            os.environ[COVERAGE_VARIABLE] = of_processes
        measurement.start()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note whose turn it is; a test with the mark fuse or qemu needs what the mark says, without a call of its own."""
    if not _is_long(item):
        _cover_for(item.path.relative_to(item.config.rootpath).as_posix())
    for mark in ("fuse", "qemu"):
        if item.get_closest_marker(mark) is not None:
            requires(mark)


class _Collector(logging.Handler):
    """Keeps what was logged at WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.levelname} {record.name}: {record.getMessage()}")


def _internal_errors_of_daemons() -> list[str]:
    """Return what processes of the package have contained since the last call, with tracebacks."""
    path = os.environ.get(INTERNAL_ERRORS_VARIABLE)
    if not path or not os.path.getsize(path):  # noqa: PTH202  (after every test: a Path costs more than the call)
        return []
    with Path(path).open("r+", encoding="utf-8") as file:
        entries = file.read().split("\0")[:-1]
        file.truncate(0)
    return entries


@pytest.fixture(autouse=True)
def expect_warning() -> Iterator[Callable[[str], None]]:
    """A WARNING says that a person must act, so a test that causes one announces it: ``expect_warning("disk full")``.

    The argument is a regular expression, searched in ``LEVEL logger: message``. A warning that no test announced fails
    the test, and so does an announced one that never came. An internal error that a daemon contained counts as one.
    """
    patterns: list[str] = []
    collector = _Collector()
    logger = logging.getLogger("zonefs_emu")
    logger.addHandler(collector)
    try:
        yield patterns.append
    finally:
        logger.removeHandler(collector)
    collector.messages += _internal_errors_of_daemons()
    unexpected = [text for text in collector.messages if not any(re.search(p, text) for p in patterns)]
    if unexpected:
        pytest.fail(f"logged without being announced: {unexpected}", pytrace=False)
    absent = [p for p in patterns if not any(re.search(p, text) for text in collector.messages)]
    if absent:
        pytest.fail(f"announced, but not logged: {absent}", pytrace=False)


@pytest.fixture
def device(tmp_path: Path) -> Iterator["ZonedDevice"]:
    """32 zones, the first two conventional; 6 may be open and 8 active."""
    # Not at the head: that is run before coverage is told of the collection, and the package's own lines with it.
    from tests.vhost_user.serving import create
    from zonefs_emu.device.device import ZonedDevice

    device = ZonedDevice.open(create(tmp_path / "image"))
    yield device
    device.close()


@pytest.fixture(scope="session")
def guest_keeper() -> Iterator[GuestKeeper]:
    """Keeps the shared guest until the last test has run."""
    keeper = GuestKeeper()
    try:
        yield keeper
    finally:
        keeper.close()


@pytest.fixture
def guest(guest_keeper: GuestKeeper) -> Iterator[Guest]:
    """A running Linux guest, shared by all tests that leave nothing behind in it; for tests with the mark qemu."""
    requires("qemu")
    try:
        yield guest_keeper.get()
    finally:
        guest_keeper.give_back()


@pytest.fixture
def place(guest: Guest) -> Iterator[Place]:
    """A directory in the guest, for images that are attached there."""
    with attaching(guest) as place:
        yield place
