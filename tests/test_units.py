"""Conversions between sectors and bytes, exact at every size that an image can have."""

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.units import SECTOR_BYTES, human_bytes, round_up, to_bytes, to_sectors


@given(st.integers(0, 1 << 60))
def test_sectors_and_bytes_are_inverse(nr_sectors: int) -> None:
    assert to_bytes(nr_sectors) == nr_sectors * 512
    assert to_sectors(to_bytes(nr_sectors)) == nr_sectors


@given(st.integers(0, 1 << 60), st.integers(1, SECTOR_BYTES - 1))
def test_bytes_that_are_no_whole_sectors_are_refused(nr_sectors: int, excess: int) -> None:
    with pytest.raises(ValueError, match="are not whole 512-byte sectors"):
        to_sectors(to_bytes(nr_sectors) + excess)


@given(st.integers(0, 1 << 60), st.integers(1, 1 << 40))
def test_round_up_is_the_next_multiple(value: int, multiple: int) -> None:
    rounded = round_up(value, multiple)
    assert rounded % multiple == 0
    assert value <= rounded < value + multiple


@pytest.mark.parametrize(
    ("nr_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1025, "1025 B"),
        (1536, "1.5 KiB"),
        (1 << 20, "1 MiB"),
        ((1 << 20) - 1, "1024.0 KiB"),
        ((1 << 20) + 4096, "1028 KiB"),
        ((96 << 20) + 4096, "98308 KiB"),
        ((98 << 20) + 4096, "98.0 MiB"),
        (96 << 20, "96 MiB"),
        (1077 << 20, "1077 MiB"),
        (1 << 30, "1 GiB"),
        (1 << 40, "1 TiB"),
        (1 << 50, "1 PiB"),
        (3 << 49, "1.5 PiB"),
        (1 << 61, "2048 PiB"),
    ],
)
def test_bytes_for_people(nr_bytes: int, text: str) -> None:
    assert human_bytes(nr_bytes) == text
