"""The setting of a suite: a guest, a disk in it, and the place of the suite's files."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from tools.conformance.devices import Device
from tools.guest.machine import Guest, GuestTimeoutError
from tools.guest.newer_kernel import NewerKernelKit


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One run of a suite on a disk; paths are the same on this machine and in the guest."""

    guest: Guest
    device: Device
    source: Path
    """The suite's files."""
    programs: Path | None = None
    """Programs that the kit lacks; first in the guest's PATH."""
    newer: NewerKernelKit | None = None
    """The kit of the guest, if its kernel is the newer one."""
    suites: Path | None = None
    """The directory with all checkouts, for programs of other suites."""

    def sh(self, script: str, *, timeout: float) -> str:
        """Run *script* in the guest and return what it printed, also if it fails or takes more than *timeout* seconds.

        What a script writes beside the suite's files is lost with the guest: they lie below a volatile layer.
        """
        path = "" if self.programs is None else f"export PATH={shlex.quote(str(self.programs))}:$PATH\n"
        job = self.guest.start(f"set +e\nexport TERM=linux\n{path}{script}")
        try:
            job.wait(timeout, check=False)
        except GuestTimeoutError:
            return job.stdout + f"\nnot ended after {timeout:g} s\n"
        return job.stdout

    def checkout(self, name: str, path: str) -> Path | None:
        """Return the file *path* of the checkout *name*, or None without it."""
        found = None if self.suites is None else self.suites.resolve() / name / path
        return found if found is not None and found.exists() else None
