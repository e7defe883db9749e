"""What a queue has done and perhaps not answered, kept where the death of this process does not reach.

When a server of ublk dies, the kernel keeps its requests and gives them to the next one again, the done and the undone
alike, and says nothing about which is which. So before a write, an append or a close changes a zone, a record of it is
stored in a file that both processes map; it is freed once the kernel has taken the answer.

The next server treats a record as a question, never as a fact: it may be of a request that was answered in the instant
of the kill. The answer is in the image. A write or append that was done has left its bytes below wp; if the very bytes
that are asked for now are there, it was this request, and it is answered without being done again. Everything else is
done again, which for opening, finishing and resetting changes nothing. What remains undecidable is an append that was
answered in that instant and that is followed, within SECONDS_MAX, by another of the same bytes to the same zone.

May not know: io_uring, ublk's structures. Invariants: one slot per tag, of 8-byte words that are each stored at once;
word 0 is stored last, so that a slot which counts is whole.

::

    header     word 0     magic, version
    (8 words)       1     the device's tag
                    2     number of slots
    slot            0     FREE, INTENDED or LANDED
    (4 words)       1     sector; of an append: where it lands
                    2     nr_sectors | operation << 32 | condition before << 40
"""

import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zonefs_emu.device.device import Port
from zonefs_emu.device.intent_log import Intent
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import Sector, to_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: How long a record of an earlier process counts: the kernel gives requests again as soon as the device goes on.
SECONDS_MAX: Final = 60
FREE: Final = 0
INTENDED: Final = 1
LANDED: Final = 2
SLOT_WORDS: Final = 4
_MAGIC: Final = 0x5A55424C | 1 << 32  # "ZUBL", version 1
_HEADER_WORDS: Final = 8
_WORD_BYTES: Final = 8
_COUNTED: Final = frozenset((Operation.WRITE, Operation.APPEND, Operation.CLOSE))


class Records:
    """The file: twice as many slots as there are tags, so that those of an earlier process stay until asked for."""

    def __init__(self, path: Path, *, device_tag: int, nr_tags: int, go_on: bool) -> None:
        """Map *path*. With *go_on* the records in it are of our predecessor, if they are of this device.

        Raises:
            OSError: the host refuses.
        """
        self.path = path
        nr_slots = 2 * nr_tags
        length = (_HEADER_WORDS + nr_slots * SLOT_WORDS) * _WORD_BYTES
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(fd).st_size != length:
                os.ftruncate(fd, 0)
                os.ftruncate(fd, length)
            self._map = mmap.mmap(fd, length)
        finally:
            os.close(fd)
        self.words = words = memoryview(self._map).cast("Q")
        if not go_on or (words[0], words[1], words[2]) != (_MAGIC, device_tag, nr_slots):
            words[0] = 0
            for index in range(1, len(words)):
                words[index] = 0
            words[1], words[2] = device_tag, nr_slots
            words[0] = _MAGIC
        places = range(_HEADER_WORDS, _HEADER_WORDS + nr_slots * SLOT_WORDS, SLOT_WORDS)
        free = [at for at in places if words[at] == FREE]
        used = [at for at in places if words[at] != FREE]
        while len(free) < nr_tags:
            # More than there can be requests: those of several kills, long answered.
            free.append(used.pop(0))
        #: Word index of the slot of each tag, by its number over all queues.
        self.slots = free[:nr_tags]
        for at in self.slots:
            words[at] = FREE
        #: Slots of requests that an earlier process may not have answered; empty almost always.
        self.old = [at for at in used if self.change(at)[0] in _COUNTED]
        self._old_until = time.monotonic() + SECONDS_MAX

    def change(self, at: int) -> tuple[int, Sector, int, int, bool]:
        """Return what slot *at* says: operation, sector, nr_sectors, condition before, committed."""
        state, sector, what = self.words[at : at + 3]
        return what >> 32 & 0xFF, sector, what & 0xFFFFFFFF, what >> 40 & 0xFF, state == LANDED

    def expire(self) -> None:
        """Forget the records of an earlier process if their time is over."""
        if self.old and time.monotonic() > self._old_until:
            for at in self.old:
                self.words[at] = FREE
            self.old.clear()

    def take_over(self, at: int, number: int) -> None:
        """Make old slot *at* that of tag *number*: it is freed when that tag is answered."""
        self.old.remove(at)
        # The slot that the tag had is free and stays unused: there are enough.
        self.slots[number] = at

    def close(self) -> None:
        """Let the file go."""
        self.words.release()
        self._map.close()

    def remove(self) -> None:
        """Let the file go for good: the device is gone."""
        self.close()
        self.path.unlink(missing_ok=True)


class TagIntentLog:
    """A :class:`zonefs_emu.device.intent_log.IntentLog` for one thread; *number* says which tag it executes."""

    def __init__(self, records: Records, port: Port) -> None:
        """Keep the records of what the calling thread asks of *port*."""
        self.number = 0
        self.payload: Sequence[Buffer] = ()
        self._records = records
        self._words = records.words
        self._slots = records.slots
        self._port = port

    def begin(self, operation: Operation, sector: Sector, nr_sectors: int, cond: int) -> None:
        """Record a change; see the protocol."""
        words = self._words
        at = self._slots[self.number]
        words[at + 1] = sector
        words[at + 2] = nr_sectors | operation << 32 | cond << 40
        words[at] = INTENDED

    def commit(self) -> None:
        """Record that it has happened; see the protocol."""
        self._words[self._slots[self.number]] = LANDED

    def abort(self) -> None:
        """Forget it; see the protocol."""
        self._words[self._slots[self.number]] = FREE

    # -- after a restart --------------------------------------------------------------------------------------

    def recall(self, operation: Operation, sector: Sector, nr_sectors: int) -> Intent | None:
        """Return what has been done of a request that comes again; None if it is to be done."""
        records = self._records
        if not records.old:
            return None
        records.expire()
        for at in list(records.old):
            kind, where, length, cond, _ = records.change(at)
            if kind != operation:
                continue
            if operation is Operation.CLOSE:
                if where == sector and self._cond(sector) is Condition.EMPTY:
                    return self._found(
                        at, Intent(operation, sector, 0, Condition(cond), committed=True, all_zones=False)
                    )
            elif length == nr_sectors and self._is_at(operation, sector, where) and self._holds(where, nr_sectors):
                return self._found(
                    at, Intent(operation, where, nr_sectors, Condition(cond), committed=True, all_zones=False)
                )
        return None

    def prefix(self, sector: Sector, nr_sectors: int) -> int:
        """Return how many of *nr_sectors* from *sector* on an earlier process was asked to write as one; 0 if none.

        The kernel may have made a waiting write longer by the one that follows on it.
        """
        for at in self._records.old:
            kind, where, length, _, _ = self._records.change(at)
            if kind == Operation.WRITE and where == sector and length < nr_sectors:
                return length
        return 0

    def _found(self, at: int, intent: Intent) -> Intent:
        self._records.take_over(at, self.number)
        return intent

    def _cond(self, sector: Sector) -> Condition:
        return self._port.zone(self._port.geometry.zone_no(sector)).cond

    def _is_at(self, operation: Operation, sector: Sector, where: Sector) -> bool:
        if operation is Operation.APPEND:
            zone_no = self._port.geometry.zone_no
            return zone_no(where) == zone_no(sector)
        return where == sector

    def _holds(self, sector: Sector, nr_sectors: int) -> bool:
        """Say whether the bytes that are asked for now lie below wp at *sector*."""
        geometry = self._port.geometry
        zone_no = geometry.zone_no(sector)
        if geometry.is_conventional(zone_no) or self._port.zone(zone_no).wp < sector + nr_sectors:
            return False
        found = bytearray(to_bytes(nr_sectors))
        return not self._port.read(sector, nr_sectors, [found]) and found == b"".join(self.payload)
