import json
from pathlib import Path

from tests.cli.conftest import fails, ok, run_cli


def test_nothing_refused_is_said_on_stderr(image: Path) -> None:
    result = run_cli("why", image)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "nothing was refused\n")
    assert json.loads(ok("why", image, "--json")) == {"refusals": []}


def test_the_last_refusals_oldest_first(image: Path) -> None:
    fails("open", image, "--zone", 0)
    fails("write", image, "--zone", 3, "--offset", "4K", stdin=bytes(4096))
    (line,) = ok("why", image).splitlines()
    assert "cli: write of 8 sectors at sector 6152 was refused (UNALIGNED_WP)" in line
    assert [refusal["rule"] for refusal in json.loads(ok("why", image, "-n", "9", "--json"))["refusals"]] == [
        "CONVENTIONAL",
        "UNALIGNED_WP",
    ]
    assert len(ok("why", image, "-n", 2).splitlines()) == 2


def test_how_many() -> None:
    assert "is not in the range 1<=x<=1000" in fails("why", "x", "-n", 0, code=2)
