"""The power-cut lab: watches a device, and has the images made that a cut of the power could have left.

:mod:`zonefs_emu.device.outcomes` says which those are. The lab notes each write from its creation on, with the former
content of conventional zones. That costs time and memory, so a device has a lab only on request.

The lab is an observer: it counts a write after the zone's state is in the image, and an error of the lab switches it
off and changes no answer. Only the former content of a conventional zone is read before the write.
"""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zonefs_emu.device.cut_images import CutImage, Instant, Moment, Plan, PlannedCuts
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.outcomes import Cut, History, Write
from zonefs_emu.device.switch import Switch
from zonefs_emu.errors import UsageError
from zonefs_emu.model.zone import Attribute
from zonefs_emu.persist.codec.words import ZoneStates
from zonefs_emu.persist.image import Stage
from zonefs_emu.persist.metadata import read_zones
from zonefs_emu.units import SECTOR_SHIFT

_NAME: Final = "the power-cut lab"


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
        # Since the last flush. Writes are appended only, and never removed: a history has a beginning of the list.
        self._writes: list[Write] = []
        # The write of the command under way, until the zone's state is in the image.
        self._pending: Write | None = None
        self._switch = Switch(_NAME)
        self._switch.report_to(device.unforeseen.observer_failed)
        self._failure = ""
        self._flushing = 0
        self._baseline = self._next_baseline = ZoneStates(bytearray(), array("Q"), bytearray())
        self._cuts: PlannedCuts | None = None
        #: Writes seen since the plan began.
        self.nr_seen = 0
        self._spare_states: ZoneStates | None = None
        self._spare_extents: array[int] | None = None
        self._prepare()
        with self._image.between_checkpoints():
            self._baseline = read_zones(self._image.backing, self._image.header)
            device.subscribe(self._published)
            until_now: list[History] = []
            device.add_write_hook(
                self._look, observer=_NAME, failed=self._fail, begin=lambda: until_now.append(self._begin_watching())
            )
            # Without the lock, because going through a million zones takes longer than the lock may be held.
            earlier = [write for history in until_now for write in history.advances()]
            with device.lock:
                earlier += self._writes
                self._writes = earlier
        self._prepare()

    def _begin_watching(self) -> History:
        """Begin to watch, between two writes, and return what happened before; with the device's lock held."""
        self._image.checkpoint_listener = self._hear_checkpoint
        self._image.erase_listeners.append(self._hear_erasing)
        return self._history_of(self._present())

    def close(self) -> None:
        """Stop watching, and give the plan up."""
        self.give_up()
        self._device.unsubscribe(self._published)
        self._device.remove_write_hook(self._look)
        with self._device.lock:
            self._image.checkpoint_listener = lambda _stage: None
            if self._hear_erasing in self._image.erase_listeners:
                self._image.erase_listeners.remove(self._hear_erasing)

    def _fail(self, error: Exception) -> None:
        """Switch the lab off because of *error*: its notes may be incomplete."""
        self._failure = f"{_NAME} failed: {type(error).__name__}: {error}"
        if self._cuts is not None:
            self._cuts.end(self._failure)
        self._writes = []
        self._pending = None
        self._switch.put_off(error)

    def _require_on(self) -> None:
        if self._switch.error is not None:
            raise UsageError(self._failure, exit_code=1)

    def _prepare(self) -> None:
        """Take memory for the next copies of the zone states, if there is none; without the lock.

        The host may need longer for the memory of a million states than the lock may be held.
        """
        nr_zones = self._device.geometry.nr_zones
        self._spare_states = self._spare_states or ZoneStates.blank(nr_zones)
        self._spare_extents = self._spare_extents or array("Q", bytes(8 * nr_zones))

    def _present(self) -> ZoneStates:
        """Return a copy of the present zone states; with the lock held."""
        states, self._spare_states = self._spare_states, None
        if states is None:
            return self._image.states.copy()
        states.fill(self._image.states)
        return states

    def _history_of(self, present: ZoneStates) -> History:
        """Return the history up to this instant, which has the states *present*; with the lock held."""
        old_extents, self._spare_extents = self._spare_extents, None
        if old_extents is None:
            old_extents = self._image.old_extents[:]
        else:
            old_extents[:] = self._image.old_extents
        return History(
            self._device.geometry, self._writes, baseline=self._baseline, present=present, old_extents=old_extents
        )

    def history(self) -> History:
        """Return what a power cut now would act on."""
        self._prepare()
        with self._device.lock:
            return self._history_of(self._present())

    # -- the plan ---------------------------------------------------------------------------------------------

    def begin(self, plan: Plan) -> None:
        """Carry *plan* out in a thread of its own: from now on, or when its moment comes. An earlier plan is dropped.

        Raises:
            UsageError: the lab is off. OSError: the directory cannot be made, or has no room.
        """
        self._require_on()
        self.give_up()
        cuts = PlannedCuts(self._device, plan, self._fail)
        cuts.start()
        self._prepare()
        try:
            with self._device.lock:
                self._cuts, self.nr_seen = cuts, 0
                if plan.at is Moment.NOW:
                    self._cut(cuts, self._present())
        except BaseException:
            cuts.end()
            raise
        self._prepare()

    def give_up(self) -> None:
        """Drop the plan, and go on watching."""
        if self._cuts is not None:
            self._cuts.end()
            self._cuts.join()

    @property
    def images(self) -> Sequence[CutImage]:
        """The images of the plan that are written."""
        return () if self._cuts is None else self._cuts.images

    @property
    def failure(self) -> str:
        """The reason why the plan was dropped or the lab is off; empty otherwise."""
        return self._failure or ("" if self._cuts is None else self._cuts.failure)

    @property
    def is_done(self) -> bool:
        """Whether all planned images are written, or the plan was dropped."""
        return self._cuts is None or self._cuts.is_done

    def _cut(self, cuts: PlannedCuts, present: ZoneStates) -> None:
        """Make this an instant of *cuts*; with the device's lock held."""
        cuts.cut(self._history_of(present))

    def write(self, cut: Cut, path: Path) -> None:
        """Write the image that *cut* leaves of the device, which does not change meanwhile, to the new file *path*.

        Counters and injected faults are not part of it.

        Raises:
            FileExistsError: *path* exists.
            OSError: the host has no room.
        """
        instant = Instant(self._device, path.parent, lambda: None)
        try:
            instant.begin(self.history())
            instant.finish()
            instant.write(cut, path)
        finally:
            instant.release()

    # -- watching ---------------------------------------------------------------------------------------------

    def _look(self, offset: int, nr_bytes: int) -> None:
        """Note a write that is about to happen, with the bytes that it will overwrite; with the device's lock held."""
        if self._cuts is not None:
            self._cuts.save(offset, offset + nr_bytes)
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

    def _hear_erasing(self, zone_numbers: Sequence[int]) -> None:
        """Save bytes that are about to be freed; without the lock."""
        if self._cuts is not None:
            self._cuts.save_zones(zone_numbers)

    def _published(self, _zone_no: int, _nr_zones: int) -> None:
        """Count the write whose zone is now changed in the image; with the device's lock held."""
        try:
            cuts = self._cuts_at(Moment.AFTER_WRITES)
            if self._note_pending() and cuts is not None and self.nr_seen >= cuts.plan.nr_writes:
                self._cut(cuts, self._present())
        except Exception as error:  # the boundary of observers
            self._fail(error)

    def _cuts_at(self, moment: Moment) -> PlannedCuts | None:
        """Return the cuts of a plan that waits for *moment*."""
        cuts = self._cuts
        return cuts if cuts is not None and cuts.plan.at is moment and cuts.has_next else None

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
        """Note a flush; with the device's lock held in the stage BEGUN only. In CAPTURED it waits for its images."""
        try:
            if self._switch.error is None:
                self._checkpoint(stage)
        except Exception as error:  # the boundary of observers
            self._fail(error)

    def _checkpoint(self, stage: Stage) -> None:
        match stage:
            case Stage.BEGUN:
                self._note_pending()
                self._flushing = len(self._writes)
                self._next_baseline = self._present()
                if (cuts := self._cuts_at(Moment.EVERY_FLUSH)) is not None:
                    self._cut(cuts, self._next_baseline)
            case Stage.CAPTURED:
                # The next flush is cut as well, and only one instant is copied at a time.
                if self._cuts is not None and self._cuts.plan.at is Moment.EVERY_FLUSH:
                    self._cuts.wait()
            case Stage.DURABLE:
                # The flushed writes are freed after the lock is, because freeing a million of them takes long.
                flushed = self._writes
                with self._device.lock:
                    self._writes = self._writes[self._flushing :]
                    self._baseline = self._next_baseline
                del flushed
                self._prepare()
