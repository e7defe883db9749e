"""Writing the parts that survive a power cut: zone table, journal and state block, each in two copies.

Invariants:

* The copy that may be the only good one is not overwritten first, and the first copy is durable before the second one
  is written.
* After an interrupted change, the two copies together give either the old content or the new one.

May not know: which zones changed, and whether the data below a write pointer is durable (image.py knows).
"""

import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from os import getpid

from zonefs_emu.persist.backing import Backing, checked_sync
from zonefs_emu.persist.codec.header import Header, SectionKind
from zonefs_emu.persist.codec.journal import Record, encode_record, record_bytes
from zonefs_emu.persist.codec.state import Mode, State, encode_state
from zonefs_emu.persist.codec.table import encode_table
from zonefs_emu.persist.metadata import NO_BOOT
from zonefs_emu.persist.recovery import Journal, Table


class EveryZone(set[int]):
    """Represents so many zones that a checkpoint writes the whole table, so that more of them change nothing.

    The alternative, a real set of a million zones, was rejected because growing it takes longer than the lock may be
    held.
    """

    def __len__(self) -> int:
        """Return a number that no journal has room for."""
        return sys.maxsize

    def add(self, element: int) -> None:
        """Do nothing: every zone is in the set."""

    def update(self, *others: Iterable[int]) -> None:
        """Do nothing: every zone is in the set."""


class Checkpoint:
    """The zone table and the journal of the changes since. One caller at a time."""

    def __init__(self, backing: Backing, header: Header, table: Table, journal: Journal) -> None:
        """Continue after *journal*, which belongs to *table*."""
        self._backing = backing
        self._seed = header.seed
        self._table_offsets = [header.section(SectionKind.TABLE, copy).offset for copy in (0, 1)]
        self._journal_offsets = [header.section(SectionKind.JOURNAL, copy).offset for copy in (0, 1)]
        self._journal_bytes = header.section(SectionKind.JOURNAL).length
        #: The generation of the table that counts.
        self.epoch = table.generation
        #: The number of the last record in the journal.
        self.journal_seq = len(journal.records)
        self._journal_end = journal.end
        self._newest_epoch = table.newest
        # The copy of the table to overwrite first. The other one may be the only good one.
        self._table_first = 1 if table.base == 0 else 0

    def has_room(self, nr_zones: int) -> bool:
        """Return whether a record of *nr_zones* zones fits into the journal."""
        return record_bytes(nr_zones) <= self._journal_bytes - self._journal_end

    def append(self, entries: Iterable[tuple[int, int]]) -> None:
        """Append a record of (zone_no, word) *entries* to the journal, durably.

        Raises:
            OSError: the host refuses. The next record takes the same place.
        """
        record = encode_record(Record(epoch=self.epoch, seq=self.journal_seq + 1, entries=tuple(entries)), self._seed)
        for offset in self._journal_offsets:
            self._backing.pwrite(record, offset + self._journal_end)
        checked_sync(self._backing)
        self.journal_seq += 1
        self._journal_end += len(record)

    def compact(self, words: bytes) -> None:
        """Write the *words* of all zones as a new table, durably, and begin an empty journal.

        A compaction that a full host interrupts leaves a good image. Its generation is not used again, so its blocks
        cannot complete a later compaction. A copy that it has written completely counts, and is not overwritten first.

        Raises:
            OSError: the host refuses.
        """
        self._newest_epoch += 1
        table = encode_table(words, self._newest_epoch, self._seed)
        first = self._table_first
        for copy in (first, 1 - first):
            self._backing.pwrite(table, self._table_offsets[copy])
            checked_sync(self._backing)
            self.epoch = self._newest_epoch
            self.journal_seq = self._journal_end = 0
            self._table_first = 1 - copy

    def repair(self, table: Table) -> None:
        """Complete one copy of the table from both copies, durably, so that the other one may be overwritten.

        A torn write loses nothing, because blocks that differ from *table* are of no use. The copy is written even if
        it seems complete: after a failed sync it may be in the host's cache only.

        Nothing is written if a compaction has completed a copy: that copy counts instead of *table*, and this would
        overwrite it.

        Raises:
            OSError: the host refuses.
        """
        if self.epoch != table.generation:
            return
        self._backing.pwrite(
            encode_table(table.words, table.generation, self._seed), self._table_offsets[1 - self._table_first]
        )
        self._backing.sync()


class StateBlock:
    """The state block: whether the image is in use, and so which copy of the zone states counts."""

    def __init__(self, backing: Backing, header: Header, state: State, first: int) -> None:
        """*state* is the newest good block, *first* the copy to overwrite first."""
        self._backing = backing
        self._seed = header.seed
        self._offsets = [header.section(SectionKind.STATE, copy).offset for copy in (0, 1)]
        self.state = state
        # The other copy may be the only good one.
        self._first = first

    def mark_live(self, boot_id: bytes, owner: str) -> None:
        """Note that this process (in words, *owner*) uses the image since the boot *boot_id*; not yet durable.

        Raises:
            OSError: the host refuses.
        """
        self._write(replace(self.state, mode=Mode.LIVE, boot_id=boot_id, owner_pid=getpid(), owner=owner))

    def mark_clean(self, epoch: int, journal_seq: int) -> None:
        """Note durably that the image was stopped in order, with record *journal_seq* of *epoch* as the last one.

        Raises:
            OSError: the host refuses.
        """
        self._write(
            replace(
                self.state,
                mode=Mode.CLEAN,
                boot_id=NO_BOOT,
                epoch=epoch,
                journal_seq=journal_seq,
                owner_pid=0,
                owner="",
            )
        )
        self._backing.sync()

    def distrust_live_table(self) -> None:
        """Note that the next open must not trust the live table, in as many copies as the host accepts.

        Both copies are written, although the sync between the two fails now.
        """
        block = encode_state(replace(self.state, generation=self.state.generation + 1, boot_id=NO_BOOT), self._seed)
        for copy in (self._first, 1 - self._first):
            with suppress(OSError):
                self._backing.pwrite(block, self._offsets[copy])
                self._backing.sync()

    def _write(self, state: State) -> None:
        """Write both copies, the second after the first is durable."""
        state = replace(state, generation=self.state.generation + 1)
        block = encode_state(state, self._seed)
        self._backing.pwrite(block, self._offsets[self._first])
        self._backing.sync()
        self._backing.pwrite(block, self._offsets[1 - self._first])
        self.state = state
