"""The record of a ublk device: the changes of requests whose answers the kernel has not taken.

When a server of ublk dies, the kernel keeps its requests and gives all of them to the next server, without saying which
ones were done. So before a request changes a zone, its intent is stored in a file that both processes map. The slot is
freed when the kernel has taken the answer.

A used slot is no proof, because its request may have been answered at the instant of the kill. The proof is in the
image: a write or append that was done has left its bytes below wp. If the bytes of the present request are there, it is
the same request, and it is answered without being done again. Everything else is done again; opening, finishing or
resetting a zone twice changes nothing.

A change that was begun and not made is forgotten before the first request comes. Its request is done again, possibly at
the same place, and the next append of the same bytes would otherwise get that place as well. One case cannot be
decided: an append that was answered at the instant of the kill, and another append of the same bytes to the same zone
within SECONDS_MAX.

May not know: io_uring, ublk's structures. Invariants: one slot per tag, of 8-byte words that are each stored at once;
word 0 is stored last, so that a slot which counts is whole.

::

    header     word 0     magic, version
    (8 words)       1     the device's tag
                    2     number of slots
    slot            0     FREE, BEGUN or COMMITTED
    (4 words)    1, 2     the intent (slot.py)
                    3     0
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zonefs_emu.device.intent_log import Intent, is_done
from zonefs_emu.device.port import Port
from zonefs_emu.inflight.record_file import map_record_file
from zonefs_emu.inflight.slot import COND_SHIFT, OPERATION_SHIFT, WORD_BYTES, SlotIntent, decode
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition, Zone
from zonefs_emu.units import Sector, to_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: How long the slots of an earlier process count: the kernel gives requests again as soon as the device goes on.
SECONDS_MAX: Final = 60
FREE: Final = 0
BEGUN: Final = 1
COMMITTED: Final = 2
SLOT_WORDS: Final = 4
_MAGIC: Final = 0x5A55424C | 1 << 32  # "ZUBL", version 1
_HEADER_WORDS: Final = 8
#: Operations that must not be done twice.
_COUNTED: Final = frozenset((Operation.WRITE, Operation.APPEND, Operation.CLOSE))
_CONDITIONS: Final = frozenset(Condition)


class TagRecord:
    """The file: twice as many slots as there are tags, so that those of an earlier process can stay."""

    def __init__(self, path: Path, port: Port, *, device_tag: int, nr_tags: int, go_on: bool) -> None:
        """Map *path*. With *go_on* its slots are those of the previous server, if it was of this device.

        *port* is that of the device, which executes no request before this returns.

        Raises:
            OSError: the host refuses.
        """
        self.path = path
        nr_slots = 2 * nr_tags
        self._map = map_record_file(path, (_HEADER_WORDS + nr_slots * SLOT_WORDS) * WORD_BYTES, go_on=go_on)
        self.words = words = memoryview(self._map).cast("Q")
        if (words[0], words[1], words[2]) != (_MAGIC, device_tag, nr_slots):
            words[0] = 0
            for index in range(1, len(words)):
                words[index] = 0
            words[1], words[2] = device_tag, nr_slots
            words[0] = _MAGIC
        places = range(_HEADER_WORDS, _HEADER_WORDS + nr_slots * SLOT_WORDS, SLOT_WORDS)
        free = [at for at in places if words[at] == FREE]
        used = [at for at in places if words[at] != FREE]
        while len(free) < nr_tags:
            # More slots are used than there are tags, so some are of requests that were answered before earlier kills.
            free.append(used.pop(0))
        #: Word index of the slot of each tag, by its number over all queues.
        self.slots = free[:nr_tags]
        for at in self.slots:
            words[at] = FREE
        #: Slots of requests that an earlier process has done and may not have answered; empty almost always.
        self.recoverable = [at for at in used if self._was_done(at, port)]
        for at in set(used) - set(self.recoverable):
            words[at] = FREE
        self._recoverable_until = time.monotonic() + SECONDS_MAX
        #: The threads of all queues take slots over.
        self._claiming = threading.Lock()

    def _was_done(self, at: int, port: Port) -> bool:
        """Say whether slot *at* has a change that must not be made twice, and that the state of its zone shows."""
        found = self.intent(at)
        if found.operation not in _COUNTED or found.cond not in _CONDITIONS or found.sector >= port.geometry.size:
            return False
        cond = Condition(found.cond)
        intent = Intent(
            Operation(found.operation), found.sector, found.nr_sectors, cond, committed=False, all_zones=False
        )
        return is_done(port.device, intent)

    def intent(self, at: int) -> SlotIntent:
        """Return the intent in slot *at*."""
        return decode(self.words[at + 1], self.words[at + 2])

    def expire(self) -> None:
        """Free the slots of an earlier process if their time is over."""
        if self.recoverable and time.monotonic() > self._recoverable_until:
            with self._claiming:
                for at in self.recoverable:
                    self.words[at] = FREE
                self.recoverable.clear()

    def take_over(self, at: int, number: int) -> bool:
        """Make slot *at* of an earlier process that of tag *number*: it is freed when that tag is answered.

        False, and nothing is done, if another thread has made it that of another tag meanwhile.
        """
        with self._claiming:
            if at not in self.recoverable:
                return False
            # The slot that the tag had is free and stays unused: there are enough.
            self.slots[number] = at
            # Last: once none are recoverable, a compiled walker copies the slots.
            self.recoverable.remove(at)
        return True

    def close(self) -> None:
        """Close the file."""
        self.words.release()
        self._map.close()

    def remove(self) -> None:
        """Close and remove the file, after the device was deleted."""
        self.close()
        self.path.unlink(missing_ok=True)


class TagIntentLog:
    """A :class:`zonefs_emu.device.intent_log.IntentLog` for one thread; *number* says which tag it executes."""

    #: The data of the write or append that is executed.
    payload: "Sequence[Buffer]" = ()

    def __init__(self, record: TagRecord, port: Port) -> None:
        """Store the intents of what the calling thread asks of *port* in *record*."""
        self.number = 0
        self._record = record
        self._words = record.words
        self._slots = record.slots
        self._port = port

    def begin(self, operation: Operation, sector: Sector, nr_sectors: int, cond: int) -> None:
        """Store an intent; see the protocol."""
        words = self._words
        at = self._slots[self.number]
        words[at + 1] = sector
        words[at + 2] = nr_sectors | operation << OPERATION_SHIFT | cond << COND_SHIFT
        words[at] = BEGUN

    def commit(self) -> None:
        """Note that the change has happened; see the protocol."""
        self._words[self._slots[self.number]] = COMMITTED

    def abort(self) -> None:
        """Forget the change that was begun; see the protocol."""
        self._words[self._slots[self.number]] = FREE

    # -- after a restart --------------------------------------------------------------------------------------

    def recover(self, operation: Operation, sector: Sector, nr_sectors: int) -> Intent | None:
        """Return the intent of a request that comes again and was done; None if it is to be done."""
        record = self._record
        if not record.recoverable:
            return None
        record.expire()
        for at in list(record.recoverable):
            found = record.intent(at)
            if (
                found.operation == operation
                and self._was_done(found, operation, sector, nr_sectors)
                and record.take_over(at, self.number)
            ):
                where, cond = found.sector, Condition(found.cond)
                return Intent(operation, where, nr_sectors, cond, committed=True, all_zones=False)
        return None

    def _was_done(self, found: SlotIntent, operation: Operation, sector: Sector, nr_sectors: int) -> bool:
        """Say whether the request for *operation* is the one that intent *found* is of, and has changed its zone."""
        if operation is Operation.CLOSE:
            return found.sector == sector and self._zone(sector).cond is Condition.EMPTY
        if found.nr_sectors != nr_sectors or not self._is_at(operation, sector, found.sector):
            return False
        return self._holds(found.sector, nr_sectors)

    def prefix(self, sector: Sector, nr_sectors: int) -> int:
        """Return how many of *nr_sectors* from *sector* on were one write of an earlier process; 0 if none were.

        The kernel may have joined a waiting write with the next one.
        """
        for at in self._record.recoverable:
            found = self._record.intent(at)
            if found.operation == Operation.WRITE and found.sector == sector and found.nr_sectors < nr_sectors:
                return found.nr_sectors
        return 0

    def _zone(self, sector: Sector) -> Zone:
        device = self._port.device
        with device.lock:  # not port.zone(), which injected faults may change
            return device.machine.zone(device.geometry.zone_no(sector))

    def _is_at(self, operation: Operation, sector: Sector, where: Sector) -> bool:
        if operation is Operation.APPEND:
            zone_no = self._port.geometry.zone_no
            return zone_no(where) == zone_no(sector)
        return where == sector

    def _holds(self, sector: Sector, nr_sectors: int) -> bool:
        """Say whether the bytes that are asked for now lie below wp at *sector*."""
        if self._zone(sector).wp < sector + nr_sectors:
            return False
        found = bytearray(to_bytes(nr_sectors))
        # Not port.read(), which injected faults may fail, and which counts.
        self._port.device.hot_path.access.read_all(sector, nr_sectors, [found])
        return found == b"".join(self.payload)
