"""Noting refusals of a port: in the log, with the state of the zone at that time, and in the counters.

May not know: how commands run. The commands of a port return a status, which is all that a protocol can express. A
caller that needs the refusal as well runs the command inside :meth:`Refuser.collect`.
"""

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Final

from zonefs_emu.device.core import DeviceCore
from zonefs_emu.device.counters import Counter
from zonefs_emu.device.refusals import NR_HOLDERS_MAX, Refusal, now_ns
from zonefs_emu.device.rules import RULE_OF_STATUS, DeviceRule, Rule
from zonefs_emu.errors import CommandError, Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Attribute, Condition
from zonefs_emu.persist.backing import is_full
from zonefs_emu.units import SECTOR_SHIFT, Sector

_LIMITS: Final = frozenset((Status.OPEN_RESOURCE, Status.ACTIVE_RESOURCE))


class _Collecting(threading.local):
    """The list in which this thread collects refusals."""

    refused: list[Refusal] | None = None


class Refuser:
    """Refuses for one port. Thread safe."""

    def __init__(self, device: DeviceCore, name: str) -> None:
        """*name* is that of the port."""
        self.device = device
        self._name = name
        self._collecting = _Collecting()

    @contextmanager
    def collect(self) -> Iterator[list[Refusal]]:
        """Yield a list that receives the refusals of this thread in the context.

        A status other than OK adds at least one refusal, of which the last one is that of the status.
        """
        outer, refused = self._collecting.refused, list[Refusal]()
        self._collecting.refused = refused
        try:
            yield refused
        finally:
            self._collecting.refused = outer

    def refuse(
        self,
        rule: Rule,
        operation: Operation | None,
        status: Status,
        sector: Sector = 0,
        nr_sectors: int = 0,
        *,
        zone_no: int = -1,
        request: str = "",
    ) -> Status:
        """Note that an operation was refused, by *rule*; returns *status*.

        Both the device and front-ends with rules of their own call it. *request* describes a malformed or unknown
        request for people; *operation* is None if that is no operation on zones.
        """
        device = self.device
        machine, log = device.machine, device.refusals
        cond = Condition.NOT_WP
        wp = 0
        if not 0 <= zone_no < device.geometry.nr_zones:
            zone_no = -1
        else:
            cond = Condition(machine.conds[zone_no])
            wp = zone_no * device.geometry.zone_size + machine.wps[zone_no]
        holders: tuple[int, ...] = ()
        if status in _LIMITS:
            resources = machine.resources
            holding = resources.open_zones if status is Status.OPEN_RESOURCE else resources.active_zones
            # The set is copied first, in one step, because an injected failure comes here without the lock.
            holders = tuple(sorted(islice(tuple(holding), NR_HOLDERS_MAX)))
        refusal = Refusal(
            seq=log.next_seq(), time_ns=now_ns(), front_end=self._name, operation=operation, status=status, rule=rule,
            zone_no=zone_no, cond=cond, wp=wp, sector=sector, nr_sectors=nr_sectors, nr_open=machine.nr_open,
            nr_active=machine.nr_active, holders=holders, request=request,
        )  # fmt: skip
        if self._collecting.refused is not None:
            self._collecting.refused.append(refusal)
        if device.image.is_closed:  # the log and the counters are gone
            return status
        if not device.image.readonly:
            log.add(refusal)
        if zone_no >= 0:
            device.counters.count(zone_no, Counter.REFUSED)
        else:
            device.counters.device[Counter.REFUSED] += 1
        return status

    def lost(self, operation: Operation, sector: Sector = 0, nr_sectors: int = 0, *, zone_no: int = -1) -> Status:
        """Refuse an operation because the image's file is lost."""
        self.device.notice_loss()
        return self.refuse(DeviceRule.LOST, operation, Status.IO_ERROR, sector, nr_sectors, zone_no=zone_no)

    def command(self, operation: Operation, error: CommandError, sector: Sector = 0, nr_sectors: int = 0) -> Status:
        """Refuse a command by the rule of the status of *error*."""
        if self.device.image.is_lost:
            return self.lost(operation, sector, nr_sectors, zone_no=error.zone_no)
        rule = RULE_OF_STATUS[error.status]
        attributes = self.device.machine.attributes
        if error.status is Status.ZONE_FULL and attributes[error.zone_no] & Attribute.FINISHED_BY_CONTROLLER:
            rule = DeviceRule.FINISHED_BY_CONTROLLER
        return self.refuse(rule, operation, error.status, sector, nr_sectors, zone_no=error.zone_no)

    def failed(self, operation: Operation, error: OSError, sector: Sector, nr_sectors: int = 0) -> Status:
        """Turn a failure of the host into a status.

        A failed write poisons the image, unless the host is full or the buffers were at fault: the kernel answers
        EFAULT if a peer has cut the file of the memory that it shares.
        """
        image = self.device.image
        status = Status.NO_SPACE if is_full(error) else Status.IO_ERROR
        zone_no = sector // self.device.geometry.zone_size
        image.look_after()
        if image.is_lost:
            return self.lost(operation, sector, nr_sectors, zone_no=zone_no)
        rule = DeviceRule.LOST_BUFFER if error.errno == errno.EFAULT else RULE_OF_STATUS[status]
        if operation is not Operation.READ:
            if status is Status.NO_SPACE or rule is DeviceRule.LOST_BUFFER:
                self._free_space(zone_no, sector, nr_sectors)
            else:
                image.fail(error, "the image could not be written")
        return self.refuse(rule, operation, status, sector, nr_sectors, zone_no=zone_no)

    def _free_space(self, zone_no: int, sector: Sector, nr_sectors: int) -> None:
        """Free the space beyond wp that a failed write has filled; no checkpoint points there.

        An EMPTY zone would keep the space for ever, because resetting it changes nothing. In a conventional zone, and
        in a zone random write area, each sector stays old or new.
        """
        geometry, machine = self.device.geometry, self.device.machine
        if geometry.is_conventional(zone_no):
            return
        covered = geometry.covered(zone_no, machine.wps[zone_no], machine.attributes[zone_no])
        first = max(sector, geometry.zone_start(zone_no) + covered)
        if first < sector + nr_sectors:
            # If the host refuses, the space stays allocated. Reads of it return zeros in any case.
            with suppress(OSError):
                self.device.image.backing.punch(first << SECTOR_SHIFT, sector + nr_sectors - first << SECTOR_SHIFT)
