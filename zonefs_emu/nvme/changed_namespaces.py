"""The namespaces that hosts see differently than before, for events and the Changed Namespace List.

A drive has the same namespaces, of the same shape, from its start to its end. What changes is whether a namespace can
be written to: its image refuses changes after the host of the image has failed to write or to sync it, or if its file
is lost, until a daemon opens it again. Identify Namespace then says "write protected" (NSATTR), by which Linux makes
its block device read-only.

Source: NVM Express Base Specification 2.0, "Asynchronous Event Request command" (Namespace Attribute Changed), "Changed
Namespace List".
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.nvme import logs

_RELIABILITY_DEGRADED: Final = 1 << 2
_MEDIA_READ_ONLY: Final = 1 << 3


class ChangedNamespaces:
    """The changed namespaces among *devices*, by their numbers, for one controller.

    *on_change* is called from any thread, perhaps with the device's lock held. All methods are called by one thread.
    """

    def __init__(self, devices: Mapping[int, ZonedDevice], on_change: Callable[[], None]) -> None:
        """Count the present states as known to the host."""
        self._devices = devices
        self._on_change = on_change
        self._known = self._protected()
        self._unread: set[int] = set()
        for device in devices.values():
            device.listeners.subscribe_failure(on_change)

    def close(self) -> None:
        """End the observation of the namespaces."""
        for device in self._devices.values():
            device.listeners.unsubscribe_failure(self._on_change)

    def known(self) -> list[int]:
        """Return the write protected namespaces that the host knows as such, for :meth:`restore`."""
        return sorted(self._known)

    def restore(self, known: Iterable[int]) -> None:
        """Continue for a host that knows the namespaces *known* as write protected; other images may be now."""
        self._known = frozenset(known)

    def look(self) -> bool:
        """Compare the namespaces with their states at the last call; True if some are seen differently since."""
        before, self._known = self._known, self._protected()
        news = before ^ self._known
        self._unread |= news
        return bool(news)

    def page(self, *, retain: bool) -> bytes:
        """Return the Changed Namespace List, and begin a new one unless *retain*."""
        found = logs.changed_namespaces(self._unread)
        if not retain:
            self._unread.clear()
        return found

    def _protected(self) -> frozenset[int]:
        return frozenset(nsid for nsid, device in self._devices.items() if is_protected(device))


def is_protected(device: ZonedDevice) -> bool:
    """Whether *device* is a write protected namespace, because its image refuses changes."""
    return device.image.poison is not None


def critical_warning(devices: Iterable[ZonedDevice]) -> int:
    """Return the critical warning of a drive of *devices*, for the logs of health.

    It is degraded if one of them has failed, and read-only if all have. One that was opened for reading has not failed.

    Source: NVM Express Base Specification 2.0, "SMART / Health Information", Critical Warning.
    """
    failed = [is_protected(device) and not device.image.readonly for device in devices]
    return any(failed) * _RELIABILITY_DEGRADED | all(failed) * _MEDIA_READ_ONLY
