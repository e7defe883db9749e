"""Pictures replace pictures, and no other file."""

from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok
from zonefs_emu.cli.picture_file import write_picture
from zonefs_emu.errors import UsageError


@pytest.mark.parametrize("option", ["--html", "--svg"])
def test_no_picture_takes_the_place_of_an_image(fresh: Path, tmp_path: Path, option: str) -> None:
    before = fresh.read_bytes()
    assert "exists and is not a picture: remove it first" in fails("map", fresh, option, fresh)
    assert fresh.read_bytes() == before
    picture = tmp_path / "picture"
    picture.touch()
    for _ in range(2):
        ok("map", fresh, option, picture)
    assert picture.stat().st_size > 100


def test_no_picture_takes_the_place_of_its_workload(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text('[[job]]\noperation = "write"\nzones = "4"\ncount = 8\n')
    before = file.read_text()
    assert "exists and is not a picture" in fails("simulate", "zn540", "--workload", file, "--svg", file)
    assert file.read_text() == before


def test_a_write_that_fails_names_the_file(fresh: Path) -> None:
    for option in ("--html", "--svg"):
        assert fails("map", fresh, option, "/dev/full") == "zonefs-emu: /dev/full: No space left on device"


def test_what_is_half_written_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    with pytest.raises(UnicodeEncodeError):
        write_picture(path, "<svg " + "x" * 100_000 + "\udcff")
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(UsageError):
        write_picture(path, "<svg />")
    assert path.read_text() == "mine"
