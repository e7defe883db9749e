"""The end of a daemon by a signal, in time whatever is under way.

A thread of its own waits for the signals (sigwait). The event loop does not: a request of a mount runs on it and may
be stuck in the host's disk, and Python runs no signal handler before that system call returns.

May not know: front-ends, images.
"""

import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

#: What ends a daemon.
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: How long what is under way may take to end after a signal. What takes longer is stuck in the host.
END_S: Final = 4.0
#: How long the last flush may take after that, as umount and detach wait for it, and when the log says that it does.
FLUSH_S: Final = 60.0
NOTE_S: Final = 1.0

_log = logging.getLogger(__name__)


class EndBySignal:
    """Waits for the signal that ends a daemon."""

    def __init__(self) -> None:
        #: Whether it has come.
        self.came = False
        self._over = threading.Event()

    @contextmanager
    def watching(self, end: Callable[[], None]) -> Iterator[None]:
        """While the context lasts, the first signal calls *end* on another thread; END_S later the process leaves.

        To be entered by the main thread. *end* is thread safe and does not wait. Threads that are started in the
        context get no signals; further signals are dropped.
        """
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        thread = threading.Thread(target=self._run, args=(end,), name="signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            assert thread.ident is not None
            # Wakes this thread only.
            with suppress(ProcessLookupError):
                signal.pthread_kill(thread.ident, SIGNALS[0])
            thread.join()
            while signal.sigtimedwait(SIGNALS, 0) is not None:
                self.came = True
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _run(self, end: Callable[[], None]) -> None:
        signal.sigwait(SIGNALS)
        if self._over.is_set():
            return
        self.came = True
        end()
        if not self._over.wait(END_S):
            _leave(f"what was under way has not ended within {END_S:.0f} seconds")


@contextmanager
def bounded_flush(*, bounded: bool) -> Iterator[None]:
    """Leave the process if the context lasts longer than FLUSH_S, where *bounded*; after NOTE_S the log says so.

    Nothing that the emulator itself delays is in it: what takes long is the host's disk.
    """
    timers = (
        threading.Timer(
            NOTE_S,
            _log.warning,
            (
                "the host's disk has not taken the last flush after %g s: %s",
                NOTE_S,
                f"waiting for it, for up to {FLUSH_S:.0f} seconds",
            ),
        ),
        threading.Timer(FLUSH_S, _leave, (f"the last flush has not ended within {FLUSH_S:.0f} seconds",)),
    )
    for timer in timers:
        timer.daemon = True
        if bounded:
            timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _leave(reason: str) -> None:
    """End the process at once. As after a kill, the image has every command that was answered."""
    _log.error(
        "%s: leaving without a flush; every answered command survives this, but a power cut takes what was not flushed",
        reason,
    )
    # Shows where the threads are stuck.
    faulthandler.dump_traceback(sys.stderr.fileno())
    os._exit(1)
