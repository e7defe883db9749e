"""QEMU's own test of zone commands."""

import shlex
from typing import Final

from tools.conformance.results import Outcome
from tools.conformance.setting import Setting

_SECONDS: Final = 3600
#: What the common parts of QEMU's tests do is not needed: the script is run on a disk that is there.
_SCRIPT: Final = """
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


def run_iotest(setting: Setting) -> tuple[Outcome, ...]:
    """Run the test, whose output is compared with what QEMU keeps, byte for byte."""
    place = shlex.quote(str(setting.guest.share / "iotest"))
    tests = setting.source / "tests/qemu-iotests/tests"
    script = _SCRIPT.format(place=place, node=setting.device.node, tests=tests)
    return parse_iotest(setting.sh(script, timeout=_SECONDS))


def parse_iotest(text: str) -> tuple[Outcome, ...]:
    """Return the outcome: a difference in a line is a failure, and that line is what it said."""
    if text == "AGREES\n":
        return (Outcome(test="zoned", verdict="passed"),)
    # Without a difference a command before the comparison has failed.
    found = [line[2:] for line in text.splitlines() if line.startswith(">")] or text.splitlines() or ["nothing"]
    return (Outcome(test="zoned", verdict="failed", said=found[0]),)
