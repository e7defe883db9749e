import os
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from zonefs_emu.persist import copy as persist_copy


def fill(image: Path) -> None:
    ok("write", image, "--zone", 1, "--offset", "512K", stdin=b"c" * 4096)
    ok("write", image, "--zone", 2, stdin=b"d" * 12288)
    ok("close", image, "--zone", 2)
    ok("open", image, "--zone", 3)
    ok("write", image, "--zone", 4, stdin=b"e" * 4096)
    ok("finish", image, "--zone", 4)
    ok("write", image, "--zone", 5, stdin=b"f" * 4096)
    ok("set-cond", image, "--zone", 5, "readonly")
    ok("set-cond", image, "--zone", 6, "offline")


def contents(image: Path) -> list[bytes]:
    return [run_cli("read", image, "--zone", zone_no).stdout_bytes for zone_no in range(6)]


def test_a_dump_is_an_image_with_the_same_zones(image: Path, tmp_path: Path) -> None:
    fill(image)
    dump = tmp_path / "a.dump"
    assert ok("dump", image, dump) == ""
    assert ok("report", dump) == ok("report", image)
    assert contents(dump) == contents(image)
    assert ok("check", dump) == f"{dump}: nothing found\n"
    ok("write", dump, "--zone", 2, stdin=bytes(4096))


def test_holes_stay_holes(tmp_path: Path) -> None:
    image, dump = tmp_path / "large.img", tmp_path / "large.dump"
    ok("create", image, "--size", "64G", "--nr-conv", "4")
    ok("write", image, "--zone", 10, stdin=os.urandom(1 << 20))
    ok("dump", image, dump)
    assert dump.stat().st_size == image.stat().st_size
    assert dump.stat().st_blocks * 512 < 4 << 20


def test_nothing_is_overwritten(image: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    assert "exists, and nothing is ever overwritten" in fails("dump", image, precious)
    assert "exists" in fails("dump", image, image)
    assert precious.read_text() == "data"


def test_a_host_that_refuses_leaves_nothing(image: Path, tmp_path: Path) -> None:
    assert "No such file or directory" in fails("dump", image, tmp_path / "no" / "a.dump")
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        assert "Permission denied" in fails("dump", image, tmp_path / "a.dump")


def test_a_reset_while_the_copy_runs_is_noticed(
    fresh: Path, daemon: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok("write", fresh, "--zone", 2, stdin=b"d" * 4096)
    copy_image = persist_copy.copy_image

    def copy_while_somebody_resets(*args: object) -> None:
        resetter = threading.Thread(target=ok, args=("reset", fresh, "--zone", 2))
        resetter.start()
        resetter.join()
        copy_image(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(persist_copy, "copy_image", copy_while_somebody_resets)
    assert "were reset while it was being copied" in fails("dump", fresh, tmp_path / "a.dump")
    assert not (tmp_path / "a.dump").exists()
