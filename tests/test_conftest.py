"""The rules of conftest.py and requires.py, each seen to fail when broken."""

from pathlib import Path
from typing import Final

import pytest

from tests import requires as needs

pytest_plugins = ["pytester"]

ROOT: Final = Path(__file__).resolve().parent.parent
WARNING_TESTS: Final = """
import logging

log = logging.getLogger("zonefs_emu.x")


def test_not_announced():
    log.warning("disk %s", "full")


def test_announced(expect_warning):
    expect_warning("disk full")
    log.warning("disk %s", "full")


def test_announced_but_absent(expect_warning):
    expect_warning("disk full")


def test_information_needs_no_announcement():
    log.info("disk %s", "half full")
"""


def test_warnings_must_be_announced(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest("from tests.conftest import expect_warning\n")
    pytester.makepyfile(WARNING_TESTS)
    result = pytester.runpytest_subprocess()
    # The fixture complains when it is torn down: the test has passed by then, and gets an error beside it.
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines_random(
        [
            "*ERROR at teardown of test_not_announced*",
            "logged without being announced: ['WARNING zonefs_emu.x: disk full']",
            "*ERROR at teardown of test_announced_but_absent*",
            "announced, but not logged: ['disk full']",
        ]
    )


INTERNAL_ERROR_TESTS: Final = """
import os


def contain():
    with open(os.environ["ZONEFS_EMU_INTERNAL_ERRORS"], "a") as file:
        file.write("ERROR zonefs_emu.internal: planted in a daemon\\0")


def test_not_announced():
    contain()


def test_announced(expect_warning):
    expect_warning("planted in a daemon")
    contain()


def test_nothing_is_left_of_it():
    pass
"""


def test_internal_errors_of_daemons_must_be_announced(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest("from tests.conftest import expect_warning, pytest_sessionfinish, pytest_sessionstart\n")
    pytester.makepyfile(INTERNAL_ERROR_TESTS)
    result = pytester.runpytest_subprocess("-p", "no:randomly")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["logged without being announced: ['ERROR zonefs_emu.internal: planted in a daemon']"])


def test_requires_skips_and_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZONEFS_EMU_REQUIRE", "fuse,qemu")
    with pytest.raises(pytest.skip.Exception, match="no-such-command is not installed"):
        needs.requires("sh", "no-such-command")
    with pytest.raises(pytest.skip.Exception, match="/dev/no-such-node does not exist"):
        needs.requires("/dev/no-such-node")


def test_requires_fails_where_the_machine_ought_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZONEFS_EMU_REQUIRE", "fuse, no-such-command")
    with pytest.raises(pytest.fail.Exception, match="no-such-command is not installed"):
        needs.requires("no-such-command")


def test_requires_lets_pass_what_is_there() -> None:
    needs.requires("sh", "/dev/null")
