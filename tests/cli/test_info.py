import json
from pathlib import Path

from tests.cli.conftest import ok
from zonefs_emu.cli.info import _lines


def test_for_people(image: Path) -> None:
    ok("open", image, "--zone", 3)
    rows = dict(line.split(":", 1) for line in ok("info", image).splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["zones"] == "8, 2 of them conventional"
    assert rows["open zones"] == "1 of at most 3"
    assert rows["size"] == "8 MiB"


def test_json_says_who_holds_it(fresh: Path) -> None:
    info = json.loads(ok("info", fresh, "--json"))
    assert info["poison"] is None, "that info reads it only is no trouble of the image"
    assert (info["pid"], info["front_ends"], info["max_open_zones"]) == (None, [], 3)
    assert "held by:            no process" in ok("info", fresh)


def test_live_it_names_the_process(fresh: Path, daemon: "object") -> None:
    pid = getattr(daemon, "pid", None)
    assert json.loads(ok("info", fresh, "--json"))["pid"] == pid
    assert f"held by:            process {pid}" in ok("info", fresh)


def test_without_limits_it_says_so(tmp_path: Path) -> None:
    image = tmp_path / "b.img"
    ok("create", image, "--size", "8M")
    assert "open zones:         0, no limit" in ok("info", image)


def test_a_daemon_that_takes_no_more_changes_says_why(image: Path) -> None:
    record = json.loads(ok("info", image, "--json"))
    assert not any("refuses changes" in line for line in _lines(image, record))
    record |= {"pid": 17, "poison": "the image could not be written (No space left on device)"}
    assert "refuses changes:    the image could not be written (No space left on device)\n" in _lines(image, record)


def test_front_ends_that_have_ended_are_shown(image: Path) -> None:
    record = json.loads(ok("info", image, "--json"))
    record["ended_front_ends"] = [
        {"name": "zonefs", "where": "/mnt", "reason": None},
        {"name": "ublk", "where": "/dev/ublkb0", "reason": "the kernel refuses"},
    ]
    lines = list(_lines(image, record))
    assert lines[-2:] == ["zonefs at /mnt has ended\n", "ublk at /dev/ublkb0 has ended: the kernel refuses\n"]


def test_a_daemon_of_an_earlier_version_says_less(image: Path) -> None:
    record = json.loads(ok("info", image, "--json"))
    lines = list(_lines(image, record))
    for added in (
        "extension_bytes",
        "zrwa_size",
        "zrwa_granularity",
        "max_zrwa",
        "recovery",
        "active_excursions",
        "observers_off",
    ):
        del record[added]
    assert list(_lines(image, record)) == lines
