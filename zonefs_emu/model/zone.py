"""Zone types, conditions, and the snapshot of one zone.

The numbers are shared by ZBC-2 (REPORT ZONES), virtio-blk and Linux (blkzoned.h), so they are never translated.
"""

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from zonefs_emu.units import Sector


class Condition(IntEnum):
    """Zone condition. Source: ZBC-2, REPORT ZONES, table "ZONE CONDITION field"; virtio ``VIRTIO_BLK_ZS_*``."""

    NOT_WP = 0
    EMPTY = 1
    IMP_OPEN = 2
    EXP_OPEN = 3
    CLOSED = 4
    READONLY = 13
    FULL = 14
    OFFLINE = 15


class ZoneType(IntEnum):
    """Zone type. SWP exists in reports only; no geometry has such zones."""

    CONVENTIONAL = 1
    SWR = 2
    SWP = 3


class Attribute(IntFlag):
    """The attributes of a zone, which only the ZNS dialect knows. A zone that becomes EMPTY loses them.

    The numbers are those of the image, and not those of NVMe.

    Source: NVMe ZNS 1.1, Zone Descriptor, "Zone Attributes".
    """

    EXTENSION = 1  #: its descriptor extension is valid
    ZRWA = 2  #: it has a zone random write area; only active zones have one
    FINISHED_BY_CONTROLLER = 4  #: the drive itself made it FULL, in a zone active excursion
    #: The drive recommends to finish the zone. Only an injected fault causes that, in reports and not in the image.
    FINISH_RECOMMENDED = 16


#: Conditions that hold an open resource, and those that hold an active resource.
OPEN_CONDITIONS: Final = frozenset({Condition.IMP_OPEN, Condition.EXP_OPEN})
ACTIVE_CONDITIONS: Final = OPEN_CONDITIONS | {Condition.CLOSED}


class Zone(NamedTuple):
    """A snapshot of one zone; addresses and extents in sectors.

    *wp* is absolute. For NOT_WP, READONLY, FULL and OFFLINE zones the standards give it no meaning; here it is *start*
    plus the number of sectors that hold data, and front-ends report the number that their format requires.
    *reset_recommended*: the drive recommends a reset, which only an injected fault causes. *attributes*: see
    :class:`Attribute`.
    """

    zone_no: int
    start: Sector
    size: Sector
    capacity: Sector
    wp: Sector
    cond: Condition
    type: ZoneType
    reset_recommended: bool = False
    attributes: int = 0
