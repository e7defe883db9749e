import pytest

from zonefs_emu.cli.durations import parse_duration
from zonefs_emu.errors import UsageError


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("1ns", (1, 1)),
        ("250us", (250_000, 250_000)),
        ("2.5µs", (2_500, 2_500)),
        ("5ms", (5_000_000, 5_000_000)),
        ("1s", (1_000_000_000, 1_000_000_000)),
        ("1ms-20ms", (1_000_000, 20_000_000)),
        ("0s - 3s", (0, 3_000_000_000)),
    ],
)
def test_times(text: str, times: tuple[int, int]) -> None:
    assert parse_duration(text) == times


@pytest.mark.parametrize("text", ["", "5", "ms", "5 ms ms", "-5ms", "0s", "20ms-1ms", "1ms-2ms-3ms", "2h", "3601s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time: write 250us"):
        parse_duration(text)
