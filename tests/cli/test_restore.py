from pathlib import Path

from tests.cli.conftest import fails, ok, run_cli


def test_restore_brings_back_what_was_dumped(image: Path, tmp_path: Path) -> None:
    ok("write", image, "--zone", 2, stdin=b"d" * 4096)
    ok("dump", image, tmp_path / "a.dump")
    before = ok("report", image)
    ok("reset", image, "--all")
    ok("restore", tmp_path / "a.dump", tmp_path / "again.img")
    assert ok("report", tmp_path / "again.img") == before
    assert run_cli("read", tmp_path / "again.img", "--zone", 2).stdout_bytes == b"d" * 4096


def test_nothing_is_overwritten(image: Path, tmp_path: Path) -> None:
    ok("dump", image, tmp_path / "a.dump")
    assert "exists, and files are never overwritten" in fails("restore", tmp_path / "a.dump", image)
    assert "No such file" in fails("restore", tmp_path / "b.dump", tmp_path / "b.img")
