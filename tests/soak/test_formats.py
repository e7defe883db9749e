"""Damaged files of every format are read, and what a reader lets through is told."""

from pathlib import Path

import pytest

from tools.soak.formats import Formats
from zonefs_emu.device.faults import FaultTable


def test_every_format_has_its_turn(tmp_path: Path) -> None:
    files = Formats(tmp_path, seed=2)
    _steps(files, 50)
    assert sorted(files.counts) == [
        "device states",
        "fault tables",
        "images",
        "operation logs",
        "repairs",
        "super blocks",
    ]
    assert sum(files.counts.values()) == 50


def test_a_reader_that_raises_anything_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Formats(tmp_path, seed=3)

    def decode(data: bytes, version: int = 0) -> FaultTable:
        raise KeyError(data)

    monkeypatch.setattr(FaultTable, "decode", decode)
    with pytest.raises(KeyError, match=r"^b['\"]"):
        _steps(files, 30)


def _steps(files: Formats, count: int) -> None:
    for _ in range(count):
        files.step()
