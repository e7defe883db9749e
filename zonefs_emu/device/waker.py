"""How threads wake a loop that sleeps in poll(2), epoll(7) or io_uring.

May not know: commands, front-ends, and what the loop does.
"""

import os
import threading


class Waker:
    """An eventfd that wakes a loop, from any thread, also after it was closed.

    An alarm may come after the loop has ended. It keeps a reference to this object only, so the rest can be freed.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        #: Keeps :meth:`wake` from writing to a descriptor that is closed, and another file's by then.
        self._waking = threading.Lock()
        self._is_closed = False

    def wake(self) -> None:
        """Make the descriptor readable, unless it is closed; from any thread."""
        with self._waking:
            if not self._is_closed:
                os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """Close the descriptor."""
        with self._waking:
            self._is_closed = True
            os.close(self.fd)
