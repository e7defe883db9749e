"""What a handle keeps of the flags that a file is opened with, and what a file takes from its directory."""

import os

import pytest

from zonefs_emu.fs.files import Handle, Node, ZoneFile


def new_file() -> ZoneFile:
    return ZoneFile(7, 1, "seq/7", sequential=True, node=Node(0o640, 1000, 100, 5))


def test_a_file_has_the_owner_the_permissions_and_the_time_that_it_is_given() -> None:
    file = new_file()
    assert (file.mode, file.uid, file.gid) == (0o640, 1000, 100)
    assert (file.atime_ns, file.mtime_ns, file.ctime_ns) == (5, 5, 5)
    assert (file.zone_no, file.nr_zones, file.path, file.sequential) == (7, 1, "seq/7", True)


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "expected"),
    [
        (0o6777, 0, 0, 0o6777),
        (0o6777, 5, 100, 0o777),
        (0o6767, 5, 100, 0o2767),
        (0o6767, 5, 5, 0o767),
        (0o640, 5, 5, 0o640),
    ],
)
def test_a_truncation_takes_away_what_changes_users(mode: int, uid: int, gid: int, expected: int) -> None:
    file = new_file()
    file.mode = mode
    file.truncated_by(uid, gid)
    assert file.mode == expected


def test_a_positioned_handle_differs_in_appending_only() -> None:
    handle = Handle(new_file(), os.O_RDWR | os.O_APPEND | os.O_DIRECT)
    positioned = handle.positioned()
    assert (handle.append, positioned.append) == (True, False)
    assert (positioned.file, positioned.direct, positioned.writable) == (handle.file, True, True)


@pytest.mark.parametrize(
    ("atime_ns", "mtime_ns", "ctime_ns", "now_ns", "is_noted"),
    [
        (5, 5, 3, 9, True),
        (5, 3, 5, 9, True),
        (5, 4, 4, 9, False),
        (5, 4, 4, 5 + 24 * 3600 * 10**9 - 1, False),
        (5, 4, 4, 5 + 24 * 3600 * 10**9, True),
    ],
)
def test_an_access_is_noted_after_a_change_and_once_a_day(
    atime_ns: int, mtime_ns: int, ctime_ns: int, now_ns: int, is_noted: bool
) -> None:
    file = new_file()
    file.atime_ns, file.mtime_ns, file.ctime_ns = atime_ns, mtime_ns, ctime_ns
    file.note_access(now_ns)
    assert file.atime_ns == (now_ns if is_noted else atime_ns)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (os.O_RDONLY, set()),
        (os.O_WRONLY, {"writable"}),
        (os.O_RDWR | os.O_DIRECT, {"writable", "direct"}),
        (os.O_WRONLY | os.O_APPEND, {"writable", "append"}),
        (os.O_RDONLY | os.O_NOATIME, {"noatime"}),
        (os.O_WRONLY | os.O_DSYNC, {"writable", "synchronous"}),
        (os.O_WRONLY | os.O_SYNC, {"writable", "synchronous"}),
    ],
)
def test_flags_of_a_handle(flags: int, expected: set[str]) -> None:
    handle = Handle(new_file(), flags)
    names = ("append", "cached", "direct", "failed", "noatime", "synchronous", "writable")
    assert {name for name in names if getattr(handle, name)} == expected
