"""The answers of the virtio devices to refusals, in the words of their standards and of Linux.

The words are for people. They are made from the tables by which the devices answer.
"""

import errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from zonefs_emu.device.rules import FrontEndAnswers
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.scsi.sense import SENSE_OF_RULE, Sense, sense_of
from zonefs_emu.virtio import blk_codec
from zonefs_emu.virtio.scsi import RESPONSE_OF_RULE

#: The names of virtio 1.4, block device, "Device Operation", without VIRTIO_BLK_.
_BLK_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {
        blk_codec.S_OK: "S_OK",
        blk_codec.S_IOERR: "S_IOERR",
        blk_codec.S_UNSUPP: "S_UNSUPP",
        blk_codec.S_ZONE_INVALID_CMD: "S_ZONE_INVALID_CMD",
        blk_codec.S_ZONE_UNALIGNED_WP: "S_ZONE_UNALIGNED_WP",
        blk_codec.S_ZONE_OPEN_RESOURCE: "S_ZONE_OPEN_RESOURCE",
        blk_codec.S_ZONE_ACTIVE_RESOURCE: "S_ZONE_ACTIVE_RESOURCE",
    }
)
#: The errors that Linux gives to users of a virtio disk. Source: drivers/block/virtio_blk.c, virtblk_result(), and
#: block/blk-core.c, blk_errors.
_ERRNO_OF_BLK: Final[Mapping[int, int]] = MappingProxyType(
    {
        blk_codec.S_IOERR: errno.EIO,
        blk_codec.S_UNSUPP: errno.EOPNOTSUPP,
        blk_codec.S_ZONE_INVALID_CMD: errno.EIO,
        blk_codec.S_ZONE_UNALIGNED_WP: errno.EIO,
        blk_codec.S_ZONE_OPEN_RESOURCE: errno.ETOOMANYREFS,
        blk_codec.S_ZONE_ACTIVE_RESOURCE: errno.EOVERFLOW,
    }
)
_DATA: Final = frozenset((Operation.READ, Operation.WRITE, Operation.FLUSH))


def _blk_status(status: Status, operation: Operation | None) -> int:
    return (blk_codec.DATA_STATUS if operation in _DATA else blk_codec.ZONE_STATUS)[status]


def _errno_name(blk_status: int) -> str:
    return errno.errorcode[_ERRNO_OF_BLK[blk_status]]


def _sense_name(sense: Sense) -> str:
    return f"{sense.key.name} {sense.asc:02X}h/{sense.ascq:02X}h"


#: The status bytes of the block device.
BLK_ANSWERS: Final = FrontEndAnswers(
    name="virtio-blk",
    of_status=lambda status, operation: _BLK_NAMES[_blk_status(status, operation)],
    of_rule={rule: _BLK_NAMES[code] for rule, code in blk_codec.STATUS_OF_RULE.items()},
)
#: The sense data of the disk, or the response of the virtio SCSI host in front of it.
SCSI_ANSWERS: Final = FrontEndAnswers(
    name="scsi",
    of_status=lambda status, operation: _sense_name(sense_of(status, operation)),
    of_rule={
        **{rule: _sense_name(sense) for rule, sense in SENSE_OF_RULE.items()},
        **{rule: f"S_{response.name}" for rule, response in RESPONSE_OF_RULE.items()},
    },
)


def blk_user_answers(name: str) -> FrontEndAnswers:
    """Return the answers of the front-end *name* whose driver is the host's kernel.

    They are the errors that Linux gives to users of the block device for each status byte.
    """
    return FrontEndAnswers(
        name=name,
        of_status=lambda status, operation: _errno_name(_blk_status(status, operation)),
        of_rule={rule: _errno_name(code) for rule, code in blk_codec.STATUS_OF_RULE.items()},
    )
