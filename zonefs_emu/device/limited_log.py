"""A logger for events that a guest or a peer can cause at any rate."""

import logging
import time
from typing import Final

#: How many messages of a kind may be logged at once. One more is allowed for each interval after that.
_BURST: Final = 10
_INTERVAL_S: Final = 60.0


class LimitedLog:
    """Passes a limited number of messages of each kind on to *logger*; the next message has the number of omitted ones.

    Messages with the same text before formatting are of one kind, so there are as many kinds as calls in the code.
    """

    def __init__(self, logger: logging.Logger) -> None:
        """Begin with the full number of messages of each kind."""
        self._logger = logger
        #: By text: how many may be logged, the time of that, and how many were omitted since.
        self._kinds: dict[str, tuple[float, float, int]] = {}

    def info(self, text: str, *args: object) -> None:
        """Log at INFO."""
        self._log(logging.INFO, text, args)

    def warning(self, text: str, *args: object) -> None:
        """Log at WARNING."""
        self._log(logging.WARNING, text, args)

    def _log(self, level: int, text: str, args: tuple[object, ...]) -> None:
        now = time.monotonic()
        allowed, since, left_out = self._kinds.get(text, (float(_BURST), now, 0))
        allowed = min(allowed + (now - since) / _INTERVAL_S, _BURST)
        if allowed < 1:
            self._kinds[text] = allowed, now, left_out + 1
            return
        self._kinds[text] = allowed - 1, now, 0
        if left_out:
            text, args = f"{text} (and %d more of these were not logged)", (*args, left_out)
        self._logger.log(level, text, *args)
