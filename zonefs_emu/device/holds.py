"""Zones that a command keeps to itself while it lets go of the device's lock.

No command has the lock for longer than some milliseconds. One that needs longer (a long write, a command on a million
zones) is checked under the lock, takes a hold on its zones, and goes on in portions, or moves its bytes without the
lock. A command that wants one of these zones meanwhile waits until the hold is given back, and is judged then. So a
long command is as atomic for other commands as a short one; those that only look (reads, reports) see it under way.

A command that has a hold waits for nothing that another command has, and a flush never asks for one: there is no
deadlock.
"""

import threading
from typing import TypeAlias

#: [first, end): the zones of one command; *first* grows while those before it are done.
Hold: TypeAlias = list[int]


class Holds:
    """The holds on the zones of one device. Its methods are called with the device's lock held; waiting lets it go."""

    def __init__(self, lock: threading.Lock) -> None:
        """*lock* is the device's."""
        self._changed = threading.Condition(lock)
        #: All holds, by identity, of which no two overlap. Empty but while something long is under way: the write path
        #: looks at no more than that.
        self.held: dict[int, Hold] = {}
        #: Those of long writes. The machine leaves their zones open.
        self.writing: dict[int, Hold] = {}

    def wait(self, first: int, end: int) -> None:
        """Wait until no command holds a zone from *first* to before *end*."""
        while any(start < end and first < stop for start, stop in self.held.values()):
            self._changed.wait()

    def wait_for_change(self) -> None:
        """Wait until a hold is given back: a resource that it keeps may be free then."""
        self._changed.wait()

    def take(self, first: int, end: int, *, writing: bool = False) -> Hold:
        """Hold the zones from *first* to before *end*, which the caller has waited for."""
        hold = [first, end]
        self.held[id(hold)] = hold
        if writing:
            self.writing[id(hold)] = hold
        return hold

    def advance(self, hold: Hold, first: int) -> None:
        """Give the zones before *first* back."""
        hold[0] = first
        self._changed.notify_all()

    def give_back(self, hold: Hold) -> None:
        """Give all zones of *hold* back; a second time does nothing.

        Called after every error, so it must not meet one itself: no function of ours is called here.
        """
        self.held.pop(id(hold), None)
        self.writing.pop(id(hold), None)
        self._changed.notify_all()
