"""The zoned tests of blktests that are about a disk: zbd/001 to 006. The others bring devices of their own."""

import re
import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tools.conformance.results import Outcome, Verdict
from tools.conformance.setting import Setting

TESTS: Final = ("001", "002", "003", "004", "005", "006")
#: Two of them write for half a minute, and an emulated processor is slow.
_SECONDS: Final = 7200
_SCRIPT: Final = """
cd {place}
echo 'TEST_DEVS=({node})' >config
DEVICE_ONLY=1 bash ./check -o /run/blktests {tests} 2>&1
"""
_LINE: Final = re.compile(r"zbd/(\d+) .*\[(passed|failed|not run)\]$")
_VERDICTS: Final[Mapping[str, Verdict]] = MappingProxyType(
    {"passed": "passed", "failed": "failed", "not run": "skipped"}
)


def run_blktests(setting: Setting) -> tuple[Outcome, ...]:
    """Run the tests."""
    tests = " ".join(f"zbd/{number}" for number in TESTS)
    script = _SCRIPT.format(place=shlex.quote(str(setting.source)), node=setting.device.node, tests=tests)
    return parse_blktests(setting.sh(script, timeout=_SECONDS))


def parse_blktests(text: str) -> tuple[Outcome, ...]:
    """Return the outcomes; a test that the output does not mention has failed.

    Below a test that was not run is its reason, and below one that failed the difference to the expected output.
    """
    found = {test: Outcome(test=test, verdict="failed", said=_last(text)) for test in TESTS}
    test = ""
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is not None:
            test = match[1]
            found[test] = Outcome(test=test, verdict=_VERDICTS[match[2]])
        elif line.startswith("zbd/"):
            test = ""
        elif test in found and found[test].verdict != "passed" and not found[test].said:
            said = line.strip()
            if found[test].verdict == "skipped" or re.match(r"\+[^+]", said):
                found[test] = Outcome(test=test, verdict=found[test].verdict, said=said.removeprefix("+"))
    return tuple(found.values())


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"
