import json
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from zonefs_emu.front_ends import ways_in
from zonefs_emu.front_ends.ways_in import Finding


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where a mount works and ublk does not."""
    ways = {
        "images": ways_in.WAYS["images"],
        "mount": lambda: Finding(name="mount", works=True, reason="all is there"),
        "ublk": lambda: Finding(name="ublk", works=False, reason="no module", remedy="modprobe ublk_drv"),
        "vduse": lambda: Finding(name="vduse", works=False, reason="no kernel"),
    }
    monkeypatch.setattr(ways_in, "WAYS", ways)
    monkeypatch.setattr("zonefs_emu.cli.doctor.WAYS", ways)


def test_a_line_for_each_way_with_its_remedy(tmp_path: Path) -> None:
    versions, images, *others = ok("doctor", "--directory", tmp_path).splitlines()
    assert versions.startswith("zonefs-emu ")
    assert "libfuse" in versions
    assert images.split()[:2] == ["images", "yes"]
    assert [line.split(maxsplit=2) for line in others] == [
        ["mount", "yes", "all is there"],
        ["ublk", "no", "no module; try: modprobe ublk_drv"],
        ["vduse", "no", "no kernel"],
    ]


@pytest.mark.parametrize(("ways", "code"), [(["mount"], 0), (["ublk"], 1), (["mount", "ublk"], 1)])
def test_a_named_way_that_does_not_work_is_a_failure(ways: list[str], code: int) -> None:
    assert run_cli("doctor", *ways).exit_code == code


def test_without_a_place_for_images_nothing_works(tmp_path: Path) -> None:
    assert run_cli("doctor", "--directory", tmp_path / "absent").exit_code == 1


def test_json() -> None:
    record = json.loads(ok("doctor", "images", "mount", "--json"))
    assert record["versions"]["zonefs-emu"]
    assert record["ways"][1] == {"name": "mount", "works": True, "reason": "all is there", "remedy": None}


def test_an_unknown_way_is_one_sentence() -> None:
    assert "there is no way in called 'floppy'" in fails("doctor", "floppy", code=2)
