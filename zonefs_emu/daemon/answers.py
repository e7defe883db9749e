"""What each front-end answers to a refusal: one status, and the codes that applications, guests and drivers see.

Built from the front-ends' own tables, so that ``why`` and they cannot disagree.
"""

import errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from zonefs_emu.device.refusals import Refusal
from zonefs_emu.device.rules import Rule
from zonefs_emu.errors import Status
from zonefs_emu.fs.refusals import ERRNO_OF, FS_RULES
from zonefs_emu.model.transitions import Operation
from zonefs_emu.scsi import sense
from zonefs_emu.scsi.sense import SENSE_OF_STATUS, Sense
from zonefs_emu.ublk.protocol import RESULTS
from zonefs_emu.virtio import blk

#: The names of virtio 1.4, block device, "Device Operation", without VIRTIO_BLK_.
_BLK_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {
        blk.S_OK: "S_OK",
        blk.S_IOERR: "S_IOERR",
        blk.S_UNSUPP: "S_UNSUPP",
        blk.S_ZONE_INVALID_CMD: "S_ZONE_INVALID_CMD",
        blk.S_ZONE_UNALIGNED_WP: "S_ZONE_UNALIGNED_WP",
        blk.S_ZONE_OPEN_RESOURCE: "S_ZONE_OPEN_RESOURCE",
        blk.S_ZONE_ACTIVE_RESOURCE: "S_ZONE_ACTIVE_RESOURCE",
    }
)
#: What users of a virtio disk get from Linux. Source: drivers/block/virtio_blk.c, virtblk_result(), and
#: block/blk-core.c, blk_errors.
_ERRNO_OF_BLK: Final[Mapping[int, int]] = MappingProxyType(
    {
        blk.S_IOERR: errno.EIO,
        blk.S_UNSUPP: errno.EOPNOTSUPP,
        blk.S_ZONE_INVALID_CMD: errno.EIO,
        blk.S_ZONE_UNALIGNED_WP: errno.EIO,
        blk.S_ZONE_OPEN_RESOURCE: errno.ETOOMANYREFS,
        blk.S_ZONE_ACTIVE_RESOURCE: errno.EOVERFLOW,
    }
)
#: Rules that only the SCSI disk has, and its answer where that is not the one to the status.
_SENSE_OF_RULE: Final[Mapping[Rule, Sense | None]] = MappingProxyType(
    {
        Rule.SCSI_GAP: sense.ATTEMPT_TO_ACCESS_GAP_ZONE,
        Rule.SCSI_READ_TYPES: None,
        Rule.SCSI_TRANSFER_LENGTH: sense.INVALID_FIELD_IN_CDB,
        Rule.SCSI_WRITE_PROTECTED: sense.WRITE_PROTECTED,
    }
)
_DATA: Final = frozenset((Operation.READ, Operation.WRITE, Operation.FLUSH))
_WRITTEN: Final = frozenset((Operation.WRITE, Operation.FLUSH))


def answers(refusal: Refusal) -> dict[str, str]:
    """Return front-end -> code for each front-end that can meet *refusal*: errno, virtio-blk status, sense.

    Of a block device of this host (ublk, vduse) it is the errno that its user gets. A rule of one front-end's own is
    met there only.
    """
    if refusal.rule in FS_RULES:
        return {"zonefs": errno.errorcode[FS_RULES[refusal.rule][1]]}
    if refusal.rule in _SENSE_OF_RULE:
        return {"scsi": _sense_name(_SENSE_OF_RULE[refusal.rule] or SENSE_OF_STATUS[refusal.status])}
    codes = blk.DATA_STATUS if refusal.operation in _DATA else blk.ZONE_STATUS
    code = SENSE_OF_STATUS[refusal.status]
    if refusal.status is Status.IO_ERROR and refusal.operation in _WRITTEN:
        code = sense.WRITE_ERROR
    return {
        "zonefs": errno.errorcode[ERRNO_OF[refusal.status]],
        "virtio-blk": _BLK_NAMES[codes[refusal.status]],
        "scsi": _sense_name(code),
        "ublk": errno.errorcode[-RESULTS[refusal.status]],
        "vduse": errno.errorcode[_ERRNO_OF_BLK[codes[refusal.status]]],
    }


def sentence(codes: Mapping[str, str]) -> str:
    """Return the end of a sentence on a refusal: who answers what."""
    front_ends: dict[str, list[str]] = {}
    for front_end, code in codes.items():
        front_ends.setdefault(code, []).append(front_end)
    return "answered as " + ", ".join(f"{code} ({', '.join(names)})" for code, names in front_ends.items())


def _sense_name(code: Sense) -> str:
    return f"{code.key.name} {code.asc:02X}h/{code.ascq:02X}h"
