"""The guest that tests share: booting takes seconds, and most tests leave it as they found it."""

from tools.guest.kit import find_kit
from tools.guest.machine import Guest


class GuestKeeper:
    """Boots a guest when one is asked for and keeps it for the next test, unless a test has left something behind."""

    def __init__(self) -> None:
        self._guest: Guest | None = None

    def get(self) -> Guest:
        """A guest in which nothing runs, nothing is mounted and no disk is attached."""
        if self._guest is None:
            kit = find_kit()
            assert kit is not None, "requires('qemu') comes first"
            self._guest = Guest(kit)
        return self._guest

    def give_back(self) -> None:
        """End the guest if the next test would find traces in it."""
        if self._guest is not None and not self._guest.is_pristine():
            self.close()

    def close(self) -> None:
        """End the guest."""
        if self._guest is not None:
            self._guest.close()
            self._guest = None
