"""libzbc's compliance tests of a ZBC disk: sections 00 (commands), 01 (sense codes) and 02 (zone conditions)."""

import shlex
from typing import Final

from tools.conformance.results import Outcome
from tools.conformance.setting import Setting

_SECONDS: Final = 14400
_SCRIPT: Final = """
modprobe sg
cd {place}/test
ZBC_TEST_LOG_PATH_BASE=/run/libzbc bash ./zbc_test.sh -n {node} >/run/libzbc.said 2>&1
find /run/libzbc -path '*/[0-9][0-9]/*' -name '*.log' | sort | while read -r log
do
    section=${{log%/*}}
    test=${{log##*/}}
    echo "== ${{section##*/}}.${{test%.log}}"
    grep -e 'TESTRESULT==' -e '=> Expected' -e 'Got ' "$log"
done
[ -d /run/libzbc ] || tail -n 1 /run/libzbc.said
"""
_RESULT: Final = "TESTRESULT=="


def run_libzbc(setting: Setting) -> tuple[Outcome, ...]:
    """Run the tests."""
    script = _SCRIPT.format(place=shlex.quote(str(setting.source)), node=setting.device.node)
    return parse_libzbc(setting.sh(script, timeout=_SECONDS))


def parse_libzbc(text: str) -> tuple[Outcome, ...]:
    """Return the outcomes in the tests' logs; a test with several results fails if one of them does."""
    found: list[Outcome] = []
    for part in text.split("== ")[1:] if text.startswith("== ") else text.split("\n== ")[1:]:
        test, *lines = part.splitlines()
        results = [line.removeprefix(_RESULT) for line in lines if line.startswith(_RESULT)]
        said = " ".join(line.strip().removeprefix("=> ") for line in lines if not line.startswith(_RESULT))
        if not results or any(result.startswith("Failed") for result in results):
            why = next((result for result in results if result.startswith("Failed")), "Failed without a result")
            said = f"{why.removeprefix('Failed').strip()} {said}".strip()
            found.append(Outcome(test=test, verdict="failed", said=said))
        elif results[0].startswith("N/A"):
            found.append(Outcome(test=test, verdict="skipped", said=results[0].removeprefix("N/A").strip()))
        else:
            found.append(Outcome(test=test, verdict="passed"))
    return tuple(found)
