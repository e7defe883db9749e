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


def test_a_conventional_zone_that_is_read_only_is_read_in_full_and_has_no_write_pointer(image: Path) -> None:
    ok("write", image, "--zone", 0, "--offset", "64K", stdin=b"d" * 4096)
    ok("set-cond", image, "--zone", 0, "readonly")
    text = ok("read", image, "--zone", 0)
    assert (len(text), text.strip("\0")) == (1 << 20, "d" * 4096)
    assert json.loads(ok("report", image, "--json"))["zones"][0]["written"] is None
    assert ok("report", image).splitlines()[1].split()[-2:] == ["-", "-"]


def test_refused(image: Path) -> None:
    before = ok("report", image, "--json")
    assert "(CONVENTIONAL)" in fails("set-cond", image, "--zone", 0, "full")
    assert "(BAD_TRANSITION)" in fails("set-cond", image, "--zone", 3, "oe")
    assert "there is no zone 8" in fails("set-cond", image, "--zone", 8, "ro")
    assert "'broken' is not a zone condition" in fails("set-cond", image, "--zone", 3, "broken", code=2)
    assert ok("report", image, "--json") == before
