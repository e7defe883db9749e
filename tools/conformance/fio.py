"""fio's own tests of its zoned mode, t/zbd."""

import re
import shlex
import shutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tools.conformance.results import Outcome, Verdict
from tools.conformance.setting import Setting

#: A test that takes longer hangs. The slowest that does not takes half a minute on an idle machine, and a machine with
#: other work is many times slower: a test that was only slow must not be reported as one that failed.
TEST_SECONDS: Final = 1800

_SCRIPT: Final = """
ln -s "$(command -v fio)" {place}/fio
cd {place}/t/zbd
for number in $(grep -o '^test[0-9]*()' test-zbd-support | tr -cd '0-9\\n' | sort -n)
do
    timeout -k 5 {seconds} ./test-zbd-support -r -t $number {node} >said 2>&1 </dev/null || status=$?
    [ "${{status:-0}}" != 124 ] || echo "Running test $number ... FAIL"
    unset status
    grep '^Running test' said || {{ echo "Running test $number ... FAIL"; tail -n 1 said; }}
    ! grep -q 'FAIL' said || grep -v '^ *$' test-zbd-support.log.$number | tail -n 3 | head -n 2
done
"""
_LINE: Final = re.compile(r"Running test (\d+) \.\.\. (PASS|FAIL|SKIP)\s*(.*)")
_VERDICTS: Final[Mapping[str, Verdict]] = MappingProxyType({"PASS": "passed", "FAIL": "failed", "SKIP": "skipped"})


def run_fio(setting: Setting) -> tuple[Outcome, ...]:
    """Run each test as a command of its own, with the fio that comes with the tests."""
    place = setting.guest.share / "fio"
    (place / "t").mkdir(parents=True)
    shutil.copytree(setting.source / "t/zbd", place / "t/zbd")
    script = _SCRIPT.format(place=shlex.quote(str(place)), node=setting.device.node, seconds=TEST_SECONDS)
    return parse_fio(setting.sh(script, timeout=100 * TEST_SECONDS))


def parse_fio(text: str) -> tuple[Outcome, ...]:
    """Return the outcomes in *text*; the lines after a failure are the last output of the test."""
    found: dict[int, Outcome] = {}
    number = 0
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is not None:
            number = int(match[1])
            found[number] = Outcome(test=match[1], verdict=_VERDICTS[match[2]], said=match[3])
        elif number in found and found[number].verdict == "failed":
            said = f"{found[number].said} {line.strip()}".strip()
            found[number] = Outcome(test=found[number].test, verdict="failed", said=said)
    return tuple(found[number] for number in sorted(found))
