"""Notifications by the eventfds of a peer, which cannot hold up the thread that writes them for long.

A write to an eventfd waits while its counter is full, and a peer can fill it. The peer also decides whether the write
waits: O_NONBLOCK belongs to the open file, which both processes have. A look at the counter before each write costs a
system call and leaves a gap in which the peer can fill it. So a thread writes without a look, and another one empties
the counter if a write lasts. The peer loses no notification: the write that goes on then is one.

Only eventfds are accepted, because a write to a full pipe, or to a file that the peer serves, could be ended by the
peer alone.
"""

import os
import stat
from contextlib import suppress
from typing import Final

_COUNTER_BYTES: Final = 8


def is_eventfd(fd: int) -> bool:
    """Return whether *fd* may be an eventfd: it has no file type, as all anonymous files of the kernel.

    Of these files, only eventfds let a write wait, so the others do no harm. The link in /proc names the kind of file
    exactly, but /proc need not be mounted.
    """
    return not stat.S_IFMT(os.fstat(fd).st_mode)


class PeerEventfds:
    """Writes to eventfds by one thread. Another thread calls :meth:`free`."""

    # The descriptor that is being written to, in a tuple that is made for this write; and the tuple that the last call
    # of free() found.
    _write: tuple[int] | None = None
    _seen: tuple[int] | None = None

    def signal(self, fd: int) -> None:
        """Add 1 to the counter of *fd*, an open descriptor of which :func:`is_eventfd` is true.

        Raises:
            OSError: *fd* takes no notifications, or its counter is full and a write to it does not wait.
        """
        self._write = (fd,)
        try:
            os.eventfd_write(fd, 1)
        finally:
            self._write = None

    def free(self) -> None:
        """End a write that was already under way at the last call. To be called every few seconds."""
        write, seen = self._write, self._seen
        self._seen = write
        if write is None or write is not seen:
            return
        (written,) = write
        with suppress(OSError):  # of a descriptor that is closed by now, or that another process has emptied
            fd = os.dup(written)
            try:
                # The thread that writes is also the one that closes descriptors. While this write is under way, the
                # number still belongs to the same file.
                if self._write is write:
                    # RWF_NOWAIT, because the peer could clear O_NONBLOCK before the read. A stream has the offset -1.
                    os.preadv(fd, (bytearray(_COUNTER_BYTES),), -1, os.RWF_NOWAIT)
            finally:
                os.close(fd)
