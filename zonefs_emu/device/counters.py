"""Counters that last: what was done to each zone, and to the device, since the image was created.

A row of sixteen numbers a zone, in a sparse section of the image: zones that were never used take no space and no
memory. Rows are kept here from the first use on and written back, if they changed, at close, at a flush if the last
time is a second ago, when there are many, and by a daemon every few seconds. They are statistics: a killed process
loses those since the last time they were written, and no rule depends on them.

No method raises for what is wrong with the section or with this module: the first error, of reading, of writing or of
the code, switches the counters off. Rows are then kept in memory only, where the read and write paths expect them, and
no number is told any more, because it would be wrong.
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
#: Rows that are counted in place are read and written in runs of up to so many; zones further apart than a page of rows
#: are not joined to one run, so that what lies between them stays a hole.
_RUN_ROWS: Final = 512
_GAP_ROWS: Final = 4096 // COUNTER_ROW_BYTES
#: Up to so many zones of one command are counted in memory.
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
    """The counters of one image. *rows* has what was used since they were last written back, by zone_no.

    *device* is the row of what concerns no zone. Changing a number of a row is one step for other threads (no call lies
    between reading and storing it), so the read path counts without a lock.
    """

    def __init__(self, backing: Backing, header: Header, *, readonly: bool) -> None:
        """Read the device's row."""
        section = header.section(SectionKind.COUNTERS)
        self._backing = backing
        self._offset = section.offset
        self._nr_zones = header.geometry.nr_zones
        self._readonly = readonly
        self._saved_ns = time.monotonic_ns()
        # Guards moving a row from the file to memory or back: two threads at once would undo each other's counts.
        self._moving = threading.Lock()
        self.rows: Final[dict[int, list[int]]] = {}
        #: The sum of each row as it is in the file: numbers only grow, so a row with another sum has changed.
        self._sums: dict[int, int] = {}
        self._noted: deque[tuple[int, Counter]] = deque()
        self.switch = Switch("the counters")
        self.device = self._fetch(-1)
        self._sums[-1] = sum(self.device)

    def _fetch(self, zone_no: int) -> list[int]:
        """Return the row in the file, or one of zeros if the counters are off, or go off by this."""
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
        """Return the row of *zone_no*, which is then in *rows*. Never raises."""
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
        """Do what :meth:`count` does without waiting for the file, and so with the device's lock held."""
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

        Many are counted in the image at once: rows in memory for each zone of a large device would push all others out.
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
        # A row in memory stands for the one in the file, which it replaces when it is written back.
        rows = self.rows
        if rows:
            for zone_no in zone_numbers:
                if row := rows.get(zone_no):
                    row[counter] += 1

    def close(self) -> None:
        """Write all rows back, and touch the section no more."""
        self.save()
        self.switch.close()

    def save_sometimes(self) -> None:
        """Write the rows back if that has not been done for a second."""
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
            # The sum first: what is counted from here on is written the next time.
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
        """Return the counters of *zone_no* by name; nothing if the counters are off, or go off by this."""
        self._count_noted()
        row = self.rows.get(zone_no) or self._fetch(zone_no)
        if self.switch.error is not None:
            return {}
        return {counter.name.lower(): row[counter] for counter in Counter if counter not in _DEVICE_ONLY}

    def totals(self) -> dict[str, int]:
        """Return the sums over all zones and the device's row, by name. Reads every row that was ever written.

        Takes no lock: what is counted meanwhile may be in the sums or not. Returns nothing if the counters are off, or
        go off by this.
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
        """Return up to *count* (zone_no, number), the zones with most of *counter* first.

        Returns nothing if the counters are off, or go off by this.
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
        """Yield (zone_no of the first row, the numbers of whole rows) of what the file may hold other than zeros."""
        first, end = self._place(0), self._place(self._nr_zones)
        done = first
        for start, length in self._backing.extents(first, end):
            # Whole rows, and none twice: where an extent ends is the host's affair.
            at = max(start - (start - first) % COUNTER_ROW_BYTES, done)
            done = max(end - (end - start - length) // COUNTER_ROW_BYTES * COUNTER_ROW_BYTES, done)
            while at < done:
                chunk = self._backing.pread(min(_CHUNK_BYTES, done - at), at)
                if not chunk:
                    raise OSError(errno.EIO, "the counters are cut off")
                yield (at - first) // COUNTER_ROW_BYTES, array("Q", chunk)
                at += len(chunk)


def _runs(zone_numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of the places in *zone_numbers* whose rows are worth reading and writing at once."""
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
