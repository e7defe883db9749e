"""Suites that are unpacked from an archive, and suites that are checked out."""

import subprocess
import tarfile
from pathlib import Path

import pytest

from tools.conformance.sources import Checkout, unpack, version_of
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


def test_the_version_is_in_the_name_of_the_archive() -> None:
    assert version_of("fio_3.39.orig.tar.bz2") == "3.39"
    assert version_of("qemu_10.0.2+ds.orig.tar.xz") == "10.0.2+ds"


def test_a_checkout_must_be_compiled(tmp_path: Path) -> None:
    checkout = Checkout(name="libzbc", built=("test/program",))
    with pytest.raises(KitError, match="give a directory with a checkout of it"):
        checkout.find(None)
    with pytest.raises(KitError, match="has no test/program: it is no checkout of libzbc, or was not compiled"):
        checkout.find(tmp_path)
    (tmp_path / "libzbc/test").mkdir(parents=True)
    (tmp_path / "libzbc/test/program").touch()
    found = checkout.find(tmp_path)
    assert found.place == tmp_path / "libzbc"
    assert found.version == "libzbc of an unknown commit"
    git = ("git", "-c", "user.name=n", "-c", "user.email=e", "-C", tmp_path / "libzbc")
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first"), ("tag", "v1"), ("tag", "v2-rc1")):
        subprocess.run([*git, *words], check=True)
    assert checkout.find(tmp_path).version == "libzbc v1"
