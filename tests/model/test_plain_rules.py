import pytest

from zonefs_emu.model.plain_rules import is_plain_read, is_plain_write


@pytest.mark.parametrize(
    ("is_readable", "wp", "sector", "offset", "nr_sectors", "plain"),
    [
        (True, 64, 1024, 0, 64, True),
        (True, 64, 1072, 48, 16, True),
        (True, 64, 1080, 56, 16, False),  # the end is not written
        (True, 64, 1024, 0, 0, False),
        (True, 64, 1025, 1, 8, False),  # half a block
        (True, 64, 1024, 0, 9, False),
        (False, 64, 1024, 0, 8, False),
    ],
)
def test_a_plain_read(is_readable: bool, wp: int, sector: int, offset: int, nr_sectors: int, plain: bool) -> None:  # noqa: PLR0917  (columns)
    assert is_plain_read(is_readable, wp, sector, offset, nr_sectors, 7) is plain


@pytest.mark.parametrize(
    ("keeps_open", "wp", "offset", "nr_sectors", "plain"),
    [
        (True, 16, 16, 8, True),
        (True, 16, 16, 80, True),  # up to the capacity
        (True, 16, 16, 88, False),
        (True, 16, 24, 8, False),
        (True, 16, 8, 8, False),
        (True, 16, 16, 0, False),
        (True, 16, 16, 12, False),  # not whole blocks of the granularity
        (False, 16, 16, 8, False),
    ],
)
def test_a_plain_write(keeps_open: bool, wp: int, offset: int, nr_sectors: int, plain: bool) -> None:
    assert is_plain_write(keeps_open, wp, offset, nr_sectors, 96, 8) is plain
