"""The switch of an observer: its first error puts it off, for as long as the image is open.

An observer (counters, refusal log, operation log, power-cut lab, a listener) takes part in a command after its effect
is in the image. It catches every exception of its own at its entry points and gives it to its switch, so that no error
of an observer reaches the command. That is the boundary of observers; code below it raises freely.
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
        #: What put it off; None while it is on.
        self.error: Exception | None = None

    def report_to(self, report: Callable[[str, Exception], None]) -> None:
        """Call *report* with the observer's name and the error that puts it off, at once if one already has."""
        self._report = report
        if self.error is not None:
            report(self._observer, self.error)

    def close(self) -> None:
        """Switch the observer off without a report: the image is about to be closed."""
        if self.error is None:
            self.error = OSError(errno.EBADF, "the image is closed")

    def put_off(self, error: Exception) -> None:
        """Switch the observer off because of *error*; a second time does nothing."""
        if self.error is not None:
            return
        self.error = error
        if self._report is not None:
            self._report(self._observer, error)
