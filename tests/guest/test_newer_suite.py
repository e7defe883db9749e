"""What is said of parts that are newer than the kit's; whether they work is shown by the tests that use them."""

from pathlib import Path

import pytest

from tools.guest.kit import Apt, KitError
from tools.guest.newer_suite import NewerPart, Suite

PART = NewerPart(name="newer-thing-1", what="newer thing", lacking="tests of it are skipped", build=lambda _: Path())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "zonefs-emu/guest"


def test_what_is_there_is_not_downloaded(cache: Path) -> None:
    (cache / "newer-thing-1").mkdir(parents=True)
    assert PART.obtain(lambda _: None) == cache / "newer-thing-1"


def test_a_mirror_without_the_suite_is_told_in_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_apt: Apt, program: str, *_arguments: str, **_options: object) -> str:
        message = f"{program} failed: no such suite"
        raise KitError(message)

    monkeypatch.setattr(Apt, "run", run)
    with pytest.raises(KitError, match=r"^no newer thing can be had here, so tests of it are skipped: .* such suite$"):
        PART.obtain(lambda _: None)
    assert not PART.root.exists()


def test_a_new_one_replaces_the_old_one_when_it_is_complete(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_apt: Apt, *words: str, **_options: object) -> str:
        return "Inst libc6 (2.99 Debian:unstable [amd64])\nInst thing [1.0] (3.0 Debian:unstable [amd64])\nConf thing\n"

    def build(suite: Suite) -> Path:
        root = suite.work / "root"
        root.mkdir()
        (root / "found").write_text(str(suite.dependencies("thing")))
        assert old.exists()
        return root

    monkeypatch.setattr(Apt, "run", run)
    old = cache / "newer-thing-1/old"
    old.mkdir(parents=True)
    part = NewerPart(name=PART.name, what=PART.what, lacking=PART.lacking, build=build)
    root = part.obtain(lambda _: None, refresh=True)
    assert (root / "found").read_text() == str({"libc6": "2.99", "thing": "3.0"})
    assert not old.exists()
