"""Opening, closing, finishing and resetting zones: a range of them, or all zones in the conditions of the ALL form.

May not know: protocols, injected faults. Each command takes the port through which it comes, which has a method for it.

A command on a range is all or nothing. It is checked and begun under the lock; a long one then holds its zones and goes
on in portions (:mod:`holds`).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from zonefs_emu.device.counters import Counter
from zonefs_emu.device.holds import Hold
from zonefs_emu.device.intent_log import ALL_ZONES
from zonefs_emu.errors import CommandError, Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.machine import PORTION_ZONES, Changes
from zonefs_emu.model.transitions import Operation
from zonefs_emu.units import Sector

if TYPE_CHECKING:
    from zonefs_emu.device.port import Port

#: The machine's own portions of a command: where each ends, and what it has changed.
_Portions: TypeAlias = Iterator[tuple[int, Changes]]

_COUNTER: Final = {
    Operation.OPEN: Counter.OPENS,
    Operation.CLOSE: Counter.CLOSES,
    Operation.FINISH: Counter.FINISHES,
    Operation.RESET: Counter.RESETS,
}


def manage(port: "Port", operation: Operation, sector: Sector, nr_zones: int) -> Status:
    """Do what :meth:`Port.manage` does."""
    device = port.device
    first = sector // device.geometry.zone_size
    end = first + nr_zones
    counter = _COUNTER[operation]
    is_long = nr_zones > PORTION_ZONES
    whole = is_long and _needs_all(device.geometry, operation)
    reach = (0, device.geometry.nr_zones) if whole else (first, end)
    hold: Hold | None = None
    with device.lock:
        try:
            portions = _begin(
                port, operation, sector, 0, reach=reach,
                begin=partial(device.machine.begin_manage, operation, sector, nr_zones, port.dialect),
            )  # fmt: skip
        except CommandError as error:
            return port.refusals.command(operation, error, sector)
        if is_long:
            hold = device.holds.take(*reach)
        else:
            with device.changing():
                for _, changes in portions:
                    device.publish_and_notify(changes, port.audience)
            _commit_intent(port)
    if hold is None:
        device.counters.count_all(range(first, end), counter)
    else:
        with device.holds.kept(hold):
            for done, at, _ in _in_portions(port, portions, hold, end, shrinking=not whole):
                device.counters.count_all(range(max(done, first), at), counter)
    return port.refusals.lost(operation, sector, zone_no=first) if device.image.is_lost else Status.OK


def manage_all(port: "Port", operation: Operation) -> Status:
    """Do what :meth:`Port.manage_all` does."""
    device = port.device
    reach = (0, device.geometry.nr_zones)
    with device.lock:
        try:
            portions = _begin(
                port, operation, 0, ALL_ZONES, reach=reach,
                begin=partial(device.machine.begin_manage_all, operation, port.dialect),
            )  # fmt: skip
        except CommandError as error:
            return port.refusals.command(operation, error)
        hold = device.holds.take(*reach)
    with device.holds.kept(hold):
        shrinking = not _needs_all(device.geometry, operation)
        for _, _, asked in _in_portions(port, portions, hold, reach[1], shrinking=shrinking):
            device.counters.count_all(asked, _COUNTER[operation])
    return port.refusals.lost(operation) if device.image.is_lost else Status.OK


def _needs_all(geometry: Geometry, operation: Operation) -> bool:
    """Return whether *operation* on many zones needs resources, which no other command may take before its end."""
    limited = geometry.max_open_zones or geometry.max_active_zones
    return bool(limited) and operation in (Operation.OPEN, Operation.FINISH)


def _begin(
    port: "Port",
    operation: Operation,
    sector: Sector,
    nr_sectors: int,
    *,
    reach: tuple[int, int],
    begin: Callable[[], _Portions],
) -> _Portions:
    """Wait for the zones of *reach* and return what *begin* does; with the lock held.

    *nr_sectors* is for the intent log: 0, or ALL_ZONES.

    Raises:
        CommandError: the image takes no changes, or the machine refuses.
    """
    device = port.device
    while True:
        device.holds.wait(*reach)
        intent_log = port.intent_log()
        if intent_log and 0 <= sector < device.geometry.size:
            cond = 0 if nr_sectors else device.machine.conds[sector // device.geometry.zone_size]
            intent_log.begin(operation, sector, nr_sectors, cond)
        try:
            device.require_writable(-1 if nr_sectors == ALL_ZONES else sector // device.geometry.zone_size)
            return begin()
        except CommandError as error:
            if device.wait_to_retry(error):
                continue
            if intent_log:
                intent_log.abort()
            raise


def _commit_intent(port: "Port") -> None:
    if intent_log := port.intent_log():
        intent_log.commit()


def _in_portions(
    port: "Port", portions: _Portions, hold: Hold, end: int, *, shrinking: bool
) -> Iterator[tuple[int, int, Sequence[int]]]:
    """Carry out the *portions* of a command on zones up to *end*, under *hold*, which the caller releases.

    Yields (first, end, changed zones) of each portion, without the lock. With *shrinking*, the zones of a portion are
    released after it.
    """
    device = port.device
    at = hold[0]
    is_first = True
    while at < end:
        if not is_first:
            device.image.let_others_in()
        is_first = False
        done = at
        with device.lock:
            with device.changing():
                at, changes = next(portions)
                device.publish_and_notify(changes, port.audience)
            if at >= end:
                _commit_intent(port)
            elif shrinking:
                device.holds.advance(hold, at)
        yield done, at, changes.changed
