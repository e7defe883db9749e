"""Zones that a command keeps to itself while it lets go of the device's lock.

No command has the lock for longer than some milliseconds. A longer command (a long write, a command on a million zones)
is checked under the lock, takes a hold on its zones (:meth:`Holds.take`), and then goes on in portions, or moves its
bytes without the lock, inside :meth:`Holds.kept`. Another command that needs one of these zones waits until the hold is
given back, and is judged then. So a long command is as atomic for other commands as a short one. Reads and reports ask
for no hold; they see a long command under way.

A command that has a hold waits for no other hold, and a flush never asks for one, so there is no deadlock.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

#: [first, end): the zones of one command; *first* grows while those before it are done.
Hold: TypeAlias = list[int]


class Holds:
    """The holds on the zones of one device.

    All methods but :meth:`kept` are called with the device's lock held; waiting lets it go.
    """

    def __init__(self, lock: threading.Lock) -> None:
        """*lock* is the device's."""
        self._lock = lock
        self._changed = threading.Condition(lock)
        #: All holds, by identity; no two overlap. Empty unless a long command is under way: the write path only looks
        #: whether it is.
        self.held: Final[dict[int, Hold]] = {}
        #: The holds of long writes. The machine leaves their zones open.
        self.writing: Final[dict[int, Hold]] = {}

    def wait(self, first: int, end: int) -> None:
        """Wait until no command holds a zone from *first* to before *end*."""
        while any(start < end and first < stop for start, stop in self.held.values()):
            self._changed.wait()

    def wait_for_change(self) -> None:
        """Wait until a hold is given back: a resource that it keeps may be free then."""
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
        """Keep *hold* in the context, and give it back at its end, also after an exception; without the lock.

        None is for a command that turned out to be short.
        """
        try:
            yield
        finally:
            if hold is not None:
                with self._lock:
                    self.give_back(hold)

    def advance(self, hold: Hold, first: int) -> None:
        """Give the zones before *first* back."""
        hold[0] = first
        self._changed.notify_all()

    def give_back(self, hold: Hold) -> None:
        """Give all zones of *hold* back; a second time does nothing.

        This runs after every error and must not raise one itself, so it calls no function of this package.
        """
        self.held.pop(id(hold), None)
        self.writing.pop(id(hold), None)
        self._changed.notify_all()
