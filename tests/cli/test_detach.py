"""``detach`` of what is not attached; the rest is in tests/attaching.py, for both ways."""

from pathlib import Path

import pytest

from tests.cli.conftest import fails


def test_what_is_not_attached(fresh: Path, tmp_path: Path) -> None:
    assert f"{fresh} is not attached" in fails("detach", fresh)
    assert "is neither a device that zonefs-emu has attached nor an image" in fails("detach", "/dev/null")
    assert "is neither a device that zonefs-emu has attached nor an image" in fails("detach", tmp_path / "none")


@pytest.mark.usefixtures("daemon")
def test_an_image_that_is_used_otherwise(fresh: Path) -> None:
    assert "is not attached: process" in fails("detach", fresh)
