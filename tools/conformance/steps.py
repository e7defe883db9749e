"""Suites whose tests are scripts of our own around other people's programs: one that ends with 0 has passed.

As for automake, 77 says that the test does not apply; the last line that the script printed says why.
"""

from typing import Final

from tools.conformance.results import Outcome
from tools.conformance.setting import Setting

_STEP_SECONDS: Final = 3600
_STEP: Final = """
cat >/run/step <<'THE_END_OF_THE_STEP'
{script}
THE_END_OF_THE_STEP
sh -e /run/step >/run/said 2>&1
case $? in
0) echo PASSED ;;
77) echo SKIPPED; tail -n 1 /run/said ;;
*) tail -n 2 /run/said ;;
esac
"""


def run_step(setting: Setting, name: str, script: str) -> Outcome:
    """Run *script* with sh -e in the guest."""
    return parse_step(name, setting.sh(_STEP.format(script=script), timeout=_STEP_SECONDS))


def parse_step(name: str, text: str) -> Outcome:
    """Return the outcome of a step that printed *text*."""
    first, _, rest = text.partition("\n")
    match first:
        case "PASSED":
            return Outcome(test=name, verdict="passed")
        case "SKIPPED":
            return Outcome(test=name, verdict="skipped", said=" ".join(rest.split()))
        case _:
            return Outcome(test=name, verdict="failed", said=" ".join(text.split()) or "nothing")
