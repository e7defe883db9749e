"""How the file system says no: errno, and the table from Status to it."""

import errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from zonefs_emu.device.rules import Rule
from zonefs_emu.errors import Status, ZonedError


class FileError(ZonedError):
    """A request on a file was refused with *errno*. Where zonefs has a rule for it, the port's log says why."""

    def __init__(self, errno_no: int) -> None:
        super().__init__(errno_no, errno.errorcode.get(errno_no, str(errno_no)))
        self.errno = errno_no


#: What an application sees of a device's answer. zonefs passes on what the block layer makes of a status, and that
#: flattens all but these to EIO.
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

#: zonefs' own rules: the status that the log of refusals shows, and what the application gets.
FS_RULES: Final[Mapping[Rule, tuple[Status, int]]] = MappingProxyType(
    {
        Rule.FS_WRITE_PROTECTED: (Status.ZONE_READONLY, errno.EPERM),
        Rule.FS_OFFLINE: (Status.ZONE_OFFLINE, errno.EPERM),
        Rule.FS_READONLY: (Status.ZONE_READONLY, errno.EROFS),
        Rule.FS_DIRECT_ONLY: (Status.UNSUPPORTED, errno.EIO),
        Rule.FS_TOO_BIG: (Status.ZONE_BOUNDARY, errno.EFBIG),
        Rule.FS_UNALIGNED: (Status.UNALIGNED, errno.EINVAL),
        Rule.FS_NOT_AT_END: (Status.UNALIGNED_WP, errno.EINVAL),
        Rule.FS_APPEND_CONVENTIONAL: (Status.CONVENTIONAL, errno.EINVAL),
        Rule.FS_TRUNCATE_CONVENTIONAL: (Status.CONVENTIONAL, errno.EPERM),
        Rule.FS_TRUNCATE_SIZE: (Status.BAD_TRANSITION, errno.EPERM),
        Rule.FS_TOO_MANY_WRITERS: (Status.OPEN_RESOURCE, errno.EBUSY),
        Rule.FS_CREATE: (Status.UNSUPPORTED, errno.ENOENT),
        Rule.FS_REMOVE: (Status.UNSUPPORTED, errno.EPERM),
        Rule.FS_DIRECTORY_MODE: (Status.UNSUPPORTED, errno.EPERM),
        Rule.FS_DIRECTORY_SIZE: (Status.UNSUPPORTED, errno.EISDIR),
        Rule.FS_DIRECTORY_SYNC: (Status.UNSUPPORTED, errno.EINVAL),
        Rule.FS_XATTR: (Status.UNSUPPORTED, errno.EOPNOTSUPP),
    }
)
