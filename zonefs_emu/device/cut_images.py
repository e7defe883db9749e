"""The images of a power cut: a plan for them, and the thread that carries it out while commands go on.

All images of one moment are made from a copy of the device at that instant. As for a dump, a write first copies the
bytes that it is about to change. Writing the images with the device's lock held was rejected, because all front-ends
would wait for it; so was saving such bytes once for each image.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final
from uuid import uuid4

from zonefs_emu.device.core import DeviceCore
from zonefs_emu.device.outcomes import Cut, History
from zonefs_emu.errors import PoisonedError, host_sentence
from zonefs_emu.persist.copy import Copy, copy_image
from zonefs_emu.units import Sector

#: How often a flush that waits for its image looks whether the daemon is about to end.
_POLL_S: Final = 0.1
#: How long the end of a plan waits for its thread, which ends after the portion of data that it is copying.
_END_S: Final = 2.0


class Moment(Enum):
    """When the power is cut."""

    NOW = "now"
    AFTER_WRITES = "after-writes"  #: after *nr_writes* more writes
    EVERY_FLUSH = "every-flush"  #: at the beginning of each flush


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The images to be written: *count* of them in *directory*; one at each flush if *at* is EVERY_FLUSH.

    They are drawn from the seeds *seed*, *seed* + 1 and so on. With *every*, they are all outcomes without reordering.
    """

    directory: Path
    at: Moment
    count: int = 1
    seed: int = 0
    nr_writes: int = 1
    torn: bool = False
    reorder: bool = False
    every: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CutImage:
    """An image that was written.

    Of *nr_writes* unflushed writes *nr_kept* are there in full, and of the others *torn_sectors* together.
    """

    path: Path
    nr_writes: int
    nr_kept: int
    torn_sectors: Sector


class _GivenUpError(Exception):
    """The images are not wanted any more."""


class Instant:
    """A device at one instant: the *history* of its writes, and a copy of its data, from which images are made.

    The copy has no name in the host's file system, so that it is gone when this process is.
    """

    def __init__(self, device: DeviceCore, directory: Path, check: Callable[[], None]) -> None:
        """Prepare a copy of *device* in the file system of *directory*; *check* raises when the copy is not wanted.

        Raises:
            OSError: the host refuses or has no room.
        """
        image = device.image
        self._device = device
        self._header = image.header
        self._check = check
        path = directory / f".{uuid4().hex}.part"
        self._copy = Copy(image.backing, image.header, path)
        path.unlink()
        self.save, self.save_zones = self._copy.save, self._copy.save_zones
        self.release = self._copy.abandon

    def begin(self, history: History) -> None:
        """Make the present instant that of the copy; with the device's lock held. From now on changes are saved."""
        self.history = history
        self._copy.begin(*history.covering)

    def finish(self) -> None:
        """Copy the data.

        Raises:
            OSError: the host refuses or has no room. PoisonedError: the file of the image is lost, and data with it.
            Exception: an error of saving, or of *check*.
        """
        for _ in self._copy.run():
            self._check()
        self._check()
        self._device.require_whole()
        self._content = self._copy.content()

    def write(self, cut: Cut, path: Path) -> None:
        """Write the image that *cut* leaves to the new file *path*, from the finished copy.

        Raises:
            FileExistsError: *path* exists. OSError: the host has no room. Exception: an error of *check*.
        """
        history = self.history
        for _ in copy_image(self._content, self._header, path, history.states(cut), history.undone(cut)):
            self._check()


class PlannedCuts:
    """Images that are made as *plan* says, each at an instant that :meth:`cut` names, in a thread of their own.

    One instant is copied at a time. Its changes are passed to :meth:`save` and :meth:`save_zones`.
    """

    def __init__(self, device: DeviceCore, plan: Plan, failed: Callable[[Exception], None]) -> None:
        """Make the directory, and prepare the copy of the first instant. The thread begins with :meth:`start`.

        *failed* is called with an unforeseen exception of the thread. The end of *device* ends the plan.

        Raises:
            OSError: the directory cannot be made, or has no room.
        """
        self.plan = plan
        self.images: list[CutImage] = []
        #: The reason why the plan was dropped; empty otherwise.
        self.failure = ""
        #: Whether all images are written, or the plan was dropped.
        self.is_done = False
        self._device = device
        self._failed = failed
        # Each directory is made with an explicit mode, because the umask of a daemon removes no bits.
        for parent in reversed(plan.directory.parents):
            with suppress(FileExistsError):
                parent.mkdir(mode=0o755)
        plan.directory.mkdir(mode=0o755, exist_ok=True)
        self._next: Instant | None = self._prepare()
        self._copied: Instant | None = None
        # Set while the thread has an instant to carry out, and while it has none; both after the end.
        self._begun, self._idle = threading.Event(), threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="power cuts", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def _prepare(self) -> Instant:
        """Return an instant that has not come yet. Creating its file takes longer than the lock may be held."""
        return Instant(self._device, self.plan.directory, self._check)

    def _check(self) -> None:
        if self.is_done or self._device.is_ending:
            raise _GivenUpError

    @property
    def has_next(self) -> bool:
        """Whether the plan has a further instant, and can begin it now."""
        return self._next is not None and not self.is_done

    def cut(self, history: History) -> None:
        """Make the images of the present instant, which is the next one; with the device's lock held.

        Raises:
            OSError: the host cannot read a descriptor extension.
        """
        instant, self._next = self._next, None
        assert instant is not None
        instant.begin(history)
        self._copied = instant
        self._idle.clear()
        self._begun.set()

    def save(self, start: int, end: int) -> None:
        """Save the bytes from *start* to *end* of the device, which are about to change. Never raises."""
        if (copied := self._copied) is not None:
            copied.save(start, end)

    def save_zones(self, zone_numbers: Sequence[int]) -> None:
        """Save the bytes of zones, which are about to be freed. Never raises."""
        if (copied := self._copied) is not None:
            copied.save_zones(zone_numbers)

    def wait(self) -> None:
        """Wait until the images of the last instant are written; without the device's lock."""
        while not (self._idle.wait(_POLL_S) or self._device.is_ending):
            pass

    def end(self, failure: str = "") -> None:
        """End the plan, because of *failure* if that is given; by any thread. A second call does nothing."""
        if self.is_done:
            return
        self.failure = failure
        self.is_done = True
        self._copied = None
        self._begun.set()
        self._idle.set()

    def join(self) -> None:
        """Wait for the thread of a plan that has ended, but not for a host that blocks it."""
        self._thread.join(_END_S)

    # -- the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self.is_done:
                self._begun.wait()
                self._carry_out()
        except _GivenUpError:
            self.end()
        except OSError as error:  # of the host
            self.end(host_sentence(error))
        except PoisonedError as error:
            self.end(str(error))
        except Exception as error:  # the boundary of observers
            self._failed(error)
        finally:
            instant, self._next = self._next, None
            if instant is not None:
                instant.release()

    def _carry_out(self) -> None:
        """Write the images of the instant that is copied."""
        instant = self._copied
        self._check()
        assert instant is not None
        try:
            instant.finish()
            self._copied = None
            self._begun.clear()
            self._write_images(instant)
        finally:
            instant.release()
        if self.plan.at is not Moment.EVERY_FLUSH or len(self.images) >= self.plan.count:
            self.end()
            return
        self._next = self._prepare()
        self._idle.set()

    def _write_images(self, instant: Instant) -> None:
        plan, first, history = self.plan, len(self.images), instant.history
        count = 1 if plan.at is Moment.EVERY_FLUSH else plan.count
        cuts: Iterable[Cut]
        if plan.every:
            cuts = history.every(torn=plan.torn, at_most=count)
        else:
            seeds = range(plan.seed + first, plan.seed + first + count)
            cuts = (history.draw(seed, torn=plan.torn, reorder=plan.reorder) for seed in seeds)
        for number, cut in enumerate(cuts, first):
            path = plan.directory / f"cut-{number:04}.img"
            instant.write(cut, path)
            parts = [kept for write, kept in zip(history.writes, cut.kept, strict=True) if kept < write.nr_sectors]
            nr_kept = len(cut.kept) - len(parts)
            self.images.append(CutImage(path=path, nr_writes=len(cut.kept), nr_kept=nr_kept, torn_sectors=sum(parts)))
