"""What the compiled ring walker must know of a protocol: the form of plain reads and writes, and when to take them.

May not know: the walker, rings.
"""

from collections.abc import Callable
from typing import NamedTuple

from zonefs_emu.device.port import Port


class PlainRequests(NamedTuple):
    """The reads and writes of a queue that the walker executes on *port*, without the handler of the queue.

    They are those of a block device (a header of 16 bytes, a status of one), or with *is_scsi* the commands READ and
    WRITE to the logical unit *lun* (the LUN field of a request, 8 bytes). Reads may be taken while *may_read* returns
    True (None: always), and writes while *may_write* does too. *sectors_max*: the longest request.
    """

    port: Port
    sectors_max: int
    may_write: Callable[[], bool]
    may_read: Callable[[], bool] | None = None
    is_scsi: bool = False
    lun: bytes = b""
