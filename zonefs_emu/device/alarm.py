"""Answers that are held until they are due on the host's clock.

May not know: commands, front-ends. A front-end that can defer its answers has one :class:`Alarm`, which notifies it
when an answer is due. The alarm has a thread of its own, because event loops wait in milliseconds.
"""

import ctypes
import heapq
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

#: prctl(2), timer slack: how much later than requested the kernel may wake a thread. The default is 50 us.
_PR_SET_TIMERSLACK: Final = 29
_SLACK_NS: Final = 1
#: The longest single wait. An answer of a slowed drive may be due later than a wait can last.
_WAIT_S: Final = 3600.0

log = logging.getLogger(__name__)


class HeldAnswer(threading.local):
    """For each thread: when its last command is to be answered, if that answer is held; in nanoseconds of a clock.

    *due_ns* is 0 if nothing is held. *arrival_ns*: when the command arrived. *delay_ns*: the injected delays that were
    noted and not taken yet.
    """

    due_ns = 0
    arrival_ns = 0
    delay_ns = 0

    def hold(self, due_ns: int, arrival_ns: int) -> None:
        """Note the times, for :attr:`TimedPort.hold`. Of several commands of one request the last one counts."""
        self.due_ns = max(self.due_ns, due_ns)
        self.arrival_ns = arrival_ns

    def take(self) -> tuple[int, int]:
        """Return (due, arrival) and forget them; due is 0 if nothing is held."""
        found = self.due_ns, self.arrival_ns
        self.due_ns = 0
        return found

    def delay(self, duration_ns: int) -> None:
        """Note an injected delay; this is for :attr:`Port.defer`."""
        self.delay_ns += duration_ns

    def take_delayed(self, now_ns: int) -> tuple[int, int]:
        """Return (due, arrival) as :meth:`take`, and forget the delays, by which due is later.

        If no answer is held, due is *now_ns* plus the delays, and arrival is -1.
        """
        due_ns, arrival_ns = self.take()
        delay_ns, self.delay_ns = self.delay_ns, 0
        return max(due_ns, now_ns) + delay_ns, arrival_ns if due_ns else -1


class Alarm:
    """Calls functions when they are due, in nanoseconds of ``time.monotonic_ns``.

    The functions only wake a loop: they are quick and do not raise. They are called by the alarm's thread, or, after
    :meth:`cut`, by the caller.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: list[tuple[int, int, Callable[[], object]]] = []
        self._number = 0
        self._is_cut = False
        self._thread: threading.Thread | None = None

    @property
    def is_cut(self) -> bool:
        """Whether :meth:`cut` was called, so that functions are called at once."""
        return self._is_cut

    def at(self, due_ns: int, function: Callable[[], object]) -> None:
        """Call *function* at *due_ns*."""
        with self._changed:
            if not self._is_cut:
                self._number += 1
                heapq.heappush(self._queue, (due_ns, self._number, function))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="alarm", daemon=True)
                    self._thread.start()
                elif self._queue[0][1] == self._number:
                    self._changed.notify()
                return
        self._call(function)

    def cut(self) -> None:
        """Call all waiting functions now and later ones at once, because the process is about to end."""
        with self._changed:
            self._is_cut = True
            functions = [function for _, _, function in sorted(self._queue)]
            self._queue.clear()
            self._changed.notify()
        for function in functions:
            self._call(function)

    def _run(self) -> None:
        # For this thread only. If it fails, answers are later.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _SLACK_NS, 0, 0, 0)
        while True:
            due: list[Callable[[], object]] = []
            with self._changed:
                while not due:
                    if self._is_cut:
                        return
                    now_ns = time.monotonic_ns()
                    while self._queue and self._queue[0][0] <= now_ns:
                        due.append(heapq.heappop(self._queue)[2])
                    if not due:
                        left_ns = self._queue[0][0] - now_ns if self._queue else 0
                        self._changed.wait(min(left_ns / 1e9, _WAIT_S) if left_ns else None)
            for function in due:
                self._call(function)

    def _call(self, function: Callable[[], object]) -> None:
        try:  # the boundary of a wake-up: a failure does not stop the others
            function()
        except Exception:
            log.exception("an answer that was held is not given")
