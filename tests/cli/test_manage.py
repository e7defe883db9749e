import json
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok


def conds(image: Path) -> str:
    return " ".join(zone["cond"] for zone in json.loads(ok("report", image, "--json"))["zones"])


def test_open_close_finish_reset(image: Path) -> None:
    assert conds(image) == "nw nw em em em em em em"
    assert ok("open", image, "--zone", 2, "--count", 2) == ""
    assert conds(image) == "nw nw oe oe em em em em"
    ok("write", image, "--zone", 2, stdin=bytes(4096))
    ok("close", image, "--zone", 2, "--count", 2)
    assert conds(image) == "nw nw cl em em em em em"
    ok("finish", image, "--zone", 2, "--count", 2)
    assert conds(image) == "nw nw fu fu em em em em"
    ok("reset", image, "--zone", 3)
    assert conds(image) == "nw nw fu em em em em em"


def test_all_zones(image: Path) -> None:
    for zone_no in (2, 3):
        ok("write", image, "--zone", zone_no, stdin=bytes(4096))
    ok("close", image, "--all")
    assert conds(image) == "nw nw cl cl em em em em"
    ok("open", image, "--all")
    assert conds(image) == "nw nw oe oe em em em em"
    ok("finish", image, "--all")
    assert conds(image) == "nw nw fu fu em em em em"
    ok("reset", image, "--all")
    assert conds(image) == "nw nw em em em em em em"


def test_a_drive_stays_powered_between_commands(fresh: Path) -> None:
    ok("open", fresh, "--zone", 4)
    assert conds(fresh) == "nw nw em em oe em em em"


@pytest.mark.parametrize("verb", ["open", "close", "finish", "reset"])
def test_refused_is_one_sentence_and_changes_nothing(verb: str, image: Path) -> None:
    assert "(CONVENTIONAL)" in fails(verb, image, "--zone", 1)
    assert "(CONVENTIONAL)" in fails(verb, image, "--zone", 1, "--count", 3)
    assert "there is no zone 8: the device has zones 0 to 7" in fails(verb, image, "--zone", 8)
    assert "no zones 6 to 8: the device has zones 0 to 7" in fails(verb, image, "--zone", 6, "--count", 3)
    assert conds(image) == "nw nw em em em em em em"


def test_limits(image: Path) -> None:
    ok("open", image, "--zone", 2, "--count", 3)
    sentence = fails("open", image, "--zone", 5)
    assert "(OPEN_RESOURCE): max_open_zones zones are open" in sentence
    assert "are open: 2, 3, 4" in sentence
    assert "(ACTIVE_RESOURCE)" in fails("open", image, "--zone", 5, "--count", 2)
    assert conds(image) == "nw nw oe oe oe em em em"


@pytest.mark.parametrize("options", [[], ["--zone", "2", "--all"], ["--all", "--count", "2"], ["--zone", "-1"]])
@pytest.mark.parametrize("verb", ["open", "close", "finish", "reset"])
def test_wrong_usage(verb: str, options: list[str], fresh: Path) -> None:
    before = fresh.read_bytes()
    assert fails(verb, fresh, *options, code=2)
    assert fresh.read_bytes() == before
