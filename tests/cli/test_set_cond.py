import json
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok


def cond(image: Path, zone_no: int) -> str:
    return str(json.loads(ok("report", image, "--json"))["zones"][zone_no]["cond"])


@pytest.mark.parametrize("name", ["readonly", "ro", "ZND_STATE_RONLY"])
def test_readonly(name: str, image: Path) -> None:
    ok("set-cond", image, "--zone", 3, name)
    assert cond(image, 3) == "ro"
    assert "(ZONE_READONLY)" in fails("write", image, "--zone", 3, stdin=bytes(4096))
    ok("set-cond", image, "--zone", 3, "empty")
    ok("write", image, "--zone", 3, stdin=bytes(4096))


def test_a_conventional_zone_can_fail_and_come_back(image: Path) -> None:
    ok("set-cond", image, "--zone", 0, "offline")
    assert cond(image, 0) == "ol"
    ok("set-cond", image, "--zone", 0, "nw")
    assert cond(image, 0) == "nw"


def test_refused(image: Path) -> None:
    before = ok("report", image, "--json")
    assert "(CONVENTIONAL)" in fails("set-cond", image, "--zone", 0, "full")
    assert "(BAD_TRANSITION)" in fails("set-cond", image, "--zone", 3, "oe")
    assert "there is no zone 8" in fails("set-cond", image, "--zone", 8, "ro")
    assert "'broken' is not a zone condition" in fails("set-cond", image, "--zone", 3, "broken", code=2)
    assert ok("report", image, "--json") == before
