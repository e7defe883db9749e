"""A record of each change of a port: a request is executed exactly once, even if the process is killed.

A transport whose peer outlives this process (vhost-user: the guest keeps the rings and a piece of memory for us) gets
its unfinished requests again after a restart. Executing a write twice would be an error for the guest (it is no longer
at wp) and an append twice would be doubled data. So every change leaves a mark in memory that the peer keeps:

    lock · check · begin(what) · move the bytes · publish wp · commit() · unlock

A long command lets go of the lock in between, but not of its zones. *begin* comes after the command has been found
good and before anything changes; *commit* comes before the lock is released. A kill leaves one of three pictures, each
of which is decidable:

* no intent: nothing has changed. Execute it.
* an intent and its landed mark: it is done. Answer it from the record.
* an intent only: the lock was held, or the zones were (:mod:`holds`), so no other command has changed them since, and
  the zone itself says what became of this one (:func:`is_done`).

The last picture is decidable only while no other command has changed the zone since the restart; ``contested`` says of
which zones that is no longer true, and such a request is answered with IO_ERROR instead of being guessed at.
"""

import threading
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from zonefs_emu.device.core import DeviceCore
from zonefs_emu.device.refusing import Refuser
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import OPEN_CONDITIONS, Attribute, Condition
from zonefs_emu.units import Sector

#: What an intent log is told instead of a number of sectors for a change of all zones at once.
ALL_ZONES: Final = (1 << 32) - 1


class Intent(NamedTuple):
    """One change of an unfinished request, as its record says. *cond*: the zone's condition before it."""

    operation: Operation
    sector: Sector
    nr_sectors: int
    cond: Condition
    committed: bool
    #: The change is one of all zones at once.
    all_zones: bool


class IntentLog(Protocol):
    """Keeps the record of the requests of one queue, of which one is executed at a time.

    One request may make several changes, one after the other; *operation* is never READ. *sector* is where an append
    lands; for management it is the start of the zone, and *nr_sectors* is 0, or ALL_ZONES.
    """

    def recover(self, operation: Operation, sector: Sector, nr_sectors: int) -> Intent | None:
        """Return the record of the change that is asked for now, if an earlier process began it."""
        ...

    def begin(self, operation: Operation, sector: Sector, nr_sectors: int, cond: int) -> None:
        """Note that the change is about to happen."""
        ...

    def commit(self) -> None:
        """Note that the change that was begun or recalled last has happened."""
        ...

    def abort(self) -> None:
        """Forget the change that was begun last: it was refused, or the host failed."""
        ...


class _Current(threading.local):
    """The intent log of the request that this thread is executing."""

    log: IntentLog | None = None


class Intents:
    """Logs the changes of a port: ``port.intents = Intents(...)``.

    ``intents.current.log = log``: the changes that this thread asks for from now on go to *log*; None where the
    transport cannot recover.
    """

    def __init__(self, contested: Callable[[int], bool]) -> None:
        """*contested* says whether others changed a zone (-1: any) since this process started."""
        self.current = _Current()
        self._contested = contested

    def answer(
        self, refuser: Refuser, operation: Operation, sector: Sector, nr_sectors: int
    ) -> tuple[Status, Sector] | None:
        """Return the answer to a request that an earlier process began, or None if it has to be executed.

        *refuser* is that of the port that was asked.
        """
        device, geometry = refuser.device, refuser.device.geometry
        intent_log = self.current.log
        intent = intent_log.recover(operation, sector, nr_sectors) if intent_log else None
        if intent_log is None or intent is None:
            return None
        zone_no = -1 if intent.all_zones else geometry.zone_no(intent.sector)
        if not intent.all_zones and (zone_no != geometry.zone_no(sector) or sector >= geometry.size):
            return None  # no such change was begun: the peer has overwritten the record
        if not intent.committed:
            # Writing the same bytes again to where they were meant to be is what the guest asked for, once or twice.
            again = intent.operation is Operation.WRITE and geometry.is_conventional(zone_no)
            if self._contested(zone_no) and not again:
                status = refuser.refuse(
                    DeviceRule.CONTESTED, operation, Status.IO_ERROR, intent.sector, nr_sectors, zone_no=zone_no
                )
                return status, intent.sector
            if not is_done(device, intent):
                return None
        intent_log.commit()
        return Status.OK, intent.sector


def is_done(device: DeviceCore, intent: Intent) -> bool:
    """Say whether a change that was begun, and after which the process died, is in the zone.

    Writes to a sequential zone start at wp, so wp has passed the end exactly if the write landed (FULL zones keep count
    of their data, too). With a zone random write area, a write that has moved wp beyond its beginning has landed, and
    any other can be done again, to the same blocks with the same bytes. Opening, finishing and resetting a zone a
    second time changes nothing, so those are executed again. So is CLOSE, but for the one case in which the second is
    refused: closing an open zone without data makes it EMPTY.
    """
    if intent.all_zones:
        return False
    with device.lock:  # not port.zone(): that says what an injected fault wants hosts to see
        zone = device.machine.zone(device.geometry.zone_no(intent.sector))
    if intent.operation is Operation.FLUSH_ZRWA or (
        intent.operation is Operation.WRITE and zone.attributes & Attribute.ZRWA
    ):
        return zone.wp > intent.sector
    if intent.operation is Operation.ALLOCATE_ZRWA:  # of an EMPTY zone, which has none
        return bool(zone.attributes & Attribute.ZRWA)
    if intent.operation in (Operation.WRITE, Operation.APPEND):
        conventional = device.geometry.is_conventional(zone.zone_no)
        return not conventional and zone.wp >= intent.sector + intent.nr_sectors
    if intent.operation is Operation.SET_EXTENSION:  # of an EMPTY zone, which has none
        return bool(zone.attributes & Attribute.EXTENSION)
    return intent.operation is Operation.CLOSE and intent.cond in OPEN_CONDITIONS and zone.cond is Condition.EMPTY
