"""The tests of zonefs-tools: the kernel's zonefs on a disk."""

import re
import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tools.conformance.results import Outcome, Verdict
from tools.conformance.setting import Setting

_SECONDS: Final = 14400
_SCRIPT: Final = """
# One test calls sudo, and some look for what null_blk can do without mounting configfs first.
mkdir /run/sudo
printf '#!/bin/sh\\nexec "$@"\\n' >/run/sudo/sudo
chmod +x /run/sudo/sudo
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
export PATH=/run/sudo:{place}/src:$PATH
cd {place}/tests
bash ./zonefs-tests.sh -g /run/zonefs {node} >/run/zonefs.said 2>&1
for log in /run/zonefs/[0-9]*.log
do
    echo "== $(basename "$log" .log)"
    grep -e '^PASS$' -e '^skip$' -e '^FAILED' -e '-->' "$log"
done
ls /run/zonefs/[0-9]*.log >/dev/null || tail -n 1 /run/zonefs.said
"""
_VERDICTS: Final[Mapping[str, Verdict]] = MappingProxyType({"PASS": "passed", "skip": "skipped"})


def run_zonefs_tools(setting: Setting) -> tuple[Outcome, ...]:
    """Run the tests, in their long form: the short one's writes are shorter than a block of fio in zones this small."""
    script = _SCRIPT.format(place=shlex.quote(str(setting.source)), node=setting.device.node)
    return parse_zonefs_tools(setting.sh(script, timeout=_SECONDS))


def parse_zonefs_tools(text: str) -> tuple[Outcome, ...]:
    """Return the outcomes in *text*, which has the end of each test's log; a log without a verdict is a failure."""
    found = []
    for test, log in re.findall(r"^== (\d+)\n((?:(?!== ).*\n?)*)", text, re.MULTILINE):
        lines = log.splitlines()
        verdicts = [_VERDICTS.get(line, "failed") for line in lines if re.match(r"PASS$|skip$|FAILED", line)]
        said = next((line.partition("-->")[2].strip() for line in reversed(lines) if "-->" in line), "")
        verdict: Verdict = "failed" if not verdicts or "failed" in verdicts else verdicts[0]
        said = "" if verdict == "passed" else said.removeprefix("skipped:").strip()
        found.append(Outcome(test=test, verdict=verdict, said=said))
    return tuple(found)
