"""The power-cut lab: the images that a cut of the power could have left.

The model is a drive with a volatile write cache:

* Flushed data is there.
* Writes since the last flush reached the medium in order: all before some moment, and none after it. With *reorder*,
  each sequential zone has a moment of its own, and each write to a conventional zone is kept or lost independently.
* With *torn*, the write at that moment may be there in part, in whole logical blocks.
* A zone that was reset, finished or failed since the last flush is as before that or as after it.
* A zone random write area takes writes as a conventional zone does. A write pointer that moved since the last flush
  in such a zone is where it was then, or, if all writes to the zone are there, where it is now.
* A write pointer never lies beyond data that is there, and open zones come back closed, or empty.

The lab notes each write from its creation on, with the former content of conventional zones. That costs time and
memory, so a device has a lab only on request.

The lab is an observer: it counts a write after the zone's state is in the image, and an error of the lab switches it
off and changes no answer. Only the former content of a conventional zone is read before the write.
"""

import random
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from itertools import islice, product
from pathlib import Path
from typing import Final

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.switch import Switch
from zonefs_emu.errors import UsageError
from zonefs_emu.model.transitions import after_power_cycle
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, Attribute, Condition
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.codec.words import ZoneStates
from zonefs_emu.persist.copy import copy_image
from zonefs_emu.persist.image import Stage
from zonefs_emu.persist.metadata import read_zones
from zonefs_emu.units import SECTOR_SHIFT, Sector, to_bytes

_NAME: Final = "the power-cut lab"
_FAILED: Final = frozenset((Condition.READONLY, Condition.OFFLINE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One write since the last flush.

    *before*: the former content, in a conventional zone or one with a zone random write area; empty for other zones.
    """

    zone_no: int
    sector: Sector
    nr_sectors: int
    before: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One outcome: how many sectors of each noted write are there, and which changes of zones are."""

    kept: tuple[int, ...]
    changed: tuple[bool, ...]


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


class PowerCutLab:
    """Watches *device* and writes images that a power cut could leave of it.

    Unflushed writes from before its creation count as one write for each zone, because their ends are not known.
    Earlier writes to conventional zones count as flushed.
    """

    def __init__(self, device: ZonedDevice) -> None:
        """Begin to watch.

        Raises:
            ImageError: the last checkpoint cannot be read.
        """
        self._device = device
        self._image = device.image
        self._writes: list[Write] = []
        # The write of the command under way, until the zone's state is in the image.
        self._pending: Write | None = None
        self._switch = Switch(_NAME)
        self._switch.report_to(device.unforeseen.observer_failed)
        self._flushing = 0
        self._baseline = ZoneStates(bytearray(), array("Q"), bytearray())
        self._next_baseline = self._baseline
        self._plan: Plan | None = None
        self.images: list[CutImage] = []
        #: The reason why the plan was dropped or the lab is off; empty otherwise.
        self.failure = ""
        #: Writes seen since the plan began.
        self.nr_seen = 0
        with self._image.between_checkpoints():
            self._baseline = read_zones(self._image.backing, self._image.header)
            device.subscribe(self._published)
            device.add_write_hook(self._look, observer=_NAME, failed=self._fail, begin=self._begin_watching)

    def _begin_watching(self) -> None:
        """Begin to watch, between two writes; called with the device's lock held."""
        self._writes = list(self._earlier_writes())
        self._image.checkpoint_listener = self._hear_checkpoint

    def close(self) -> None:
        """Stop watching."""
        self._image.checkpoint_listener = None
        self._device.unsubscribe(self._published)
        self._device.remove_write_hook(self._look)

    def _fail(self, error: Exception) -> None:
        """Switch the lab off because of *error*: its notes are not complete."""
        self.failure = f"the power-cut lab failed: {type(error).__name__}: {error}"
        self._plan = None
        self._writes.clear()
        self._pending = None
        self._switch.put_off(error)

    def _require_on(self) -> None:
        if self._switch.error is not None:
            raise UsageError(self.failure, exit_code=1)

    def _earlier_writes(self) -> Iterator[Write]:
        conds, wps, _ = self._baseline
        for zone_no in self._changed_zones():
            nr_sectors = self._image.wps[zone_no] - wps[zone_no]
            if nr_sectors > 0 and conds[zone_no] not in _FAILED:
                sector = self._device.geometry.zone_start(zone_no) + wps[zone_no]
                yield Write(zone_no=zone_no, sector=sector, nr_sectors=nr_sectors, before=b"")

    # -- the plan ---------------------------------------------------------------------------------------------

    def begin(self, plan: Plan) -> None:
        """Carry *plan* out: at once, or when its moment comes.

        Raises:
            UsageError: the lab is off. OSError: the directory cannot be made, or an image cannot be written now.
        """
        self._require_on()
        # Each directory is made with an explicit mode, because the umask of a daemon removes no bits.
        for parent in reversed(plan.directory.parents):
            with suppress(FileExistsError):
                parent.mkdir(mode=0o755)
        plan.directory.mkdir(mode=0o755, exist_ok=True)
        with self._device.lock:
            self._plan, self.images, self.failure, self.nr_seen = plan, [], "", 0
            if plan.at is Moment.NOW:
                self._write_planned(plan, plan.count)

    def give_up(self) -> None:
        """Drop the plan, and go on watching."""
        with self._device.lock:
            self._plan = None

    @property
    def is_done(self) -> bool:
        """Whether all planned images are written."""
        return self._plan is None

    def _moment_has_come(self, plan: Plan, count: int) -> None:
        """Write images in the middle of a front-end's command; an error of the host ends the plan, not the lab."""
        try:
            self._write_planned(plan, count)
        except OSError as error:
            self.failure = f"{plan.directory}: {error.strerror}"
            self._plan = None

    def _write_planned(self, plan: Plan, count: int) -> None:
        """Write up to *count* images; with the lock held."""
        first = len(self.images)
        cuts: Iterable[Cut]
        if plan.every:
            cuts = self.every(torn=plan.torn, at_most=count)
        else:
            seeds = range(plan.seed + first, plan.seed + first + count)
            cuts = (self.draw(seed, torn=plan.torn, reorder=plan.reorder) for seed in seeds)
        for number, cut in enumerate(cuts, first):
            path = plan.directory / f"cut-{number:04}.img"
            self._write_locked(cut, path)
            parts = [kept for write, kept in zip(self._writes, cut.kept, strict=True) if kept < write.nr_sectors]
            nr_kept = len(cut.kept) - len(parts)
            self.images.append(CutImage(path=path, nr_writes=len(cut.kept), nr_kept=nr_kept, torn_sectors=sum(parts)))
        if plan.at is not Moment.EVERY_FLUSH or len(self.images) >= plan.count:
            self._plan = None

    # -- watching ---------------------------------------------------------------------------------------------

    def _look(self, offset: int, nr_bytes: int) -> None:
        """Note a write that is about to happen, with the bytes that it will overwrite; with the device's lock held."""
        sector, nr_sectors = offset >> SECTOR_SHIFT, nr_bytes >> SECTOR_SHIFT
        pending = self._pending
        if pending is not None and sector + nr_sectors == pending.sector + pending.nr_sectors:
            return  # the rest of a write of which the host has written a part
        self._note_pending()
        zone_no = self._device.geometry.zone_no(sector)
        before = b""
        if self._device.geometry.is_conventional(zone_no) or self._image.attributes[zone_no] & Attribute.ZRWA:
            before = self._image.backing.pread(nr_bytes, offset)
        self._pending = Write(zone_no=zone_no, sector=sector, nr_sectors=nr_sectors, before=before)

    def _published(self, _zone_no: int, _nr_zones: int) -> None:
        """Count the write whose zone is now changed in the image; with the device's lock held."""
        try:
            if self._note_pending():
                plan = self._plan
                if plan is not None and plan.at is Moment.AFTER_WRITES and self.nr_seen >= plan.nr_writes:
                    self._moment_has_come(plan, plan.count)
        except Exception as error:  # the boundary of observers
            self._fail(error)

    def _note_pending(self) -> bool:
        """Count the last noted write if it has happened; return whether it has.

        A write that the host failed does not count, except in a conventional zone, of which it may have changed a part.
        """
        write, self._pending = self._pending, None
        if write is None:
            return False
        end = write.sector + write.nr_sectors - self._device.geometry.zone_start(write.zone_no)
        if not write.before and self._image.wps[write.zone_no] < end:
            return False
        self._writes.append(write)
        self.nr_seen += 1
        return True

    def _hear_checkpoint(self, stage: Stage) -> None:
        """Note a flush; with the device's lock held."""
        try:
            if self._switch.error is None:
                self._checkpoint(stage)
        except Exception as error:  # the boundary of observers
            self._fail(error)

    def _checkpoint(self, stage: Stage) -> None:
        if stage is Stage.BEGUN:
            self._note_pending()
            plan = self._plan
            if plan is not None and plan.at is Moment.EVERY_FLUSH:
                self._moment_has_come(plan, 1)
            self._flushing = len(self._writes)
            image = self._image
            self._next_baseline = ZoneStates(bytearray(image.conds), image.wps[:], bytearray(image.attributes))
        else:
            del self._writes[: self._flushing]
            self._baseline = self._next_baseline

    # -- outcomes ---------------------------------------------------------------------------------------------

    def _changed_zones(self) -> list[int]:
        """Return the zones whose states differ from the last checkpoint's."""
        if self._baseline == self._image.states:
            return []
        changed = enumerate(zip(zip(*self._baseline, strict=True), zip(*self._image.states, strict=True), strict=True))
        return [zone_no for zone_no, (before, now) in changed if before != now]

    def draw(self, seed: int, *, torn: bool = False, reorder: bool = False) -> Cut:
        """Return one outcome; the same *seed* and history give the same one."""
        generator = random.Random(seed)
        writes = self._writes
        block = self._device.geometry.block_sectors
        changed = tuple(generator.random() < 0.5 for _ in self._changed_zones())

        def part(write: Write) -> int:
            return generator.randrange(0, write.nr_sectors, block) if torn else 0

        kept = [write.nr_sectors for write in writes]
        if not reorder:
            moment = generator.randint(0, len(writes))
            for index in range(moment, len(writes)):
                kept[index] = part(writes[index]) if index == moment else 0
            return Cut(kept=tuple(kept), changed=changed)
        by_zone: dict[int, list[int]] = {}
        for index, write in enumerate(writes):
            if write.before:
                kept[index] = generator.choice((0, part(write), write.nr_sectors))
            else:
                by_zone.setdefault(write.zone_no, []).append(index)
        for indices in by_zone.values():
            moment = generator.randint(0, len(indices))
            for place, index in enumerate(indices[moment:]):
                kept[index] = part(writes[index]) if place == 0 else 0
        return Cut(kept=tuple(kept), changed=changed)

    def every(self, *, torn: bool = False, at_most: int = 1000) -> Iterator[Cut]:
        """Yield up to *at_most* outcomes without reordering, in order: each moment, with each zone changed or not.

        If there are too many changed zones, those that changed last are varied first.
        """
        writes = self._writes
        block = self._device.geometry.block_sectors
        nr_changed = len(self._changed_zones())

        def moments() -> Iterator[tuple[int, ...]]:
            whole = tuple(write.nr_sectors for write in writes)
            for moment in range(len(writes) + 1):
                rest = (0,) * (len(writes) - moment)
                yield whole[:moment] + rest
                if torn and moment < len(writes):
                    for part in range(block, writes[moment].nr_sectors, block):
                        yield (*whole[:moment], part, *rest[1:])

        outcomes = (
            Cut(kept=kept, changed=changed)
            for kept, changed in product(moments(), product((True, False), repeat=nr_changed))
        )
        yield from islice(outcomes, at_most)

    # -- images -----------------------------------------------------------------------------------------------

    def write(self, cut: Cut, path: Path) -> None:
        """Write the image that *cut* leaves to the new file *path*, with the device's lock held.

        Counters and injected faults are not part of it.

        Raises:
            FileExistsError: *path* exists.
            OSError: the host has no room.
        """
        with self._device.lock:
            self._write_locked(cut, path)

    def _write_locked(self, cut: Cut, path: Path) -> None:
        # From the open file, because the image may have another name by now, and another file its name.
        copy_image(self._image.backing, self._image.header, path, self._states(cut))
        backing = FileBacking.open(path)
        try:
            self._lose(cut, backing)
            backing.sync()
        finally:
            backing.close()

    def _lose(self, cut: Cut, backing: FileBacking) -> None:
        """Undo the writes to conventional zones in *backing* that *cut* loses; other zones are not copied beyond wp.

        They are undone from the newest to the oldest, so that of overlapping lost writes the content before the oldest
        one remains, and a write that was kept hides an older one that was lost.
        """
        hidden: set[Sector] = set()
        for write, kept in reversed(list(zip(self._writes, cut.kept, strict=True))):
            if not write.before:
                continue
            for index in range(kept, write.nr_sectors):
                sector = write.sector + index
                if sector not in hidden:
                    backing.pwrite(write.before[to_bytes(index) : to_bytes(index + 1)], to_bytes(sector))
            hidden.update(range(write.sector, write.sector + kept))

    def _states(self, cut: Cut) -> ZoneStates:
        """Return the zone states that *cut* leaves."""
        image, geometry = self._image, self._device.geometry
        conds, wps, attributes = bytearray(self._baseline[0]), self._baseline[1][:], bytearray(self._baseline[2])
        for write, kept in zip(self._writes, cut.kept, strict=True):
            if write.before or not kept:
                continue
            zone_no = write.zone_no
            wps[zone_no] = write.sector + kept - geometry.zone_start(zone_no)
            full = wps[zone_no] == geometry.zone_cap(zone_no)
            conds[zone_no] = Condition.FULL if full else Condition.CLOSED
        incomplete = {
            write.zone_no
            for write, kept in zip(self._writes, cut.kept, strict=True)
            if write.before and kept < write.nr_sectors
        }
        areas = {write.zone_no for write in self._writes if write.before} - incomplete
        for zone_no, changed in zip(self._changed_zones(), cut.changed, strict=True):
            # A change is there only if the data that was there when it was made is.
            if changed and (zone_no in areas or wps[zone_no] == image.wps[zone_no] or image.wps[zone_no] == 0):
                conds[zone_no], wps[zone_no] = image.conds[zone_no], image.wps[zone_no]
                attributes[zone_no] = image.attributes[zone_no]
        for zone_no, cond in enumerate(conds):
            if cond in ACTIVE_CONDITIONS:
                conds[zone_no] = after_power_cycle(Condition(cond), wps[zone_no], attributes[zone_no])
        return ZoneStates(conds, wps, attributes)
