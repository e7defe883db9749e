"""The feature Timestamp: a clock that the host sets, and that runs by itself.

Source: NVM Express Base Specification 2.0, "Timestamp".
"""

from collections.abc import Callable
from typing import Final

TIMESTAMP_BYTES: Final = 8
_MS_BYTES: Final = 6
_MS_MASK: Final = (1 << 8 * _MS_BYTES) - 1
#: Timestamp Origin, in bits 3 to 1 of byte 6. Bit 0 of it, Synch, stays 0: the clock never stops.
_BY_HOST: Final = 0b001 << 1
_NS_PER_MS: Final = 1_000_000


class Timestamp:
    """A clock in milliseconds that runs from the value that the host has set, or from the last reset."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        """*clock_ns* is a clock that also runs while the machine sleeps, and while this process does not run."""
        self._clock_ns = clock_ns
        self._origin = 0
        self._start_ms = 0
        self._started_ns = clock_ns()

    def reset(self) -> None:
        """Begin at zero: a Controller Level Reset."""
        self._origin, self._start_ms, self._started_ns = 0, 0, self._clock_ns()

    def set(self, data: bytes) -> None:
        """Set the clock to the first six bytes of *data*; the others are not the host's to set."""
        self._start_ms = int.from_bytes(data[:_MS_BYTES], "little")
        self._origin, self._started_ns = _BY_HOST, self._clock_ns()

    def data(self) -> bytes:
        """Return the data structure as it is now."""
        now_ms = self._start_ms + (self._clock_ns() - self._started_ns) // _NS_PER_MS
        return (now_ms & _MS_MASK).to_bytes(_MS_BYTES, "little") + bytes((self._origin, 0))

    def state(self) -> tuple[int, int, int]:
        """Return what :meth:`restore` needs, in another process of the same host."""
        return self._origin, self._start_ms, self._started_ns

    def restore(self, state: tuple[int, int, int]) -> None:
        """Continue from *state*."""
        self._origin, self._start_ms, self._started_ns = state
