"""Notifications by the eventfds of a peer, which cannot hold up the thread that writes them for long.

A write to an eventfd waits while its counter is full, and a peer can fill it. The peer also decides whether the write
waits: O_NONBLOCK belongs to the open file, which both processes have. A look at the counter before each write costs a
system call and leaves a gap in which the peer can fill it. So a thread writes without a look, and another one empties
the counter of a write that lasts. The peer loses nothing: the write that goes on then is its notification.
"""

import os
from contextlib import suppress


class PeerEventfds:
    """Writes to eventfds, by one thread; :meth:`free` belongs to another one."""

    # The descriptor that is being written to, in a tuple of this write alone; and that of the last look.
    _write: tuple[int] | None = None
    _seen: tuple[int] | None = None

    def signal(self, fd: int) -> None:
        """Add 1 to the counter of *fd*, an open descriptor.

        Raises:
            OSError: it is no eventfd, or its counter is full and it does not block.
        """
        self._write = (fd,)
        try:
            os.eventfd_write(fd, 1)
        finally:
            self._write = None

    def free(self) -> None:
        """End a write that was under way at the last call too; to be called every few seconds."""
        write, seen = self._write, self._seen
        self._seen = write
        if write is None or write is not seen:
            return
        (written,) = write
        with suppress(OSError):  # of a descriptor that is closed by now, or that another process has emptied
            fd = os.dup(written)
            try:
                # The thread that writes is the one that closes: while it still does, the number means the same file.
                if self._write is write:
                    os.set_blocking(fd, False)
                    os.eventfd_read(fd)
            finally:
                os.close(fd)
