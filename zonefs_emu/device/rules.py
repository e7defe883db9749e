"""Rules that a request can break: the class of rules, and the rules of the device.

A rule has a number, which images keep, a sentence, and the clause of a standard (or the page of the manual) that states
it. A front-end with rules of its own (zonefs: "a sequential file takes direct writes only") states them in its own
package, as a subclass of :class:`Rule`, and passes them to ``Port.refusals``. ``front_ends/answers.py`` joins all of
them for explanations.

Each rule is a member of an enumeration of its package. One alternative was rejected, a table that packages fill when
they are imported, because the explanations of ``why`` would then depend on the imports of the process. Another one,
plain numbers with a table of texts, was rejected because a number without a text would be noticed only when it is
shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, unique
from types import MappingProxyType
from typing import Final, Self

from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import Operation


class Rule(IntEnum):
    """Base of the enumerations of rules: a number with its sentence and its clause.

    Members are written ``NAME = number, sentence, clause``. Names and numbers are unique over all packages, because
    ``why --json`` shows names and images keep numbers. The number of a removed rule is not used again. docs/errors.md
    has the range of each package.
    """

    _value_: int
    #: The rule in words, as a part of a sentence.
    sentence: str
    #: The clause that states it.
    clause: str

    def __new__(cls, number: int, sentence: str, clause: str) -> Self:
        """Make a member."""
        self = int.__new__(cls, number)
        self._value_ = number
        self.sentence = sentence
        self.clause = clause
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndAnswers:
    """The answers of one front-end to refusals, in words, for their explanation.

    *of_status* returns the answer to an operation that its port refused with a status. *of_rule* has the answer to each
    rule of the front-end. Two front-ends may share rules.
    """

    name: str
    of_status: Callable[[Status, Operation | None], str]
    of_rule: Mapping[Rule, str]


@unique
class DeviceRule(Rule):
    """The rules of zones, images and memory. Up to 89 they have the numbers and names of Status."""

    OUT_OF_RANGE = (
        Status.OUT_OF_RANGE,
        "a request must end at or before the last sector of the device",
        "ZBC-2 LOGICAL BLOCK ADDRESS OUT OF RANGE; virtio 1.4 blk, VIRTIO_BLK_S_ZONE_INVALID_CMD",
    )
    UNALIGNED = (
        Status.UNALIGNED,
        "start and length must be multiples of the logical block size",
        "virtio 1.4 blk, blk_size; SBC-4 logical blocks",
    )
    UNALIGNED_WP = (
        Status.UNALIGNED_WP,
        "a sequential zone is written at its write pointer only, in multiples of the write granularity",
        "ZBC-2 UNALIGNED WRITE COMMAND; virtio 1.4 blk, ZONE_UNALIGNED_WP; ZNS 1.1 Zone Invalid Write",
    )
    ZONE_BOUNDARY = (
        Status.ZONE_BOUNDARY,
        "a write must not pass the zone's capacity",
        "ZBC-2 WRITE BOUNDARY VIOLATION; ZNS 1.1 Zone Boundary Error",
    )
    READ_BOUNDARY = (
        Status.READ_BOUNDARY,
        "one read must not cross the boundary of a sequential zone",
        "ZBC-2 READ BOUNDARY VIOLATION; virtio 1.4 blk, Device Operation",
    )
    ZONE_FULL = (
        Status.ZONE_FULL,
        "a full zone takes no writes until it is reset",
        "ZBC-2 zone condition FULL; ZNS 1.1 Zone Is Full",
    )
    ZONE_READONLY = (
        Status.ZONE_READONLY,
        "a read-only zone can only be read",
        "ZBC-2 ZONE IS READ ONLY; ZNS 1.1 Zone Is Read Only",
    )
    ZONE_OFFLINE = (
        Status.ZONE_OFFLINE,
        "an offline zone can be neither read nor written",
        "ZBC-2 ZONE IS OFFLINE; ZNS 1.1 Zone Is Offline",
    )
    NOT_ZONE_START = (
        Status.NOT_ZONE_START,
        "zone management and append address the first sector of a zone",
        "virtio 1.4 blk, Device Operation; ZBC-2 ZONE ID field",
    )
    CONVENTIONAL = (
        Status.CONVENTIONAL,
        "a conventional zone has no write pointer, so it is neither managed nor appended to",
        "ZBC-2 INVALID FIELD IN CDB; virtio 1.4 blk, Device Operation",
    )
    BAD_TRANSITION = (
        Status.BAD_TRANSITION,
        "the zone's condition does not allow that operation",
        "virtio 1.4 blk, zone state machine; ZNS 1.1 Invalid Zone State Transition",
    )
    APPEND_LIMIT = (
        Status.APPEND_LIMIT,
        "an append must not be longer than max_append",
        "virtio 1.4 blk, max_append_sectors; ZNS 1.1 Zone Append Size Limit",
    )
    OPEN_RESOURCE = (
        Status.OPEN_RESOURCE,
        "max_open_zones zones are open and none of them implicitly, so none can be closed for this one",
        "ZBC-2 INSUFFICIENT ZONE RESOURCES; virtio 1.4 blk, ZONE_OPEN_RESOURCE; ZNS 1.1 Too Many Open Zones",
    )
    ACTIVE_RESOURCE = (
        Status.ACTIVE_RESOURCE,
        "max_active_zones zones are active: finish or reset one first",
        "virtio 1.4 blk, ZONE_ACTIVE_RESOURCE; ZNS 1.1 Too Many Active Zones",
    )
    IO_ERROR = (
        Status.IO_ERROR,
        "the host could not read or write the image",
        "host",
    )
    NO_SPACE = (
        Status.NO_SPACE,
        "the host has no space left for the image: free some there, or reset zones and flush, and write again",
        "docs/errors.md, after a host failure",
    )
    POISONED = (
        Status.POISONED,
        (
            "nothing is written: the image is open read-only, or an earlier host failure left it in doubt until "
            "it is opened again (unmount it and mount it, or restart the daemon that serves it)"
        ),
        "docs/errors.md, after a host failure",
    )
    UNSUPPORTED = (
        Status.UNSUPPORTED,
        "the device does not offer that operation",
        "virtio 1.4 blk, UNSUPP",
    )
    ZRWA_WRITE = (
        Status.ZRWA_WRITE,
        (
            "a zone with a random write area is written from its write pointer on, over at most twice the area's size, "
            "in multiples of the write granularity"
        ),
        "ZNS 1.1b Zone Random Write Area, Zone Invalid Write",
    )
    ZRWA_RANGE = (
        Status.ZRWA_RANGE,
        (
            "an explicit flush ends in the zone's random write area, a multiple of the flush granularity behind the "
            "write pointer"
        ),
        "ZNS 1.1b Flush Explicit ZRWA Range, Invalid Zone Operation Request",
    )
    ZRWA_INVALID = (
        Status.ZRWA_INVALID,
        ("a random write area is allocated for an empty zone, is flushed in a zone that has one, and takes no appends"),
        "ZNS 1.1b Invalid Zone Operation Request",
    )
    ZRWA_UNAVAILABLE = (
        Status.ZRWA_UNAVAILABLE,
        "max_zrwa zones have a random write area: fill, finish or reset one first",
        "ZNS 1.1b ZRWA Resources Unavailable",
    )
    INJECTED = (
        90,
        "a fault was injected to fail it",
        "zonefs-emu inject",
    )
    INTERNAL = (
        91,
        "zonefs_emu met an error of its own, which the daemon's log has with a traceback",
        "docs/errors.md, boundaries",
    )
    LOST = (
        92,
        (
            "the image's file was cut or overwritten by another program while it was in use, so nothing is read "
            "from it or written to it any more: end what uses it, and restore it from a copy"
        ),
        "docs/errors.md, after a host failure",
    )
    LOST_BUFFER = (
        93,
        "the memory of the request's data is gone: the guest's virtual machine monitor cut the file that it shares",
        "docs/errors.md, memory of peers",
    )
    FINISHED_BY_CONTROLLER = (
        94,
        "the drive has finished that zone by itself, in a zone active excursion: it takes no writes until it is reset",
        "ZNS 1.1 Zone Active Excursions, Zone Is Full",
    )
    CONTESTED = (
        400,
        "it is unknown whether a killed process carried it out, because other requests have changed the zone since",
        "docs/vhost-user.md, exactly once",
    )


#: The rule of each status with which a command can be refused.
RULE_OF_STATUS: Final[Mapping[Status, DeviceRule]] = MappingProxyType(
    {status: DeviceRule[status.name] for status in Status if status}
)
