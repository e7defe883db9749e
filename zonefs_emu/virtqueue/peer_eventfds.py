"""Notifications by the eventfds of a peer, which cannot hold up the thread that writes them for long.

A write to an eventfd waits while its counter is full, and a peer can fill it. The peer also decides whether the write
waits: O_NONBLOCK belongs to the open file, which both processes have. A look at the counter before each write costs a
system call and leaves a gap in which the peer can fill it. So a thread writes without a look, and another one empties
the counter of a write that lasts. The peer loses nothing: the write that goes on then is its notification.

Only eventfds are accepted, because only the peer could end a write to its full pipe or to a file that it serves.
"""

import os
import stat
from contextlib import suppress
from typing import Final

_COUNTER_BYTES: Final = 8


def is_eventfd(fd: int) -> bool:
    """Return whether a write to *fd* can be ended here, as one to an eventfd can.

    Files without a name have no type, and of those, only eventfds let a write wait. The link in /proc names the kind of
    file exactly, but /proc need not be there.
    """
    return not stat.S_IFMT(os.fstat(fd).st_mode)


class PeerEventfds:
    """Writes to eventfds, by one thread; :meth:`free` belongs to another one."""

    # The descriptor that is being written to, in a tuple of this write alone; and that of the last look.
    _write: tuple[int] | None = None
    _seen: tuple[int] | None = None

    def signal(self, fd: int) -> None:
        """Add 1 to the counter of *fd*, an open descriptor of which :func:`is_eventfd` is true.

        Raises:
            OSError: it takes no notifications, or its counter is full and it does not block.
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
                    # RWF_NOWAIT and not O_NONBLOCK, which the peer can undo before the read. A stream has the offset
                    # -1.
                    os.preadv(fd, (bytearray(_COUNTER_BYTES),), -1, os.RWF_NOWAIT)
            finally:
                os.close(fd)
