import json
import os
from pathlib import Path

from tests.cli.conftest import fails, ok, run_cli


def test_a_snapshot_keeps_what_the_image_was(image: Path) -> None:
    ok("write", image, "--zone", 3, stdin=b"a" * 4096)
    before = ok("report", image)
    ok("snapshot", image, "first")
    ok("reset", image, "--zone", 3)
    kept = image.with_name("a.img.snapshot-first")
    assert ok("report", kept) == before
    assert run_cli("read", kept, "--zone", 3).stdout_bytes[:4096] == b"a" * 4096


def test_names_are_listed_the_oldest_first(image: Path) -> None:
    assert ok("snapshot", image, "--list") == ""
    for name in ("zero", "and-one"):
        ok("snapshot", image, name)
    os.utime(image.with_name("a.img.snapshot-zero"), ns=(0, 10**18))
    assert [line.split()[-1] for line in ok("snapshot", image, "--list").splitlines()] == ["zero", "and-one"]
    rows = json.loads(ok("snapshot", image, "--list", "--json"))
    assert rows[0] == {
        "name": "zero",
        "time": "2001-09-09T01:46:40+00:00",
        "bytes": rows[0]["bytes"],
        "file": str(image.with_name("a.img.snapshot-zero")),
        "complete": True,
    }


def test_a_snapshot_is_beside_the_file_itself(image: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere"
    link.mkdir()
    (link / "link.img").symlink_to(image)
    printed = json.loads(ok("snapshot", link / "link.img", "first", "--json"))
    assert printed == {"name": "first", "file": str(image.with_name("a.img.snapshot-first"))}
    ok("rewind", link / "link.img", "first")


def test_delete(image: Path) -> None:
    ok("snapshot", image, "first")
    assert "first exists, and files are never overwritten" in fails("snapshot", image, "first")
    ok("snapshot", image, "first", "--delete")
    assert "has no snapshot 'first': there are none" in fails("snapshot", image, "first", "--delete")


def test_what_is_no_name(image: Path) -> None:
    for name in ("../a", "", "a b", ".hidden"):
        assert "cannot be the name of a snapshot" in fails("snapshot", image, name, code=2)
    assert "the name of the snapshot is missing" in fails("snapshot", image, code=2)
    assert "--list needs IMG only" in fails("snapshot", image, "first", "--list", code=2)
    assert "No such file" in fails("snapshot", image.with_name("absent"), "--list")


def test_one_that_was_not_finished_is_not_taken_for_a_whole_one(image: Path) -> None:
    ok("snapshot", image, "whole")
    part = image.with_name("a.img.snapshot-part")
    part.write_bytes(image.with_name("a.img.snapshot-whole").read_bytes()[:-8192])
    later = image.with_name("a.img.snapshot-whole").stat().st_mtime_ns + 10**9
    os.utime(part, ns=(later, later))
    assert [row["complete"] for row in json.loads(ok("snapshot", image, "--list", "--json"))] == [True, False]
    whole, incomplete = ok("snapshot", image, "--list").splitlines()
    assert whole.endswith("  whole")
    assert incomplete.endswith("  part  (incomplete)")
    before = ok("report", image)
    assert "the snapshot 'part' is incomplete: the command that makes it" in fails("rewind", image, "part")
    assert ok("report", image) == before
    ok("snapshot", image, "part", "--delete")
