"""How a file changes after an I/O error.

Pure. After a failed read, write or sync, zonefs asks the device for the state of the zone and compares it with the
state of the file:

    what was found                remount-ro        zone-ro           zone-offline      repair
    good zone, read, same size    nothing           nothing           nothing           nothing
    good zone, more data          size kept, fs ro  size kept, no w   nothing left      size := data
    good zone, less data          size := data,     size kept, no w   nothing left      size := data
                                  fs ro
    good zone, failed write       fs ro             no w              nothing left      (size := data)
    READONLY zone                 no w, fs ro       no w              nothing left      no w
    OFFLINE zone                  nothing left,     nothing left      nothing left      nothing left
                                  fs ro

"no w": mode loses 0222 and the file becomes immutable. "nothing left": size 0, mode loses 0777, immutable.
The new size is also the new write pointer of the file.

Source: Linux fs/zonefs/super.c, zonefs_handle_io_error; Documentation/filesystems/zonefs.rst, "IO error handling".
"""

from typing import Final, NamedTuple

from zonefs_emu.fs.options import ErrorPolicy
from zonefs_emu.model.zone import Condition

WRITE_BITS: Final = 0o222
ALL_BITS: Final = 0o777


class Finding(NamedTuple):
    """The state of a file in zonefs, and of its zone in the device; sizes in bytes.

    *wp_size* is the write pointer in zonefs, and *written* that of the device, which has no meaning for FULL, READONLY,
    OFFLINE and NOT_WP. *readonly* and *offline* are the marks that the file had before.
    """

    cond: Condition
    written: int
    capacity: int
    wp_size: int
    size: int
    readonly: bool
    offline: bool
    sequential: bool


class Verdict(NamedTuple):
    """The new state of the file: *size* in bytes, marks, bits that its mode loses; whether the fs goes read-only."""

    size: int
    readonly: bool
    offline: bool
    lost_mode: int
    remount_ro: bool


def data_size(cond: Condition, written: int, capacity: int, wp_size: int, *, sequential: bool) -> int:
    """Return how many bytes zonefs assumes that a zone in *cond* holds.

    "The write pointer of read-only zones is invalid" (Linux fs/zonefs/super.c). So a sequential file of a READONLY zone
    keeps its size, *wp_size*, which is 0 while mounting.
    """
    match cond:
        case Condition.OFFLINE:
            return 0
        case Condition.READONLY:
            return wp_size if sequential else capacity
        case Condition.FULL | Condition.NOT_WP:
            return capacity
        case _:
            return written


def judge(finding: Finding, policy: ErrorPolicy, *, write: bool) -> Verdict | None:
    """Return the new state of the file of *finding*; None if it stays as it is. *write*: the failed I/O was no read."""
    data = data_size(finding.cond, finding.written, finding.capacity, finding.wp_size, sequential=finding.sequential)
    offline = finding.offline or finding.cond is Condition.OFFLINE
    readonly = finding.readonly or finding.cond is Condition.READONLY
    if not (offline or readonly or write) and data == finding.size:
        return None
    size = data
    lost_mode = 0
    if offline or policy is ErrorPolicy.ZONE_OFFLINE:
        offline = True
        lost_mode = ALL_BITS
        size = 0
    elif readonly or policy is ErrorPolicy.ZONE_RO:
        readonly = True
        lost_mode = WRITE_BITS
        size = finding.size
    elif policy is ErrorPolicy.REMOUNT_RO:
        # Data that was not written through zonefs may be anything, so the file does not grow over it.
        size = min(data, finding.size)
    return Verdict(size, readonly, offline, lost_mode, policy is ErrorPolicy.REMOUNT_RO)
