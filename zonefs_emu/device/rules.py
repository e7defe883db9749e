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
    SCSI_GAP = 300
    SCSI_READ_TYPES = 301
    SCSI_WRITE_PROTECTED = 302
    SCSI_TRANSFER_LENGTH = 303
    CONTESTED = 400


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
    Rule.NO_SPACE: RuleText(sentence="the host has no space left for the image", clause="host"),
    Rule.POISONED: RuleText(
        sentence="nothing is written: the image is open read-only, or an earlier host failure left it in doubt",
        clause="docs/image-format.md",
    ),
    Rule.INJECTED: RuleText(sentence="a fault was injected to fail it", clause="zonefs-emu inject"),
    Rule.UNSUPPORTED: RuleText(sentence="the device does not offer that operation", clause="virtio 1.4 blk, UNSUPP"),
    Rule.SCSI_GAP: RuleText(
        sentence="between a zone's capacity and the next zone lies a gap zone, which can be neither read nor written",
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
    Rule.CONTESTED: RuleText(
        sentence="a request that a killed process left half done is not guessed at when others changed the zone since",
        clause="docs/vhost-user.md, exactly once",
    ),
}
