"""Requests that come from outside; what the verbs do is tested with the commands (tests/cli)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from zonefs_emu.daemon.framing import Json
from zonefs_emu.daemon.verbs import Verbs
from zonefs_emu.device.device import ZonedDevice


@pytest.fixture
def verbs(image: Path) -> Iterator[Verbs]:
    device = ZonedDevice.open(image)
    yield Verbs(device)
    device.close()


def ask(verbs: Verbs, request: Mapping[str, Json]) -> dict[str, Json]:
    ((reply, payload),) = verbs.execute(request, b"")
    assert payload == b""
    return reply


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"verb": "inject"}, "'fault' must be an object"),
        ({"verb": "inject", "fault": []}, "'fault' must be an object"),
        ({"verb": "inject", "fault": {}}, "needs an effect"),
        ({"verb": "inject", "fault": {"effect": "fail", "operations": ["write"], "nth": "x"}}, "'nth' cannot be 'x'"),
        ({"verb": "inject", "fault": {"effect": "fail", "operations": ["write"], "nr_zones": 9}}, "there are no zones"),
        ({"verb": "remove-fault", "id": "1"}, "'id' must be a number"),
        ({"verb": "remove-fault", "id": 1}, "there is no fault 1"),
        ({"verb": "crash", "directory": "cuts", "at": "now"}, "absolute path"),
        ({"verb": "crash", "directory": "/nowhere", "at": "noon"}, "'at' must be one of now"),
        ({"verb": "crash", "directory": "/nowhere", "at": "now", "count": True}, "'count' must be a number"),
        ({"verb": "crash", "directory": "/nowhere", "at": "now", "count": 0}, "'count' must lie between"),
        ({"verb": "crash", "directory": "/nowhere", "at": "now", "torn": 1}, "'torn' must be true or false"),
        ({"verb": "crash", "directory": "/dev/null/x", "at": "now"}, "Not a directory"),
        ({"verb": "crash-results"}, "no power-cut lab"),
    ],
)
def test_every_wrong_field_becomes_a_sentence(verbs: Verbs, request_: dict[str, Json], sentence: str) -> None:
    reply = ask(verbs, request_)
    assert sentence in str(reply["error"])
    assert ask(verbs, {"verb": "faults"}) == {"faults": []}


def test_the_id_and_the_count_are_the_devices_to_give(verbs: Verbs) -> None:
    fault: dict[str, Json] = {"effect": "fail", "operations": ["write"], "id": 7, "seen": 3}
    made = ask(verbs, {"verb": "inject", "fault": fault})["fault"]
    assert isinstance(made, dict)
    assert (made["id"], made["seen"]) == (1, 0)


def test_one_lab_at_a_time_until_it_is_ended(verbs: Verbs, tmp_path: Path) -> None:
    waiting: dict[str, Json] = {"verb": "crash", "directory": str(tmp_path / "a"), "at": "every-flush"}
    assert ask(verbs, waiting)["done"] is False
    assert "end it first" in str(ask(verbs, waiting)["error"])
    ask(verbs, {"verb": "flush"})
    results = ask(verbs, {"verb": "crash-results"})
    assert results["done"] is True
    assert len(list((tmp_path / "a").iterdir())) == 1
    ask(verbs, {"verb": "crash-end"})
    assert "no power-cut lab" in str(ask(verbs, {"verb": "crash-results"})["error"])


def test_a_lab_that_cannot_write_gives_up_and_hurts_nobody(verbs: Verbs, tmp_path: Path) -> None:
    ask(verbs, {"verb": "crash", "directory": str(tmp_path / "a"), "at": "every-flush", "count": 2})
    (tmp_path / "a" / "cut-0000.img").touch()
    assert ask(verbs, {"verb": "flush"}) == {}
    assert "File exists" in str(ask(verbs, {"verb": "crash-results"})["error"])
