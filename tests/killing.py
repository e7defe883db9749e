"""Killing a process at an instant: one store into memory that outlives it, or one system call that moves data.

A killed process is one whose stores end somewhere. A test counts the instants of an undisturbed run, and then repeats
the run once per instant, each time without that instant and what would follow it.
"""

from typing import Any

from zonefs_emu.device.device import ZonedDevice


class Killed(BaseException):
    """The process ends here."""


class Clock:
    """Counts instants; the one of number *fatal* never happens."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.now = 0

    def tick(self) -> None:
        if self.now == self.fatal:
            raise Killed
        self.now += 1


class Mortal:
    """Memory that outlives the process: each store is an instant, also into parts of it."""

    def __init__(self, memory: Any, clock: Clock) -> None:
        self._memory = memory
        self._clock = clock

    def __getitem__(self, index: Any) -> Any:
        found = self._memory[index]
        return Mortal(found, self._clock) if isinstance(found, memoryview) else found

    def __setitem__(self, index: Any, value: Any) -> None:
        self._clock.tick()
        self._memory[index] = value

    def __len__(self) -> int:
        return len(self._memory)

    def __bytes__(self) -> bytes:
        return bytes(self._memory)

    def cast(self, code: str) -> "Mortal":
        return Mortal(self._memory.cast(code), self._clock)

    def release(self) -> None:
        self._memory.release()


def make_mortal(device: ZonedDevice, clock: Clock) -> None:
    """Make an instant of each write to the image of *device* and of each store into its live table."""
    real_pwritev = device.image.backing.pwritev

    def pwritev(buffers: Any, offset: int) -> int:
        clock.tick()  # killed before anything was written ...
        if clock.now == clock.fatal:
            real_pwritev([memoryview(b"".join(buffers))[:512]], offset)  # ... or when a part was
        done = real_pwritev(buffers, offset)
        clock.tick()
        return done

    device.access.pwritev = pwritev
    device.image._live = Mortal(device.image._live, clock)  # type: ignore[assignment]


def close_as_killed(device: ZonedDevice, clock: Clock) -> None:
    """Do what the kernel does with a dead process: the files are closed, nothing is flushed."""
    clock.fatal = -1
    device.image._live = memoryview(b"")
    device.image.backing.close()
