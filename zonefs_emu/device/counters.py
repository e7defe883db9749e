"""Persistent counters: the operations on each zone and on the device since the image was created.

Each zone has a row of sixteen numbers in a sparse section of the image, so zones that were never used take no space and
no memory. A row is kept in memory from its first use on. Changed rows are written at close, at a flush (at most once a
second), when there are many, and by a daemon every few seconds. A kill loses the changes since then. No rule depends
on the counters.

No method raises for an error of the section or of this module: the first error switches the counters off. Rows are then
kept in memory only, where the read and write paths expect them, and no method reports a number, because it would be
wrong.
"""

import errno
import struct
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from enum import IntEnum
from heapq import nsmallest
from itertools import chain, islice
from typing import Final

from zonefs_emu.device.switch import Switch
from zonefs_emu.persist.backing import Backing
from zonefs_emu.persist.codec.header import COUNTER_ROW_BYTES, NR_COUNTERS, Header, SectionKind

_ROW: Final = struct.Struct(f"<{NR_COUNTERS}Q")
_ROWS_MAX: Final = 1 << 16
_SAVE_NS: Final = 1_000_000_000
_CHUNK_BYTES: Final = 1 << 20
#: The most rows in a run that is read, counted and written at once. Zones that are further apart than a page of rows
#: are in different runs, so that the space between them stays a hole.
_RUN_ROWS: Final = 512
_GAP_ROWS: Final = 4096 // COUNTER_ROW_BYTES
#: The most zones of one command that are counted in memory.
_FEW: Final = 64


class Counter(IntEnum):
    """The places in a row, part of the image format.

    FLUSHES, POWER_CYCLES and INTERNAL_ERRORS count in the device's row only.
    """

    READS = 0
    READ_SECTORS = 1
    WRITES = 2
    WRITTEN_SECTORS = 3
    APPENDS = 4
    OPENS = 5
    CLOSES = 6
    FINISHES = 7
    RESETS = 8
    IMPLICIT_CLOSES = 9
    REFUSED = 10
    FLUSHES = 11
    POWER_CYCLES = 12
    INTERNAL_ERRORS = 13


class Counters:
    """The counters of one image. *rows* has the rows in memory, by zone_no.

    *device* is the row of operations without a zone. Changing a number of a row is atomic for other threads, because no
    call is between reading and storing it. So the read path counts without a lock.
    """

    def __init__(self, backing: Backing, header: Header, *, readonly: bool) -> None:
        """Read the device's row."""
        section = header.section(SectionKind.COUNTERS)
        self._backing = backing
        self._offset = section.offset
        self._nr_zones = header.geometry.nr_zones
        self._readonly = readonly
        self._saved_ns = time.monotonic_ns()
        # For moving a row from the file to memory or back. Without it, two threads could undo each other's counts.
        self._moving = threading.Lock()
        self.rows: Final[dict[int, list[int]]] = {}
        #: The sum of each row in the file. Numbers only grow, so a row with another sum has changed.
        self._sums: dict[int, int] = {}
        self._noted: deque[tuple[int, Counter]] = deque()
        self.switch = Switch("the counters")
        self.device = self._fetch(-1)
        self._sums[-1] = sum(self.device)

    def _fetch(self, zone_no: int) -> list[int]:
        """Return the row in the file, or zeros if the counters are off or an error switches them off."""
        if self.switch.error is not None:
            return [0] * NR_COUNTERS
        try:
            return self._read_row(zone_no)
        except Exception as error:  # the boundary of observers
            self.switch.put_off(error)
            return [0] * NR_COUNTERS

    def _read_row(self, zone_no: int) -> list[int]:
        return list(_ROW.unpack(self._backing.pread(COUNTER_ROW_BYTES, self._place(zone_no))))

    def _place(self, zone_no: int) -> int:
        return self._offset + (zone_no + 1) * COUNTER_ROW_BYTES

    def load(self, zone_no: int) -> list[int]:
        """Return the row of *zone_no* and keep it in *rows*. Never raises."""
        row = self.rows.get(zone_no)
        if row is None:
            with self._moving:
                if len(self.rows) >= _ROWS_MAX:
                    self._write_back(list(islice(self.rows, _RUN_ROWS)), forget=True)
                row = self.rows.get(zone_no)
                if row is None:
                    row = self._fetch(zone_no)
                    self._sums[zone_no] = sum(row)
                    self.rows[zone_no] = row
        return row

    def count(self, zone_no: int, counter: Counter) -> None:
        """Add one to *counter* of *zone_no*."""
        self.load(zone_no)[counter] += 1

    def note(self, zone_no: int, counter: Counter) -> None:
        """Do what :meth:`count` does without waiting for the file; callable with the device's lock held."""
        row = self.rows.get(zone_no)
        if row is not None:
            row[counter] += 1
        else:
            self._noted.append((zone_no, counter))

    def _count_noted(self) -> None:
        while self._noted:
            self.count(*self._noted.popleft())

    def count_all(self, zone_numbers: Sequence[int], counter: Counter) -> None:
        """Add one to *counter* of all *zone_numbers* (rising).

        Many zones are counted in the image directly: rows in memory for each would push all others out.
        """
        if len(zone_numbers) <= _FEW:
            for zone_no in zone_numbers:
                self.count(zone_no, counter)
            return
        with self._moving:
            if self.switch.error is not None:
                return
            try:
                for first, end in _runs(zone_numbers):
                    self._count_run(zone_numbers[first:end], counter)
            except Exception as error:  # the boundary of observers
                self.switch.put_off(error)

    def _count_run(self, zone_numbers: Sequence[int], counter: Counter) -> None:
        first, last = zone_numbers[0], zone_numbers[-1]
        place = self._place(first)
        numbers = array("Q", self._backing.pread((last + 1 - first) * COUNTER_ROW_BYTES, place))
        at = counter - first * NR_COUNTERS
        for zone_no in zone_numbers:
            numbers[zone_no * NR_COUNTERS + at] += 1
        self._backing.pwrite(numbers.tobytes(), place)
        # A row in memory replaces the one in the file when it is written back.
        rows = self.rows
        if rows:
            for zone_no in zone_numbers:
                if row := rows.get(zone_no):
                    row[counter] += 1

    def close(self) -> None:
        """Write all rows back, and switch the counters off."""
        self.save()
        self.switch.close()

    def save_sometimes(self) -> None:
        """Write the rows back unless that was done within the last second."""
        if time.monotonic_ns() - self._saved_ns >= _SAVE_NS:
            self.save()

    def save(self) -> None:
        """Write all rows back."""
        self._count_noted()
        with self._moving:
            self._save()

    def _save(self) -> None:
        self._saved_ns = time.monotonic_ns()
        if self._readonly:
            return
        self._write_back([*self.rows, -1], forget=False)

    def _write_back(self, zone_numbers: Sequence[int], *, forget: bool) -> None:
        """Write the rows of *zone_numbers* (-1: the device's) if they have changed; *forget*: not kept in memory."""
        for zone_no in zone_numbers:
            row = self.device if zone_no < 0 else self.rows[zone_no]
            # The sum is taken first, so that later counts are written the next time.
            total = sum(row)
            if total != self._sums[zone_no] and self.switch.error is None and not self._readonly:
                try:
                    self._backing.pwrite(_ROW.pack(*row), self._place(zone_no))
                except Exception as error:  # the boundary of observers
                    self.switch.put_off(error)
                self._sums[zone_no] = total
            if forget:
                del self.rows[zone_no], self._sums[zone_no]

    def zone(self, zone_no: int) -> dict[str, int]:
        """Return the counters of *zone_no* by name; nothing if the counters are off or an error switches them off."""
        self._count_noted()
        row = self.rows.get(zone_no) or self._fetch(zone_no)
        if self.switch.error is not None:
            return {}
        return {counter.name.lower(): row[counter] for counter in Counter if counter not in _DEVICE_ONLY}

    def totals(self) -> dict[str, int]:
        """Return the sums over all zones and the device's row, by name. Reads every row that was ever written.

        Takes no lock, so operations that are counted meanwhile may be in the sums or not. Returns nothing if the
        counters are off or an error switches them off.
        """
        if self.switch.error is None:
            try:
                return self._totals()
            except Exception as error:  # the boundary of observers
                self.switch.put_off(error)
        return {}

    def _totals(self) -> dict[str, int]:
        self._count_noted()
        sums = list(self.device)
        for zone_no, row in list(self.rows.items()):
            stored = self._read_row(zone_no)
            sums = [total + kept - old for total, kept, old in zip(sums, row, stored, strict=True)]
        for _, numbers in self._stored_rows():
            sums = [total + sum(numbers[place::NR_COUNTERS]) for place, total in enumerate(sums)]
        return {counter.name.lower(): sums[counter] for counter in Counter}

    def top(self, counter: Counter, count: int) -> list[tuple[int, int]]:
        """Return up to *count* pairs (zone_no, number), the zones with the highest *counter* first.

        Returns nothing if the counters are off or an error switches them off.
        """
        if self.switch.error is None:
            try:
                return self._top(counter, count)
            except Exception as error:  # the boundary of observers
                self.switch.put_off(error)
        return []

    def _top(self, counter: Counter, count: int) -> list[tuple[int, int]]:
        self._count_noted()
        kept = {zone_no: row[counter] for zone_no, row in list(self.rows.items())}
        stored = (
            (zone_no, number)
            for first, numbers in self._stored_rows()
            for zone_no, number in enumerate(numbers[counter::NR_COUNTERS], first)
            if zone_no not in kept
        )
        found = (entry for entry in chain(kept.items(), stored) if entry[1])
        return nsmallest(count, found, key=lambda entry: (-entry[1], entry[0]))

    def _stored_rows(self) -> Iterator[tuple[int, "array[int]"]]:
        """Yield (zone_no of the first row, the numbers of whole rows) for each part of the file that may have data."""
        first, end = self._place(0), self._place(self._nr_zones)
        done = first
        for start, length in self._backing.extents(first, end):
            # An extent may end anywhere, so the part is extended to whole rows, and no row is read twice.
            at = max(start - (start - first) % COUNTER_ROW_BYTES, done)
            done = max(end - (end - start - length) // COUNTER_ROW_BYTES * COUNTER_ROW_BYTES, done)
            while at < done:
                chunk = self._backing.pread(min(_CHUNK_BYTES, done - at), at)
                if not chunk:
                    raise OSError(errno.EIO, "the counters are cut off")
                yield (at - first) // COUNTER_ROW_BYTES, array("Q", chunk)
                at += len(chunk)


def _runs(zone_numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of each run in *zone_numbers* whose rows are read and written at once."""
    first = 0
    length = len(zone_numbers)
    while first < length:
        end = min(first + _RUN_ROWS, length)
        if zone_numbers[end - 1] - zone_numbers[first] != end - 1 - first:
            end = first + 1
            while (
                end < length
                and zone_numbers[end] - zone_numbers[end - 1] <= _GAP_ROWS
                and zone_numbers[end] - zone_numbers[first] < _RUN_ROWS
            ):
                end += 1
        yield first, end
        first = end


_DEVICE_ONLY: Final = frozenset((Counter.FLUSHES, Counter.POWER_CYCLES, Counter.INTERNAL_ERRORS))
