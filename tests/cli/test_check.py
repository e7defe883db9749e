import json
from pathlib import Path

from tests.cli.conftest import ok, run_cli
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.image import read_header
from zonefs_emu.persist.layout import SectionKind


def damage(image: Path, kind: SectionKind, copy: int) -> int:
    """Flip a byte of a section, and return where."""
    backing = FileBacking.open(image)
    offset = read_header(backing, backing.length).section(kind, copy).offset
    backing.pwrite(bytes([backing.pread(1, offset + 20)[0] ^ 1]), offset + 20)
    backing.close()
    return offset


def test_a_sound_image(image: Path) -> None:
    assert ok("check", image) == f"{image}: nothing found\n"
    assert json.loads(ok("check", image, "--json"))["findings"] == []
    ok("write", image, "--zone", 2, stdin=bytes(4096))
    # While it is held, there is something to say of what was not flushed yet.
    assert all(finding["severity"] == "info" for finding in json.loads(ok("check", image, "--json"))["findings"])


def test_one_damaged_copy_is_a_warning(fresh: Path) -> None:
    offset = damage(fresh, SectionKind.TABLE, 1)
    assert f"warning at byte {offset}: the second copy of the zone table is damaged: " in ok("check", fresh)


def test_two_damaged_copies_are_an_error(fresh: Path) -> None:
    for copy in (0, 1):
        damage(fresh, SectionKind.STATE, copy)
    before = fresh.read_bytes()
    result = run_cli("check", fresh, "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    severities = [finding["severity"] for finding in json.loads(result.stdout)["findings"]]
    assert severities == ["error", "warning", "warning"]
    assert fresh.read_bytes() == before


def test_what_is_no_image_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("hello")
    result = run_cli("check", path)
    assert result.exit_code == 1
    assert result.stdout.startswith("error: no zonefs_emu header")
