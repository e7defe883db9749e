"""The switch of an observer: its first error switches it off, for as long as the image is open.

An observer (counters, refusal log, operation log, power-cut lab, a listener) is called after the effect of a command is
in the image. Its entry points are the boundary of observers: they catch every exception and pass it to the switch, so
that it does not reach the command. Code below them raises freely.
"""

import errno
from collections.abc import Callable


class Switch:
    """On until :meth:`put_off`. Thread safe, and never raises."""

    __slots__ = ("_observer", "_report", "error")

    def __init__(self, observer: str) -> None:
        """*observer* is its name for people: "the counters"."""
        self._observer = observer
        self._report: Callable[[str, Exception], None] | None = None
        #: The error that switched it off; None while it is on.
        self.error: Exception | None = None

    def report_to(self, report: Callable[[str, Exception], None]) -> None:
        """Call *report* with the observer's name and the error that switches it off; at once if it is off already."""
        self._report = report
        if self.error is not None:
            report(self._observer, self.error)

    def close(self) -> None:
        """Switch the observer off without a report: the image is about to be closed."""
        if self.error is None:
            self.error = OSError(errno.EBADF, "the image is closed")

    def put_off(self, error: Exception) -> None:
        """Switch the observer off because of *error*; a second call does nothing."""
        if self.error is not None:
            return
        self.error = error
        if self._report is not None:
            self._report(self._observer, error)
