"""What of a file counts, and what begins anew."""

import os
from pathlib import Path

import pytest

from zonefs_emu.inflight.record_file import map_record_file


def test_what_is_stored_is_there_for_the_next(tmp_path: Path) -> None:
    first = map_record_file(tmp_path / "record", 100, go_on=False)
    first[10:13] = b"abc"
    following = map_record_file(tmp_path / "record", 100, go_on=True)
    assert following[:] == bytes(10) + b"abc" + bytes(87)
    assert (tmp_path / "record").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("length", "go_on"), [(100, False), (99, True), (101, True)])
def test_what_does_not_count_is_zeroed(tmp_path: Path, length: int, go_on: bool) -> None:
    (tmp_path / "record").write_bytes(b"x" * 100)
    assert map_record_file(tmp_path / "record", length, go_on=go_on)[:] == bytes(length)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"x")
    (tmp_path / "record").symlink_to("theirs")
    with pytest.raises(OSError, match="symbolic"):
        map_record_file(tmp_path / "record", 100, go_on=False)
    assert (tmp_path / "theirs").read_bytes() == b"x"


def test_a_file_that_is_let_go_is_open_no_more(tmp_path: Path) -> None:
    def nr_open() -> int:
        targets = (os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir())
        return sum(target == str(tmp_path / "record") for target in targets)

    mapping = map_record_file(tmp_path / "record", 100, go_on=False)
    assert nr_open() <= 1, "the mapping's own"
    mapping.close()
    assert nr_open() == 0
