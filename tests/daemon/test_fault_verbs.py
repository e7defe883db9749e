"""Requests that come from outside; what the verbs do is tested with the commands (tests/cli)."""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from zonefs_emu.daemon.framing import Json, encode
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
        ({"verb": "crash", "directory": "cuts", "at": "now"}, "'directory' must be an absolute path, not 'cuts'"),
        ({"verb": "crash", "directory": "/\0", "at": "now"}, "must be an absolute path"),
        ({"verb": "crash-results", "after": -1}, "'after' must lie between"),
        ({"verb": "crash", "directory": "/nowhere", "at": "noon"}, "'at' must be one of now"),
        ({"verb": "crash", "directory": "/nowhere", "at": "now", "count": True}, "'count' must be a number"),
        ({"verb": "crash", "directory": "/nowhere", "at": "now", "count": 0}, "'count' must lie between"),
        ({"verb": "crash", "directory": "/nowhere", "at": "now", "torn": 1}, "'torn' must be true or false"),
        ({"verb": "crash", "directory": "/dev/null/x", "at": "now"}, "Not a directory"),
        ({"verb": "crash-results"}, "no power-cut lab"),
        ({"verb": "crash-watch", "on": 1}, "'on' must be true or false"),
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


def crash_now(verbs: Verbs, directory: Path, **more: Json) -> list[Json]:
    """Cut now, wait until it is done, and return the images."""
    reply = ask(verbs, {"verb": "crash", "directory": str(directory), "at": "now", **more})
    images: list[Json] = []
    while True:
        encode(reply)
        assert isinstance(reply["images"], list)
        images += reply["images"]
        if reply["done"]:
            return images
        reply = ask(verbs, {"verb": "crash-results", "after": len(images)})


def test_one_lab_at_a_time_until_it_is_ended(verbs: Verbs, tmp_path: Path) -> None:
    waiting: dict[str, Json] = {"verb": "crash", "directory": str(tmp_path / "a"), "at": "every-flush"}
    assert ask(verbs, waiting)["done"] is False
    assert "another 'crash' is writing images" in str(ask(verbs, waiting)["error"])
    ask(verbs, {"verb": "flush"})
    while not ask(verbs, {"verb": "crash-results"})["done"]:
        time.sleep(0.01)
    assert len(list((tmp_path / "a").iterdir())) == 1
    ask(verbs, {"verb": "crash-end"})
    assert "no power-cut lab" in str(ask(verbs, {"verb": "crash-results"})["error"])


def test_images_with_the_longest_names_come_in_several_replies(verbs: Verbs, tmp_path: Path) -> None:
    """A byte of a name that is no text takes six bytes of a reply."""
    write(verbs, 1)
    directory = tmp_path.joinpath(*["\udcff" * 250] * 14)
    seen = [image["path"] for image in crash_now(verbs, directory, count=70) if isinstance(image, dict)]
    assert seen == [str(directory / f"cut-{number:04}.img") for number in range(70)]
    ask(verbs, {"verb": "crash-end"})


def test_of_two_clients_at_once_one_has_the_lab(image: Path, tmp_path: Path) -> None:
    """A lab that the end of the other one did not end would watch on."""
    device = ZonedDevice.open(image)
    verbs = Verbs(device)
    replies: list[dict[str, Json]] = []

    def crash(name: str) -> None:
        request: dict[str, Json] = {"verb": "crash", "directory": str(tmp_path / name), "at": "every-flush"}
        replies.append(ask(verbs.for_client(), request))

    threads = [threading.Thread(target=crash, args=(name,)) for name in ("a", "b")]
    # No lab can be made meanwhile, so both clients have asked before there is one.
    with device.image.between_checkpoints():
        for thread in threads:
            thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    (refused,) = [reply for reply in replies if "error" in reply]
    assert "another 'crash' is writing images" in str(refused["error"])
    ask(verbs, {"verb": "crash-end"})
    assert not device.access.has_write_hooks
    device.close()


def test_a_lab_that_cannot_write_gives_up_and_hurts_nobody(verbs: Verbs, tmp_path: Path) -> None:
    ask(verbs, {"verb": "crash", "directory": str(tmp_path / "a"), "at": "every-flush", "count": 2})
    (tmp_path / "a" / "cut-0000.img").touch()
    assert ask(verbs, {"verb": "flush"}) == {}
    assert "File exists" in str(ask(verbs, {"verb": "crash-results"})["error"])


def write(verbs: Verbs, zone_no: int) -> None:
    ((reply, _),) = verbs.execute({"verb": "write", "zone_no": zone_no}, bytes(4096))
    assert "error" not in reply


def nr_writes(verbs: Verbs, directory: Path) -> object:
    """Cut now; return of how many writes the lab knew."""
    (image,) = crash_now(verbs, directory)
    assert isinstance(image, dict)
    return image["writes"]


def test_a_lab_that_watched_before_knows_each_write(verbs: Verbs, tmp_path: Path) -> None:
    write(verbs, 1)
    write(verbs, 1)
    assert ask(verbs, {"verb": "crash-watch", "on": True}) == {}
    write(verbs, 1)
    write(verbs, 1)
    assert nr_writes(verbs, tmp_path / "a") == 3, "two from before, which count as one, and two"
    ask(verbs, {"verb": "crash-end"})
    write(verbs, 1)
    assert ask(verbs, {"verb": "crash-watch", "on": True}) == {}, "again: what it knows is not forgotten"
    assert nr_writes(verbs, tmp_path / "b") == 4
    ask(verbs, {"verb": "flush"})
    assert nr_writes(verbs, tmp_path / "c") == 0
    write(verbs, 1)
    write(verbs, 1)
    ask(verbs, {"verb": "crash-watch", "on": False})
    assert nr_writes(verbs, tmp_path / "d") == 1


def test_a_plan_that_is_given_up_leaves_the_watch(verbs: Verbs, tmp_path: Path) -> None:
    ask(verbs, {"verb": "crash-watch", "on": True})
    waiting: dict[str, Json] = {"verb": "crash", "directory": str(tmp_path / "a"), "at": "every-flush"}
    assert ask(verbs, waiting)["done"] is False
    assert "another 'crash' is writing images" in str(ask(verbs, {"verb": "crash-watch", "on": False})["error"])
    write(verbs, 1)
    write(verbs, 1)
    ask(verbs, {"verb": "crash-end"})
    assert nr_writes(verbs, tmp_path / "b") == 2
    assert list((tmp_path / "a").iterdir()) == []


def test_directories_of_a_power_cut_have_a_mode_of_their_own(verbs: Verbs, tmp_path: Path) -> None:
    """The umask of a daemon takes nothing away."""
    directory = tmp_path / "deep" / "cuts"
    umask = os.umask(0)
    try:
        assert len(crash_now(verbs, directory)) == 1
    finally:
        os.umask(umask)
    assert [place.stat().st_mode & 0o777 for place in (directory.parent, directory)] == [0o755, 0o755]
    assert [image.stat().st_mode & 0o022 for image in directory.iterdir()] == [0]
    ask(verbs, {"verb": "crash-end"})
