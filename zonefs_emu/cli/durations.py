"""Times as people write them: 250us, 5ms, 1s, 1ms-20ms."""

import re
from decimal import Decimal
from typing import Final

import click

from zonefs_emu.errors import UsageError

_SHAPE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s)")
_UNITS_NS: Final = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_MAX_NS: Final = 3600 * 1_000_000_000


def parse_duration(text: str) -> tuple[int, int]:
    """Return the least and the greatest time in *text*, in nanoseconds; they are equal for a single time.

    Raises:
        UsageError: *text* is no time; the sentence has examples.
    """
    parts = [_SHAPE.fullmatch(part.strip()) for part in text.split("-")]
    times = [int(Decimal(part[1]) * _UNITS_NS[part[2]]) for part in parts if part]
    if len(times) != len(parts) or len(times) > 2 or not 0 < times[-1] <= _MAX_NS or times[0] > times[-1]:
        message = f"'{text}' is not a time: write 250us, 5ms or 1s (up to an hour), or a range such as 1ms-20ms"
        raise UsageError(message)
    return times[0], times[-1]


class DurationType(click.ParamType[tuple[int, int]]):
    """A time, or a range of times, in nanoseconds."""

    name = "time"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return the least and the greatest time."""
        if isinstance(value, tuple):
            return value
        try:
            return parse_duration(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


DURATION: Final = DurationType()
