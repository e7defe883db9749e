"""The zone state machine as a table.

Rule 1: everything that decides the next condition of a zone is in this file.
Rule 2: this file knows nothing of FUSE, virtio, SCSI or files.

For each dialect the table gives, for every (condition, operation), the next condition or the Status of the refusal.
The machine takes every target from here. The following rules depend on more than the condition, so they are not in the
cells:

* a write or append that reaches the capacity makes the zone FULL (:func:`after_write`);
* a zone that CLOSE closes with its write pointer at the start becomes EMPTY, unless the dialect says that it keeps its
  active resource, or the zone has an attribute, which an EMPTY zone cannot have (:func:`after_close`);
* a zone that is closed to make room for another one goes into :data:`CLOSED_FOR_ROOM`;
* a write to a zone with a zone random write area may flush a part of it (:func:`flushed_by_write`), and some dialects
  refuse appends to such a zone (:data:`APPEND_TO_ZRWA`);
* power that is cut and restored closes or empties open zones (:func:`after_power_cycle`);
* :data:`SET_COND` has the conditions that a failing or repaired medium can put a zone into, and :func:`after_set_cond`
  checks that CLOSED fits the data of the zone;
* :data:`EXCURSION` has the conditions in which a drive may finish a zone by itself;
* a target that newly opens or activates a zone also needs a free resource (:mod:`zonefs_emu.model.machine`), and in
  some dialects so does finishing a zone that is not open (``Dialect.finish_needs_open``).

The ``*_ALL`` operations act on the zones whose condition has an entry in ``Dialect.all_zones`` and skip all others, so
they have no refusals.

Sources: ZBC-2 (zone condition state machine, OPEN/CLOSE/FINISH ZONE, RESET WRITE POINTER), virtio 1.4 block device
"Device Operation", NVMe ZNS Command Set 1.1 "Zone State Machine". Where these leave a choice, the tables follow the
tests of libzbc (02_state_machine_check) and QEMU's nvme device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Final, TypeAlias

from zonefs_emu.errors import Status
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, OPEN_CONDITIONS, Condition, ZoneType


class Operation(IntEnum):
    """The operations that a host can request on a zone."""

    READ = 0
    WRITE = 1
    APPEND = 2
    OPEN = 3
    CLOSE = 4
    FINISH = 5
    RESET = 6
    FLUSH = 7  #: of the device; no row in the tables
    SET_COND = 8  #: set by hand, like a failing medium; the same in all dialects, see :data:`SET_COND`
    SET_EXTENSION = 9  #: of the zone's descriptor; ZNS only
    ALLOCATE_ZRWA = 10  #: open the zone with a zone random write area; ZNS only
    FLUSH_ZRWA = 11  #: commit the first part of the area: "Flush Explicit ZRWA Range"; ZNS only


#: The operations that exist for all zones at once, and the operations that have a row in every table. The table of ZNS
#: has rows of further operations.
MANAGEMENT: Final = (Operation.OPEN, Operation.CLOSE, Operation.FINISH, Operation.RESET)
ZONE_OPERATIONS: Final = (Operation.READ, Operation.WRITE, Operation.APPEND, *MANAGEMENT)

Outcome: TypeAlias = Condition | Status
Row: TypeAlias = Mapping[Condition, Outcome]


class WriteRow:
    """The row of WRITE or APPEND in the form for the write path: indexed by plain numbers, with one look-up."""

    __slots__ = ("keeps_open", "operation", "outcomes")

    def __init__(self, operation: Operation, row: Row) -> None:
        """Take over *row*, the row of *operation*."""
        self.operation: Final = operation
        self.outcomes: Final[Mapping[int, Outcome]] = {int(cond): outcome for cond, outcome in row.items()}
        #: The open conditions that such a command does not change: only the write pointer moves.
        self.keeps_open: Final = frozenset(int(cond) for cond in OPEN_CONDITIONS if row[cond] is cond)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The answers of one standard, as data.

    *table*: operation -> condition -> next condition, or the Status of the refusal. A READ changes nothing, so its
    cells name the condition itself; WRITE and APPEND lead to open conditions; the management operations lead to any
    condition but NOT_WP, which a conventional zone keeps. *all_zones*: management operation -> conditions that its ALL
    form changes -> next condition. *read_across*: one read may cross the boundary of a sequential zone.
    *closed_at_start*: the condition after CLOSE of a zone whose write pointer is at its start. *finish_needs_open*:
    finishing an EMPTY or CLOSED zone needs an open resource, because the zone is opened in between. *has_zrwa*: a zone
    with a zone random write area is written anywhere in it and takes no appends; other dialects write and read every
    zone as if it had none.

    *on_write*, *on_append* and *readable* (the conditions in which READ is allowed) are made from the table.

    Raises:
        ValueError: a cell has a condition to which its operation cannot lead.
    """

    name: str
    table: Mapping[Operation, Row] = field(repr=False)
    all_zones: Mapping[Operation, Mapping[Condition, Condition]] = field(repr=False)
    read_across: bool = field(repr=False)
    closed_at_start: Condition = field(repr=False)
    finish_needs_open: bool = field(repr=False)
    has_zrwa: bool = field(repr=False, default=False)
    on_write: WriteRow = field(init=False, repr=False, compare=False)
    on_append: WriteRow = field(init=False, repr=False, compare=False)
    readable: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the cells, and make the parts for the read and write paths."""
        for operation, row in self.table.items():
            for cond, outcome in row.items():
                if not any(outcome is possible for possible in possible_outcomes(operation, cond)):
                    message = f"{operation.name} of a zone in {cond.name} cannot lead to {outcome.name}"
                    raise ValueError(message)
        object.__setattr__(self, "on_write", WriteRow(Operation.WRITE, self.table[Operation.WRITE]))
        object.__setattr__(self, "on_append", WriteRow(Operation.APPEND, self.table[Operation.APPEND]))
        reads = self.table[Operation.READ]
        object.__setattr__(self, "readable", frozenset(int(cond) for cond in Condition if reads[cond] is cond))


def possible_outcomes(operation: Operation, cond: Condition) -> tuple[Outcome, ...]:
    """Return the possible outcomes in the cell of *operation* and *cond*."""
    targets: tuple[Condition, ...]
    if operation is Operation.APPEND and cond is Condition.NOT_WP:
        targets = ()  # there is no write pointer to append at
    elif operation is Operation.READ or cond is Condition.NOT_WP:
        targets = (cond,)
    elif operation in MANAGEMENT or operation in {Operation.SET_EXTENSION, Operation.ALLOCATE_ZRWA}:
        targets = tuple(target for target in Condition if target is not Condition.NOT_WP)
    else:
        targets = (Condition.IMP_OPEN, Condition.EXP_OPEN)
    return (*targets, *(status for status in Status if status is not Status.OK))


_C = Condition
_S = Status


def _row(default: Outcome, **cells: Outcome) -> Row:
    """Build a row: *default* for the conditions not named; READONLY and OFFLINE refuse unless named."""
    row: dict[Condition, Outcome] = dict.fromkeys(Condition, default)
    row[_C.READONLY] = _S.ZONE_READONLY
    row[_C.OFFLINE] = _S.ZONE_OFFLINE
    row.update({Condition[name]: outcome for name, outcome in cells.items()})
    return MappingProxyType(row)


def _every(outcome: Outcome) -> Row:
    """Build a row with *outcome* in each cell."""
    return MappingProxyType(dict.fromkeys(Condition, outcome))


def _same(**refused: Outcome) -> Row:
    """Build a row that changes no condition, and refuses those in *refused*."""
    return MappingProxyType({cond: refused.get(cond.name, cond) for cond in Condition})


# Reading and writing are the same in all dialects. "If a write command [...] specifies a zone with the zone
# condition EMPTY or CLOSED, the device server transitions it to IMPLICIT OPEN" (ZBC-2, implicit open zone).
_READ: Final = _same(OFFLINE=_S.ZONE_OFFLINE)
_WRITE: Final = _row(_C.IMP_OPEN, NOT_WP=_C.NOT_WP, EXP_OPEN=_C.EXP_OPEN, FULL=_S.ZONE_FULL)
_APPEND: Final = _row(_C.IMP_OPEN, NOT_WP=_S.CONVENTIONAL, EXP_OPEN=_C.EXP_OPEN, FULL=_S.ZONE_FULL)

_OPEN_ALL: Final = MappingProxyType({_C.CLOSED: _C.EXP_OPEN})
_CLOSE_ALL: Final = MappingProxyType({_C.IMP_OPEN: _C.CLOSED, _C.EXP_OPEN: _C.CLOSED})
_FINISH_ALL: Final = MappingProxyType(dict.fromkeys(ACTIVE_CONDITIONS, _C.FULL))
# "RESET ALL: all but READONLY and OFFLINE"; an EMPTY zone has nothing to change.
_RESET_ALL: Final = MappingProxyType(dict.fromkeys((*sorted(ACTIVE_CONDITIONS), _C.FULL), _C.EMPTY))
_ALL_ZONES: Final = MappingProxyType(
    {
        Operation.OPEN: _OPEN_ALL,
        Operation.CLOSE: _CLOSE_ALL,
        Operation.FINISH: _FINISH_ALL,
        Operation.RESET: _RESET_ALL,
    }
)

# ZBC answers "already so" with success: OPEN and CLOSE leave a FULL zone FULL, CLOSE leaves an EMPTY one EMPTY.
_ZBC_TABLE: Final = MappingProxyType(
    {
        Operation.READ: _READ,
        Operation.WRITE: _WRITE,
        Operation.APPEND: _APPEND,
        Operation.OPEN: _row(_C.EXP_OPEN, NOT_WP=_S.CONVENTIONAL, FULL=_C.FULL),
        Operation.CLOSE: _row(_C.CLOSED, NOT_WP=_S.CONVENTIONAL, EMPTY=_C.EMPTY, FULL=_C.FULL),
        Operation.FINISH: _row(_C.FULL, NOT_WP=_S.CONVENTIONAL),
        Operation.RESET: _row(_C.EMPTY, NOT_WP=_S.CONVENTIONAL),
    }
)

# virtio and ZNS refuse what is not in their transition lists. virtio's list omits FINISH of EMPTY and CLOSED zones;
# mkzonefs and zonefs' truncate need it, and every peer allows it, so it is allowed here.
_STRICT_TABLE: Final = MappingProxyType(
    {
        **_ZBC_TABLE,
        Operation.OPEN: _row(_C.EXP_OPEN, NOT_WP=_S.CONVENTIONAL, FULL=_S.BAD_TRANSITION),
        Operation.CLOSE: _row(_C.CLOSED, NOT_WP=_S.CONVENTIONAL, EMPTY=_S.BAD_TRANSITION, FULL=_S.BAD_TRANSITION),
    }
)

# ZNS has one status for operations that a zone's condition does not allow, in READ ONLY and OFFLINE zones too: "Zone Is
# Read Only" and "Zone Is Offline" are for reads and writes only. QEMU's nvme device does the same.
# "If the zone is in the ZSE:Empty state, the controller associates the descriptor extension with the zone and
# transitions it to ZSC:Closed"; in all other states that is an invalid transition (Zone Management Send, "Set Zone
# Descriptor Extension").
# A zone random write area is allocated when an EMPTY zone is opened: "Invalid Zone Operation Request" is the status of
# "attempting to allocate a ZRWA when a zone is not in the ZSE:Empty state; or invalid Flush Explicit ZRWA Range" (ZNS
# 1.1b, "Completion"). A flush opens a CLOSED zone as a write does.
_ZNS_TABLE: Final = MappingProxyType(
    {
        operation: MappingProxyType({**row, _C.READONLY: _S.BAD_TRANSITION, _C.OFFLINE: _S.BAD_TRANSITION})
        if operation in MANAGEMENT
        else row
        for operation, row in _STRICT_TABLE.items()
    }
    | {
        Operation.SET_EXTENSION: MappingProxyType(
            {**_every(_S.BAD_TRANSITION), _C.EMPTY: _C.CLOSED, _C.NOT_WP: _S.CONVENTIONAL}
        ),
        Operation.ALLOCATE_ZRWA: MappingProxyType(
            {**_every(_S.ZRWA_INVALID), _C.EMPTY: _C.EXP_OPEN, _C.NOT_WP: _S.CONVENTIONAL}
        ),
        Operation.FLUSH_ZRWA: MappingProxyType(
            {
                **_every(_S.ZRWA_INVALID),
                _C.IMP_OPEN: _C.IMP_OPEN,
                _C.EXP_OPEN: _C.EXP_OPEN,
                _C.CLOSED: _C.IMP_OPEN,
                _C.NOT_WP: _S.CONVENTIONAL,
            }
        ),
    }
)

VIRTIO: Final = Dialect(
    name="virtio",
    table=_STRICT_TABLE,
    all_zones=_ALL_ZONES,
    read_across=False,
    closed_at_start=_C.EMPTY,
    finish_needs_open=False,
)
# URSWRZ ("Unrestricted Reads in Sequential Write Required Zones") is set, as Linux demands: reads cross zones.
ZBC: Final = Dialect(
    name="zbc",
    table=_ZBC_TABLE,
    all_zones=_ALL_ZONES,
    read_across=True,
    closed_at_start=_C.EMPTY,
    finish_needs_open=True,
)
# RAZB ("Read Across Zone Boundaries") is set. ZSC:Closed is entered from ZSEO "Close Zone" whatever the write
# pointer, so a closed zone without data keeps its active resource.
ZNS: Final = Dialect(
    name="zns",
    table=_ZNS_TABLE,
    all_zones=_ALL_ZONES,
    read_across=True,
    closed_at_start=_C.CLOSED,
    finish_needs_open=False,
    has_zrwa=True,
)
DIALECTS: Final = (VIRTIO, ZBC, ZNS)


#: The condition of an implicitly open zone that was closed to give its resource to another one.
#: Source: ZBC-2 "managing implicitly open zones"; virtio 1.4: the device may close an implicitly open zone.
CLOSED_FOR_ROOM: Final = _C.CLOSED

#: The answer to an append to a zone with a zone random write area, in dialects that have these (Dialect.has_zrwa).
#: Source: NVMe ZNS 1.1b, Zone Append; QEMU's nvme device answers the same.
APPEND_TO_ZRWA: Final = _S.ZRWA_INVALID

#: The outcome of a zone active excursion: the drive finishes an active zone by itself. It is the same in all dialects,
#: because other front-ends see what the drive has done. Source: NVMe ZNS 1.1, "Zone Active Excursions".
EXCURSION: Final[Row] = MappingProxyType(
    {**_every(_S.BAD_TRANSITION), **dict.fromkeys(ACTIVE_CONDITIONS, _C.FULL), _C.NOT_WP: _S.CONVENTIONAL}
)

#: The outcome of setting a condition by hand: type of the zone -> requested condition -> row. A failing medium puts a
#: zone into READONLY or OFFLINE; the other conditions are repairs. Only a host opens zones.
SET_COND: Final[Mapping[ZoneType, Mapping[Condition, Row]]] = MappingProxyType(
    {
        ZoneType.SWR: MappingProxyType(
            {
                _C.NOT_WP: _every(_S.CONVENTIONAL),
                _C.EMPTY: _every(_C.EMPTY),
                _C.IMP_OPEN: _every(_S.BAD_TRANSITION),
                _C.EXP_OPEN: _every(_S.BAD_TRANSITION),
                _C.CLOSED: _every(_C.CLOSED),
                _C.READONLY: _every(_C.READONLY),
                _C.FULL: _every(_C.FULL),
                _C.OFFLINE: _every(_C.OFFLINE),
            }
        ),
        ZoneType.CONVENTIONAL: MappingProxyType(
            {
                _C.NOT_WP: _every(_C.NOT_WP),
                _C.EMPTY: _every(_S.CONVENTIONAL),
                _C.IMP_OPEN: _every(_S.CONVENTIONAL),
                _C.EXP_OPEN: _every(_S.CONVENTIONAL),
                _C.CLOSED: _every(_S.CONVENTIONAL),
                _C.READONLY: _every(_C.READONLY),
                _C.FULL: _every(_S.CONVENTIONAL),
                _C.OFFLINE: _every(_C.OFFLINE),
            }
        ),
    }
)


def after_set_cond(outcome: Outcome, *, nr_written: int, capacity: int) -> Outcome:
    """Return the outcome of setting a condition by hand, for which the table has *outcome*.

    A CLOSED zone must have data, and room for more.
    """
    if outcome is _C.CLOSED and not 0 < nr_written < capacity:
        return _S.BAD_TRANSITION
    return outcome


def after_close(dialect: Dialect, attributes: int) -> Condition:
    """Return the condition after CLOSE, where the table has CLOSED, of a zone whose write pointer is at its start.

    A zone that has *attributes* stays active in every dialect. For zones with data, the table is right, and asking this
    function too would make closing many of them slower by a fifth.

    Source: ZBC-2, CLOSE ZONE; virtio 1.4, VIRTIO_BLK_T_ZONE_CLOSE; NVMe ZNS 1.1, Zone State Machine.
    """
    return _C.CLOSED if attributes else dialect.closed_at_start


def after_power_cycle(cond: Condition, nr_written: int, attributes: int = 0) -> Condition:
    """Return the condition after power was cut and restored, for a zone with *nr_written* sectors.

    Open and CLOSED zones come back CLOSED, or EMPTY without data. A zone with *attributes* comes back CLOSED in any
    case. All other zones keep their condition.

    Source: ZBC-2 "zone conditions and power cycles"; NVMe ZNS 1.1, Zone State Machine, "power loss".
    """
    if cond in ACTIVE_CONDITIONS:
        return _C.CLOSED if nr_written or attributes else _C.EMPTY
    return cond


def flushed_by_write(offset: int, end: int, *, wp: int, zrwa_size: int, granularity: int) -> int | Status:
    """Return by how many sectors a write moves the write pointer of a zone with a zone random write area.

    The write is from *offset* to before *end*; *wp* is the write pointer, and all three count from the start of the
    zone. The area has *zrwa_size* sectors. Returns a Status if the write is not allowed.

    A write that ends in the area does not move the write pointer. A write that ends within another area's length behind
    the area causes an implicit flush: the write pointer moves by multiples of *granularity* until the area holds the
    last block of the write. Source: NVMe ZNS 1.1b, "Zone Random Write Area"; QEMU's nvme device.
    """
    if offset < wp or end > wp + 2 * zrwa_size:
        return _S.ZRWA_WRITE
    return -(-max(end - wp - zrwa_size, 0) // granularity) * granularity


def after_write(cond: Condition, *, reached_capacity: bool) -> Condition:
    """Return the condition of a zone after a write that leads to *cond*; FULL if the capacity was reached."""
    return _C.FULL if reached_capacity and cond != _C.NOT_WP else cond
