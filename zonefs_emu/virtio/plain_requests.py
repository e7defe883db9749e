"""The parameters of a protocol for the compiled ring walker: the form of plain reads and writes, and when to take them.

May not know: the walker, rings.
"""

from collections.abc import Callable
from typing import NamedTuple

from zonefs_emu.device.port import Port


class PlainRequests(NamedTuple):
    """The reads and writes of a queue that do not need its handler.

    A block device has a header of 16 bytes and an answer of one, a SCSI host (*is_scsi*) has READ and WRITE to the
    logical unit *lun* (8 bytes). *may_read* says whether reads may be taken now (None: always), and both of them
    whether writes may. *sectors_max*: the longest request.
    """

    port: Port
    sectors_max: int
    may_write: Callable[[], bool]
    may_read: Callable[[], bool] | None = None
    is_scsi: bool = False
    lun: bytes = b""
