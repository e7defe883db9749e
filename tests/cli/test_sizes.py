import pytest

from zonefs_emu.cli.sizes import parse_size
from zonefs_emu.errors import UsageError


@pytest.mark.parametrize(
    ("text", "nr_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("0x1000", 4096),
        ("8s", 4096),
        ("8S", 4096),
        ("64M", 64 << 20),
        ("64m", 64 << 20),
        ("64MiB", 64 << 20),
        ("64 MiB", 64 << 20),
        ("1GiB", 1 << 30),
        ("1.5G", 3 << 29),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
        (" 1K ", 1024),
    ],
)
def test_sizes_as_people_write_them(text: str, nr_bytes: int) -> None:
    assert parse_size(text) == nr_bytes


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("64MB", "write MiB for 1024"),
        ("", "is not a size: write bytes"),
        ("-5", "is not a size"),
        ("1e9", "unknown unit 'e9'|is not a size"),
        ("M", "is not a size"),
        ("12q", "unknown unit 'q'"),
        ("0.3K", "not a whole number of bytes"),
        ("8E", "too large"),
        ("9" * 5000, "too large"),
        ("1 2", "is not a size"),
    ],
)
def test_what_is_no_size_gets_a_sentence_that_says_what_would_be(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint) as caught:
        parse_size(text)
    assert caught.value.exit_code == 2
