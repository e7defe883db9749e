"""The image: zone states and data in one file, through crashes.

May not know: commands, dialects, limits. The device names the zones that changed and asks for a flush.

Two copies of the zone states serve two kinds of crash.

* The *live table* is memory-mapped and gets one 8-byte store for every change. It survives the death of this process
  and is trusted at the next open only if the host has not rebooted since.
* The *checkpoint* (zone table + journal) is written by :meth:`Image.flush`, after the data has been synced. It survives
  power cuts.

Invariants:

* Data is synced before a checkpoint that covers it is written, and a checkpoint is synced before a flush is answered:
  a durable wp never covers bytes that are not durable.
* Bytes that a write pointer moved back over are neither overwritten nor punched before the new write pointer is durable
  (``old_extents``; :meth:`Image.apply_pending_resets`), because the last checkpoint, or the one being written, may
  still point at them. The present write pointer of a zone decides whether it has such bytes, so a zone that gets its
  write pointer back (a loaded state) has none. The same holds for descriptor extensions.
* The copy of a section that may be the only good one is not overwritten first.
* After a failed sync, or a write that failed for another reason than a full host, nothing more is written (poisoned). A
  write that a full host refuses loses nothing: the last checkpoint stays valid, and the next one covers more changes.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Final

from zonefs_emu.errors import (
    ImageBusyError,
    ImageError,
    NoSpaceError,
    PoisonedError,
    Status,
    UnsupportedVersionError,
)
from zonefs_emu.persist.backing import Backing, FileBacking, checked_sync, current_boot_id, is_full
from zonefs_emu.persist.checkpoint import Checkpoint, EveryZone, StateBlock
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.header import Header, SectionKind
from zonefs_emu.persist.codec.state import Mode, State
from zonefs_emu.persist.codec.words import (
    ATTRIBUTES_SHIFT,
    COND_BITS,
    LIVE_PRIME,
    ZoneStates,
    check_words,
    decode_live,
    encode_live,
    pack_word,
    pack_words,
    unpack_state,
    unpack_states,
)
from zonefs_emu.persist.extensions_section import ExtensionsSection
from zonefs_emu.persist.faults_section import FaultsSection
from zonefs_emu.persist.metadata import (
    NO_BOOT,
    holder,
    read_checkpoint,
    read_copies,
    read_header,
    read_section,
    read_state,
    require_little_endian,
)
from zonefs_emu.persist.pending_resets import PORTION_ZONES, PendingResets
from zonefs_emu.persist.recovery import check_clean_stop, power_cycle, zone_states
from zonefs_emu.persist.space import punch_leftovers, punch_unwritten, punch_zones

#: With more changed zones than this, a record fits into no journal.
_CHANGED_ZONES_MAX: Final = 1 << 16
#: The pause between two portions, in which other threads take the lock. Without it, the thread that releases the lock
#: would take it again first: a plain lock has no queue.
_PAUSE_SECONDS: Final = 50e-6

#: The poison of an image whose file is lost.
LOST: Final = (
    "the image's file was cut or overwritten by another program while it was in use: nothing is read from it or "
    "written to it any more; end what uses it, and restore it from a copy"
)


class Stage(Enum):
    """The stages of a checkpoint."""

    BEGUN = auto()  #: the states that it will cover are captured; with the lock held
    CAPTURED = auto()  #: after that, without the lock: a listener may wait
    DURABLE = auto()  #: it survives a power cut; without the lock


class Image:
    """One image, opened. ``conds``, ``wps`` and ``attributes`` are the zone states; the machine works on these arrays.

    *lock* guards the arrays and all other state of this object: a change of a zone holds it from the decision to
    :attr:`publish`. :meth:`flush` and :meth:`apply_pending_resets` take it themselves.
    """

    def __init__(self, backing: Backing, header: Header, boot_id: bytes, *, readonly: bool) -> None:
        """Read the image on *backing* and change nothing; *boot_id* is the host's. Use :meth:`open` or :meth:`load`.

        Raises:
            CorruptImageError: a section is damaged; the message says what is wrong and where. OSError: as :meth:`open`.
        """
        self.backing = backing
        self.header = header
        self.geometry = header.geometry
        self.readonly = readonly
        self.lock = threading.Lock()
        #: The reason why nothing is written any more; None while writes are allowed.
        self.poison: str | None = "the image is open read-only" if readonly else None
        self.is_closed = False
        #: Whether the file was cut, overwritten or torn away during use: nothing more is read from or written to it.
        self.is_lost = False
        #: The result of a recovery, for people; "" after an orderly stop.
        self.recovery = ""
        #: Called with each stage of each checkpoint.
        self.checkpoint_listener: Callable[[Stage], None] = lambda _stage: None
        #: Called with zones before their space beyond their data is freed; without *lock*, which guards the list.
        self.erase_listeners: list[Callable[[Sequence[int]], None]] = []
        #: Called when a failure of the host poisons the image; with any lock held, so it must only note that.
        self.poison_listener: Callable[[], None] = lambda: None
        #: Called with the lock held, which it may release, before closing refuses all changes.
        self.before_closing: Callable[[], None] = lambda: None
        self._flushing = threading.Lock()
        self._headers = read_copies(backing, header, SectionKind.HEADER)
        state, state_first = read_state(backing, header)
        table, journal = read_checkpoint(backing, header)
        offset = header.section(SectionKind.JOURNAL).offset
        check_clean_stop(state, table, journal, offset=offset)
        self._take_states(
            zone_states(self.geometry, table, journal, offset=offset),
            what="checkpoint", offset=header.section(SectionKind.TABLE).offset,
        )  # fmt: skip
        self._state_block = StateBlock(backing, header, state, state_first)
        self._checkpoint = Checkpoint(backing, header, table, journal)
        if state.mode is Mode.LIVE:
            self._recover(state, boot_id)
        # The table that must be written anew because a copy differs from it, or None.
        is_stale = not (readonly or (table.is_sound and journal.is_sound and not self.recovery))
        self._stale_table = table if is_stale else None
        # The faults are read here, so that damage of them is found before the image is changed.
        self._faults = FaultsSection(backing, header)
        self.extensions = ExtensionsSection(backing, header)
        #: Makes the state of a zone that was written to survive the death of this process: one aligned 8-byte store.
        #: :meth:`publish_all` is for other changes. A conventional zone has no state that a write changes.
        self.publish = self._publish_with_attributes if self.geometry.has_attributes else self._publish
        self._pending = PendingResets(len(self.wps))
        #: See :class:`PendingResets`; read by each write.
        self.old_extents = self._pending.old_extents
        self._live = memoryview(b"")
        self.refusals = memoryview(b"")
        # The zones that changed since the last checkpoint.
        self._dirty: set[int] = set()

    # -- opening and closing ---------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path, *, readonly: bool = False, alone: bool = False, owner: str = "zonefs-emu") -> "Image":
        """Open the image *path*, recovering it if it was not stopped in order.

        With *readonly*, nothing is written, not even the result of a recovery, and the lock is shared, or exclusive
        with *alone*. *owner* names this process in the error message of a later open that finds the image busy.

        Raises:
            ImageBusyError: another process holds it; the message names that process.
            BadMagicError, UnsupportedVersionError, CorruptImageError: the message says what is wrong and where.
            ImageError: it is no regular file, or the host is big-endian or has no /proc. OSError: the host refuses.
        """
        require_little_endian()
        try:
            backing = FileBacking.open(path, readonly=readonly, alone=alone)
        except ImageBusyError:
            raise ImageBusyError(str(path), holder(path)) from None
        try:
            return cls.load(backing, backing.length, current_boot_id(), readonly=readonly, owner=owner)
        except BaseException as error:
            backing.close()
            if isinstance(error, ImageError):
                error.path = str(path)
            raise

    @classmethod
    def load(
        cls, backing: Backing, length: int, boot_id: bytes, *, readonly: bool = False, owner: str = "zonefs-emu"
    ) -> "Image":
        """Open the image on *backing* (*length* bytes); *boot_id* is the host's.

        Raises:
            BadMagicError, UnsupportedVersionError, CorruptImageError, OSError: as :meth:`open`.
        """
        header = read_header(backing, length)
        if header.read_only_compatible and not readonly:
            message = (
                f"the image has features {header.read_only_compatible:#x} that this program does not know: "
                "it can only be opened for reading"
            )
            raise UnsupportedVersionError(message)
        image = cls(backing, header, boot_id, readonly=readonly)
        if readonly:
            image.refusals = memoryview(read_section(backing, header.section(SectionKind.REFUSALS)))
        else:
            image._start(boot_id, owner)
        return image

    def _take_states(self, states: ZoneStates, *, what: str, offset: int) -> None:
        """Use *states*, which come from *what* at byte *offset* of the file, as those of the image.

        Raises:
            CorruptImageError: a state is impossible.
        """
        check_words(self.geometry, *states, what=what, offset=offset)
        self.conds, self.wps, self.attributes = states

    @property
    def states(self) -> ZoneStates:
        """The arrays of the zone states."""
        return ZoneStates(self.conds, self.wps, self.attributes)

    def _recover(self, state: State, boot_id: bytes) -> None:
        """Use the states that the crash left: the live table, or the checkpoint after a power cut."""
        if state.boot_id != boot_id:
            power_cycle(self.states, range(self.geometry.nr_zones))
            why = "the last process could not sync the image" if state.boot_id == NO_BOOT else "the host lost power"
            self.recovery = f"{why}: everything up to the last completed flush is here"
            return
        section = self.header.section(SectionKind.LIVE)
        live = self.backing.pread(8 * self.geometry.nr_zones, section.offset)
        states = unpack_states(self.geometry, decode_live(live, offset=section.offset))
        self._take_states(states, what="live table", offset=section.offset)
        self.recovery = "the last process did not stop in order: every command that it had answered is here"

    def _start(self, boot_id: bytes, owner: str) -> None:
        """Make the image LIVE, in an order that leaves a good image at every instant."""
        backing, header = self.backing, self.header
        words = pack_words(*self.states)
        # The states that a checkpoint of many zones covers. The memory is kept, so that copying under the lock is fast.
        self._captured = self.states.copy()
        # A copy of the file may have lost the reservation, and a store to a hole of a full file system is a SIGBUS.
        for offset, length in header.reserved:
            backing.reserve(offset, length)
        section = header.section(SectionKind.LIVE)
        backing.pwrite(encode_live(words), section.offset)
        self._live = backing.map(section.offset, 8 * self.geometry.nr_zones, self._note_loss).cast("Q")
        refusals = header.section(SectionKind.REFUSALS)
        self.refusals = backing.map(refusals.offset, refusals.length, self._note_loss)
        try:
            # Syncs, so that writes of an earlier process are durable before a table covers them.
            self._state_block.mark_live(boot_id, owner)
            if self._stale_table is not None:
                self._checkpoint.repair(self._stale_table)
                self._checkpoint.compact(words)
            if self.recovery:
                # The bytes are freed after the compaction, because the checkpoint before it may point at them.
                punch_leftovers(backing, self.geometry, *self.states)
        except BaseException:
            # The image must not stay in the state "in use". If the host refuses this as well, it stays LIVE, and the
            # live table has the states that were found.
            with suppress(OSError, ImageError):
                if self._stale_table is not None:
                    self._checkpoint.repair(self._stale_table)
                self._checkpoint.compact(words)
                self._mark_clean()
            raise
        self._stale_table = None

    def close(self) -> None:
        """Flush, mark the image clean and release it; the second call does nothing. A poisoned image stays as it is.

        Raises:
            PoisonedError: the flush failed; everything flushed before is safe.
            NoSpaceError: the host has no room for a checkpoint. The image is released, and the next open recovers it.
        """
        if self.is_closed:
            return
        self.is_closed = True
        try:
            with self._flushing:
                # From here on every change is refused, so the last checkpoint has every answered change. Taking the
                # lock waits for running changes, and before_closing for those that have released it for a while.
                with self.lock:
                    self.before_closing()
                    is_healthy = not self.poison
                    self.poison = self.poison or "the image is closed"
                if is_healthy:
                    self._write_checkpoint()
                    kept = sorted(self._pending.overwritten)
                    self._free(kept, partial(punch_unwritten, self.backing, self.geometry, kept, self.states))
                    self._mark_clean()
        finally:
            for view in (self._live, self.refusals):
                # A thread may still be reading a part of the memory. The file lock is released all the same.
                with suppress(BufferError):
                    view.release()
            self.backing.close()

    def _mark_clean(self) -> None:
        try:
            self._state_block.mark_clean(self._checkpoint.epoch, self._checkpoint.journal_seq)
        except OSError as error:
            raise self._fail(error, "the clean mark could not be written") from None

    # -- changing ---------------------------------------------------------------------------------------------

    def _publish(self, zone_no: int) -> None:
        """Do what :attr:`publish` does, in an image whose zones have no attributes."""
        cond = self.conds[zone_no]
        if cond:  # not NOT_WP
            self._live[zone_no] = (self.wps[zone_no] << COND_BITS | cond) * LIVE_PRIME
            self._dirty.add(zone_no)

    def _publish_with_attributes(self, zone_no: int) -> None:
        """Do what :attr:`publish` does, in an image whose zones can have attributes."""
        if self.conds[zone_no]:  # not NOT_WP
            self._live[zone_no] = self._live_word(zone_no)
            self._dirty.add(zone_no)

    def _live_word(self, zone_no: int) -> int:
        return LIVE_PRIME * (
            self.attributes[zone_no] << ATTRIBUTES_SHIFT | self.wps[zone_no] << COND_BITS | self.conds[zone_no]
        )

    def publish_all(self, zone_numbers: Sequence[int]) -> None:
        """Publish zones that changed, in order, and note those whose write pointer moved back; with the lock held."""
        live, conds, wps, attributes = self._live, self.conds, self.wps, self.attributes
        has_attributes = self.geometry.has_attributes
        for zone_no in zone_numbers:  # there may be a million, so nothing is called for most of them
            wp, bits = wps[zone_no], attributes[zone_no]
            before = live[zone_no] // LIVE_PRIME
            nr_written, lost = before >> COND_BITS, 0
            if has_attributes:
                _, nr_written, lost = unpack_state(self.geometry, before)
                lost &= ~bits
            # Only a zone that had data, or a descriptor extension, can have durable data: opening and closing an empty
            # zone leaves no pending reset.
            if wp < nr_written or lost:
                self._pending.note(zone_no, max(nr_written, 1))
            live[zone_no] = (bits << ATTRIBUTES_SHIFT | wp << COND_BITS | conds[zone_no]) * LIVE_PRIME
        self._dirty.update(zone_numbers)
        if len(self._dirty) > _CHANGED_ZONES_MAX:
            self._dirty = EveryZone()

    def published(self) -> ZoneStates:
        """Return the zone states that a kill now would leave; with the lock held.

        The next checkpoint covers all zones, because it is unknown which zones an interrupted command has published.
        """
        section = self.header.section(SectionKind.LIVE)
        states = unpack_states(self.geometry, decode_live(bytes(self._live), offset=section.offset))
        self._dirty = EveryZone()
        return states

    def has_pending_reset(self, zone_no: int) -> bool:
        """Return whether old bytes are at the write pointer of *zone_no*: see :meth:`apply_pending_resets`."""
        return self.wps[zone_no] < self.old_extents[zone_no]

    def apply_pending_resets(self, overwriting: int = -1) -> None:
        """Make all resets durable and free their space on the host. Blocks; call without the lock.

        The space of zone *overwriting* is kept, because the caller is about to write to it. The next checkpoint frees
        it if the zone is empty still, and :meth:`close` what the zone has beyond its write pointer. Nothing is kept in
        an image with zone random write areas, which would show the old bytes.

        Raises:
            PoisonedError: the host failed. NoSpaceError: it is full, and nothing is lost.
        """
        self.look_after()
        with self._flushing:
            self._require_healthy()
            self._write_checkpoint(-1 if self.geometry.zrwa_size else overwriting)

    def flush(self) -> None:
        """Make everything that was published before this call survive a power cut. Blocks; call without the lock.

        Raises:
            PoisonedError: the host failed to write or sync, now or earlier.
            NoSpaceError: the host has no room for a checkpoint. The last one stays valid, and the next covers all
            changes.
        """
        self.look_after()
        with self._flushing:
            self.flush_now()

    def flush_now(self) -> None:
        """Do what :meth:`flush` does, errors included, in the context of :meth:`between_checkpoints`."""
        self._require_healthy()
        self._write_checkpoint()

    def between_checkpoints(self) -> AbstractContextManager[bool]:
        """Return a context in which no checkpoint is written; to be entered before the lock is taken."""
        return self._flushing

    def _write_checkpoint(self, overwriting: int = -1) -> None:
        """Sync the data, then write and sync the states; with *_flushing* held. *overwriting*: as in _apply_resets."""
        with self.lock:
            self._pending.note_unwritten(self.conds, self.wps)
        # Later resets are for the next checkpoint.
        resets = self._pending.zone_numbers()
        dirty: set[int] = set()
        is_durable = False
        try:
            with self.lock:
                dirty, self._dirty = self._dirty, set()
                fits = self._checkpoint.has_room(len(dirty))
                entries, wps = self._capture(dirty, resets, fits=fits)
                self.checkpoint_listener(Stage.BEGUN)
            self.checkpoint_listener(Stage.CAPTURED)
            checked_sync(self.backing)
            if not fits:
                self._checkpoint.compact(pack_words(*self._captured))
            elif dirty:
                self._checkpoint.append(entries or self._captured_entries(dirty))
            is_durable = True
        except OSError as error:
            # A power cut may leave a part of the checkpoint. That part is valid, because the data was synced before.
            raise self._refuse_or_fail(error, "the image could not be synced", distrust=True) from None
        finally:
            if not is_durable:  # after any exception: the next checkpoint covers the zones of this one
                with self.lock:
                    dirty.update(self._dirty)
                    self._dirty = EveryZone() if len(self._dirty) > _CHANGED_ZONES_MAX else dirty
        self.checkpoint_listener(Stage.DURABLE)
        self._apply_resets(resets, wps, overwriting)

    def _capture(
        self, dirty: set[int], resets: Sequence[int], *, fits: bool
    ) -> tuple[list[tuple[int, int]], Mapping[int, int] | Sequence[int]]:
        """Return the content of a checkpoint of the *dirty* zones; with the lock held.

        The result is (entries of a record, write pointers of the zones *resets*). If the zones are many, or the record
        does not fit, the states of all zones are copied instead, and there are no entries.
        """
        if fits and max(len(dirty), len(resets)) <= PORTION_ZONES:
            entries = [(zone_no, self._live_word(zone_no) // LIVE_PRIME) for zone_no in sorted(dirty)]
            return entries, {zone_no: self.wps[zone_no] for zone_no in resets}
        captured = self._captured
        captured.fill(self.states)
        return [], captured.wps

    def _captured_entries(self, dirty: set[int]) -> list[tuple[int, int]]:
        conds, wps, attributes = self._captured
        return [(zone_no, pack_word(conds[zone_no], wps[zone_no], attributes[zone_no])) for zone_no in sorted(dirty)]

    def _apply_resets(
        self, zone_numbers: Sequence[int], durable_wps: Mapping[int, int] | Sequence[int], overwriting: int
    ) -> None:
        """Free the space of those *zone_numbers* that are empty in the durable checkpoint, and allow writes to all.

        *durable_wps*: the write pointers in the checkpoint. Zone *overwriting* keeps its space. No lock is held while
        punching, because no command writes to these zones: writes wait for :meth:`apply_pending_resets`, and states are
        loaded between checkpoints.
        """
        empty = [zone_no for zone_no in zone_numbers if not durable_wps[zone_no]]
        if overwriting in empty and self._pending.overwrite(overwriting):
            empty.remove(overwriting)
        self._free(empty, partial(punch_zones, self.backing, self.geometry, empty))
        self._pending.clear(zone_numbers, self.wps, durable_wps, lock=self.lock, let_others_in=self.let_others_in)

    def _free(self, zone_numbers: Sequence[int], punch: Callable[[], None]) -> None:
        """Call *punch*, which frees space of *zone_numbers*."""
        try:
            for listener in tuple(self.erase_listeners):
                listener(zone_numbers)
            punch()
        except OSError as error:
            raise self._refuse_or_fail(error, "the space of reset zones could not be given back") from None

    @staticmethod
    def let_others_in() -> None:
        """Pause for other threads that want the lock; for loops over zones in portions."""
        time.sleep(_PAUSE_SECONDS)

    # -- failing ----------------------------------------------------------------------------------------------

    def _refuse_or_fail(self, error: OSError, what: str, *, distrust: bool = False) -> ImageError:
        """Poison the image, unless a full host refused a write, which loses nothing."""
        if is_full(error):
            return NoSpaceError(f"{what} ({error.strerror}): free some space on the host and try again")
        return self._fail(error, what, distrust=distrust)

    def _note_loss(self) -> None:
        """Refuse everything from now on. Takes no lock, because it is called in a store to the live table."""
        self.is_lost = True
        self.poison = LOST

    def look_after(self) -> None:
        """Note the loss if the file was cut or both its headers changed since it was opened."""
        if self.is_closed or self.readonly or self.is_lost:
            return
        try:
            # Bytes that were added to the file are behind the whole image and do no harm.
            if self.backing.length >= self.header.file_bytes and self._has_its_header():
                return
        except OSError:
            return  # one block cannot be read; the command that needs it reports the error
        if not self.is_closed:
            self._note_loss()

    def _has_its_header(self) -> bool:
        """Return whether one of the two copies of the header is unchanged since the image was opened."""
        for copy, block in enumerate(self._headers):
            if self.backing.pread(BLOCK_BYTES, self.header.section(SectionKind.HEADER, copy).offset) == block:
                return True
        return False

    def fail(self, error: OSError, what: str) -> None:
        """Refuse all further changes because the host failed to write: *what* is the beginning of the sentence."""
        self._fail(error, what)

    def _fail(self, error: OSError, what: str, *, distrust: bool = False) -> PoisonedError:
        """Poison the image, unless its file is lost. With *distrust*, the next open does not trust the live table.

        After a failed sync it is unknown which pages reached the medium, so the next open uses the last checkpoint, as
        after a power cut.
        """
        self.look_after()
        if self.is_lost:
            return PoisonedError(LOST, Status.IO_ERROR)
        self.poison = (
            f"{what} ({error.strerror}); nothing more is written until the image is reopened: "
            "unmount it and mount it again, or restart the daemon that serves it"
        )
        self.poison_listener()
        if distrust:
            self._state_block.distrust_live_table()
        return PoisonedError(self.poison, Status.IO_ERROR)

    def _require_healthy(self) -> None:
        if self.poison:
            raise PoisonedError(self.poison)

    # -- faults -----------------------------------------------------------------------------------------------

    @property
    def faults_version(self) -> int:
        """The version of the text that :meth:`load_faults` returns and :meth:`save_faults` takes."""
        return self._faults.version

    @faults_version.setter
    def faults_version(self, version: int) -> None:
        self._faults.version = version

    def load_faults(self) -> bytes:
        """Return the text that was saved last; b"" if there is none.

        Raises:
            CorruptImageError: both copies are damaged.
        """
        return self._faults.load()

    def save_faults(self, data: bytes, *, durably: bool) -> None:
        """Store *data* *durably*, which blocks for two syncs, or so that it survives the death of this process only.

        In the latter case a power cut leaves *data*, or the text that was stored durably last. The two may differ in
        the first BLOCK_BYTES of the section only, because the death of a process may cut a longer write short. One
        caller at a time, without the lock.

        Raises:
            UsageError: it does not fit. PoisonedError: the host failed to write. NoSpaceError: it is full.
        """
        self._require_healthy()
        try:
            self._faults.save(data, durably=durably)
        except OSError as error:
            raise self._refuse_or_fail(error, "the faults could not be written", distrust=True) from None

    # -- descriptor extensions ----------------------------------------------------------------------------------

    def save_extension(self, zone_no: int, data: bytes) -> None:
        """Store *data* as the descriptor extension of *zone_no*; with the lock held, before its state changes.

        A death of the process in between leaves the zone as it was. A flush makes the extension durable.

        Raises:
            PoisonedError: the host failed to write. NoSpaceError: it is full.
        """
        self._require_healthy()
        try:
            self.extensions.save(zone_no, data)
        except OSError as error:
            raise self._refuse_or_fail(error, "a descriptor extension could not be written") from None
