"""The rules that a request can break, in words, with the clause that says so.

The device's own rules are one to one with Status. A front-end that refuses by rules of its own (zonefs: "a
sequential file takes direct writes only") has rules here too, so that one sentence explains every refusal.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from zonefs_emu.errors import Status


class Rule(IntEnum):
    """A rule. Numbers are kept in images: never reuse one. Up to 99 they equal the Status."""

    OUT_OF_RANGE = Status.OUT_OF_RANGE
    UNALIGNED = Status.UNALIGNED
    UNALIGNED_WP = Status.UNALIGNED_WP
    ZONE_BOUNDARY = Status.ZONE_BOUNDARY
    READ_BOUNDARY = Status.READ_BOUNDARY
    ZONE_FULL = Status.ZONE_FULL
    ZONE_READONLY = Status.ZONE_READONLY
    ZONE_OFFLINE = Status.ZONE_OFFLINE
    NOT_ZONE_START = Status.NOT_ZONE_START
    CONVENTIONAL = Status.CONVENTIONAL
    BAD_TRANSITION = Status.BAD_TRANSITION
    APPEND_LIMIT = Status.APPEND_LIMIT
    OPEN_RESOURCE = Status.OPEN_RESOURCE
    ACTIVE_RESOURCE = Status.ACTIVE_RESOURCE
    IO_ERROR = Status.IO_ERROR
    NO_SPACE = Status.NO_SPACE
    POISONED = Status.POISONED
    UNSUPPORTED = Status.UNSUPPORTED
    INJECTED = 90
    INTERNAL = 91
    LOST = 92
    LOST_BUFFER = 93
    # zonefs' own
    FS_WRITE_PROTECTED = 100
    FS_OFFLINE = 101
    FS_READONLY = 102
    FS_DIRECT_ONLY = 103
    FS_TOO_BIG = 104
    FS_UNALIGNED = 105
    FS_NOT_AT_END = 106
    FS_APPEND_CONVENTIONAL = 107
    FS_TRUNCATE_CONVENTIONAL = 108
    FS_TRUNCATE_SIZE = 109
    FS_TOO_MANY_WRITERS = 110
    FS_CREATE = 111
    FS_REMOVE = 112
    FS_DIRECTORY_MODE = 113
    FS_DIRECTORY_SIZE = 114
    FS_DIRECTORY_SYNC = 115
    FS_XATTR = 116
    # virtio-blk's own
    BLK_TYPE = 200
    BLK_NOT_ZONED = 201
    BLK_SEGMENT = 202
    BLK_SEGMENT_FLAGS = 203
    BLK_APPEND_ROOM = 204
    BLK_REPORT_ROOM = 205
    BLK_OVERSIZED = 206
    # the SCSI disk's own
    SCSI_GAP = 300
    SCSI_READ_TYPES = 301
    SCSI_WRITE_PROTECTED = 302
    SCSI_TRANSFER_LENGTH = 303
    SCSI_OPERATION_CODE = 304
    SCSI_CDB_FIELD = 305
    SCSI_PARAMETER_FIELD = 306
    SCSI_PARAMETER_LENGTH = 307
    SCSI_LUN = 308
    SCSI_MISCOMPARE = 309
    # those of the way to it
    VSCSI_OVERRUN = 320
    VSCSI_TARGET = 321
    VSCSI_TASK = 322
    VSCSI_TASK_LUN = 323
    VSCSI_OVERSIZED = 324
    CONTESTED = 400
    # ublk's own
    UBLK_OPERATION = 500
    UBLK_DATA = 501


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleText:
    """A rule for people: what holds, and where it is written."""

    sentence: str
    clause: str


RULES: Final[dict[Rule, RuleText]] = {
    Rule.OUT_OF_RANGE: RuleText(
        sentence="a request must end at or before the last sector of the device",
        clause="ZBC-2 LOGICAL BLOCK ADDRESS OUT OF RANGE; virtio 1.4 blk, VIRTIO_BLK_S_ZONE_INVALID_CMD",
    ),
    Rule.UNALIGNED: RuleText(
        sentence="start and length must be multiples of the logical block size",
        clause="virtio 1.4 blk, blk_size; SBC-4 logical blocks",
    ),
    Rule.UNALIGNED_WP: RuleText(
        sentence="a sequential zone is written at its write pointer only, in multiples of the write granularity",
        clause="ZBC-2 UNALIGNED WRITE COMMAND; virtio 1.4 blk, ZONE_UNALIGNED_WP; ZNS 1.1 Zone Invalid Write",
    ),
    Rule.ZONE_BOUNDARY: RuleText(
        sentence="a write must not pass the zone's capacity",
        clause="ZBC-2 WRITE BOUNDARY VIOLATION; ZNS 1.1 Zone Boundary Error",
    ),
    Rule.READ_BOUNDARY: RuleText(
        sentence="one read must not cross the boundary of a sequential zone",
        clause="ZBC-2 READ BOUNDARY VIOLATION; virtio 1.4 blk, Device Operation",
    ),
    Rule.ZONE_FULL: RuleText(
        sentence="a full zone takes no writes until it is reset",
        clause="ZBC-2 zone condition FULL; ZNS 1.1 Zone Is Full",
    ),
    Rule.ZONE_READONLY: RuleText(
        sentence="a read-only zone can only be read",
        clause="ZBC-2 ZONE IS READ ONLY; ZNS 1.1 Zone Is Read Only",
    ),
    Rule.ZONE_OFFLINE: RuleText(
        sentence="an offline zone can be neither read nor written",
        clause="ZBC-2 ZONE IS OFFLINE; ZNS 1.1 Zone Is Offline",
    ),
    Rule.NOT_ZONE_START: RuleText(
        sentence="zone management and append address the first sector of a zone",
        clause="virtio 1.4 blk, Device Operation; ZBC-2 ZONE ID field",
    ),
    Rule.CONVENTIONAL: RuleText(
        sentence="a conventional zone has no write pointer, so it is neither managed nor appended to",
        clause="ZBC-2 INVALID FIELD IN CDB; virtio 1.4 blk, Device Operation",
    ),
    Rule.BAD_TRANSITION: RuleText(
        sentence="the zone's condition does not allow that operation",
        clause="virtio 1.4 blk, zone state machine; ZNS 1.1 Invalid Zone State Transition",
    ),
    Rule.APPEND_LIMIT: RuleText(
        sentence="an append must not be longer than max_append",
        clause="virtio 1.4 blk, max_append_sectors; ZNS 1.1 Zone Append Size Limit",
    ),
    Rule.OPEN_RESOURCE: RuleText(
        sentence="max_open_zones zones are open and none of them implicitly, so none can be closed for this one",
        clause="ZBC-2 INSUFFICIENT ZONE RESOURCES; virtio 1.4 blk, ZONE_OPEN_RESOURCE; ZNS 1.1 Too Many Open Zones",
    ),
    Rule.ACTIVE_RESOURCE: RuleText(
        sentence="max_active_zones zones are active: finish or reset one first",
        clause="virtio 1.4 blk, ZONE_ACTIVE_RESOURCE; ZNS 1.1 Too Many Active Zones",
    ),
    Rule.IO_ERROR: RuleText(sentence="the host could not read or write the image", clause="host"),
    Rule.NO_SPACE: RuleText(
        sentence="the host has no space left for the image: free some there, or reset zones and flush, and write again",
        clause="docs/errors.md, after a host failure",
    ),
    Rule.POISONED: RuleText(
        sentence="nothing is written: the image is open read-only, or an earlier host failure left it in doubt until "
        "it is opened again (unmount it and mount it, or restart the daemon that serves it)",
        clause="docs/errors.md, after a host failure",
    ),
    Rule.LOST: RuleText(
        sentence="the image's file was cut or overwritten by another program while it was in use, so nothing is read "
        "from it or written to it any more: end what uses it, and restore it from a copy",
        clause="docs/errors.md, after a host failure",
    ),
    Rule.LOST_BUFFER: RuleText(
        sentence="the memory of the request's data is gone: the guest's virtual machine monitor cut the file that it "
        "shares",
        clause="docs/errors.md, memory of peers",
    ),
    Rule.INTERNAL: RuleText(
        sentence="zonefs_emu met an error of its own, which the daemon's log has with a traceback",
        clause="docs/errors.md, boundaries",
    ),
    Rule.INJECTED: RuleText(sentence="a fault was injected to fail it", clause="zonefs-emu inject"),
    Rule.UNSUPPORTED: RuleText(sentence="the device does not offer that operation", clause="virtio 1.4 blk, UNSUPP"),
    Rule.SCSI_GAP: RuleText(
        sentence="between a zone's capacity and the next zone lies a gap zone, which can only be read, as zeros",
        clause="ZBC-2 ATTEMPT TO ACCESS GAP ZONE",
    ),
    Rule.SCSI_READ_TYPES: RuleText(
        sentence="one read stays in zones of one type: conventional or sequential",
        clause="ZBC-2 READ BOUNDARY VIOLATION",
    ),
    Rule.SCSI_WRITE_PROTECTED: RuleText(
        sentence="the image is open read-only, so the disk is write protected", clause="SBC-3 WRITE PROTECTED"
    ),
    Rule.SCSI_TRANSFER_LENGTH: RuleText(
        sentence="one command moves at most 32 MiB", clause="SBC-3 Block Limits VPD page, MAXIMUM TRANSFER LENGTH"
    ),
    Rule.SCSI_OPERATION_CODE: RuleText(
        sentence="a command must be one that the disk has, as REPORT SUPPORTED OPERATION CODES lists them",
        clause="SPC-4 INVALID COMMAND OPERATION CODE",
    ),
    Rule.SCSI_CDB_FIELD: RuleText(
        sentence="a CDB must be whole, and its fields must ask for nothing that the disk does not have",
        clause="SPC-4 INVALID FIELD IN CDB",
    ),
    Rule.SCSI_PARAMETER_FIELD: RuleText(
        sentence="a parameter list must ask for nothing that the disk does not have or cannot change",
        clause="SPC-4 INVALID FIELD IN PARAMETER LIST",
    ),
    Rule.SCSI_PARAMETER_LENGTH: RuleText(
        sentence="a parameter list must hold its header, its descriptors and each of its pages in full",
        clause="SPC-4 PARAMETER LIST LENGTH ERROR",
    ),
    Rule.SCSI_LUN: RuleText(
        sentence="the target has a disk at LUN 0 and the REPORT LUNS well-known logical unit, and no other",
        clause="SPC-4 LOGICAL UNIT NOT SUPPORTED",
    ),
    Rule.SCSI_MISCOMPARE: RuleText(
        sentence="the bytes to be verified are not those on the disk",
        clause="SBC-3 VERIFY, BYTCHK; MISCOMPARE DURING VERIFY OPERATION",
    ),
    Rule.VSCSI_OVERRUN: RuleText(
        sentence="the buffers of a request must have room for all that its CDB transfers",
        clause="virtio 1.4 SCSI host, VIRTIO_SCSI_S_OVERRUN",
    ),
    Rule.VSCSI_TARGET: RuleText(
        sentence="the host has one target, which is number 0",
        clause="virtio 1.4 SCSI host, VIRTIO_SCSI_S_BAD_TARGET",
    ),
    Rule.VSCSI_TASK: RuleText(
        sentence="a task management function must be one that the target has, and CLEAR ACA is none of them",
        clause="SAM-5 FUNCTION REJECTED; virtio 1.4 SCSI host, VIRTIO_SCSI_S_FUNCTION_REJECTED",
    ),
    Rule.VSCSI_TASK_LUN: RuleText(
        sentence="tasks are managed at LUN 0 and at the REPORT LUNS well-known logical unit",
        clause="SAM-5 INCORRECT LOGICAL UNIT NUMBER; virtio 1.4 SCSI host, VIRTIO_SCSI_S_INCORRECT_LUN",
    ),
    Rule.VSCSI_OVERSIZED: RuleText(
        sentence="the buffers of one request hold at most 1 GiB",
        clause="virtio 1.4 SCSI host, VIRTIO_SCSI_S_FAILURE; docs/vhost-user.md",
    ),
    Rule.BLK_TYPE: RuleText(
        sentence="the type of a request must be one that the device knows and whose feature was accepted",
        clause="virtio 1.4 blk, Device Operation, VIRTIO_BLK_S_UNSUPP",
    ),
    Rule.BLK_NOT_ZONED: RuleText(
        sentence="requests of the zoned kind are for drivers that accepted VIRTIO_BLK_F_ZONED",
        clause="virtio 1.4 blk, Feature bits, VIRTIO_BLK_F_ZONED",
    ),
    Rule.BLK_SEGMENT: RuleText(
        sentence="WRITE_ZEROES has one segment of 16 bytes, of at most max_write_zeroes_sectors",
        clause="virtio 1.4 blk, max_write_zeroes_seg and max_write_zeroes_sectors",
    ),
    Rule.BLK_SEGMENT_FLAGS: RuleText(
        sentence="a segment of WRITE_ZEROES has no other flag than unmap",
        clause="virtio 1.4 blk, struct virtio_blk_discard_write_zeroes",
    ),
    Rule.BLK_APPEND_ROOM: RuleText(
        sentence="an append has 8 writable bytes for the sector at which the data landed",
        clause="virtio 1.4 blk, VIRTIO_BLK_T_ZONE_APPEND",
    ),
    Rule.BLK_REPORT_ROOM: RuleText(
        sentence="a zone report has room for its header and one zone, 128 bytes",
        clause="virtio 1.4 blk, VIRTIO_BLK_T_ZONE_REPORT",
    ),
    Rule.BLK_OVERSIZED: RuleText(
        sentence="one request moves at most 1 GiB, which is more than seg_max segments of size_max",
        clause="virtio 1.4 blk, size_max and seg_max",
    ),
    Rule.UBLK_OPERATION: RuleText(
        sentence="the kernel asks for reads, writes, flushes and zone operations, as the device was set up",
        clause="Linux include/uapi/linux/ublk_cmd.h, UBLK_IO_OP_*",
    ),
    Rule.UBLK_DATA: RuleText(
        sentence="the kernel did not give or take the data of the request",
        clause="Linux Documentation/block/ublk.rst, UBLK_F_USER_COPY",
    ),
    Rule.FS_WRITE_PROTECTED: RuleText(
        sentence="EPERM, the file's zone is read-only, or was made so by errors=zone-ro after an I/O error",
        clause="zonefs.rst, IO error handling",
    ),
    Rule.FS_OFFLINE: RuleText(
        sentence="EPERM, the file's zone is offline, or was made so by errors=zone-offline after an I/O error",
        clause="zonefs.rst, IO error handling",
    ),
    Rule.FS_READONLY: RuleText(
        sentence="EROFS, the file system was mounted read-only, or became so by errors=remount-ro after an I/O error",
        clause="zonefs.rst, IO error handling",
    ),
    Rule.FS_DIRECT_ONLY: RuleText(
        sentence="EIO, a sequential file must be opened with O_DIRECT to be written",
        clause="zonefs.rst, Sequential zone files",
    ),
    Rule.FS_TOO_BIG: RuleText(
        sentence="EFBIG, a file ends at the capacity of its zone",
        clause="zonefs.rst, Zone files",
    ),
    Rule.FS_UNALIGNED: RuleText(
        sentence="EINVAL, direct I/O must begin and end on multiples of st_blksize",
        clause="zonefs.rst, Sequential zone files",
    ),
    Rule.FS_NOT_AT_END: RuleText(
        sentence="EINVAL, a sequential file is written at its end only, where st_size is",
        clause="zonefs.rst, Sequential zone files",
    ),
    Rule.FS_APPEND_CONVENTIONAL: RuleText(
        sentence="EINVAL, a conventional file has a fixed size, so nothing can be appended to it",
        clause="Linux fs/zonefs/file.c, zonefs_write_checks",
    ),
    Rule.FS_TRUNCATE_CONVENTIONAL: RuleText(
        sentence="EPERM, the size of a conventional file cannot change",
        clause="zonefs.rst, Conventional zone files",
    ),
    Rule.FS_TRUNCATE_SIZE: RuleText(
        sentence="EPERM, a sequential file is truncated to 0 (zone reset) or to its capacity (zone finish) only",
        clause="zonefs.rst, Sequential zone files",
    ),
    Rule.FS_TOO_MANY_WRITERS: RuleText(
        sentence="EBUSY, with explicit-open no more files than max_open_zones are open for writing at once",
        clause='zonefs.rst, "explicit-open" option',
    ),
    Rule.FS_CREATE: RuleText(
        sentence="ENOENT, there is one file for each zone, and no other can be created",
        clause="zonefs.rst, Zone type sub-directories",
    ),
    Rule.FS_REMOVE: RuleText(
        sentence="EPERM, there is one file for each zone, and none can be renamed or removed",
        clause="zonefs.rst, Zone type sub-directories",
    ),
    Rule.FS_DIRECTORY_MODE: RuleText(
        sentence="EPERM, a directory cannot be made writable, as no file can be created in it",
        clause="Linux fs/zonefs/super.c, zonefs_inode_setattr",
    ),
    Rule.FS_DIRECTORY_SIZE: RuleText(sentence="EISDIR, a directory has no size that can be set", clause="truncate(2)"),
    Rule.FS_DIRECTORY_SYNC: RuleText(
        sentence="EINVAL, directories have no fsync", clause="Linux fs/zonefs/super.c, zonefs_dir_operations"
    ),
    Rule.FS_XATTR: RuleText(
        sentence="ENOTSUP, files have no extended attributes",
        clause="Linux fs/zonefs/super.c, zonefs_file_inode_operations",
    ),
    Rule.CONTESTED: RuleText(
        sentence="a request that a killed process left half done is not guessed at when others changed the zone since",
        clause="docs/vhost-user.md, exactly once",
    ),
}
