import json
from pathlib import Path
from unittest.mock import ANY

import pytest

from tests.cli.conftest import fails, ok, run_cli
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.codec.header import SectionKind
from zonefs_emu.persist.metadata import read_header


def damage(image: Path, kind: SectionKind, copy: int) -> int:
    """Flip a byte of a section, and return where."""
    backing = FileBacking.open(image)
    offset = read_header(backing, backing.length).section(kind, copy).offset
    backing.pwrite(bytes([backing.pread(1, offset + 20)[0] ^ 1]), offset + 20)
    backing.close()
    return offset


def test_a_sound_image(image: Path, request: pytest.FixtureRequest) -> None:
    assert ok("check", image) == f"{image}: nothing found\n"
    assert json.loads(ok("check", image, "--json"))["findings"] == []
    ok("write", image, "--zone", 2, stdin=bytes(4096))
    assert json.loads(ok("check", image, "--json"))["findings"] == (
        # While it is held, there is something to say of what was not flushed yet.
        [
            {
                "severity": "info",
                "offset": ANY,
                "section": "live",
                "copy": None,
                "zone_no": 2,
                "message": "zones that changed since the last flush: 1, zone 2 first",
            }
        ]
        if request.node.callspec.params["image"] == "live"
        else []
    )


def test_one_damaged_copy_is_a_warning(fresh: Path) -> None:
    offset = damage(fresh, SectionKind.TABLE, 1)
    assert f"warning at byte {offset}: the second copy of the zone table is damaged: " in ok("check", fresh)
    (finding,) = json.loads(ok("check", fresh, "--json"))["findings"]
    assert (finding["section"], finding["copy"], finding["zone_no"]) == ("table", 1, None)


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


def test_repair_says_what_it_did_and_how_to_undo_it(fresh: Path) -> None:
    for copy in (0, 1):
        damage(fresh, SectionKind.TABLE, copy)
    former = fresh.read_bytes()
    lines = ok("check", "--repair", fresh).splitlines()
    assert lines[0].startswith("error at byte ")
    assert any(line.startswith("repaired: the zone states were written anew") for line in lines)
    lost = "lost: zone 2: its condition and write pointer; it is now EMPTY with 0 sectors, as its data extents say"
    assert lost in lines
    assert lines[-1] == f"backup: {fresh}.backup-1; to put it back: xxd -r {fresh}.backup-1 {fresh}"
    assert fresh.read_bytes() != former
    assert ok("check", fresh) == f"{fresh}: nothing found\n"
    assert ok("check", "--repair", fresh) == f"{fresh}: nothing to repair\n"
    ok("report", fresh)


def test_repair_as_json(fresh: Path) -> None:
    length = fresh.stat().st_size
    with fresh.open("ab") as file:
        file.write(b"tail")
    record = json.loads(ok("check", "--repair", "--json", fresh))
    assert record["findings"][0]["severity"] == "error"
    assert record["repaired"] == ["what was beyond the end of the image was cut off: 4 B"]
    assert (record["lost"], record["afterwards"]) == ([], [])
    assert record["undo"] == f"xxd -r {fresh}.backup-1 {fresh} && truncate -s {length + 4} {fresh}"
    record = json.loads(ok("check", "--repair", "--json", fresh))
    assert (record["repaired"], record["backup"], record["undo"]) == ([], None, None)


def test_what_cannot_be_repaired(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("hello")
    assert "no copy of a zonefs_emu header can be read" in fails("check", "--repair", path)
    assert path.read_text() == "hello"


@pytest.mark.usefixtures("daemon")
def test_an_image_in_use_is_not_repaired(fresh: Path) -> None:
    sentence = fails("check", "--repair", fresh)
    assert f"{fresh} is in use by a test (pid " in sentence
    assert sentence.endswith("and is repaired only when nothing uses it")
