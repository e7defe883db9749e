"""The scenarios of the conformance suite, as data: steps, and the status that the standards want for each.

:mod:`zonefs_emu.testing.conformance` carries them out through each front-end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import MANAGEMENT, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import Sector

_S = Status
_O = Operation
_C = Condition

#: A zone of a step: the one conventional zone that scenarios use, and one behind the last of the device.
CONVENTIONAL: Final = -1
BEYOND: Final = -2
#: In a step: the capacity of its zone, as a length or as the place that an offset counts from.
CAPACITY: Final = -1
#: Zone 0 holds the super block of zonefs, so that all adapters have the same zones to themselves.
CONVENTIONAL_ZONE: Final = 1
NR_CONVENTIONAL: Final = 2

MAX_OPEN: Final = 3
MAX_ACTIVE: Final = 4
_MAX_APPEND: Final = 256
_ZONE: Final = 512  # sectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that a host does.

    *zone*: of those that the scenario has, from 0, or CONVENTIONAL, or BEYOND. *at*: sectors from its start, or with
    *from_end* from its capacity. *nr_sectors* may be CAPACITY. *cond*: what SET_COND puts the zone into.
    *expected*: the device's answer. *unlike*: another answer that an adapter's own standard wants. *cannot*: adapters
    that have no way to say it, or to whose standard it means something else; allowed for steps that change nothing.
    """

    operation: Operation
    zone: int
    at: Sector = 0
    from_end: bool = False
    nr_sectors: Sector = 0
    cond: Condition = Condition.NOT_WP
    everywhere: bool = False
    expected: Status = Status.OK
    unlike: Mapping[str, Status] = field(default_factory=dict)
    cannot: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Steps on *nr_zones* sequential zones that nothing has touched before. *block_size_bytes*: only of such disks."""

    name: str
    steps: Sequence[Step]
    nr_zones: int = 1
    block_size_bytes: int = 0


def _write(
    zone: int, at: Sector, nr_sectors: Sector = 8, expected: Status = _S.OK, *, from_end: bool = False,
    cannot: Sequence[str] = (), **unlike: Status,
) -> Step:  # fmt: skip
    return Step(
        operation=_O.WRITE, zone=zone, at=at, nr_sectors=nr_sectors, expected=expected, from_end=from_end,
        unlike=unlike, cannot=frozenset(cannot),
    )  # fmt: skip


def read_step(
    zone: int, at: Sector = 0, nr_sectors: Sector = CAPACITY, expected: Status = _S.OK, *, from_end: bool = False,
    cannot: Sequence[str] = (), **unlike: Status,
) -> Step:  # fmt: skip
    """Return the step that reads *nr_sectors* of a zone from *at* on."""
    return Step(
        operation=_O.READ, zone=zone, at=at, nr_sectors=nr_sectors, expected=expected, from_end=from_end,
        unlike=unlike, cannot=frozenset(cannot),
    )  # fmt: skip


def _append(
    zone: int, nr_sectors: Sector = 8, expected: Status = _S.OK, *, at: Sector = 0, cannot: Sequence[str] = (),
    **unlike: Status,
) -> Step:  # fmt: skip
    return Step(
        operation=_O.APPEND, zone=zone, at=at, nr_sectors=nr_sectors, expected=expected, unlike=unlike,
        cannot=frozenset(cannot),
    )  # fmt: skip


def manage_step(
    operation: Operation, zone: int, expected: Status = _S.OK, *, at: Sector = 0, cannot: Sequence[str] = (),
    **unlike: Status,
) -> Step:  # fmt: skip
    """Return the step that opens, closes, finishes or resets a zone."""
    return Step(operation=operation, zone=zone, at=at, expected=expected, unlike=unlike, cannot=frozenset(cannot))


def _everywhere(operation: Operation) -> Step:
    return Step(operation=operation, zone=0, everywhere=True)


def _set_cond(zone: int, cond: Condition) -> Step:
    return Step(operation=_O.SET_COND, zone=zone, cond=cond)


#: Why an adapter cannot: zonefs has no way to say it (there is no such file, no such call, or it writes what fits).
_NOT_ZONEFS: Final = ("fuse",)
#: ZBC has no append; the adapter writes at wp, as Linux does, which is another thing where an append is refused.
_NOT_APPEND: Final = ("scsi", "fuse")
_COUNT_BLOCKS: Final = ("scsi", "nvme")

SCENARIOS: Final = (
    Scenario(
        name="writes follow one another",
        steps=(_write(0, 0), _write(0, 8, 16), read_step(0, 0, 24), _write(0, 24, 64), read_step(0)),
    ),
    Scenario(
        name="a write beside wp is refused",
        steps=(
            _write(0, 8, 8, _S.UNALIGNED_WP),
            _write(0, 0),
            _write(0, 0, 8, _S.UNALIGNED_WP),
            _write(0, 24, 8, _S.UNALIGNED_WP),
            _write(0, 8),
        ),
    ),
    Scenario(
        name="a zone is written to its capacity and no further",
        steps=(
            _write(0, 0, 8),
            _write(0, 8, 128),
            # zonefs writes what fits and says so.
            _write(0, 136, CAPACITY, _S.ZONE_BOUNDARY, cannot=_NOT_ZONEFS),
            _append(0, 8),
            manage_step(_O.RESET, 0),
            _write(0, 0, CAPACITY),
            # zonefs compares with the file's size first.
            _write(0, 0, 8, _S.ZONE_FULL, fuse=_S.UNALIGNED_WP),
            _write(0, -8, 8, _S.ZONE_FULL, from_end=True, fuse=_S.UNALIGNED_WP),
            read_step(0),
        ),
    ),
    Scenario(
        name="a write may not reach into the next zone",
        nr_zones=2,
        steps=(_write(0, 0, 2 * _ZONE, _S.ZONE_BOUNDARY, cannot=_NOT_ZONEFS), read_step(0), read_step(1)),
    ),
    Scenario(
        name="appends say where they landed",
        steps=(
            *(_append(0, 8) for _ in range(4)),
            _append(0, 64),
            _write(0, 96, 8),
            _append(0, 8),
            read_step(0),
            manage_step(_O.FINISH, 0),
            _append(0, 8, _S.ZONE_FULL, cannot=("scsi",)),
        ),
    ),
    Scenario(
        name="appends that are refused",
        steps=(
            _append(0, 8),
            _append(CONVENTIONAL, 8, _S.CONVENTIONAL, cannot=("scsi",)),
            _append(0, 8, _S.NOT_ZONE_START, at=8, cannot=_NOT_APPEND),
            _append(0, _MAX_APPEND + 8, _S.APPEND_LIMIT, cannot=_NOT_APPEND),
            _append(0, 8),
        ),
    ),
    Scenario(
        name="a conventional zone is written in any order and not managed",
        steps=(
            _write(CONVENTIONAL, 80, 8),
            _write(CONVENTIONAL, 16, 8),
            _write(CONVENTIONAL, 80, 16),
            read_step(CONVENTIONAL),
            *(manage_step(operation, CONVENTIONAL, _S.CONVENTIONAL) for operation in MANAGEMENT),
        ),
    ),
    Scenario(
        name="zones are opened and closed",
        steps=(
            manage_step(_O.OPEN, 0),
            manage_step(_O.OPEN, 0),
            manage_step(_O.CLOSE, 0),  # nothing was written: EMPTY
            manage_step(_O.OPEN, 0),
            _write(0, 0),
            manage_step(_O.CLOSE, 0),
            manage_step(_O.CLOSE, 0),
            _write(0, 8),  # implicitly open
            manage_step(_O.OPEN, 0),
            _write(0, 16),
            manage_step(_O.CLOSE, 0),
            read_step(0),
        ),
    ),
    Scenario(
        name="what is so already",
        steps=(
            manage_step(_O.RESET, 0),
            # ZBC answers "already so" with success.
            manage_step(_O.CLOSE, 0, _S.BAD_TRANSITION, scsi=_S.OK),
            manage_step(_O.FINISH, 0),
            manage_step(_O.FINISH, 0),
            manage_step(_O.CLOSE, 0, _S.BAD_TRANSITION, scsi=_S.OK),
            manage_step(_O.OPEN, 0, _S.BAD_TRANSITION, scsi=_S.OK),
            read_step(0),
            manage_step(_O.RESET, 0),
        ),
    ),
    Scenario(
        name="a zone that is finished early reads as zeros to its end",
        steps=(
            _write(0, 0, 24),
            manage_step(_O.FINISH, 0),
            read_step(0),
            _write(0, 24, 8, _S.ZONE_FULL, fuse=_S.UNALIGNED_WP),
            manage_step(_O.RESET, 0),
            read_step(0),
        ),
    ),
    Scenario(
        name="a reset zone has nothing of what it had",
        steps=(_write(0, 0, CAPACITY), manage_step(_O.RESET, 0), read_step(0), _write(0, 0, 8), read_step(0)),
    ),
    Scenario(
        name="explicitly open zones are never closed to make room",
        nr_zones=5,
        steps=(
            *(manage_step(_O.OPEN, zone) for zone in range(MAX_OPEN)),
            manage_step(_O.OPEN, 3, _S.OPEN_RESOURCE),
            _write(3, 0, 8, _S.OPEN_RESOURCE),
            _write(0, 0, 8),
            manage_step(_O.CLOSE, 0),
            _write(3, 0, 8),
            # Three open, one closed: both limits are hit, and the closed zone counts.
            _write(4, 0, 8, _S.ACTIVE_RESOURCE),
            manage_step(_O.OPEN, 4, _S.ACTIVE_RESOURCE),
            manage_step(_O.RESET, 0),
            manage_step(_O.OPEN, 4),
            # zonefs does not reset a zone without data.
            *(manage_step(_O.CLOSE, zone) for zone in (1, 2, 4)),
        ),
    ),
    Scenario(
        name="the implicitly open zone that was written least recently makes room",
        nr_zones=4,
        steps=(
            *(_write(zone, 0) for zone in range(MAX_OPEN)),
            _write(0, 8),
            _write(3, 0),  # closes zone 1
            _write(1, 8),  # closes zone 2
            manage_step(_O.OPEN, 2),
        ),
    ),
    Scenario(
        name="a read-only zone is read and nothing else",
        steps=(
            _write(0, 0, 16),
            _set_cond(0, _C.READONLY),
            read_step(0, 0, 16),
            _write(0, 16, 8, _S.ZONE_READONLY),
            _write(0, 16, 8, _S.ZONE_READONLY),
            # ZNS knows one status for what the condition of a zone does not allow.
            *(manage_step(operation, 0, _S.ZONE_READONLY, nvme=_S.BAD_TRANSITION) for operation in MANAGEMENT),
            read_step(0, 0, 16),
        ),
    ),
    Scenario(
        name="of an offline zone nothing is left",
        steps=(
            _write(0, 0, 16),
            _set_cond(0, _C.OFFLINE),
            read_step(0, 0, 16, _S.ZONE_OFFLINE),
            _write(0, 16, 8, _S.ZONE_OFFLINE),
            *(manage_step(operation, 0, _S.ZONE_OFFLINE, nvme=_S.BAD_TRANSITION) for operation in MANAGEMENT),
        ),
    ),
    Scenario(
        name="zone management addresses the start of a zone",
        steps=(
            _write(0, 0, 16),
            *(manage_step(operation, 0, _S.NOT_ZONE_START, at=8, cannot=_NOT_ZONEFS) for operation in MANAGEMENT),
        ),
    ),
    Scenario(
        name="there is nothing beyond the last sector",
        steps=(
            read_step(BEYOND, 0, 8, _S.OUT_OF_RANGE, cannot=_NOT_ZONEFS),
            _write(BEYOND, 0, 8, _S.OUT_OF_RANGE, cannot=_NOT_ZONEFS),
            *(manage_step(operation, BEYOND, _S.OUT_OF_RANGE, cannot=_NOT_ZONEFS) for operation in MANAGEMENT),
        ),
    ),
    Scenario(
        name="a read stays in its zone",
        nr_zones=2,
        steps=(
            _write(0, 0, CAPACITY),
            _write(1, 0, 8),
            # SCSI (URSWRZ) and NVMe (RAZB) read across.
            read_step(0, -8, _ZONE, _S.READ_BOUNDARY, from_end=True, cannot=("scsi", "fuse", "nvme")),
        ),
    ),
    Scenario(
        name="half a block",
        block_size_bytes=4096,
        steps=(
            # SCSI and NVMe count in blocks.
            _write(0, 0, 1, _S.UNALIGNED_WP, cannot=_COUNT_BLOCKS),
            _write(0, 0, 8),
            _write(0, 8, 9, _S.UNALIGNED_WP, cannot=_COUNT_BLOCKS),
            read_step(0, 1, 1, _S.UNALIGNED, cannot=_COUNT_BLOCKS),
            _write(CONVENTIONAL, 1, 8, _S.UNALIGNED, cannot=("scsi",)),
        ),
    ),
    Scenario(
        name="all zones at once",
        nr_zones=4,
        steps=(
            _write(0, 0, 16),
            manage_step(_O.OPEN, 1),
            _write(1, 0, 8),
            _write(2, 0, 8),
            manage_step(_O.CLOSE, 2),
            _write(3, 0, CAPACITY),
            _everywhere(_O.RESET),
            *(read_step(zone) for zone in range(4)),
        ),
    ),
)


def _shape(block_size_bytes: int, zone_capacity: Sector) -> Geometry:
    nr_zones = NR_CONVENTIONAL + sum(scenario.nr_zones for scenario in SCENARIOS)
    return Geometry(
        size=nr_zones * _ZONE, zone_size=_ZONE, zone_capacity=zone_capacity, conventional=((0, NR_CONVENTIONAL),),
        block_size_bytes=block_size_bytes, max_open_zones=MAX_OPEN, max_active_zones=MAX_ACTIVE,
        max_append=_MAX_APPEND,
    )  # fmt: skip


#: The devices that all scenarios are run on by adapters whose protocols have conventional zones.
SHAPES: Final[Mapping[str, Geometry]] = MappingProxyType(
    {"512": _shape(512, _ZONE), "4096": _shape(4096, _ZONE), "capacity": _shape(4096, _ZONE * 3 // 4)}
)
#: The same without conventional zones, which NVMe does not have: steps on these are left out.
ZNS_SHAPES: Final[Mapping[str, Geometry]] = MappingProxyType(
    {name: replace(shape, conventional=()) for name, shape in SHAPES.items()}
)
