"""A trace function for the time of a context."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def traced(trace: Callable[[FrameType, str, object], object]) -> Iterator[None]:
    """Have *trace* hear of each call; the function that was set before, as coverage sets one, comes back."""
    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]  # None as a result means: no lines of this call
    try:
        yield
    finally:
        sys.settrace(before)
