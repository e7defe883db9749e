"""The rules of zonefs, by which the file system refuses requests itself instead of the device."""

from enum import unique

from zonefs_emu.device.rules import Rule


@unique
class ZonefsRule(Rule):
    """The rules of zonefs. Each sentence begins with the error that the application gets."""

    FS_WRITE_PROTECTED = (
        100,
        "EPERM, the file's zone is read-only, or was made so by errors=zone-ro after an I/O error",
        "zonefs.rst, IO error handling",
    )
    FS_OFFLINE = (
        101,
        "EPERM, the file's zone is offline, or was made so by errors=zone-offline after an I/O error",
        "zonefs.rst, IO error handling",
    )
    FS_READONLY = (
        102,
        "EROFS, the file system was mounted read-only, or became so by errors=remount-ro after an I/O error",
        "zonefs.rst, IO error handling",
    )
    FS_DIRECT_ONLY = (
        103,
        "EIO, a sequential file must be opened with O_DIRECT to be written",
        "zonefs.rst, Sequential zone files",
    )
    FS_TOO_BIG = (
        104,
        "EFBIG, a file ends at the capacity of its zone",
        "zonefs.rst, Zone files",
    )
    FS_UNALIGNED = (
        105,
        "EINVAL, direct I/O must begin and end on multiples of st_blksize",
        "zonefs.rst, Sequential zone files",
    )
    FS_NOT_AT_END = (
        106,
        "EINVAL, a sequential file is written at its end only, where st_size is",
        "zonefs.rst, Sequential zone files",
    )
    FS_APPEND_CONVENTIONAL = (
        107,
        "EINVAL, a conventional file has a fixed size, so nothing can be appended to it",
        "Linux fs/zonefs/file.c, zonefs_write_checks",
    )
    FS_TRUNCATE_CONVENTIONAL = (
        108,
        "EPERM, the size of a conventional file cannot change",
        "zonefs.rst, Conventional zone files",
    )
    FS_TRUNCATE_SIZE = (
        109,
        "EPERM, a sequential file is truncated to 0 (zone reset) or to its capacity (zone finish) only",
        "zonefs.rst, Sequential zone files",
    )
    FS_TOO_MANY_WRITERS = (
        110,
        "EBUSY, with explicit-open no more files than max_open_zones are open for writing at once",
        'zonefs.rst, "explicit-open" option',
    )
    FS_CREATE = (
        111,
        "ENOENT, there is one file for each zone, and no other can be created",
        "zonefs.rst, Zone type sub-directories",
    )
    FS_REMOVE = (
        112,
        "EPERM, there is one file for each zone, and none can be renamed or removed",
        "zonefs.rst, Zone type sub-directories",
    )
    FS_DIRECTORY_MODE = (
        113,
        "EPERM, a directory cannot be made writable, as no file can be created in it",
        "Linux fs/zonefs/super.c, zonefs_inode_setattr",
    )
    FS_DIRECTORY_SIZE = (
        114,
        "EISDIR, a directory has no size that can be set",
        "truncate(2)",
    )
    FS_DIRECTORY_SYNC = (
        115,
        "EINVAL, directories have no fsync",
        "Linux fs/zonefs/super.c, zonefs_dir_operations",
    )
    FS_XATTR = (
        116,
        "ENOTSUP, files have no extended attributes",
        "Linux fs/zonefs/super.c, zonefs_file_inode_operations",
    )
