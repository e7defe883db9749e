"""The errno of each refusal: the tables from Status, and from the rules of zonefs, to errno."""

import errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from zonefs_emu.device.rules import FrontEndAnswers
from zonefs_emu.errors import Status, ZonedError
from zonefs_emu.fs.rules import ZonefsRule


class FileError(ZonedError):
    """A request on a file was refused with *errno*. If a rule of zonefs was broken, the port's log has it."""

    def __init__(self, errno_no: int) -> None:
        super().__init__(errno_no, errno.errorcode.get(errno_no, str(errno_no)))
        self.errno = errno_no


#: The errno that an application gets for each status of the device. zonefs passes on the errno of the block layer: EIO
#: for all statuses but those below.
#: Source: Linux block/blk-core.c, blk_errors; drivers/block/virtio_blk.c, virtblk_result.
ERRNO_OF: Final[Mapping[Status, int]] = MappingProxyType(
    dict.fromkeys(Status, errno.EIO)
    | {
        Status.OK: 0,
        Status.OPEN_RESOURCE: errno.ETOOMANYREFS,
        Status.ACTIVE_RESOURCE: errno.EOVERFLOW,
        Status.NO_SPACE: errno.ENOSPC,
        Status.UNSUPPORTED: errno.EOPNOTSUPP,
    }
)

#: The status that the log of refusals shows for each rule of zonefs, and the errno that the application gets.
FS_RULES: Final[Mapping[ZonefsRule, tuple[Status, int]]] = MappingProxyType(
    {
        ZonefsRule.FS_WRITE_PROTECTED: (Status.ZONE_READONLY, errno.EPERM),
        ZonefsRule.FS_OFFLINE: (Status.ZONE_OFFLINE, errno.EPERM),
        ZonefsRule.FS_READONLY: (Status.ZONE_READONLY, errno.EROFS),
        ZonefsRule.FS_DIRECT_ONLY: (Status.UNSUPPORTED, errno.EIO),
        ZonefsRule.FS_TOO_BIG: (Status.ZONE_BOUNDARY, errno.EFBIG),
        ZonefsRule.FS_UNALIGNED: (Status.UNALIGNED, errno.EINVAL),
        ZonefsRule.FS_NOT_AT_END: (Status.UNALIGNED_WP, errno.EINVAL),
        ZonefsRule.FS_APPEND_CONVENTIONAL: (Status.CONVENTIONAL, errno.EINVAL),
        ZonefsRule.FS_TRUNCATE_CONVENTIONAL: (Status.CONVENTIONAL, errno.EPERM),
        ZonefsRule.FS_TRUNCATE_SIZE: (Status.BAD_TRANSITION, errno.EPERM),
        ZonefsRule.FS_TOO_MANY_WRITERS: (Status.OPEN_RESOURCE, errno.EBUSY),
        ZonefsRule.FS_CREATE: (Status.UNSUPPORTED, errno.ENOENT),
        ZonefsRule.FS_REMOVE: (Status.UNSUPPORTED, errno.EPERM),
        ZonefsRule.FS_DIRECTORY_MODE: (Status.UNSUPPORTED, errno.EPERM),
        ZonefsRule.FS_DIRECTORY_SIZE: (Status.UNSUPPORTED, errno.EISDIR),
        ZonefsRule.FS_DIRECTORY_SYNC: (Status.UNSUPPORTED, errno.EINVAL),
        ZonefsRule.FS_XATTR: (Status.UNSUPPORTED, errno.EOPNOTSUPP),
    }
)

#: The answers for the explanation of refusals: the names of the errors that applications get.
ANSWERS: Final = FrontEndAnswers(
    name="zonefs",
    of_status=lambda status, _operation: errno.errorcode[ERRNO_OF[status]],
    of_rule={rule: errno.errorcode[number] for rule, (_, number) in FS_RULES.items()},
)
