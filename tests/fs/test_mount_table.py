"""The kernel's table of mounts, with other people's names in it."""

from pathlib import Path

import pytest

from zonefs_emu.fs import mount_table
from zonefs_emu.fs.mount_table import MountEntry, mount_at, parse, place_of

MOUNTINFO = rb"""21 28 0:19 / /proc rw,nosuid shared:1 - proc proc rw
30 28 0:25 / /mnt/a rw,nosuid,nodev - fuse.zonefs /images/a.img rw,user_id=0
31 28 0:26 / /mnt/with\040blank\134 rw shared:3 master:1 - fuse.zonefs /images/b\040c.img rw,user_id=1000,group_id=100
32 28 0:27 / /mnt/other rw - fuse.sshfs me@there rw
33 30 0:28 / /mnt/a rw - fuse.zonefs /images/d.img rw
34 30 0:29 / /mnt/\011\012\043\134040 rw - fuse.zonefs /images/\012\134012 rw
"""
#: Other people's names: what ends a line for str.splitlines, what is no text, what looks like another field.
MOUNTINFO += b"".join(
    b"35 28 0:30 / /mnt/" + bytes([byte]) + b"\\040-\\040fuse.zonefs rw - fuse.sshfs me@" + bytes([byte]) + b" rw\n"
    for byte in (*b"\r\v\f\x1c\x1d\x1e\x85\xff", 0xE9)
)


def entry(number: int, directory: str, source: str, uid: int = 0) -> MountEntry:
    return MountEntry(directory=Path(directory), source=Path(source), is_ours=True, uid=uid, number=number)


def test_our_mounts_are_found_the_latest_first() -> None:
    assert [entry for entry in parse(MOUNTINFO) if entry.is_ours] == [
        entry(34, "/mnt/\t\n#\\040", "/images/\n\\012"),
        entry(33, "/mnt/a", "/images/d.img"),
        entry(31, "/mnt/with blank\\", "/images/b c.img", 1000),
        entry(30, "/mnt/a", "/images/a.img"),
    ]


def test_only_what_is_seen_at_a_place_counts() -> None:
    assert mount_at(Path("/proc")) is None
    assert mount_at(Path("/nowhere")) is None


@pytest.mark.parametrize(
    ("number", "source", "place"),
    [
        (33, "/images/d.img", "/mnt/a"),
        (31, "/images/b c.img", "/mnt/with blank\\"),
        (30, "/images/a.img", None),  # number 33 covers it
        (33, "/images/a.img", None),  # the number was given again
        (36, "/images/a.img", None),
    ],
)
def test_the_place_of_a_mount_is_where_it_is_seen_now(
    number: int, source: str, place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount_table, "_read", lambda: parse(MOUNTINFO))
    assert place_of(entry(number, "/mnt/before", source)) == (None if place is None else Path(place))
