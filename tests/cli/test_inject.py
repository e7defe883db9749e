import json
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import FaultTable


def test_a_write_fails_once_without_advance(image: Path) -> None:
    assert ok("inject", image, "fail", "--on", "write", "--zone", 3, "--nth", 2) == (
        "1: write number 2 in zone 3 answers IO_ERROR (0 seen)\n"
    )
    ok("write", image, "--zone", 3, stdin=bytes(4096))
    sentence = fails("write", image, "--zone", 3, stdin=bytes(4096))
    assert "(IO_ERROR)" in sentence
    assert "a fault was injected" in sentence
    ok("write", image, "--zone", 3, stdin=bytes(4096))
    assert json.loads(ok("report", image, "--json"))["zones"][3]["written"] == 16
    assert "a fault was injected" in ok("why", image)


def test_a_partial_write_advances_and_fails(image: Path) -> None:
    ok("inject", image, "partial", "--on", "append", "--size", "4K", "--status", "no-space")
    assert "(NO_SPACE)" in fails("append", image, "--zone", 4, stdin=bytes(8192))
    assert json.loads(ok("report", image, "--json"))["zones"][4]["written"] == 8


def test_zones_fail_now_and_later(image: Path) -> None:
    ok("inject", image, "offline", "--zone", 6, "--count", 2)
    ok("inject", image, "readonly", "--on", "write", "--zone", 5)
    assert "(ZONE_READONLY)" in fails("write", image, "--zone", 5, stdin=bytes(4096))
    conds = [zone["cond"] for zone in json.loads(ok("report", image, "--json"))["zones"]]
    assert conds[5:] == ["ro", "ol", "ol"]


def test_reports_lie_and_recommend(image: Path) -> None:
    ok("inject", image, "lie", "--zone", 3, "--size", "8K")
    ok("inject", image, "recommend-reset", "--zone", 4)
    zones = json.loads(ok("report", image, "--json"))["zones"]
    assert zones[3]["written"] == 16
    assert [zone["reset_recommended"] for zone in zones] == [False] * 4 + [True] + [False] * 3


def test_listing_and_removing(image: Path) -> None:
    ok("inject", image, "delay", "--on", "read", "--on", "write", "--every", "--delay", "1ms-2ms", "--json")
    ok("inject", image, "fail", "--on", "flush", "--every", "--zone", 2, "--count", 3)
    ok("inject", image, "lie", "--size", "4K", "--back")
    assert ok("inject", image).splitlines() == [
        "1: each read or write from number 1 on in all zones takes 1 to 2 ms longer (0 seen)",
        "2: each flush from number 1 on in zones 2 to 4 answers IO_ERROR (0 seen)",
        "3: lie by -8 sectors in all zones",
    ]
    ok("inject", image, "--remove", 2)
    assert [fault["id"] for fault in json.loads(ok("inject", image, "--json"))["faults"]] == [1, 3]
    ok("inject", image, "--clear")
    assert json.loads(ok("inject", image, "--json")) == {"faults": []}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("fail",), 2, "needs the operations"),
        (("fail", "--on", "write", "--zone", 7, "--count", 2), 1, "there are no zones up to 8"),
        (("partial", "--on", "write"), 2, "number of sectors"),
        (("partial", "--on", "write", "--size", "100"), 2, "whole sectors"),
        (("partial", "--on", "write", "--size", "2K"), 1, "not a multiple of the write granularity"),
        (("offline",), 2, "the zone of"),
        (("offline", "--zone", 7, "--count", 2), 1, "there are no zones up to 8: the device has 0 to 7"),
        (("lie",), 2, "the size of the lie is missing"),
        (("delay", "--on", "write"), 2, "a time is needed"),
        (("explode",), 2, "'explode' is not one of"),
        (("--remove", 9), 2, "no fault 9"),
    ],
)
def test_what_does_not_fit_is_refused(image: Path, arguments: tuple[object, ...], code: int, sentence: str) -> None:
    before = ok("report", image)
    assert sentence in fails("inject", image, *arguments, code=code)
    assert json.loads(ok("inject", image, "--json")) == {"faults": []}
    assert ok("report", image) == before


def test_faults_last_from_daemon_to_command(fresh: Path) -> None:
    ok("inject", fresh, "fail", "--on", "reset", "--every")
    assert "(IO_ERROR)" in fails("reset", fresh, "--zone", 3)
    assert "(IO_ERROR)" in fails("reset", fresh, "--all")
    assert json.loads(ok("inject", fresh, "--json"))["faults"][0]["seen"] == 2


def test_entries_of_a_later_version_are_listed_and_removed(fresh: Path) -> None:
    device = ZonedDevice.open(fresh)
    later = b'{"effect":"explode","how":"' + b"x" * 300 + b'"}'
    device.faults = FaultTable.decode(b'[[0,4],{"effect":"recommend-reset","id":1},' + later + b"]")
    device.save_faults()
    device.close()
    listed = ok("inject", fresh, "--list")
    assert listed == ok("inject", fresh)
    first, second = listed.splitlines()
    assert first == "1: recommend-reset in all zones"
    assert second.startswith('2: not known to this version, does nothing: {"effect":"explode","')
    assert second.endswith("...")
    faults = json.loads(ok("inject", fresh, "--json"))["faults"]
    assert faults[1]["unknown"].startswith('{"effect":"explode"')
    ok("inject", fresh, "fail", "--on", "flush")
    assert json.loads(ok("inject", fresh, "--json"))["faults"][1] == faults[1]
    ok("inject", fresh, "--clear")
    assert json.loads(ok("inject", fresh, "--list", "--json")) == {"faults": []}


@pytest.fixture
def excursions(tmp_path: Path) -> Path:
    path = tmp_path / "zns.img"
    made = ok("create", path, "--size", "1M", "--zone-size", "256K", "--zone-active-excursions")
    assert made
    assert "active excursions:  the drive may finish zones by itself" in ok("info", path)
    return path


def test_the_drive_finishes_zones_now_and_later(excursions: Path) -> None:
    assert "(BAD_TRANSITION)" in fails("inject", excursions, "excursion", "--zone", 1)
    ok("write", excursions, "--zone", 1, stdin=bytes(4096))
    ok("inject", excursions, "excursion", "--zone", 1)
    assert "(ZONE_FULL)" in fails("write", excursions, "--zone", 1, stdin=bytes(4096))
    assert "the drive has finished that zone by itself" in ok("why", excursions)
    assert ok("inject", excursions, "excursion", "--on", "write", "--zone", 2, "--nth", 2) == (
        "1: write number 2 in zone 2 finds its zone finished by the drive, if it was active (0 seen)\n"
    )
    ok("write", excursions, "--zone", 2, stdin=bytes(4096))
    assert "(ZONE_FULL)" in fails("write", excursions, "--zone", 2, stdin=bytes(4096))
    rows = ok("report", excursions).splitlines()[1:]
    assert [row.endswith("  finished by the drive") for row in rows] == [False, True, True, False]
    attributes = [zone["attrs"] for zone in json.loads(ok("report", excursions, "--format", "nvme-json"))["zone_list"]]
    assert attributes == [0, 1, 1, 0]
    ok("reset", excursions, "--zone", 1)
    assert "finished by the drive" not in ok("report", excursions).splitlines()[2]
    assert ok("check", excursions)


def test_excursions_need_an_image_that_has_them(image: Path) -> None:
    assert "--zone-active-excursions" in fails("inject", image, "excursion", "--on", "write", code=2)
    assert "(UNSUPPORTED)" in fails("inject", image, "excursion", "--zone", 3)
    assert "the zone of 'excursion' is missing: give --zone" in fails("inject", image, "excursion", code=2)


def test_finishing_is_recommended(image: Path) -> None:
    ok("write", image, "--zone", 3, stdin=bytes(4096))
    assert ok("inject", image, "recommend-finish", "--zone", 3, "--count", 2) == "1: recommend-finish in zones 3 to 4\n"
    zones = json.loads(ok("report", image, "--format", "nvme-json"))["zone_list"]
    assert [zone["attrs"] for zone in zones] == [0, 0, 0, 2, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--on", "write"), "--on has no effect without an EFFECT, which lists the faults"),
        (("fail", "--on", "write", "--list"), "--list has no effect for 'fail'"),
        (("fail", "--on", "write", "--count", 3), "--count has no effect for 'fail' without --zone"),
        (("fail", "--on", "write", "--size", "4K"), "--size has no effect for 'fail'"),
        (("fail", "--clear"), "--remove and --clear remove faults, and 'fail' would make one"),
        (("--remove", 1, "--clear"), "--clear has no effect beside --remove"),
        (("--clear", "--list"), "--list has no effect beside --clear"),
        (("readonly", "--zone", 3, "--nth", 2), "--nth has no effect for 'readonly'"),
        (("readonly", "--zone", 3, "--status", "no-space"), "--status has no effect for 'readonly'"),
        (("delay", "--on", "write", "--delay", "5ms", "--back"), "--back has no effect for 'delay'"),
        (("lie", "--size", "4K", "--delay", "5ms"), "--delay has no effect for 'lie'"),
    ],
)
def test_no_option_is_ignored(image: Path, arguments: tuple[object, ...], sentence: str) -> None:
    assert sentence in fails("inject", image, *arguments, code=2)
    assert "no faults" in run_cli("inject", image).stderr
