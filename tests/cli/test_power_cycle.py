import json
from pathlib import Path

from tests.cli.conftest import ok, run_cli


def test_open_zones_come_back_closed_or_empty(image: Path) -> None:
    ok("write", image, "--zone", 2, stdin=b"x" * 4096)
    ok("open", image, "--zone", 3)
    ok("finish", image, "--zone", 4)
    ok("power-cycle", image)
    conds = [zone["cond"] for zone in json.loads(ok("report", image, "--json"))["zones"]]
    assert conds == ["nw", "nw", "cl", "em", "fu", "em", "em", "em"]
    assert run_cli("read", image, "--zone", 2).stdout_bytes == b"x" * 4096
