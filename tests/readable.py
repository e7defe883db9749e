"""Whether a descriptor is readable, of any number: select.select takes none above 1023, which long runs reach."""

import select
from typing import Protocol


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


def is_readable(file: int | _HasFileno, timeout_s: float = 0) -> bool:
    """Return whether *file* is readable within *timeout_s*, or has ended."""
    poller = select.poll()
    poller.register(file, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))
