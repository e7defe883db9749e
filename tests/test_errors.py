"""The exception tree and Status: who is to blame is in the class, and OK is falsy."""

import pytest

from zonefs_emu import errors
from zonefs_emu.errors import (
    CommandError,
    CorruptImageError,
    ImageBusyError,
    ImageError,
    PoisonedError,
    Status,
    UsageError,
    ZonedError,
)


def test_only_ok_is_falsy() -> None:
    assert [status for status in Status if not status] == [Status.OK]


def test_numbers_are_kept_in_images_so_they_never_change() -> None:
    assert [(status.value, status.name) for status in Status] == [
        (0, "OK"),
        (1, "OUT_OF_RANGE"),
        (2, "UNALIGNED"),
        (3, "UNALIGNED_WP"),
        (4, "ZONE_BOUNDARY"),
        (5, "READ_BOUNDARY"),
        (6, "ZONE_FULL"),
        (7, "ZONE_READONLY"),
        (8, "ZONE_OFFLINE"),
        (9, "NOT_ZONE_START"),
        (10, "CONVENTIONAL"),
        (11, "BAD_TRANSITION"),
        (12, "APPEND_LIMIT"),
        (13, "OPEN_RESOURCE"),
        (14, "ACTIVE_RESOURCE"),
        (15, "IO_ERROR"),
        (16, "NO_SPACE"),
        (17, "POISONED"),
        (18, "UNSUPPORTED"),
        (19, "ZRWA_WRITE"),
        (20, "ZRWA_RANGE"),
        (21, "ZRWA_INVALID"),
        (22, "ZRWA_UNAVAILABLE"),
    ]


def tree(root: type[ZonedError], depth: int = 0) -> list[str]:
    lines = ["  " * depth + root.__name__]
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            lines += tree(child, depth + 1)
    return lines


def test_the_tree_is_the_one_that_is_drawn() -> None:
    assert tree(ZonedError) == [
        "ZonedError",
        "  CommandError",
        "  ImageError",
        "    BadMagicError",
        "    UnsupportedVersionError",
        "    CorruptImageError",
        "    ImageBusyError",
        "    NoSpaceError",
        "    PoisonedError",
        "  PeerError",
        "  UsageError",
    ]
    drawing = errors.__doc__ or ""
    assert [name.strip() for name in tree(ZonedError) if name.strip() not in drawing] == []


def test_no_bug_is_a_zoned_error() -> None:
    assert not issubclass(AssertionError, ZonedError)
    assert not issubclass(ZonedError, OSError)


def test_what_errors_carry() -> None:
    refused = CommandError(Status.ZONE_FULL, 7)
    assert (refused.status, refused.zone_no) == (Status.ZONE_FULL, 7)
    assert CommandError(Status.OUT_OF_RANGE).zone_no == -1

    corrupt = CorruptImageError("state block", offset=4096, found="0x1", expected="0x2")
    assert str(corrupt) == "state block at byte 4096: found 0x1, expected 0x2"
    assert (corrupt.offset, corrupt.found, corrupt.expected) == (4096, "0x1", "0x2")

    busy = ImageBusyError("a.img", "mount (pid 12)")
    assert str(busy) == "a.img is in use by mount (pid 12)"
    assert busy.holder == "mount (pid 12)"

    assert PoisonedError("an earlier failure").status == Status.POISONED
    assert PoisonedError("just now", status=Status.IO_ERROR).status == Status.IO_ERROR

    assert UsageError("no").exit_code == 2
    assert UsageError("no", exit_code=1).exit_code == 1
    with pytest.raises(ImageError, match=r"a\.img is in use"):
        raise busy
