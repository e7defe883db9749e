"""Listeners: functions of front-ends and observers that are called after changes of zones, or failures of the image.

May not know: commands, the image. A listener is an observer (:mod:`switch`): one that raises is reported and is not
called again, and the command goes on.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias
from weakref import WeakSet

from zonefs_emu.model.geometry import merge_runs

#: Called with (first zone_no, number of zones) after a change of zones is in the image, with the device's lock held. It
#: must be quick and thread safe, only note the change, and call no method of the device.
Listener: TypeAlias = Callable[[int, int], None]

#: Listeners are notified of each run of changed zones. If more zones than this changed, they are notified once, of the
#: whole range.
_RUNS_MAX: Final = 64


class Audience:
    """The listeners that are notified of the changes of one port: all but the port's own."""

    __slots__ = ("__weakref__", "listeners", "name")

    def __init__(self, name: str) -> None:
        """*name* is that of the port, for people."""
        self.name = name
        #: Replaced as a whole: another thread may be going through the old tuple.
        self.listeners: tuple[Listener, ...] = ()


class Listeners:
    """The listeners of one device. Thread safe."""

    def __init__(self, failed: Callable[[str, Exception], None]) -> None:
        """Report a listener that raises to *failed*, with its name for people."""
        self._failed = failed
        self._lock = threading.Lock()
        self._subscribed: list[tuple[Audience | None, Listener]] = []
        #: Replaced as a whole: another thread may be going through the old tuple.
        self._of_failures: tuple[Callable[[], None], ...] = ()
        # Weak references: a port may be dropped without being closed.
        self._audiences: WeakSet[Audience] = WeakSet()

    def audience(self, name: str) -> Audience:
        """Return the audience of a new port *name*."""
        audience = Audience(name)
        with self._lock:
            audience.listeners = tuple(listener for _, listener in self._subscribed)
            self._audiences.add(audience)
        return audience

    def subscribe(self, listener: Listener, own: Audience | None) -> None:
        """Call *listener* after changes by any port but that of *own*, until it raises or :meth:`unsubscribe`."""
        with self._lock:
            self._subscribed.append((own, listener))
            for audience in self._audiences:
                if audience is not own:
                    audience.listeners = (*audience.listeners, listener)

    def unsubscribe(self, listener: Listener) -> None:
        """Stop calling *listener*."""
        with self._lock:
            self._subscribed = [entry for entry in self._subscribed if entry[1] != listener]
            for audience in self._audiences:
                audience.listeners = tuple(other for other in audience.listeners if other != listener)

    def notify(self, listeners: Sequence[Listener], zone_no: int, nr_zones: int) -> None:
        """Notify *listeners* that *nr_zones* zones from *zone_no* on changed; with the lock held. Never raises."""
        for listener in listeners:
            try:
                listener(zone_no, nr_zones)
            except Exception as error:  # the boundary of observers
                owners = [own.name for own, other in self._subscribed if other == listener and own is not None]
                self.unsubscribe(listener)
                self._failed(f"the zone listener of {owners[0] if owners else 'the device'}", error)

    def notify_of(self, listeners: Sequence[Listener], zone_numbers: Sequence[int]) -> None:
        """Notify *listeners* that *zone_numbers* (at least one) have changed, as :meth:`notify` does."""
        if len(zone_numbers) > _RUNS_MAX:
            first = min(zone_numbers)
            self.notify(listeners, first, max(zone_numbers) + 1 - first)
        else:
            for first, count in merge_runs([(zone_no, 1) for zone_no in zone_numbers]):
                self.notify(listeners, first, count)

    def notify_all(self, nr_zones: int) -> None:
        """Notify every listener that all *nr_zones* zones may have changed, as :meth:`notify` does."""
        self.notify([listener for _, listener in self._subscribed], 0, nr_zones)

    # -- failures ---------------------------------------------------------------------------------------------

    def subscribe_failure(self, listener: Callable[[], None]) -> None:
        """Call *listener* when the image begins to refuse changes, until it raises or :meth:`unsubscribe_failure`.

        It is called by any thread with any lock held: it must be quick, take no lock, and only note the failure.
        """
        with self._lock:
            self._of_failures = (*self._of_failures, listener)

    def unsubscribe_failure(self, listener: Callable[[], None]) -> None:
        """Stop calling *listener*."""
        with self._lock:
            self._of_failures = tuple(other for other in self._of_failures if other != listener)

    def notify_failure(self) -> None:
        """Notify the listeners that the image refuses changes from now on. Never raises."""
        for listener in self._of_failures:
            try:
                listener()
            except Exception as error:  # the boundary of observers
                self.unsubscribe_failure(listener)
                self._failed("a listener for failures of the image", error)
