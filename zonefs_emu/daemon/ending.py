"""The end of a daemon by a signal, within a bounded time.

A separate thread waits for the signals (sigwait). Handlers on the event loop's thread would not do: a request of a
mount may block there in a system call on the host's disk, and Python runs no handler before that call returns.

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
from typing import Final, Self

#: The signals that end a daemon.
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: How long tasks may take to end after a signal. A task that takes longer is blocked by the host.
END_S: Final = 4.0
#: How long the last flush may take after that. The verbs umount and detach wait as long.
FLUSH_S: Final = 60.0
#: After how long a last flush that is not over is noted in the log.
NOTE_S: Final = 1.0
_FLUSH_LASTS: Final = "the last flush has not ended within {:.0f} seconds"

_log = logging.getLogger(__name__)


class EndBySignal:
    """A context that waits for the signal that ends a daemon; :meth:`watching` begins that, in the same thread.

    From then on until the context is left, no signal interrupts anything: neither the last flush, which an exception of
    a handler would cut off, nor what is removed after it.
    """

    def __init__(self) -> None:
        #: Whether the signal has come.
        self.came = False
        self._over = threading.Event()
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        self._mask: set[int] = set()

    def __enter__(self) -> Self:
        """Do nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Drop the signals that have come, and have later ones handled as before :meth:`watching`."""
        self._left.set()
        thread = self._thread
        if thread is None:
            return
        if thread.ident is not None:
            # Wakes this thread only.
            with suppress(ProcessLookupError):
                signal.pthread_kill(thread.ident, SIGNALS[0])
            thread.join()
        while signal.sigtimedwait(SIGNALS, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    @contextmanager
    def watching(self, end: Callable[[], None]) -> Iterator[None]:
        """Call *end* on another thread at the first signal; if the context lasts END_S longer, exit the process.

        To be entered by the main thread. *end* is thread safe and does not wait. Threads that are started from now on
        receive no signals; further signals are dropped. A signal that comes after this context, during the last flush
        of a session that ended by itself, gives that flush FLUSH_S seconds to end.
        """
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._thread = threading.Thread(target=self._run, args=(end,), name="signals", daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()

    def _run(self, end: Callable[[], None]) -> None:
        signal.sigwait(SIGNALS)
        if self._left.is_set():
            return
        self.came = True
        if self._over.is_set():
            if not self._left.wait(FLUSH_S):
                _leave(_FLUSH_LASTS.format(FLUSH_S))
            return
        end()
        if not self._over.wait(END_S):
            _leave(f"what was under way has not ended within {END_S:.0f} seconds")


@contextmanager
def bounded_flush(*, bounded: bool) -> Iterator[None]:
    """Exit the process if the context lasts longer than FLUSH_S and *bounded* is set; log a note after NOTE_S.

    The emulator itself delays nothing in the context, so only the host's disk can make it long.
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
        threading.Timer(FLUSH_S, _leave, (_FLUSH_LASTS.format(FLUSH_S),)),
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
    """Exit the process at once. The image then has every answered command, as after a kill."""
    _log.error(
        "%s: the process ends without a flush; every answered command survives this, but a power cut "
        "loses what was not flushed",
        reason,
    )
    # Shows where the threads are stuck.
    faulthandler.dump_traceback(sys.stderr.fileno())
    os._exit(1)
