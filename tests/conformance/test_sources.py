"""Unpacking what is wanted of an archive."""

import tarfile
from pathlib import Path

import pytest

from tools.conformance.sources import unpack
from tools.guest.kit import KitError


def test_only_what_is_wanted_is_unpacked(tmp_path: Path) -> None:
    tree = tmp_path / "fio-3.33"
    for name in ("t/zbd/functions", "t/other", "README"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    archive = tmp_path / "fio_3.33.orig.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tree, "fio-3.33")
    unpack(archive, "t/zbd/", tmp_path / "place")
    found = [str(path.relative_to(tmp_path / "place")) for path in (tmp_path / "place").rglob("*") if path.is_file()]
    assert found == ["t/zbd/functions"]
    with pytest.raises(KitError, match="nothing that begins with elsewhere"):
        unpack(archive, "elsewhere/", tmp_path / "nothing")
