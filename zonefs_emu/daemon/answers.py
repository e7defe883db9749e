"""What each front-end answers to a refusal: one status, and the codes that applications, guests and drivers see.

Built from the front-ends' own tables, so that ``why`` and they cannot disagree.
"""

import errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from zonefs_emu.device.refusals import Refusal
from zonefs_emu.fs.refusals import ERRNO_OF, FS_RULES
from zonefs_emu.model.transitions import Operation
from zonefs_emu.scsi.sense import SENSE_OF_RULE, Sense, sense_of
from zonefs_emu.ublk.protocol import RESULT_OF_RULE, RESULTS
from zonefs_emu.virtio import blk
from zonefs_emu.virtio.scsi import RESPONSE_OF_RULE

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
_DATA: Final = frozenset((Operation.READ, Operation.WRITE, Operation.FLUSH))


def answers(refusal: Refusal) -> dict[str, str]:
    """Return front-end -> code for each front-end that can meet *refusal*: errno, virtio-blk status, sense.

    Of a block device of this host (ublk, vduse) it is the errno that its user gets. A rule of one front-end's own is
    met there only.
    """
    if refusal.rule in FS_RULES:
        return {"zonefs": errno.errorcode[FS_RULES[refusal.rule][1]]}
    if refusal.rule in SENSE_OF_RULE:
        return {"scsi": _sense_name(SENSE_OF_RULE[refusal.rule])}
    if refusal.rule in RESPONSE_OF_RULE:
        return {"scsi": f"S_{RESPONSE_OF_RULE[refusal.rule].name}"}
    if refusal.rule in blk.STATUS_OF_RULE:
        return _of_blk(blk.STATUS_OF_RULE[refusal.rule])
    if refusal.rule in RESULT_OF_RULE:
        return {"ublk": errno.errorcode[-RESULT_OF_RULE[refusal.rule]]}
    codes = blk.DATA_STATUS if refusal.operation in _DATA else blk.ZONE_STATUS
    of_blk = _of_blk(codes[refusal.status])
    return {
        "zonefs": errno.errorcode[ERRNO_OF[refusal.status]],
        "virtio-blk": of_blk["virtio-blk"],
        "scsi": _sense_name(sense_of(refusal.status, refusal.operation)),
        "ublk": errno.errorcode[-RESULTS[refusal.status]],
        "vduse": of_blk["vduse"],
    }


def _of_blk(code: int) -> dict[str, str]:
    return {"virtio-blk": _BLK_NAMES[code], "vduse": errno.errorcode[_ERRNO_OF_BLK[code]]}


def sentence(codes: Mapping[str, str]) -> str:
    """Return the end of a sentence on a refusal: who answers what."""
    front_ends: dict[str, list[str]] = {}
    for front_end, code in codes.items():
        front_ends.setdefault(code, []).append(front_end)
    return "answered as " + ", ".join(f"{code} ({', '.join(names)})" for code, names in front_ends.items())


def _sense_name(code: Sense) -> str:
    return f"{code.key.name} {code.asc:02X}h/{code.ascq:02X}h"
