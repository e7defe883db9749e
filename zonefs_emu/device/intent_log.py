"""A record of each change of a port, by which a request is executed exactly once even if the process is killed.

A transport whose peer outlives this process (vhost-user: the guest keeps the rings and the record in its memory) gets
its unfinished requests again after a restart. A write that is executed twice would fail the second time, because it is
not at wp any more, and an append that is executed twice doubles its data. So every change is recorded in memory that
the peer keeps:

    lock · check · begin(what) · move the bytes · publish wp · commit() · unlock

A long command releases the lock in between, but not its zones. *begin* comes after the command has passed all checks
and before anything changes. *commit* comes before the lock is released. A kill leaves one of three states:

* No intent: nothing has changed, so the request is executed.
* An intent and its commit: everything has changed, so the request is answered from the record.
* An intent only: the lock or the zones (:mod:`holds`) were held, so no other command has changed the zones since, and
  the state of the zone shows whether the change was made (:func:`is_done`).

The third state can be decided only while no other command has changed the zone since the restart. ``contested`` returns
whether one has. The request is then answered with IO_ERROR, because a guess could be wrong.
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

#: In place of a number of sectors, for a change of all zones at once.
ALL_ZONES: Final = (1 << 32) - 1


class Intent(NamedTuple):
    """One change of an unfinished request, from its record. *cond*: the zone's condition before it."""

    operation: Operation
    sector: Sector
    nr_sectors: int
    cond: Condition
    committed: bool
    #: The change is one of all zones at once.
    all_zones: bool


class IntentLog(Protocol):
    """Keeps the record of the requests of one queue. One request is executed at a time.

    One request may make several changes, one after the other. *operation* is never READ. *sector* is the sector to
    which an append writes. For management it is the start of the zone, and *nr_sectors* is 0 or ALL_ZONES.
    """

    def recover(self, operation: Operation, sector: Sector, nr_sectors: int) -> Intent | None:
        """Return the record of the change that is requested now, if an earlier process began it."""
        ...

    def begin(self, operation: Operation, sector: Sector, nr_sectors: int, cond: int) -> None:
        """Note that the change is about to happen."""
        ...

    def commit(self) -> None:
        """Note that the change that was begun or recovered last has been made."""
        ...

    def abort(self) -> None:
        """Drop the change that was begun last, because it was refused or the host failed."""
        ...


class _Current(threading.local):
    """The intent log of the request that this thread is executing."""

    log: IntentLog | None = None


class Intents:
    """Logs the changes of a port: ``port.intents = Intents(...)``.

    ``intents.current.log = log``: later changes by this thread are recorded in *log*; None if the transport cannot
    recover.
    """

    def __init__(self, contested: Callable[[int], bool]) -> None:
        """*contested* returns whether another port changed a zone (-1: any) since this process started."""
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
            # A write to a conventional zone can be repeated: it stores the same bytes at the same place.
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
    """Return whether a change was made that an earlier process has begun and not committed.

    A write to a sequential zone begins at wp, so it was made exactly if wp has passed its end. (wp of a FULL zone
    counts its data, too.) With a zone random write area, a write was made if wp has moved beyond its beginning; any
    other can be repeated, because it stores the same bytes in the same blocks. A repeated OPEN, FINISH or RESET changes
    nothing, so these are executed again. CLOSE is executed again too, except for an open zone without data, which CLOSE
    makes EMPTY: the second CLOSE would be refused.
    """
    if intent.all_zones:
        return False
    with device.lock:  # not port.zone(), which injected faults may change
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
