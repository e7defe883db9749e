"""How each suite is run in the guest on a device, and what its output means.

A suite is a function that takes the guest, the node of a disk, and where the suite's files are, and returns an outcome
per test. What a suite prints is parsed by a function of its own, which tests feed with text.
"""

import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tools.conformance.results import Outcome, Verdict
from tools.guest.machine import Guest

#: A test that takes longer hangs. The slowest that does not takes half a minute on an idle machine.
TEST_SECONDS: Final = 240

_FIO: Final = """
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
#: What the common parts of QEMU's tests do is not needed: the script is run on a disk that is there.
_IOTEST: Final = """
mkdir -p {place}/run
cd {place}/run
cat >../common.rc <<'END'
sudo() {{ :; }}
_supported_fmt() {{ :; }}
_supported_proto() {{ :; }}
_supported_os() {{ :; }}
_cleanup_test_img() {{ :; }}
QEMU_IO=qemu-io
END
: >../common.filter
: >../common.qemu
sed 's|/dev/nullb0|{node}|' {tests}/zoned >zoned
blkzone reset {node} 2>&1
bash ./zoned >found 2>&1 </dev/null || true
diff {tests}/zoned.out found && echo AGREES
"""
_FIO_LINE: Final = re.compile(r"Running test (\d+) \.\.\. (PASS|FAIL|SKIP)\s*(.*)")
_FIO_VERDICTS: Final[Mapping[str, Verdict]] = MappingProxyType({"PASS": "passed", "FAIL": "failed", "SKIP": "skipped"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite of tests for zoned block devices."""

    name: str
    source: str
    """The source package that it comes from."""
    shape: str
    """The name of the shape of `tools.conformance.devices` that its disks have."""
    run: Callable[[Guest, str, Path], tuple[Outcome, ...]]
    """Called with the guest, the node of the disk, and the directory of the source."""


def run_fio(guest: Guest, node: str, source: Path) -> tuple[Outcome, ...]:
    """Run the tests of fio's zoned mode, each as a command of its own."""
    place = guest.share / "fio"
    if not place.exists():
        (place / "t").mkdir(parents=True)
        shutil.copytree(source / "t/zbd", place / "t/zbd")
        (place / "fio").symlink_to("/usr/bin/fio")
    script = _FIO.format(place=shlex.quote(str(place)), node=node, seconds=TEST_SECONDS)
    return parse_fio(guest.run(script, timeout=100 * TEST_SECONDS, check=False).stdout)


def parse_fio(text: str) -> tuple[Outcome, ...]:
    """Return the outcomes that *text* tells of; lines after a failure are what the test said last."""
    found: dict[int, Outcome] = {}
    number = 0
    for line in text.splitlines():
        match = _FIO_LINE.match(line)
        if match is not None:
            number = int(match[1])
            found[number] = Outcome(test=match[1], verdict=_FIO_VERDICTS[match[2]], said=match[3])
        elif number in found and found[number].verdict == "failed":
            said = f"{found[number].said} {line.strip()}".strip()
            found[number] = Outcome(test=found[number].test, verdict="failed", said=said)
    return tuple(found[number] for number in sorted(found))


def run_iotest(guest: Guest, node: str, source: Path) -> tuple[Outcome, ...]:
    """Run QEMU's test of zone commands, whose output is compared with what QEMU keeps, byte for byte."""
    script = _IOTEST.format(
        place=shlex.quote(str(guest.share / "iotest")), node=node, tests=source / "tests/qemu-iotests/tests"
    )
    return parse_iotest(guest.run(script, timeout=TEST_SECONDS * 2, check=False).stdout)


def parse_iotest(text: str) -> tuple[Outcome, ...]:
    """Return the outcome: a difference in a line is a failure, and that line is what it said."""
    if text == "AGREES\n":
        return (Outcome(test="zoned", verdict="passed"),)
    # Without a difference a command before the comparison has failed.
    found = [line[2:] for line in text.splitlines() if line.startswith(">")] or text.splitlines() or ["nothing"]
    return (Outcome(test="zoned", verdict="failed", said=found[0]),)


SUITES: Final[Mapping[str, Suite]] = MappingProxyType(
    {
        "fio": Suite(name="fio t/zbd/test-zbd-support", source="fio", shape="small", run=run_fio),
        "qemu": Suite(name="QEMU's iotest zoned", source="qemu", shape="large", run=run_iotest),
    }
)
