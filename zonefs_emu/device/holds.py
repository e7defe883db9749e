"""Holds: zones that a command keeps to itself while it does not have the device's lock.

No command has the lock for longer than some milliseconds. A longer command (a long write, a command on a million zones)
is checked under the lock and takes a hold on its zones (:meth:`Holds.take`). Then it goes on in portions, or moves its
bytes without the lock, inside :meth:`Holds.kept`. Another command that needs one of these zones waits until the hold is
released, and is checked then. So a long command is as atomic for other commands as a short one. Reads and reports need
no hold; they see a long command half done.

A command that has a hold waits for no other hold, and a flush takes none, so there is no deadlock.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

#: [first, end): the zones of one command; *first* grows while those before it are done.
Hold: TypeAlias = list[int]


class Holds:
    """The holds on the zones of one device.

    All methods but :meth:`kept` are called with the device's lock held. Waiting releases the lock.
    """

    def __init__(self, lock: threading.Lock) -> None:
        """*lock* is the device's."""
        self._lock = lock
        self._changed = threading.Condition(lock)
        #: All holds, by identity; no two overlap. It is empty unless a long command is under way, and writes check only
        #: that.
        self.held: Final[dict[int, Hold]] = {}
        #: The holds of long writes. The machine leaves their zones open.
        self.writing: Final[dict[int, Hold]] = {}

    def wait(self, first: int, end: int) -> None:
        """Wait until no command holds a zone from *first* to before *end*."""
        while any(start < end and first < stop for start, stop in self.held.values()):
            self._changed.wait()

    def wait_for_change(self) -> None:
        """Wait until a hold is released; a resource that it kept may be free then."""
        self._changed.wait()

    def take(self, first: int, end: int, *, writing: bool = False) -> Hold:
        """Hold the zones from *first* to before *end*, which the caller has waited for; then enter :meth:`kept`."""
        hold = [first, end]
        self.held[id(hold)] = hold
        if writing:
            self.writing[id(hold)] = hold
        return hold

    @contextmanager
    def kept(self, hold: Hold | None) -> Iterator[None]:
        """Keep *hold* in the context, and release it at the end, after an exception too; without the lock.

        None is for a command that needs no hold.
        """
        try:
            yield
        finally:
            if hold is not None:
                with self._lock:
                    self.give_back(hold)

    def advance(self, hold: Hold, first: int) -> None:
        """Release the zones before *first*."""
        hold[0] = first
        self._changed.notify_all()

    def give_back(self, hold: Hold) -> None:
        """Release all zones of *hold*; a second call does nothing.

        This runs after every error and must not raise one itself, so it calls no function of this package.
        """
        self.held.pop(id(hold), None)
        self.writing.pop(id(hold), None)
        self._changed.notify_all()
