import os
from pathlib import Path

from tests.cli.conftest import fails, ok, run_cli


def read(image: Path, *options: object) -> bytes:
    result = run_cli("read", image, *options)
    assert result.exit_code == 0, result.stderr
    return result.stdout_bytes


def test_what_was_written_is_read(image: Path) -> None:
    data = os.urandom(5 * 4096)
    ok("write", image, "--zone", 2, stdin=data)
    assert read(image, "--zone", 2) == data
    assert read(image, "--zone", 2, "--offset", "4K", "--length", "8K") == data[4096:12288]
    assert read(image, "--zone", 2, "--offset", "16K") == data[16384:]
    assert read(image, "--zone", 2, "--offset", "16K", "--length", "8K") == data[16384:] + bytes(4096)
    assert read(image, "--zone", 2, "--offset", "512K") == b""
    assert read(image, "--zone", 3) == b""


def test_a_conventional_zone_is_read_in_full(image: Path) -> None:
    ok("write", image, "--zone", 1, "--offset", "1020K", stdin=b"x" * 4096)
    data = read(image, "--zone", 1)
    assert len(data) == 1 << 20
    assert data[-4096:] == b"x" * 4096


def test_several_commands_make_one_long_read(tmp_path: Path) -> None:
    image = tmp_path / "b.img"
    ok("create", image, "--size", "32M", "--zone-size", "8M")
    data = os.urandom((5 << 20) + 4096)
    ok("write", image, "--zone", 1, stdin=data)
    assert read(image, "--zone", 1) == data


def test_refused(image: Path) -> None:
    assert "(UNALIGNED)" in fails("read", image, "--zone", 2, "--length", "512")
    assert "multiples of 512 bytes" in fails("read", image, "--zone", 2, "--length", "100")
    assert "lie beyond the end of zone 2" in fails("read", image, "--zone", 2, "--offset", "1M", "--length", "4K")
    assert "there is no zone 8" in fails("read", image, "--zone", 8)
    ok("set-cond", image, "--zone", 2, "offline")
    assert "(ZONE_OFFLINE)" in fails("read", image, "--zone", 2)
