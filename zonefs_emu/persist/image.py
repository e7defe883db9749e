"""The image: zone states and data in one file, through crashes.

May not know: commands, dialects, limits. It is told which zones changed and asked to flush.

Two copies of the zone states serve two kinds of crash.

* The *live table* is memory-mapped and gets one 8-byte store for every change. It survives the death of this process
  and is trusted at the next open only if the host has not rebooted since.
* The *checkpoint* (zone table + journal) is written by :meth:`Image.flush`, after the data has been synced. It survives
  power cuts.

Invariants:

* Data is synced before a checkpoint that covers it is written, and a checkpoint is synced before a flush is answered:
  a durable wp never covers bytes that are not.
* Bytes that a write pointer moved back over are neither overwritten nor punched out before that is durable
  (``old_extents``; :meth:`Image.apply_pending_resets`): the last checkpoint, or the one being written, may still
  point at them.
  Whether a zone has such bytes follows from its write pointer at the time of asking, so a zone that gets its write
  pointer back (a loaded state) has none any more.
* Of two copies of anything, the one that may be the only good one is never overwritten first.
* After a failed sync, or a write that failed for another reason than a full host, nothing more is written (poisoned). A
  full host refuses a write and loses nothing by it: the last checkpoint stays what it is, and the next one covers more.
"""

import errno
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from enum import Enum
from os import getpid
from pathlib import Path
from typing import Final

from zonefs_emu.errors import (
    CorruptImageError,
    ImageBusyError,
    ImageError,
    NoSpaceError,
    PoisonedError,
    Status,
    UnsupportedVersionError,
)
from zonefs_emu.model.transitions import after_power_cycle
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, Condition
from zonefs_emu.persist.backing import Backing, FileBacking, current_boot_id
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.faults import encode_faults, faults_version
from zonefs_emu.persist.codec.header import Header, SectionKind
from zonefs_emu.persist.codec.journal import Record, encode_record, record_bytes
from zonefs_emu.persist.codec.state import Mode, State, encode_state
from zonefs_emu.persist.codec.table import encode_table
from zonefs_emu.persist.codec.words import (
    COND_BITS,
    LIVE_PRIME,
    check_words,
    decode_live,
    encode_live,
    pack_word,
    pack_words,
    unpack_words,
)
from zonefs_emu.persist.metadata import NO_BOOT, holder, read_checkpoint, read_header, read_state, require_little_endian
from zonefs_emu.persist.recovery import Table, apply_records, choose_faults
from zonefs_emu.units import to_bytes

_EMPTY: Final = int(Condition.EMPTY)
#: What a host says that is full, to everybody or to this user.
NO_SPACE_ERRNOS: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
#: The most zones that are gone through one by one while the lock is held. More are copied as whole arrays, or gone
#: through in portions.
PORTION_ZONES: Final = 1024
#: More changed zones than these do not fit into any journal.
_CHANGED_ZONES_MAX: Final = 1 << 16
_RUN_ZONES: Final = 1024
#: Between two portions others get the lock. A plain lock goes to the thread that asks first, which without a pause
#: would be the one that has just let it go.
_PAUSE_SECONDS: Final = 50e-6


#: Why an image whose file is lost takes no commands.
LOST: Final = (
    "the image's file was cut or overwritten by another program while it was in use: nothing is read from it or "
    "written to it any more; end what uses it, and restore it from a copy"
)


class SyncFailedError(OSError):
    """A sync failed: what the host had accepted before it may be lost, even if it failed because the host is full."""


class EveryZone(set[int]):
    """Stands for so many zones that a checkpoint writes the whole table: more need not be noted.

    A set of a million zones grows in steps that take longer than the lock may be held.
    """

    def __len__(self) -> int:
        """Return more than a journal has room for."""
        return 1 << 32

    def add(self, element: int) -> None:
        """Do nothing: it is among them."""

    def update(self, *others: Iterable[int]) -> None:
        """Do nothing: they are among them."""


class Stage(Enum):
    """How far a checkpoint is."""

    BEGUN = 0  #: what it will cover is decided
    DURABLE = 1


class Image:
    """One image, opened. ``conds`` and ``wps`` are the zone states; the machine works on these very arrays.

    *lock* guards the arrays and everything said of them here: whoever changes a zone holds it from the decision to
    :meth:`publish`. :meth:`flush` and :meth:`apply_pending_resets` take it themselves.
    """

    def __init__(
        self, backing: Backing, header: Header, conds: bytearray, wps: "array[int]", *, readonly: bool
    ) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self.backing = backing
        self.header = header
        self.geometry = header.geometry
        self.conds = conds
        self.wps = wps
        self.readonly = readonly
        self.lock = threading.Lock()
        #: Why nothing is written any more; None while all is well.
        self.poison: str | None = "the image is open read-only" if readonly else None
        self.is_closed = False
        #: Whether the file was cut, overwritten or torn away under us: nothing more is read from or written to it.
        self.is_lost = False
        self.recovery = ""
        self._flushing = threading.Lock()
        self._seed = header.seed
        self._headers: tuple[bytes, ...] = ()
        self._live = memoryview(b"")
        self.refusals = memoryview(b"")
        self._state = State(generation=0, mode=Mode.CLEAN, boot_id=NO_BOOT)
        # Which copy is to be overwritten first; the other one may be the only good one.
        self._state_first = 0
        self._table_first = 0
        self._faults_first = 0
        self._epoch = 0
        self._newest_epoch = 0
        self._journal_seq = 0
        self._journal_at = 0
        self._faults_generation = 0
        #: The version of the text that :meth:`load_faults` gave and :meth:`save_faults` takes.
        self.faults_version = 0
        self._dirty: set[int] = set()
        #: Told of each stage of each checkpoint, with the lock held.
        self.checkpoint_listener: Callable[[Stage], None] | None = None
        #: Told which zones were reset, before their space is given back and they may be written; without the lock.
        self.erase_listener: Callable[[Sequence[int]], None] | None = None
        #: For zones whose write pointer moved back: how many sectors from the zone's start hold bytes of before. See
        #: :meth:`has_pending_reset`. Not the durable write pointers instead: data that was never flushed takes space,
        #: too.
        #: 0 for all other zones. The runs of _RUN_ZONES in which there are some are in _moved_runs.
        self.old_extents = array("Q", bytes(8 * len(wps)))
        self._moved_runs: set[int] = set()
        #: Called with the lock held, which it may let go, before closing refuses all changes.
        self.before_closing: Callable[[], None] = lambda: None
        # The states that a checkpoint of many zones covers. Kept, so that copying under the lock touches no new memory.
        self._captured_conds = bytearray()
        self._captured_wps = array("Q")

    # -- creating and opening ---------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path, *, readonly: bool = False, alone: bool = False, owner: str = "zonefs-emu") -> "Image":
        """Open the image *path*, recovering it if it was not stopped in order.

        *readonly* writes nothing at all, not even what a recovery found, and takes a shared lock unless it is to be
        *alone*. *owner* is what others
        are told who find the image busy.

        Raises:
            ImageBusyError: another process holds it; says who.
            BadMagicError, UnsupportedVersionError, CorruptImageError: says what is wrong and where.
            OSError: the host refuses.
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
            ImageError: as :meth:`open`.
        """
        header = read_header(backing, length)
        if header.read_only_compatible and not readonly:
            message = (
                f"the image has features {header.read_only_compatible:#x} that this program does not know: "
                "it can only be opened for reading"
            )
            raise UnsupportedVersionError(message)
        state, state_first = read_state(backing, header)
        table, journal = read_checkpoint(backing, header)
        last = (table.generation, len(journal.records))
        if state.mode is Mode.CLEAN and (state.epoch, state.journal_seq) != last:
            raise CorruptImageError(
                "journal",
                offset=header.section(SectionKind.JOURNAL).offset + journal.end,
                found=f"record {last[1]} of epoch {last[0]} as the last one",
                expected=f"record {state.journal_seq} of epoch {state.epoch}, as the state block of a clean stop says",
            )
        conds, wps = unpack_words(table.words)
        apply_records(conds, wps, journal.records, offset=header.section(SectionKind.JOURNAL).offset)
        check_words(header.geometry, conds, wps, what="checkpoint", offset=header.section(SectionKind.TABLE).offset)
        image = cls(backing, header, conds, wps, readonly=readonly)
        image._state, image._state_first = state, state_first
        image._epoch, image._newest_epoch = table.generation, table.newest
        image._journal_seq, image._journal_at = last[1], journal.end
        image._table_first = 1 if table.base == 0 else 0
        if state.mode is Mode.LIVE:
            image._recover(boot_id)
        # Not what it says, but whether it can be read: whatever keeps an image from being opened is found before
        # anything is changed.
        image.load_faults()
        if readonly:
            refusals = header.section(SectionKind.REFUSALS)
            image.refusals = memoryview(backing.pread(refusals.length, refusals.offset))
        else:
            image._start(boot_id, owner, None if table.is_sound and journal.is_sound and not image.recovery else table)
        return image

    def _recover(self, boot_id: bytes) -> None:
        """Bring the states to what the crash left: the live table, or what power leaves of the checkpoint."""
        if self._state.boot_id == boot_id:
            section = self.header.section(SectionKind.LIVE)
            live = self.backing.pread(8 * self.geometry.nr_zones, section.offset)
            conds, wps = unpack_words(decode_live(live, offset=section.offset))
            check_words(self.geometry, conds, wps, what="live table", offset=section.offset)
            self.conds[:] = conds
            self.wps[:] = wps
            self.recovery = "the last process did not stop in order: every command that it had answered is here"
            return
        for zone_no, cond in enumerate(self.conds):
            if cond in ACTIVE_CONDITIONS:
                self.conds[zone_no] = after_power_cycle(Condition(cond), self.wps[zone_no])
        why = "the last process could not sync the image" if self._state.boot_id == NO_BOOT else "the host lost power"
        self.recovery = f"{why}: everything up to the last completed flush is here"

    def _start(self, boot_id: bytes, owner: str, repaired: Table | None) -> None:
        """Make the image LIVE, in an order that leaves a good image at every instant.

        *repaired*: the table as it was read, if it is to be written anew because something differs from it.
        """
        backing, header = self.backing, self.header
        words = pack_words(self.conds, self.wps)
        section = header.section(SectionKind.LIVE)
        sections = [header.section(SectionKind.HEADER, copy) for copy in (0, 1)]
        self._headers = tuple(backing.pread(section.length, section.offset) for section in sections)
        # What an earlier process wrote may not be durable yet, and what follows relies on it.
        backing.sync()
        # A copy of the file may have lost the reservation, and a store to a hole of a full file system is a SIGBUS.
        for offset, length in header.reserved:
            backing.reserve(offset, length)
        backing.pwrite(encode_live(words), section.offset)
        self._live = backing.map(section.offset, 8 * self.geometry.nr_zones, self._note_loss).cast("Q")
        refusals = header.section(SectionKind.REFUSALS)
        self.refusals = backing.map(refusals.offset, refusals.length, self._note_loss)
        try:
            self._write_state(replace(self._state, mode=Mode.LIVE, boot_id=boot_id, owner_pid=getpid(), owner=owner))
            if repaired is not None:
                self._repair(repaired)
                self._compact(words)
            if self.recovery:
                # Only now: until the compaction, the last checkpoint may have pointed at these bytes.
                self._punch(self._empty_with_data())
        except BaseException:
            # The image is not to say that it is in use. Where the host fails this as well it stays LIVE, and the live
            # table has all that was found.
            with suppress(OSError, ImageError):
                if repaired is not None:
                    self._repair(repaired)
                self._compact(words)
                self._mark_clean()
            raise

    def _empty_with_data(self) -> list[int]:
        """Return the EMPTY zones that still take space: their reset was answered, and then came the crash."""
        size = to_bytes(self.geometry.zone_size)
        found: list[int] = []
        for offset, length in self.backing.extents(0, to_bytes(self.geometry.size)):
            first, last = offset // size, (offset + length - 1) // size
            if found and found[-1] == first:
                first += 1
            found.extend(zone_no for zone_no in range(first, last + 1) if self.conds[zone_no] == _EMPTY)
        return found

    def close(self) -> None:
        """Flush, mark the image clean and let it go; a second time does nothing. A poisoned image is let go as it is.

        Raises:
            PoisonedError: the flush failed; what had been flushed before is safe.
        """
        if self.is_closed:
            return
        self.is_closed = True
        try:
            with self._flushing:
                # From here on every writer is refused, so that nothing is answered that the last checkpoint lacks; with
                # the lock, so that no writer is under way, nor any that has let go of the lock for a while.
                with self.lock:
                    self.before_closing()
                    is_healthy = not self.poison
                    self.poison = self.poison or "the image is closed"
                if is_healthy:
                    self._checkpoint()
                    self._mark_clean()
        finally:
            for view in (self._live, self.refusals):
                # A thread that is reading a part of it right now is no reason to keep the lock.
                with suppress(BufferError):
                    view.release()
            self.backing.close()

    def _mark_clean(self) -> None:
        clean = replace(
            self._state,
            mode=Mode.CLEAN,
            boot_id=NO_BOOT,
            epoch=self._epoch,
            journal_seq=self._journal_seq,
            owner_pid=0,
            owner="",
        )
        try:
            self._write_state(clean)
            self.backing.sync()
        except OSError as error:
            raise self._fail(error, "the clean mark could not be written") from None

    # -- changing ---------------------------------------------------------------------------------------------

    def publish(self, zone_no: int) -> None:
        """Make the present state of *zone_no* survive the death of this process: one aligned 8-byte store.

        For zones that were written to; of a conventional one nothing changes by that.
        """
        cond = self.conds[zone_no]
        if cond:  # not NOT_WP
            self._live[zone_no] = (self.wps[zone_no] << COND_BITS | cond) * LIVE_PRIME
            self._dirty.add(zone_no)

    def publish_all(self, zone_numbers: Sequence[int]) -> None:
        """Publish zones whose condition changed, in order, noting those whose write pointer moved back by it."""
        live, conds, wps = self._live, self.conds, self.wps
        for zone_no in zone_numbers:
            wp = wps[zone_no]
            before = live[zone_no] // LIVE_PRIME >> COND_BITS
            # Only what had data can have durable data: a zone that was opened and closed again needs no settling.
            if wp < before:
                self.old_extents[zone_no] = max(before, self.old_extents[zone_no])
                self._moved_runs.add(zone_no // _RUN_ZONES)
            live[zone_no] = (wp << COND_BITS | conds[zone_no]) * LIVE_PRIME
        self._dirty.update(zone_numbers)
        if len(self._dirty) > _CHANGED_ZONES_MAX:
            self._dirty = EveryZone()

    def published(self) -> "tuple[bytearray, array[int]]":
        """Return conditions and write pointers of all zones as they would be after a kill now; with the lock held.

        The next checkpoint has all zones in it: which of them an interrupted command has published is not known.
        """
        section = self.header.section(SectionKind.LIVE)
        conds, wps = unpack_words(decode_live(bytes(self._live), offset=section.offset))
        self._dirty = EveryZone()
        return conds, wps

    def has_pending_reset(self, zone_no: int) -> bool:
        """Say whether *zone_no* must wait for :meth:`apply_pending_resets`: old bytes lie at wp, which moved back."""
        return self.wps[zone_no] < self.old_extents[zone_no]

    def apply_pending_resets(self) -> None:
        """Make all resets durable and give their space back. Blocks; call without the lock.

        Raises:
            PoisonedError: the host failed. NoSpaceError: it is full, and nothing is lost.
        """
        self.flush()

    def flush(self) -> None:
        """Make everything that was published before this call survive a power cut. Blocks; call without the lock.

        Raises:
            PoisonedError: the host failed to write or sync, now or earlier.
            NoSpaceError: the host has no room for a checkpoint. The last one stays, and the next one covers everything.
        """
        self.look_after()
        with self._flushing:
            self._require_healthy()
            self._checkpoint()

    def between_checkpoints(self) -> AbstractContextManager[bool]:
        """Return a context during which no checkpoint is written: take it before the lock."""
        return self._flushing

    def _checkpoint(self) -> None:
        """Sync the data, then write and sync what zones it belongs to; with *_flushing* held."""
        if not self._captured_conds:
            self._captured_conds, self._captured_wps = bytearray(len(self.conds)), array("Q", bytes(8 * len(self.wps)))
        # What is noted from now on is for the next checkpoint.
        moved_back = self._moved_back()
        dirty: set[int] = set()
        is_durable = False
        try:
            with self.lock:
                dirty, self._dirty = self._dirty, set()
                room = self.header.section(SectionKind.JOURNAL).length - self._journal_at
                fits = record_bytes(len(dirty)) <= room
                captured_wps: Mapping[int, int] | Sequence[int]
                if fits and max(len(dirty), len(moved_back)) <= PORTION_ZONES:
                    entries = [
                        (zone_no, pack_word(self.conds[zone_no], self.wps[zone_no])) for zone_no in sorted(dirty)
                    ]
                    captured_wps = {zone_no: self.wps[zone_no] for zone_no in moved_back}
                else:
                    entries = []
                    self._captured_conds[:] = self.conds
                    self._captured_wps[:] = captured_wps = self.wps
                if self.checkpoint_listener is not None:
                    self.checkpoint_listener(Stage.BEGUN)
            self._sync()
            self._write_checkpoint(dirty, entries, fits=fits)
            is_durable = True
        except OSError as error:
            # What was written may be found after a power cut, in part. It is true: the data was synced before.
            raise self._refuse_or_fail(error, "the image could not be synced", distrust=True) from None
        finally:
            if not is_durable:  # whatever was raised: the next checkpoint covers what this one should have
                with self.lock:
                    dirty.update(self._dirty)
                    self._dirty = EveryZone() if len(self._dirty) > _CHANGED_ZONES_MAX else dirty
        if self.checkpoint_listener is not None:
            with self.lock:
                self.checkpoint_listener(Stage.DURABLE)
        self._clear_pending_resets(moved_back, captured_wps)

    def _write_checkpoint(self, dirty: set[int], entries: list[tuple[int, int]], *, fits: bool) -> None:
        """Write and sync a record of the *dirty* zones, or the whole table where none *fits*.

        *entries*: the words of the zones, if they are few; else all states lie in the captured arrays.
        """
        if not fits:
            self._compact(pack_words(self._captured_conds, self._captured_wps))
        elif dirty:
            conds, wps = self._captured_conds, self._captured_wps
            entries = entries or [(zone_no, pack_word(conds[zone_no], wps[zone_no])) for zone_no in sorted(dirty)]
            self._append_record(tuple(entries))

    def _clear_pending_resets(
        self, zone_numbers: Sequence[int], captured_wps: "Mapping[int, int] | Sequence[int]"
    ) -> None:
        """Give the space of those zones back that the durable checkpoint has without data, and let all be written.

        *captured_wps* says what the checkpoint has. No lock while punching: nothing else writes to these zones, as
        writers wait for :meth:`apply_pending_resets`, and a state is loaded between checkpoints.
        """
        empty = [zone_no for zone_no in zone_numbers if not captured_wps[zone_no]]
        try:
            if self.erase_listener is not None:
                self.erase_listener(empty)
            self._punch(empty)
        except OSError as error:
            raise self._refuse_or_fail(error, "the space of reset zones could not be given back") from None
        for first in range(0, len(zone_numbers), PORTION_ZONES):
            if first:
                self.let_others_in()
            with self.lock:
                for zone_no in zone_numbers[first : first + PORTION_ZONES]:
                    # A zone that was reset meanwhile has lost what the checkpoint points at.
                    if self.wps[zone_no] >= captured_wps[zone_no]:
                        self.old_extents[zone_no] = 0
        for run in {zone_no // _RUN_ZONES for zone_no in zone_numbers}:
            with self.lock:
                if not any(self.old_extents[run * _RUN_ZONES : (run + 1) * _RUN_ZONES]):
                    self._moved_runs.discard(run)

    def _moved_back(self) -> list[int]:
        """Return the zones that have an old extent, ascending."""
        return [
            zone_no
            for run in sorted(self._moved_runs)
            for zone_no, extent in enumerate(
                self.old_extents[run * _RUN_ZONES : (run + 1) * _RUN_ZONES], run * _RUN_ZONES
            )
            if extent
        ]

    @staticmethod
    def let_others_in() -> None:
        """Let other threads have the lock that was just let go, for those who go through zones in portions."""
        time.sleep(_PAUSE_SECONDS)

    def _sync(self) -> None:
        """Make everything written so far durable.

        Raises:
            SyncFailedError: the host failed.
        """
        try:
            self.backing.sync()
        except OSError as error:
            raise SyncFailedError(error.errno, error.strerror) from None

    def _refuse_or_fail(self, error: OSError, what: str, *, distrust: bool = False) -> ImageError:
        """Poison the image, but not because a full host refused a write: nothing is lost by that."""
        if is_full(error):
            return NoSpaceError(f"{what} ({error.strerror}): free some space on the host and try again")
        return self._fail(error, what, distrust=distrust)

    def _note_loss(self) -> None:
        """Refuse everything from now on; called in the middle of a store to the live table, so it takes no lock."""
        self.is_lost = True
        self.poison = LOST

    def look_after(self) -> None:
        """Note it if the file is no longer the one that was opened: it was cut, or both its headers changed."""
        if self.is_closed or self.readonly or self.is_lost:
            return
        try:
            # What was added to a file that has grown lies behind all that is ours.
            if self.backing.length >= self.header.file_bytes and self._has_its_header():
                return
        except OSError:
            return  # the host's trouble with one block: a command that needs it says so
        if not self.is_closed:
            self._note_loss()

    def _has_its_header(self) -> bool:
        """Say whether one of the two copies of the header is as it was when the image was opened."""
        for copy, block in enumerate(self._headers):
            if self.backing.pread(BLOCK_BYTES, self.header.section(SectionKind.HEADER, copy).offset) == block:
                return True
        return False

    def fail(self, error: OSError, what: str) -> None:
        """Refuse all further changes because the host failed to write; say so once."""
        self._fail(error, what)

    def _fail(self, error: OSError, what: str, *, distrust: bool = False) -> PoisonedError:
        """Poison the image, unless its file is lost. With *distrust* the next open does not believe the live table.

        After a failed sync nobody knows which pages reached the medium, so the next open goes back to the last
        checkpoint, as after a power cut.
        """
        self.look_after()
        if self.is_lost:
            return PoisonedError(LOST, Status.IO_ERROR)
        self.poison = (
            f"{what} ({error.strerror}); nothing more is written until the image is reopened: "
            "unmount it and mount it again, or restart the daemon that serves it"
        )
        if distrust:
            # Not _write_state(): its sync between the copies is what fails here.
            state = replace(self._state, generation=self._state.generation + 1, boot_id=NO_BOOT)
            for copy in (self._state_first, 1 - self._state_first):
                with suppress(OSError):
                    self.backing.pwrite(
                        encode_state(state, self._seed), self.header.section(SectionKind.STATE, copy).offset
                    )
                    self.backing.sync()
        return PoisonedError(self.poison, Status.IO_ERROR)

    def _require_healthy(self) -> None:
        if self.poison:
            raise PoisonedError(self.poison)

    # -- faults -----------------------------------------------------------------------------------------------

    def load_faults(self) -> bytes:
        """Return what :meth:`save_faults` was given last, or nothing.

        Raises:
            CorruptImageError: both copies are damaged.
        """
        sections = [self.header.section(SectionKind.FAULTS, copy) for copy in (0, 1)]
        copies = [self.backing.pread(section.length, section.offset) for section in sections]
        offsets = [section.offset for section in sections]
        self._faults_generation, data, newest = choose_faults(copies, self._seed, offsets=offsets)
        self.faults_version = faults_version(copies[newest]) if self._faults_generation else 0
        self._faults_first = 1 - newest
        return data

    def save_faults(self, data: bytes, *, durably: bool) -> None:
        """Keep *data*: *durably*, which blocks and costs two syncs, or else through the death of this process only.

        In the latter case what a power cut leaves is this, or what was kept durably last. And what differs from that
        must lie in the first BLOCK_BYTES of the section, as the death of a process may cut a longer write short. One
        caller at a time, without the lock.

        Raises:
            UsageError: it does not fit. PoisonedError: the host failed to write. NoSpaceError: it is full.
        """
        self._require_healthy()
        block = encode_faults(data, self._faults_generation + 1, self._seed, version=self.faults_version)
        try:
            if not durably:
                # Of two good copies the other one stays, whatever becomes of this.
                self._write_faults(block, self._faults_first)
                return
            self._faults_generation += 1
            first = self._faults_first
            for copy in (first, 1 - first):
                self._write_faults(block, copy)
                # A sync tells only once that it failed, and it may have been data that was lost.
                self._sync()
                # This copy is good, and the other one may be torn from here on.
                self._faults_first = 1 - copy
        except OSError as error:
            raise self._refuse_or_fail(error, "the faults could not be written", distrust=True) from None

    def _write_faults(self, block: bytes, copy: int) -> None:
        self.backing.pwrite(block, self.header.section(SectionKind.FAULTS, copy).offset)

    # -- checkpoint -------------------------------------------------------------------------------------------

    def _append_record(self, entries: tuple[tuple[int, int], ...]) -> None:
        record = encode_record(Record(epoch=self._epoch, seq=self._journal_seq + 1, entries=entries), self._seed)
        for copy in (0, 1):
            section = self.header.section(SectionKind.JOURNAL, copy)
            self.backing.pwrite(record, section.offset + self._journal_at)
        self._sync()
        self._journal_seq += 1
        self._journal_at += len(record)

    def _repair(self, table: Table) -> None:
        """Make one copy of the table whole with what both together gave, and durable; the other one is free then.

        Nothing is lost if that is torn: a block that differs from *table* was of no use. And a copy that was read from
        the host's cache after a failed sync may never have reached the medium.
        """
        copy = 1 - self._table_first
        self.backing.pwrite(
            encode_table(table.words, table.generation, self._seed),
            self.header.section(SectionKind.TABLE, copy).offset,
        )
        self.backing.sync()

    def _compact(self, words: bytes) -> None:
        """Write the whole table, one copy after the other is durable, and begin an empty journal.

        A compaction that a full host interrupts leaves a good image: its number is not used again, so that its blocks
        cannot complete a later compaction, and a copy that it made whole counts and is not overwritten first.
        """
        self._newest_epoch += 1
        table = encode_table(words, self._newest_epoch, self._seed)
        first = self._table_first
        for copy in (first, 1 - first):
            self.backing.pwrite(table, self.header.section(SectionKind.TABLE, copy).offset)
            self._sync()
            self._epoch = self._newest_epoch
            self._journal_seq = self._journal_at = 0
            self._table_first = 1 - copy

    def _write_state(self, state: State) -> None:
        """Write both copies of the state block, the second after the first is durable."""
        state = replace(state, generation=self._state.generation + 1)
        block = encode_state(state, self._seed)
        first = self._state_first
        self.backing.pwrite(block, self.header.section(SectionKind.STATE, first).offset)
        self.backing.sync()
        self.backing.pwrite(block, self.header.section(SectionKind.STATE, 1 - first).offset)
        self._state = state

    def _punch(self, zone_numbers: Sequence[int]) -> None:
        """Give back the space of zones, neighbours in one call."""
        geometry = self.geometry
        index = 0
        while index < len(zone_numbers):
            first = zone_numbers[index]
            end = first
            while index < len(zone_numbers) and zone_numbers[index] == end:
                index += 1
                end += 1
            start = geometry.zone_start(first)
            length = min(geometry.zone_start(end), geometry.size) - start
            self.backing.punch(to_bytes(start), to_bytes(length))


def is_full(error: OSError) -> bool:
    """Say whether a full host refused a write, by which nothing is lost; a sync that fails is another matter."""
    return error.errno in NO_SPACE_ERRNOS and not isinstance(error, SyncFailedError)
